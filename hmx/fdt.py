"""Flattened device trees as a guest reads them.

The blob is not trusted: every offset and length is checked, nesting and size are bounded, names and strings are what
the specification allows.  Whatever is wrong ends in :class:`FdtError`.

Source: Devicetree Specification 0.4, chapters 2 (properties) and 5 (the flattened format, version 17).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAGIC: Final = 0xD00D_FEED
VERSION: Final = 17
HEADER: Final = struct.Struct(">10I")
RESERVATION: Final = struct.Struct(">QQ")
MAX_SIZE: Final = 2 << 20
MAX_DEPTH: Final = 64
MAX_CELLS: Final = 4
MAX_NAME: Final = 255

BEGIN_NODE: Final = 1
END_NODE: Final = 2
PROP: Final = 3
NOP: Final = 4
END: Final = 9

GIC_SPI: Final = 0
GIC_PPI: Final = 1
FIRST_PPI: Final = 16
FIRST_SPI: Final = 32
EDGE_RISING: Final = 1
LEVEL_HIGH: Final = 4
_LEVEL: Final = 0xC
_LOW: Final = 0xA


class FdtError(ValueError):
    """The blob is no device tree, or a property is not what it must be."""


class Interrupt(NamedTuple):
    """One interrupt of a GIC: its INTID and how it is triggered."""

    intid: int
    level: bool
    active_low: bool


@dataclass(slots=True, eq=False)
class Node:
    """One node: its name with unit address ("" for the root), raw properties, children, and the node above."""

    name: str
    parent: Node | None = None
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The full path; "/" for the root."""
        parts = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return "/" + "/".join(reversed(parts))

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the blob."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def compatible_with(self, name: str) -> bool:
        """Whether `compatible` lists `name`; a malformed list lists nothing."""
        return name.encode() in self.properties.get("compatible", b"").split(b"\0")

    def cells(self, name: str) -> tuple[int, ...]:
        """A property as u32 cells; () without it.  Raises FdtError."""
        data = self.properties.get(name, b"")
        if len(data) % 4:
            raise FdtError(f"{self.path}: {name} has {len(data)} bytes, no whole number of cells")
        return struct.unpack(f">{len(data) // 4}I", data)

    def cell(self, name: str, default: int | None = None) -> int:
        """A property of one cell.  Raises FdtError, also for one that is missing and has no default."""
        cells = self.cells(name)
        if not cells and name not in self.properties and default is not None:
            return default
        if len(cells) != 1:
            raise FdtError(f"{self.path}: {name} is not one cell")
        return cells[0]

    def quads(self, name: str) -> tuple[int, ...]:
        """A property as u64 pairs of cells; () without it.  Raises FdtError."""
        return _numbers(self.cells(name), 2, f"{self.path}: {name}")

    def strings(self, name: str) -> tuple[str, ...]:
        """A property as a list of strings; () without it.  Raises FdtError."""
        data = self.properties.get(name, b"")
        if not data:
            return ()
        if not data.endswith(b"\0") or not all(byte == 0 or 0x20 <= byte < 0x7F for byte in data):
            raise FdtError(f"{self.path}: {name} is no list of strings")
        return tuple(data[:-1].decode("ascii").split("\0"))

    def reg(self) -> tuple[tuple[int, int], ...]:
        """`reg` as (address, size), by the cell counts of the node above.  Raises FdtError."""
        above = self.parent or self
        counts = [above.cell("#address-cells", 2), above.cell("#size-cells", 1)]
        if max(counts) > MAX_CELLS or sum(counts) == 0:
            raise FdtError(f"{above.path}: {counts[0]} address and {counts[1]} size cells")
        cells = self.cells("reg")
        if len(cells) % sum(counts):
            raise FdtError(f"{self.path}: reg has {len(cells)} cells, not a multiple of {sum(counts)}")
        rows = (cells[at : at + sum(counts)] for at in range(0, len(cells), sum(counts)))
        return tuple((_number(row[: counts[0]]), _number(row[counts[0] :])) for row in rows)

    def interrupts(self) -> tuple[Interrupt, ...]:
        """`interrupts` in a GIC's three cells (kind, number, flags).  Raises FdtError."""
        cells = self.cells("interrupts")
        if len(cells) % 3:
            raise FdtError(f"{self.path}: interrupts has {len(cells)} cells, not three each")
        found = []
        for kind, number, flags in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
            if kind not in (GIC_SPI, GIC_PPI) or number >= (16 if kind == GIC_PPI else 988):
                raise FdtError(f"{self.path}: interrupt <{kind} {number} {flags:#x}> is none of a GIC")
            first = FIRST_PPI if kind == GIC_PPI else FIRST_SPI
            found.append(Interrupt(first + number, bool(flags & _LEVEL), bool(flags & _LOW)))
        return tuple(found)


