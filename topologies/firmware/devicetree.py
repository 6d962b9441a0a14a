"""Builds a flattened device tree for an Arm guest.

The tree names the processors and how to start them (PSCI), memory, the interrupt controller with its MSI children,
the hypervisor, virtio-mmio devices, and Argo.  The Argo node is experimental, not upstream:

    argo@a2f0000 {                                  no unit address, and no reg, without a page for the mmio door
        compatible = "argosy,argo-1", "argosy,argo";
        reg = <the page of the mmio door>;
        interrupts = <the line, where there is one>;
        argosy,revision = <1>;                      of this layout
        argosy,features = <0>;
        argosy,doors = "hvc", "smc";                the hypervisor's order of preference
        argosy,door-selectors = <0 0xc6004152 ...>; two cells for each door
        argosy,vector-policy = <2>;                 0 the line, 1 suggested INTIDs, 2 the guest chooses from a range
        argosy,vectors = <32 1019>;
        argosy,notifications = "virq", "line";
        argosy,services = "storage";                with base port and instances in
        argosy,service-ports = <0xd0000 128>;
    };

:mod:`hmx.firmware` holds the same vocabulary for readers, and for ACPI.

The blob is written by the `fdt` package (pyFDT): pure Python, no dependencies, one job.

Sources: Devicetree Specification 0.4; Linux bindings arm,gic-v3, arm,gic, arm,psci, xen, virtio,mmio.
"""

from __future__ import annotations

from typing import Final

import fdt

from hmx.fdt import EDGE_RISING, FIRST_PPI, FIRST_SPI, GIC_PPI, GIC_SPI, LEVEL_HIGH, VERSION
from hmx.firmware import ARGO_COMPATIBLE, FACT, REVISION, ArgoDevice, Interrupt
from hmx.hypervisors import NODE, NODE_OF
from hmx.trap import Arch
from topologies.firmware.machine import Gic, Machine, Range, Xen
from topologies.firmware.namespace import MMIO_DOOR_SIZE

EDGE_FALLING: Final = 2
LEVEL_LOW: Final = 8
GIC_PHANDLE: Final = 1
GICV2_DISTRIBUTOR_SIZE: Final = 0x1000
GICV2_INTERFACE_SIZE: Final = 0x2000
GICV3_DISTRIBUTOR_SIZE: Final = 0x10000
ITS_SIZE: Final = 0x20000
MSI_FRAME_SIZE: Final = 0x1000
PPI_CPU_MASK: Final = 0xF00
"""In the flags of a PPI for a GICv2: all of up to four CPUs."""


Value = int | str | bytes | tuple[int, ...] | tuple[str, ...] | None
"""A property: cells, strings, bytes; None for one that is only there."""


def build(machine: Machine) -> bytes:
    """The blob (version 17).  Raises ValueError for a machine that is not an Arm one, or an interrupt no GIC has."""
    gic = machine.gic
    if machine.arch is not Arch.AARCH64 or gic is None:
        raise ValueError("a device tree is built for machines with a GIC")
    tree = fdt.FDT(entries=[])
    root = tree.root
    _fill(
        root,
        {
            "compatible": "argosy,virt",
            "model": "Argosy guest",
            "#address-cells": 2,
            "#size-cells": 2,
            "interrupt-parent": GIC_PHANDLE,
        },
    )
    _processors(root, machine)
    for region in machine.memory:
        _add(root, f"memory@{region.base:x}", {"device_type": "memory", "reg": _reg(region)})
    if machine.psci:
        _add(root, "psci", {"compatible": ("arm,psci-1.0", "arm,psci-0.2"), "method": machine.psci})
    _controller(root, gic)
    _hypervisor(root, machine, gic)
    for device in machine.virtio:
        _add(
            root,
            f"virtio_mmio@{device.base:x}",
            {
                "compatible": "virtio,mmio",
                "reg": _reg(Range(device.base, device.size)),
                "interrupts": _interrupt(device.interrupt, gic),
                "dma-coherent": None,
            },
        )
    if machine.argo is not None:
        _argo(root, machine.argo, gic)
    return bytes(tree.to_dtb(version=VERSION, boot_cpuid_phys=machine.processors[0] & 0xFFFF_FFFF))


def _processors(root: fdt.Node, machine: Machine) -> None:
    cpus = _add(root, "cpus", {"#address-cells": 2, "#size-cells": 0})
    for mpidr in machine.processors:
        properties: dict[str, Value] = {"device_type": "cpu", "compatible": "arm,armv8", "reg": _cells(mpidr)}
        if machine.psci:
            properties["enable-method"] = "psci"
        _add(cpus, f"cpu@{mpidr:x}", properties)


