"""What firmware says of Argo, by ACPI and by device tree (experimental, not upstream)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from hmx.acpi import AcpiError
from hmx.aml import Device
from hmx.fdt import FdtError, Node, Tree
from hmx.firmware import (
    ARGO_COMPATIBLE,
    ARGO_HID,
    FACTS,
    ArgoDevice,
    Door,
    Interrupt,
    Offer,
    VectorPolicy,
    argo_from_acpi,
    argo_from_tree,
)

#: Memory32Fixed (ReadWrite, 0xFEDF8000, 0x1000), Interrupt (ResourceConsumer, Level, ActiveLow, Exclusive) { 10 }
CRS = bytes.fromhex("86 0900 01 0080dffe 00100000  89 0600 05 01 0a000000  79 00")
NAMES: dict[str, Any] = {
    "_HID": "ARGO0001", "_CRS": CRS, "AREV": 1, "AFEA": 6, "ADRS": (("msr", 0x400000E0), ("new", 9, "more")),
    "APOL": 1, "AVEC": (0xD0, 0xC0), "ANTF": ("virq", "line"), "ASVC": (("storage", 0xD0000, 128),),
}  # fmt: skip
DEVICE = ArgoDevice(
    (Door("msr", 0x400000E0), Door("new", 9)),
    VectorPolicy.SUGGESTED,
    (0xD0, 0xC0),
    Interrupt(10, True, True),
    0xFEDF8000,
    ("virq", "line"),
    (Offer("storage", 0xD0000, 128),),
    features=6,
    revision=1,
)
PROPERTIES = {
    "compatible": b"argosy,argo-1\0argosy,argo\0",
    "reg": struct.pack(">4I", 0, 0xA2F0000, 0, 0x1000),
    "interrupts": struct.pack(">3I", 0, 8, 4),
    "argosy,revision": struct.pack(">I", 1),
    "argosy,features": struct.pack(">I", 6),
    "argosy,doors": b"hvc\0smc\0",
    "argosy,door-selectors": struct.pack(">QQ", 0xC6004152, 0x1_0000_0000),
    "argosy,vector-policy": struct.pack(">I", 0),
    "argosy,vectors": b"",
    "argosy,notifications": b"line\0",
    "argosy,services": b"storage\0net\0",
    "argosy,service-ports": struct.pack(">4I", 0xD0000, 128, 0xC0000, 2),
}


def tree(**changes: bytes | None) -> Tree:
    root = Node("", properties={"#address-cells": struct.pack(">I", 2), "#size-cells": struct.pack(">I", 2)})
    replaced = {**PROPERTIES, **{name.replace("__", ",").replace("_", "-"): value for name, value in changes.items()}}
    kept = {name: value for name, value in replaced.items() if value is not None}
    root.children.append(Node("argo@a2f0000", root, kept))
    return Tree(root, (), 0)


def test_names_are_published() -> None:
    """Both sides, and whoever writes another driver, rely on them."""
    assert (ARGO_HID, ARGO_COMPATIBLE) == ("ARGO0001", "argosy,argo")
    assert [tuple(row) for row in FACTS] == [
        ("revision", "AREV", "argosy,revision", ""),
        ("features", "AFEA", "argosy,features", ""),
        ("doors", "ADRS", "argosy,doors", "argosy,door-selectors"),
        ("policy", "APOL", "argosy,vector-policy", ""),
        ("vectors", "AVEC", "argosy,vectors", ""),
        ("notifications", "ANTF", "argosy,notifications", ""),
        ("services", "ASVC", "argosy,services", "argosy,service-ports"),
    ]
    assert [(policy.name, policy.value) for policy in VectorPolicy] == [("LINE", 0), ("SUGGESTED", 1), ("GUEST", 2)]


def test_an_acpi_device_tells_everything() -> None:
    """Doors in the order of preference; an unknown door and more elements than known are no error."""
    assert argo_from_acpi({"x": Device("x", {"_HID": "OTHER001"}), "y": Device("y", dict(NAMES))}) == DEVICE
    assert argo_from_acpi({"x": Device("x", {"_HID": "OTHER001"})}) is None


def test_a_node_tells_everything() -> None:
    """The same facts; an interrupt of the GIC, and the page of the mmio door."""
    assert argo_from_tree(tree()) == ArgoDevice(
        (Door("hvc", 0xC6004152), Door("smc", 0x1_0000_0000)),
        VectorPolicy.LINE,
        (),
        Interrupt(40, True, False),
        0xA2F0000,
        ("line",),
        (Offer("storage", 0xD0000, 128), Offer("net", 0xC0000, 2)),
        features=6,
        revision=1,
    )


def test_resources_are_optional() -> None:
    """Without a page there is no mmio door; without a line another policy still stands."""
    found = argo_from_acpi({"y": Device("y", {**NAMES, "_CRS": bytes.fromhex("7900")})})
    assert found is not None and (found.mmio, found.interrupt) == (None, None)
    range_of = {"argosy__vector_policy": struct.pack(">I", 2), "argosy__vectors": struct.pack(">II", 32, 99)}
    choose = tree(interrupts=None, reg=None, **range_of)
    node = argo_from_tree(choose)
    assert node is not None
    assert (node.mmio, node.interrupt, node.policy, node.vectors) == (None, None, VectorPolicy.GUEST, (32, 99))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AREV": "1"}, "AREV is no integer"),
        ({"AFEA": None}, "AFEA is no integer"),
        ({"ADRS": 5}, "ADRS is no package"),
        ({"ADRS": (("msr",),)}, "ADRS holds something"),
        ({"ADRS": ("msr",)}, "ADRS holds something"),
        ({"ADRS": ((5, 5),)}, "a text must be"),
        ({"ADRS": (("msr", "x"),)}, "a number must be"),
        ({"ASVC": (("storage", 1),)}, "ASVC holds something"),
        ({"ANTF": (1,)}, "a text must be"),
        ({"AVEC": ("a",)}, "a number must be"),
        ({"APOL": 3}, "vector policy 3"),
        ({"APOL": 0, "_CRS": bytes.fromhex("7900")}, "without an interrupt"),
        ({"AVEC": ()}, "none is named"),
        ({"APOL": 2, "AVEC": (32,)}, "no range"),
        ({"APOL": 2, "AVEC": (33, 32)}, "no range"),
        ({"_CRS": b""}, "end tag"),
        ({"_CRS": 5}, "no resource template"),
    ],
)
def test_acpi_devices_that_contradict_themselves(changes: dict[str, Any], words: str) -> None:
    """AcpiError says which name."""
    with pytest.raises(AcpiError, match=words):
        argo_from_acpi({"y": Device("y", {**NAMES, **changes})})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"argosy__revision": None}, "argosy,revision is not one cell"),
        ({"argosy__features": b""}, "argosy,features is not one cell"),
        ({"argosy__doors": b"hvc\0"}, "do not match"),
        ({"argosy__services": b"storage\0"}, "do not match"),
        ({"argosy__vector_policy": struct.pack(">I", 7)}, "vector policy 7"),
        ({"interrupts": None}, "without an interrupt"),
        ({"argosy__vector_policy": struct.pack(">I", 1)}, "none is named"),
        ({"argosy__vector_policy": struct.pack(">I", 2)}, "no range"),
    ],
)
def test_nodes_that_contradict_themselves(changes: dict[str, bytes | None], words: str) -> None:
    """FdtError says which property."""
    with pytest.raises(FdtError, match=words):
        argo_from_tree(tree(**changes))
