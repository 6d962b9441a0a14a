"""The interrupt controller of one Arm guest: distributor, redistributors, v2m frame and ITS behind their addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hmx.arm_map import (
    GICD_BASE,
    GICD_SIZE,
    GICR_BASE,
    GICR_STRIDE,
    GITS_BASE,
    GITS_SIZE,
    V2M_BASE,
    V2M_FIRST_SPI,
    V2M_SPIS,
)
from hv_node.interrupts.gicd import Distributor
from hv_node.interrupts.gicr import DistributorFrame, Lpis, Redistributor
from hv_node.interrupts.its import Its
from hv_node.interrupts.v2m import MsiFrame


class Gic:
    """GICv3 for one vCPU for each of `words`, u64 views of its area.  `post(vcpu, n, new)`: it must look at register n.

    `memory(address, size)` reads guest memory for the ITS: bytes, or None where there is none.
    """

    def __init__(
        self,
        words: Sequence[memoryview],
        post: Callable[[int, int, bool], None],
        memory: Callable[[int, int], bytes | None],
    ) -> None:
        self.distributor = Distributor(words, post)
        self._frame = DistributorFrame(self.distributor)
        lpis = Lpis(self.distributor, memory)
        self._redistributors = [Redistributor(self.distributor, lpis, vcpu) for vcpu in range(len(words))]
        self._v2m = MsiFrame(V2M_BASE, V2M_FIRST_SPI, V2M_SPIS)
        self.its = Its(self.distributor, lpis, memory)

    def load(self, vcpu: int, address: int, size: int) -> int:
        """What `vcpu` loads; zero in a hole."""
        if GICD_BASE <= address < GICD_BASE + GICD_SIZE:
            return self._frame.read(vcpu, address - GICD_BASE, size)
        if self._v2m.covers(address):
            return self._v2m.read(address - V2M_BASE)
        if GITS_BASE <= address < GITS_BASE + GITS_SIZE:
            return self.its.read(address - GITS_BASE, size)
        found = self._redistributor(address)
        return 0 if found is None else found.read((address - GICR_BASE) % GICR_STRIDE, size)

    def store(self, vcpu: int, address: int, value: int, size: int) -> None:
        """`vcpu` stores; ignored in a hole."""
        if GICD_BASE <= address < GICD_BASE + GICD_SIZE:
            self._frame.write(vcpu, address - GICD_BASE, value, size)
        elif self._v2m.covers(address):
            self.message(address, value)
        elif GITS_BASE <= address < GITS_BASE + GITS_SIZE:
            self.its.write(address - GITS_BASE, value, size)
        elif (found := self._redistributor(address)) is not None:
            found.write((address - GICR_BASE) % GICR_STRIDE, value, size)

    def _redistributor(self, address: int) -> Redistributor | None:
        index = (address - GICR_BASE) // GICR_STRIDE
        return self._redistributors[index] if 0 <= index < len(self._redistributors) else None

    def message(self, address: int, data: int) -> bool:
        """A message-signalled interrupt; False when it names nothing."""
        spi = self._v2m.decode(address, data)
        return spi is not None and self.distributor.pulse(spi)

    def serves(self, address: int, data: int) -> bool:
        """Whether such a message would reach an interrupt."""
        return self._v2m.decode(address, data) is not None
