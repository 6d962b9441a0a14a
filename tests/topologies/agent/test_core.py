"""The life of a lab as its core decides it: no process, no socket, no sleep."""

from __future__ import annotations

import pytest

from tests.topologies.agent.doubles import KILL, MS, Driver, lab_spec
from topologies.agent.phases import KILLED_WITHIN, PHASES, ROWS, STRAGGLERS, Phase
from topologies.agent.spec import CheckSpec, Mode
from topologies.exitcodes import ExitCode
from topologies.runtime import Fault, NodeState

S = 1000 * MS
INTERRUPT = Fault(ExitCode.INTERRUPTED, "interrupted")


def phase_of(driver: Driver) -> Phase:
    return driver.core.phase


def verdict(driver: Driver) -> tuple[int, tuple[str, ...]]:
    assert phase_of(driver) is Phase.DOWN
    assert driver.nothing_left()
    outcome = driver.core.outcome(driver.now)
    return int(outcome.code), outcome.reasons


def finished(driver: Driver) -> tuple[int, tuple[str, ...]]:
    driver.obey()
    return verdict(driver)


# ---- the way up -------------------------------------------------------------------------------------------


def test_starting_order() -> None:
    """architecture.md: broker first, then hypervisors, then guests; the next kind waits for the one before."""
    driver = Driver(lab_spec(hypervisors=("hv0", "hv1"), guests={"a": "hv0", "b": "hv1"})).begin()
    assert driver.to_start == ["broker"]
    driver.spawn("broker")
    driver.core.joined("broker", 0)
    assert driver.to_start == []
    driver.core.ready("broker", 0)
    assert driver.to_start == ["hv0", "hv1"]
    driver.spawn("hv0")
    driver.core.ready("hv0", 0)
    assert driver.to_start == ["hv1"]
    driver.spawn("hv1")
    driver.core.ready("hv1", 0)
    assert driver.to_start == ["a", "b"]
    driver.up_to(Phase.RUNNING)
    assert [record["run_dir"] for record in driver.records if record["what"] == "ready"] == ["/run/lab"]


def test_waits_name_what_is_waited_for() -> None:
    """topology.md: progress names what each wait waits for, and what that needs in turn."""
    driver = Driver(lab_spec()).begin()
    assert driver.core.waits(0) == ["broker broker to be ready: its process has not started"]
    driver.up_to(Phase.STARTING_GUESTS)
    driver.spawn("sender")
    driver.core.joined("sender", 0)
    driver.spawn("receiver")
    under = "; needs hypervisor hv0, which is ready"
    assert driver.core.waits(0) == [
        f"guest sender to be ready: process 1003 has joined, is not ready{under}",
        f"guest receiver to be ready: process 1004 has not joined the broker{under}",
    ]
    driver.wait(S)
    reports = [record for record in driver.records if record["what"] == "waiting"]
    assert [len(report["waits"]) for report in reports] == [2, 2]
    assert reports[-1]["seconds"] == 1.0


def test_a_guest_may_end_before_the_others_are_ready() -> None:
    """A program that needs nobody may be through while others still start."""
    driver = Driver(lab_spec()).begin().up_to(Phase.STARTING_GUESTS)
    driver.spawn("sender")
    driver.end("sender", 0)
    driver.spawn("receiver")
    driver.core.ready("receiver", 0)
    assert phase_of(driver) is Phase.RUNNING
    driver.end("receiver", 0)
    assert finished(driver) == (0, ())


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        (Phase.STARTING_BROKER, "broker broker"),
        (Phase.STARTING_HYPERVISORS, "hypervisor hv0"),
        (Phase.STARTING_GUESTS, "guest sender"),
    ],
)
def test_a_start_that_takes_too_long_is_a_timeout(phase: Phase, name: str) -> None:
    """Exit code 6; the reason names who was waited for."""
    driver = Driver(lab_spec()).begin().up_to(phase)
    driver.spawn(driver.to_start[0])
    within = ROWS[phase].within
    assert within is not None
    driver.wait(within - 1)
    assert phase_of(driver) is phase
    driver.wait(1)
    code, reasons = finished(driver)
    assert code == 6
    assert name in reasons[0]


def test_a_process_that_cannot_be_started() -> None:
    """Exit code 4: the machine failed, not the topology."""
    driver = Driver(lab_spec()).begin().up_to(Phase.STARTING_GUESTS)
    driver.core.not_spawned("sender", "no room", 0)
    code, reasons = finished(driver)
    assert code == 4
    assert reasons == ("guest sender could not be started: no room",)
    assert driver.state("receiver") is NodeState.PLANNED


# ---- the end of a run -------------------------------------------------------------------------------------


