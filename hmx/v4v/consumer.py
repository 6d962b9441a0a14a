"""The receiving end of a v4v ring: Argo's receiver, with rx_ptr and tx_ptr where v4v keeps them.

Data start at byte 64 in both, messages look the same and are taken by the same algorithm, which is uXen's "safe"
copy: the ring's length is the receiver's own, rx_ptr is corrected, and nothing found in the ring is believed.
"""

from __future__ import annotations

from hmx.argo.consumer import Consumer
from hmx.argo.ring import sanitise_rx
from hmx.memory import Window
from hmx.shm import fence
from hmx.v4v.abi import RX_PTR, TX_PTR


class V4vConsumer(Consumer):
    """Takes messages out of one v4v ring of `ring_len` data bytes; used exactly as its Argo parent is."""

    __slots__ = ()

    def __init__(self, window: Window, ring_len: int) -> None:
        self.window = window
        self.ring_len = ring_len
        self.rx = sanitise_rx(window.load32(RX_PTR), ring_len)
        self._next = -1

    def _tx(self) -> int:
        tx = self.window.load32(TX_PTR)
        return tx if tx < self.ring_len else 0

    def _publish(self) -> None:
        self._next = -1
        fence()
        self.window.store32(RX_PTR, self.rx)
        self.window.publish()
