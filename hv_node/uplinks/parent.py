"""A nested hypervisor's uplink: the hypervisor around it, by that one's own Argo.

The nested hypervisor is a domain there.  It finds a door, registers a downlink ring for each of its vCPUs, sends
envelopes by sendv to the uplink port, and takes what the parent wrote into its rings.  Everything is a submission and,
later, a completion: a parent that is stopped or full delays, and nothing here waits for it.

Sends leave in order, as a LINK chain: after one that the parent did not take, the rest come back canceled and all are
sent again, when the parent says that there is room or after a while.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from broker.envelope import Envelope
from hmx.argo.abi import DOMID_ANY, IOV, REGISTER_RING, SEND_ADDR, Op
from hmx.argo.consumer import Consumer, Message, RingCorrupt
from hmx.argo.ring import ring_len_for
from hmx.doors import Convention
from hmx.errno import Errno
from hmx.guestside import Caller, Instruction, candidates, door_call, is_there, knock
from hmx.memory import PAGE_SIZE, Window
from hmx.nested import DOMID_XEN, DOWNLINK_PORT, MAX_CHUNK, MESSAGE_TYPE, UPLINK_PORT
from hmx.trap import Arch, Completion, FrameFlag, Outcome, int32
from hmx.vcpu_area import GuestSide
from hv_node.uplinks.wire import ANSWERS, Assembler, Whole, WireError, header_of

QUEUE_RECORDS: Final = 1024
QUEUE_BYTES: Final = 1 << 26
TURN: Final = 64  # messages of one ring in one turn
AGAIN_NS: Final = 100_000_000
"""A send that was turned away is tried again after this long, should the parent's word have been missed."""

_SLOTS: Final = 8  # chunks under way
_SLOT_PAGES: Final = MAX_CHUNK // PAGE_SIZE + 1
_PAYLOAD: Final = 64  # where in a slot the chunk lies, behind the addresses and the iov
_ARGUMENTS: Final = PAGE_SIZE  # page 0 is nobody's
_GFNS: Final = _ARGUMENTS + 64
_MOST_RING_PAGES: Final = 256
_LEAST_RING_PAGES: Final = 4
_SEND: Final = struct.Struct(SEND_ADDR.format + IOV.format.lstrip("<"))
_LINK: Final = int(FrameFlag.LINK)


class NoParent(Exception):
    """The parent offers no way up; the message says what it lacks."""


class Placed(NamedTuple):
    """Where the domain's memory goes: pages of one slot, and of one ring, and how many slots."""

    slots: int
    slot_pages: int
    first_ring: int
    ring_pages: int

    @property
    def chunk(self) -> int:
        """Bytes of a chunk that a slot takes, header included."""
        return min(MAX_CHUNK, self.slot_pages * PAGE_SIZE - _PAYLOAD)


