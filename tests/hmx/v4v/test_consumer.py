"""The receiving end of a v4v ring: rx_ptr at 20, tx_ptr at 24, data at 64 (uXen public/v4v.h), else as Argo's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.argo.abi import Address
from hmx.argo.consumer import Message, RingCorrupt
from hmx.argo.producer import pack_message
from hmx.memory import PAGE_SIZE, Window
from hmx.v4v.consumer import V4vConsumer
from hmx.v4v.layout import ring_header

LEN = 112
SOURCE = Address(0xD0000, 0)


def ring(rx: int, tx: int, data: bytes) -> tuple[Window, V4vConsumer]:
    """A ring of LEN bytes with these pointers and this data area."""
    window = Window(bytearray(PAGE_SIZE), 0, PAGE_SIZE)
    window.write(0, ring_header(5, 0x7FF1, LEN, rx, tx) + data)
    return window, V4vConsumer(window, LEN)


def test_two_messages() -> None:
    """receive takes one and publishes rx at 20; nothing else of the header changes."""
    data = pack_message(SOURCE, 7, b"one").ljust(32, b"\0") + pack_message(SOURCE, 8, b"")
    window, consumer = ring(0, 48, data)
    assert consumer.available() == 48
    assert consumer.receive() == Message(0xD0000, 0, 7, b"one")
    assert window.read(0, 64) == ring_header(5, 0x7FF1, LEN, 32, 48)
    assert consumer.receive() == Message(0xD0000, 0, 8, b"")
    assert consumer.receive() is None
    assert window.read(0, 64) == ring_header(5, 0x7FF1, LEN, 48, 48)


def test_wrapped_in_place_and_drained() -> None:
    """Every way to receive goes by the same pointers."""
    message = pack_message(SOURCE, 1, bytes(range(40)))
    data = bytearray(LEN)
    data[80:] = message[:32]
    data[: len(message) - 32] = message[32:]
    window, consumer = ring(80, 32, bytes(data))
    view = consumer.view()
    assert view is not None
    assert bytes(view.first) + bytes(view.second) == bytes(range(40))
    assert window.load32(20) == 80
    consumer.consume()
    assert window.load32(20) == 32
    window, consumer = ring(80, 32, bytes(data))
    assert consumer.drain() == [Message(0xD0000, 0, 1, bytes(range(40)))]
    assert window.load32(20) == 32
    with pytest.raises(RuntimeError):
        consumer.consume()


class Publishing(Window):
    """A window that remembers what rx_ptr was each time that it was published."""

    published: list[int]

    def publish(self) -> None:
        super().publish()
        self.published.append(self.load32(20))


def test_rx_is_published() -> None:
    """A mirrored guest's hypervisor sees rx_ptr when the window is published: after the store, once a pass."""
    window = Publishing(bytearray(PAGE_SIZE), 0, PAGE_SIZE)
    window.published = []
    window.write(0, ring_header(5, 0x7FF1, LEN, 0, 64) + pack_message(SOURCE, 7, b"x" * 16) * 2)
    consumer = V4vConsumer(window, LEN)
    consumer.drain(1)
    assert window.published == [32]
    consumer.drain()
    assert window.published == [32, 64]


@pytest.mark.parametrize(("rx", "starts"), [(0, 0), (8, 16), (16, 16), (112, 0), (0xFFFF_FFFF, 0)])
def test_rx_is_rounded_up_and_bounded(rx: int, starts: int) -> None:
    """uXen's safe copy."""
    assert ring(rx, 16, b"")[1].rx == starts


@pytest.mark.parametrize("tx", [112, 0x8000_0000, 0xFFFF_FFFF])
def test_tx_out_of_range_is_zero(tx: int) -> None:
    """uXen's safe copy: an empty ring, here."""
    _, consumer = ring(0, tx, b"")
    assert consumer.available() == 0
    assert consumer.receive() is None


@pytest.mark.parametrize("length", [0, 15, 33, 0xFFFF_FFFF])
def test_a_length_is_not_believed(length: int) -> None:
    """Below a header, or beyond what lies there: corrupt, and recover drops everything unread."""
    window, consumer = ring(0, 32, length.to_bytes(4, "little"))
    with pytest.raises(RingCorrupt):
        consumer.receive()
    consumer.recover()
    assert window.load32(20) == 32
    assert consumer.receive() is None


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF), st.binary(max_size=LEN))
def test_nothing_breaks_it(rx: int, tx: int, data: bytes) -> None:
    """A hostile header never crashes the receiver and never takes it out of the ring."""
    window, consumer = ring(rx, tx, data)
    for _ in range(10):
        try:
            consumer.drain()
        except RingCorrupt:
            consumer.recover()
    assert consumer.rx < LEN
    assert consumer.rx % 16 == 0
    assert window.read(0, 20) == ring_header(5, 0x7FF1, LEN)[:20]
