"""Interrupts that a device model raises in its target: ISA lines and MSIs on x86, SPIs on Arm.

Sources: Xen arch/x86/hvm/irq.c, arch/arm/dm.c.  Lines have a level.  On x86 an ISA line here goes straight to vCPU 0 as
an external interrupt, as the line of uXen does: a line that rises posts one, and one that stays up posts no other, so a
device whose cause remains after it was acknowledged lowers its line and raises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hmx.cpu.apic_regs import x2apic_address
from hmx.errno import Errno
from hmx.vcpu_area import Post, post_entry
from hv_node.interrupts import msi

if TYPE_CHECKING:
    from hv_node.hvm import Hvm

ISA_IRQS: Final = 16
FIRST_SPI: Final = 32
Interrupt = Callable[["Hvm", int, int], None]  # domain, vCPU, entry to post


class Lines:
    """The lines of one target.  `interrupt` posts to its vCPUs."""

    __slots__ = ("_interrupt", "_isa", "_target")

    def __init__(self, target: Hvm, interrupt: Interrupt) -> None:
        self._target = target
        self._interrupt = interrupt
        self._isa = 0  # those that are up, by bit

    def set_isa_irq_level(self, irq: int, level: int) -> int:
        """XEN_DMOP_set_isa_irq_level.  -EINVAL: no ISA line, or a level other than 0 and 1."""
        if irq >= ISA_IRQS or level > 1:
            return -Errno.EINVAL
        was = self._isa >> irq & 1
        self._isa = self._isa & ~(1 << irq) | level << irq
        if level and not was:
            self._target.counters.interrupts_raised += 1
            self._interrupt(self._target, 0, post_entry(Post.EXTINT, irq))
        return 0

    def set_irq_level(self, irq: int, level: int) -> int:
        """XEN_DMOP_set_irq_level: an SPI.  -EINVAL: no SPI of this domain (a device model raises no other), or a level
        other than 0 and 1.
        """
        gic = self._target.gic
        if gic is None or irq < FIRST_SPI or level > 1:
            return -Errno.EINVAL
        distributor, counters = gic.distributor, self._target.counters
        line = distributor.interrupt(irq)
        if line is None:
            return -Errno.EINVAL
        if level and not line.line:
            waited, listed = line.latch, line.listed
            counters.interrupts_raised += 1
            distributor.raise_line(irq, True)
            if line.edge and (waited or not (line.latch or line.listed != listed)):
                counters.interrupts_coalesced += 1
        else:
            distributor.raise_line(irq, bool(level))
        return 0

    def inject_msi(self, address: int, data: int) -> int:
        """XEN_DMOP_inject_msi: as hv_node/interrupts/msi.py has it; one vCPU's post for each target."""
        message = msi.decode(address, data)
        if isinstance(message, int):
            return message
        vcpus = self._target.vcpus
        found = msi.inject(message, [x2apic_address(vcpu.index) for vcpu in vcpus])
        if isinstance(found, int):
            return found
        for index in found:
            self._target.counters.interrupts_raised += 1
            self._interrupt(self._target, index, post_entry(Post.VECTOR, message.vector))
        return 0
