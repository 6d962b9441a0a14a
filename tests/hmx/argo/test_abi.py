"""The structures and constants of Argo against a second copy of the public header's layout."""

from __future__ import annotations

from struct import Struct

import pytest

from hmx.argo import abi
from hmx.argo.abi import NotifyFlag, Op, RegisterFlag
from hmx.errno import Errno, describe

# name, layout, size, byte offset and size of each field in order (pads included)
STRUCTS = [
    ("addr", abi.ADDR, 8, [(0, 4), (4, 2), (6, 2)]),
    ("send_addr", abi.SEND_ADDR, 16, [(0, 4), (4, 2), (6, 2), (8, 4), (12, 2), (14, 2)]),
    ("iov", abi.IOV, 16, [(0, 8), (8, 4), (12, 4)]),
    ("iov, 32-bit x86", abi.IOV_COMPAT, 12, [(0, 4), (4, 4), (8, 4)]),
    ("register_ring", abi.REGISTER_RING, 12, [(0, 4), (4, 2), (6, 2), (8, 4)]),
    ("unregister_ring", abi.UNREGISTER_RING, 8, [(0, 4), (4, 2), (6, 2)]),
    ("ring header", abi.RING_HEADER, 64, [(0, 4), (4, 4)]),
    ("ring_data", abi.RING_DATA, 8, [(0, 4), (4, 4)]),
    (
        "ring_data_ent",
        abi.RING_DATA_ENT,
        20,
        [(0, 4), (4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4)],
    ),
    ("ring_data_ent, answer", abi.RING_DATA_ANSWER, 20, [(8, 2), (16, 4)]),
    ("message header", abi.MESSAGE_HEADER, 16, [(0, 4), (4, 4), (8, 2), (10, 2), (12, 4)]),
    ("gfn", abi.GFN, 8, [(0, 8)]),
]


@pytest.mark.parametrize(("layout", "size", "fields"), [row[1:] for row in STRUCTS], ids=[r[0] for r in STRUCTS])
def test_layout(layout: Struct, size: int, fields: list[tuple[int, int]]) -> None:
    """Xen public/argo.h: each field lies at its offset, little-endian, and nothing else does."""
    assert layout.size == size
    for index, (offset, width) in enumerate(fields):
        values = [0] * len(fields)
        values[index] = int.from_bytes(bytes(range(1, width + 1)), "little")
        expected = bytearray(size)
        expected[offset : offset + width] = bytes(range(1, width + 1))
        assert layout.pack(*values) == expected


@pytest.mark.parametrize(("arrays", "stride"), [(abi.IOV_ARRAYS, 16), (abi.IOV_COMPAT_ARRAYS, 12)])
def test_iov_arrays(arrays: tuple[Struct, ...], stride: int) -> None:
    """An array of n iovs for every legal n: 0 to 8."""
    assert [layout.size for layout in arrays] == [stride * n for n in range(9)]


def test_constants() -> None:
    """Xen public/argo.h and common/argo.c."""
    assert (abi.HYPERCALL_ARGO, abi.VIRQ_ARGO) == (39, 11)
    assert (abi.DOMID_ANY, abi.DOMID_SELF, abi.DOMID_FIRST_RESERVED) == (0x7FF4, 0x7FF0, 0x7FF0)
    assert (abi.SLOT, abi.RING_HEADER_SIZE, abi.MESSAGE_HEADER_SIZE) == (16, 64, 16)
    assert (abi.MIN_RING_LEN, abi.MAX_RING_LEN, abi.MAX_RING_PAGES) == (48, 16 << 20, 4096)
    assert abi.MAX_PAYLOAD == 0xFFFFE0
    assert (abi.MAX_IOVS, abi.MAX_RINGS_PER_DOMAIN, abi.MAX_NOTIFY_ENTRIES) == (8, 128, 256)
    assert (abi.MAX_PENDING_PER_RING, abi.HASH_BUCKETS) == (32, 32)
    assert (abi.RX_PTR, abi.TX_PTR, abi.ENT_FLAGS, abi.ENT_MAX_MESSAGE_SIZE) == (0, 4, 8, 16)
    assert {op.name: int(op) for op in Op} == {
        "REGISTER_RING": 1,
        "UNREGISTER_RING": 2,
        "SENDV": 3,
        "NOTIFY": 4,
    }
    assert {flag.name: int(flag) for flag in RegisterFlag} == {"FAIL_EXIST": 1}
    assert {flag.name: int(flag) for flag in NotifyFlag} == {
        "EXISTS": 1,
        "SHARED": 2,
        "EMPTY": 4,
        "SUFFICIENT": 8,
        "EMSGSIZE": 16,
        "EBUSY": 32,
    }


def test_errno_numbers() -> None:
    """Xen public/errno.h: the numbers that Argo and its drivers use."""
    expected = {
        "EPERM": 1, "ENOENT": 2, "ESRCH": 3, "EIO": 5, "EAGAIN": 11, "ENOMEM": 12, "EACCES": 13, "EFAULT": 14,
        "EBUSY": 16, "EEXIST": 17, "ENODEV": 19, "EINVAL": 22, "ENOTTY": 25, "ENOSPC": 28, "EPIPE": 32,
        "ENOSYS": 38, "EMSGSIZE": 90, "EOPNOTSUPP": 95, "EADDRINUSE": 98, "ECONNRESET": 104, "EISCONN": 106,
        "ENOTCONN": 107, "ETIMEDOUT": 110, "ECONNREFUSED": 111, "EINPROGRESS": 115, "ECANCELED": 125,
    }  # fmt: skip
    assert {name: Errno[name] for name in expected} == expected


def test_describe() -> None:
    """A result as people read it."""
    assert [describe(value) for value in (0, 64, -11, -1234)] == ["0", "64", "-EAGAIN", "-1234"]


@pytest.mark.parametrize(
    ("register", "expected"),
    [(0, 0), (64, 64), (0xFFFFFF91, -111), (0xFFFF_FFFF_FFFF_FF91, -111), (-111, -111), (1 << 31, -(1 << 31))],
)
def test_int32(register: int, expected: int) -> None:
    """A result register counts as int32 whether it was zero- or sign-extended (both seen on real Xen)."""
    assert abi.int32(register) == expected
