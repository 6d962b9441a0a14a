"""The virtual-time loop: the clock jumps, nothing waits, a deadlock is an error."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from topologies.inline.loop import Deadlock, VirtualLoop


def test_an_hour_passes_at_once() -> None:
    """Sleeping costs no time; the loop's clock has moved by exactly the time slept."""

    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    before = time.monotonic()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(main()) == 3600
    assert time.monotonic() - before < 30


def test_timers_fire_in_order() -> None:
    """Tasks that sleep for different times wake in the order of their times."""
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await asyncio.sleep(seconds)
        woken.append(seconds)

    async def main() -> None:
        await asyncio.gather(*(sleeper(n) for n in (5, 1, 3)))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert woken == [1, 3, 5]


def test_an_interruption_of_a_task_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C comes while some task runs: it is raised out of the loop, and asyncio tells of no exception besides."""

    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        await asyncio.gather(asyncio.create_task(interrupted()), asyncio.sleep(1))

    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    gc.collect()
    assert caplog.records == []


def test_waiting_for_nothing_is_a_deadlock() -> None:
    """No task can run and no timer is set: said, instead of hanging."""

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with (
        pytest.raises(Deadlock, match="every task waits"),
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
    ):
        runner.run(main())
