"""Operations that pass through the broker, and which of their copies are where.

A request reserved room for its result at the node that sent it; the broker owes that node one result for each
request it took, and the node that it forwarded to owes the broker one for each copy.  The two need not agree
in number: a repeat of what is still under way is not forwarded again but answered together with it, and an
impaired link may double a copy.

An operation of which no copy is left, and which was not answered, is lost: whether it ran is not known, the
origin hears that the link was down and says it again when it is up.  The room of one that is never said again
is given back after `release_ns`, with -EIO, when the origin has long decided for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from broker.binding import Path
from broker.envelope import Envelope, EnvelopeKind

RELEASE_NS: Final = 10_000_000_000

Key = tuple[str, Path, int, int]
"""Destination node, path of the origin hypervisor (climbing), origin epoch, origin seq."""


class Operation:
    """One operation and its copies."""

    __slots__ = ("coming", "handed", "inside", "key", "lost_ns", "request", "waiters", "waiting")

    def __init__(self, key: Key, request: Envelope) -> None:
        self.key = key
        self.request = request
        self.waiters = 0  # requests of the source that wait for a result
        self.waiting = 0  # copies under way to the destination, or held for it
        self.inside = 0  # copies handed to the destination's session
        self.coming = 0  # results under way to the source
        self.handed = False  # whether a copy ever was: then it may have run
        self.lost_ns = 0

    @property
    def source(self) -> str:
        """The node that asked."""
        return str(self.request.src_path[-1])

    @property
    def target(self) -> str:
        """The node that is asked."""
        return self.key[0]

    @property
    def underway(self) -> bool:
        """Whether an answer may still come by itself."""
        return self.waiting + self.inside + self.coming > 0


class Operations:
    """All operations of which a copy is under way, or for which somebody waits."""

    def __init__(self) -> None:
        self._all: dict[Key, Operation] = {}
        self._lost: dict[Key, Operation] = {}  # in the order of their loss

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: Key) -> Operation | None:
        """The operation of that name."""
        return self._all.get(key)

    def begin(self, key: Key, request: Envelope) -> Operation:
        """The operation of that name, new or lost before; from now on something of it is under way."""
        operation = self._all.get(key)
        if operation is None:
            operation = self._all[key] = Operation(key, request)
        self._lost.pop(key, None)
        return operation

    def settle(self, operation: Operation, now_ns: int) -> None:
        """A copy or a waiter is gone: drop the operation, or count it as lost, if that was the last."""
        if operation.underway:
            return
        if operation.waiters:
            if operation.key not in self._lost:
                operation.lost_ns = now_ns
                self._lost[operation.key] = operation
        else:
            self.drop(operation)

    def drop(self, operation: Operation) -> None:
        """Forget an operation."""
        self._all.pop(operation.key, None)
        self._lost.pop(operation.key, None)

    def of(self, node: str) -> Iterator[Operation]:
        """Operations that `node` asked for or is asked."""
        return iter([found for found in self._all.values() if node in (found.source, found.target)])

    def forgotten(self, target: str, request: Envelope) -> list[Operation]:
        """Lost operations that the origin of `request` no longer waits for: below its floor, or what it cancels."""
        if not self._lost:
            return []
        origin, epoch, floor = request.src_path[1:], request.origin_epoch, request.cookie
        cancelled = (target, origin, epoch, request.origin_seq) if request.kind == EnvelopeKind.CANCEL else None
        return [
            found
            for key, found in self._lost.items()
            if key == cancelled or (key[:2] == (target, origin) and key[2:] < (epoch, floor))
        ]

    def expired(self, before_ns: int) -> list[Operation]:
        """Operations lost at `before_ns` or earlier."""
        expired: list[Operation] = []
        for operation in self._lost.values():
            if operation.lost_ns > before_ns:
                break
            expired.append(operation)
        return expired

    @property
    def oldest_ns(self) -> int | None:
        """When the first of the lost ones was lost."""
        return next((operation.lost_ns for operation in self._lost.values()), None)
