"""The structures and numbers of uXen's v4v against tests/golden/v4v.csv, written from the specification alone."""

from __future__ import annotations

from struct import Struct

import pytest

from hmx.argo import abi as argo
from hmx.errno import Errno
from hmx.v4v import abi, differences
from hmx.v4v.abi import OPERATIONS, NotifyFlag, Op
from tests.golden import number, rows

ROWS = rows("v4v.csv")

# golden struct -> layout, and the golden field that each of its members is
LAYOUTS: dict[str, tuple[Struct, tuple[str, ...]]] = {
    "addr": (abi.ADDR, ("port", "domain")),
    "ring_id": (abi.RING_ID, ("port", "domain", "partner")),
    "ring": (abi.RING_HEADER, ("magic", "port", "domain", "partner", "len", "rx_ptr", "tx_ptr")),
    "pfn_list": (abi.PFN_LIST, ("magic", "npage", "pad")),
    "ring_data": (abi.RING_DATA, ("magic", "nent", "pad")),
    "ring_data_ent": (abi.RING_DATA_ENT, ("port", "domain", "flags", "space_required", "max_message_size")),
    "iov": (abi.IOV, ("base", "len")),
    "message_header": (argo.MESSAGE_HEADER, ("len", "port", "domain", "pad", "protocol")),
}
ELSEWHERE = {"MIN_RING_LEN": argo.MIN_RING_LEN}  # constants that v4v shares with Argo


def golden(kind: str) -> dict[str, str]:
    """Golden rows of one kind of structure or number: name -> value."""
    found = {}
    for row in ROWS:
        if row["case"].startswith("abi.") and row["op"].startswith(f"{kind} "):
            found[row["op"].removeprefix(f"{kind} ")] = row["after"]
    assert found
    return found


@pytest.mark.parametrize(("name", "value"), golden("constant").items())
def test_constants(name: str, value: str) -> None:
    """uXen public/v4v.h."""
    assert ELSEWHERE.get(name, getattr(abi, name, None)) == number(value)


def test_operations_and_flags() -> None:
    """uXen public/v4v.h; every operation has its row, in the order of numbers."""
    assert {op.name: op.value for op in Op} == {name: number(value) for name, value in golden("op").items()}
    assert {flag.name: flag.value for flag in NotifyFlag} == {
        name: number(value) for name, value in golden("flag").items()
    }
    assert [row.op for row in OPERATIONS] == list(Op)


@pytest.mark.parametrize(("struct", "size"), golden("size").items())
def test_sizes(struct: str, size: str) -> None:
    """All structures are packed."""
    layout = abi.TOKEN if struct == "token" else LAYOUTS[struct][0]
    assert layout.size == number(size)


@pytest.mark.parametrize("struct", LAYOUTS)
def test_fields(struct: str) -> None:
    """Each member lies at its golden offset, little-endian, with its golden size; reserved bytes are zero."""
    layout, members = LAYOUTS[struct]
    known = {name.removeprefix(f"{struct}.") for name in golden("field") if name.startswith(f"{struct}.")}
    assert known == set(members)
    for index, member in enumerate(members):
        offset, width = (number(part) for part in golden("field")[f"{struct}.{member}"].split(":"))
        values = [0] * len(members)
        values[index] = (1 << 8 * width) - 1
        assert layout.pack(*values) == bytes(offset) + b"\xff" * width + bytes(layout.size - offset - width)
        values[index] = 1
        assert layout.pack(*values)[offset] == 1


def test_offsets() -> None:
    """The offsets that the code writes at are those of the fields."""
    fields = golden("field")
    for name, offset in (
        ("ring.port", abi.RING_ID_AT),
        ("ring.rx_ptr", abi.RX_PTR),
        ("ring.tx_ptr", abi.TX_PTR),
        ("ring_data_ent.flags", abi.ENT_FLAGS),
        ("ring_data_ent.max_message_size", abi.ENT_MAX_MESSAGE_SIZE),
    ):
        assert number(fields[name].split(":")[0]) == offset


def test_magic_and_page_numbers_are_u64() -> None:
    """uXen public/v4v.h: magics and page frame numbers are 64 bits wide, little-endian."""
    assert abi.MAGIC.pack(1) == abi.PFN.pack(1) == b"\x01" + bytes(7)
    assert abi.TOKEN.pack(b"0123456789abcdef") == b"0123456789abcdef"


PRIVILEGED = {Op.CREATE_RING, Op.SIGNAL}
COMPILED_OUT = {Op.POKE, Op.TEST, Op.DEBUG}
ARGUMENTS = {
    Op.REGISTER_RING: ("ring", "pfn list", "partner token", "fail_exist"),
    Op.UNREGISTER_RING: ("ring",),
    Op.SEND: ("source", "destination", "buffer", "length", "message type"),
    Op.NOTIFY: ("ring data",),
    Op.SENDV: ("source", "destination", "iovs", "iov count", "message type"),
    Op.POKE: ("destination",),
    Op.CREATE_RING: ("ring id",),
    Op.SIGNAL: ("", "", "", "domid"),
    Op.TEST: (),
    Op.DEBUG: (),
}


def test_the_operation_table() -> None:
    """uXen do_v4v_op: create_ring and signal are the host's; poke, test and debug are not built in."""
    assert {row.op for row in OPERATIONS if row.privileged} == PRIVILEGED
    assert {row.op for row in OPERATIONS if not row.built} == COMPILED_OUT
    assert {row.op: row.arguments for row in OPERATIONS} == ARGUMENTS


def test_numbers_beside_argo() -> None:
    """hmx.v4v.differences: v4v's number and Argo's, aspect by aspect."""
    table = [
        (row["op"].removeprefix("difference "), value(row["after"]), value(row["before"]))
        for row in ROWS
        if row["case"].startswith("diff.")
    ]
    by_aspect = {aspect: (v4v, xen) for aspect, v4v, xen in table}
    assert {row.aspect: (row.v4v, row.argo) for row in differences.NUMBERS} == by_aspect
    assert len(differences.NUMBERS) == len(table)


def value(text: str) -> int | None:
    """A golden cell: a number, an errno's name, or `-` for nothing."""
    if text == "-":
        return None
    return Errno[text].value if text.startswith("E") else number(text)


def test_aspects_are_told_once() -> None:
    """A habit stands in one row."""
    aspects = [row.aspect for row in (*differences.NUMBERS, *differences.HABITS)]
    assert len(aspects) == len(set(aspects))
