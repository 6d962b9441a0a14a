"""What a slot lets pass: destination ports, message types, messages per second.  Experimental, not upstream.

A narrowing only ever narrows: a slot that was passed on lets pass what every slot before it lets pass too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges of ports, ascending and disjoint."""

ALL_PORTS: Final[Ranges] = ((0, 0xFFFF_FFFF),)
SECOND: Final = 1_000_000_000
BURST_NS: Final = 100_000_000
"""A bucket holds what a tenth of a second brings, but one message at least."""


def normal(ranges: Ranges) -> Ranges:
    """The same ports as ascending, disjoint ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def common(one: Ranges, other: Ranges) -> Ranges:
    """The ports that both allow."""
    found = []
    for first, last in one:
        for start, end in other:
            low, high = max(first, start), min(last, end)
            if low <= high:
                found.append((low, high))
    return normal(tuple(found))


def without(one: Ranges, other: Ranges) -> Ranges:
    """The ports of the first that the second does not have; both normal."""
    left = list(one)
    for start, end in other:
        left = [
            piece
            for first, last in left
            for piece in ((first, min(last, start - 1)), (max(first, end + 1), last))
            if piece[0] <= piece[1]
        ]
    return tuple(left)


def holds(ranges: Ranges, port: int) -> bool:
    """True if `port` lies in one of them."""
    return any(first <= port <= last for first, last in ranges)


class Narrowing(NamedTuple):
    """`ports`: which destination ports pass.  `types`: which message types; None: all.  `rate`: messages/s; 0: any."""

    ports: Ranges = ALL_PORTS
    types: tuple[int, ...] | None = None
    rate: float = 0.0

    def within(self, outer: Narrowing) -> Narrowing:
        """What both let pass."""
        types = outer.types if self.types is None else self.types
        if self.types is not None and outer.types is not None:
            types = tuple(kind for kind in self.types if kind in outer.types)
        rates = [rate for rate in (self.rate, outer.rate) if rate]
        return Narrowing(common(self.ports, outer.ports), types, min(rates, default=0.0))

    @property
    def empty(self) -> bool:
        """Nothing at all passes."""
        return not self.ports or self.types == ()


class Bucket:
    """Room for messages, kept as nanoseconds of credit.  Time comes in as `now_ns`; it may stand still."""

    __slots__ = ("at", "cost", "credit", "room")

    def __init__(self, rate: float, now_ns: int) -> None:
        self.at = now_ns
        self.set_rate(rate)
        self.credit = self.room

    def set_rate(self, rate: float) -> None:
        """`rate` messages a second from now on; credit beyond what the bucket holds is lost.  0 or less: none pass."""
        self.cost = max(1, round(SECOND / rate)) if rate > 0 else 0
        self.room = max(self.cost, BURST_NS) if self.cost else 0
        self.credit = min(getattr(self, "credit", 0), self.room)

    def ready(self, now_ns: int) -> bool:
        """Add what time has brought.  True if a message may pass now."""
        if now_ns > self.at:
            self.credit = min(self.room, self.credit + now_ns - self.at)
            self.at = now_ns
        return 0 < self.cost <= self.credit

    def take(self) -> None:
        """One message passes."""
        self.credit -= self.cost
