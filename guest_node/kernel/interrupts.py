"""How a guest's kernel has itself interrupted for Argo: event channels, a line, or interrupts of its own.

The mode is what the topology asks for, or the best that the hypervisor offers.  Whatever it is, the effect is the same:
the drivers' handler runs at an interruption point of a vCPU.  Modes: hmx/notify.py; event channels: Xen
public/event_channel.h.
"""

from __future__ import annotations

from typing import Final

from guest_node.kernel.argo import Argo, hypercall_trap
from guest_node.kernel.controllers import PRIORITY_VECTORS, Apics, Controller, GicDriver
from guest_node.kernel.probe import Probe
from guest_node.vcpu import Vcpu
from hmx import xen
from hmx.argo.abi import VIRQ_ARGO
from hmx.cpu.evtchn import EventChannelPage
from hmx.doors import Convention
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.notify import MODE_OF, Mode, ModeRow, NotifyOp
from hmx.trap import Outcome, int32
from hmx.xen import EvtchnOp, Hypercall

BY_PREFERENCE: Final = ("vector-per-cpu", "vector-per-ring", "vectors-by-priority", "line")


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

    async def choose(self, wanted: str) -> None:
        """Arrange `wanted`, or the best for "auto".  Raises NoInterrupts."""
        if wanted == "auto":
            wanted = self._best()
        row = MODE_OF[wanted]
        if row.name not in ("virq", "line") and not self._has_controllers():
            self.said = f"{wanted} needs a local APIC, and this guest has none: it uses the line instead"
            row = MODE_OF["line"]
        self.mode = row.name
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

    def _best(self) -> str:
        if self._probe.xen is not None and self._probe.own_call() is not None:
            return "virq"
        features = self._probe.features()
        for name in BY_PREFERENCE:
            if features & MODE_OF[name].feature and (name == "line" or self._has_controllers()):
                return name
        raise NoInterrupts("no hypervisor with event channels, and the door offers no other notification")

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

    # -- event channels ----

    async def _bind_virq(self) -> None:
        call = self._probe.own_call()
        if call is None:
            raise NoInterrupts("event channels need Xen's hypercall, and no Xen was found")
        memory, ram = self.argo.memory, self.argo.memory.buffer
        frame = memory.pages.allocate(1)
        window = memory.window(frame * PAGE_SIZE, PAGE_SIZE)
        window.write(0, bytes(PAGE_SIZE))
        window.publish()
        arguments = memory.pages.allocate(1) * PAGE_SIZE
        xen.ADD_TO_PHYSMAP.pack_into(ram, arguments, xen.DOMID_SELF, 0, xen.XENMAPSPACE_SHARED_INFO, 0, frame)
        ret = await self._hypercall(call, Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, arguments)
        if ret < 0:
            raise NoInterrupts(f"the hypervisor refuses to place shared_info at frame {frame}: {errno_name(ret)}")
        self.page = EventChannelPage(window)
        for vcpu in self.vcpus:
            vcpu.attach_page(self.page)
        xen.BIND_VIRQ.pack_into(ram, arguments, VIRQ_ARGO, 0, 0)
        ret = await self._hypercall(call, Hypercall.EVENT_CHANNEL_OP, EvtchnOp.BIND_VIRQ, arguments)
        if ret < 0:
            raise NoInterrupts(f"the hypervisor refuses to bind VIRQ_ARGO: {errno_name(ret)}")
        self.virq_port = xen.BIND_VIRQ.unpack_from(ram, arguments)[2]
        memory.pages.release(arguments // PAGE_SIZE, 1)
        for vcpu in self.vcpus:  # the port may be moved to another vCPU
            vcpu.on_port(self.virq_port, self.argo.virq)

    async def _hypercall(self, call: Convention, number: int, cmd: int, argument: int) -> int:
        done = await self.vcpus[0].trap(hypercall_trap(call, number, cmd, argument))
        return int32(done.regs[call.result]) if done.outcome == Outcome.DONE else -Errno.ENOSYS


def errno_name(ret: int) -> str:
    """A negated errno in words."""
    try:
        return Errno(-ret).name
    except ValueError:
        return str(ret)
