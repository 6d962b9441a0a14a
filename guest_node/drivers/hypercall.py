"""Awaiting hypercalls: whole or not at all, and their errors as exceptions.

A hypercall cannot be interrupted (Xen runs an Argo op to completion in one trap), so neither can the task
that made it: `whole` lets it finish, with the book-keeping that depends on its result, and only then
delivers a cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

from hmx.errno import Errno

T = TypeVar("T")

FIRST_DELAY: Final = 0.001  # seconds
LAST_DELAY: Final = 0.1


class Backoff:
    """Growing delays for polling: 1 ms doubling to 100 ms, on the loop's clock."""

    __slots__ = ("delay",)

    def __init__(self) -> None:
        self.delay = FIRST_DELAY

    async def wait(self) -> None:
        """Sleep for the present delay; the next one is longer."""
        delay = self.delay
        self.delay = min(delay * 2, LAST_DELAY)
        await asyncio.sleep(delay)

    def reset(self) -> None:
        """Something moved: begin with the shortest delay again."""
        self.delay = FIRST_DELAY


def error(errno: int, what: str) -> OSError:
    """The exception for a positive errno: `OSError`, or the subclass that Python has for it.

    Xen's numbers equal Linux's, so ECONNREFUSED gives ConnectionRefusedError, EPIPE BrokenPipeError and so
    on.
    """
    try:
        name = Errno(errno).name
    except ValueError:
        name = f"error {errno}"
    return OSError(errno, f"{what}: {name}")


class whole(Generic[T]):
    """`await whole(coroutine)` runs it to its end, whatever happens to the awaiting task.

    A cancellation that arrives meanwhile is raised when the coroutine has returned, or raised: who ends a task
    is not kept from it by an error.  No task is made; when nothing suspends, this is one extra generator.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, T]:
        steps = self._coroutine.__await__()
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                awaited = steps.send(None)
            except StopIteration as stop:
                if cancelled is not None:
                    raise cancelled from None
                result: T = stop.value
                return result
            except Exception as error:
                if cancelled is not None:
                    raise cancelled from error
                raise
            while True:
                try:
                    yield from _settle(awaited)
                    break
                except asyncio.CancelledError as exc:
                    cancelled = exc
                    if awaited is None or awaited.done():
                        break


def _settle(awaited: asyncio.Future[Any] | None) -> Generator[Any, None, None]:
    """Suspend the running task until `awaited` is done, without letting the task's cancellation reach it."""
    if awaited is None:  # sleep(0)
        yield
        return
    awaited._asyncio_future_blocking = False  # we take the task's place as the one that waits
    if awaited.done():
        return
    shadow = asyncio.get_running_loop().create_future()

    def settled(_: object) -> None:
        if not shadow.done():
            shadow.set_result(None)

    awaited.add_done_callback(settled)
    try:
        yield from shadow
    finally:
        awaited.remove_done_callback(settled)
