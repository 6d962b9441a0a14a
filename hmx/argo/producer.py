"""The sending end of a ring, as a model of what a hypervisor writes (Xen common/argo.c, wire format).

A hypervisor's real producer is its sendv, which checks and copies out of another domain's memory. This one
serves whoever holds both ends: tests of receivers, and models that feed a ring locally.
"""

from __future__ import annotations

from collections.abc import Sequence

from hmx.argo.abi import MESSAGE_HEADER, MESSAGE_HEADER_SIZE, RING_HEADER_SIZE, RX_PTR, TX_PTR, Address
from hmx.argo.ring import advance, fits, payload_space, roundup16, sanitise_rx, sanitise_tx
from hmx.memory import Window
from hmx.shm import fence

Buffer = bytes | bytearray | memoryview


def pack_message(source: Address, message_type: int, payload: bytes) -> bytes:
    """A message as it lies in a ring that does not wrap, without the padding behind it."""
    length = MESSAGE_HEADER_SIZE + len(payload)
    return MESSAGE_HEADER.pack(length, source.port, source.domid, 0, message_type) + payload


class Producer:
    """Puts messages into a ring of `ring_len` data bytes, from the tx_ptr that a registration would adopt."""

    __slots__ = ("ring_len", "tx", "window")

    def __init__(self, window: Window, ring_len: int) -> None:
        self.window = window
        self.ring_len = ring_len
        self.tx = sanitise_tx(window.load32(TX_PTR), window.load32(RX_PTR), ring_len)
        window.store32(TX_PTR, self.tx)

    def _rx(self) -> int:
        return sanitise_rx(self.window.load32(RX_PTR), self.ring_len)

    def space(self) -> int:
        """The largest payload that fits now, as notify would report it."""
        return payload_space(self.ring_len, self._rx(), self.tx)

    def put(self, source: Address, message_type: int, buffers: Sequence[Buffer]) -> bool:
        """Append one message made of `buffers`; False when it does not fit now."""
        payload = b"".join(bytes(part) for part in buffers)
        if not fits(self.ring_len, self._rx(), self.tx, len(payload)):
            return False
        message = pack_message(source, message_type, payload)
        head = min(len(message), self.ring_len - self.tx)
        self.window.write(RING_HEADER_SIZE + self.tx, message[:head])
        self.window.write(RING_HEADER_SIZE, message[head:])
        self.tx = advance(self.tx, roundup16(len(message)), self.ring_len)
        fence()
        self.window.store32(TX_PTR, self.tx)
        self.window.publish()
        return True
