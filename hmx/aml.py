"""Reads devices and constants out of ACPI byte code.  Not an interpreter: it runs nothing.

What it understands: Scope, Device, Name, Method, OperationRegion and Field at definition level; integers, strings,
buffers, packages and names as data.  Of a method it keeps the value if all it does is return a constant.  Anything
else ends in :class:`AcpiError` with its offset: a guest must not guess at the rest of a block that it cannot follow.

The input is not trusted: nesting is bounded, every length is checked against its enclosing package, no buffer grows
beyond :data:`MAX_BUFFER`, and what all buffers claim beyond their bytes stays below :data:`MAX_PADDING`.

Source: ACPI 6.5, chapter 20 (AML).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hmx.acpi_resources import AcpiError, Resource, resources

MAX_DEPTH: Final = 24
MAX_BUFFER: Final = 1 << 16
MAX_PADDING: Final = 1 << 20
MAX_SEGMENTS: Final = 32
ONES: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class NamePath:
    """A name as data: a reference to an object, not looked up."""

    path: str


Value = int | str | bytes | NamePath | tuple["Value", ...]


class Op(NamedTuple):
    """One constant prefix of AML: its opcode and how many bytes of little-endian integer follow."""

    opcode: int
    size: int


INTEGERS: Final = (Op(0x0A, 1), Op(0x0B, 2), Op(0x0C, 4), Op(0x0E, 8))
_INTEGER_SIZE: Final = {row.opcode: row.size for row in INTEGERS}
CONSTANTS: Final = {0x00: 0, 0x01: 1, 0xFF: ONES}

NAME_OP: Final = 0x08
STRING_OP: Final = 0x0D
SCOPE_OP: Final = 0x10
BUFFER_OP: Final = 0x11
PACKAGE_OP: Final = 0x12
METHOD_OP: Final = 0x14
EXTENDED: Final = 0x5B
REGION_OP: Final = 0x80
FIELD_OP: Final = 0x81
DEVICE_OP: Final = 0x82
RETURN_OP: Final = 0xA4
DUAL_NAME: Final = 0x2E
MULTI_NAME: Final = 0x2F

_LEAD: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NAME: Final = _LEAD | frozenset(b"0123456789")


@dataclass(slots=True)
class Device:
    r"""One device: its full path as `\_SB.ARGO`, and the constants below it by their four-letter names."""

    path: str
    names: dict[str, Value] = field(default_factory=dict)

    @property
    def hid(self) -> str:
        """_HID as text, an EISA id spelled out; "" for a device without one."""
        return _identity(self.names.get("_HID"))

    @property
    def cids(self) -> tuple[str, ...]:
        """_CID: the ids it is compatible with."""
        value = self.names.get("_CID")
        rows = value if isinstance(value, tuple) else (value,)
        return tuple(found for found in map(_identity, rows) if found)

    def resources(self) -> tuple[Resource, ...]:
        """What _CRS says; () without one.  Raises AcpiError."""
        value = self.names.get("_CRS", b"\x79\x00")
        if not isinstance(value, bytes):
            raise AcpiError(f"{self.path}: _CRS is no resource template")
        return resources(value)

    def integer(self, name: str) -> int:
        """A name that holds an integer.  Raises AcpiError."""
        value = self.names.get(name)
        if not isinstance(value, int):
            raise AcpiError(f"{self.path}: {name} is no integer")
        return value


def _identity(value: Value | None) -> str:
    if isinstance(value, str):
        return value
    return eisa_id(value) if isinstance(value, int) else ""


def eisa_id(value: int) -> str:
    """The spelling of a compressed EISA id: 0x0A0CD041 is PNP0C0A."""
    swapped = int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")
    letters = "".join(chr(0x40 + (swapped >> shift & 0x1F)) for shift in (26, 21, 16))
    return f"{letters}{swapped & 0xFFFF:04X}"


def devices(blocks: tuple[bytes, ...]) -> dict[str, Device]:
    """Every device that the AML of `blocks` (bodies of DSDT and SSDTs, in this order) defines, by path.

    A Scope of a later block may add to a device of an earlier one.  Raises AcpiError.
    """
    found: dict[str, Device] = {}
    padding = 0
    for block in blocks:
        walk = _Walk(block, found, padding)
        walk.terms(0, len(block), (), 0)
        padding = walk.padding
    return found


class _Walk:
    """One pass over one block.  Positions are offsets in it; `end` is that of the enclosing package."""

    __slots__ = ("code", "found", "padding")

    def __init__(self, code: bytes, found: dict[str, Device], padding: int) -> None:
        self.code = bytes(code)
        self.found = found
        self.padding = padding  # zeros that buffers were filled up with so far

    def terms(self, at: int, end: int, scope: tuple[str, ...], depth: int) -> None:
        """A list of definitions, up to `end`."""
        self._deep(depth, at)
        while at < end:
            begin = at
            op = self._byte(at, end)
            at += 1
            if op == EXTENDED:
                op = EXTENDED << 8 | self._byte(at, end)
                at += 1
            if op == NAME_OP:
                path, at = self._new(at, end, scope)
                value, at = self._data(at, end, scope, depth + 1)
                self._keep(path, value, begin)
            elif op == SCOPE_OP:
                stop, at = self._package(at, end)
                path, at = self._path(at, stop, scope)
                self.terms(at, stop, path, depth + 1)
                at = stop
            elif op == METHOD_OP:
                stop, at = self._package(at, end)
                path, at = self._new(at, stop, scope)
                self._method(path, at, stop, begin, depth)
                at = stop
            elif op == EXTENDED << 8 | DEVICE_OP:
                stop, at = self._package(at, end)
                path, at = self._new(at, stop, scope)
                name = _text(path)
                if name in self.found:
                    raise AcpiError(f"AML at {begin:#x}: {name} is there already")
                self.found[name] = Device(name)
                self.terms(at, stop, path, depth + 1)
                at = stop
            elif op == EXTENDED << 8 | REGION_OP:
                _, at = self._new(at, end, scope)
                self._byte(at, end)  # its address space; an offset and a length follow
                _, at = self._data(at + 1, end, scope, depth + 1)
                _, at = self._data(at, end, scope, depth + 1)
            elif op == EXTENDED << 8 | FIELD_OP:
                at, _ = self._package(at, end)  # units of a field carry no constant
            else:
                raise AcpiError(f"AML at {begin:#x}: opcode {op:#x} is none that this reader follows")

    def _method(self, path: tuple[str, ...], at: int, stop: int, begin: int, depth: int) -> None:
        self._byte(at, stop)  # arguments and serialisation
        at += 1
        if at < stop and self.code[at] == RETURN_OP:
            try:
                value, after = self._data(at + 1, stop, path, depth + 1)
            except AcpiError:
                return  # it returns an expression
            if after == stop:
                self._keep(path, value, begin)

    def _keep(self, path: tuple[str, ...], value: Value, begin: int) -> None:
        device = self.found.get(_text(path[:-1]))
        if device is None:
            return  # a constant outside any device
        if path[-1] in device.names:
            raise AcpiError(f"AML at {begin:#x}: {_text(path)} is there already")
        device.names[path[-1]] = value

    def _data(self, at: int, end: int, scope: tuple[str, ...], depth: int) -> tuple[Value, int]:
        """One data object and the position behind it."""
        self._deep(depth, at)
        op = self._byte(at, end)
        if op in CONSTANTS:
            return CONSTANTS[op], at + 1
        if op in _INTEGER_SIZE:
            stop = at + 1 + _INTEGER_SIZE[op]
            return int.from_bytes(self._bytes(at + 1, stop, end), "little"), stop
        if op == STRING_OP:
            stop = self.code.find(0, at + 1, end)
            if stop < 0:
                raise AcpiError(f"AML at {at:#x}: a string without an end")
            return self.code[at + 1 : stop].decode("latin-1"), stop + 1
        if op == BUFFER_OP:
            return self._buffer(at, end, scope, depth)
        if op == PACKAGE_OP:
            stop, begin = self._package(at + 1, end)
            count = self._byte(begin, stop)
            begin += 1
            items: list[Value] = []
            while begin < stop:
                item, begin = self._data(begin, stop, scope, depth + 1)
                items.append(item)
            if len(items) > count:
                raise AcpiError(f"AML at {at:#x}: a package of {count} with {len(items)} elements")
            return tuple(items), stop
        if op in _LEAD or op in b"\\^" or op in (DUAL_NAME, MULTI_NAME):
            path, stop = self._path(at, end, scope)
            return NamePath(_text(path)), stop
        raise AcpiError(f"AML at {at:#x}: opcode {op:#x} is no constant")

    def _buffer(self, at: int, end: int, scope: tuple[str, ...], depth: int) -> tuple[bytes, int]:
        stop, begin = self._package(at + 1, end)
        size, begin = self._data(begin, stop, scope, depth + 1)
        if isinstance(size, int):
            self.padding += max(size - (stop - begin), 0)
        if not isinstance(size, int) or max(size, stop - begin) > MAX_BUFFER or self.padding > MAX_PADDING:
            raise AcpiError(f"AML at {at:#x}: a buffer of no sensible size")
        return self.code[begin:stop].ljust(size, b"\0"), stop

    def _package(self, at: int, end: int) -> tuple[int, int]:
        """A PkgLength: where the package ends, and where its content begins."""
        lead = self._byte(at, end)
        more = lead >> 6
        length = lead & 0x3F if more == 0 else lead & 0x0F
        for index in range(more):
            length |= self._byte(at + 1 + index, end) << 4 + 8 * index
        if length < 1 + more or at + length > end:
            raise AcpiError(f"AML at {at:#x}: a package of {length} bytes does not fit where it lies")
        return at + length, at + 1 + more

    def _new(self, at: int, end: int, scope: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
        """The name of what is defined: a name string that does not stand for a scope that is there already."""
        path, stop = self._path(at, end, scope)
        if self.code[stop - 1] not in _NAME:
            raise AcpiError(f"AML at {at:#x}: something is defined without a name")
        return path, stop

    def _path(self, at: int, end: int, scope: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
        """A name string, made absolute, and the position behind it."""
        begin = at
        base = scope
        if self._byte(at, end) == 0x5C:
            base, at = (), at + 1
        while self._byte(at, end) == 0x5E:
            if not base:
                raise AcpiError(f"AML at {begin:#x}: a name above the root")
            base, at = base[:-1], at + 1
        lead = self._byte(at, end)
        if lead == 0:
            return base, at + 1
        count = 1
        if lead == DUAL_NAME:
            count, at = 2, at + 1
        elif lead == MULTI_NAME:
            count, at = self._byte(at + 1, end), at + 2
        if len(base) + count > MAX_SEGMENTS:
            raise AcpiError(f"AML at {begin:#x}: a name of more than {MAX_SEGMENTS} segments")
        segments = []
        for _ in range(count):
            segment = self._bytes(at, at + 4, end)
            if segment[0] not in _LEAD or not _NAME.issuperset(segment):
                raise AcpiError(f"AML at {at:#x}: {segment!r} is no name")
            segments.append(segment.decode("ascii"))
            at += 4
        return (*base, *segments), at

    def _byte(self, at: int, end: int) -> int:
        if at >= end:
            raise AcpiError(f"AML ends at {end:#x} in the middle of something")
        return self.code[at]

    def _bytes(self, at: int, stop: int, end: int) -> bytes:
        if stop > end:
            raise AcpiError(f"AML ends at {end:#x} in the middle of something")
        return self.code[at:stop]

    def _deep(self, depth: int, at: int) -> None:
        if depth > MAX_DEPTH:
            raise AcpiError(f"AML at {at:#x}: nested more than {MAX_DEPTH} deep")


def _text(path: tuple[str, ...]) -> str:
    """A path as ACPI tools print it: segments without the underscores that fill them up."""
    return "\\" + ".".join(segment[0] + segment[1:].rstrip("_") for segment in path)
