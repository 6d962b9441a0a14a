"""How a guest's kernel has itself interrupted for Argo: event channels, a line, or interrupts of its own.

The mode is what the topology asks for, or the best that the hypervisor offers.  Whatever it is, the effect is the same:
the drivers' handler runs at an interruption point of a vCPU.  Modes: hmx/notify.py; event channels: Xen
public/event_channel.h.
"""

from __future__ import annotations

from typing import Final

from guest_node.kernel.argo import Argo, hypercall_trap
from guest_node.kernel.controllers import PRIORITY_VECTORS, Apics, Controller, GicDriver, Handler
from guest_node.kernel.ipi import connect_apics
from guest_node.kernel.probe import Probe
from guest_node.vcpu import Vcpu
from hmx import xen
from hmx.argo.abi import VIRQ_ARGO
from hmx.argo.calls import RingMemory
from hmx.cpu.evtchn import EventChannelPage
from hmx.doors import Convention
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.notify import LINE_IRQ, MODE_OF, UNKNOWN_MODE, Mode, ModeRow, NotifyOp
from hmx.trap import Outcome, int32
from hmx.xen import EvtchnOp, Hypercall

BY_PREFERENCE: Final = ("vector-per-cpu", "vector-per-ring", "vectors-by-priority", "line")
_NOTHING: Final = "no hypervisor with event channels, and the door offers no other notification"


class NoInterrupts(Exception):
    """The hypervisor offers no way that this guest can use; the message says what was tried."""


