"""The structures and constants of Argo against tests/golden/argo_abi.csv, written from the specification alone."""

from __future__ import annotations

from struct import Struct

import pytest

from hmx.argo import abi
from hmx.argo.abi import NotifyFlag, Op, RegisterFlag
from hmx.argo.ring import ring_len_for
from hmx.errno import Errno, describe
from hmx.memory import PAGE_SIZE
from tests.golden import number, rows

# golden struct -> layout, and the golden field that each of its members is
LAYOUTS: dict[str, tuple[Struct, tuple[str, ...]]] = {
    "addr": (abi.ADDR, ("aport", "domain_id", "pad")),
    "send_addr": (
        abi.SEND_ADDR,
        ("src.aport", "src.domain_id", "src.pad", "dst.aport", "dst.domain_id", "dst.pad"),
    ),
    "iov": (abi.IOV, ("buffer", "iov_len", "pad")),
    "iov32": (abi.IOV_COMPAT, ("buffer", "iov_len", "pad")),
    "ring": (abi.RING_HEADER, ("rx_ptr", "tx_ptr")),
    "register_ring": (abi.REGISTER_RING, ("aport", "partner_id", "pad", "len")),
    "unregister_ring": (abi.UNREGISTER_RING, ("aport", "partner_id", "pad")),
    "ring_data": (abi.RING_DATA, ("nent", "pad")),
    "ring_data_ent": (
        abi.RING_DATA_ENT,
        ("ring.aport", "ring.domain_id", "ring.pad", "flags", "pad", "space_required", "max_message_size"),
    ),
    "message_header": (
        abi.MESSAGE_HEADER,
        ("len", "source.aport", "source.domain_id", "source.pad", "message_type"),
    ),
}

# golden constant -> ours.  PORT_ANY and PORT_NONE are OpenXT's; to Xen every port is ordinary.
CONSTANTS = {
    "HYPERCALL_ARGO_OP": abi.HYPERCALL_ARGO,
    "DOMID_WILDCARD": abi.DOMID_ANY,
    "DOMID_SELF": abi.DOMID_SELF,
    "MAX_RING_SIZE": abi.MAX_RING_LEN,
    "MAX_RING_LEN_EFFECTIVE": ring_len_for(abi.MAX_RING_PAGES),
    "MAX_NPAGES": abi.MAX_RING_PAGES,
    "PAGE_SIZE": PAGE_SIZE,
    "MAX_IOVS": abi.MAX_IOVS,
    "SLOT_SIZE": abi.SLOT,
    "RING_HEADER_SIZE": abi.RING_HEADER_SIZE,
    "MESSAGE_HEADER_SIZE": abi.MESSAGE_HEADER_SIZE,
    "MESSAGE_LEN_MIN": abi.MESSAGE_HEADER_SIZE,
    "MIN_RING_LEN": abi.MIN_RING_LEN,
    "MAX_PAYLOAD": abi.MAX_PAYLOAD,
    "MAX_RINGS_PER_DOMAIN": abi.MAX_RINGS_PER_DOMAIN,
    "MAX_NOTIFY_ENTRIES": abi.MAX_NOTIFY_ENTRIES,
    "MAX_PENDING_PER_RING": abi.MAX_PENDING_PER_RING,
    "HASH_BUCKETS": abi.HASH_BUCKETS,
    "REGISTER_FLAG_MASK": int(RegisterFlag.FAIL_EXIST),
    "VIRQ_ARGO": abi.VIRQ_ARGO,
    "RING_DATA_ENT_STRIDE": abi.RING_DATA_ENT.size,
}
NOT_OURS = {"PORT_ANY", "PORT_NONE"}


def golden(kind: str) -> dict[str, tuple[int, int]]:
    """Golden rows of one kind: name -> (value or offset or alignment, size)."""
    return {
        row["name"]: (number(row["value_or_offset"]), number(row["size"]))
        for row in rows("argo_abi.csv")
        if row["kind"] == kind
    }


def check_layout(struct: str, layout: Struct, members: tuple[str, ...]) -> None:
    """Each member lies at its golden offset, little-endian, with its golden size, and nothing else does."""
    fields = golden("field")
    for index, member in enumerate(members):
        offset, width = fields[f"{struct}.{member}"]
        values = [0] * len(members)
        values[index] = int.from_bytes(bytes(range(1, width + 1)), "little")
        expected = bytearray(layout.size)
        expected[offset : offset + width] = bytes(range(1, width + 1))
        assert layout.pack(*values) == expected, member