def test_a_run_ends_when_its_programs_have_ended() -> None:
    """Exit code 0; counters are asked for while hypervisors live, then guests, hypervisors, broker leave."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.end("receiver", 0)
    assert phase_of(driver) is Phase.RUNNING
    driver.end("sender", 0)
    assert driver.counters_asked == ["hv0"]
    assert finished(driver) == (0, ())
    assert driver.asked == ["hv0", "broker"]
    outcome = driver.core.outcome(driver.now)
    assert {node.name: dict(node.counters) for node in outcome.nodes}["hv0"] == {"arch.hypercalls": 7}
    assert driver.phases() == [row.phase for row in PHASES]


def test_results_arrive_before_the_lab_goes_down() -> None:
    """A guest's process may be gone before its last words have come through the broker: they are waited for."""
    driver = Driver(lab_spec(guests={"a": "hv0"})).begin().up_to(Phase.RUNNING)
    driver.end("a", 0, goodbye=False)
    driver.core.counters("hv0", {}, 0)
    assert phase_of(driver) is Phase.COLLECTING
    driver.core.result("a", {"bytes": 5})
    driver.core.result("a", {"sha256": "x"})
    driver.core.said_goodbye("a", "", 0)
    assert phase_of(driver) is Phase.STOPPING_HYPERVISORS
    driver.obey()
    node = next(node for node in driver.core.outcome(0).nodes if node.name == "a")
    assert dict(node.result) == {"bytes": 5, "sha256": "x"}


def test_a_silent_hypervisor_does_not_hold_the_end_up() -> None:
    """Counters that do not come within the phase's time are done without."""
    driver = Driver(lab_spec(guests={"a": "hv0"})).begin().up_to(Phase.RUNNING)
    driver.end("a", 0)
    driver.wait(500 * MS)
    assert phase_of(driver) is Phase.STOPPING_HYPERVISORS
    assert finished(driver) == (0, ())


def test_a_program_that_fails_ends_the_run() -> None:
    """Exit code 1, naming the guest; the peer that waits for it is stopped."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.core.said_goodbye("sender", "ValueError: no", 0)
    driver.end("sender", 3)
    assert finished(driver) == (1, ("guest sender ended with exit code 3: ValueError: no",))
    assert driver.state("receiver") is NodeState.STOPPED


def test_a_killed_guest_ends_the_run() -> None:
    """Exit code 5, naming the guest and the signal."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.end("sender", KILL)
    assert finished(driver) == (5, ("guest sender was killed by SIGKILL",))


def test_a_node_whose_own_code_raises_ends_the_run() -> None:
    """Exit code 5: an internal error is no program's failure."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.end("sender", 70, crash="KeyError: 'x'")
    assert finished(driver) == (5, ("guest sender died of an internal error: KeyError: 'x'",))


@pytest.mark.parametrize("guests_first", [False, True])
def test_a_dead_hypervisor_is_named_and_not_its_guests(guests_first: bool) -> None:
    """Guests that end because their hypervisor went are a consequence, whichever exit is seen first."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    if guests_first:
        driver.end("sender", 1)
        driver.end("receiver", 1)
        driver.end("hv0", KILL)
    else:
        driver.end("hv0", KILL)
        driver.end("sender", 1)
        driver.end("receiver", 1)
    assert finished(driver) == (5, ("hypervisor hv0 was killed by SIGKILL",))


