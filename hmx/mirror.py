"""The mirror protocol: a guest on another host than its hypervisor.  Experimental, not upstream.

The hypervisor keeps a mirror of the pages that it was shown.  A trap frame travels with the bytes that the call reads,
its completion with those that the call wrote; a store into a registered page travels when its window is published.
Data go first, then the words that publish them, then frames, completions and posted interrupts, all on one ordered
lane.  Both ends number their batches, keep each one until it is acknowledged and repeat it unchanged; a repeat is
recognised by (epoch, number) and does nothing.  Layouts and reasons: docs/remote-guests.md.

Here are the parts that both ends share, without I/O and clock: messages and their sections, sets of addresses, what
was changed and not yet shipped, and the numbering.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

from hmx.memory import Buffer
from hmx.shm import load32

MAGIC: Final = int.from_bytes(b"AVMR", "little")
VERSION: Final = 1

MESSAGE: Final = Struct("<IHHQQQHHI")  # magic, version, kind, epoch, seq, ack, sections, flags, bytes behind it
SECTION: Final = Struct("<HHI")  # section, vcpu, bytes behind it
AT: Final = Struct("<Q")  # of STORE and READS: guest physical address; the bytes follow
WINDOW: Final = Struct("<QQ")  # guest physical address, bytes
WORD: Final = Struct("<QI")  # guest physical address, value
POSITION: Final = Struct("<I")  # of FRAMES: of the first one in the submission ring; the frames follow
BELL: Final = Struct("<I")  # cq_head; FATEs behind it
FATE: Final = Struct("<BBHI")  # list register, flags (1 pending, 2 active, 4 answered), zero, number of its word
DONE: Final = Struct("<II")  # of COMPLETIONS: of the first one in the completion ring, sq_head; the completions follow
LISTS: Final = Struct("<I")  # of LISTS: which lr[] words follow: bit n for register n, in this order
POST: Final = Struct("<I")  # an entry

MAX_MESSAGE: Final = 1 << 18
"""Bytes of one message, its header included."""
MIN_ROOM: Final = 1 << 14
"""Bytes that every batch has room for: all frames, or all completions, of a vCPU's ring."""
MAX_OUTSTANDING: Final = 1 << 21
"""Bytes that one end may have sent and not yet been told the arrival of."""
MAX_BATCHES: Final = 256
"""Batches of the same."""
ACK_AFTER: Final = 8
"""Batches after which an end acknowledges though it has nothing to say."""
AGAIN_NS: Final = 1_000_000_000
"""After so long without an acknowledgement an end repeats what it has sent."""


class MessageKind(IntEnum):
    """What a message is for."""

    ATTACH = 1  # guest: a request as of hmx.attach
    ATTACHED = 2  # hypervisor: a reply as of hmx.attach; from here on the header's epoch counts
    REFUSED = 3  # hypervisor: the same, with the reason
    BATCH = 4  # sections
    ACK = 5  # nothing but its header
    GONE = 6  # the sender is done with the domain; a reason (UTF-8)


class MessageFlag(IntFlag):
    """Of a BATCH or ACK."""

    AGAIN = 1  # something is missing here: repeat what was not acknowledged


class Section(IntEnum):
    """Parts of a batch, applied one after the other."""

    WINDOW = 1
    STORE = 2
    WORDS = 3
    READS = 4
    FRAMES = 5
    BELL = 6
    COMPLETIONS = 7
    LISTS = 8
    POSTS = 9


class SectionRule(NamedTuple):
    """Who says a section; how short it may be, and of what its length beyond that is a multiple."""

    section: Section
    guest: bool
    hypervisor: bool
    least: int
    unit: int


SECTIONS: Final = (
    SectionRule(Section.WINDOW, True, False, 16, 16),
    SectionRule(Section.STORE, True, True, 9, 1),
    SectionRule(Section.WORDS, True, True, 12, 12),
    SectionRule(Section.READS, True, False, 9, 1),
    SectionRule(Section.FRAMES, True, False, 36, 8),
    SectionRule(Section.BELL, True, False, 4, 8),
    SectionRule(Section.COMPLETIONS, False, True, 40, 8),
    SectionRule(Section.LISTS, False, True, 12, 8),
    SectionRule(Section.POSTS, False, True, 4, 4),
)
_RULES: Final = {int(rule.section): rule for rule in SECTIONS}


