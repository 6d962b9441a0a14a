"""Message-signalled interrupts on x86: what an (address, data) pair says, and which vCPUs it reaches.

An MSI is a 32-bit write of `data` to `address`; the two describe it completely.  Sources: Intel SDM vol. 3A 10.11 (its
numbering before the chapter became 11) for the fields; Xen arch/x86/hvm/irq.c hvm_inject_msi, vmsi.c vmsi_deliver and
vlapic.c vlapic_lowest_prio for what is accepted and who is chosen; KVM_FEATURE_MSI_EXT_DEST_ID and
XEN_HVM_CPUID_EXT_DEST_ID for 15-bit destinations.

Where Xen stays silent and this module does not: an address that is no MSI, a vector below 16, and vector 0, which Xen
takes for a PIRQ event channel (there are none here), are all -EINVAL.  The targets of a software-disabled APIC are left
out, as in Xen since 4.17; a hypervisor that does not know leaves `enabled` set, and the APIC itself drops the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from hmx.cpu.apic_regs import FIRST_LEGAL_VECTOR, ApicAddress, DeliveryMode, addressed
from hmx.errno import Errno
from hmx.vcpu_area import Post

BROADCAST_8BIT: Final = 0xFF


class Part(Enum):
    """Which half of a message a field stands in."""

    ADDRESS = auto()
    DATA = auto()


class Field(NamedTuple):
    """Bits high..low of `part`.  `must`: the only value an MSI may have there, None for any."""

    name: str
    part: Part
    high: int
    low: int
    must: int | None
    source: str


FIELDS: Final = (
    Field("upper", Part.ADDRESS, 63, 32, 0, "SDM 3A 10.11.1: below 4 GiB"),
    Field("base", Part.ADDRESS, 31, 20, 0xFEE, "SDM 3A 10.11.1"),
    Field("destination", Part.ADDRESS, 19, 12, None, "SDM 3A 10.11.1"),
    Field("extended", Part.ADDRESS, 11, 5, None, "KVM_FEATURE_MSI_EXT_DEST_ID: id bits 14:8 when announced"),
    Field("remappable", Part.ADDRESS, 4, 4, 0, "VT-d 5.1.2.2: interrupt format"),
    Field("redirection_hint", Part.ADDRESS, 3, 3, None, "SDM 3A 10.11.1"),
    Field("logical", Part.ADDRESS, 2, 2, None, "SDM 3A 10.11.1"),
    Field("vector", Part.DATA, 7, 0, None, "SDM 3A 10.11.2"),
    Field("delivery_mode", Part.DATA, 10, 8, None, "SDM 3A 10.11.2"),
    Field("assert", Part.DATA, 14, 14, None, "SDM 3A 10.11.2"),
    Field("level", Part.DATA, 15, 15, None, "SDM 3A 10.11.2"),
)


class Mode(NamedTuple):
    """A delivery mode: does the vector count, what a target is posted, and Xen's answer to injecting it.

    `post` is None where a vCPU has no such post.  `xen` is 0 or the error number; `nobody` the error number when no
    APIC is meant, 0 where Xen reports success for a message that reached no one.
    """

    mode: DeliveryMode
    vectored: bool
    post: Post | None
    xen: int
    nobody: int
    source: str


MODES: Final = (
    Mode(DeliveryMode.FIXED, True, Post.VECTOR, 0, 0, "Xen vmsi.c vmsi_deliver dest_Fixed"),
    Mode(DeliveryMode.LOWEST_PRIORITY, True, Post.VECTOR, 0, Errno.ESRCH, "Xen vmsi.c vmsi_deliver dest_LowestPrio"),
    Mode(DeliveryMode.SMI, False, None, Errno.EINVAL, 0, "Xen vmsi.c vmsi_deliver default"),
    Mode(DeliveryMode.NMI, False, Post.NMI, Errno.EINVAL, 0, "Xen vmsi.c vmsi_deliver default; SDM 3A 10.11.2"),
    Mode(DeliveryMode.INIT, False, None, Errno.EINVAL, 0, "Xen vmsi.c vmsi_deliver default"),
    Mode(DeliveryMode.EXTINT, False, Post.EXTINT, Errno.EINVAL, 0, "Xen vmsi.c vmsi_deliver default; SDM 3A 10.11.2"),
)
BY_MODE: Final = {int(row.mode): row for row in MODES}


@dataclass(frozen=True, slots=True)
class Msi:
    """A decoded message.  `destination` has 8 bits, or 15 if `extended`; `level` is the trigger mode, `asserted` its
    level, which means nothing on an edge.
    """

    destination: int
    logical: bool
    redirection_hint: bool
    vector: int
    mode: DeliveryMode
    level: bool
    asserted: bool
    extended: bool

    @property
    def post(self) -> Post | None:
        """The kind of post that a target gets; None: a vCPU here takes no such message."""
        return BY_MODE[self.mode].post


def fields(address: int, data: int) -> dict[str, int]:
    """All fields of a message by name."""
    parts = {Part.ADDRESS: address, Part.DATA: data}
    return {row.name: parts[row.part] >> row.low & (1 << row.high - row.low + 1) - 1 for row in FIELDS}


def decode(address: int, data: int, extended: bool = False) -> Msi | int:
    """The message that writing `data` to `address` is, or -EINVAL.

    `extended`: the hypervisor has announced 15-bit destination ids; else address bits 11:5 are ignored.  -EINVAL: not
    an MSI address, a reserved delivery mode, or a vector below 16 in a mode that has one.
    """
    found = fields(address, data)
    if any(row.must is not None and found[row.name] != row.must for row in FIELDS):
        return -Errno.EINVAL
    row = BY_MODE.get(found["delivery_mode"])
    if row is None or (row.vectored and found["vector"] < FIRST_LEGAL_VECTOR):
        return -Errno.EINVAL
    return Msi(
        destination=found["destination"] | (found["extended"] << 8 if extended else 0),
        logical=bool(found["logical"]),
        redirection_hint=bool(found["redirection_hint"]),
        vector=found["vector"],
        mode=row.mode,
        level=bool(found["level"]),
        asserted=bool(found["assert"]),
        extended=extended,
    )


def targets(msi: Msi, apics: Sequence[ApicAddress], previous: int = -1) -> tuple[int, ...]:
    """Indexes into `apics` that the message goes to, ascending; empty for a destination that nobody has.

    A physical 0xFF means everybody; where 15-bit ids are announced it is the id of an x2APIC (and everybody still to
    an xAPIC).  Lowest priority, and a redirected logical destination, go to one: see `lowest_priority`; `previous` is
    the index that the last such message of the domain went to, -1 for none.
    """
    everybody = not msi.logical and not msi.extended and msi.destination == BROADCAST_8BIT
    meant = [
        index
        for index, apic in enumerate(apics)
        if apic.enabled and (everybody or addressed(apic, msi.destination, msi.logical))
    ]
    if msi.mode is DeliveryMode.LOWEST_PRIORITY or (msi.redirection_hint and msi.logical):
        return lowest_priority(meant, apics, previous)
    return tuple(meant)


def lowest_priority(meant: Sequence[int], apics: Sequence[ApicAddress], previous: int) -> tuple[int, ...]:
    """The one of `meant` with the lowest PPR; of several, the first after `previous` in index order, cyclically.

    Xen's rule (vlapic_lowest_prio).  A hypervisor that cannot see the PPRs passes zeros: round robin.
    """
    cyclic = sorted(meant, key=lambda index: (apics[index].ppr, index <= previous, index))
    return tuple(cyclic[:1])


def inject(msi: Msi, apics: Sequence[ApicAddress], previous: int = -1) -> tuple[int, ...] | int:
    """What XEN_DMOP_inject_msi does: the targets, or a negative error number.

    -EINVAL: Xen takes fixed and lowest priority only.  -ESRCH: lowest priority and nobody meant.  A fixed message
    that means nobody succeeds and reaches no one: ().
    """
    row = BY_MODE[msi.mode]
    if row.xen:
        return -row.xen
    found = targets(msi, apics, previous)
    return -row.nobody if row.nobody and not found else found
