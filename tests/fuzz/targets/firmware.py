"""Property: whatever a hypervisor placed, a guest's kernel has its hypervisor node (or an error to show, bounded) and
its Argo device, or FirmwareError in bounded words; numbers that it would follow are numbers, and nothing is written.

Input: a choice of the kind and of mending (as the targets acpi and fdt have it), then the firmware.
"""

from __future__ import annotations

from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.controllers import Apics
from guest_node.kernel.firmware import (
    SHOWN_ERROR,
    SHOWN_NAME,
    SHOWN_NAMES,
    Firmware,
    FirmwareError,
    follow,
)
from hmx.firmware import ArgoDevice, VectorPolicy
from hmx.memory import FIRMWARE_BASE, FIRMWARE_SIZE, Window
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally
from tests.fuzz.targets.acpi import resealed
from tests.fuzz.targets.fdt import mended

TALLY = Tally()
_RAM = bytearray(FIRMWARE_BASE + FIRMWARE_SIZE)


def one_input(data: bytes) -> None:
    """A guest looks at its firmware as it boots."""
    choices = Choices(data)
    how = choices.u8()
    kind = "devicetree" if how & 4 else "acpi"
    blob = choices.rest()
    if how & 1:
        blob = mended(blob, bool(how & 2)) if how & 4 else resealed(blob)
    end = FIRMWARE_BASE + len(blob)
    _RAM[FIRMWARE_BASE:end] = blob
    try:
        _look(Firmware(GuestMemoryView(memoryview(_RAM), _window), kind))
        assert _RAM[FIRMWARE_BASE:end] == blob
    finally:
        _RAM[FIRMWARE_BASE:end] = bytes(len(blob))


def _window(gpa: int, size: int) -> Window:
    return Window(memoryview(_RAM), gpa, size)


def _look(firmware: Firmware) -> None:
    TALLY.count += 1
    found = firmware.hypervisor()
    if found is not None:
        assert len(found.error) <= SHOWN_ERROR + 3 and len(found.compatible) <= SHOWN_NAMES
        assert all(len(name) <= SHOWN_NAME for name in found.compatible)
        assert found.report()
    TALLY.count += 1
    try:
        argo = firmware.argo()
    except FirmwareError as error:
        assert len(str(error)) < SHOWN_ERROR + 100
        return
    if argo is not None:
        _follow(argo)


def _follow(argo: ArgoDevice) -> None:
    controller = Apics()
    follow(controller, argo)
    assert controller.per_cpu >= 0 and controller.line >= 0
    assert argo.policy in VectorPolicy
