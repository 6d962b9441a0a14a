"""Property: byte code is devices with constants, or AcpiError in few words; ids, resources and integers of what is
accepted are read or refused the same way; nothing grows beyond what its length allows.

Input: a choice, then byte code, or (bit 0) a resource template; with bit 1 the code comes in two blocks.
"""

from __future__ import annotations

from hmx import aml
from hmx.acpi_resources import AcpiError, ExtendedInterrupt, Irq, resources
from hmx.firmware import argo_from_acpi
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
WORDS = 400


def one_input(data: bytes) -> None:
    """Read one block of either kind."""
    choices = Choices(data)
    how = choices.u8()
    if how & 1:
        _template(choices.rest())
        return
    first = choices.take(choices.u16()) if how & 2 else b""
    blocks = (*([first] if first else []), choices.rest())
    TALLY.count += 1
    try:
        found = aml.devices(blocks)
    except AcpiError as error:
        assert len(str(error)) < WORDS
        return
    for path, device in found.items():
        assert path == device.path and path.startswith("\\")
        assert len(device.hid) <= len(data) + 8 and all(device.cids)
        for name, value in device.names.items():
            assert 1 <= len(name) <= 4
            TALLY.count += 1
            try:
                assert device.integer(name) == value
            except AcpiError:
                assert not isinstance(value, int)
        try:
            device.resources()
        except AcpiError as error:
            assert len(str(error)) < WORDS
    try:
        argo_from_acpi(found)
    except AcpiError as error:
        assert len(str(error)) < WORDS


def _template(data: bytes) -> None:
    TALLY.count += 1
    try:
        found = resources(data)
    except AcpiError as error:
        assert len(str(error)) < WORDS
        return
    assert len(found) <= len(data)
    for resource in found:
        if isinstance(resource, Irq | ExtendedInterrupt):
            assert len(resource.numbers) <= 255 and all(0 <= number < 1 << 32 for number in resource.numbers)
