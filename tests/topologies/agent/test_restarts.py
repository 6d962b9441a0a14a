"""Who is started again, when and how often; guests that live on without their hypervisor.  No process, no sleep."""

from __future__ import annotations

import pytest

from tests.topologies.agent.doubles import KILL, MS, Driver, lab_spec
from topologies.agent.nodes import Node
from topologies.agent.phases import ORPHANED, RESTART_ROWS, UNATTACHED, Phase
from topologies.agent.spec import CheckSpec, Mode
from topologies.runtime import NodeKind, NodeState

S = 1000 * MS


def running(**more: object) -> Driver:
    return Driver(lab_spec(**more)).begin().up_to(Phase.RUNNING)  # type: ignore[arg-type]


def verdict(driver: Driver) -> tuple[int, tuple[str, ...]]:
    driver.obey()
    assert driver.nothing_left()
    outcome = driver.core.outcome(driver.now)
    return int(outcome.code), outcome.reasons


def node_of(driver: Driver, name: str) -> Node:
    node = driver.core.node(name)
    assert node is not None
    return node


def come_up(driver: Driver, name: str) -> None:
    driver.spawn(name)
    driver.core.joined(name, driver.now)
    driver.core.ready(name, driver.now)


# ---- the broker -------------------------------------------------------------------------------------------


def test_a_dead_broker_is_started_again_at_once() -> None:
    """contracts 8: with a new epoch; nobody else is touched, and the run's verdict is what it would have been."""
    driver = running()
    driver.end("broker", KILL)
    assert driver.to_start == ["broker"]
    assert driver.state("broker") is NodeState.RESTARTING
    assert driver.core.epoch == 1
    come_up(driver, "broker")
    assert (driver.state("broker"), driver.core.epoch) == (NodeState.READY, 2)
    assert node_of(driver, "broker").last_error == "was killed by SIGKILL"
    driver.end("sender", 0)
    driver.end("receiver", 0)
    assert verdict(driver) == (0, ())
    assert driver.killed == []


def test_even_while_others_start() -> None:
    """From the moment it was ready once; before that its end is the lab's."""
    driver = Driver(lab_spec()).begin().up_to(Phase.STARTING_GUESTS)
    driver.end("broker", 0)
    assert driver.to_start == ["sender", "receiver", "broker"]
    driver.up_to(Phase.RUNNING)
    early = Driver(lab_spec()).begin()
    early.spawn("broker")
    early.end("broker", 4)
    assert verdict(early)[0] == 4


def test_five_times_in_a_minute_and_no_more() -> None:
    """The sixth death takes the lab down, verdict 5, even one that was to stay up."""
    driver = running(mode=Mode.UP)
    for _ in range(5):
        driver.end("broker", KILL)
        come_up(driver, "broker")
    driver.end("broker", KILL)
    assert driver.state("broker") is NodeState.DIED
    often = "it was started again 5 times within 60 s"
    assert verdict(driver) == (5, (f"broker broker was killed by SIGKILL: {often}",))


def test_a_minute_later_it_has_all_its_lives_again() -> None:
    """Restarts are counted within 60 s."""
    driver = running(mode=Mode.UP)
    for _ in range(12):
        driver.end("broker", KILL)
        come_up(driver, "broker")
        driver.wait(13 * S)
    assert driver.core.phase is Phase.RUNNING
    assert driver.core.epoch == 13


def test_a_broker_that_dies_on_the_way_down_is_not_started_again() -> None:
    """There is nobody left who would need it."""
    driver = running(mode=Mode.UP)
    driver.core.stop(None, 0)
    driver.end("broker", KILL)
    assert driver.to_start == []
    assert verdict(driver) == (0, ())


def test_a_lab_that_goes_down_while_its_broker_is_between_two_lives() -> None:
    """No start is carried out any more, and the lab's verdict is its own."""
    driver = running(mode=Mode.UP)
    driver.end("broker", KILL)
    driver.core.stop(None, 0)
    assert not driver.core.may_start("broker")
    driver.to_start.clear()
    assert verdict(driver) == (0, ())
    assert driver.state("broker") is NodeState.STOPPED


# ---- guests -----------------------------------------------------------------------------------------------


