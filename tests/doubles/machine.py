"""A hypervisor core and its guests' ends of the shared pages, in one process, without any loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hmx import xen
from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.trap import Arch, Completion, Kind, int32
from hmx.vcpu_area import AREA_SIZE, GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hvm import Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name


class Machine:
    """`guest(domid)` makes a domain; `call` and friends execute frames of its vCPU 0 at once."""

    def __init__(
        self,
        cmdline: str = "on,mac-permissive",
        xsm: str = "dummy",
        *,
        personality: str = "xen",
        arch: Arch = Arch.X86_64,
        cpu: str = "intel",
        doors: Sequence[str] = ("hypercall", "hvc"),
        notifications: Sequence[str] = (),
    ) -> None:
        options, _ = parse_options(cmdline)
        self.arch = arch
        self.events: list[tuple[Any, ...]] = []
        self.core = Hypervisor(
            PERSONALITIES[personality, arch],
            cpu,
            options,
            xsm_by_name(xsm),
            lambda *e: self.events.append(e),
            doors=doors,
            notifications=notifications,
        )

    def guest(self, domid: int, *, pages: int = 64, vcpus: int = 1, is_control: bool = False) -> Guest:
        return Guest(self, domid, pages, vcpus, is_control)


class Guest:
    """One domain with scratch pages: 1 arguments, 2 more arguments, 3 gfn lists, 4.. payload, 16.. rings."""

    def __init__(self, machine: Machine, domid: int, pages: int, vcpus: int, is_control: bool) -> None:
        self.machine = machine
        self.domid = domid
        self.ram = bytearray(pages * PAGE_SIZE)
        areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(vcpus)]
        self.hvm = machine.core.create_domain(domid, MappedMemory(self.ram), areas, is_control=is_control)
        self.sides = [GuestSide(area, machine.arch) for area in areas]
        self.side = self.sides[0]
        self.vcpu: Vcpu = self.hvm.vcpus[0]

    def submit(self, kind: int, regs: tuple[int, ...] = (), **fields: int) -> int:
        """Put a frame into the submission ring without running it."""
        return self.side.submit(kind, regs, **fields)

    def run(self) -> list[Completion]:
        """Publish, let the hypervisor run until it has nothing to do, collect the completions."""
        self.side.publish()
        while self.machine.core.run(self.vcpu):
            pass
        return [self.side.collect() for _ in range(self.side.completed())]

    def trap(self, kind: int, regs: tuple[int, ...] = (), **fields: int) -> Completion:
        """Execute one frame."""
        self.submit(kind, regs, **fields)
        (done,) = self.run()
        return done

    @staticmethod
    def regs(number: int, *arguments: int) -> tuple[int, ...]:
        """The register file of a 64-bit Xen hypercall."""
        a = (*arguments, 0, 0, 0, 0, 0)
        return (number, 0, 0, a[2], a[1], a[0], a[4], 0, a[3])

    def call(self, number: int, *arguments: int, **fields: int) -> int:
        """A hypercall; the result as int32."""
        return int32(self.trap(Kind.VMCALL, self.regs(number, *arguments), **fields).regs[0])

    def argo(self, cmd: int, *arguments: int) -> int:
        """argo_op."""
        return self.call(xen.Hypercall.ARGO_OP, cmd, *arguments)

    # -- what drivers do ----

    def register(self, port: int, partner: int = DOMID_ANY, ring_len: int = 4032, gfn: int = 16, flags: int = 0) -> int:
        count = -(-(ring_len + 64) // PAGE_SIZE)
        abi.REGISTER_RING.pack_into(self.ram, PAGE_SIZE, port, partner, 0, ring_len)
        for at in range(count):
            abi.GFN.pack_into(self.ram, 3 * PAGE_SIZE + 8 * at, gfn + at)
        return self.argo(Op.REGISTER_RING, PAGE_SIZE, 3 * PAGE_SIZE, count, flags)

    def send_regs(self, domid: int, port: int, payload: bytes, src_port: int = 7, slot: int = 0) -> tuple[int, ...]:
        """Registers of a sendv whose arguments are put in place; `slot` keeps several sends apart."""
        base, data = PAGE_SIZE + 64 * slot, 4 * PAGE_SIZE + 256 * slot
        abi.SEND_ADDR.pack_into(self.ram, base, src_port, DOMID_ANY, 0, port, domid, 0)
        abi.IOV.pack_into(self.ram, base + 16, data, len(payload), 0)
        self.ram[data : data + len(payload)] = payload
        return self.regs(xen.Hypercall.ARGO_OP, Op.SENDV, base, base + 16, 1, 0xABCD)

    def send(self, domid: int, port: int, payload: bytes) -> int:
        return int32(self.trap(Kind.VMCALL, self.send_regs(domid, port, payload)).regs[0])

    def bind_virq(self, virq: int = abi.VIRQ_ARGO, vcpu: int = 0) -> int:
        """The port, or a negated errno."""
        xen.BIND_VIRQ.pack_into(self.ram, PAGE_SIZE, virq, vcpu, 0)
        ret = self.evtchn(xen.EvtchnOp.BIND_VIRQ)
        return ret if ret else int(xen.BIND_VIRQ.unpack_from(self.ram, PAGE_SIZE)[2])

    def evtchn(self, op: int, *fields: int) -> int:
        """event_channel_op with its structure in page 1; `fields` u32s, none leaves the page as it is."""
        for at, value in enumerate(fields):
            self.ram[PAGE_SIZE + 4 * at : PAGE_SIZE + 4 * at + 4] = value.to_bytes(4, "little")
        return self.call(xen.Hypercall.EVENT_CHANNEL_OP, op, PAGE_SIZE)


EINVAL, EEXIST, ENOENT = -Errno.EINVAL, -Errno.EEXIST, -Errno.ENOENT
