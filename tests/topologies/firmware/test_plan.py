"""What the planner puts into a guest's firmware of the patch panel: the services that were connected at the start."""

from __future__ import annotations

import pytest

from hmx import acpi, aml, fdt
from hmx.acpi_resources import ExtendedInterrupt, Memory32
from hmx.firmware import Offer, argo_from_acpi, argo_from_tree
from hmx.memory import FIRMWARE_BASE
from topologies import levels
from topologies.load import loads
from topologies.plan import Places, plan

LAB = """
name: x
hypervisors: {{hv0: {{{keys}}}, far: {{}}}}
guests:
  app: {{on: hv0, program: 'm:f', memory: 16MiB}}
  plain: {{on: hv0, program: 'm:f', memory: 16MiB}}
  store: {{on: far, program: 'm:f', memory: 16MiB}}
destinations:
  - {{from: app, service: storage, instance: 3, to: store}}
  - {{from: app, service: echo, to: store}}
  - {{from: app, service: storage, instance: 0, to: plain}}
  - {{from: app, service: storage, instance: 1, to: store}}
  - {{from: app, source-port: 77, to: store}}
"""
CONNECTED = (("echo", 7, 1), ("storage", 0xD0000, 2), ("storage", 0xD0003, 1))


def firmware(text: str) -> dict[str, bytes]:
    """What lies at FIRMWARE_BASE of each guest."""
    made = plan(loads(text), Places("/topo", "/run/x", "/run/s"), seed=1)
    return {domain.name: domain.firmware for config in made.hypervisors for domain in config.domains}


def devices(blob: bytes) -> dict[str, aml.Device]:
    """The devices of ACPI's tables."""

    def read(address: int, size: int) -> bytes | None:
        at = address - FIRMWARE_BASE
        return blob[at : at + size] if 0 <= at <= len(blob) - size else None

    return acpi.devices(acpi.tables(read, acpi.find_rsdp(read)))


def test_the_services_of_a_guest() -> None:
    """Each once, instances that follow each other together; a slot by source port is no service."""
    topology = loads(LAB.format(keys=""))
    assert levels.offers(topology, "app") == CONNECTED
    assert levels.offers(topology, "plain") == levels.offers(topology, "store") == ()


@pytest.mark.parametrize(("kind", "keys"), [
    ("acpi", "firmware: acpi"), ("devicetree", "arch: aarch64, firmware: devicetree"),
])  # fmt: skip
def test_the_firmware_names_them(kind: str, keys: str) -> None:
    """Both kinds say the same; a guest without destinations is told of none."""
    blobs, found = firmware(LAB.format(keys=keys)), {}
    for name in ("app", "plain"):
        device = argo_from_acpi(devices(blobs[name])) if kind == "acpi" else argo_from_tree(fdt.parse(blobs[name]))
        assert device is not None
        found[name] = device.services
    assert found == {"app": tuple(Offer(*row) for row in CONNECTED), "plain": ()}


WINDOWS = """
name: x
hypervisors: {{hv0: {{{keys}}}}}
guests:
  disk: {{on: hv0, program: 'm:f', memory: 16MiB}}
  none: {{on: hv0, program: 'm:f', memory: 16MiB, devices: [{{type: rng}}]}}
  two: {{on: hv0, program: 'm:f', memory: 16MiB, devices: [
    {{type: blk, transport: virtio-mmio}}, {{type: console}}, {{type: rng, transport: virtio-mmio}}]}}
  guarded: {{on: hv0, program: 'm:f', memory: 16MiB, devices: [
    {{type: blk, transport: virtio-mmio, access: dma-iommu}}]}}
destinations:
  - {{from: none, service: rng, to: disk}}
  - {{from: two, service: storage, to: disk}}
  - {{from: two, service: console, to: disk}}
  - {{from: two, service: rng, to: disk}}
  - {{from: guarded, service: storage, to: disk}}
"""


def test_acpi_names_the_windows() -> None:
    """LNRO0005 for each device over virtio-mmio, and for the IOMMU at the last window: 512 bytes, a level line."""
    blobs = firmware(WINDOWS.format(keys="firmware: acpi"))
    found = {
        name: [device.resources() for device in devices(blob).values() if device.hid == "LNRO0005"]
        for name, blob in blobs.items()
    }
    lines = [
        (Memory32(base, 0x200, True), ExtendedInterrupt((irq,), True, False))
        for base, irq in ((0xFEB0_0000, 5), (0xFEB0_0200, 9), (0xFEB0_0E00, 12))
    ]
    assert found == {"disk": [], "none": [], "two": lines[:2], "guarded": [lines[0], lines[2]]}


def test_a_device_tree_names_the_windows() -> None:
    """virtio,mmio (Linux bindings): Xen's SPIs are INTIDs of 32 and more, high level (4)."""
    blobs = firmware(WINDOWS.format(keys="arch: aarch64, firmware: devicetree"))
    found = {
        name: [(node.reg()[0], node.cells("interrupts")) for node in fdt.parse(blob).find("virtio,mmio")]
        for name, blob in blobs.items()
    }
    assert found == {
        "disk": [],
        "none": [],
        "two": [((0x0200_0000, 0x200), (0, 1, 4)), ((0x0200_0200, 0x200), (0, 2, 4))],
        "guarded": [((0x0200_0000, 0x200), (0, 1, 4)), ((0x0200_0E00, 0x200), (0, 9, 4))],
    }
