"""The origin's side of remote operations: each is repeated, unchanged, until it is answered.  Experimental.

An operation is named for ever by (epoch of this hypervisor, its path, sequence number).  Each copy that is handed to a
link carries in its cookie the copy's number and the floor: below it, everything that was ever asked of that far
hypervisor is settled, and whatever of it still wanders about must not be executed any more.

There are three results.  The true one.  -ECONNREFUSED, when every copy came back with a notice or was never handed to
a link: then the operation provably never ran.  Otherwise -EIO: the outcome is unknown.  The last two are given only
when the way has been down for the link timeout, or for ever; a far hypervisor that is slow only delays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from broker.envelope import VERSION, Envelope, EnvelopeKind
from hmx.errno import Errno
from hv_node.levels.notices import Notice
from hv_node.levels.paths import Path, within

FLOOR_BITS: Final = 48  # of the cookie; above it the number of the copy
FLOOR_MASK: Final = (1 << FLOOR_BITS) - 1
MAX_COPIES: Final = 0xFFFF
HOPS: Final = 16
REPEAT_NS: Final = 500_000_000  # from a copy to the next one, without a word about the first
MAX_REPEAT_NS: Final = 2_000_000_000
NEVER_RAN: Final = -int(Errno.ECONNREFUSED)
UNKNOWN: Final = -int(Errno.EIO)
_TIMED: Final = frozenset({EnvelopeKind.SEND, EnvelopeKind.QUERY})


@dataclass(slots=True, eq=False)
class Operation:
    """One remote operation that is not settled.

    `out`: numbers of the copies that were handed to a link and of which nothing has been heard since.
    """

    seq: int
    far: Path
    envelope: Envelope
    payload: bytes
    caller: int | None = None  # domid of the trapped guest
    settled: Callable[[Operation], None] | None = None
    anybody: bool = False  # the answer may come from elsewhere: the request is passed on
    after: Operation | None = None  # it is not sent before this one is settled
    posted: bool = False  # nobody is trapped: repeated until its far end is answered or dead
    close: Callable[[Operation], None] | None = None  # it still takes messages: to be called before the first copy
    ret: int | None = None
    reply: bytes = b""
    copies: int = 0
    out: set[int] = field(default_factory=set)
    queued: bool = False  # a copy waits in an outlet
    bounced: bool = False  # a notice has spoken of the latest copy
    down_since: int | None = None
    down: bool = False
    repeat_at: int | None = None
    wait: int = REPEAT_NS

    @property
    def timed(self) -> bool:
        """Somebody is trapped by it, for the link timeout at most."""
        return self.envelope.kind in _TIMED and not self.posted


class Calls:
    """The operations of one hypervisor.

    `emit(op)` hands a copy to a link, or returns False where the way is down; `on_unknown(op)` hears of outcomes that
    nobody knows.
    """

    def __init__(
        self,
        epoch: int,
        timeout_ns: int,
        emit: Callable[[Operation], bool],
        on_unknown: Callable[[Operation], None],
    ) -> None:
        self.epoch = epoch
        self.timeout_ns = timeout_ns
        self.next_seq = 1
        self.unknown = 0  # outcomes
        self.repeats = 0
        self._emit = emit
        self._on_unknown = on_unknown
        self._far: dict[Path, dict[int, Operation]] = {}
        self._ops: dict[int, Operation] = {}
        self._anybody: dict[int, None] = {}  # those that anybody may execute

    def __len__(self) -> int:
        return len(self._ops)

    def __iter__(self) -> Iterator[Operation]:
        return iter(list(self._ops.values()))

    def begin(
        self,
        kind: EnvelopeKind,
        far: Path,
        src_path: Path,
        dst: Path,
        label: str,
        payload: bytes,
        *,
        op: int = 0,
        port_src: int = 0,
        port_dst: int = 0,
        msg_type: int = 0,
        ret: int = 0,
        caller: int | None = None,
        anybody: bool = False,
    ) -> Operation:
        """A new operation; `send` makes its first copy."""
        seq = self.next_seq
        self.next_seq += 1
        envelope = Envelope(
            VERSION, kind, 0, self.epoch, seq, src_path, dst, HOPS, label, op, port_src, port_dst, msg_type, 0,
            len(payload), ret,
        )  # fmt: skip
        made = Operation(seq, far, envelope, payload, caller, anybody=anybody)
        self._ops[seq] = made
        self._far.setdefault(far, {})[seq] = made
        if anybody:
            self._anybody[seq] = None
        return made

    def send(self, op: Operation) -> None:
        """Make a copy and hand it over; the way may be down."""
        if op.queued or op.ret is not None or op.copies >= MAX_COPIES:
            return
        if op.after is not None and op.after.ret is None:
            op.down = op.after.down
            return
        if op.copies:
            self.repeats += 1
        op.down = not self._emit(op)

    def copy(self, op: Operation) -> Envelope:
        """The next copy of an operation, to be handed over with `handed`."""
        if op.close is not None:
            op.close(op)
            op.close = None
        op.copies += 1
        return op.envelope._replace(cookie=op.copies << FLOOR_BITS | self.floor(op))

    def floor(self, op: Operation) -> int:
        """What lies below is settled, as far as concerns whoever may execute `op`."""
        if op.anybody:
            return next(iter(self._ops))
        floor = next(iter(self._far[op.far]))
        return min(floor, next(iter(self._anybody), floor))

    def handed(self, op: Operation, number: int, taken: bool) -> bool:
        """Copy `number` is in the hands of a link, or is not after all.  False: the operation is settled already."""
        if op.ret is not None:
            return False
        op.queued = not taken
        if taken:
            op.out.add(number)
            op.bounced = False
        else:
            op.out.discard(number)
        return True

    def unsent(self, op: Operation) -> None:
        """The copy that waited for a link will not be sent."""
        op.queued = False
        op.down = True

    def find(self, seq: int) -> Operation | None:
        """The operation of that number, unless it is settled."""
        return self._ops.get(seq)

    # -- what is heard ----

    def answered(self, op: Operation, ret: int, reply: bytes) -> None:
        """The true result."""
        del self._ops[op.seq]
        self._anybody.pop(op.seq, None)
        group = self._far[op.far]
        del group[op.seq]
        if not group:
            del self._far[op.far]
        op.ret, op.reply = ret, reply
        if op.settled is not None:
            op.settled(op)
        if op.envelope.kind == EnvelopeKind.ENDPOINT_DIED:
            for waiting in [other for other in self._ops.values() if other.after is op]:
                waiting.after = None
                self.send(waiting)

    def refused(self, op: Operation, ret: int, cookie: int) -> None:
        """A copy was refused on the way: the result, unless another copy may have come through before."""
        number = cookie >> FLOOR_BITS
        if number not in op.out:
            return  # heard already
        op.out.discard(number)
        if op.out:
            self.give_up(op)
        else:
            self.answered(op, ret, b"")

    def noticed(self, op: Operation, row: Notice, cookie: int, now_ns: int) -> None:
        """A copy was not executed."""
        number = cookie >> FLOOR_BITS
        if number not in op.out:
            return  # heard already
        op.out.discard(number)
        if row.final:
            self.give_up(op)
            return
        op.bounced = not row.running
        if row.down and op.down_since is None:
            op.down_since = now_ns

    def give_up(self, op: Operation) -> None:
        """The true result will not come."""
        if op.out:
            self.unknown += 1
            self._on_unknown(op)
        self.answered(op, UNKNOWN if op.out else NEVER_RAN, b"")

    def forget_caller(self, domid: int) -> None:
        """A guest is gone: nobody waits for its results, but its operations run their course."""
        for op in self._ops.values():
            if op.caller == domid and not op.posted:
                op.caller, op.settled = None, None

    def far_died(self, prefix: Path) -> None:
        """The hypervisor at `prefix` is gone, and all below it."""
        for op in list(self._ops.values()):
            if within(prefix, op.far):
                self.give_up(op)

    # -- time ----

    def way_down(self, concerns: Callable[[Path], bool], now_ns: int) -> None:
        """The way to some is down."""
        for op in self._ops.values():
            if concerns(op.far):
                op.down = True
                if op.down_since is None:
                    op.down_since = now_ns

    def way_up(self, concerns: Callable[[Path], bool]) -> None:
        """The way to some is there again: everything that is not settled is said again, in order."""
        again = [op for op in self._ops.values() if concerns(op.far)]
        for op in again:
            op.down, op.down_since, op.repeat_at, op.wait = False, None, None, REPEAT_NS
        for op in again:
            self.send(op)

    def on_timer(self, now_ns: int) -> None:
        """Repeat what is due; pass the verdict on what has waited too long."""
        for op in list(self._ops.values()):
            if op.ret is not None:
                continue
            if op.down and op.down_since is None:
                op.down_since = now_ns
            if op.repeat_at is None:
                op.repeat_at = now_ns + op.wait
            if op.timed and op.down_since is not None and now_ns >= op.down_since + self.timeout_ns:
                self.give_up(op)
            elif now_ns >= op.repeat_at:
                self._repeat(op, now_ns)

    def _repeat(self, op: Operation, now_ns: int) -> None:
        if op.bounced or op.down:
            op.wait = REPEAT_NS
        else:
            op.down_since = None  # nobody has said that the latest copy came back: its receiver is slow
            op.wait = min(2 * op.wait, MAX_REPEAT_NS)
        op.repeat_at = now_ns + op.wait
        self.send(op)

    def deadline(self, known_ns: int) -> int | None:
        """When `on_timer` is to be called; `known_ns`, and so at once, for operations that have seen no time yet."""
        found: int | None = None
        for op in self._ops.values():
            if op.repeat_at is None:
                return known_ns
            due = op.repeat_at
            if op.timed and op.down_since is not None:
                due = min(due, op.down_since + self.timeout_ns)
            if found is None or due < found:
                found = due
        return found
