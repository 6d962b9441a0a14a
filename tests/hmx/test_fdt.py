"""The guest's reader of flattened device trees (Devicetree Specification 0.4, chapter 5).

The sample was compiled by dtc from the source beside it.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx import fdt
from hmx.fdt import FdtError, Interrupt, Node
from hmx.firmware import argo_from_tree

#: /memreserve/ 0x10000 0x2000;  boot CPU 3
#: / { #address-cells = <2>; #size-cells = <1>; interrupt-parent = <&gic>;
#:   compatible = "test,board", "test,family"; empty;
#:   gic: intc@8000000 { compatible = "arm,gic-v3"; #interrupt-cells = <3>; interrupt-controller;
#:     reg = <0 0x8000000 0x10000>, <0x1 0x80a0000 0x40000>; };
#:   bus { #address-cells = <1>; #size-cells = <0>;
#:     dev@7 { reg = <7>; compatible = "test,dev"; interrupts = <0 8 1>, <1 15 0xf08>, <0 1 4>;
#:       wide = /bits/ 64 <0xC6004152 0x123456789>; bytes = [01 02 03 04 05]; }; }; };
SAMPLE = bytes.fromhex("""
d00dfeed0000028100000048000001fc0000002800000011000000100000000300000085000001b400000000000100000000000000002000
0000000000000000000000000000000000000001000000000000000300000004000000000000000200000003000000040000000f00000001
00000003000000040000001b0000000100000003000000170000002c746573742c626f61726400746573742c66616d696c79000000000003
000000000000003700000001696e7463403830303030303000000000000000030000000b0000002c61726d2c6769632d7633000000000003
000000040000003d0000000300000003000000000000004e00000003000000180000006300000000080000000001000000000001080a0000
0004000000000003000000040000006700000001000000020000000162757300000000030000000400000000000000010000000300000004
0000000f000000000000000164657640370000000000000300000004000000630000000700000003000000090000002c746573742c646576
0000000000000003000000240000006f000000000000000800000001000000010000000f00000f0800000000000000010000000400000003
000000100000007a00000000c6004152000000012345678900000003000000050000007f0102030405000000000000020000000200000002
0000000923616464726573732d63656c6c73002373697a652d63656c6c7300696e746572727570742d706172656e7400636f6d7061746962
6c6500656d7074790023696e746572727570742d63656c6c7300696e746572727570742d636f6e74726f6c6c657200726567007068616e64
6c6500696e7465727275707473007769646500627974657300
""")
STRUCTURE = 0x48
STRUCTURE_END = 0x1FC


def blob(*tokens: bytes | int, names: bytes = b"a\0b\0") -> bytes:
    """A blob with this structure block and these property names."""
    body = b"".join(token if isinstance(token, bytes) else struct.pack(">I", token) for token in tokens)
    head = (0xD00DFEED, 56 + len(body) + len(names), 56, 56 + len(body), 40, 17, 16, 0, len(names), len(body))
    return struct.pack(">10I", *head) + bytes(16) + body + names


ROOT = (1, bytes(4))


def test_the_sample_reads_as_its_source() -> None:
    """Nodes in order with their paths, properties as raw bytes, reservations, the boot CPU."""
    tree = fdt.parse(SAMPLE)
    assert [node.path for node in tree.root.walk()] == ["/", "/intc@8000000", "/bus", "/bus/dev@7"]
    assert tree.reservations == ((0x10000, 0x2000),) and tree.boot_cpu == 3
    assert tree.root.properties["compatible"] == b"test,board\0test,family\0" and tree.root.properties["empty"] == b""
    device = tree.at("/bus/dev@7")
    assert device is not None and device.properties["bytes"] == bytes((1, 2, 3, 4, 5))
    assert list(device.properties) == ["reg", "compatible", "interrupts", "wide", "bytes"]


def test_properties_have_shapes() -> None:
    """Cells, pairs of cells, strings; reg by the cell counts of the node above."""
    tree = fdt.parse(SAMPLE)
    controller, device = tree.root.children[0], tree.root.children[1].children[0]
    assert controller.reg() == ((0x8000000, 0x10000), (0x1_080A_0000, 0x40000))
    assert device.reg() == ((7, 0),)
    assert device.quads("wide") == (0xC6004152, 0x123456789)
    assert tree.root.strings("compatible") == ("test,board", "test,family") and tree.root.strings("none") == ()
    assert controller.cell("#interrupt-cells") == 3 and controller.cell("none", 4) == 4
    assert controller.cells("none") == () and controller.quads("none") == () and Node("").reg() == ()


def test_interrupts_are_a_gics() -> None:
    """<0 n> is SPI n, INTID 32 + n; <1 n> is PPI n, INTID 16 + n; flags 1, 2 edge, 4, 8 level; 2, 8 low."""
    device = fdt.parse(SAMPLE).root.children[1].children[0]
    assert device.interrupts() == (Interrupt(40, False, False), Interrupt(31, True, True), Interrupt(33, True, False))
    falling = Node("n", properties={"interrupts": struct.pack(">6I", 0, 987, 2, 1, 0, 4)})
    assert falling.interrupts() == (Interrupt(1019, False, True), Interrupt(16, True, False))


@pytest.mark.parametrize("cells", [(0, 988, 1), (1, 16, 1), (2, 0, 1), (0, 0), (0, 0, 1, 0)])
def test_interrupts_that_no_gic_has(cells: tuple[int, ...]) -> None:
    """SPIs end at INTID 1019, PPIs at 31; three cells each."""
    with pytest.raises(FdtError, match="interrupt"):
        Node("n", properties={"interrupts": struct.pack(f">{len(cells)}I", *cells)}).interrupts()


def test_nodes_are_found() -> None:
    """By path, by phandle, by compatible."""
    tree = fdt.parse(SAMPLE)
    controller, device = tree.root.children[0], tree.root.children[1].children[0]
    assert tree.at("/") is tree.root and tree.at("/bus/none") is None and tree.at("/bus/dev@7/x") is None
    assert tree.phandle(tree.root.cell("interrupt-parent")) is controller and tree.phandle(9) is None
    assert tree.find("test,dev") == (device,) and tree.find("test") == () and tree.find("test,family") == (tree.root,)
    assert argo_from_tree(tree) is None


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b"abc", lambda node: node.cells("p")),
        (b"abcd" * 2, lambda node: node.cell("p")),
        (b"", lambda node: node.cell("p")),
        (b"", lambda node: node.cell("q")),
        (b"abcd" * 3, lambda node: node.quads("p")),
        (b"abc", lambda node: node.strings("p")),
        (b"ab\xff\0", lambda node: node.strings("p")),
        (b"ab\n\0", lambda node: node.strings("p")),
    ],
)
def test_properties_of_another_shape(data: bytes, read: object) -> None:
    """FdtError names the node and the property."""
    assert callable(read)
    with pytest.raises(FdtError, match=r"/n: [pq] "):
        read(Node("n", Node(""), {"p": data}))


@pytest.mark.parametrize(("address", "size", "reg"), [(5, 1, 0), (0, 0, 0), (2, 1, 4), (1, 1, 3), (2, 5, 0)])
def test_reg_with_impossible_cells(address: int, size: int, reg: int) -> None:
    """At most four cells each, not none at all, and whole entries."""
    above = Node("", properties={"#address-cells": struct.pack(">I", address), "#size-cells": struct.pack(">I", size)})
    with pytest.raises(FdtError, match="cells"):
        Node("n", above, {"reg": bytes(4 * reg)}).reg()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (SAMPLE[:39], "too short"),
        (b"\xd0\x0d\xfe\xee" + SAMPLE[4:], "magic"),
        (SAMPLE[:20] + struct.pack(">I", 16) + SAMPLE[24:], "version 16"),
        (SAMPLE[:24] + struct.pack(">I", 18) + SAMPLE[28:], "compatible with 18"),
        (SAMPLE[:-1], "claims"),
        (SAMPLE[:4] + struct.pack(">I", 39) + SAMPLE[8:], "claims 39"),
        (SAMPLE[:8] + struct.pack(">I", 0x4A) + SAMPLE[12:], "outside"),
        (SAMPLE[:8] + struct.pack(">I", 0x24) + SAMPLE[12:], "outside"),
        (SAMPLE[:8] + struct.pack(">I", 0x280) + SAMPLE[12:], "outside"),
        (SAMPLE[:12] + struct.pack(">I", 0x1FD) + SAMPLE[16:], "outside"),
        (SAMPLE[:16] + struct.pack(">I", 0x2C) + SAMPLE[20:], "reservations"),
        (SAMPLE[:16] + struct.pack(">I", 0x278) + SAMPLE[20:], "reservations"),
        (blob(9), "inside a node"),
        (blob(*ROOT), "without saying so"),
        (blob(*ROOT, 9), "inside a node"),
        (blob(*ROOT, 2, *ROOT, 2, 9), "where none can be"),
        (blob(1, b"name\0\0\0\0", 2, 9), "where none can be"),
        (blob(*ROOT, *ROOT, 2, 2, 9), "nameless"),
        (blob(*ROOT, 5, 2, 9), "token 0x5"),
        (blob(2, 9), "token 0x2"),
        (blob(3, 0, 0, 9), "token 0x3"),
        (blob(*ROOT, 1, b"abcd"), "does not end"),
        (blob(*ROOT, 1, b"a/b\0", 2, 2, 9), "is no name"),
        (blob(*ROOT, 1, b"a b\0", 2, 2, 9), "is no name"),
        (blob(*ROOT, 3, 0, 9, 2, 9), "without a name"),
        (blob(*ROOT, 3, 0, 1, 2, 9), "without a name"),
        (blob(*ROOT, 3, 0, 0, 2, 9, names=b"a"), "without a name"),
        (blob(*ROOT, 3, 99, 0, 2, 9), "runs out"),
        (blob(*ROOT, 3, 0, 0, 2, 9, names=b"a" * 256 + b"\0"), "without a name"),
        (blob(*ROOT, 1, b"a" * 256 + bytes(4), 2, 2, 9), "does not end"),
        (blob(*ROOT, 3, 0, 0, 3, 0, 0, 2, 9), "comes twice"),
        (blob(*ROOT, 1, b"n\0\0\0", 2, 3, 0, 0, 2, 9), "after a node"),
        (blob(*ROOT, *(1, b"n\0\0\0") * 64, *(2,) * 65, 9), "where none can be"),
    ],
)
def test_blobs_that_are_no_tree(data: bytes, words: str) -> None:
    """FdtError says what is wrong."""
    with pytest.raises(FdtError, match=words):
        fdt.parse(data)


def test_what_the_format_allows() -> None:
    """NOP tokens anywhere, bytes behind the stated size, 64 levels of nodes, an empty root."""
    assert fdt.parse(blob(4, *ROOT, 4, 3, 4, 2, b"abcd", 4, 2, 4, 9) + b"more").root.properties == {"b": b"abcd"}
    deep = fdt.parse(blob(*ROOT, *(1, b"n\0\0\0") * 63, *(2,) * 64, 9))
    assert sum(1 for _ in deep.root.walk()) == 64
    long = "n" * 255
    tree = fdt.parse(blob(*ROOT, 3, 0, 0, 1, long.encode() + b"\0", 2, 2, 9, names=long.encode() + b"\0"))
    assert list(tree.root.properties) == [child.name for child in tree.root.children] == [long]
    assert fdt.parse(memoryview(blob(*ROOT, 2, 9))).root.path == "/"


def use(tree: fdt.Tree) -> None:
    """Everything that a guest asks of a tree; FdtError is an answer."""
    for node in tree.root.walk():
        for ask in (node.reg, node.interrupts, lambda node=node: node.strings("compatible")):
            try:
                ask()
            except FdtError:
                pass
        assert tree.at(node.path) is not None and isinstance(node.compatible_with("x"), bool)
    try:
        argo_from_tree(tree)
    except FdtError:
        pass


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=12), st.integers(0, 700))
def test_changed_blobs_read_or_are_refused(edits: list[tuple[int, int]], cut: int) -> None:
    """Nothing but FdtError, from the parser or from what it found."""
    data = bytearray(SAMPLE)
    for at, value in edits:
        data[at] = value
    try:
        use(fdt.parse(bytes(data[:cut]) if cut < 100 else bytes(data)))
    except FdtError:
        pass


@given(st.lists(st.sampled_from([1, 2, 3, 4, 9, 0, 5, b"a\0\0\0", b"b\0\0\0"]), max_size=40))
def test_any_tokens_read_or_are_refused(tokens: list[int | bytes]) -> None:
    """Structure blocks from nowhere."""
    try:
        use(fdt.parse(blob(*ROOT, *tokens, 2, 9)))
    except FdtError:
        pass
