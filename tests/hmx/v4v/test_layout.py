"""What a v4v guest lays out for a call, byte by byte (uXen public/v4v.h)."""

from __future__ import annotations

from hmx.argo.abi import Address
from hmx.v4v.layout import answers, pfn_list, ring_data, ring_header


def test_ring_header() -> None:
    """Magic, port, ANY for the owner, partner, length, pointers, nine reserved words."""
    assert ring_header(0xD0000, 0x7FF1, 4032, 16, 32) == bytes.fromhex(
        "2F7F26E763E167AC 00000D00 FF7F F17F C00F0000 10000000 20000000"
    ) + bytes(36)


def test_pfn_list() -> None:
    """Magic, count, pad, three reserved words, the numbers."""
    assert pfn_list([0x1234, 1 << 40]) == bytes.fromhex("2D305B045961DD91 02000000 00000000") + bytes(
        24
    ) + bytes.fromhex("3412000000000000 0000000000010000")


def test_ring_data() -> None:
    """Magic, count, pad, four reserved words, one entry a question; the answers stand in place."""
    data = ring_data([(Address(5, 0x7FF1), 100), (Address(6, 0), 0)])
    assert data == bytes.fromhex("2AE982BC0FD3E44C 02000000 00000000") + bytes(32) + bytes.fromhex(
        "05000000 F17F 0000 64000000 00000000 06000000 0000 0000 00000000 00000000"
    )
    answered = bytearray(data)
    answered[48 + 6], answered[48 + 12] = 0x0A, 32
    assert answers(bytes(answered)) == [(0x0A, 32), (0, 0)]
    assert answers(ring_data([])) == []
