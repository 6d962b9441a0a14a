"""The device's end of a packed virtqueue (VIRTIO 1.4, 2.8).

Every descriptor is the driver's word: no chain is followed further than the ring has room for, and what breaks a rule
is QueueBroken.  Addresses of buffers are not looked at here; whoever reads or writes them is told by the memory.
"""

from __future__ import annotations

from collections import deque

from hmx.virtio.chain import Chain, QueueBroken, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.packed import (
    AVAIL,
    DESCRIPTOR,
    FLAGS,
    INDIRECT,
    NEXT,
    PACKED,
    TAIL,
    USED,
    USED_TAIL,
    WRITE,
    PackedEnd,
    off_wrap,
    position_of,
)
from hmx.virtio.rings import MAX_CHAIN_BYTES, MAX_TABLE, U32, check_layout, make_segment

_BOTH = AVAIL | USED
_unpack = DESCRIPTOR.unpack


class PackedDevice(PackedEnd):
    """A DeviceQueue.  QueueBroken for a layout that VIRTIO forbids: it is the driver's.

    `position`: where an earlier device end of the same queue stopped (its `position`, bits as in vhost).  With
    IN_ORDER, chains may be pushed in any order: each waits for those before it.
    """

    __slots__ = ("_allow_indirect", "_done", "_held", "_order", "_out", "_pushed")

    def __init__(self, layout: QueueLayout, features: int, memory: QueueMemory, position: int | None = None) -> None:
        try:
            check_layout(PACKED, layout)
            super().__init__(layout, features, memory, driver=False)
            if position is not None:
                self._next = position_of(position, layout.size)
                self._made = self._shown = position_of(position >> 16, layout.size)
        except ValueError as error:
            raise QueueBroken(str(error)) from None
        self._allow_indirect = bool(features >> Feature.RING_INDIRECT_DESC & 1)
        self._held = (self._next - self._made) % self._laps  # slots that were popped and not published as used
        if self._held > layout.size:
            raise QueueBroken(f"position {position:#x}: more than {layout.size} slots between available and used")
        self._out: dict[int, tuple[int, int]] = {}  # ids that the device has -> writable bytes, slots
        self._order: deque[int] = deque()  # IN_ORDER: the same ids as they were popped
        self._done: dict[int, tuple[int, int, int]] = {}  # IN_ORDER: pushed ones that wait -> written, writable, slots
        self._pushed: list[tuple[int, int, int]] = []  # id, bytes written, slots, of what `publish` writes

    @property
    def position(self) -> int:
        """Where the next available (bits 15:0) and the next used descriptor (31:16) lie, slot and wrap counter each."""
        return off_wrap(self._next, self.size) | off_wrap(self._shown, self.size) << 16

    @property
    def in_flight(self) -> int:
        """Chains that were popped and not pushed."""
        return len(self._out)

    def _here(self) -> bool:
        position, size = self._next, self.size
        if position < size:
            return self._memory.load16(self._descriptors + 16 * position + FLAGS) & _BOTH == AVAIL
        return self._memory.load16(self._descriptors + 16 * (position - size) + FLAGS) & _BOTH == USED

    def pop(self) -> Chain | None:
        """The next available chain."""
        self._check()
        try:
            if not self._here() and not self._idle():
                return None
            self._memory.fence()  # the rest is read after the flags
            return self._walk()
        except BadAddress as error:
            self._fail(str(error))

    def _walk(self) -> Chain:
        """Read the chain that begins at the next position."""
        read, ring, size = self._memory.read, self._descriptors, self.size
        readable: list[Segment] = []
        writable: list[Segment] = []
        slot = first = self._next if self._next < size else self._next - size
        slots, most, room, total = 0, size - self._held, 0, 0
        while True:
            if slots == most:
                self._fail(f"the chain at {first} needs more than {most} descriptors, and the device has the rest")
            slots += 1
            address, length, identity, flags = _unpack(read(ring + 16 * slot, 16))
            if flags & INDIRECT:
                if flags & NEXT or slots > 1:
                    self._fail(f"INDIRECT descriptor {slot} is part of a longer chain")
                self._read_table(slot, address, length, readable, writable)
                room = sum([each for _, each in writable])
                total = room + sum([each for _, each in readable])
                break
            if not length:
                self._fail(f"descriptor {slot} has no bytes")
            total += length
            if flags & WRITE:
                room += length
                writable.append(make_segment((address, length)))
            elif writable:
                self._fail(f"device-readable descriptor {slot} comes after a device-writable one")
            else:
                readable.append(make_segment((address, length)))
            if not flags & NEXT:
                break
            slot = slot + 1 if slot + 1 < size else 0
        if identity in self._out or identity in self._done:
            self._fail(f"buffer {identity} was made available again before it was returned")
        if total > MAX_CHAIN_BYTES:
            self._fail(f"the chain at {first} has {total} bytes; 2^32 is the most")
        self._out[identity] = room, slots
        self._held += slots
        self._next = (self._next + slots) % self._laps
        if self._in_order:
            self._order.append(identity)
        return Chain(identity, slots, tuple(readable), tuple(writable))

    def _read_table(
        self, slot: int, table: int, table_bytes: int, readable: list[Segment], writable: list[Segment]
    ) -> None:
        """Read all entries of an indirect table; of their flags only WRITE counts (VIRTIO 2.8.7)."""
        if not self._allow_indirect:
            self._fail(f"descriptor {slot} is INDIRECT, which was not negotiated")
        entries, odd = divmod(table_bytes, 16)
        if odd or not entries or entries > MAX_TABLE:
            self._fail(f"the indirect table of descriptor {slot} has {table_bytes} bytes")
        content = bytes(self._memory.read(table, table_bytes))
        for index, (address, length, _, flags) in enumerate(DESCRIPTOR.iter_unpack(content)):
            if not length:
                self._fail(f"entry {index} of the indirect table of descriptor {slot} has no bytes")
            if flags & WRITE:
                writable.append(make_segment((address, length)))
            elif writable:
                self._fail(f"entry {index} of the indirect table of descriptor {slot} is readable after a writable one")
            else:
                readable.append(make_segment((address, length)))

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain.  ValueError when the device does not have it, or wrote more than it may."""
        self._check()
        identity = chain.head
        out = self._out.get(identity)
        if out is None:
            raise ValueError(f"buffer {identity} was not popped, or was returned already")
        room, slots = out
        if not 0 <= written <= min(room, U32):
            raise ValueError(f"{written} bytes written into buffer {identity}, which has room for {room}")
        del self._out[identity]
        if self._in_order:
            self._done[identity] = written, room, slots
        else:
            self._pushed.append((identity, written, slots))

    def publish(self) -> bool:
        """Make what was pushed visible; whether the driver wants a notification."""
        self._check()
        if self._done:
            self._in_turn()
        pushed = self._pushed
        if pushed:
            try:
                for identity, written, slots in pushed:
                    self._write(identity, written)
                    self._made = (self._made + slots) % self._laps
                    self._held -= slots
            except BadAddress as error:
                self._fail(str(error))
            pushed.clear()
        return self._show()

    def _write(self, identity: int, written: int) -> None:
        """Write one used descriptor; what would make it visible waits if it is the first since `publish`."""
        flags = WRITE if written else 0
        position, size = self._made, self.size
        if position < size:
            flags |= _BOTH
        else:
            position -= size
        at = self._descriptors + 16 * position
        if self._first < 0:
            self._first, self._first_flags = at + FLAGS, flags
            self._memory.write(at + TAIL, USED_TAIL.pack(written, identity, 0)[: FLAGS - TAIL])
        else:
            self._memory.write(at + TAIL, USED_TAIL.pack(written, identity, flags))

    def _in_turn(self) -> None:
        """IN_ORDER: take what was pushed, up to the first chain that was not (VIRTIO 2.8.8).

        Chains that were used completely need no descriptor of their own when a later one follows: that of a batch names
        its last chain and lies where that of its first would.
        """
        order, done, skipped = self._order, self._done, 0
        while order and order[0] in done:
            identity = order.popleft()
            written, room, slots = done.pop(identity)
            skipped += slots
            if written == room and order and order[0] in done:
                continue
            self._pushed.append((identity, written, skipped))
            skipped = 0

    def want_notifications(self, wanted: bool) -> bool:
        """Ask for available-buffer notifications, or not.  True: something came meanwhile, pop it first."""
        return self._want(wanted)
