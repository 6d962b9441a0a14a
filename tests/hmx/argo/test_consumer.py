"""The receiving end: the algorithm of every Argo driver, with uXen's caution; fed by the model producer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.argo.abi import MESSAGE_HEADER, Address
from hmx.argo.consumer import Consumer, Message, RingCorrupt
from hmx.argo.producer import Producer, pack_message
from hmx.argo.ring import npages_for
from hmx.memory import PAGE_SIZE, Window

LEN = 112
SOURCE = Address(5, 3)


def ring(ring_len: int = LEN) -> Window:
    size = npages_for(ring_len) * PAGE_SIZE
    return Window(bytearray(size), 0, size)


def pair(ring_len: int = LEN) -> tuple[Producer, Consumer]:
    window = ring(ring_len)
    return Producer(window, ring_len), Consumer(window, ring_len)


def test_pack_message() -> None:
    """Header of 16 bytes, its length included, then the payload."""
    assert pack_message(Address(0x10, 3), 0x6447724D, b"hello") == bytes.fromhex(
        "15000000 10000000 0300 0000 4D724764 68656C6C6F"
    )


def test_one_message() -> None:
    """receive takes it, and publishes rx."""
    producer, consumer = pair()
    assert consumer.receive() is None
    assert producer.put(SOURCE, 9, [b"pay", b"load!"])
    assert consumer.available() == 32
    assert consumer.peek() == Message(5, 3, 9, b"payload!")
    assert consumer.window.load32(0) == 0
    assert consumer.receive() == Message(5, 3, 9, b"payload!")
    assert consumer.window.load32(0) == 32
    assert consumer.available() == 0
    assert consumer.receive() is None


def test_views_and_consume() -> None:
    """The zero-copy way: two views where the payload wraps; rx moves at consume, once per message."""
    producer, consumer = pair()
    assert producer.put(SOURCE, 0, [b"x" * 48])
    assert consumer.receive() is not None
    assert producer.put(SOURCE, 1, [b"abcdefgh" * 5])
    message = consumer.view()
    assert message is not None
    assert (bytes(message.first), bytes(message.second)) == ((b"abcdefgh" * 4), b"abcdefgh")
    assert message.first.readonly
    assert message[:3] == (5, 3, 1)
    assert consumer.window.load32(0) == 64
    consumer.consume()
    assert consumer.window.load32(0) == (64 + 64) % LEN
    with pytest.raises(RuntimeError):
        consumer.consume()


def test_header_in_the_last_slot() -> None:
    """The payload starts at 0."""
    producer, consumer = pair(80)
    assert producer.put(SOURCE, 0, [b"x" * 48])
    assert consumer.receive() is not None
    assert producer.put(SOURCE, 0, [b"hello"])
    assert consumer.peek() == Message(5, 3, 0, b"hello")
    message = consumer.view()
    assert message is not None
    assert bytes(message.first) == b"hello"
    consumer.consume()
    assert consumer.rx == 16


def test_receive_into_cuts_but_tells() -> None:
    """A short buffer gets the start; the length is the whole payload's; the message is consumed."""
    producer, consumer = pair()
    assert producer.put(SOURCE, 7, [b"0123456789"])
    target = bytearray(4)
    assert consumer.receive_into(target) == (5, 3, 7, 10)
    assert target == b"0123"
    assert producer.put(SOURCE, 7, [b"ab"])
    target = bytearray(b"....")
    assert consumer.receive_into(memoryview(target)) == (5, 3, 7, 2)
    assert target == b"ab.."
    assert consumer.receive_into(target) is None


def test_drain_takes_what_was_there_and_publishes_once() -> None:
    """A snapshot of tx bounds the pass; a limit bounds it further."""
    producer, consumer = pair(1008)
    for index in range(5):
        assert producer.put(SOURCE, index, [b"m" * index])
    assert [m.message_type for m in consumer.drain(2)] == [0, 1]
    published = consumer.window.load32(0)
    assert published == consumer.rx == 48
    assert [len(m.payload) for m in consumer.drain()] == [2, 3, 4]
    assert consumer.drain() == []


def test_it_starts_from_the_ring() -> None:
    """A new receiver on an old ring goes on at its rx, corrected if need be."""
    window = ring()
    window.store32(0, 40)
    assert Consumer(window, LEN).rx == 48
    window.store32(0, LEN)
    assert Consumer(window, LEN).rx == 0


@pytest.mark.parametrize(
    ("length", "tx"), [(15, 32), (0, 16), (33, 32), (0xFFFFFFFF, 96), (17, 16), (0xFFFFFFF1, 96)]
)
def test_nonsense_is_corrupt_and_can_be_skipped(length: int, tx: int) -> None:
    """A header that claims less than itself or more than is there; recover drops everything up to tx."""
    window = ring()
    window.write(64, MESSAGE_HEADER.pack(length, 1, 2, 0, 3))
    window.store32(4, tx)
    consumer = Consumer(window, LEN)
    for look in (consumer.peek, consumer.receive, consumer.view, consumer.drain):
        with pytest.raises(RingCorrupt) as caught:
            look()
        assert (caught.value.rx, caught.value.tx, caught.value.length) == (0, tx, length)
    consumer.recover()
    assert window.load32(0) == tx
    assert consumer.receive() is None