def _controller(root: fdt.Node, gic: Gic) -> None:
    if gic.version == 2:
        compatible, regions = (
            "arm,gic-400",
            [
                Range(gic.distributor, GICV2_DISTRIBUTOR_SIZE),
                Range(gic.cpu_interface, GICV2_INTERFACE_SIZE),
            ],
        )
    else:
        compatible, regions = "arm,gic-v3", [Range(gic.distributor, GICV3_DISTRIBUTOR_SIZE), *gic.redistributors]
    properties: dict[str, Value] = {
        "compatible": compatible,
        "#interrupt-cells": 3,
        "interrupt-controller": None,
        "reg": _reg(*regions),
        "phandle": GIC_PHANDLE,
        "#address-cells": 2,
        "#size-cells": 2,
        "ranges": None,
    }
    if len(gic.redistributors) > 1:
        properties["#redistributor-regions"] = len(gic.redistributors)
    node = _add(root, f"interrupt-controller@{gic.distributor:x}", properties)
    if gic.its:
        _add(
            node,
            f"msi-controller@{gic.its:x}",
            {
                "compatible": "arm,gic-v3-its",
                "msi-controller": None,
                "#msi-cells": 1,
                "reg": _reg(Range(gic.its, ITS_SIZE)),
            },
        )
    if gic.v2m is not None:
        _add(
            node,
            f"v2m@{gic.v2m.base:x}",
            {
                "compatible": "arm,gic-v2m-frame",
                "msi-controller": None,
                "reg": _reg(Range(gic.v2m.base, MSI_FRAME_SIZE)),
                "arm,msi-base-spi": gic.v2m.first,
                "arm,msi-num-spis": gic.v2m.count,
            },
        )


def _hypervisor(root: fdt.Node, machine: Machine, gic: Gic) -> None:
    row = NODE_OF.get(machine.personality)
    if row is None:
        return
    compatible = row.compatible
    properties: dict[str, Value] = {"compatible": compatible}
    if machine.personality == "xen":
        xen = machine.xen or Xen()
        properties = {
            "compatible": (f"xen,xen-{xen.version}", compatible),
            "reg": _reg(xen.grant_table, *xen.regions),
            "interrupts": _interrupt(Interrupt(xen.event_channel, level=True, active_low=True), gic),
        }
    _add(root, NODE, properties)


def _argo(root: fdt.Node, argo: ArgoDevice, gic: Gic) -> None:
    properties: dict[str, Value] = {"compatible": (f"{ARGO_COMPATIBLE}-{REVISION}", ARGO_COMPATIBLE)}
    if argo.mmio is not None:
        properties["reg"] = _reg(Range(argo.mmio, MMIO_DOOR_SIZE))
    if argo.interrupt is not None:
        properties["interrupts"] = _interrupt(argo.interrupt, gic)
    lists: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "doors": (
            tuple(door.name for door in argo.doors),
            tuple(cell for door in argo.doors for cell in _cells(door.selector)),
        ),
        "services": (
            tuple(offer.name for offer in argo.services),
            tuple(number for offer in argo.services for number in (offer.base, offer.instances)),
        ),
    }
    properties |= {
        FACT["revision"].property: argo.revision,
        FACT["features"].property: argo.features,
        FACT["policy"].property: int(argo.policy),
    }
    for fact, (names, numbers) in lists.items():
        if names:
            properties |= {FACT[fact].property: names, FACT[fact].numbers: numbers}
    if argo.vectors:
        properties[FACT["vectors"].property] = argo.vectors
    if argo.notifications:
        properties[FACT["notifications"].property] = argo.notifications
    _add(root, "argo" if argo.mmio is None else f"argo@{argo.mmio:x}", properties)


def _interrupt(interrupt: Interrupt, gic: Gic) -> tuple[int, int, int]:
    """The three cells of a GIC's interrupt."""
    if interrupt.level:
        flags = LEVEL_LOW if interrupt.active_low else LEVEL_HIGH
    else:
        flags = EDGE_FALLING if interrupt.active_low else EDGE_RISING
    if FIRST_SPI <= interrupt.number < 1020:
        return GIC_SPI, interrupt.number - FIRST_SPI, flags
    if FIRST_PPI <= interrupt.number < FIRST_SPI:
        return GIC_PPI, interrupt.number - FIRST_PPI, flags | (PPI_CPU_MASK if gic.version == 2 else 0)
    raise ValueError(f"INTID {interrupt.number} is neither a PPI nor an SPI")


def _cells(number: int) -> tuple[int, int]:
    return number >> 32, number & 0xFFFF_FFFF


def _reg(*regions: Range) -> tuple[int, ...]:
    return tuple(cell for region in regions for number in region for cell in _cells(number))


def _add(parent: fdt.Node, name: str, properties: dict[str, Value]) -> fdt.Node:
    node = fdt.Node(name)
    _fill(node, properties)
    parent.append(node)
    return node


def _fill(node: fdt.Node, properties: dict[str, Value]) -> None:
    for name, value in properties.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and not 0 <= number < 1 << 32 for number in numbers):
            raise ValueError(f"{name}: {value!r} does not fit cells of 32 bits")
        node.set_property(name, list(value) if isinstance(value, tuple) else value)
