"""A node's side of belonging to a lab, without I/O: hello, welcome, refusal, heartbeat, and joining again.

A member says hello whenever it has no session; the broker answers welcome, with its epoch, or refuses.  A
broker that was restarted knows nobody: it answers whatever a node sends with HELLO_FIRST, the member says
hello again, and in the new session it repeats its declarations (ready, subscribe) and the control records
that nobody acknowledged.  Frames of an older epoch than the last one seen are dropped.

Every hello has a number which the answer repeats, so that an answer to an earlier hello, delayed by a broker
that was stopped for a while, is not taken for the last one's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Final, NamedTuple

from broker import frames
from broker.fields import Record, RecordError
from broker.frames import Buffer, Frame, FrameError, FrameKind, Lane, Parts
from broker.records import (
    Direction,
    Incoming,
    Outgoing,
    PayloadReader,
    Rejoin,
    decode,
    encode,
    encode_envelope,
)
from broker.refusals import ENDS, Ends, Refusal, Violation
from broker.session import Send, SendResult, Session

HELLO_AGAIN_NS: Final = 1_000_000_000
"""A hello without an answer is repeated after this long.  A session that ended is followed by a hello at once, but
hellos are a tenth of this apart at least."""


class MemberState(IntEnum):
    """Where a member stands."""

    OUTSIDE = 1  # no session, a hello is due
    JOINING = 2  # hello sent
    JOINED = 3
    REFUSED = 4  # for good


class MemberStimulus(IntEnum):
    """What moves a member."""

    HELLO = 1  # a hello left
    WELCOME = 2  # the answer to our last hello
    TURNED_AWAY = 3  # by the answer to our last hello, or by the transport: another hello would meet the same
    ENDED = 4  # the session is over, for whichever side's reason


class MemberTransition(NamedTuple):
    """In `state`, `stimulus` leads to `result`; pairs that are not listed are ignored and counted."""

    state: MemberState
    stimulus: MemberStimulus
    result: MemberState


TRANSITIONS: Final = (
    MemberTransition(MemberState.OUTSIDE, MemberStimulus.HELLO, MemberState.JOINING),
    MemberTransition(MemberState.OUTSIDE, MemberStimulus.TURNED_AWAY, MemberState.REFUSED),
    MemberTransition(MemberState.JOINING, MemberStimulus.HELLO, MemberState.JOINING),
    MemberTransition(MemberState.JOINING, MemberStimulus.WELCOME, MemberState.JOINED),
    MemberTransition(MemberState.JOINING, MemberStimulus.TURNED_AWAY, MemberState.REFUSED),
    MemberTransition(MemberState.JOINED, MemberStimulus.TURNED_AWAY, MemberState.REFUSED),
    MemberTransition(MemberState.JOINED, MemberStimulus.ENDED, MemberState.OUTSIDE),
)
_NEXT: Final = {(row.state, row.stimulus): row.result for row in TRANSITIONS}


class Identity(NamedTuple):
    """Who a node says it is."""

    kind: str  # "hypervisor", "guest" or "agent"
    name: str
    token: bytes
    pid: int


def _ignore_record(_lane: Lane, _record: Record, _payload: Buffer) -> None:
    """Nobody listens."""


def _ignore_welcome(_epoch: int) -> None:
    """Nobody listens."""


def _ignore_reason(_reason: str) -> None:
    """Nobody listens."""


def _ignore_refusal(_code: str, _message: str) -> None:
    """Nobody listens."""


class Member:
    """One node's membership.  The owner moves messages and passes in the time; callbacks run inside
    :meth:`deliver`.

    `min_epoch`: welcomes of an older epoch are not believed.  `on_record(lane, record, payload)` gets every
    record; `on_welcome(epoch)` runs at each joining, `on_disconnected(reason)` whenever a session ends by
    itself, and `on_refused(code, message)` when joining is refused for good.
    """

    def __init__(self, identity: Identity, min_epoch: int = 0) -> None:
        self.identity = identity
        self.state = MemberState.OUTSIDE
        self.epoch = 0  # of the last welcome
        self.refusal: tuple[str, str] | None = None
        self.heard_ns: int | None = None
        self.shut_down = False  # the broker said that it leaves
        self.counters: Counter[str] = Counter()
        self.on_record: Callable[[Lane, Record, Buffer], None] = _ignore_record
        self.on_welcome: Callable[[int], None] = _ignore_welcome
        self.on_disconnected: Callable[[str], None] = _ignore_reason
        self.on_refused: Callable[[str, str], None] = _ignore_refusal
        self._min_epoch = min_epoch
        self._attempt = 0
        self._hello_ns: int | None = None
        self._session = Session(Direction.TO_NODE, 0)
        self._standing: dict[str, Outgoing] = {}
        self._inbox: deque[partial[None]] = deque()

    # ---- what the node says ------------------------------------------------------------------------------

    def send(self, lane: Lane, record: Record, payload: Buffer = b"") -> bool:
        """Queue a record for the next flush.  False: no room, it is dropped and counted.

        RecordError: it is not in the vocabulary.  Before the welcome, and between two sessions, control
        records and events wait; a declaration (ready, subscribe) is repeated in every session; a heartbeat
        never waits, and an envelope only within a session, whose reservations it needs.
        """
        joined = self.state is MemberState.JOINED
        if lane is Lane.REQUEST:
            envelope = encode_envelope(record, payload)
            if joined and self._session.offer(lane, envelope):
                return True
            self.counters["dropped"] += 1
            return False
        outgoing = encode(Direction.TO_BROKER, lane, record, payload)
        if outgoing.rejoin is Rejoin.STANDING:
            self._standing[record[0]] = outgoing
            if not joined:
                return True
        elif lane is Lane.CONTROL and outgoing.rejoin is Rejoin.DROP and not self.credit(lane):
            self.counters["dropped"] += 1
            return False
        if self._session.offer(lane, outgoing):
            return True
        self.counters["dropped"] += 1
        return False

    def credit(self, lane: Lane) -> int:
        """Records that would leave at the next flush; 0 without a session."""
        return self._session.credit(lane) if self.state is MemberState.JOINED else 0

    @property
    def settled(self) -> bool:
        """Whether every control record was acknowledged, or there is nobody left who would."""
        if self.state is MemberState.REFUSED or self.shut_down:
            return True
        return self.state is MemberState.JOINED and self._session.settled

    def traffic(self) -> dict[str, int]:
        """Frames and records that left in this session."""
        return {"frames": self._session.frames_out, "records": self._session.records_out}

    # ---- moving messages ---------------------------------------------------------------------------------

    def flush(self, send: Send, now_ns: int) -> SendResult:
        """Say hello if one is due; give `send` what is ready."""
        if self.state is MemberState.JOINED:
            return self._session.flush(send)
        if self.state is MemberState.REFUSED or not self._hello_due(now_ns):
            return SendResult.SENT
        result = send(self._hello())
        if result is SendResult.SENT:
            self._hello_ns = now_ns
            self._move(MemberStimulus.HELLO)
        return result

    @property
    def unsent(self) -> bool:
        """Whether a flush has something to try."""
        return self.state is not MemberState.JOINED or self._session.unsent

    def _hello_due(self, now_ns: int) -> bool:
        if self._hello_ns is None:
            return True
        wait = HELLO_AGAIN_NS if self.state is MemberState.JOINING else HELLO_AGAIN_NS // 10
        return now_ns - self._hello_ns >= wait

    def _hello(self) -> list[bytes]:
        self._attempt = (self._attempt + 1) & frames.SEQ_MASK
        kind, name, token, pid = self.identity
        record = ["hello", frames.MAJOR, frames.MINOR, kind, name, token, pid, self.epoch]
        return frames.pack_frame(FrameKind.HANDSHAKE, Lane.CONTROL, 0, self._attempt, 0, [record])

    def on_frame(self, parts: Parts, now_ns: int) -> None:
        """Take a message from the broker.  Its records are called out by :meth:`deliver`."""
        taken = self._session.take(parts) if self.state is MemberState.JOINED else None
        if taken is not None:
            self.heard_ns = now_ns
            for envelope, _, payload in taken:
                self._inbox.append(partial(self.on_record, Lane.REQUEST, envelope, payload))
            return
        try:
            frame = frames.parse_frame(parts)
        except FrameError as error:
            self._end(f"malformed frame: {error}")
            return
        if frame.epoch < max(self.epoch, self._min_epoch):
            self.counters["stale"] += 1
            return
        self.heard_ns = now_ns
        if frame.kind is FrameKind.HANDSHAKE:
            self._on_handshake(frame)
        elif self.state is not MemberState.JOINED:
            self.counters["unjoined"] += 1
        else:
            self._on_session_frame(frame)

    def deliver(self) -> None:
        """Run the callbacks of what was received, in order.  One that raises loses only its own record."""
        while self._inbox:
            self._inbox.popleft()()

    def _on_session_frame(self, frame: Frame) -> None:
        try:
            good, bad = self._session.accept(frame)
        except Violation as violation:
            self.counters[f"violation.{violation.code.value}"] += 1
            if ENDS[violation.code] is not Ends.RECORD:
                self._end(str(violation))
            return
        self.counters["malformed"] += len(bad)
        for item in good:
            self.shut_down |= item.row is not None and item.row.name == "shutdown"
            self._inbox.append(partial(self._call_out, frame.lane, item))

    def _call_out(self, lane: Lane, item: Incoming) -> None:
        self.on_record(lane, item.record, item.payload)

    def _on_handshake(self, frame: Frame) -> None:
        record = frame.records[0]
        try:
            decode(Direction.TO_NODE, Lane.CONTROL, record, PayloadReader(frame.payload))
        except RecordError:
            self.counters["malformed"] += 1
            return
        ours = frame.ack == self._attempt and self.state is MemberState.JOINING
        if record[0] == "welcome" and ours and frame.epoch == record[1]:
            self._on_welcome(frame.epoch)
        elif record[0] == "refused":
            self._on_refused(record[1], record[2], ours)
        else:
            self.counters["stale"] += 1

    def _on_welcome(self, epoch: int) -> None:
        self.epoch = epoch
        self.shut_down = False
        self._session = self._session.successor(epoch, self._standing.values())
        self._move(MemberStimulus.WELCOME)
        self._inbox.append(partial(self.on_welcome, epoch))

    def _on_refused(self, code: str, message: str, ours: bool) -> None:
        """A refusal outside a session: of our last hello, or the end of what the broker thinks we have."""
        final = ours and code not in (Refusal.HELLO_FIRST, Refusal.STALE_EPOCH)
        if final:
            self.turn_away(code, message)
        elif self.state is MemberState.JOINED:
            self._end(f"{code}: {message}")
        else:
            self.counters["stale"] += 1

    def turn_away(self, code: str, message: str) -> None:
        """Give up joining for good: the broker said so, or the transport did."""
        if self._move(MemberStimulus.TURNED_AWAY):
            self.refusal = (code, message)
            self._inbox.append(partial(self.on_refused, code, message))

    def _end(self, reason: str) -> None:
        """The session is over; the next flush says hello."""
        if self._move(MemberStimulus.ENDED):
            self.counters["ended"] += 1
            self._inbox.append(partial(self.on_disconnected, reason))

    def rejoin(self, reason: str) -> None:
        """The owner knows that the broker at the other end is a new one: end the session now, not at its refusal."""
        self._end(reason)

    def _move(self, stimulus: MemberStimulus) -> bool:
        after = _NEXT.get((self.state, stimulus))
        if after is None:
            self.counters["ignored"] += 1
            return False
        self.state = after
        return True
