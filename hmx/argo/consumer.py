"""The receiving end of a ring, as a guest's driver (or a nested hypervisor) uses it.

The algorithm is the one that every Argo driver shares, with the caution of uXen's "safe" copy: the ring's
length is the receiver's own, a read pointer out of place is corrected, and no length found in the ring is
believed before it is checked. Whatever stands in the ring, the worst outcome is `RingCorrupt`; `recover`
then skips to the producer's pointer.

The read pointer is published after the message's bytes have been taken, never before.  A receiver that has
advanced it calls notify afterwards (the pointer first, then the call), or senders that wait sleep on.
"""

from __future__ import annotations

from typing import NamedTuple

from hmx.argo.abi import MESSAGE_HEADER, MESSAGE_HEADER_SIZE, RING_HEADER_SIZE, RX_PTR, SLOT, TX_PTR
from hmx.argo.ring import advance, roundup16, sanitise_rx
from hmx.memory import Window
from hmx.shm import fence

_DATA = RING_HEADER_SIZE
_HEADER = MESSAGE_HEADER_SIZE
_RUN = 16384  # bytes that `drain` copies out of a ring at once


class RingCorrupt(Exception):
    """The ring holds something that no hypervisor wrote.

    `rx` and `tx` are the pointers, `length` is what the message at rx claims to be.
    """

    def __init__(self, rx: int, tx: int, length: int) -> None:
        super().__init__(f"message of {length} bytes claimed between rx {rx} and tx {tx}")
        self.rx = rx
        self.tx = tx
        self.length = length


class Message(NamedTuple):
    """One message, copied out of the ring.  Trust `source_domid` only: the port is the sender's claim."""

    source_port: int
    source_domid: int
    message_type: int
    payload: bytes


class MessageView(NamedTuple):
    """One message in place: read-only views of ring memory, the second empty unless the payload wraps."""

    source_port: int
    source_domid: int
    message_type: int
    first: memoryview
    second: memoryview


class Received(NamedTuple):
    """A message copied into a buffer; `length` is that of the whole payload, also when it was cut."""

    source_port: int
    source_domid: int
    message_type: int
    length: int


