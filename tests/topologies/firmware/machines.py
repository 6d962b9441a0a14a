"""Machines that firmware is built for in these tests, and memory that holds what was built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hmx.firmware import ArgoDevice, Door, Interrupt, Offer, VectorPolicy
from hmx.trap import Arch
from hmx.uxen_enum import Polarity
from topologies.firmware.machine import GedEvent, Gic, Machine, MsiFrame, Range, Uxen, VirtioMmio, Xen

ARGO_X86 = ArgoDevice(
    (Door("msr", 0x400000E0), Door("pio", 0x4152), Door("cpuid", 0x41726730), Door("mmio", 0xFEDF8000)),
    VectorPolicy.SUGGESTED,
    (0xD0, 0xC0),
    Interrupt(10),
    0xFEDF8000,
    ("virq", "line", "vector-per-cpu"),
    (Offer("storage", 0xD0000, 128), Offer("discovery", 0xA0000, 1)),
)
ARGO_ARM = ArgoDevice(
    (Door("hvc", 0xC6004152), Door("smc", 0xC3004152), Door("mmio", 0x0A2F0000)),
    VectorPolicy.LINE,
    (),
    Interrupt(40, level=True),
    0x0A2F0000,
    ("virq", "line"),
    (Offer("net", 0xC0000, 2),),
)
ARGO_BARE = ArgoDevice((Door("hvc", 0xC6004152),), VectorPolicy.GUEST, (32, 1019))
GIC_V3 = Gic(
    3,
    0x0800_0000,
    redistributors=(Range(0x080A_0000, 0x40000), Range(0x1_0000_0000, 0x20000)),
    its=0x0808_0000,
    v2m=MsiFrame(0x0802_0000, 80, 32),
)
GIC_V2 = Gic(2, 0x0800_0000, 0x0801_0000, v2m=MsiFrame(0x0802_0000, 80, 32))
RAM = (Range(0x4000_0000, 64 << 20),)

PC = Machine(
    Arch.X86_64,
    (0, 2, 254, 255, 300),
    (Range(0, 64 << 20),),
    "kvm",
    argo=ARGO_X86,
    generation_id=0x1_0000_1000,
    ged=(GedEvent(Interrupt(20), "VGEN"),),
    virtio=(VirtioMmio(0xFEB0_0000, Interrupt(16, level=True)), VirtioMmio(0xFEB0_0200, Interrupt(17, level=True))),
)
MACHINES = {
    "x86": PC,
    "x86-ged-argo": replace(PC, ged=(GedEvent(Interrupt(20), "VGEN"), GedEvent(Interrupt(300, level=True), "ARGO"))),
    "x86-uxen": replace(PC, personality="uxen", hardware_reduced=False, argo=None, uxen=Uxen(), virtio=()),
    "x86-uxen-drivers": replace(PC, personality="uxen", uxen=Uxen(polarity=Polarity.DRIVERS)),
    "x86-uxen-plain": replace(PC, personality="uxen", uxen=Uxen(enumerator=False), ged=()),
    "x86-bare": Machine(Arch.X86_64, (0,), (Range(0, 1 << 20),), hardware_reduced=False),
    "x86-many": Machine(Arch.X86_64, tuple(range(300)), (Range(0, 1 << 20),), "xen", argo=ARGO_X86),
    "arm-v3": Machine(
        Arch.AARCH64, (0, 1, 0x100), RAM, "xen", psci="hvc", gic=GIC_V3, argo=ARGO_ARM,
        xen=Xen(regions=(Range(0x1_4000_0000, 1 << 20),)), generation_id=0x4000_0000,
        ged=(GedEvent(Interrupt(44), "VGEN"),), virtio=(VirtioMmio(0x0200_0000, Interrupt(33, level=True)),),
    ),
    "arm-v2": Machine(Arch.AARCH64, (0, 1), RAM, "hyperv", psci="smc", gic=GIC_V2, argo=ARGO_BARE),
    "arm-bare": Machine(Arch.AARCH64, (0,), RAM, gic=replace(GIC_V3, its=0, v2m=None, redistributors=RAM)),
}  # fmt: skip
ARM = sorted(name for name in MACHINES if name.startswith("arm"))


def memory(base: int, data: bytes) -> Callable[[int, int], bytes | None]:
    """A guest's memory that holds `data` at `base` and nothing else."""

    def read(address: int, length: int) -> bytes | None:
        if address < base or address + length > base + len(data):
            return None
        return data[address - base : address - base + length]

    return read
