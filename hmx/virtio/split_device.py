"""The device's end of a split virtqueue (VIRTIO 1.4, 2.7).

Everything in the descriptor table, in indirect tables and in the available ring is the driver's word: each index is
bounded, no chain is followed further than it can be long, and what breaks a rule is QueueBroken.  Addresses of buffers
are not looked at here; whoever reads or writes them is told by the memory.
"""

from __future__ import annotations

from collections import deque

from hmx.virtio.chain import Chain, QueueBroken, QueueLayout, Segment
from hmx.virtio.features import Feature
from hmx.virtio.memory import BadAddress, QueueMemory
from hmx.virtio.rings import MAX_CHAIN_BYTES, MAX_TABLE, U16, U32, check_layout, make_segment
from hmx.virtio.split import DESCRIPTOR, INDIRECT, NEXT, SPLIT, USED, WRITE, SplitEnd

_unpack = DESCRIPTOR.unpack


class SplitDevice(SplitEnd):
    """A DeviceQueue.  QueueBroken for a layout that VIRTIO forbids: it is the driver's.

    `position`: where an earlier device end of the same queue stopped (its `position`); then the used index is that of
    the queue.  With IN_ORDER, chains may be pushed in any order: each waits for those before it.
    """

    __slots__ = ("_allow_indirect", "_done", "_order", "_out")

    def __init__(self, layout: QueueLayout, features: int, memory: QueueMemory, position: int | None = None) -> None:
        try:
            check_layout(SPLIT, layout)
        except ValueError as error:
            raise QueueBroken(str(error)) from None
        super().__init__(layout, features, memory, driver=False)
        self._allow_indirect = bool(features >> Feature.RING_INDIRECT_DESC & 1)
        self._out: dict[int, int] = {}  # heads that the device has -> writable bytes
        self._order: deque[int] = deque()  # IN_ORDER: the same heads as they were popped
        self._done: dict[int, tuple[int, int]] = {}  # IN_ORDER: pushed ones that wait -> bytes written, writable bytes
        if position is not None:
            self._next = self._seen = position & U16
            try:
                self._made = self._shown = memory.load16(self._own_idx)
            except BadAddress as error:
                self._fail(str(error))

    @property
    def position(self) -> int:
        """The available index up to which chains were popped (what vhost calls the base of a split queue)."""
        return self._next

    @property
    def in_flight(self) -> int:
        """Chains that were popped and not pushed."""
        return len(self._out)

    def pop(self) -> Chain | None:
        """The next available chain."""
        try:
            at = self._next
            if at == self._seen:
                most = self.size - (at - self._shown & U16)  # the rest was not returned
                if not self._look(most) and not self._idle(most):
                    return None
            head = self._memory.load16(self._other_ring + 2 * (at & self._mask))
            if head >= self.size:
                self._fail(f"chain head {head} in a queue of {self.size} descriptors")
            if head in self._out or head in self._done:
                self._fail(f"chain {head} was made available again before it was returned")
            chain = self._walk(head)
        except BadAddress as error:
            self._fail(str(error))
        self._next = at + 1 & U16
        if self._in_order:
            self._order.append(head)
        return chain

    def _walk(self, head: int) -> Chain:
        """Follow the chain of `head`."""
        read, table, size = self._memory.read, self._descriptors, self.size
        readable: list[Segment] = []
        writable: list[Segment] = []
        index, slots, room, total = head, 0, 0, 0
        while True:
            if slots == size:
                self._fail(f"chain {head} has more than {size} descriptors, or a loop")
            slots += 1
            address, length, flags, following = _unpack(read(table + 16 * index, 16))
            if flags & INDIRECT:
                if flags & NEXT:
                    self._fail(f"descriptor {index} is INDIRECT and has a NEXT")
                self._walk_table(head, address, length, readable, writable)
                room = sum([each for _, each in writable])
                total = room + sum([each for _, each in readable])
                break
            if not length:
                self._fail(f"descriptor {index} has no bytes")
            total += length
            if flags & WRITE:
                room += length
                writable.append(make_segment((address, length)))
            elif writable:
                self._fail(f"device-readable descriptor {index} comes after a device-writable one")
            else:
                readable.append(make_segment((address, length)))
            if not flags & NEXT:
                break
            index = following
            if index >= size:
                self._fail(f"chain {head} goes on at {index} in a queue of {size} descriptors")
        if total > MAX_CHAIN_BYTES:
            self._fail(f"chain {head} has {total} bytes; 2^32 is the most")
        self._out[head] = room
        return Chain(head, slots, tuple(readable), tuple(writable))

    def _walk_table(
        self, head: int, table: int, table_bytes: int, readable: list[Segment], writable: list[Segment]
    ) -> None:
        """Follow the entries of an indirect table from its first."""
        if not self._allow_indirect:
            self._fail(f"chain {head} is INDIRECT, which was not negotiated")
        entries, odd = divmod(table_bytes, 16)
        if odd or not entries:
            self._fail(f"the indirect table of chain {head} has {table_bytes} bytes")
        read, most = self._memory.read, min(entries, MAX_TABLE)
        index = steps = 0
        while True:
            if steps == most:
                self._fail(f"the indirect table of chain {head} has more than {most} links, or a loop")
            steps += 1
            address, length, flags, following = _unpack(read(table + 16 * index, 16))
            if flags & INDIRECT:
                self._fail(f"entry {index} of the indirect table of chain {head} is INDIRECT again")
            if not length:
                self._fail(f"entry {index} of the indirect table of chain {head} has no bytes")
            if flags & WRITE:
                writable.append(make_segment((address, length)))
            elif writable:
                self._fail(f"entry {index} of the indirect table of chain {head} is readable after a writable one")
            else:
                readable.append(make_segment((address, length)))
            if not flags & NEXT:
                return
            index = following
            if index >= entries:
                self._fail(f"the indirect table of chain {head} goes on at {index} of {entries} entries")

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain.  ValueError when the device does not have it, or wrote more than it may."""
        self._check()
        head = chain.head
        room = self._out.get(head)
        if room is None:
            raise ValueError(f"chain {head} was not popped, or was returned already")
        if not 0 <= written <= min(room, U32):
            raise ValueError(f"{written} bytes written into chain {head}, which has room for {room}")
        del self._out[head]
        if self._in_order:
            self._done[head] = written, room
            return
        try:
            self._element(self._made, head, written)
        except BadAddress as error:
            self._fail(str(error))
        self._made = self._made + 1 & U16

    def _element(self, index: int, head: int, written: int) -> None:
        self._memory.write(self._own_ring + 8 * (index & self._mask), USED.pack(head, written))

    def publish(self) -> bool:
        """Make what was pushed visible; whether the driver wants a notification."""
        self._check()
        if self._done:
            try:
                self._in_turn()
            except BadAddress as error:
                self._fail(str(error))
        return self._show()

    def _in_turn(self) -> None:
        """IN_ORDER: write elements for what was pushed, up to the first chain that was not (VIRTIO 2.7.9).

        Chains that were used completely need no element of their own when a later one follows: the element of a batch
        names its last chain and lies where that of its first would.
        """
        order, done, first, batch = self._order, self._done, self._made, 0
        while order and order[0] in done:
            head = order.popleft()
            written, room = done.pop(head)
            batch += 1
            if written == room and order and order[0] in done:
                continue
            self._element(first, head, written)
            first, batch = first + batch & U16, 0
        self._made = first

    def want_notifications(self, wanted: bool) -> bool:
        """Ask for available-buffer notifications, or not.  True: something came meanwhile, pop it first."""
        return self._want(wanted)