class Tree(NamedTuple):
    """A parsed blob: the root, memory that must be left alone as (address, size), and the boot CPU's id."""

    root: Node
    reservations: tuple[tuple[int, int], ...]
    boot_cpu: int

    def find(self, compatible: str) -> tuple[Node, ...]:
        """All nodes that are compatible with a name, in the order of the blob."""
        return tuple(node for node in self.root.walk() if node.compatible_with(compatible))

    def at(self, path: str) -> Node | None:
        """The node at a full path, or None."""
        node = self.root
        for name in filter(None, path.split("/")):
            below = next((child for child in node.children if child.name == name), None)
            if below is None:
                return None
            node = below
        return node

    def phandle(self, number: int) -> Node | None:
        """The node whose `phandle` is `number`, or None."""
        wanted = struct.pack(">I", number)
        return next((node for node in self.root.walk() if node.properties.get("phandle") == wanted), None)


def parse(blob: bytes | bytearray | memoryview) -> Tree:
    """Read a blob of version 17 or compatible with it.  Bytes behind its stated size are ignored.  Raises FdtError."""
    data = bytes(blob[:MAX_SIZE])
    if len(data) < HEADER.size:
        raise FdtError(f"{len(data)} bytes are too short for a header")
    magic, total, structure, strings, reserved, version, compatible, boot_cpu, *sizes = HEADER.unpack_from(data)
    strings_size, size = sizes
    if magic != MAGIC:
        raise FdtError(f"magic {magic:#x}, not {MAGIC:#x}")
    if version < VERSION or compatible > VERSION:
        raise FdtError(f"version {version}, compatible with {compatible}; this reader knows {VERSION}")
    if not HEADER.size <= total <= len(data):
        raise FdtError(f"it claims {total} bytes of {len(data)}")
    data = data[:total]
    if structure % 4 or structure + size > total or strings + strings_size > total or structure < HEADER.size:
        raise FdtError("a block lies outside the blob")
    names = data[strings : strings + strings_size]
    root = _Structure(data[structure : structure + size], names).tree()
    return Tree(root, _reservations(data, reserved), boot_cpu)


def _reservations(data: bytes, at: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    while True:
        if at % 8 or at + RESERVATION.size > len(data):
            raise FdtError("the memory reservations do not end")
        address, size = RESERVATION.unpack_from(data, at)
        if not address and not size:
            return tuple(found)
        found.append((address, size))
        at += RESERVATION.size


class _Structure:
    """The structure block, read token by token."""

    __slots__ = ("at", "data", "names")

    def __init__(self, data: bytes, names: bytes) -> None:
        self.data = data
        self.names = names
        self.at = 0

    def tree(self) -> Node:
        """The root.  Raises FdtError."""
        node: Node | None = None
        root: Node | None = None
        depth = 0
        while (token := self._u32()) != END:
            if token == BEGIN_NODE:
                depth += 1
                below = Node(self._name(), node)
                if depth > MAX_DEPTH or (node is None and (root is not None or below.name)):
                    raise FdtError(f"a node {below.name!r} where none can be")
                if node is not None:
                    self._adopt(node, below)
                node = below
                root = root or below
            elif token == PROP and node is not None:
                self._property(node)
            elif token == END_NODE and node is not None:
                depth -= 1
                node = node.parent
            elif token != NOP:
                raise FdtError(f"token {token:#x} at {self.at - 4:#x} of the structure block")
        if node is not None or root is None:
            raise FdtError("the tree ends inside a node")
        return root

    def _adopt(self, node: Node, below: Node) -> None:
        if not below.name:
            raise FdtError(f"a nameless node below {node.path}")
        node.children.append(below)

    def _property(self, node: Node) -> None:
        length, offset = self._u32(), self._u32()
        stop = self.names.find(b"\0", offset, offset + MAX_NAME + 1)
        if stop <= offset:
            raise FdtError(f"{node.path}: a property without a name")
        name = _ascii(self.names[offset:stop])
        if node.children or name in node.properties:
            raise FdtError(f"{node.path}: {name} comes twice, or after a node")
        value = self.data[self.at : self.at + length]
        if len(value) != length:
            raise FdtError(f"{node.path}: {name} runs out of the structure block")
        node.properties[name] = value
        self.at += (length + 3) & ~3

    def _name(self) -> str:
        stop = self.data.find(b"\0", self.at, self.at + MAX_NAME + 1)
        if stop < 0:
            raise FdtError("a node's name does not end")
        name = _ascii(self.data[self.at : stop])
        self.at = (stop + 4) & ~3
        return name

    def _u32(self) -> int:
        if self.at + 4 > len(self.data):
            raise FdtError("the structure block ends without saying so")
        (value,) = struct.unpack_from(">I", self.data, self.at)
        self.at += 4
        return int(value)


def _ascii(name: bytes) -> str:
    if not all(0x21 <= byte < 0x7F and byte != 0x2F for byte in name):
        raise FdtError(f"{name[:40]!r} is no name")
    return name.decode("ascii")


def _number(cells: tuple[int, ...]) -> int:
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def _numbers(cells: tuple[int, ...], each: int, what: str) -> tuple[int, ...]:
    if len(cells) % each:
        raise FdtError(f"{what} has {len(cells)} cells, not {each} each")
    return tuple(_number(cells[at : at + each]) for at in range(0, len(cells), each))
