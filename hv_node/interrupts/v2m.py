"""GICv2m: a frame in which a write of an SPI's number raises that SPI.

Address and data say all that there is to a message, so a device needs nothing else.  Source: Arm Server Base System
Architecture, GICv2m MSI register frame; Linux irq-gic-v2m.c.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.gic import Field, Register, encode, find

FRAME_SIZE: Final = 0x1000

V2M: Final[tuple[Register, ...]] = (
    Register("V2M_MSI_TYPER", 0x008, 4, 1, 32, 0, "R"),
    Register("V2M_MSI_SETSPI_NS", 0x040, 4, 1, 32, 0, "W"),
    Register("V2M_MSI_IIDR", 0xFCC, 4, 1, 32, 0, "R"),
)
MSI_TYPER: Final[tuple[Field, ...]] = (Field("count", 9, 0), Field("base", 25, 16))


class MsiFrame(NamedTuple):
    """A frame at guest-physical `base` for the SPIs (INTIDs) `first` to `first + spis - 1`, edge-triggered."""

    base: int
    first: int
    spis: int

    def covers(self, address: int) -> bool:
        """True for an address in the frame."""
        return self.base <= address < self.base + FRAME_SIZE

    def decode(self, address: int, data: int) -> int | None:
        """The SPI that a message raises, or None: not this frame's doorbell, or an SPI that it does not serve.

        The frame's own address names its doorbell too (experimental, not upstream: that is how a ring names it).
        """
        row = find(V2M, address - self.base, 2)
        doorbell = address == self.base or (row is not None and row.name == "V2M_MSI_SETSPI_NS")
        if not doorbell or not self.first <= data < self.first + self.spis:
            return None
        return data

    def read(self, offset: int) -> int:
        """What a guest loads from the frame."""
        row = find(V2M, offset, 2)
        if row is not None and row.name == "V2M_MSI_TYPER":
            return encode(MSI_TYPER, base=self.first, count=self.spis)
        return 0
