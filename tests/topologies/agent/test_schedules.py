"""Whatever happens in whatever order, a lab ends with a verdict and nobody left."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topologies.agent.doubles import KILL, MS, Driver, lab_spec
from topologies.agent.phases import Phase
from topologies.agent.spec import CheckSpec, Mode
from topologies.exitcodes import EXIT_CODES, ExitCode
from topologies.runtime import Fault

EVENTS = ("spawn", "spawn", "join", "ready", "ready", "exit", "fail", "crash", "kill", "counters", "goodbye", "time",
          "interrupt", "down", "refuse", "detach", "nowhere")  # fmt: skip

CHECKS = st.sampled_from([(), (CheckSpec("a", "a", 0, 50 * MS),), (CheckSpec("b", "b", 3), CheckSpec("a", "a", 0))])


def play(driver: Driver, event: str, pick: int) -> None:
    """One event, if it can happen now."""
    core, now = driver.core, driver.now
    living = sorted(driver.alive)
    name = living[pick % len(living)] if living else None
    if event == "time":
        driver.wait((1, 30 * MS, 600 * MS, 6000 * MS)[pick % 4])
    elif event == "interrupt":
        core.stop(Fault(ExitCode.INTERRUPTED, "interrupted"), now)
    elif event == "down":
        core.stop(None, now)
    elif event == "spawn" and driver.to_start:
        driver.spawn(driver.to_start[pick % len(driver.to_start)])
    elif event == "refuse" and driver.to_start:
        order = driver.to_start.pop()
        if core.may_start(order):
            core.not_spawned(order, "no room", now)
    elif name is None:
        return
    elif event == "detach":
        core.detached(name, now)
        driver.detached.add(name)
    elif event == "nowhere":
        core.not_restarted(name, "no domain", now)
    elif event == "join":
        core.joined(name, now)
    elif event == "ready":
        core.ready(name, now)
    elif event == "goodbye":
        core.said_goodbye(name, "bye", now)
    elif event == "counters":
        core.counters("hv0", {}, now)
    elif event in ("exit", "fail", "kill", "crash"):
        if name == "hv0":
            driver.detached |= {"a", "b"}
        status = {"exit": 0, "fail": 3, "kill": KILL, "crash": 70}[event]
        driver.end(name, status, goodbye=bool(pick % 2), crash="boom" if event == "crash" else "")


@given(
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7)), max_size=40),
    mode=st.sampled_from(list(Mode)),
    checks=CHECKS,
    start=st.sampled_from([None, Phase.STARTING_GUESTS, Phase.RUNNING]),
    timeout=st.sampled_from([None, 1000 * MS]),
    restart=st.sampled_from([(), ("a",), ("a", "b"), ("hv0",), ("hv0", "a")]),
)
@settings(max_examples=300, deadline=None)
def test_every_schedule_ends_with_a_verdict_and_nobody_left(
    events: list[tuple[str, int]],
    mode: Mode,
    checks: tuple[CheckSpec, ...],
    start: Phase | None,
    timeout: int | None,
    restart: tuple[str, ...],
) -> None:
    """Issue: Ctrl-C, deaths and exits at any moment; the way down always gets to its end."""
    spec = lab_spec(guests={"a": "hv0", "b": "hv0"}, mode=mode, checks=checks, timeout_ns=timeout, restart=restart)
    driver = Driver(spec)
    driver.begin()
    if start is not None:
        driver.up_to(start)
    interrupted = False
    for event, pick in events:
        if event == "interrupt" and driver.core.phase is not Phase.DOWN:
            interrupted = True
        play(driver, event, pick)
        assert (driver.core.deadline() is None) == (driver.core.phase is Phase.DOWN)
    driver.core.stop(Fault(ExitCode.INTERRUPTED, "interrupted"), driver.now)
    for name in list(driver.to_start):
        driver.spawn(name)
    driver.obey()
    outcome = driver.core.outcome(driver.now)
    assert driver.core.phase is Phase.DOWN
    assert driver.nothing_left()
    assert outcome.code in {row.code for row in EXIT_CODES}
    assert bool(outcome.reasons) == (outcome.code != ExitCode.OK)
    if interrupted:
        assert outcome.code is ExitCode.INTERRUPTED
    # Whoever had a process when its kind was stopped was asked first, and killed only after that; but for a guest that
    # had lost its attach connection, or its hypervisor.
    assert set(driver.killed) <= set(driver.asked) | driver.detached
    order = {"a": 0, "b": 0, "hv0": 1, "broker": 2}
    assert [order[name] for name in driver.asked] == sorted(order[name] for name in driver.asked)
