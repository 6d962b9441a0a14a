"""The driver's end of a split virtqueue (VIRTIO 1.4, 2.7).

What it must know of a chain it keeps for itself and never reads back: a device that scribbles over the descriptor
table changes nothing here.  From the device come an index, chain heads and lengths, and each is checked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hmx.virtio.chain import QueueFull, QueueLayout, Segment, Used
from hmx.virtio.ends import DriverEnd, new_queue
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.rings import U16, IndirectArea, check_chain
from hmx.virtio.split import DESCRIPTOR, INDIRECT, NEXT, SPLIT, USED, WRITE, SplitEnd


class SplitDriver(DriverEnd, SplitEnd):
    """A DriverQueue.  Zeroes the queue; ValueError for a layout that VIRTIO forbids or memory that is not there.

    With RING_INDIRECT_DESC and an `indirect` area, a chain of several segments goes into the table of its head.
    """

    __slots__ = ("_batch", "_batch_written", "_entries", "_free", "_fresh", "_order", "_out", "_tables")

    def __init__(
        self, layout: QueueLayout, features: int, memory: QueueMemory, indirect: IndirectArea | None = None
    ) -> None:
        self._tables, self._entries = new_queue(SPLIT, layout, features, memory, indirect)
        super().__init__(layout, features, memory, driver=True)
        # First in, first out: chains that come back in order leave free descriptors in ring order, as IN_ORDER asks.
        self._free = deque(range(layout.size))
        self._out: dict[int, tuple[object, int, list[int] | None]] = {}  # token, writable bytes, all slots but the head
        self._fresh: set[int] = set()  # heads that were added and not published
        self._order: deque[int] = deque()  # IN_ORDER: heads as they were added
        self._batch = 0  # IN_ORDER: chains of a batch that are still to be taken
        self._batch_written = 0  # ... and what the device wrote into the last of them

    @property
    def free(self) -> int:
        """Free descriptors."""
        return len(self._free)

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: object) -> int:
        """Write a chain; its head."""
        self._check()
        room = check_chain(readable, writable, self.size)
        count = len(readable) + len(writable)
        free = self._free
        indirect = 1 < count <= self._entries
        if (1 if indirect else count) > len(free):
            raise QueueFull(f"{count} descriptors for a chain, {len(free)} are free")
        head = free.popleft()
        rest = None if indirect or count == 1 else [free.popleft() for _ in range(count - 1)]
        memory = self._memory
        try:
            if rest is not None:
                self._write_direct([head, *rest], readable, writable)
            elif indirect:
                table = self._tables + 16 * self._entries * head
                memory.write(table, _table(readable, writable))
                memory.write(self._descriptors + 16 * head, DESCRIPTOR.pack(table, 16 * count, INDIRECT, 0))
            else:
                (address, size), flags = (readable[0], 0) if readable else (writable[0], WRITE)
                memory.write(self._descriptors + 16 * head, DESCRIPTOR.pack(address, size, flags, 0))
            memory.store16(self._own_ring + 2 * (self._made & self._mask), head)
        except BadAddress as error:
            self._fail(str(error))
        self._made = self._made + 1 & U16
        self._out[head] = token, room, rest
        self._fresh.add(head)
        if self._in_order:
            self._order.append(head)
        return head

    def _write_direct(self, slots: list[int], readable: Sequence[Segment], writable: Sequence[Segment]) -> None:
        memory, descriptors, border = self._memory, self._descriptors, len(readable)
        last = len(slots) - 1
        for index, (address, size) in enumerate((*readable, *writable)):
            flags = 0 if index < border else WRITE
            following = 0
            if index < last:
                flags |= NEXT
                following = slots[index + 1]
            memory.write(descriptors + 16 * slots[index], DESCRIPTOR.pack(address, size, flags, following))

    def publish(self) -> bool:
        """Make what was added available; whether the device wants a notification."""
        self._check()
        self._fresh.clear()
        return self._show()

    def take(self) -> Used | None:
        """The next used buffer."""
        try:
            if self._next == self._seen:
                most = len(self._out) - len(self._fresh)
                if not self._look(most) and not self._idle(most):
                    return None
            if self._batch:
                return self._from_batch()
            at = self._other_ring + 8 * (self._next & self._mask)
            head, written = USED.unpack(self._memory.read(at, 8))
        except BadAddress as error:
            self._fail(str(error))
        out = self._out.get(head)
        if out is None or head in self._fresh:
            self._fail(f"the device returned chain {head}, which it does not have")
        if written > out[1]:
            self._fail(f"the device wrote {written} bytes into chain {head}, which has room for {out[1]}")
        if self._in_order and self._order[0] != head:
            return self._start_batch(head, written)
        return self._finish(head, written)

    def _finish(self, head: int, written: int) -> Used:
        token, _, rest = self._out.pop(head)
        self._free.append(head)
        if rest is not None:
            self._free.extend(rest)
        if self._in_order:
            self._order.popleft()
        self._next = self._next + 1 & U16
        return Used(token, written)

    def _start_batch(self, last: int, written: int) -> Used:
        """One element for several chains, of which it names the last (VIRTIO 2.7.9)."""
        batch = self._order.index(last) + 1
        ahead = self._seen - self._next & U16
        if batch > ahead:
            self._fail(f"the device returned chain {last}, number {batch} in order, though only {ahead} were used")
        self._batch, self._batch_written = batch, written
        return self._from_batch()

    def _from_batch(self) -> Used:
        self._batch -= 1
        head = self._order[0]
        # What has no element of its own was used completely.
        return self._finish(head, self._out[head][1] if self._batch else self._batch_written)

    def want_interrupts(self, wanted: bool) -> bool:
        """Ask for used-buffer notifications, or not.  True: something came meanwhile, take it first."""
        return self._want(wanted)

    def notification_data(self) -> int:
        """The available index that was published last."""
        return self._shown


def _table(readable: Sequence[Segment], writable: Sequence[Segment]) -> bytes:
    """An indirect table: consecutive entries."""
    last = len(readable) + len(writable) - 1
    entries = []
    for index, (address, size) in enumerate(readable):
        entries.append(DESCRIPTOR.pack(address, size, NEXT if index < last else 0, index + 1 if index < last else 0))
    for index, (address, size) in enumerate(writable, len(readable)):
        flags = WRITE | NEXT if index < last else WRITE
        entries.append(DESCRIPTOR.pack(address, size, flags, index + 1 if index < last else 0))
    return b"".join(entries)
