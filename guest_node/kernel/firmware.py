"""What a guest reads of its firmware: the Argo device in ACPI tables or in a device tree, and the help it gives.

The hypervisor has placed tables or tree in the guest's memory before it starts.  The Argo device says which vectors or
INTIDs to use, or lets the guest choose (hmx/firmware.py, experimental).
"""

from __future__ import annotations

from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.controllers import Controller
from hmx import acpi, fdt
from hmx.firmware import ArgoDevice, VectorPolicy, argo_from_acpi, argo_from_tree
from hmx.memory import FIRMWARE_BASE, FIRMWARE_SIZE, PAGE_SIZE


class FirmwareError(Exception):
    """The guest was promised firmware and cannot read it; the message says why."""


def read_firmware(memory: GuestMemoryView, kind: str) -> ArgoDevice | None:
    """The Argo device of `kind` "acpi" or "devicetree"; None when the firmware knows of none.  Raises FirmwareError."""
    end = FIRMWARE_BASE + FIRMWARE_SIZE
    try:
        memory.pages.reserve(FIRMWARE_BASE // PAGE_SIZE, FIRMWARE_SIZE // PAGE_SIZE)
        if kind == "devicetree":
            return argo_from_tree(fdt.parse(bytes(memory.buffer[FIRMWARE_BASE:end])))

        def read(address: int, size: int) -> bytes | None:
            inside = address >= FIRMWARE_BASE and address + size <= end
            return bytes(memory.buffer[address : address + size]) if inside else None

        return argo_from_acpi(acpi.devices(acpi.tables(read, acpi.find_rsdp(read))))
    except (ValueError, acpi.AcpiError) as error:
        raise FirmwareError(f"no {kind} at {FIRMWARE_BASE:#x}: {error}") from None


def follow(controller: Controller, argo: ArgoDevice) -> None:
    """Use the interrupt numbers that the firmware names."""
    match argo.policy:
        case VectorPolicy.SUGGESTED:
            controller.per_cpu = argo.vectors[0]
        case VectorPolicy.GUEST if not argo.vectors[0] <= controller.per_cpu <= argo.vectors[1]:
            controller.per_cpu = argo.vectors[1]
        case VectorPolicy.LINE if argo.interrupt is not None:
            controller.line = argo.interrupt.number
