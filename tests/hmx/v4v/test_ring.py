"""v4v's arithmetic where it differs from Argo's (uXen common/v4v.c payload_space and v4v_hash_fn)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.argo import ring as argo
from hmx.v4v.ring import bucket, max_message_size, payload_space

SLOTS = st.integers(3, 40).map(lambda n: 16 * n)


@pytest.mark.parametrize(
    ("ring_len", "rx", "tx", "space"),
    [
        (0, 0, 0, 0),  # a placeholder
        (0, 16, 0, 0),
        (48, 0, 0, 32),  # empty: len - 16
        (64, 32, 32, 48),
        (64, 0, 16, 16),  # 0 - 16 + 64 - 32
        (64, 0, 32, 0),
        (64, 0, 48, 0),  # 16 - 32 is below 0
        (64, 48, 0, 16),
        (64, 8, 16, 24),  # rx is not rounded: 8 - 16 + 64 - 32
        (64, 64, 0, 32),  # nor bounded
        (64, 0x7FFF_FFFF, 0, 0x7FFF_FFDF),
        (64, 0x8000_0000, 0, 0),
        (64, 0xFFFF_FFFF, 0, 31),  # -1 + 64 - 32
        (0x100_0000, 0, 0, 0xFF_FFF0),
    ],
)
def test_payload_space(ring_len: int, rx: int, tx: int, space: int) -> None:
    """uXen payload_space, by hand."""
    assert payload_space(ring_len, rx, tx) == space


@given(SLOTS, st.data())
def test_argo_agrees_unless_empty(ring_len: int, data: st.DataObject) -> None:
    """With sound pointers only the empty ring differs, and there by one slot."""
    rx, tx = (16 * data.draw(st.integers(0, ring_len // 16 - 1)) for _ in range(2))
    extra = 16 if rx == tx else 0
    assert payload_space(ring_len, rx, tx) == argo.payload_space(ring_len, rx, tx) + extra


@given(st.integers(0, 1 << 24), st.integers(0, 0xFFFF_FFFF), st.integers(0, 1 << 24))
def test_space_is_an_int32_that_is_not_negative(ring_len: int, rx: int, tx: int) -> None:
    """Whatever the guest's rx_ptr."""
    assert 0 <= payload_space(ring_len, rx, tx) < 1 << 31


@pytest.mark.parametrize(("ring_len", "largest"), [(64, 32), (48, 16), (0x100_0000, 0xFF_FFE0), (0, 0xFFFF_FFE0)])
def test_max_message_size(ring_len: int, largest: int) -> None:
    """len - 32 in uint32, a placeholder's too."""
    assert max_message_size(ring_len) == largest


@pytest.mark.parametrize(
    ("port", "domid", "partner", "index"),
    [
        (0, 0, 0, 0),
        (5, 1, 0, 4),
        (0x1F, 0, 0, 31),
        (0x20, 0, 0, 0),
        (0xD0000, 0, 1, 0xD ^ 1),  # the upper half of the port is folded in
        (1, 0, 0x7FFF, 30),
        (0xFFFF_FFFF, 7, 7, 0),
    ],
)
def test_bucket(port: int, domid: int, partner: int, index: int) -> None:
    """uXen v4v_hash_fn: halves of the port, owner and partner by exclusive or; 32 buckets."""
    assert bucket(port, domid, partner) == index
