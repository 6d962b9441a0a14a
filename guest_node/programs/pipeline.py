"""Several requests under way, their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(
    items: Iterable[T], request: Callable[[T], Awaitable[R]], depth: int
) -> AsyncGenerator[tuple[T, R], None]:
    """Each of `items` with what `request(item)` gives, in their order, at most `depth` requests under way.

    The first error is raised, and the requests behind it are cancelled.
    """
    waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
    source = iter(items)
    more = True
    try:
        while True:
            while more and len(waiting) < depth:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                else:
                    waiting.append((item, asyncio.ensure_future(request(item))))
            if not waiting:
                return
            item, future = waiting[0]
            result = await future
            waiting.popleft()
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()
        await asyncio.gather(*(future for _, future in waiting), return_exceptions=True)
