"""IOREQ servers of one target domain: which device model gets an access, and how its slot passes from hand to hand.

Source: Xen common/ioreq.c.  A slot goes NONE, READY, INPROCESS, RESP_READY, NONE; the device model may skip INPROCESS.
The word with the state is written by the side whose turn it is, and by no other.

Where Xen is silent or differs: the synchronisation page is a page of the device model's own memory, which it names by
XENMEM_acquire_resource (for a translated caller Xen asks for the frames to be named, too, and maps its own page there);
a server that has not placed it is passed over, since nobody could answer.  There are no reserved frames, so none are
reported.  Buffered requests never occur: the only accesses that Xen buffers are those of the standard VGA window and
the RTC's time offset, which these machines do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from hmx import ioreq
from hmx.errno import Errno
from hmx.ioreq import BufIoreq, IoreqState, IoreqType, RangeType
from hmx.memory import FAULT, PAGE_SIZE
from hmx.shm import fence
from hmx.trap import Arch, Kind, X86Reg
from hv_node.doors.handlers import Call
from hv_node.interrupts.evtchn import Channel
from hv_node.ioreq.ranges import Ranges, TooManyRanges

if TYPE_CHECKING:
    from hv_node.doors.personality import Otherwise
    from hv_node.hvm import Hvm, Vcpu

_MMIO_SIZES: Final = frozenset({1, 2, 4, 8})
_PIO_SIZES: Final = frozenset({1, 2, 4})
_RANGE_TYPES: Final = frozenset(int(kind) for kind in RangeType)
_ACCESS: Final[dict[int, tuple[RangeType, IoreqType, bool, frozenset[int]]]] = {
    Kind.LOAD: (RangeType.MEMORY, IoreqType.COPY, True, _MMIO_SIZES),
    Kind.STORE: (RangeType.MEMORY, IoreqType.COPY, False, _MMIO_SIZES),
    Kind.IN: (RangeType.PORT, IoreqType.PIO, True, _PIO_SIZES),
    Kind.OUT: (RangeType.PORT, IoreqType.PIO, False, _PIO_SIZES),
}
_LAST_STATE: Final = int(IoreqState.RESP_READY)


@dataclass(slots=True)
class Flight:
    """An access under way: the frame, what becomes of it if nobody answers, and the last state that was seen."""

    call: Call
    otherwise: Otherwise
    is_read: bool
    kind: IoreqType
    seen: int = IoreqState.NONE


@dataclass(slots=True, eq=False)
class Server:
    """One server: whose it is, what it answers, where its slots are."""

    ident: int
    emulator: Hvm
    buffering: BufIoreq
    ranges: dict[RangeType, Ranges]
    channels: list[Channel] = field(default_factory=list)  # the hypervisor's ends, one for each vCPU
    buffered: Channel | None = None
    enabled: bool = False
    page: int | None = None  # guest physical, in the emulator's memory
    flights: dict[int, Flight] = field(default_factory=dict)  # by vCPU

    def slot(self, vcpu: int) -> int:
        """Where the slot of a vCPU lies."""
        assert self.page is not None
        return self.page + vcpu * ioreq.SIZE


class Inside(Protocol):
    """A device that the hypervisor serves itself."""

    def covers(self, address: int, size: int) -> bool:
        """Whether an access is its own."""

    def load(self, address: int, size: int) -> int:
        """The guest reads."""

    def store(self, address: int, size: int, value: int) -> None:
        """The guest writes."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a target's servers need of their hypervisor: `finish` shows a vCPU's guest what was completed, the others
    say what became of a frame, or of a domain.
    """

    finish: Callable[[Vcpu], None]
    done: Callable[[Call, tuple[int, ...]], None]
    otherwise: Callable[[Call, Otherwise], None]
    cancel: Callable[[Call], None]
    crash: Callable[[Hvm, str], None]


class Servers:
    """The servers of `target`."""

    def __init__(self, target: Hvm, arch: Arch, outcomes: Outcomes) -> None:
        self.target = target
        self._arch = arch
        self._outcomes = outcomes
        self._by_id: dict[int, Server] = {}
        self.inside: Inside | None = None  # a device that the hypervisor serves itself

    def __iter__(self) -> Iterator[Server]:
        return iter(tuple(self._by_id.values()))

    # -- dm_op ----

    def create(self, emulator: Hvm, buffering: int) -> int:
        """The id of a new server.  -EINVAL: no such way of buffering (Arm: any but none); -ENOSPC: no more servers, or
        no free event channel.
        """
        if buffering > BufIoreq.ATOMIC or (buffering and self._arch is Arch.AARCH64):
            return -Errno.EINVAL
        ident = next((at for at in range(ioreq.MAX_SERVERS) if at not in self._by_id), None)
        if ident is None:
            return -Errno.ENOSPC
        ranges = {kind: Ranges(ioreq.MAX_RANGES) for kind in RangeType}
        server = Server(ident, emulator, BufIoreq(buffering), ranges)
        domid, events = emulator.domain.domid, self.target.evtchn
        for vcpu in self.target.vcpus:
            channel = events.allocate(vcpu.index, domid, self._notified(server, vcpu))
            if channel is not None:
                server.channels.append(channel)
        if buffering:
            server.buffered = events.allocate(0, domid, lambda: None)
        if len(server.channels) < len(self.target.vcpus) or (buffering and server.buffered is None):
            self._drop_channels(server)
            return -Errno.ENOSPC
        self._by_id[ident] = server
        return ident

    def of(self, emulator: Hvm, ident: int) -> Server | int:
        """The server, -ENOENT, or -EPERM for another emulator's."""
        server = self._by_id.get(ident)
        if server is None:
            return -Errno.ENOENT
        return server if server.emulator is emulator else -Errno.EPERM

    def map_range(self, server: Server, kind: int, first: int, last: int) -> int:
        """Give it a range.  -EINVAL: no such type, or backwards; -EEXIST: it has some of that; -ENOMEM: too many."""
        ranges = self._ranges(server, kind)
        if ranges is None or first > last:
            return -Errno.EINVAL
        if ranges.overlaps(first, last):
            return -Errno.EEXIST
        try:
            ranges.add(first, last)
        except TooManyRanges:
            return -Errno.ENOMEM
        return 0

    def unmap_range(self, server: Server, kind: int, first: int, last: int) -> int:
        """Take a range from it.  -EINVAL as above; -ENOENT: not all of it is there; -ENOMEM: too many pieces."""
        ranges = self._ranges(server, kind)
        if ranges is None or first > last:
            return -Errno.EINVAL
        if not ranges.contains(first, last):
            return -Errno.ENOENT
        try:
            ranges.remove(first, last)
        except TooManyRanges:
            return -Errno.ENOMEM
        return 0

    def _ranges(self, server: Server, kind: int) -> Ranges | None:
        if kind not in _RANGE_TYPES or (self._arch is Arch.AARCH64 and kind != RangeType.MEMORY):
            return None
        return server.ranges[RangeType(kind)]

    def set_state(self, server: Server, enabled: bool) -> None:
        """Offer it accesses, or no more; those under way go on."""
        server.enabled = enabled
        if enabled:
            self._show_ports(server)

    def place(self, server: Server, gfn: int) -> int:
        """Use page `gfn` of the emulator's memory as synchronisation page, cleared.  -EINVAL: it has no such page;
        -EBUSY: accesses are under way in another.
        """
        memory = server.emulator.domain.memory
        if not 0 <= gfn < memory.size // PAGE_SIZE or not memory.write(0, gfn * PAGE_SIZE, bytes(PAGE_SIZE)):
            return -Errno.EINVAL
        if server.flights:
            return -Errno.EBUSY
        server.page = gfn * PAGE_SIZE
        if server.enabled:
            self._show_ports(server)
        return 0

    def _show_ports(self, server: Server) -> None:
        """Write each vCPU's port into its slot."""
        if server.page is None:
            return
        for index, channel in enumerate(server.channels):
            at = server.slot(index) + ioreq.PORT_OFFSET
            server.emulator.domain.memory.write(0, at, channel.port.to_bytes(4, "little"))

    def destroy(self, server: Server) -> None:
        """There is no such server any more: whoever waits for it goes on as if there had been none."""
        del self._by_id[server.ident]
        for index in tuple(server.flights):
            self._release(server, index)
        self._drop_channels(server)

    def _drop_channels(self, server: Server) -> None:
        for channel in (*server.channels, *((server.buffered,) if server.buffered is not None else ())):
            channel.owner.drop(channel)

    def forget(self) -> None:
        """The target is gone: nobody waits any more."""
        for server in self:
            server.flights.clear()
            self._drop_channels(server)
        self._by_id.clear()

    # -- an access ----

    def select(self, kind: RangeType, first: int, last: int) -> Server | None:
        """The server of the highest id that is enabled and has the whole access."""
        for ident in sorted(self._by_id, reverse=True):
            server = self._by_id[ident]
            if server.enabled and server.ranges[kind].contains(first, last):
                return server
        return None

    def take(self, call: Call, otherwise: Otherwise) -> bool:
        """Hand an access that nobody inside serves to a server.  False: none wants it.

        A frame that overtook one that waits (experimental: ASYNC) finds the vCPU's only slot taken and is canceled.
        """
        if self.inside is not None and self._serve_inside(self.inside, call):
            return True
        access = _ACCESS.get(call.kind)
        if access is None:
            return False
        space, kind, is_read, sizes = access
        if call.size not in sizes:
            return False
        server = self.select(space, call.selector, call.selector + call.size - 1)
        if server is None or server.page is None:
            return False
        if call.vcpu.blocked is not None:
            self._outcomes.cancel(call)
            return True
        return self._send(server, Flight(call, otherwise, is_read, kind))

    def _serve_inside(self, device: Inside, call: Call) -> bool:
        """An access to a device of the hypervisor's own is answered at once."""
        if call.kind not in (Kind.LOAD, Kind.STORE) or call.size not in _MMIO_SIZES:
            return False
        if not device.covers(call.selector, call.size):
            return False
        if call.kind == Kind.LOAD:
            self._outcomes.done(call, self._register(call, device.load(call.selector, call.size)))
        else:
            device.store(call.selector, call.size, call.slots[0] & (1 << 8 * call.size) - 1)
            self._outcomes.done(call, ())
        return True

    def _register(self, call: Call, data: int) -> tuple[int, ...]:
        """The register after a load.  On x86 one of less than 32 bits replaces part of it only."""
        mask = (1 << 8 * call.size) - 1
        partial = call.size < 4 and self._arch is Arch.X86_64
        return (data & mask | (call.slots[X86Reg.RAX] & ~mask if partial else 0),)

    def _send(self, server: Server, flight: Flight) -> bool:
        """Fill the slot, NONE to READY, and notify."""
        call = flight.call
        index, memory = call.vcpu.index, server.emulator.domain.memory
        at, channel = server.slot(index), server.channels[index]
        fields = memory.unpack(ioreq.SLOT, 0, at)
        if fields is FAULT:
            return False
        found = ioreq.unpack(fields)
        if found.state != IoreqState.NONE or found.port != channel.port:
            self._crash(f"device model set bad I/O state {found.state}, event channel {found.port}", call)
            return True
        data = 0 if flight.is_read else call.slots[0] & (1 << 8 * call.size) - 1
        memory.write(0, at, ioreq.head(call.selector, data, call.size, channel.port))
        fence()
        self._store_state(server, index, flight, IoreqState.READY)
        flight.seen = IoreqState.READY
        server.flights[index] = flight
        call.vcpu.seq = call.vcpu.blocked = call.seq
        if channel.peer is not None:
            channel.peer.owner.raised(channel.peer.notify_vcpu, channel.peer.port)
        return True

    def _store_state(self, server: Server, index: int, flight: Flight, state: int) -> None:
        word = ioreq.last_word(state, flight.is_read, flight.kind)
        server.emulator.domain.memory.write(0, server.slot(index) + ioreq.STATE_OFFSET, ioreq.LAST_WORD.pack(word))

    def _notified(self, server: Server, vcpu: Vcpu) -> Callable[[], None]:
        def look() -> None:
            self._look(server, vcpu.index)

        return look

    def _look(self, server: Server, index: int) -> None:
        """The device model says that it has done something with a slot (Xen's wait_for_io)."""
        flight = server.flights.get(index)
        if flight is None:
            return
        fields = server.emulator.domain.memory.unpack(ioreq.SLOT, 0, server.slot(index))
        if fields is FAULT:
            self._release(server, index)
            return
        found = ioreq.unpack(fields)
        if found.state == IoreqState.NONE:  # as Xen has it when a device model dies: nobody answered
            self._release(server, index)
        elif not flight.seen <= found.state <= _LAST_STATE:
            del server.flights[index]
            self._crash(f"weird I/O request state transition {flight.seen} -> {found.state}", flight.call)
        elif found.state == IoreqState.RESP_READY:
            del server.flights[index]
            self._store_state(server, index, flight, IoreqState.NONE)
            self._complete(flight, found.data)
        else:
            flight.seen = found.state

    def _complete(self, flight: Flight, data: int) -> None:
        call = flight.call
        self.target.counters.ioreqs += 1
        self._outcomes.done(call, self._register(call, data) if flight.is_read else ())
        self._go_on(call)

    def _release(self, server: Server, index: int) -> None:
        """Nobody answers any more: as if there were no server."""
        flight = server.flights.pop(index)
        self._outcomes.otherwise(flight.call, flight.otherwise)
        self._go_on(flight.call)

    def _go_on(self, call: Call) -> None:
        vcpu = call.vcpu
        if vcpu.blocked == call.seq:
            vcpu.blocked = None
        self._outcomes.finish(vcpu)

    def _crash(self, words: str, call: Call) -> None:
        """Xen's domain_crash: no instruction of the target is executed any more."""
        self._outcomes.crash(self.target, f"vCPU {call.vcpu.index}: {words}")
