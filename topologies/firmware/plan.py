"""The firmware of one guest of a topology: its machine in words, built into tables or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hmx import arm_map, ioreq
from hmx.doors import COST_OF, convention, ranked
from hmx.firmware import ArgoDevice, Door, Interrupt, Offer, VectorPolicy
from hmx.memory import FIRMWARE_BASE
from hmx.trap import Arch, Kind
from topologies.firmware import acpi, devicetree
from topologies.firmware.machine import Gic, Machine, MsiFrame, Range, Uxen, VirtioMmio, Xen

SUGGESTED_VECTORS: Final = (0xD1, 0xC1)  # in two classes, above the devices' and below the kernel's own


def firmware_of(
    kind: str,
    personality: str,
    arch: Arch,
    doors: Sequence[str],
    notifications: Sequence[str],
    memory: int,
    vcpus: int,
    services: Sequence[tuple[str, int, int]] = (),
    windows: Sequence[int] = (),
) -> bytes:
    """The bytes that lie at FIRMWARE_BASE: `kind` acpi or devicetree; nothing for none.

    `services`: those that the toolstack has connected, as name, base port and count of instances; `windows`: where
    virtio-mmio devices are, by the indexes of hmx/ioreq.py.
    """
    if kind == "none":
        return b""
    machine = _machine(personality, arch, doors, notifications, memory, vcpus, services, windows)
    return devicetree.build(machine) if kind == "devicetree" else acpi.build(machine, FIRMWARE_BASE).data


def _machine(
    personality: str, arch: Arch, doors: Sequence[str], notifications: Sequence[str], memory: int, vcpus: int,
    services: Sequence[tuple[str, int, int]], windows: Sequence[int],
) -> Machine:  # fmt: skip
    arm = arch is Arch.AARCH64
    argo = ArgoDevice(
        doors=tuple(_door(name, arch) for name in ranked(arch) if name in doors and (name, arch) in COST_OF),
        policy=VectorPolicy.SUGGESTED,
        vectors=(arm_map.PER_CPU_INTID,) if arm else SUGGESTED_VECTORS,
        notifications=tuple(notifications),
        services=tuple(Offer(*service) for service in services),
        mmio=convention("mmio", arch, speaks="").selector if "mmio" in doors else None,
    )
    return Machine(
        arch,
        tuple(range(vcpus)),
        (Range(0, memory),),
        personality=personality,
        psci=("smc" if personality == "firmware" else "hvc") if arm else "",
        gic=_gic(vcpus) if arm else None,
        argo=argo,
        uxen=Uxen() if personality == "uxen" else None,
        xen=Xen(event_channel=arm_map.EVTCHN_INTID) if arm and personality == "xen" else None,
        virtio=tuple(_window(arch, index) for index in windows),
    )


def _door(name: str, arch: Arch) -> Door:
    row = convention(name, arch, speaks="" if name not in ("hypercall", "hvc") else "xen")
    return Door(name, row.call if row.kind in (Kind.HVC, Kind.SMC, Kind.VMCALL) else row.selector)


def _window(arch: Arch, index: int) -> VirtioMmio:
    row = ioreq.windows(arch)[index]
    return VirtioMmio(row.base, Interrupt(row.irq, level=True), ioreq.WINDOW_SIZE)


def _gic(vcpus: int) -> Gic:
    return Gic(
        3,
        arm_map.GICD_BASE,
        redistributors=(Range(arm_map.GICR_BASE, vcpus * arm_map.GICR_STRIDE),),
        its=arm_map.GITS_BASE,
        v2m=MsiFrame(arm_map.V2M_BASE, arm_map.V2M_FIRST_SPI, arm_map.V2M_SPIS),
    )