class MirrorError(Exception):
    """The other end said what it must not say: `what` part of it, and why not."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"mirror: {what}: {why}")
        self.what = what
        self.why = why


class Message(NamedTuple):
    """A message taken apart; `body` is all behind its header."""

    kind: MessageKind
    epoch: int
    seq: int
    ack: int
    sections: int
    flags: int
    body: memoryview


class Part(NamedTuple):
    """One section of a batch."""

    section: Section
    vcpu: int
    body: memoryview


def pack(kind: MessageKind, epoch: int, body: bytes = b"", seq: int = 0, ack: int = 0, sections: int = 0,
         flags: int = 0) -> bytes:  # fmt: skip
    """One message."""
    return MESSAGE.pack(MAGIC, VERSION, kind, epoch, seq, ack, sections, flags, len(body)) + body


def unpack(data: Buffer) -> Message:
    """Take a message apart.  MirrorError: its header is wrong, or its length."""
    view = memoryview(data)
    if not MESSAGE.size <= len(view) <= MAX_MESSAGE:
        raise MirrorError("message", f"{len(view)} bytes; {MESSAGE.size} to {MAX_MESSAGE} are allowed")
    magic, version, kind, epoch, seq, ack, sections, flags, length = MESSAGE.unpack_from(view)
    if magic != MAGIC:
        raise MirrorError("magic", f"{magic:#x} instead of {MAGIC:#x}")
    if version != VERSION:
        raise MirrorError("version", f"{version}; this side speaks {VERSION}")
    if length != len(view) - MESSAGE.size:
        raise MirrorError("length", f"{length} announced, {len(view) - MESSAGE.size} bytes there")
    if not MessageKind.ATTACH <= kind <= MessageKind.GONE:
        raise MirrorError("kind", f"{kind} is none")
    batch = kind in (MessageKind.BATCH, MessageKind.ACK)
    if flags & ~(int(MessageFlag.AGAIN) if batch else 0):
        raise MirrorError("flags", f"{flags:#x} in a message of kind {kind}")
    return Message(MessageKind(kind), epoch, seq, ack, sections, flags, view[MESSAGE.size :])


def parts(message: Message, from_guest: bool) -> list[Part]:
    """The sections of a batch.  MirrorError: one that its sender must not say, or whose length is wrong."""
    body, at, found = message.body, 0, []
    while at < len(body):
        if len(body) - at < SECTION.size:
            raise MirrorError("section", f"{len(body) - at} bytes are left, less than a section's head")
        number, vcpu, length = SECTION.unpack_from(body, at)
        at += SECTION.size
        rule = _RULES.get(number)
        if rule is None or not (rule.guest if from_guest else rule.hypervisor):
            raise MirrorError("section", f"{number} is none that a {'guest' if from_guest else 'hypervisor'} sends")
        name = rule.section.name
        if length > len(body) - at:
            raise MirrorError(name, f"{length} bytes announced, {len(body) - at} there")
        if length < rule.least or (length - rule.least) % rule.unit:
            raise MirrorError(name, f"a length of {length} bytes")
        found.append(Part(rule.section, vcpu, body[at : at + length]))
        at += length
    if len(found) != message.sections:
        raise MirrorError("sections", f"{message.sections} announced, {len(found)} there")
    return found


class Batch:
    """A batch that is being filled: `room` bytes at most, the header included."""

    def __init__(self, room: int) -> None:
        self.count = 0
        self._parts: list[Buffer] = []
        self._left = room - MESSAGE.size

    def left(self) -> int:
        """Bytes that one more section may have behind its head; negative: not even none."""
        return self._left - SECTION.size

    def add(self, section: Section, vcpu: int, *pieces: Buffer) -> None:
        """Append a section, whose size must not exceed `left`."""
        length = sum(map(len, pieces))
        assert length <= self.left(), "the batch has no room"
        self._parts.append(SECTION.pack(section, vcpu, length))
        self._parts += [bytes(piece) for piece in pieces]
        self._left -= SECTION.size + length
        self.count += 1

    def body(self) -> bytes:
        """All sections."""
        return b"".join(self._parts)


class Ranges:
    """A set of addresses, as disjoint ranges that do not touch."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add the addresses from `start` to before `end`."""
        if start >= end:
            return
        first = bisect_right(self._starts, start)
        if first and self._ends[first - 1] >= start:
            first -= 1
            start = self._starts[first]
        last = bisect_right(self._starts, end)
        if last > first:
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def reach(self, start: int) -> int:
        """How many addresses from `start` on are in the set without a gap."""
        at = bisect_right(self._starts, start) - 1
        return max(0, self._ends[at] - start) if at >= 0 else 0

    def touches(self, start: int, end: int) -> bool:
        """Whether any address from `start` to before `end` is in the set."""
        at = bisect_right(self._starts, start)
        if at and self._ends[at - 1] > start:
            return True
        return at < len(self._starts) and self._starts[at] < end