def place(pages: int, vcpus: int) -> Placed:
    """Divide `pages` of memory: an argument page, slots, a ring for each vCPU.  NoParent when they are too few."""
    slots, slot_pages = _SLOTS, _SLOT_PAGES
    while slots > 1 and slots * slot_pages > pages // 2:
        slots //= 2
    while slot_pages > 1 and slots * slot_pages > pages // 2:
        slot_pages //= 2
    first = 2 + slots * slot_pages
    ring_pages = min(_MOST_RING_PAGES, (pages - first) // vcpus)
    if ring_pages < _LEAST_RING_PAGES:
        raise NoParent(f"{pages} pages of memory are too few for the downlink rings of {vcpus} vCPUs")
    return Placed(slots, slot_pages, first, ring_pages)


class _Sent(NamedTuple):
    """A frame under way: a chunk from its slot, or (no slot) a notify."""

    seq: int  # of the frame
    slot: int | None
    size: int


class ParentUplink:
    """The uplink of a nested hypervisor.  `areas` are its vCPUs; `ring(vcpu)` wakes the parent.

    `on_envelope(envelope, payload)` gets what comes from above, `on_up()` runs once when the way is open, `on_room()`
    when a send that was refused may be repeated, `on_event(code, *fields)` tells of what a person may want to know.
    """

    def __init__(
        self,
        ram: bytearray | memoryview,
        areas: Sequence[GuestSide],
        ring: Callable[[int], None],
        arch: Arch,
        cpu: str,
        abi: str,
    ) -> None:
        self.on_envelope: Callable[[Envelope, bytes], object] = lambda _envelope, _payload: None
        self.on_up: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_event: Callable[..., None] = lambda *_: None
        self.counters: Counter[str] = Counter()
        self.up = False
        self._ram = memoryview(ram).cast("B")
        self._areas = areas
        self._calls = Caller(areas[0], lambda: ring(0))
        self._ring_bell = ring
        self._doors = candidates(arch, cpu, abi)
        self._door: Convention | None = None
        self._placed = place(len(self._ram) // PAGE_SIZE, len(areas))
        self._rings: list[Consumer] = []
        self._arrived: dict[int, Message] = {}
        self._down = Assembler()
        self._queue: deque[Whole] = deque()
        self._queued_bytes = 0
        self._full = False
        self._seq = 0
        self._free = list(range(self._placed.slots))
        self._under_way: deque[_Sent] = deque()
        self._chunks: deque[tuple[int, int]] = deque()  # (slot, size) to be sent again, before anything new
        self._again: list[tuple[int, int]] = []  # of the chain whose end is awaited
        self._stalled = self._wait = False  # a send was not taken: wait for the rest of its chain; then for a word
        self._again_ns: int | None = None
        self._notify = False  # room was made in a ring
        self._steps = self._begin()
        self._awaited: int | None = None
        self._step(None)

    # -- coming up ----

    def _begin(self) -> Generator[Instruction, Completion, None]:
        """Find a door and register the rings; each instruction that is yielded gets its completion."""
        for row in self._doors:
            done = None
            for instruction in knock(row):
                done = yield instruction
            if done is not None and is_there(row, done):
                self._door = row
                break
        if self._door is None:
            raise NoParent(f"none of its doors leads to Argo: {', '.join(row.door for row in self._doors)}")
        pages = self._placed.ring_pages
        ring_len = ring_len_for(pages)
        for vcpu in range(len(self._areas)):
            first = self._placed.first_ring + vcpu * pages
            self._put(_ARGUMENTS, REGISTER_RING.pack(DOWNLINK_PORT + vcpu, DOMID_XEN, 0, ring_len))
            self._put(_GFNS, struct.pack(f"<{pages}Q", *range(first, first + pages)))
            done = yield door_call(self._door, Op.REGISTER_RING, _ARGUMENTS, _GFNS, pages, 0)
            ret = self._result(done)
            if ret:
                raise NoParent(f"it refuses the downlink ring of vCPU {vcpu}: {ret}")
            self._rings.append(Consumer(Window(self._ram, first * PAGE_SIZE, pages * PAGE_SIZE), ring_len))

    def _step(self, done: Completion | None) -> None:
        try:
            instruction = next(self._steps) if done is None else self._steps.send(done)
        except StopIteration:
            self._awaited = None
            self.up = True
            self.on_up()
        else:
            self._awaited = self._calls.submit(instruction)

    def _put(self, at: int, data: bytes) -> None:
        self._ram[at : at + len(data)] = data

    def _result(self, done: Completion) -> int:
        if done.outcome == Outcome.CANCELED:
            return -Errno.ECANCELED
        if done.outcome != Outcome.DONE or self._door is None:
            return -Errno.ENOSYS
        return int32(done.regs[self._door.result])

    # -- sending ----

    def send(self, envelope: Envelope, payload: bytes = b"") -> bool:
        """Send an envelope upwards, in order.  False: too much waits already, or the way is not open yet."""
        full = len(self._queue) >= QUEUE_RECORDS or self._queued_bytes > QUEUE_BYTES
        if not self.up or (full and envelope.kind not in ANSWERS):
            self._full = self.up
            self.counters["refused"] += 1
            return False
        whole = Whole(envelope, payload)
        self._queue.append(whole)
        self._queued_bytes += whole.size
        self.counters["up"] += 1
        self._submit()
        return True

    def _submit(self) -> None:
        """Submit what may go: a chain of chunks, each LINKed to the one before it as long as that is under way."""
        if not self.up or self._stalled:
            return
        if self._notify and self._calls.room() and (not self._wait or not self._under_way):
            self._notify = False
            self._lay(door_call(self._parent_door, Op.NOTIFY, 0, 0, 0, 0), None, 0)
        while not self._wait and self._calls.room() and (self._chunks or (self._queue and self._free)):
            slot, size = self._chunks.popleft() if self._chunks else self._fill()
            at = self._address(slot)
            self._lay(door_call(self._parent_door, Op.SENDV, at, at + SEND_ADDR.size, 1, MESSAGE_TYPE), slot, size)
        self._calls.flush()

    @property
    def _parent_door(self) -> Convention:
        assert self._door is not None, "the way is open"
        return self._door

    def _lay(self, instruction: Instruction, slot: int | None, size: int) -> None:
        seq = self._calls.submit(instruction, _LINK if self._under_way else 0)
        self._under_way.append(_Sent(seq, slot, size))

    def _address(self, slot: int) -> int:
        return (2 + slot * self._placed.slot_pages) * PAGE_SIZE

    def _fill(self) -> tuple[int, int]:
        """Lay the next chunk into a free slot; the slot and the chunk's size."""
        slot, whole = self._free.pop(), self._queue[0]
        header, body = whole.chunk(self._seq, self._placed.chunk)
        self._seq = (self._seq + 1) & 0xFFFF_FFFF
        at, size = self._address(slot), len(header) + len(body)
        self._put(at, _SEND.pack(UPLINK_PORT, DOMID_ANY, 0, UPLINK_PORT, DOMID_ANY, 0, at + _PAYLOAD, size, 0))
        self._put(at + _PAYLOAD, header)
        self._ram[at + _PAYLOAD + len(header) : at + _PAYLOAD + size] = body
        whole.took(body)
        if whole.done:
            self._queue.popleft()
            self._queued_bytes -= whole.size
        return slot, size

    def _completed(self, done: Completion) -> None:
        if self._awaited is not None:
            self._awaited = None
            self._step(done)
            return
        sent = self._under_way.popleft()
        ret = self._result(done)
        if ret in (-Errno.EAGAIN, -Errno.ECANCELED):
            self._stalled = True
            if ret == -Errno.EAGAIN:
                self._wait = True
                self.counters["turned away"] += 1
            if sent.slot is None:
                self._notify = True
            else:
                self._again.append((sent.slot, sent.size))
        elif sent.slot is not None:
            self._free.append(sent.slot)
            if ret < 0:  # not for lack of room: repeating it would change nothing, and its followers can go on
                self.counters["failed"] += 1
                self.on_event("uplink-refused", ret)
        if self._stalled and not self._under_way:
            self._stalled = False
            self._chunks.extendleft(reversed(self._again))
            self._again.clear()

    # -- receiving ----

    def _receive(self) -> int:
        """Take what lies in the rings, bounded, and pass it on in the order in which it was written."""
        taken = 0
        for ring in self._rings:
            try:
                messages = ring.drain(TURN)
            except RingCorrupt as error:
                self.on_event("downlink-corrupt", str(error))
                ring.recover()
                continue
            taken += len(messages)
            for message in messages:
                self._arrive(message)
        if taken:
            self._notify = True
            self._deliver()
        return taken

    def _arrive(self, message: Message) -> None:
        try:
            if message.source_domid != DOMID_XEN or message.message_type != MESSAGE_TYPE:
                raise WireError(f"from domain {message.source_domid:#x}, type {message.message_type:#x}")
            self._arrived[header_of(message.payload).seq] = message
        except WireError as error:
            self._malformed(error)

    def _deliver(self) -> None:
        while (message := self._arrived.pop(self._down.expected, None)) is not None:
            try:
                found = self._down.look(message.payload)
            except WireError as error:
                self._malformed(error)
                self._down.skip(message.payload)
                continue
            self._down.take(message.payload)
            if found is not None:
                self.counters["down"] += 1
                self.on_envelope(*found)

    def _malformed(self, error: WireError) -> None:
        self.counters["malformed"] += 1
        self.on_event("downlink-malformed", str(error))

    # -- the owner's loop ----

    def turn(self, now_ns: int) -> bool:
        """One bounded turn: answers, interrupts, rings, and what may be sent.  Whether anything was there.

        NoParent while coming up, when the parent offers no way.
        """
        busy = False
        for done in self._calls.collect():
            busy = True
            self._completed(done)
        for vcpu, area in enumerate(self._areas):
            while area.posted():
                area.take_post()
                busy = True
                self._resume()
            if area.more_posts():
                self._ring_bell(vcpu)
        if self._receive():
            busy = True
        if self._wait and self._again_ns is None:
            self._again_ns = now_ns + AGAIN_NS
        if self._again_ns is not None and now_ns >= self._again_ns:
            self._resume()
        self._submit()
        self._calls.flush()
        if self._full and len(self._queue) <= QUEUE_RECORDS // 2 and self._queued_bytes <= QUEUE_BYTES // 2:
            self._full = False
            self.on_room()
        return busy

    def _resume(self) -> None:
        """The parent has a word for us, room perhaps; or it is time to try again."""
        self._wait, self._again_ns = False, None

    def next_deadline(self) -> int | None:
        """When `turn` has something to do though nobody rings."""
        return self._again_ns

    def sleep(self) -> bool:
        """Have the parent ring from now on.  False: something is there already, take a turn."""
        if all(area.sleep() for area in self._areas):
            return True
        self.awake()
        return False

    def awake(self) -> None:
        """While the owner looks by itself the parent need not ring."""
        for area in self._areas:
            area.awake()