def test_a_guest_is_started_again_where_its_topology_says_so() -> None:
    """After a wait; its new life starts with nothing of the old one but how that ended."""
    driver = running(restart=("sender",))
    driver.core.result("sender", {"bytes": 5})
    driver.end("sender", 3)
    assert (driver.to_start, driver.state("sender")) == ([], NodeState.RESTARTING)
    driver.wait(100 * MS - 1)
    assert driver.to_start == []
    driver.wait(1)
    assert driver.to_start == ["sender"]
    come_up(driver, "sender")
    outcome = node_of(driver, "sender").outcome()
    assert (outcome.exit, outcome.restarts, outcome.last_error) == (None, 1, "ended with exit code 3")
    assert outcome.result == {}
    driver.end("receiver", KILL)
    assert verdict(driver) == (5, ("guest receiver was killed by SIGKILL",))


def test_success_is_no_reason_to_start_again() -> None:
    """restart: on-failure."""
    driver = running(restart=("sender", "receiver"))
    driver.end("sender", 0)
    driver.wait(10 * S)
    assert (driver.to_start, driver.state("sender")) == ([], NodeState.EXITED)


def test_the_wait_doubles_and_after_eight_restarts_in_a_minute_it_is_over() -> None:
    """Then its ending counts, as without `restart`."""
    driver = running(restart=("sender",))
    waits = []
    for _ in range(8):
        driver.end("sender", KILL)
        began = driver.now
        while not driver.to_start:
            driver.wait(50 * MS)
        waits.append((driver.now - began) // MS)
        come_up(driver, "sender")
    assert waits == [100, 200, 400, 800, 1600, 3200, 5000, 5000]
    driver.end("sender", KILL)
    often = "it was started again 8 times within 60 s"
    assert verdict(driver) == (5, (f"guest sender was killed by SIGKILL: {often}",))
    assert RESTART_ROWS[NodeKind.GUEST].most == 8


def test_a_check_waits_for_the_life_that_counts() -> None:
    """A failure that is made good by a restart fails no check; the deadline stands."""
    checks = (CheckSpec("ok", "sender", 0, 5 * S),)
    driver = running(restart=("sender",), checks=checks)
    driver.end("sender", 1)
    driver.wait(100 * MS)
    come_up(driver, "sender")
    driver.end("sender", 0)
    driver.wait(S)
    assert verdict(driver) == (0, ())
    late = running(restart=("sender",), checks=checks)
    while late.core.phase is Phase.RUNNING:
        if late.state("sender") is NodeState.READY:
            late.end("sender", 1)
        late.wait(100 * MS)
        if late.to_start:
            come_up(late, "sender")
    assert late.now // S == 5
    assert verdict(late)[0] == 1


def test_no_guest_is_started_on_a_dead_hypervisor() -> None:
    """Whichever end is seen first."""
    for guest_first in (True, False):
        driver = running(restart=("sender",), mode=Mode.UP)
        for name in ("sender", "hv0") if guest_first else ("hv0", "sender"):
            driver.end(name, 4)
        driver.wait(S)
        assert driver.to_start == []
        assert driver.state("sender") is NodeState.FAILED


def test_a_guest_that_cannot_be_started_again_stays_down() -> None:
    """Its hypervisor had no domain for it: the words say so."""
    driver = running(restart=("sender",))
    driver.end("sender", 3)
    driver.core.not_restarted("sender", "no memory", driver.now)
    assert verdict(driver) == (1, ("guest sender ended with exit code 3: not started again: no memory",))


def test_late_words_of_a_former_life_are_not_those_of_the_next() -> None:
    """The broker's news of an exit may come after the next process was started; they explain the end of the last."""
    for late in (True, False):
        driver = running(restart=("sender",))
        driver.end("sender", 3, goodbye=False)
        if not late:
            driver.core.said_goodbye("sender", "old words", driver.now)
        driver.wait(100 * MS)
        driver.spawn("sender")
        if late:
            driver.core.said_goodbye("sender", "old words", driver.now)
        node = node_of(driver, "sender")
        assert (node.goodbye, node.detail) == (False, "")
        assert node.last_error == "ended with exit code 3: old words"


# ---- hypervisors ------------------------------------------------------------------------------------------


def test_a_hypervisor_is_started_again_and_its_guests_come_with_it() -> None:
    """After its wait; each guest when its former process is gone and the hypervisor ready, with no wait of its own."""
    guests = {"sender": "hv0", "receiver": "hv0", "other": "hv1"}
    driver = running(restart=("hv0",), guests=guests, hypervisors=("hv0", "hv1"))
    driver.end("hv0", KILL)
    assert driver.state("hv0") is NodeState.RESTARTING
    driver.end("sender", 4)
    assert (driver.to_start, driver.state("sender")) == ([], NodeState.RESTARTING)
    driver.wait(100 * MS)
    assert driver.to_start == ["hv0"]
    assert {name for name in ("sender", "receiver") if driver.core.comes_again(name)} == {"sender", "receiver"}
    come_up(driver, "hv0")
    assert driver.to_start == ["sender"], "the receiver's former process lives"
    driver.end("receiver", KILL)
    assert driver.to_start == ["sender", "receiver"]
    for name in ("sender", "receiver"):
        come_up(driver, name)
        assert (driver.state(name), node_of(driver, name).restarts) == (NodeState.READY, 1)
        assert node_of(driver, name).restarted == []
    assert node_of(driver, "hv0").last_error == "was killed by SIGKILL"
    assert (driver.state("other"), node_of(driver, "other").restarts) == (NodeState.READY, 0)
    for name in ("sender", "receiver", "other"):
        driver.end(name, 0)
    assert verdict(driver) == (0, ())


def test_who_had_ended_or_said_goodbye_does_not_come_again() -> None:
    """A program that is through is not run a second time because its hypervisor died later."""
    driver = running(restart=("hv0",), guests={"a": "hv0", "b": "hv0", "c": "hv0"})
    driver.end("a", 0)
    driver.core.said_goodbye("b", "", driver.now)
    driver.end("hv0", KILL)
    assert [driver.core.comes_again(name) for name in "abc"] == [False, False, True]
    driver.end("b", 0)
    driver.end("c", 0)  # it was not through: whatever it ends with, its hypervisor was the reason
    states = [driver.state(name) for name in "abc"]
    assert states == [NodeState.EXITED, NodeState.EXITED, NodeState.RESTARTING]
    driver.wait(100 * MS)
    come_up(driver, "hv0")
    assert driver.to_start == ["c"]


@pytest.mark.parametrize(("code", "again"), [(4, True), (0, False), (1, False)])
def test_who_is_heard_to_miss_its_hypervisor_first_comes_again(code: int, again: bool) -> None:
    """Its goodbye may be quicker than the news of the hypervisor's end; its exit code says whose end was first."""
    driver = running(restart=("hv0",), guests={"a": "hv0"})
    driver.core.said_goodbye("a", "hypervisor hv0 is gone", driver.now, code)
    driver.end("hv0", KILL)
    driver.end("a", code, goodbye=False)
    assert (driver.state("a") is NodeState.RESTARTING) is again


def test_a_guest_that_outlives_its_hypervisor_is_killed_and_comes_again() -> None:
    """Even when the hypervisor is there again before."""
    driver = running(restart=("hv0",), mode=Mode.UP)
    driver.end("hv0", KILL)
    driver.end("receiver", 4)
    driver.wait(100 * MS)
    come_up(driver, "hv0")
    come_up(driver, "receiver")
    driver.wait(ORPHANED)
    assert (driver.killed, driver.to_start) == (["sender"], ["sender"])
    assert node_of(driver, "sender").last_error == "was killed by SIGKILL: it outlived its hypervisor"
    come_up(driver, "sender")
    driver.wait(2 * ORPHANED)
    assert (driver.killed, driver.state("sender")) == (["sender"], NodeState.READY)


def test_a_hypervisor_that_dies_before_its_guests_are_back() -> None:
    """They wait on; and a guest that waited for its own turn waits for the hypervisor instead."""
    driver = running(restart=("hv0", "sender"), mode=Mode.UP)
    driver.end("sender", 3)
    driver.end("hv0", KILL)
    driver.end("receiver", 4)
    driver.wait(100 * MS)
    come_up(driver, "hv0")
    assert driver.to_start == ["sender", "receiver"]
    driver.end("hv0", KILL)
    assert not driver.core.may_start("sender")
    driver.to_start.clear()
    driver.wait(200 * MS)
    come_up(driver, "hv0")
    assert sorted(driver.to_start) == ["receiver", "sender"]
    for name in ("sender", "receiver"):
        come_up(driver, name)
    assert {driver.state(name) for name in ("hv0", "sender", "receiver")} == {NodeState.READY}
    assert [node_of(driver, name).restarts for name in ("hv0", "sender", "receiver")] == [2, 1, 1]


def test_a_hypervisor_that_dies_while_its_guests_start() -> None:
    """Those whose start was ordered and can not be carried out are ordered again; the lab comes up."""
    driver = Driver(lab_spec(restart=("hv0",))).begin().up_to(Phase.STARTING_GUESTS)
    driver.spawn("sender")
    driver.end("hv0", KILL)
    driver.spawn("receiver")
    assert driver.started == ["broker", "hv0", "sender"]
    driver.end("sender", 4)
    assert "hypervisor hv0, which is restarting" in driver.core.waits(driver.now)[0]
    driver.wait(100 * MS)
    driver.up_to(Phase.RUNNING)
    assert sorted(driver.started[3:]) == ["hv0", "receiver", "sender"]


def use_up(driver: Driver) -> list[int]:
    """Let the hypervisor die as often as it may; how long it waited each time, in ms."""
    waits = []
    for _ in range(RESTART_ROWS[NodeKind.HYPERVISOR].most):
        driver.end("hv0", KILL)
        for name in ("sender", "receiver"):
            driver.end(name, 4)
        began = driver.now
        while not driver.to_start:
            driver.wait(50 * MS)
        waits.append((driver.now - began) // MS)
        for name in ("hv0", "sender", "receiver"):
            come_up(driver, name)
    return waits


def test_a_guest_that_was_not_ready_is_killed_at_once() -> None:
    """It may not have attached, would go on asking, and must not find the hypervisor's next life."""
    driver = Driver(lab_spec(restart=("hv0",))).begin().up_to(Phase.STARTING_GUESTS)
    driver.spawn("sender")
    driver.core.joined("sender", driver.now)
    driver.spawn("receiver")
    driver.core.ready("receiver", driver.now)
    driver.end("hv0", KILL)
    driver.wait(0)
    assert driver.killed == ["sender"]
    words = "was killed by SIGKILL: its hypervisor died before it was ready"
    assert (driver.state("sender"), node_of(driver, "sender").last_error) == (NodeState.RESTARTING, words)
    assert node_of(driver, "receiver").lives


def test_a_hypervisor_that_dies_too_often_stays_down_and_its_guests_with_it() -> None:
    """8 times in 60 s: the ninth death is the run's verdict, and names the hypervisor alone."""
    driver = running(restart=("hv0",))
    assert use_up(driver) == [100, 200, 400, 800, 1600, 3200, 5000, 5000]
    driver.end("hv0", KILL)
    driver.end("sender", 4)
    often = "it was started again 8 times within 60 s"
    assert verdict(driver) == (5, (f"hypervisor hv0 was killed by SIGKILL: {often}",))


def test_the_budget_is_the_hypervisor_s() -> None:
    """Its guests' lives with it are none of their own: one with `restart` has all of those left, one without none."""
    driver = running(restart=("hv0", "sender"))
    use_up(driver)
    driver.end("sender", 3)
    assert driver.state("sender") is NodeState.RESTARTING
    driver.end("receiver", 3)
    assert "guest receiver ended with exit code 3" in verdict(driver)[1]


def test_a_lab_that_goes_down_while_its_hypervisor_is_between_two_lives() -> None:
    """Nobody is started any more; who waited shows how it ended, and the hypervisor is the one that is named."""
    driver = running(restart=("hv0",), timeout_ns=S)
    driver.end("hv0", KILL)
    driver.end("sender", 4)
    driver.wait(50 * MS)
    driver.core.stop(None, driver.now)
    assert not driver.core.may_start("hv0")
    assert (driver.state("hv0"), driver.state("sender")) == (NodeState.DIED, NodeState.FAILED)
    assert verdict(driver) == (5, ("hypervisor hv0 was killed by SIGKILL",))


# ---- attach connections -----------------------------------------------------------------------------------


def test_a_guest_that_lives_on_without_its_attach_connection_is_killed() -> None:
    """contracts 8; a moment later, for one that ends by itself closes it shortly before."""
    driver = running()
    driver.core.detached("sender", driver.now)
    driver.core.detached("sender", driver.now + 1)
    driver.wait(UNATTACHED - 1)
    assert driver.killed == []
    driver.wait(1)
    assert driver.killed == ["sender"]
    words = "guest sender was killed by SIGKILL: it closed its attach connection and lived on"
    assert verdict(driver) == (5, (words,))


def test_a_guest_that_ends_right_after_it_is_not() -> None:
    """Nor one that has ended, nor one of a lab that goes down anyway."""
    driver = running(mode=Mode.UP)
    driver.core.detached("sender", driver.now)
    driver.end("sender", 0)
    driver.core.detached("sender", driver.now)
    driver.core.detached("receiver", driver.now)
    driver.core.stop(None, driver.now)
    driver.obey()
    assert (driver.killed, driver.state("sender")) == ([], NodeState.EXITED)


def test_a_guest_does_not_outlive_its_hypervisor() -> None:
    """It ends by itself; one whose program never lets it is killed."""
    driver = running(mode=Mode.UP)
    driver.end("hv0", KILL)
    driver.end("receiver", 4)
    driver.wait(ORPHANED - 1)
    assert driver.killed == []
    driver.wait(1)
    assert driver.killed == ["sender"]
    assert node_of(driver, "sender").detail == "it outlived its hypervisor"
