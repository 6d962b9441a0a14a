"""The AML of DSDT and SSDT: what an operating system of the guest finds below _SB.

DSDT: a processor device for each vCPU; motherboard resources (PNP0C02) that keep others off the ports of doors and of
uXen's control byte; uXen's v4v device and its enumerator of storage units; virtio-mmio devices (LNRO0005); the
generation id (ADDR gives the address of its 16 bytes); the Generic Event Device.

SSDT: the Argo device, experimental, not upstream.  Its hardware id "ARGO0001" is registered nowhere.  Its names:

    AREV  revision of this layout (1)
    AFEA  feature bits (0)
    ADRS  doors in the hypervisor's order of preference: packages {name, selector}
    APOL  who chooses the interrupt: 0 it is that of _CRS, 1 AVEC suggests numbers, 2 the guest chooses within AVEC
    AVEC  APOL 0: empty; 1: vectors (x86) or INTIDs (Arm), the most important class first; 2: {first, last}
    ANTF  notification modes that the hypervisor offers, by name
    ASVC  services that are connected: packages {name, base port, instances}
    _CRS  the page of the `mmio` door, and the line interrupt, where there are such

:mod:`hmx.firmware` holds the same vocabulary for readers, and for device trees.

Sources: ACPI 6.5, 5.6.9 (GED), 6.1 and 6.2; QEMU vmgenid; uXen DSDT; Linux virtio_mmio.
"""

from __future__ import annotations

from typing import Final

from hmx.firmware import ARGO_HID, FACT, ArgoDevice
from hmx.trap import Arch
from hmx.uxen_enum import (
    ACPI_CHILDREN,
    BITMAP_BYTES,
    BITMAP_PORT,
    CONTROL_PORT,
    STATUS_ABSENT,
    STATUS_HIDDEN,
    STATUS_PRESENT,
    Polarity,
)
from topologies.firmware import aml
from topologies.firmware.machine import Machine, Uxen

MMIO_DOOR_SIZE: Final = 0x1000
GENERATION_HID: Final = "ARGO0002"
"""Registered nowhere either; drivers know the device by its compatible ids."""
_PIO_DOOR: Final = "pio"
_PIO_DOOR_SIZE: Final = 4
_NOTIFY_CHANGED: Final = 0x80
_USP: Final = tuple(f"USP{unit}" for unit in range(8))
"""The one-bit fields that uXen's DSDT has for the first units."""


def dsdt(machine: Machine) -> bytes:
    """The terms of the DSDT.  Raises ValueError for what has no encoding."""
    terms = [_processor(number) for number in range(len(machine.processors))]
    if machine.arch is Arch.X86_64:
        terms += _motherboard(machine)
    if machine.uxen is not None:
        terms += _uxen(machine.uxen)
    terms += [
        aml.device(
            f"VR{number:02X}",
            aml.named("_HID", "LNRO0005"),
            aml.named("_UID", number),
            aml.named("_CCA", 1),
            aml.resources(aml.memory32(device.base, device.size), aml.interrupt(device.interrupt)),
        )
        for number, device in enumerate(machine.virtio)
    ]
    if machine.generation_id is not None:
        terms.append(_generation(machine.generation_id))
    if machine.ged:
        terms.append(_events(machine))
    return aml.scope("\\_SB", *terms)


def ssdt(argo: ArgoDevice) -> bytes:
    """The terms of the SSDT with the Argo device."""
    facts: dict[str, aml.Item] = {
        "revision": argo.revision,
        "features": argo.features,
        "doors": tuple((door.name, door.selector) for door in argo.doors),
        "policy": int(argo.policy),
        "vectors": argo.vectors,
        "notifications": argo.notifications,
        "services": tuple((offer.name, offer.base, offer.instances) for offer in argo.services),
    }
    descriptors = []
    if argo.mmio is not None:
        descriptors.append(aml.memory32(argo.mmio, MMIO_DOOR_SIZE))
    if argo.interrupt is not None:
        descriptors.append(aml.interrupt(argo.interrupt))
    terms = [aml.named(FACT[fact].acpi, value) for fact, value in facts.items()]
    return aml.scope(
        "\\_SB",
        aml.device(
            "ARGO",
            aml.named("_HID", ARGO_HID),
            aml.named("_UID", 0),
            aml.named("_STA", STATUS_PRESENT),
            *terms,
            aml.resources(*descriptors),
        ),
    )


def _processor(number: int) -> bytes:
    return aml.device(f"C{number:03X}", aml.named("_HID", "ACPI0007"), aml.named("_UID", number))


def _motherboard(machine: Machine) -> list[bytes]:
    ports = [aml.io(CONTROL_PORT, 1)] if machine.uxen is not None else []
    if machine.argo is not None:
        ports += [aml.io(door.selector, _PIO_DOOR_SIZE) for door in machine.argo.doors if door.name == _PIO_DOOR]
    if not machine.hardware_reduced:
        ports.append(aml.io(machine.pm_base, 0x10))
    if not ports:
        return []
    return [aml.device("MBRD", aml.named("_HID", aml.eisa_id("PNP0C02")), aml.named("_UID", 0), aml.resources(*ports))]


def _uxen(uxen: Uxen) -> list[bytes]:
    found = [
        aml.device(
            "UXV4",
            aml.named("_HID", "UXV0100"),
            aml.named("_CID", "uxenv4v"),
            aml.named("_STA", STATUS_PRESENT),
            aml.resources(aml.irq(uxen.line)),
        )
    ]
    if not uxen.enumerator:
        return found
    present, absent = aml.returns(aml.integer(STATUS_PRESENT)), aml.returns(aml.integer(STATUS_ABSENT))
    children = [
        aml.device(
            f"UXS{child.unit}",
            aml.named("_HID", child.hid),
            aml.named("_UID", child.unit),
            aml.method(
                "_STA", aml.if_equal(aml.name(_USP[child.unit]), aml.integer(_bit(uxen.polarity)), present), absent
            ),
        )
        for child in ACPI_CHILDREN
    ]
    found.append(
        aml.device(
            "UXSE",
            aml.named("_HID", "UXS0FFF"),
            aml.named("_CID", "uxsenum"),
            aml.named("_STA", STATUS_HIDDEN),
            aml.resources(aml.io(BITMAP_PORT, BITMAP_BYTES)),
            aml.io_region("USPR", BITMAP_PORT, BITMAP_BYTES),
            aml.byte_field("USPR", _USP),
            *children,
        )
    )
    return found


def _bit(polarity: Polarity) -> int:
    """The value of the bit that means presence."""
    return int(polarity)


def _generation(address: int) -> bytes:
    halves = (address & 0xFFFF_FFFF, address >> 32)
    return aml.device(
        "VGEN",
        aml.named("_HID", GENERATION_HID),
        aml.named("_CID", ("VM_Gen_Counter", "VMGENCTR")),
        aml.named("_DDN", "VM_Gen_Counter"),
        aml.named("_STA", STATUS_PRESENT),
        aml.method("ADDR", aml.returns(aml.constant(halves))),
    )


def _events(machine: Machine) -> bytes:
    branches = [
        aml.if_equal(
            aml.ARG0,
            aml.integer(event.interrupt.number),
            aml.notify(f"\\_SB.{event.device}", _NOTIFY_CHANGED),
        )
        for event in machine.ged
    ]
    return aml.device(
        "GED0",
        aml.named("_HID", "ACPI0013"),
        aml.named("_UID", 0),
        aml.resources(*(aml.interrupt(event.interrupt) for event in machine.ged)),
        aml.method("_EVT", *branches, arguments=1, serialized=True),
    )