class Consumer:
    """Takes messages out of one ring of `ring_len` data bytes, through the window on its pages.

    It keeps the read pointer privately (nobody else writes it) and starts from the one in the ring.
    """

    __slots__ = ("_next", "ring_len", "rx", "window")

    def __init__(self, window: Window, ring_len: int) -> None:
        self.window = window
        self.ring_len = ring_len
        self.rx = sanitise_rx(window.load32(RX_PTR), ring_len)
        self._next = -1  # where rx goes when the message last looked at is consumed

    def _tx(self) -> int:
        tx = self.window.load32(TX_PTR)
        return tx if tx < self.ring_len else 0

    def available(self) -> int:
        """Bytes between rx and tx, headers and padding included; 0 when there is nothing to read."""
        unread = self._tx() - self.rx
        return unread + self.ring_len if unread < 0 else unread

    def _header(self, tx: int) -> tuple[int, int, int, int] | None:
        """Payload length, source port, source domid and type of the message at rx; None if none waits."""
        rx, ring_len = self.rx, self.ring_len
        unread = tx - rx
        if unread < 0:
            unread += ring_len
        if unread < _HEADER:
            return None
        length, port, domid, _, message_type = MESSAGE_HEADER.unpack(self.window.read(_DATA + rx, _HEADER))
        if length < _HEADER or roundup16(length) > unread or length > unread:
            raise RingCorrupt(rx, tx, length)
        self._next = advance(rx, roundup16(length), ring_len)
        return length - _HEADER, port, domid, message_type

    def _payload(self, n: int) -> bytes:
        """The first `n` payload bytes of the message at rx."""
        start = self.rx + _HEADER
        if start == self.ring_len:
            start = 0
        head = self.ring_len - start
        if n <= head:
            return self.window.read(_DATA + start, n)
        return self.window.read(_DATA + start, head) + self.window.read(_DATA, n - head)

    def peek(self) -> Message | None:
        """The next message, not consumed; None when there is none.  Raises RingCorrupt."""
        header = self._header(self._tx())
        if header is None:
            return None
        n, port, domid, message_type = header
        return Message(port, domid, message_type, self._payload(n))

    def consume(self) -> None:
        """Drop the message that `peek` or `view` returned last, and publish rx."""
        if self._next < 0:
            raise RuntimeError("consume() without a message looked at")
        self.rx = self._next
        self._publish()

    def _publish(self) -> None:
        """Give everything before rx back to the senders; the caller notifies afterwards."""
        self._next = -1
        fence()  # the message's bytes were read before its space is given away
        self.window.store32(RX_PTR, self.rx)
        self.window.publish()

    def receive(self) -> Message | None:
        """Take the next message and publish rx; None when there is none.  Raises RingCorrupt."""
        message = self.peek()
        if message is not None:
            self.consume()
        return message

    def receive_into(self, target: bytearray | memoryview) -> Received | None:
        """Take the next message, copying at most `len(target)` payload bytes; the rest of it is dropped."""
        header = self._header(self._tx())
        if header is None:
            return None
        n, port, domid, message_type = header
        payload = self._payload(min(n, len(target)))
        target[: len(payload)] = payload
        self.consume()
        return Received(port, domid, message_type, n)

    def view(self) -> MessageView | None:
        """The next message in place; None when there is none. `consume` gives its space back. Raises
        RingCorrupt.

        The bytes are live: the domain's own code could change them between two looks.
        """
        header = self._header(self._tx())
        if header is None:
            return None
        n, port, domid, message_type = header
        start = self.rx + _HEADER
        if start == self.ring_len:
            start = 0
        head = min(n, self.ring_len - start)
        window = self.window
        return MessageView(
            port, domid, message_type, window.view(_DATA + start, head), window.view(_DATA, n - head)
        )

    def drain(self, limit: int = 0) -> list[Message]:
        """Take what was there when the call began, at most `limit` messages (0: all), and publish rx once.

        One notify after it serves all of them. A corrupt message ends the pass: what precedes it is
        returned, and the next call raises RingCorrupt.
        """
        tx = self._tx()
        taken: list[Message] = []
        while not limit or len(taken) < limit:
            if self._run(tx, limit - len(taken), taken):
                continue
            try:
                header = self._header(tx)
            except RingCorrupt:
                if taken:
                    break
                raise
            if header is None:
                break
            n, port, domid, message_type = header
            taken.append(Message(port, domid, message_type, self._payload(n)))
            self.rx = self._next
        if taken:
            self._publish()
        return taken

    def _run(self, tx: int, limit: int, taken: list[Message]) -> bool:
        """Take the small messages that lie whole before the ring's end, with one look at the ring for many.

        Moves rx without publishing it; stops before any message that is large, wraps or is not sound.  Whether
        there was any.
        """
        rx = self.rx
        size = min((tx if tx >= rx else self.ring_len) - rx, _RUN)
        if size < 2 * _HEADER:
            return False
        run = self.window.read(_DATA + rx, size)
        unpack, append = MESSAGE_HEADER.unpack_from, taken.append
        at, last, room = 0, size - _HEADER, limit or size
        while at <= last and room:
            length, port, domid, _, message_type = unpack(run, at)
            end = at + length
            after = (end + SLOT - 1) & -SLOT
            if length < _HEADER or after > size:
                break
            append(Message(port, domid, message_type, run[at + _HEADER : end]))
            at = after
            room -= 1
        if not at:
            return False
        self.rx = advance(rx, at, self.ring_len)
        return True

    def recover(self) -> None:
        """Drop everything unread: rx := tx, as the Linux driver does when it finds nonsense.

        A tx between two slots is nonsense too: rx goes to the slot before it, so as not to overtake it.
        """
        self.rx = sanitise_rx(self._tx() & ~(SLOT - 1), self.ring_len)
        self._publish()
