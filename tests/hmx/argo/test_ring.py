"""Ring arithmetic: vectors V6 to V10 and the rules that they come from (Xen common/argo.c)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.argo import ring


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (1, 16), (15, 16), (16, 16), (17, 32), (0xFFFFFFF0, 0xFFFFFFF0), (0xFFFFFFF1, 0), (0xFFFFFFFF, 0)],
)
def test_roundup16(value: int, expected: int) -> None:
    """Rounding is 32-bit: the highest values wrap to 0."""
    assert ring.roundup16(value) == expected


@pytest.mark.parametrize(
    ("rx", "expected"), [(0, 0), (8, 16), (48, 48), (49, 0), (64, 0), (63, 0), (0xFFFFFFFF, 0), (1 << 31, 0)]
)
def test_sanitise_rx(rx: int, expected: int) -> None:
    """A read pointer is rounded up, and 0 when outside a ring of 64."""
    assert ring.sanitise_rx(rx, 64) == expected


@pytest.mark.parametrize(
    ("tx", "rx", "expected"),
    [(32, 5, 32), (64, 5, 16), (63, 5, 16), (8, 48, 48), (8, 49, 0), (0xFFFFFFF0, 0xFFFFFFFF, 0)],
)
def test_sanitise_tx(tx: int, rx: int, expected: int) -> None:
    """At registration a valid tx stays; an invalid one becomes rx rounded up, or 0 when that overflows."""
    assert ring.sanitise_tx(tx, rx, 64) == expected


def test_v6_rx_sanitation_changes_space() -> None:
    """V6, ring of 64: rx 8 counts as 16."""
    rx = ring.sanitise_rx(8, 64)
    assert ring.payload_space(64, rx, 0) == 0
    assert ring.payload_space(64, rx, 16) == 32


def test_v7_default_ring() -> None:
    """V7: the Linux driver's default ring."""
    assert ring.payload_space(130992, 0, 0) == ring.max_message_size(130992) == 130960


@pytest.mark.parametrize(
    ("ring_len", "npages"),
    [
        (48, 1),
        (4032, 1),
        (4048, 2),
        (4096, 2),
        (130992, 32),
        (131072, 33),
        (0xFFFFC0, 4096),
        (0xFFFFD0, 4097),
        (0x1000000, 4097),
    ],
)
def test_v8_page_counts(ring_len: int, npages: int) -> None:
    """V8: the 64-byte header counts."""
    assert ring.npages_for(ring_len) == npages


def test_ring_len_for_is_the_inverse() -> None:
    """The largest ring of n pages needs n pages, and one slot more does not fit."""
    for npages in (1, 2, 32, 4096):
        assert ring.npages_for(ring.ring_len_for(npages)) == npages
        assert ring.npages_for(ring.ring_len_for(npages) + 16) == npages + 1


@pytest.mark.parametrize(
    ("port", "domid", "partner", "expected"),
    [
        (0x64, 1, 0x7FF4, 11),
        (0x64, 1, 2, 25),
        (1, 0, 0, 12),
        (28333, 0, 0x7FF4, 31),
        (0xD0000, 0, 1, 31),
        (0xFFFFFFFF, 7, 7, 2),
    ],
)
def test_v9_hash(port: int, domid: int, partner: int, expected: int) -> None:
    """V9: buckets."""
    assert ring.bucket(port, domid, partner) == expected


def test_v10_largest() -> None:
    """V10: the largest payload on the largest ring is below the cap on any payload."""
    assert ring.max_message_size(0xFFFFC0) == 0xFFFFA0
    assert ring.ever_fits(0xFFFFC0, 0xFFFFA0)
    assert not ring.ever_fits(0xFFFFC0, 0xFFFFA1)


RINGS = st.integers(3, 64).map(lambda slots: 16 * slots)


@given(ring_len=RINGS, data=st.data())
def test_space_rules_agree(ring_len: int, data: st.DataObject) -> None:
    """fits(n) is the same as roundup16(n) <= payload_space while 32 bytes or more are free; with 16 nothing fits."""
    rx, tx = (16 * data.draw(st.integers(0, ring_len // 16 - 1)) for _ in range(2))
    size = data.draw(st.integers(0, ring_len + 16))
    free = ring.free_space(ring_len, rx, tx)
    assert 16 <= free <= ring_len
    space = ring.payload_space(ring_len, rx, tx)
    assert space == max(0, free - 32)
    if free >= 32:
        assert ring.fits(ring_len, rx, tx, size) == (ring.roundup16(size) <= space)
    else:
        assert not ring.fits(ring_len, rx, tx, size)
    if ring.fits(ring_len, rx, tx, size):
        after = ring.advance(tx, ring.used_by(size), ring_len)
        assert after != rx, "a full ring would look empty"
        assert ring.free_space(ring_len, rx, after) == free - ring.used_by(size)
    assert ring.ever_fits(ring_len, size) == (ring.roundup16(size) <= ring.max_message_size(ring_len))