class Changes:
    """What one side wrote and has not yet shipped: bytes, and the words that publish them.

    Where, not what: the content is looked at when it leaves, so what is written twice leaves once.  A word leaves
    after all bytes that were written before it.
    """

    __slots__ = ("_data", "_stored")

    def __init__(self) -> None:
        self._data = Ranges()
        self._stored: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(len(self._data) or self._stored)

    def data(self, start: int, n: int) -> None:
        """`n` bytes were written at `start`."""
        self._data.add(start, start + n)

    def word(self, address: int) -> None:
        """The u32 at `address` was stored, after everything so far."""
        self._stored.pop(address, None)
        self._stored[address] = None

    def absorb(self, other: Changes) -> None:
        """Add all of `other`, which is empty then."""
        for start, end in other._data:
            self._data.add(start, end)
        for address in other._stored:
            self.word(address)
        other._data, other._stored = Ranges(), {}

    def take(self, batch: Batch, view: memoryview, words: memoryview) -> bool:
        """Move what `batch` has room for into it, out of the memory `view`.  True: that was all."""
        left = Ranges()
        for start, end in self._data:
            n = min(end - start, batch.left() - AT.size)
            if n > 0:
                batch.add(Section.STORE, 0, AT.pack(start), view[start : start + n])
                start += n
            left.add(start, end)
        self._data = left
        if len(left):
            return False
        count = min(len(self._stored), batch.left() // WORD.size)
        if count > 0:
            moved = list(self._stored)[:count]
            batch.add(Section.WORDS, 0, *(WORD.pack(address, load32(words, address >> 2)) for address in moved))
            for address in moved:
                del self._stored[address]
        return not self._stored


class Numbers:
    """One end's numbering of batches in one epoch: what was sent and not acknowledged, what was received.

    Batches are numbered from 1.  `counters` tells of repeats and gaps.
    """

    def __init__(self, epoch: int, most: int = MAX_OUTSTANDING) -> None:
        self.epoch = epoch
        self.sent = 0
        self.received = 0
        self.outstanding = 0  # bytes sent and not acknowledged
        self.owed = 0  # batches received and not acknowledged
        self.counters: Counter[str] = Counter()
        self._most = most
        self._kept: deque[tuple[int, bytes]] = deque()
        self._since_ns: int | None = None  # since when nothing was acknowledged, as far as `due` was asked
        self._missing = False  # something between what was received and what comes now
        self._ask = False  # for it to be repeated
        self._repeat = False  # the other end asked

    def room(self) -> int:
        """Bytes of a batch that may be sent now, its header included; less than MIN_ROOM: none."""
        return 0 if len(self._kept) >= MAX_BATCHES else min(MAX_MESSAGE, self._most - self.outstanding)

    def send(self, batch: Batch) -> bytes:
        """The next message, which is kept until it is acknowledged."""
        self.sent += 1
        message = pack(MessageKind.BATCH, self.epoch, batch.body(), self.sent, self._ack(), batch.count, self._flags())
        self._kept.append((self.sent, message))
        self.outstanding += len(message)
        return message

    def accept(self, message: Message) -> bool:
        """Judge a BATCH or ACK of this epoch.  True: a batch that is the next one, to be applied now.

        MirrorError: it acknowledges what was never sent, or is further ahead than its sender may be.
        """
        if message.ack > self.sent:
            raise MirrorError("ack", f"of batch {message.ack}; {self.sent} were sent")
        while self._kept and self._kept[0][0] <= message.ack:
            self.outstanding -= len(self._kept.popleft()[1])
            self._since_ns = None
        self._repeat |= bool(message.flags & MessageFlag.AGAIN)
        if message.kind is MessageKind.ACK:
            return False
        if message.seq == self.received + 1:
            self.received += 1
            self.owed += 1
            self._missing = False
            return True
        if message.seq > self.received + MAX_BATCHES:
            raise MirrorError("seq", f"batch {message.seq} after {self.received}; {MAX_BATCHES} may be under way")
        late = message.seq > self.received
        self.counters["gaps" if late else "repeats"] += 1
        if not (late and self._missing):  # a gap is told of once; what it brings is lost, or repeated in time
            self._ask, self._missing = late, late or self._missing
            self.owed = max(self.owed, ACK_AFTER)
        return False

    def acknowledgement(self, at_once: bool = False) -> bytes | None:
        """A message that only acknowledges, if one is due (`at_once`: if anything is to be acknowledged)."""
        if self.owed >= (1 if at_once else ACK_AFTER):
            return pack(MessageKind.ACK, self.epoch, b"", 0, self._ack(), 0, self._flags())
        return None

    def repeats(self, asked: bool = True) -> Sequence[bytes]:
        """What was not acknowledged, unchanged; `asked`: only if the other end misses something."""
        if asked and not self._repeat:
            return ()
        self._repeat = False
        return [message for _, message in self._kept]

    def due(self, now_ns: int) -> bool:
        """Whether nothing was acknowledged for so long that it is time to repeat.  To be asked now and then."""
        if not self._kept:
            self._since_ns = None
        elif self._since_ns is None:
            self._since_ns = now_ns
        elif now_ns - self._since_ns >= AGAIN_NS:
            self._since_ns = now_ns
            return True
        return False

    def _ack(self) -> int:
        self.owed = 0
        return self.received

    def _flags(self) -> int:
        ask, self._ask = self._ask, False
        return int(MessageFlag.AGAIN) if ask else 0