class Interrupts:
    """The notification of one guest."""

    def __init__(self, vcpus: tuple[Vcpu, ...], argo: Argo, probe: Probe) -> None:
        self.vcpus = vcpus
        self.argo = argo
        self.mode = ""
        self.said = ""  # why the mode is another than was asked for
        self.page: EventChannelPage | None = None
        self.virq_port = 0
        self.controller: Controller = Apics() if vcpus[0].gic is None else GicDriver(vcpus[0])
        self._probe = probe
        self._rings = 0
        if all(vcpu.apic is not None for vcpu in vcpus):
            connect_apics(vcpus)

    async def choose(self, wanted: str) -> None:
        """Arrange `wanted`, or the best for "auto".  Raises NoInterrupts."""
        if wanted != "auto":
            await self._arrange(wanted)
            return
        refusals: dict[str, None] = {}
        for name in self._candidates():
            try:
                await self._arrange(name)
            except NoInterrupts as error:
                refusals[str(error)] = None
            else:
                if refusals:
                    self.said = "; ".join([*refusals, f"this guest uses {name} instead"])
                return
        raise NoInterrupts("; ".join(refusals) or _NOTHING)

    async def _arrange(self, wanted: str) -> None:
        row = MODE_OF[wanted]
        if row.name not in ("virq", "line") and not self._has_controllers():
            self.said = f"{wanted} needs a local APIC, and this guest has none: it uses the line instead"
            row = MODE_OF["line"]
        if row.mode is Mode.VIRQ:
            await self._bind_virq()
        elif row.mode is Mode.LINE:
            await self.controller.take_line(self.vcpus[0], self.argo.virq)
            await self._set(row, 0, self.controller.line)
        else:
            # Rings with interrupts of their own share this one for room in their peers' rings.
            per_cpu = MODE_OF["vector-per-cpu"]
            for vcpu in self.vcpus if row is per_cpu else self.vcpus[:1]:
                await self.controller.take_per_cpu(vcpu, self.argo.virq)
                await self._set(per_cpu, vcpu.index, self.controller.per_cpu)
            if row.own_vectors:
                self.argo.ring_interrupt = self._of_next_ring
        self.mode = row.name

    def _candidates(self) -> list[str]:
        """What may do, the best first: VIRQ_ARGO where there is a Xen, then what the door is known to offer.

        Xen's own call describes nothing: behind it, each is tried until one is not refused.
        """
        features, described = self._probe.features(), self._probe.describes()
        event_channels = self._probe.xen is not None and self._probe.own_call() is not None
        return ["virq"] * event_channels + [
            name
            for name in BY_PREFERENCE
            if (features & MODE_OF[name].feature or not described) and (name == "line" or self._has_controllers())
        ]

    def _has_controllers(self) -> bool:
        return all(vcpu.apic is not None or vcpu.gic is not None for vcpu in self.vcpus)

    async def _set(self, row: ModeRow, vcpu: int, number: int) -> None:
        assert row.mode is not None
        ret = await self.argo.call(NotifyOp.SET_NOTIFICATION, row.mode, vcpu, number, 0)
        if ret < 0:
            raise NoInterrupts(f"the hypervisor refuses notification {row.name!r}: {errno_name(ret)}")

    async def _of_next_ring(self) -> tuple[int, int]:
        """(address, data) of the interrupt of the ring that is registered next: vCPUs in turn, then numbers."""
        index, self._rings = self._rings, self._rings + 1
        urgent = self.mode == "vectors-by-priority"
        vcpu = self.vcpus[index // len(PRIORITY_VECTORS) % len(self.vcpus) if urgent else index % len(self.vcpus)]
        return await self.controller.message(vcpu, index, urgent, self.argo.virq)

    async def place_ring(self, ring: RingMemory, port: int, partner: int, vcpu: int, number: int = 0) -> int:
        """Register `ring`, anew if it is, so that it interrupts `vcpu` from now on; 0 or a negated errno.

        With interrupts of the rings' own, `number` says which one: rings with the same number share it; by priority a
        higher one (of 0 to 3) is served first.  What was raised before comes by the old way.
        """
        target = self.vcpus[vcpu]
        message = None
        if MODE_OF[self.mode].own_vectors:
            urgent = self.mode == "vectors-by-priority"
            message = await self.controller.message(target, number, urgent, self.argo.virq)
        return await self.argo.register_ring(ring, port, partner, interrupt=message, vcpu=target)

    async def set_vector(self, vcpu: int, vector: int) -> int:
        """Have `vcpu` told by `vector` (x86) of its rings without interrupts of their own; 0 or a negated errno."""
        self.vcpus[vcpu].on_vector(vector, self.argo.virq)
        return await self.argo.call(NotifyOp.SET_NOTIFICATION, Mode.VECTOR_PER_CPU, vcpu, vector, 0)

    def share_line(self, handler: Handler) -> None:
        """Run `handler` whenever uXen's line is raised, which Argo may have chosen too: then both look."""
        if self.mode == "line" and self.controller.line == LINE_IRQ:
            self.argo.on_virq(handler)
        else:
            self.vcpus[0].on_line(LINE_IRQ, handler)

    # -- event channels ----

    async def bind_vcpu(self, vcpu: int, caller: int = 0) -> int:
        """EVTCHNOP_bind_vcpu: VIRQ_ARGO interrupts `vcpu` from now on.  `caller` makes the hypercall."""
        return await self._evtchn_op(EvtchnOp.BIND_VCPU, xen.BIND_VCPU.pack(self.virq_port, vcpu), caller)

    def mask(self) -> None:
        """Hold VIRQ_ARGO back: it may become pending, and nobody is interrupted."""
        assert self.page is not None, "only event channels are masked one by one"
        self.page.mask(self.virq_port)

    async def unmask(self, caller: int = 0) -> int:
        """EVTCHNOP_unmask: let VIRQ_ARGO through, and what was held back."""
        return await self._evtchn_op(EvtchnOp.UNMASK, xen.UNMASK.pack(self.virq_port), caller)

    async def _evtchn_op(self, op: EvtchnOp, argument: bytes, caller: int) -> int:
        call = self._probe.own_call()
        assert call is not None, "event channels are Xen's"
        memory = self.argo.memory
        frame = memory.pages.allocate(1)
        at = frame * PAGE_SIZE
        try:
            memory.buffer[at : at + len(argument)] = argument
            return await self._hypercall(call, Hypercall.EVENT_CHANNEL_OP, op, at, caller)
        finally:
            memory.pages.release(frame, 1)

    async def _bind_virq(self) -> None:
        call = self._probe.own_call()
        if call is None:
            raise NoInterrupts("event channels need Xen's hypercall, and no Xen was found")
        if not await self._virq_offered():
            raise NoInterrupts("the hypervisor does not offer VIRQ_ARGO")
        memory, ram = self.argo.memory, self.argo.memory.buffer
        await self.place_page()
        arguments = memory.pages.allocate(1) * PAGE_SIZE
        xen.BIND_VIRQ.pack_into(ram, arguments, VIRQ_ARGO, 0, 0)
        ret = await self._hypercall(call, Hypercall.EVENT_CHANNEL_OP, EvtchnOp.BIND_VIRQ, arguments)
        if ret < 0:
            raise NoInterrupts(f"the hypervisor refuses to bind VIRQ_ARGO: {errno_name(ret)}")
        self.virq_port = xen.BIND_VIRQ.unpack_from(ram, arguments)[2]
        memory.pages.release(arguments // PAGE_SIZE, 1)
        for vcpu in self.vcpus:  # the port may be moved to another vCPU
            vcpu.on_port(self.virq_port, self.argo.virq)

    async def place_page(self) -> None:
        """Have event channels, whatever tells of Argo: a shared_info page, once.  Raises NoInterrupts."""
        call = self._probe.own_call()
        if self.page is not None:
            return
        if call is None:
            raise NoInterrupts("event channels need Xen's hypercall, and no Xen was found")
        memory = self.argo.memory
        frame = memory.pages.allocate(1)
        window = memory.window(frame * PAGE_SIZE, PAGE_SIZE)
        window.write(0, bytes(PAGE_SIZE))
        window.publish()
        arguments = memory.pages.allocate(1)
        at = arguments * PAGE_SIZE
        xen.ADD_TO_PHYSMAP.pack_into(memory.buffer, at, xen.DOMID_SELF, 0, xen.XENMAPSPACE_SHARED_INFO, 0, frame)
        ret = await self._hypercall(call, Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, at)
        memory.pages.release(arguments, 1)
        if ret < 0:
            memory.pages.release(frame, 1)
            raise NoInterrupts(f"the hypervisor refuses to place shared_info at frame {frame}: {errno_name(ret)}")
        self.page = EventChannelPage(window)
        for vcpu in self.vcpus:
            vcpu.attach_page(self.page)

    async def _virq_offered(self) -> bool:
        """Whether VIRQ_ARGO comes at all: upstream's does, and one with a choice of modes says so."""
        call = self.argo.call
        if await call(NotifyOp.SET_NOTIFICATION, Mode.VIRQ, 0, 0, 0) != -Errno.EOPNOTSUPP:
            return True
        return await call(NotifyOp.SET_NOTIFICATION, UNKNOWN_MODE, 0, 0, 0) == -Errno.EOPNOTSUPP

    async def _hypercall(self, call: Convention, number: int, cmd: int, argument: int, caller: int = 0) -> int:
        done = await self.vcpus[caller].trap(hypercall_trap(call, number, cmd, argument))
        return int32(done.regs[call.result]) if done.outcome == Outcome.DONE else -Errno.ENOSYS


def errno_name(ret: int) -> str:
    """A negated errno in words."""
    try:
        return Errno(-ret).name
    except ValueError:
        return str(ret)
