"""Requests under way at once, results in order; what becomes of the rest when one fails."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from guest_node.programs.pipeline import in_order


def test_results_come_in_order_however_they_end() -> None:
    """At most `depth` at once, all of them while there is enough to do."""
    running, most = 0, 0

    async def request(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20 - item):
            await asyncio.sleep(0)
        running -= 1
        return item * item

    async def main() -> list[tuple[int, int]]:
        return [pair async for pair in in_order(range(20), request, 5)]

    assert asyncio.run(main()) == [(item, item * item) for item in range(20)]
    assert most == 5


def test_nothing_to_do() -> None:
    """No items, no results."""

    async def request(_item: int) -> int:
        raise AssertionError

    async def main() -> list[tuple[int, int]]:
        return [pair async for pair in in_order((), request, 5)]

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("early", [True, False])
def test_the_first_error_ends_it(early: bool) -> None:
    """What came before it is given out; what is behind it is cancelled, whether it has failed too or not."""
    cancelled: list[int] = []

    async def request(item: int) -> int:
        try:
            if item >= 3:
                await asyncio.sleep(0 if early and item == 5 else 0.01)
                raise OSError(item)
            if item == 2:
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def main() -> list[int]:
        seen: list[int] = []
        with pytest.raises(OSError, match="3"):
            async with aclosing(in_order(range(100), request, 4)) as results:
                async for item, _ in results:
                    seen.append(item)
        return seen

    assert asyncio.run(main()) == [0, 1, 2]
    assert set(cancelled) <= {4, 5, 6}


def test_a_reader_that_stops() -> None:
    """Nothing is left running."""

    async def request(item: int) -> int:
        await asyncio.sleep(item)
        return item

    async def main() -> int:
        async with aclosing(in_order(range(100), request, 8)) as results:
            async for _ in results:
                break
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
