"""Hostile peers of a broker, each a process: `main(NAME, ENDPOINT, TOKEN)` goes on until it is killed.

Raw DEALER sockets: they keep to no protocol but ZeroMQ's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import zmq

from broker import frames
from broker.client import ZmqLink
from broker.frames import MAX_PART, MAX_PAYLOAD, FrameKind, Lane
from tests.broker.support import handshake, hello_record

Dealer = zmq.Socket[bytes]


def connected(endpoint: str) -> Dealer:
    context: zmq.Context[Dealer] = zmq.Context.instance()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.setsockopt(zmq.RECONNECT_IVL, 10)
    dealer.connect(endpoint)
    return dealer


def joined(endpoint: str, token: bytes, name: str, kind: str = "guest") -> tuple[Dealer, list[bytes], int]:
    """A connection that was welcomed, the hello that it said, and the broker's epoch."""
    dealer = connected(endpoint)
    hello = handshake(hello_record(kind, name, token=token))
    dealer.send_multipart(hello)
    answer = frames.parse_frame(dealer.recv_multipart())
    assert answer.records[0][0] == "welcome", answer
    return dealer, hello, answer.epoch


def tell(epoch: int, seq: int, n: int, to: str = "b") -> list[bytes]:
    return frames.pack_frame(FrameKind.RECORDS, Lane.CONTROL, epoch, seq, 0, [["tell", to, ["hostile", n]]])


def noise(endpoint: str, token: bytes) -> None:
    """Random frames: any number of parts of any bytes, headers that are nearly right; reads nothing."""
    dealer, chance = connected(endpoint), random.Random(1)
    while True:
        parts = [chance.randbytes(chance.choice((0, 1, 31, 32, 33, 500))) for _ in range(chance.randint(1, 6))]
        if chance.random() < 0.5:
            header = bytearray(frames.pack_header(chance.randint(1, 3), chance.randint(1, 3), 1, 0, 0, 1))
            header[chance.randrange(32)] ^= 1 << chance.randrange(8)
            parts = [bytes(header), chance.choice((b"\x91\x91\xa5ready", chance.randbytes(40))), b""]
        dealer.send_multipart(parts)


def oversized(endpoint: str, token: bytes) -> None:
    """Parts beyond the limit (the connection is cut each time), a thousand parts, and the largest that is allowed."""
    dealer, huge = connected(endpoint), bytes(MAX_PART + (300 << 20))
    header = frames.pack_header(FrameKind.RECORDS, Lane.REQUEST, 1, 0, 0, 1)
    while True:
        dealer.send_multipart([header, bytes(1 << 20), b""])
        dealer.send_multipart([b"x"] * 1000)
        dealer.send_multipart([header, b"\x91" * 65536, bytes(MAX_PAYLOAD)])
        dealer.send_multipart([header, b"\x90", bytes(MAX_PART + 1)])
        dealer.send_multipart([header, b"\x90", huge], copy=False)


def large(endpoint: str, token: bytes) -> None:
    """The largest parts that a socket accepts, one behind another, as fast as they go."""
    dealer, payload = connected(endpoint), bytes(MAX_PAYLOAD)
    while True:
        dealer.send_multipart([b"junk", b"", payload], copy=False)


def epochs(endpoint: str, token: bytes) -> None:
    """Joins, and speaks of other epochs; again and again."""
    dealer, hello, epoch = joined(endpoint, token, "hostile")
    while True:
        for wrong in (epoch + 1, epoch - 1, 0, (1 << 64) - 1):
            dealer.send_multipart(tell(wrong, 0, 0))
            dealer.send_multipart(hello)
        while dealer.poll(0):
            dealer.recv_multipart()


def replay(endpoint: str, token: bytes) -> None:
    """Says each thing once and repeats every recorded frame many times, the hello of another connection too."""
    dealer, _, epoch = joined(endpoint, token, "hostile")
    recorded: list[list[bytes]] = []
    n = 0
    while True:
        recorded.append(tell(epoch, n, n))
        dealer.send_multipart(recorded[-1])
        n += 1
        for _ in range(20):
            dealer.send_multipart(random.Random(n).choice(recorded[-50:]))
        while dealer.poll(0):
            dealer.recv_multipart()
        time.sleep(0.001)


def unread(endpoint: str, token: bytes) -> None:
    """Joins, subscribes to everything, and never reads, while an accomplice makes the broker speak to it."""
    dealer, _, epoch = joined(endpoint, token, "hostile", "agent")
    dealer.send_multipart(frames.pack_frame(FrameKind.RECORDS, Lane.CONTROL, epoch, 0, 0, [["subscribe"]]))
    accomplice = ZmqLink(endpoint, kind="guest", name="accomplice", token=token)
    accomplice.wait_joined(10)
    while True:
        accomplice.send(Lane.CONTROL, ["tell", "hostile", ["x"]], bytes(60_000))
        accomplice.send(Lane.EVENT, ["event", "noise", "x" * 60_000])
        accomplice.pump()


def flood(endpoint: str, token: bytes) -> None:
    """Joins, and tells `b` things beyond every window, as fast as the socket takes them; joins again when cut."""
    dealer, hello, epoch = joined(endpoint, token, "hostile")
    seq = 0
    while True:
        records = [["tell", "b", ["hostile", seq + at]] for at in range(frames.MAX_RECORDS)]
        dealer.send_multipart(frames.pack_frame(FrameKind.RECORDS, Lane.CONTROL, epoch, seq, 0, records))
        seq += len(records)
        while dealer.poll(0):
            frame = frames.parse_frame(dealer.recv_multipart())
            if frame.kind is FrameKind.HANDSHAKE and frame.records[0][0] == "refused":
                dealer.send_multipart(hello)
                seq = 0


ATTACKS: dict[str, Callable[[str, bytes], None]] = {
    function.__name__: function for function in (noise, oversized, large, epochs, replay, unread, flood)
}


def main(name: str, endpoint: str, token: str) -> None:
    ATTACKS[name](endpoint, token.encode())