def test_a_hypervisor_may_not_leave_by_itself() -> None:
    """Even code 0 is a death while the lab lives."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.end("hv0", 0)
    assert finished(driver) == (5, ("hypervisor hv0 ended with exit code 0",))


# ---- checks -----------------------------------------------------------------------------------------------


def test_a_check_can_expect_a_failure() -> None:
    """topology.md: a code or death that a check expects is no fault; 128 + N stands for signal N."""
    checks = (CheckSpec("fails", "sender", 3), CheckSpec("dies", "receiver", 128 + 9))
    driver = Driver(lab_spec(checks=checks)).begin().up_to(Phase.RUNNING)
    driver.end("sender", 3)
    driver.end("receiver", KILL)
    assert finished(driver) == (0, ())
    assert [check.passed for check in driver.core.outcome(0).checks] == [True, True]


def test_a_check_that_is_not_met() -> None:
    """Exit code 1; the words say what was and what was expected."""
    driver = Driver(lab_spec(checks=(CheckSpec("ok", "sender", 7),))).begin().up_to(Phase.RUNNING)
    driver.end("sender", 0)
    code, reasons = finished(driver)
    assert code == 1
    words = "guest sender ended with exit code 0; expected: guest sender ends with exit code 7"
    assert reasons == (f"check 'ok' failed: {words}",)


def test_a_check_whose_time_is_up() -> None:
    """`within` counts from the moment the lab is ready; a guest still at it then has failed."""
    checks = (CheckSpec("soon", "sender", 0, 2 * S),)
    driver = Driver(lab_spec(checks=checks)).begin()
    driver.wait(3 * S)
    driver.up_to(Phase.RUNNING)
    driver.wait(2 * S - 1)
    assert phase_of(driver) is Phase.RUNNING
    driver.wait(1)
    assert phase_of(driver) is Phase.COLLECTING
    code, reasons = finished(driver)
    assert code == 1
    assert "guest sender has not ended" in reasons[0]
    assert "within 2s" in reasons[0]


def test_servers_do_not_hold_up_a_run_whose_checks_are_decided() -> None:
    """A guest that no check names and that does not end by itself is stopped, and is no fault."""
    driver = Driver(lab_spec(checks=(CheckSpec("ok", "sender"),))).begin().up_to(Phase.RUNNING)
    driver.end("sender", 0)
    assert phase_of(driver) is Phase.RUNNING
    driver.wait(STRAGGLERS)
    assert phase_of(driver) is Phase.COLLECTING
    assert finished(driver) == (0, ())
    assert driver.state("receiver") is NodeState.STOPPED


def test_the_run_s_own_deadline() -> None:
    """--timeout: exit code 6, naming what was waited for; it counts from the start."""
    driver = Driver(lab_spec(timeout_ns=5 * S)).begin().up_to(Phase.RUNNING)
    driver.wait(5 * S)
    code, reasons = finished(driver)
    assert code == 6
    assert "guest sender to end" in reasons[0]


# ---- going down -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", PHASES, ids=lambda row: row.phase)
def test_interrupted_in_every_phase(row: object) -> None:
    """Ctrl-C at any moment before the end: exit code 130 and nobody left."""
    phase = row.phase  # type: ignore[attr-defined]
    driver = Driver(lab_spec()).begin()
    if phase is Phase.DOWN:
        return
    if phase in (Phase.COLLECTING, Phase.STOPPING_GUESTS, Phase.STOPPING_HYPERVISORS, Phase.STOPPING_BROKER):
        driver.up_to(Phase.RUNNING)
        driver.end("sender", 1)
        while driver.core.phase is not phase:
            if driver.core.phase is Phase.COLLECTING:
                driver.core.counters("hv0", {}, 0)
            else:
                for name in [name for name in driver.asked if name in driver.alive]:
                    driver.end(name, 0)
    else:
        driver.up_to(phase)
    driver.core.stop(INTERRUPT, driver.now)
    driver.now += 1
    code, reasons = finished(driver)
    assert code == 130
    assert reasons[0] == "interrupted"
    assert not set(driver.to_start) & driver.alive


def test_a_start_that_was_ordered_is_not_carried_out_on_the_way_down() -> None:
    """Ctrl-C between the order and the fork: the shell asks once more."""
    driver = Driver(lab_spec()).begin().up_to(Phase.STARTING_GUESTS)
    driver.core.stop(INTERRUPT, 0)
    driver.spawn("sender")
    assert driver.started == ["broker", "hv0"]
    assert finished(driver)[0] == 130


def test_who_does_not_leave_is_killed() -> None:
    """A program that computes between awaits does not hear that it is asked to leave."""
    driver = Driver(lab_spec()).begin().up_to(Phase.RUNNING)
    driver.core.stop(INTERRUPT, 0)
    assert driver.asked == ["sender", "receiver"]
    driver.end("receiver", 0)
    within = ROWS[Phase.STOPPING_GUESTS].within
    assert within is not None
    driver.wait(within)
    assert driver.killed == ["sender"]
    assert finished(driver) == (130, ("interrupted",))


def test_who_survives_sigkill_is_reported_and_not_waited_for() -> None:
    """A process in uninterruptible sleep: exit code 4 with its pid, and the others still go."""
    driver = Driver(lab_spec(guests={"a": "hv0"})).begin().up_to(Phase.RUNNING)
    driver.immortal.add("a")
    driver.core.stop(None, 0)
    driver.wait(S + KILLED_WITHIN)
    assert phase_of(driver) is Phase.STOPPING_HYPERVISORS
    driver.alive.discard("a")
    driver.obey()
    outcome = driver.core.outcome(driver.now)
    assert outcome.code == 4
    assert outcome.reasons == ("guest a (pid 1003) does not disappear after SIGKILL",)


# ---- labs that stay up ------------------------------------------------------------------------------------


def test_a_lab_that_is_up_outlives_its_nodes() -> None:
    """`up`: deaths are told and do not take the lab down; `down` does, with exit code 0."""
    driver = Driver(lab_spec(mode=Mode.UP)).begin().up_to(Phase.RUNNING)
    driver.end("sender", KILL)
    driver.end("receiver", 0)
    driver.end("hv0", 1)
    driver.wait(100 * S)
    assert phase_of(driver) is Phase.RUNNING
    assert driver.state("hv0") is NodeState.FAILED
    driver.core.stop(None, driver.now)
    assert finished(driver) == (0, ())


def test_a_lab_that_does_not_come_up_goes_down() -> None:
    """`up`: a node that ends before the lab is ready has the verdict of a run."""
    driver = Driver(lab_spec(mode=Mode.UP)).begin().up_to(Phase.STARTING_GUESTS)
    driver.spawn("sender")
    driver.end("sender", 2)
    assert finished(driver) == (1, ("guest sender ended with exit code 2",))


def test_the_deadline_of_up_is_for_coming_up() -> None:
    """`up --timeout`: nothing happens when it passes later."""
    driver = Driver(lab_spec(mode=Mode.UP, timeout_ns=S)).begin().up_to(Phase.RUNNING)
    driver.wait(10 * S)
    assert phase_of(driver) is Phase.RUNNING
