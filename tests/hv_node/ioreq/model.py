"""A device model without a kernel: dm_op and its kin by hand, over the synchronous machine of the doubles."""

from __future__ import annotations

from hmx import ioreq, xen
from hmx.ioreq import Dmop, IoreqState, Memop
from hmx.memory import PAGE_SIZE
from hmx.trap import Completion, Kind
from tests.doubles.machine import Guest, Machine

TARGET, EMULATOR = 1, 2
WINDOW = 0xFEB0_0000
SYNC = 20  # page of the emulator
ARGS = 1 * PAGE_SIZE
BUFS = 2 * PAGE_SIZE
LISTS = 3 * PAGE_SIZE


class DeviceModel:
    """The emulator `me` for `target`."""

    def __init__(self, me: Guest, target: Guest) -> None:
        self.me = me
        self.target = target
        self.ident = -1
        self.ports: dict[int, int] = {}

    def dm(self, op: int, *fields: int, target: int | None = None, second: tuple[int, int] | None = None) -> int:
        data = ioreq.DMOP_HEAD.pack(op, 0) + ioreq.LAYOUT_OF[Dmop(op)].pack(*fields)
        self.me.ram[ARGS : ARGS + len(data)] = data
        bufs = [(ARGS, len(data))] + ([second] if second else [])
        for at, buf in enumerate(bufs):
            self.me.ram[BUFS + 16 * at : BUFS + 16 * at + 16] = ioreq.DMOP_BUF.pack(*buf)
        domid = self.target.domid if target is None else target
        return self.me.call(xen.Hypercall.DM_OP, domid, len(bufs), BUFS)

    def out(self, op: Dmop) -> tuple[int, ...]:
        return ioreq.LAYOUT_OF[op].unpack_from(self.me.ram, ARGS + ioreq.DMOP_HEAD.size)

    def create(self, buffering: int = 0) -> int:
        ret = self.dm(Dmop.CREATE_IOREQ_SERVER, buffering, 0, 0, 0)
        if not ret:
            self.ident = self.out(Dmop.CREATE_IOREQ_SERVER)[3]
        return ret

    def map(self, first: int, last: int, kind: int = ioreq.RangeType.MEMORY, ident: int | None = None) -> int:
        return self.dm(Dmop.MAP_IO_RANGE, self.ident if ident is None else ident, 0, kind, first, last)

    def unmap(self, first: int, last: int, kind: int = ioreq.RangeType.MEMORY) -> int:
        return self.dm(Dmop.UNMAP_IO_RANGE, self.ident, 0, kind, first, last)

    def enable(self, enabled: int = 1) -> int:
        return self.dm(Dmop.SET_IOREQ_SERVER_STATE, self.ident, enabled, 0)

    def destroy(self) -> int:
        return self.dm(Dmop.DESTROY_IOREQ_SERVER, self.ident, 0)

    def memory(self, op: int, data: bytes) -> int:
        self.me.ram[ARGS : ARGS + len(data)] = data
        return self.me.call(xen.Hypercall.MEMORY_OP, op, ARGS)

    def acquire(self, gfn: int = SYNC, frame: int = ioreq.FRAME_IOREQ, count: int = 1) -> int:
        self.me.ram[LISTS : LISTS + 8] = gfn.to_bytes(8, "little")
        data = ioreq.ACQUIRE_RESOURCE.pack(self.target.domid, 0, self.ident, count, 0, frame, LISTS)
        return self.memory(Memop.ACQUIRE_RESOURCE, data)

    def bind(self, remote: int, domid: int | None = None) -> int:
        """bind_interdomain: the local port, or a negated errno."""
        domid = self.target.domid if domid is None else domid
        self.me.ram[ARGS : ARGS + 12] = xen.BIND_INTERDOMAIN.pack(domid, 0, remote, 0)
        ret = self.me.call(xen.Hypercall.EVENT_CHANNEL_OP, xen.EvtchnOp.BIND_INTERDOMAIN, ARGS)
        return ret or xen.BIND_INTERDOMAIN.unpack_from(self.me.ram, ARGS)[3]

    def send(self, port: int) -> int:
        return self.me.evtchn(xen.EvtchnOp.SEND, port)

    def start(self, first: int = WINDOW, last: int = WINDOW + 0x1FF) -> None:
        """Everything until accesses come."""
        assert self.create() == 0
        assert self.map(first, last) == 0
        assert self.acquire() == 0
        assert self.enable() == 0
        self.bind_all()

    def bind_all(self) -> None:
        for index in range(len(self.target.hvm.vcpus)):
            self.ports[index] = self.bind(self.slot(index).port)
            assert self.ports[index] > 0

    def at(self, vcpu: int = 0) -> int:
        return SYNC * PAGE_SIZE + vcpu * ioreq.SIZE

    def slot(self, vcpu: int = 0) -> ioreq.Ioreq:
        return ioreq.unpack(ioreq.SLOT.unpack_from(self.me.ram, self.at(vcpu)))

    def set_state(self, state: int, vcpu: int = 0) -> None:
        at = self.at(vcpu) + ioreq.STATE_OFFSET
        word = int.from_bytes(self.me.ram[at : at + 4], "little")
        self.me.ram[at : at + 4] = ioreq.with_state(word, state).to_bytes(4, "little")

    def answer(self, data: int = 0, vcpu: int = 0) -> int:
        self.me.ram[self.at(vcpu) + 8 : self.at(vcpu) + 16] = data.to_bytes(8, "little")
        self.set_state(IoreqState.RESP_READY, vcpu)
        return self.send(self.ports[vcpu])


def pair(vcpus: int = 1, **machine: object) -> tuple[Machine, Guest, DeviceModel]:
    """A target and a control domain that emulates for it."""
    world = Machine(**machine)  # type: ignore[arg-type]
    target = world.guest(TARGET, vcpus=vcpus)
    return world, target, DeviceModel(world.guest(EMULATOR, is_control=True), target)


def access(
    target: Guest, kind: int = Kind.LOAD, address: int = WINDOW, size: int = 4, value: int = 0
) -> list[Completion]:
    """Submit an access and run: its completion, or nothing while it waits."""
    target.submit(kind, (value,), address=address, size=size)
    return target.run()
