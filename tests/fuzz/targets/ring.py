"""Property: whatever stands in a ring, its consumer returns messages that lie within it or raises RingCorrupt; it
writes nothing but the read pointer, always comes to an end, and reads a sound message after `recover`.

Input: ring length, pointers, a sequence of calls, then the ring's bytes; the producer may scribble between two calls.
"""

from __future__ import annotations

from hmx.argo import abi
from hmx.argo.consumer import Consumer, RingCorrupt
from hmx.argo.ring import advance, roundup16
from hmx.memory import Window
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
_LENGTHS = (32, 48, 64, 112, 128, 256, 512, 1024)
_GUARD = b"\xa5" * 32


def one_input(data: bytes) -> None:
    """Consume one ring."""
    choices = Choices(data)
    ring_len = choices.one_of(_LENGTHS)
    size = abi.RING_HEADER_SIZE + ring_len
    memory = bytearray(size + 32)
    memory[size:] = _GUARD
    head = choices.u8()
    rx, tx = choices.u16(), choices.u16()
    if not head & 1:
        rx, tx = rx % ring_len & ~15, tx % ring_len & ~15
    memory[abi.RX_PTR : abi.RX_PTR + 4] = rx.to_bytes(4, "little")
    memory[abi.TX_PTR : abi.TX_PTR + 4] = (tx << 16 if head & 2 else tx).to_bytes(4, "little")
    calls = choices.take(choices.u8() & 31)
    body = choices.take(ring_len)
    memory[64 : 64 + len(body)] = body
    consumer = Consumer(Window(memory, 0, size), ring_len)
    before = bytes(memory)
    for call in calls:
        TALLY.count += 1
        if call & 7 == 7:  # the producer, or whoever plays it
            value = choices.u32()
            memory[abi.TX_PTR : abi.TX_PTR + 4] = value.to_bytes(4, "little")
            piece = choices.take(16)
            at = 64 + (call >> 3) * 16 % ring_len
            memory[at : at + len(piece)] = piece
            before = bytes(memory)
            continue
        try:
            _call(consumer, call, ring_len)
        except RingCorrupt as corrupt:
            assert 0 <= corrupt.rx < ring_len and 0 <= corrupt.tx < ring_len
            consumer.recover()
        assert 0 <= consumer.rx < ring_len and consumer.rx % 16 == 0
        assert memory[: abi.RX_PTR] == before[: abi.RX_PTR], "the consumer writes its pointer only"
        assert memory[abi.RX_PTR + 4 :] == before[abi.RX_PTR + 4 :]
    _sound_message(memory, consumer, ring_len)


def _call(consumer: Consumer, call: int, ring_len: int) -> None:
    match call & 7:
        case 0:
            message = consumer.receive()
            assert message is None or len(message.payload) <= ring_len - 16
        case 1:
            assert consumer.peek() == consumer.peek()
        case 2:
            target = bytearray(call >> 3)
            received = consumer.receive_into(target)
            assert received is None or received.length <= ring_len - 16
        case 3:
            view = consumer.view()
            if view is not None:
                assert len(view.first) + len(view.second) <= ring_len - 16
                consumer.consume()
        case 4:
            messages = consumer.drain(call >> 3)
            assert sum(16 + len(message.payload) for message in messages) <= ring_len
        case 5:
            consumer.recover()
        case _:
            assert 0 <= consumer.available() < ring_len


def _sound_message(memory: bytearray, consumer: Consumer, ring_len: int) -> None:
    """The hypervisor keeps a tail of its own: after a recovery, what it writes is read."""
    rx = consumer.rx
    payload = b"sound" if ring_len > 32 else b""
    message = abi.MESSAGE_HEADER.pack(16 + len(payload), 7, 2, 0, 0xABCD).ljust(16, b"\0") + payload.ljust(
        roundup16(len(payload)), b"\0"
    )
    if len(message) >= ring_len:
        message = message[:16]
    for at, byte in enumerate(message):
        memory[64 + (rx + at) % ring_len] = byte
    memory[abi.TX_PTR : abi.TX_PTR + 4] = advance(rx, len(message), ring_len).to_bytes(4, "little")
    got = consumer.receive()
    TALLY.count += 1
    assert got is not None and got.payload == payload and got.source_domid == 2
