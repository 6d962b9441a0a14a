"""The pages that one vCPU shares with its hypervisor, version 1.  Experimental, not upstream.

A submission ring of trap frames, a completion ring, a ring of posted interrupts, and two flags that say
which side sleeps. Every word has one writer, because Python has no atomic read-modify-write on shared
memory: heads and tails run freely modulo 2^32 and a slot is the value modulo the ring's entries.

Sleeping is a protocol of two stores and two loads: the sleeper stores its flag, fences, and looks at the
tail once more; the other side stores the tail, fences, and looks at the flag. Whatever the order, one of
them sees the other.

:class:`GuestSide` and :class:`HypervisorSide` hold private copies of the words that they write and never
read those back from shared memory, so a peer that scribbles over the area cannot confuse the side that owns
a word.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from hmx import shm
from hmx.shm import fence, load32, store32
from hmx.trap import (
    COMPLETIONS,
    FRAME_HEAD,
    FRAME_SIZE,
    FRAMES,
    MAX_REGS,
    REGS,
    REGS_OFFSET,
    Arch,
    Completion,
    completion,
)

AREA_PAGES: Final = 10
AREA_SIZE: Final = AREA_PAGES * 4096
MAGIC: Final = int.from_bytes(b"AVCA", "little")
MAJOR: Final = 1
MINOR: Final = 0
SQ_ENTRIES: Final = 64
CQ_ENTRIES: Final = 64
POST_ENTRIES: Final = 256
POSTS_OFFSET: Final = 0x400
SQ_OFFSET: Final = 0x1000
CQ_OFFSET: Final = 0x5000

_HEADER: Final = struct.Struct("<IHHHHHH")
_START: Final = struct.Struct("<IHH")  # what tells a frame from the one before with the same registers
_NREGS: Final = 12  # offset of the register count in a frame and in a completion
_MASK: Final = 0xFFFF_FFFF


class Word(IntEnum):
    """Byte offset of each shared u32, one to a 64-byte line.  The guest writes the first four, the hypervisor the
    rest.
    """

    SQ_TAIL = 0x040
    CQ_HEAD = 0x080
    GUEST_ASLEEP = 0x0C0
    POST_HEAD = 0x100
    SQ_HEAD = 0x200
    CQ_TAIL = 0x240
    HV_ASLEEP = 0x280
    POST_TAIL = 0x2C0
    POST_MORE = 0x300


# The same as plain word indices: an enum lookup costs more than the load it names.
_SQ_TAIL: Final = Word.SQ_TAIL >> 2
_CQ_HEAD: Final = Word.CQ_HEAD >> 2
_GUEST_ASLEEP: Final = Word.GUEST_ASLEEP >> 2
_POST_HEAD: Final = Word.POST_HEAD >> 2
_SQ_HEAD: Final = Word.SQ_HEAD >> 2
_CQ_TAIL: Final = Word.CQ_TAIL >> 2
_HV_ASLEEP: Final = Word.HV_ASLEEP >> 2
_POST_TAIL: Final = Word.POST_TAIL >> 2
_POST_MORE: Final = Word.POST_MORE >> 2
_POSTS: Final = POSTS_OFFSET >> 2


class Post(IntEnum):
    """Kind of a posted interrupt; an entry is `kind << 24 | id`."""

    VECTOR = 1
    NMI = 2
    EXTINT = 3
    PORT = 4
    LR = 5


def post_entry(kind: Post, ident: int) -> int:
    """The u32 that posts interrupt `ident` (24 bits) of `kind`."""
    return kind << 24 | ident & 0xFF_FFFF


class AreaError(Exception):
    """The pages are no vCPU area of a version that this side speaks."""

    def __init__(self, field: str, value: int, expected: int) -> None:
        super().__init__(f"vCPU area: {field} is {value:#x}, expected {expected:#x}")
        self.field = field
        self.value = value


class HypervisorSide:
    """The hypervisor's end of one vCPU area: it drains submissions, writes completions, posts interrupts."""

    __slots__ = ("_posted", "backlog", "buffer", "cq_tail", "post_tail", "sq_head", "words")

    def __init__(self, buffer: memoryview, arch: Arch = Arch.X86_64) -> None:
        """Take over `buffer` (AREA_SIZE zeroed bytes) and write its header.  The hypervisor starts asleep."""
        self.buffer = buffer
        self.words = shm.words32(buffer)
        self.sq_head = 0
        self.cq_tail = 0
        self.post_tail = 0
        self._posted: dict[int, int] = {}
        self.backlog: dict[int, None] = {}  # entries that found the ring full, oldest first
        _HEADER.pack_into(buffer, 0, MAGIC, MAJOR, MINOR, arch, SQ_ENTRIES, CQ_ENTRIES, POST_ENTRIES)
        store32(self.words, _HV_ASLEEP, 1)

    def submitted(self) -> int:
        """Frames waiting: 0 to 64.  An impossible tail (a guest that scribbles) counts as none until it is sane
        again.
        """
        waiting = (load32(self.words, _SQ_TAIL) - self.sq_head) & _MASK
        return waiting if waiting <= SQ_ENTRIES else 0

    def room(self) -> int:
        """Free completion slots.  An impossible head counts as a full ring."""
        used = (self.cq_tail - load32(self.words, _CQ_HEAD)) & _MASK
        return CQ_ENTRIES - used if used <= CQ_ENTRIES else 0

    def take(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Copy the next frame out, once: what the guest changes afterwards is not seen. Call only when one
        waits.

        Returns the eleven head fields and the registers, the parts of a :class:`hmx.trap.Frame`; the hot
        path needs no more.
        """
        offset = SQ_OFFSET + (self.sq_head % SQ_ENTRIES) * FRAME_SIZE
        head = FRAME_HEAD.unpack_from(self.buffer, offset)
        count = head[6]
        if count > MAX_REGS:
            count = MAX_REGS
        self.sq_head = (self.sq_head + 1) & _MASK
        return head, REGS[count].unpack_from(self.buffer, offset + REGS_OFFSET)

    def complete(
        self,
        seq: int,
        outcome: int,
        regs: tuple[int, ...] = (),
        vector: int = 0,
        error: int = 0,
        address: int = 0,
    ) -> None:
        """Write one completion.  It is seen by the guest at the next :meth:`publish`."""
        count = len(regs)
        COMPLETIONS[count].pack_into(
            self.buffer,
            CQ_OFFSET + (self.cq_tail % CQ_ENTRIES) * FRAME_SIZE,
            seq, outcome, vector, error, count, address, *regs,
        )  # fmt: skip
        self.cq_tail = (self.cq_tail + 1) & _MASK

    def publish(self) -> None:
        """Make completions and consumed submissions visible, data before the words that announce them."""
        fence()
        store32(self.words, _SQ_HEAD, self.sq_head)
        store32(self.words, _CQ_TAIL, self.cq_tail)

    def post(self, entry: int) -> bool:
        """Post one interrupt.  False when the same entry is still unconsumed (coalesced)."""
        head = load32(self.words, _POST_HEAD)
        waiting = (self.post_tail - head) & _MASK
        last = self._posted.get(entry)
        if last is not None and waiting <= POST_ENTRIES and (last - head) & _MASK < waiting:
            # What this interrupt announces must be visible before a head that lets it coalesce is believed: the guest
            # moves the head, fences, and looks.
            fence()
            head = load32(self.words, _POST_HEAD)
            waiting = (self.post_tail - head) & _MASK
            if waiting <= POST_ENTRIES and (last - head) & _MASK < waiting:
                return False
        if entry in self.backlog:
            return False
        if waiting >= POST_ENTRIES:
            self.backlog[entry] = None
            store32(self.words, _POST_MORE, 1)
            fence()
            self.repost()  # the guest may have drained between the look at its head and the store of post_more
            return True
        self._append(entry)
        return True

    def _append(self, entry: int) -> None:
        store32(self.words, _POSTS + self.post_tail % POST_ENTRIES, entry)
        self._posted[entry] = self.post_tail
        self.post_tail = (self.post_tail + 1) & _MASK
        fence()
        store32(self.words, _POST_TAIL, self.post_tail)

    def repost(self) -> bool:
        """Move entries that found the ring full into it, as far as the guest made room.  True when any moved."""
        moved = False
        while self.backlog and (self.post_tail - load32(self.words, _POST_HEAD)) & _MASK < POST_ENTRIES:
            entry = next(iter(self.backlog))
            del self.backlog[entry]
            self._append(entry)
            moved = True
        if not self.backlog and moved:
            store32(self.words, _POST_MORE, 0)
        return moved

    def sleep(self) -> bool:
        """Arm the hypervisor's sleep flag.  False when work arrived meanwhile (the flag is down again)."""
        store32(self.words, _HV_ASLEEP, 1)
        fence()
        if self.submitted() and self.room():
            store32(self.words, _HV_ASLEEP, 0)
            return False
        return True

    def awake(self) -> None:
        """Take the sleep flag down: while it is down the guest submits without ringing."""
        store32(self.words, _HV_ASLEEP, 0)

    def guest_sleeps(self) -> bool:
        """True when the guest must be rung.  Call after :meth:`publish` or :meth:`post`; fences first."""
        fence()
        return load32(self.words, _GUEST_ASLEEP) != 0


class GuestSide:
    """The guest's end of one vCPU area: it submits frames, collects completions, consumes posted interrupts."""

    __slots__ = ("_laid", "buffer", "cq_head", "outstanding", "post_head", "seq", "sq_tail", "words")

    def __init__(self, buffer: memoryview, arch: Arch = Arch.X86_64) -> None:
        """Check the header.  Raises AreaError for a foreign magic, major version, architecture or ring size."""
        expected = (
            ("magic", MAGIC), ("major version", MAJOR), ("minor version", None), ("architecture", arch),
            ("sq_entries", SQ_ENTRIES), ("cq_entries", CQ_ENTRIES), ("post_entries", POST_ENTRIES),
        )  # fmt: skip
        for (field, value), found in zip(expected, _HEADER.unpack_from(buffer, 0), strict=True):
            if value is not None and found != value:
                raise AreaError(field, found, value)
        self.buffer = buffer
        self.words = shm.words32(buffer)
        self.sq_tail = 0
        self.cq_head = 0
        self.post_head = 0
        self.seq = 0
        self.outstanding = 0
        self._laid: list[tuple[int, ...] | None] = [None] * SQ_ENTRIES  # registers of the plain frame in each slot

    def room(self) -> int:
        """Frames that may be submitted now: as many as have a completion slot waiting for them."""
        return CQ_ENTRIES - self.outstanding

    def submit(
        self,
        kind: int,
        regs: tuple[int, ...],
        flags: int = 0,
        privilege: int = 0,
        size: int = 0,
        imm: int = 0,
        address: int = 0,
        context: int = 0,
    ) -> int:
        """Fill the next frame and return its seq.  Nothing is seen before :meth:`publish`.  Needs :meth:`room`."""
        if self.outstanding >= SQ_ENTRIES:
            raise BufferError(f"vCPU area: {self.outstanding} frames are outstanding, the most there can be")
        seq, slot = self.seq, self.sq_tail % SQ_ENTRIES
        at, count = SQ_OFFSET + slot * FRAME_SIZE, len(regs)
        if privilege or size or imm or address or context:
            self._laid[slot] = None
        elif self._laid[slot] is regs:
            # The same registers as the frame that lay here before: only its first words differ.
            _START.pack_into(self.buffer, at, seq, kind, flags)
            self._advance()
            return seq
        else:
            self._laid[slot] = regs
        FRAMES[count].pack_into(
            self.buffer, at, seq, kind, flags, privilege, size, imm, count, 0, 0, address, context, *regs
        )
        self._advance()
        return seq

    def _advance(self) -> None:
        self.seq = (self.seq + 1) & _MASK
        self.sq_tail = (self.sq_tail + 1) & _MASK
        self.outstanding += 1

    def publish(self) -> bool:
        """Announce the submitted frames.  True when the hypervisor sleeps and must be rung."""
        fence()
        store32(self.words, _SQ_TAIL, self.sq_tail)
        fence()
        return load32(self.words, _HV_ASLEEP) != 0

    def completed(self) -> int:
        """Completions waiting to be collected."""
        return (load32(self.words, _CQ_TAIL) - self.cq_head) & _MASK

    def collect(self) -> Completion:
        """Take the oldest completion.  Call only when one waits."""
        return completion(*self.collect_raw(1))

    def collect_raw(self, count: int) -> list[tuple[int, ...]]:
        """Take the `count` oldest completions: the head's six fields and the registers, flat in one tuple each.

        Call only when as many wait.
        """
        buffer, head, taken = self.buffer, self.cq_head, []
        for _ in range(count):
            at = CQ_OFFSET + head % CQ_ENTRIES * FRAME_SIZE
            nregs = buffer[at + _NREGS]
            taken.append(COMPLETIONS[nregs if nregs < MAX_REGS else MAX_REGS].unpack_from(buffer, at))
            head = (head + 1) & _MASK
        self.cq_head = head
        store32(self.words, _CQ_HEAD, head)
        self.outstanding -= count
        return taken

    def posted(self) -> int:
        """Posted interrupts waiting."""
        return (load32(self.words, _POST_TAIL) - self.post_head) & _MASK

    def take_post(self) -> int:
        """Take the oldest posted entry.  The head moves first: what is posted from now on is a new interrupt."""
        entry = load32(self.words, _POSTS + self.post_head % POST_ENTRIES)
        self.post_head = (self.post_head + 1) & _MASK
        store32(self.words, _POST_HEAD, self.post_head)
        fence()
        return entry

    def more_posts(self) -> bool:
        """True when the hypervisor holds entries that found the ring full: ring it after draining."""
        fence()
        return load32(self.words, _POST_MORE) != 0

    def sleep(self) -> bool:
        """Arm the guest's sleep flag.  False when something arrived meanwhile (the flag is down again)."""
        store32(self.words, _GUEST_ASLEEP, 1)
        fence()
        if self.completed() or self.posted():
            store32(self.words, _GUEST_ASLEEP, 0)
            return False
        return True

    def awake(self) -> None:
        """Take the sleep flag down."""
        store32(self.words, _GUEST_ASLEEP, 0)