def test_a_tx_between_slots_lets_nothing_past_it() -> None:
    """A message whose padding would reach beyond tx is no message of a hypervisor's."""
    window = ring()
    window.write(64, MESSAGE_HEADER.pack(20, 1, 2, 0, 3))
    window.store32(4, 24)
    consumer = Consumer(window, LEN)
    with pytest.raises(RingCorrupt):
        consumer.receive()
    consumer.recover()
    assert consumer.rx == 16 and consumer.receive() is None


def test_rx_is_published_behind_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message's bytes are read before its space is given away."""
    producer, consumer = pair()
    assert producer.put(SOURCE, 0, [b"m"])
    assert consumer.peek() is not None
    seen: list[int] = []
    monkeypatch.setattr("hmx.argo.consumer.fence", lambda: seen.append(consumer.window.load32(0)))
    consumer.consume()
    assert seen == [0]
    assert consumer.window.load32(0) == 32


def test_drain_returns_what_precedes_corruption() -> None:
    """Good messages are not lost with a bad one."""
    producer, consumer = pair()
    assert producer.put(SOURCE, 1, [b"good"])
    assert producer.put(SOURCE, 2, [b"bad"])
    consumer.window.write(64 + 32, b"\xff\xff\xff\xff")
    assert [m.payload for m in consumer.drain()] == [b"good"]
    with pytest.raises(RingCorrupt):
        consumer.drain()


def test_tx_out_of_range_counts_as_zero() -> None:
    """As in uXen's safe variant: the next send puts it right."""
    window = ring()
    window.store32(4, 0xFFFFFFF0)
    consumer = Consumer(window, LEN)
    assert consumer.receive() is None
    consumer.recover()
    assert window.load32(0) == 0


@given(data=st.binary(min_size=LEN + 64, max_size=LEN + 64))
def test_random_bytes_in_a_ring(data: bytes) -> None:
    """Whatever stands there, pointers included: messages, nothing, or RingCorrupt; and recover ends it."""
    window = ring()
    window.write(0, data)
    consumer = Consumer(window, LEN)
    for _ in range(20):
        try:
            if consumer.receive() is None:
                break
        except RingCorrupt:
            consumer.recover()
    assert 0 <= consumer.rx < LEN
    consumer.recover()
    assert consumer.drain() == []


@given(st.lists(st.tuples(st.binary(max_size=60), st.sampled_from(["receive", "view", "drain"])), max_size=40))
def test_fifo_through_wraps(steps: list[tuple[bytes, str]]) -> None:
    """What goes in comes out, in order, whichever way it is taken; put refuses exactly what does not fit."""
    producer, consumer = pair()
    sent: list[bytes] = []
    got: list[bytes] = []
    for payload, way in steps:
        fits = (len(payload) + 15) // 16 * 16 <= producer.space()
        if producer.put(SOURCE, 0, [payload]):
            sent.append(payload)
            assert fits or not payload
        else:
            assert not fits or not payload  # of a bare header the space says nothing
            if way == "receive":
                message = consumer.receive()
                assert message is not None
                got.append(message.payload)
            elif way == "view":
                view = consumer.view()
                assert view is not None
                got.append(bytes(view.first) + bytes(view.second))
                consumer.consume()
            else:
                got += [m.payload for m in consumer.drain()]
    got += [m.payload for m in consumer.drain()]
    assert got == sent


@given(
    st.lists(st.integers(0, 9000) | st.integers(0, 90), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(0, 40_000 // 16),
)
@settings(deadline=None)
def test_drain_is_receive_for_many(sizes: list[int], limit: int, start: int) -> None:
    """Small messages in one look, large ones and one across the ring's end by themselves: the same messages."""
    ring_len = 40_000
    window = ring(ring_len)
    for word in (0, 4):
        window.store32(word, start * 16 % ring_len)
    producer, consumer = Producer(window, ring_len), Consumer(window, ring_len)
    sent = []
    for index, size in enumerate(sizes):
        payload = bytes([index]) * size
        if producer.put(Address(index, 3), index, [payload]):
            sent.append(Message(index, 3, index, payload))
    got: list[Message] = []
    while batch := consumer.drain(limit):
        assert not limit or len(batch) <= limit
        got += batch
    assert got == sent
    assert consumer.available() == 0 and window.load32(0) == window.load32(4)


def test_recovering_from_a_tx_between_slots_does_not_overtake_it() -> None:
    """rx goes to the slot before a misaligned tx: rounded up it would pass it, and the ring would seem nearly full."""
    memory = bytearray(4096)
    window = Window(memory, 0, 4096)
    window.store32(4, 40)
    consumer = Consumer(window, 256)
    consumer.recover()
    assert window.load32(0) == 32
    assert consumer.available() < 16
