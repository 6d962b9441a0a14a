"""The interrupt controllers a guest may have, as its kernel uses them to be told of Argo.

Which numbers are used is the guest's own choice: the hypervisor is told.  x86: the vectors of local APICs (nothing to
set up but the handler).  Arm: INTIDs, which are enabled in the distributor by stores that trap (Arm IHI 0069).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from guest_node.vcpu import Trap, Vcpu
from hmx import arm_map
from hmx.notify import LINE_IRQ
from hmx.trap import Kind

Handler = Callable[[], None]
MSI_BASE: Final = 0xFEE0_0000
RING_VECTORS: Final = range(0x40, 0xC0)
PRIORITY_VECTORS: Final = (0x41, 0x51, 0x61, 0x71)  # classes 4 to 7: a ring in a higher class is served first
PRIORITIES: Final = (0xA0, 0x90, 0x80, 0x70)  # the same on Arm, where a lower number is more urgent

_GICD_CTLR: Final = 0x0000
_GICD_ISENABLER: Final = 0x0100
_GICD_IPRIORITYR: Final = 0x0400
_GICD_ICFGR: Final = 0x0C00
_GICD_IROUTER: Final = 0x6000
_SGI_BASE: Final = 0x1_0000  # from a redistributor's RD_base
_ENABLE_GROUP1: Final = 1 << 1
_DEFAULT_PRIORITY: Final = 0xA0


class Controller(Protocol):
    """What the kernel asks of either."""

    line: int  # number of the one line for all rings
    per_cpu: int  # number of the interrupt that each vCPU has for itself

    async def take_line(self, vcpu: Vcpu, handler: Handler) -> None:
        """Have the line handled on `vcpu`."""

    async def take_per_cpu(self, vcpu: Vcpu, handler: Handler) -> None:
        """Have the vCPU's own interrupt handled."""

    async def take_irq(self, vcpu: Vcpu, irq: int, handler: Handler) -> None:
        """Have a device's interrupt handled on `vcpu`: an ISA IRQ, or an INTID."""

    async def message(self, vcpu: Vcpu, index: int, urgent: bool, handler: Handler) -> tuple[int, int]:
        """(address, data) of a message-signalled interrupt on `vcpu`, the `index`-th; by priority if `urgent`."""


class Apics:
    """Local APICs, enabled by :meth:`guest_node.vcpu.Vcpu.attach_apic`."""

    line: int = LINE_IRQ
    per_cpu: int = 0xD0

    async def take_line(self, vcpu: Vcpu, handler: Handler) -> None:
        """An external interrupt: no APIC takes part."""
        vcpu.on_line(self.line, handler)

    async def take_per_cpu(self, vcpu: Vcpu, handler: Handler) -> None:
        """One vector, the same on every vCPU."""
        vcpu.on_vector(self.per_cpu, handler)

    async def take_irq(self, vcpu: Vcpu, irq: int, handler: Handler) -> None:
        """An external interrupt, as the line of all rings."""
        vcpu.on_line(irq, handler)

    async def message(self, vcpu: Vcpu, index: int, urgent: bool, handler: Handler) -> tuple[int, int]:
        """A fixed, edge-triggered MSI to the vCPU's APIC id (Intel SDM vol. 3A 10.11)."""
        vectors = PRIORITY_VECTORS if urgent else RING_VECTORS
        vector = vectors[index % len(vectors)]
        vcpu.on_vector(vector, handler)
        return MSI_BASE | vcpu.index << 12, vector


class GicDriver:
    """A GICv3 with a v2m frame."""

    line: int = arm_map.LINE_INTID
    per_cpu: int = arm_map.PER_CPU_INTID

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._begun = False
        self._config: dict[int, int] = {}  # GICD_ICFGR and GICR_ICFGR by address: a word configures 16 interrupts

    async def _store(self, address: int, value: int, size: int = 4) -> None:
        await self._vcpu.trap(Trap(Kind.STORE, (value,), address=address, size=size, privilege=1))

    async def _enable(self, intid: int, vcpu: Vcpu, priority: int = _DEFAULT_PRIORITY) -> None:
        """Edge-triggered, of a priority, to one vCPU, enabled; the distributor too, the first time."""
        if not self._begun:
            self._begun = True
            await self._store(arm_map.GICD_BASE + _GICD_CTLR, _ENABLE_GROUP1)
        own = intid < 32
        base = arm_map.GICR_BASE + vcpu.index * arm_map.GICR_STRIDE + _SGI_BASE if own else arm_map.GICD_BASE
        await self._store(base + _GICD_IPRIORITYR + intid, priority, 1)
        config = base + _GICD_ICFGR + intid // 16 * 4
        self._config[config] = self._config.get(config, 0) | 2 << intid % 16 * 2
        await self._store(config, self._config[config])
        if not own:
            await self._store(base + _GICD_IROUTER + intid * 8, vcpu.index, 8)
        await self._store(base + _GICD_ISENABLER + intid // 32 * 4, 1 << intid % 32)

    async def take_line(self, vcpu: Vcpu, handler: Handler) -> None:
        """A shared peripheral interrupt."""
        vcpu.on_intid(self.line, handler)
        await self._enable(self.line, vcpu)

    async def take_per_cpu(self, vcpu: Vcpu, handler: Handler) -> None:
        """A private peripheral interrupt."""
        vcpu.on_intid(self.per_cpu, handler)
        await self._enable(self.per_cpu, vcpu)

    async def take_irq(self, vcpu: Vcpu, irq: int, handler: Handler) -> None:
        """An SPI, edge-triggered."""
        vcpu.on_intid(irq, handler)
        await self._enable(irq, vcpu)

    async def message(self, vcpu: Vcpu, index: int, urgent: bool, handler: Handler) -> tuple[int, int]:
        """A write of an SPI's number to the v2m frame."""
        intid = arm_map.V2M_FIRST_SPI + index % arm_map.V2M_SPIS
        vcpu.on_intid(intid, handler)
        await self._enable(intid, vcpu, PRIORITIES[index % len(PRIORITIES)] if urgent else _DEFAULT_PRIORITY)
        return arm_map.V2M_DOORBELL, intid
