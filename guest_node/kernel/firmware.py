"""What a guest reads of its firmware: the hypervisor's node in a device tree, and the Argo device in tree or tables.

The hypervisor has placed tables or tree in the guest's memory before it starts.  The Argo device says which vectors or
INTIDs to use, or lets the guest choose (hmx/firmware.py, experimental).  The node /hypervisor says who is there
(Linux bindings: xen,xen): evidence for the probe, which knocks before it believes.
"""

from __future__ import annotations

from typing import Final

from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.controllers import Controller
from guest_node.kernel.probe import TreeFinding
from hmx import acpi, fdt
from hmx.firmware import ArgoDevice, VectorPolicy, argo_from_acpi, argo_from_tree
from hmx.hypervisors import BY_COMPATIBLE, NODE
from hmx.memory import FIRMWARE_BASE, FIRMWARE_SIZE, PAGE_SIZE

SHOWN_NAMES: Final = 4  # of a node's `compatible`
SHOWN_NAME: Final = 64
SHOWN_ERROR: Final = 200
_END: Final = FIRMWARE_BASE + FIRMWARE_SIZE


class FirmwareError(Exception):
    """The guest was promised firmware and cannot read it; the message says why."""


class Firmware:
    """What lies at FIRMWARE_BASE: `kind` "acpi" or "devicetree".  Its pages are nobody's from now on."""

    def __init__(self, memory: GuestMemoryView, kind: str) -> None:
        """Raises FirmwareError where the guest is too small for it; what it says is looked at later."""
        self.kind = kind
        self._memory = memory
        self._tree: fdt.Tree | None = None
        try:
            memory.pages.reserve(FIRMWARE_BASE // PAGE_SIZE, FIRMWARE_SIZE // PAGE_SIZE)
        except ValueError as error:
            raise _unreadable(kind, error) from None

    def hypervisor(self) -> TreeFinding | None:
        """What a device tree says of the hypervisor; None for ACPI.  Never raises: a probe goes on without it."""
        if self.kind != "devicetree":
            return None
        try:
            return find_hypervisor(self._parsed())
        except ValueError as error:
            return TreeFinding(error=_short(error))

    def argo(self) -> ArgoDevice | None:
        """The Argo device; None when the firmware knows of none.  Raises FirmwareError."""
        try:
            if self.kind == "devicetree":
                return argo_from_tree(self._parsed())
            return argo_from_acpi(acpi.devices(acpi.tables(self._read, acpi.find_rsdp(self._read))))
        except ValueError as error:
            raise _unreadable(self.kind, error) from None

    def _parsed(self) -> fdt.Tree:
        if self._tree is None:
            self._tree = fdt.parse(bytes(self._memory.buffer[FIRMWARE_BASE:_END]))
        return self._tree

    def _read(self, address: int, size: int) -> bytes | None:
        inside = address >= FIRMWARE_BASE and address + size <= _END
        return bytes(self._memory.buffer[address : address + size]) if inside else None


def find_hypervisor(tree: fdt.Tree) -> TreeFinding | None:
    """What the root's hypervisor node says; None without one.  Raises FdtError for a `compatible` that is none."""
    node = next((child for child in tree.root.children if child.name.partition("@")[0] == NODE), None)
    if node is None:
        return None
    names = node.strings("compatible")
    row = next((BY_COMPATIBLE[name] for name in names if name in BY_COMPATIBLE), None)
    shown = tuple(name[:SHOWN_NAME] for name in names[:SHOWN_NAMES])
    return TreeFinding(node.path, shown, "" if row is None else row.name, "" if row is None else row.abi)


def _unreadable(kind: str, error: ValueError) -> FirmwareError:
    return FirmwareError(f"no {kind} at {FIRMWARE_BASE:#x}: {_short(error)}")


def _short(error: ValueError) -> str:
    """What was wrong, in no more words than a report should hold: names in a blob may be long."""
    text = str(error)
    return text if len(text) <= SHOWN_ERROR else f"{text:.{SHOWN_ERROR}}..."


def follow(controller: Controller, argo: ArgoDevice) -> None:
    """Use the interrupt numbers that the firmware names."""
    match argo.policy:
        case VectorPolicy.SUGGESTED:
            controller.per_cpu = argo.vectors[0]
        case VectorPolicy.GUEST if not argo.vectors[0] <= controller.per_cpu <= argo.vectors[1]:
            controller.per_cpu = argo.vectors[1]
        case VectorPolicy.LINE if argo.interrupt is not None:
            controller.line = argo.interrupt.number
