"""Posted messages that travel together.  Rules of docs/levels.md, "Posted links"."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from broker.envelope import EnvelopeKind
from hmx.errno import Errno
from hv_node.effects import PENDING
from hv_node.levels.remote import (
    BATCH,
    MAX_BATCH,
    PayloadError,
    pack_batch,
    pack_failures,
    unpack_batch,
    unpack_failures,
)
from tests.doubles.levels import Lab, Node
from tests.doubles.two_levels import AGAIN, PORT, REFUSED, SECOND, A, X, Y, consume, notify, send, two, tx

NOWHERE = 9  # a port without a ring


def sent(lab: Lab) -> list[tuple[int, bool]]:
    """What lies on the wire of a: (kind, whether it is a batch)."""
    return [(int(envelope.kind), bool(envelope.ret & BATCH)) for envelope, _ in lab.wires[A, ()].queue]


def post(node: Node, count: int, port: int = PORT, size: int = 4) -> list[Any]:
    return [send(node, X, Y, bytes([n]) * size, port=port) for n in range(count)]


def test_what_is_posted_while_an_answer_is_awaited_travels_together() -> None:
    """The first leaves at once; the others when it was answered, as one envelope, in order."""
    lab, a, b = two(held=True, posted=True, credit=64)
    assert post(a, 3) == [4, 4, 4]
    assert sent(lab) == [(EnvelopeKind.SEND, False)]
    lab.settle()
    assert lab.wires[A, ()].taken == 2
    assert tx(b, Y) == 96
    assert [b.ram[Y][24 * 4096 + 64 + 32 * n + 16] for n in range(3)] == [0, 1, 2]
    assert b.level.counters.delivered == 3
    assert b.level.counters.delivered_bytes == 12


def test_a_full_batch_does_not_wait() -> None:
    """Half of the credit is as many as wait; credit counts messages, not envelopes."""
    lab, a, _ = two(held=True, posted=True, credit=8)
    assert post(a, 9) == [4] * 8 + [AGAIN]
    assert sent(lab) == [(EnvelopeKind.SEND, False), (EnvelopeKind.SEND, True)]
    lab.settle()
    assert a.virqs == [(X, 11)]
    assert post(a, 1) == [4]


def test_nothing_overtakes_a_batch() -> None:
    """A question about the ring goes behind what was posted before it, and so does a message to another port."""
    lab, a, _ = two(held=True, posted=True, credit=64)
    post(a, 3)
    assert notify(a, X, (PORT, Y, 1)) is PENDING
    assert sent(lab) == [(EnvelopeKind.SEND, False), (EnvelopeKind.SEND, True), (EnvelopeKind.QUERY, False)]
    post(a, 2)
    post(a, 1, port=NOWHERE)
    assert sent(lab)[3:] == [(EnvelopeKind.SEND, True), (EnvelopeKind.SEND, False)]


def test_a_batch_that_finds_no_room_goes_on_where_it_stopped() -> None:
    """Each message once and in order, however often the receiver makes room."""
    lab, a, b = two(held=True, posted=True, credit=64)
    assert post(a, 7) == [4] * 7
    lab.settle()
    seen = []
    for _ in range(3):
        end = tx(b, Y)
        seen.append(end)
        consume(b, Y)
        lab.settle()
    assert b.level.far.held == 0
    assert b.level.counters.delivered == 7
    assert a.level.near._posted[("b",)].open == 0


def test_a_batch_is_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages are executed between the two words that let their interrupts be raised as one, each by itself."""
    lab, a, b = two(held=True, posted=True, credit=64)
    said: list[str] = []
    monkeypatch.setattr(b, "begin_run", lambda: said.append("begin"))
    monkeypatch.setattr(b, "end_run", lambda: said.append("end"))
    monkeypatch.setattr(b, "raise_virq", lambda *_: said.append("virq"))
    monkeypatch.setattr(b.level, "on_delivered", lambda *_: said.append("delivered"))
    post(a, 3)
    lab.settle()
    assert said == ["begin", "virq", "end", "delivered", "begin", "virq", "virq", "end", "delivered"]


def test_each_lost_message_of_a_batch_counts() -> None:
    """All of them are counted and told; the next send is refused once."""
    lab, a, _ = two(held=True, posted=True, credit=64)
    assert post(a, 4, port=NOWHERE) == [4] * 4
    lab.settle()
    assert a.level.counters.posted_lost == 4
    assert [event[0] for event in a.events] == ["posted-message-lost"] * 4
    assert post(a, 2, port=NOWHERE) == [REFUSED, 4]


def test_a_batch_is_repeated_unchanged_and_executed_once() -> None:
    """The link was lost under it: what is said again is the same envelope, and more messages wait for the next one."""
    lab, a, b = two(held=True, posted=True, credit=64)
    post(a, 3)
    lab.wires[A, ()].step()
    lab.advance(SECOND)  # the answer is late, so both are said again
    assert post(a, 1) == [4]
    lab.settle()
    for _ in range(2):
        consume(b, Y)
        lab.settle()
    assert b.level.counters.delivered == 4
    assert a.level.counters.posted_lost == 0


def test_posted_bytes_are_bounded() -> None:
    """As many messages as credit allows, but no more than 16 MiB of them; one larger message still goes."""
    lab, a, _ = two(held=True, posted=True, credit=64)
    link_bytes = 1 << 24
    post(a, 1)
    a.level.near._posted[("b",)].bytes = link_bytes
    assert post(a, 1) == [AGAIN]
    a.level.near._posted[("b",)].bytes = 4
    lab.settle()
    assert post(a, 1) == [4]


# -- payloads ----


def test_a_batch_is_what_was_packed() -> None:
    messages = [b"", b"a", bytes(100)]
    assert unpack_batch(pack_batch(messages)) == messages


GOOD = pack_batch([b"ab", b"c"])


@pytest.mark.parametrize(
    "payload",
    [b"", b"\1", struct.pack("<H", 0), struct.pack("<HI", 1, 1), GOOD + b"d", GOOD[:-1], GOOD[:7],
     struct.pack(f"<H{MAX_BATCH + 1}I", MAX_BATCH + 1, *[0] * (MAX_BATCH + 1))],
)  # fmt: skip
def test_a_batch_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack_batch(payload)


def test_failures_of_a_batch() -> None:
    """By index; a refusal of the whole is everybody's, and an answer that makes no sense is -EIO for all."""
    assert unpack_failures(0, b"", 3) == []
    assert unpack_failures(0, pack_failures([(0, -3), (2, -111)]), 3) == [-3, -111]
    assert unpack_failures(-22, b"", 2) == [-22, -22]
    assert unpack_failures(0, b"abc", 2) == [-int(Errno.EIO)] * 2
    assert unpack_failures(0, pack_failures([(0, -1)] * 3), 2) == [-int(Errno.EIO)] * 2
