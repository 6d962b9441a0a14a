"""Writes AML, as far as this project emits any: devices with names, constants, resources, and two small methods.

Every function returns the encoded bytes.  Encodings are the shortest there are, so that a disassembler's output
compiles to the same bytes again.

Source: ACPI 6.5, chapters 6.4 (resource descriptors) and 20 (AML).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from hmx.firmware import Interrupt

ARG0: Final = b"\x68"
SYSTEM_IO: Final = 1
BYTE_ACCESS: Final = 1

Item = int | str | bytes | tuple["Item", ...]
"""A constant: an integer, a string, a buffer, a package."""


def package_length(size: int) -> bytes:
    """PkgLength of a package whose content has `size` bytes: it counts itself, in one to four bytes."""
    if size + 1 < 0x40:
        return bytes((size + 1,))
    for more in (1, 2, 3):
        total = size + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes((more << 6 | total & 0xF,)) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"a package of {size} bytes")


def name(path: str) -> bytes:
    r"""A name string: `\_SB.ARGO`, `ARGO`, `_CRS`.  Segments are filled up to four characters."""
    root = path.startswith("\\")
    segments = [segment.ljust(4, "_") for segment in path.lstrip("\\").split(".") if segment]
    if any(len(segment) != 4 or not segment.isascii() or segment[0].isdigit() for segment in segments):
        raise ValueError(f"{path!r} is no ACPI name")
    body = "".join(segments).encode("ascii")
    if len(segments) == 2:
        body = b"\x2e" + body
    elif len(segments) != 1:
        body = bytes((0x2F, len(segments))) + body if segments else b"\0"
    return (b"\\" if root else b"") + body


def integer(value: int) -> bytes:
    """An integer constant of up to 64 bits."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value} has no 64 bits")


def constant(value: Item) -> bytes:
    """Any constant."""
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, str):
        if "\0" in value or not value.isascii():
            raise ValueError(f"{value!r} is no ACPI string")
        return b"\x0d" + value.encode("ascii") + b"\0"
    if isinstance(value, bytes):
        content = integer(len(value)) + value
        return b"\x11" + package_length(len(content)) + content
    if len(value) > 0xFF:
        raise ValueError(f"a package of {len(value)} elements")
    content = bytes((len(value),)) + b"".join(map(constant, value))
    return b"\x12" + package_length(len(content)) + content


def eisa_id(text: str) -> int:
    """The compressed form of an EISA id: PNP0C0A is 0x0A0CD041."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return int.from_bytes((letters << 16 | int(text[3:], 16)).to_bytes(4, "big"), "little")


# ---- definitions ------------------------------------------------------------------------------------------


def _wrapped(opcode: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return opcode + package_length(len(content)) + content


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) {terms}."""
    return _wrapped(b"\x10", name(path), *terms)


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) {terms}."""
    return _wrapped(b"\x5b\x82", name(path), *terms)


def named(path: str, value: Item) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name(path) + constant(value)


def method(path: str, *terms: bytes, arguments: int = 0, serialized: bool = False) -> bytes:
    """Method (path, arguments) {terms}."""
    return _wrapped(b"\x14", name(path), bytes((arguments | serialized << 3,)), *terms)


def returns(value: bytes) -> bytes:
    """Return (value), of an encoded value."""
    return b"\xa4" + value


def if_equal(left: bytes, right: bytes, *terms: bytes) -> bytes:
    """If (left == right) {terms}, of encoded operands."""
    return _wrapped(b"\xa0", b"\x93", left, right, *terms)


def notify(path: str, code: int) -> bytes:
    """Notify (path, code)."""
    return b"\x86" + name(path) + integer(code)


def io_region(path: str, port: int, size: int) -> bytes:
    """OperationRegion (path, SystemIO, port, size)."""
    return b"\x5b\x80" + name(path) + bytes((SYSTEM_IO,)) + integer(port) + integer(size)


def byte_field(region: str, bits: Iterable[str]) -> bytes:
    """Field (region, ByteAcc, NoLock, Preserve) of one-bit units, from bit 0 of the region on."""
    units = b"".join(name(bit) + b"\x01" for bit in bits)
    return _wrapped(b"\x5b\x81", name(region), bytes((BYTE_ACCESS,)), units)


# ---- resources --------------------------------------------------------------------------------------------


def resources(*descriptors: bytes) -> bytes:
    """Name (_CRS, ResourceTemplate () {descriptors})."""
    return named("_CRS", b"".join(descriptors) + b"\x79\x00")


def irq(line: int) -> bytes:
    """IRQNoFlags () {line}: an ISA interrupt, edge, active high, exclusive."""
    return b"\x22" + (1 << line).to_bytes(2, "little")


def interrupt(*lines: Interrupt) -> bytes:
    """Interrupt (ResourceConsumer, trigger, polarity, Exclusive) {numbers}; all share the trigger of the first."""
    if any(line[1:] != lines[0][1:] for line in lines):
        raise ValueError("interrupts of one descriptor share trigger and polarity")
    if not all(0 <= line.number < 1 << 32 for line in lines):
        raise ValueError("an interrupt's number has 32 bits")
    flags = 1 | (not lines[0].level) << 1 | lines[0].active_low << 2
    numbers = struct.pack(f"<{len(lines)}I", *(line.number for line in lines))
    return struct.pack("<BHBB", 0x89, 2 + len(numbers), flags, len(lines)) + numbers


def memory32(base: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, size).  Raises ValueError beyond 4 GiB."""
    if not 0 <= base < base + size <= 1 << 32:
        raise ValueError(f"{size:#x} bytes at {base:#x} do not lie below 4 GiB")
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def io(port: int, size: int) -> bytes:
    """IO (Decode16, port, port, 1, size).  Raises ValueError beyond the 64 Ki ports."""
    if not (0 <= port < port + size <= 1 << 16 and size <= 0xFF):
        raise ValueError(f"{size} ports at {port:#x}")
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, size)
