"""The hypervisor's process shell where it meets guests: tokens, bounded turns (project handshake, contracts 2)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.frames import Lane
from hmx.attach import Request, pack_request, unpack_reply
from hv_node.config import DomainConfig
from hv_node.hvm import TURN
from hv_node.node import Node
from hv_node.promptness import SOON_NS, SURE
from hv_node.turns import SLICE_NS
from tests.doubles.hypervisor_node import Link, started

TOKEN = bytes(range(16))


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.close()


@pytest.fixture
def node(short_tmp_path: Path, link: Link) -> Iterator[Node]:
    """A hypervisor with one domain, whose guest `app` was granted a token; its loop is turned by hand."""
    with started(short_tmp_path, link, DomainConfig("app", 1, 1 << 20, 1)) as node:
        node._on_record(Lane.CONTROL, ["told", "broker", ["grant", "app", TOKEN]], b"")
        yield node


def ask(node: Node, token: bytes, name: str = "app") -> socket.socket:
    """Connect and ask to attach; the connection, with the answer in it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(node.config.attach_path)
    connection.send(pack_request(Request(name, token)))
    node._poll(0)
    node._poll(0)
    return connection


def test_a_wrong_token_uses_nothing_up(node: Node) -> None:
    """Who guesses at another guest's token is refused, and that guest attaches afterwards; nobody does so twice."""
    with ask(node, bytes(16)) as guesser, ask(node, TOKEN) as app, ask(node, TOKEN) as again:
        assert "wrong attach token" in unpack_reply(guesser.recv(4096)).text
        assert not unpack_reply(app.recv(4096)).refused
        assert unpack_reply(again.recv(4096)).refused


def test_costly_frames_make_a_turn_of_fewer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is bounded in frames and in time: costly frames come one a turn, until they are cheap again."""
    hvm = node.core.hvm(1)
    assert hvm is not None
    (vcpu,) = hvm.vcpus
    now, cost, budgets = 0, SLICE_NS, []

    def run(_vcpu: object, budget: int) -> int:
        nonlocal now
        now += budget * cost
        budgets.append(budget)
        return budget

    monkeypatch.setattr(node.core, "run", run)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    node._active[vcpu] = None
    node._turn()
    node._turn()
    assert budgets == [TURN, 1]
    cost = 1000
    for _ in range(8):
        node._turn()
    assert budgets == [TURN, 1, 2, 4, 8, 16, 32, 64, 64, 64]


class Clock:
    """A time that tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)


def reach(node: Node, clock: Clock, answered: bool = True) -> None:
    """A message from elsewhere comes to the guest, which answers at once."""
    node._reached(1)
    if answered:
        node._promptness.acted(1, clock.now)
        node._held_ns = None


def test_results_wait_for_the_answer_of_a_guest_that_always_answers(
    node: Node, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is ready leaves together with what the guest then does, and after a while without it."""
    clock = Clock(monkeypatch)
    for _ in range(SURE):
        reach(node, clock)
        node._flush()
    before = link.flushes
    assert before == SURE
    reach(node, clock, answered=False)
    node._flush()
    clock.now += SOON_NS - 1
    node._flush()
    assert link.flushes == before
    clock.now += 1
    node._flush()
    assert link.flushes == before + 1
    reach(node, clock, answered=False)
    node._flush()
    assert link.flushes == before + 2, "it did nothing last time"


def test_who_waits_is_awake(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest whose answer is expected need not ring: its submissions are looked at; one that is trapped has none."""
    with ask(node, TOKEN):
        hvm = node.core.hvm(1)
        assert hvm is not None
        (vcpu,) = hvm.vcpus
        clock = Clock(monkeypatch)
        for _ in range(SURE):
            reach(node, clock)
        vcpu.blocked = 5
        node._reached(1)
        assert (node._held_ns, vcpu in node._active) == (None, False)
        vcpu.blocked = None
        node._promptness.acted(1, clock.now)
        node._reached(1)
        assert (node._held_ns, vcpu in node._active) == (clock.now + SOON_NS, True)
        node._promptness.gone(1)
