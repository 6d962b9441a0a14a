"""Awaiting a hypercall: whole or not at all.

Source: Xen runs an Argo op to completion in one trap (public/argo.h); a task that is cancelled meanwhile learns its
result first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from guest_node.drivers.hypercall import Backoff, error, whole
from hmx.errno import Errno
from tests.doubles.argo_rig import simulate


async def at_once() -> int:
    return 5


def sleepy(record: list[str]) -> Callable[[], asyncio.Future[int]]:
    """A coroutine function that suspends in several ways."""

    async def work() -> int:
        await asyncio.sleep(0)
        record.append("one")
        await asyncio.sleep(1)
        record.append("two")
        task = asyncio.create_task(asyncio.sleep(1, "three"))
        record.append(await task)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        await done
        return 7

    return work  # type: ignore[return-value]


def test_results_and_errors_pass_through() -> None:
    """With or without suspending, `whole` returns what the coroutine returns and raises what it raises."""

    async def failing() -> int:
        await asyncio.sleep(1)
        raise KeyError("mine")

    async def main() -> None:
        assert await whole(at_once()) == 5
        record: list[str] = []
        assert await whole(sleepy(record)()) == 7  # type: ignore[arg-type]
        assert record == ["one", "two", "three"]
        with pytest.raises(KeyError):
            await whole(failing())

    simulate(main)


@pytest.mark.parametrize("moments", [[0.0], [0.5], [1.5], [0.0, 0.5, 1.5, 1.6]])
def test_a_cancellation_waits_for_the_end(moments: list[float]) -> None:
    """However often and whenever the task is cancelled, the work is done first; then the cancellation arrives."""

    async def main() -> None:
        record: list[str] = []
        task = asyncio.create_task(outer(record))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for moment in moments:
            loop.call_at(moment, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert record == ["one", "two", "three", "cancelled"]
        assert loop.time() == pytest.approx(2.0)

    async def outer(record: list[str]) -> None:
        try:
            await whole(sleepy(record)())  # type: ignore[arg-type]
        except asyncio.CancelledError:
            record.append("cancelled")
            raise

    simulate(main)


def test_timeouts_work_around_it() -> None:
    """asyncio.timeout cancels; the work ends first, then TimeoutError is raised."""

    async def main() -> None:
        record: list[str] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await whole(sleepy(record)())  # type: ignore[arg-type]
        assert record == ["one", "two", "three"]
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)

    simulate(main)


def test_a_cancelled_inner_future_is_the_coroutines_own_affair() -> None:
    """When what the coroutine awaits is cancelled by others, the coroutine sees it, as without `whole`."""

    async def main() -> None:
        inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> str:
            try:
                await inner
            except asyncio.CancelledError:
                return "seen"
            return "missed"

        asyncio.get_running_loop().call_later(1, inner.cancel)
        assert await whole(work()) == "seen"

    simulate(main)


def test_backoff_doubles_to_a_limit() -> None:
    """1, 2, 4 ... 64, 100, 100 ms on the loop's clock; `reset` begins anew."""

    async def main() -> list[float]:
        loop, backoff, delays = asyncio.get_running_loop(), Backoff(), []
        for turn in range(10):
            before = loop.time()
            await backoff.wait()
            delays.append(round((loop.time() - before) * 1000, 6))
            if turn == 8:
                backoff.reset()
        return delays

    assert simulate(main) == [1, 2, 4, 8, 16, 32, 64, 100, 100, 1]


def test_errors_have_pythons_own_classes() -> None:
    """Xen's numbers are Linux's, so Python picks the subclass; the name is in the message."""
    assert isinstance(error(Errno.ECONNREFUSED, "x"), ConnectionRefusedError)
    assert isinstance(error(Errno.EPIPE, "x"), BrokenPipeError)
    assert isinstance(error(Errno.EPERM, "x"), PermissionError)
    assert isinstance(error(Errno.ETIMEDOUT, "x"), TimeoutError)
    assert isinstance(error(Errno.EAGAIN, "x"), BlockingIOError)
    assert "EMSGSIZE" in str(error(Errno.EMSGSIZE, "x"))
    assert "error 200" in str(error(200, "x"))