@pytest.mark.parametrize("struct", list(LAYOUTS))
def test_layouts(struct: str) -> None:
    """Xen public/argo.h: size and fields of every structure.  Left out: padding that nobody reads, and array ends."""
    layout, members = LAYOUTS[struct]
    assert layout.size == golden("struct")[struct][1]
    check_layout(struct, layout, members)
    named = {name.removeprefix(f"{struct}.") for name in golden("field") if name.startswith(f"{struct}.")}
    assert named - set(members) <= {"src", "dst", "ring", "source", "data", "reserved"}


def test_every_golden_struct_has_a_layout() -> None:
    """None is left out."""
    assert set(golden("struct")) == set(LAYOUTS)


def test_constants() -> None:
    """Xen public/argo.h, public/xen.h and common/argo.c."""
    assert {name: value for name, (value, _) in golden("constant").items() if name not in NOT_OURS} == CONSTANTS


def test_offsets_of_words_used_one_by_one() -> None:
    """The ring's pointers and the two answers of notify."""
    fields = golden("field")
    assert fields["ring.rx_ptr"][0] == abi.RX_PTR
    assert fields["ring.tx_ptr"][0] == abi.TX_PTR
    assert fields["ring.data"][0] == abi.RING_HEADER_SIZE
    assert fields["ring_data_ent.flags"][0] == abi.ENT_FLAGS
    assert fields["ring_data_ent.max_message_size"][0] == abi.ENT_MAX_MESSAGE_SIZE
    assert fields["ring_data.data"][0] == abi.RING_DATA.size


def test_facts_beside_the_golden_table() -> None:
    """Reserved domain ids begin with DOMID_SELF (Xen public/xen.h); a page frame number is u64 everywhere."""
    assert golden("constant")["DOMID_SELF"][0] == abi.DOMID_FIRST_RESERVED
    assert abi.GFN.pack(0x0807060504030201) == bytes(range(1, 9))


def test_the_bound_of_32_bit_arguments() -> None:
    """arg3 and arg4 must fit in 32 bits: the largest that does."""
    assert abi.U32_MAX == 2**32 - 1


def test_operations_and_flags() -> None:
    """Numbers, none missing and none invented."""
    assert {op.name.lower(): int(op) for op in Op} == {name: value for name, (value, _) in golden("op").items()}
    flags = {f"REGISTER_{flag.name}": int(flag) for flag in RegisterFlag}
    flags |= {f"RING_DATA_{flag.name}": int(flag) for flag in NotifyFlag}
    assert flags == {name: value for name, (value, _) in golden("flag").items()}


@pytest.mark.parametrize(("arrays", "stride"), [(abi.IOV_ARRAYS, 16), (abi.IOV_COMPAT_ARRAYS, 12)])
def test_iov_arrays(arrays: tuple[Struct, ...], stride: int) -> None:
    """An array of n iovs for every legal n: 0 to 8."""
    assert [layout.size for layout in arrays] == [stride * n for n in range(9)]


def test_errno_numbers() -> None:
    """Xen public/errno.h: the numbers that Argo uses, those of its drivers, and DMOP's E2BIG."""
    expected = {
        "EPERM": 1, "ENOENT": 2, "ESRCH": 3, "EIO": 5, "E2BIG": 7, "EBADF": 9, "EAGAIN": 11, "ENOMEM": 12,
        "EACCES": 13, "EFAULT": 14, "EBUSY": 16, "EEXIST": 17, "ENODEV": 19, "EINVAL": 22, "ENOTTY": 25, "ENOSPC": 28,
        "EPIPE": 32, "ENOSYS": 38, "EMSGSIZE": 90, "EOPNOTSUPP": 95, "EADDRINUSE": 98, "ECONNRESET": 104,
        "EISCONN": 106, "ENOTCONN": 107, "ETIMEDOUT": 110, "ECONNREFUSED": 111, "EINPROGRESS": 115,
        "ECANCELED": 125,
    }  # fmt: skip
    assert {member.name: int(member) for member in Errno} == expected
    assert {name: Errno[name] for name in golden("errno")} == {n: v for n, (v, _) in golden("errno").items()}


def test_describe() -> None:
    """A result as people read it."""
    assert [describe(value) for value in (0, 64, -11, -1234)] == ["0", "64", "-EAGAIN", "-1234"]
