"""The driver's end of a packed virtqueue (VIRTIO 1.4, 2.8).

What it must know of a chain it keeps for itself: the device may write anything into the ring.  From the device come
flags, buffer ids and lengths, and each is checked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hmx.virtio.chain import QueueFull, QueueLayout, Segment, Used
from hmx.virtio.ends import DriverEnd, new_queue
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.packed import AVAIL, DESCRIPTOR, FLAGS, INDIRECT, NEXT, PACKED, USED, WRITE, PackedEnd, off_wrap
from hmx.virtio.rings import IndirectArea, check_chain

_BOTH = AVAIL | USED


class PackedDriver(DriverEnd, PackedEnd):
    """A DriverQueue.  Zeroes the queue; ValueError for a layout that VIRTIO forbids or memory that is not there.

    With RING_INDIRECT_DESC and an `indirect` area, a chain of several segments goes into the table of its buffer id.
    """

    __slots__ = ("_batch", "_batch_written", "_entries", "_free", "_fresh", "_ids", "_order", "_out", "_tables")

    def __init__(
        self, layout: QueueLayout, features: int, memory: QueueMemory, indirect: IndirectArea | None = None
    ) -> None:
        self._tables, self._entries = new_queue(PACKED, layout, features, memory, indirect)
        super().__init__(layout, features, memory, driver=True)
        self._ids = deque(range(layout.size))
        self._free = layout.size
        self._out: dict[int, tuple[object, int, int]] = {}  # token, writable bytes, slots
        self._fresh: set[int] = set()  # ids that were added and not published
        self._order: deque[int] = deque()  # IN_ORDER: ids as they were added
        self._batch = 0  # IN_ORDER: chains of a batch that are still to be taken
        self._batch_written = 0  # ... and what the device wrote into the last of them

    @property
    def free(self) -> int:
        """Free descriptors."""
        return self._free

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: object) -> int:
        """Write a chain; its buffer id."""
        self._check()
        room = check_chain(readable, writable, self.size)
        count = len(readable) + len(writable)
        indirect = 1 < count <= self._entries
        slots = 1 if indirect else count
        if slots > self._free:
            raise QueueFull(f"{slots} descriptors for a chain, {self._free} are free")
        identity = self._ids.popleft()
        try:
            if indirect:
                table = self._tables + 16 * self._entries * identity
                self._memory.write(table, _table(readable, writable))
                self._write(table, 16 * count, identity, INDIRECT, self._made)
            elif self._first >= 0 and self._made % self.size + count <= self.size:
                self._write_behind(readable, writable, identity, count)
            else:
                at = self._made
                for address, size in readable:
                    count -= 1
                    self._write(address, size, identity, NEXT if count else 0, at)
                    at += 1
                for address, size in writable:
                    count -= 1
                    self._write(address, size, identity, WRITE | NEXT if count else WRITE, at)
                    at += 1
        except BadAddress as error:
            self._fail(str(error))
        self._made = (self._made + slots) % self._laps
        self._free -= slots
        self._out[identity] = token, room, slots
        self._fresh.add(identity)
        if self._in_order:
            self._order.append(identity)
        return identity

    def _write(self, address: int, size: int, identity: int, flags: int, position: int) -> None:
        """Write one descriptor; what would make it visible waits if it is the first since `publish`.

        The device looks at one position at a time: behind one that is not available it sees nothing.
        """
        position %= self._laps
        if position < self.size:
            flags |= AVAIL
        else:
            flags |= USED
            position -= self.size
        at = self._descriptors + 16 * position
        if self._first < 0:
            self._first, self._first_flags = at + FLAGS, flags
            # The flags stay those of the lap before, which say "not available".
            self._memory.write(at, DESCRIPTOR.pack(address, size, identity, 0)[:FLAGS])
        else:
            self._memory.write(at, DESCRIPTOR.pack(address, size, identity, flags))

    def _write_behind(
        self, readable: Sequence[Segment], writable: Sequence[Segment], identity: int, count: int
    ) -> None:
        """Write a chain of `count` descriptors at once: behind others that wait for `publish`, within a lap."""
        position = self._made
        lap = AVAIL if position < self.size else USED
        descriptors = []
        for address, size in readable:
            count -= 1
            descriptors.append(DESCRIPTOR.pack(address, size, identity, NEXT | lap if count else lap))
        for address, size in writable:
            count -= 1
            descriptors.append(DESCRIPTOR.pack(address, size, identity, WRITE | NEXT | lap if count else WRITE | lap))
        self._memory.write(self._descriptors + 16 * (position % self.size), b"".join(descriptors))

    def publish(self) -> bool:
        """Make what was added available; whether the device wants a notification."""
        self._check()
        self._fresh.clear()
        return self._show()

    def _here(self) -> bool:
        position, size = self._next, self.size
        if position < size:
            return self._memory.load16(self._descriptors + 16 * position + FLAGS) & _BOTH == _BOTH
        return not self._memory.load16(self._descriptors + 16 * (position - size) + FLAGS) & _BOTH

    def take(self) -> Used | None:
        """The next used buffer."""
        self._check()
        if self._batch:
            return self._from_batch()
        try:
            if not self._here() and not self._idle():
                return None
            memory, position = self._memory, self._next
            memory.fence()  # the rest is read after the flags
            slot = position if position < self.size else position - self.size
            _, written, identity, flags = DESCRIPTOR.unpack(memory.read(self._descriptors + 16 * slot, 16))
        except BadAddress as error:
            self._fail(str(error))
        out = self._out.get(identity)
        if out is None or identity in self._fresh:
            self._fail(f"the device returned buffer {identity}, which it does not have")
        if not flags & WRITE and written > out[1]:
            # Without the flag the length means nothing (VIRTIO 2.8.4).  But QEMU never sets the flag, and Linux
            # believes the length all the same: one that fits is taken.
            written = 0
        if written > out[1]:
            self._fail(f"the device wrote {written} bytes into buffer {identity}, which has room for {out[1]}")
        if self._in_order and self._order[0] != identity:
            # One descriptor for several buffers, of which it names the last (VIRTIO 2.8.8).
            self._batch, self._batch_written = self._order.index(identity) + 1, written
            return self._from_batch()
        return self._finish(identity, written)

    def _finish(self, identity: int, written: int) -> Used:
        token, _, slots = self._out.pop(identity)
        self._ids.append(identity)
        self._free += slots
        if self._in_order:
            self._order.popleft()
        self._next = (self._next + slots) % self._laps
        return Used(token, written)

    def _from_batch(self) -> Used:
        self._batch -= 1
        identity = self._order[0]
        # What has no descriptor of its own was used completely.
        return self._finish(identity, self._out[identity][1] if self._batch else self._batch_written)

    def want_interrupts(self, wanted: bool) -> bool:
        """Ask for used-buffer notifications, or not.  True: something came meanwhile, take it first."""
        return self._want(wanted) or self._batch > 0

    def notification_data(self) -> int:
        """Slot and wrap counter of the first descriptor that was not published."""
        return off_wrap(self._shown, self.size)


def _table(readable: Sequence[Segment], writable: Sequence[Segment]) -> bytes:
    """An indirect table: consecutive entries in which only WRITE counts (VIRTIO 2.8.7)."""
    entries = [DESCRIPTOR.pack(address, size, 0, 0) for address, size in readable]
    entries += [DESCRIPTOR.pack(address, size, 0, WRITE) for address, size in writable]
    return b"".join(entries)
