"""Property: a blob is a tree of bounded depth whose every node has a place in it, or FdtError; each property of what is
accepted is what a reader asks for, or FdtError; so are the hypervisor's node and Argo's.

Input: a choice, then a blob; with bit 0 its header is made right for its size first, with bit 1 for its blocks too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from guest_node.kernel.firmware import find_hypervisor
from hmx import fdt
from hmx.fdt import FdtError
from hmx.firmware import argo_from_tree
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()


def mended(blob: bytes, blocks: bool) -> bytes:
    """The blob with the right magic, versions and size; with `blocks` they cover what there is, too."""
    if len(blob) < fdt.HEADER.size:
        return blob
    fields = list(fdt.HEADER.unpack_from(blob))
    fields[0], fields[1], fields[5], fields[6] = fdt.MAGIC, len(blob), fdt.VERSION, fdt.VERSION - 1
    if blocks:
        structure = min(max(fields[2] & ~3, fdt.HEADER.size), len(blob))
        strings = min(fields[3], len(blob))
        fields[2], fields[3] = structure, strings
        fields[9] = min(fields[9], len(blob) - structure)
        fields[8] = min(fields[8], len(blob) - strings)
    return fdt.HEADER.pack(*fields) + blob[fdt.HEADER.size :]


def one_input(data: bytes) -> None:
    """Read one blob, and everything in it."""
    choices = Choices(data)
    how = choices.u8()
    blob = choices.rest()
    if how & 1:
        blob = mended(blob, bool(how & 2))
    TALLY.count += 1
    try:
        tree = fdt.parse(blob)
    except FdtError:
        return
    nodes = list(tree.root.walk())
    assert len(nodes) <= len(blob) // 12 + 1, "a node has eight bytes of tokens and a name"
    for node in nodes:
        assert node.path.count("/") <= fdt.MAX_DEPTH
        assert node.parent is None or node in node.parent.children
        readers: list[Callable[[str], object]] = [node.cells, node.cell, node.quads, node.strings]
        for name in node.properties:
            TALLY.count += 1
            _either(partial(readers[len(name) & 3], name))
        _either(node.reg)
        _either(node.interrupts)
    assert tree.at("/") is tree.root
    _either(partial(find_hypervisor, tree))
    _either(partial(argo_from_tree, tree))
    assert tree.phandle(struct.unpack("<I", blob[:4])[0]) in (None, *nodes)


def _either(reader: Callable[[], object]) -> None:
    try:
        reader()
    except FdtError:
        return
