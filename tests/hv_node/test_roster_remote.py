"""Guests on other hosts at the hypervisor's process shell: who is let in through the broker, and who is not.

Rules: the project's mirror protocol (docs/remote-guests.md); tokens are granted, used up and compared as nearby.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.frames import Lane
from guest_node.remote import RemoteEnd, request
from hmx import mirror
from hmx.attach import AttachError, Request, pack_request, unpack_reply
from hmx.mirror import MessageKind
from hmx.trap import Arch
from hv_node.config import DomainConfig
from hv_node.node import Node
from tests.doubles.hypervisor_node import Link, started

TOKEN, OTHER = b"r" * 16, b"o" * 16


class MirrorLink(Link):
    """A link that keeps apart what is said to a guest on another host."""

    def __init__(self) -> None:
        super().__init__()
        self.mirrored: list[tuple[str, bytes]] = []

    def send(self, lane: int, record: list[Any], payload: bytes = b"") -> bool:
        if record[2:] != [["mirror"]]:
            return super().send(lane, record, payload)
        self.mirrored.append((record[1], bytes(payload)))
        return True

    def answers(self) -> list[mirror.Message]:
        """What was said to guests since the last look."""
        taken = [mirror.unpack(data) for _, data in self.mirrored]
        self.mirrored.clear()
        return taken


@pytest.fixture
def link() -> Iterator[MirrorLink]:
    link = MirrorLink()
    yield link
    link.close()


@pytest.fixture
def node(short_tmp_path: Path, link: MirrorLink) -> Iterator[Node]:
    """A hypervisor with a guest on another host, and one beside it; both were granted a token."""
    domains = DomainConfig("away", 1, 1 << 20, 2, remote=True), DomainConfig("near", 2, 1 << 20, 1)
    with started(short_tmp_path, link, *domains) as node:
        for name in ("away", "near"):
            tell(node, "broker", ["grant", name, TOKEN])
        yield node


def tell(node: Node, sender: str, record: list[Any], payload: bytes = b"") -> None:
    node._on_record(Lane.CONTROL, ["told", sender, record], payload)


def ask(node: Node, link: MirrorLink, name: str = "away", token: bytes = TOKEN, says: str = "") -> mirror.Message:
    """Ask to attach through the broker; the last answer."""
    tell(node, name, ["mirror"], request(says or name, token))
    return link.answers()[-1]


def words(answer: mirror.Message) -> str:
    assert answer.kind is MessageKind.REFUSED
    return unpack_reply(bytes(answer.body)).text


def test_the_way_in_is_told_with_the_grant(node: Node, link: MirrorLink) -> None:
    """An empty path: through the broker."""
    assert ["tell", "away", ["granted", "", TOKEN]] in link.said
    assert ["tell", "near", ["granted", node.config.attach_path, TOKEN]] in link.said


def test_it_is_let_in_once_and_answered_twice(node: Node, link: MirrorLink) -> None:
    """The same token again: it did not hear the answer.  The lab hears of one attachment."""
    answers = [ask(node, link) for _ in range(2)]
    assert {answer.kind for answer in answers} == {MessageKind.ATTACHED}
    assert answers[0].epoch == answers[1].epoch > 0
    assert unpack_reply(bytes(answers[0].body))[:4] == (False, 1, 2, Arch.X86_64)
    assert link.events("attached") == [["away", 1]]
    assert [len([*node.roster.remotes()])] == [1]


def test_who_is_not_let_in(node: Node, link: MirrorLink) -> None:
    """A wrong token, nobody's, another's name, a guest whose memory is shared; the right one is let in afterwards."""
    assert "wrong attach token" in words(ask(node, link, token=OTHER))
    assert "nobody announced" in words(ask(node, link, "stranger"))
    assert "cannot attach for" in words(ask(node, link, "near", says="away"))
    assert "attaches on its hypervisor's host" in words(ask(node, link, "near"))
    assert ask(node, link).kind is MessageKind.ATTACHED
    assert words(ask(node, link, token=OTHER))
    tell(node, "broker", ["grant", "away", OTHER])
    assert "attached already" in words(ask(node, link, token=OTHER))


def test_the_attach_socket_does_not_let_it_in(node: Node) -> None:
    """There are no descriptors to be handed over."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, pytest.raises(AttachError, match="through the broker"):
        node.roster.introduce(here, Request("away", TOKEN))


@pytest.mark.parametrize("data", [b"", b"x" * 40, mirror.pack(MessageKind.ATTACH, 0, b"nonsense")])
def test_nonsense_is_answered_and_costs_nothing(node: Node, link: MirrorLink, data: bytes) -> None:
    """From a guest that is not attached, or from anybody else."""
    for name in ("away", "near", "stranger"):
        tell(node, name, ["mirror"], data)
        assert words(link.answers()[-1])
    assert node._turn() == 0


def test_what_it_says_wrongly_costs_its_domain(node: Node, link: MirrorLink) -> None:
    """It is told why, the lab is told too, and the domain dies; another life gets another one."""
    epoch = ask(node, link).epoch
    tell(node, "away", ["mirror"], mirror.pack(MessageKind.ATTACHED, epoch, pack_request(Request("away", TOKEN))))
    assert link.answers()[-1].kind is MessageKind.GONE
    assert link.events("domain-dying") == [["away", 1]]
    assert link.events("remote-guest-gone")[0][0] == "away"
    assert not [*node.roster.remotes()]
    tell(node, "agent", ["exited", "away", 1])
    node.roster.free_due(float("inf"))
    assert link.events("domain-freed") == [["away", 1]]
    tell(node, "agent", ["create", "away", 3, 1 << 20, 2])
    assert link.events("domain-created") == [["away", 3]]
    assert node.roster.is_remote("away")


def test_its_process_ended(node: Node, link: MirrorLink) -> None:
    """The agent knows before the link does: the domain dies at once, and whoever is left there is told."""
    ask(node, link)
    tell(node, "agent", ["exited", "away", 1])
    assert link.answers()[-1].kind is MessageKind.GONE
    assert link.events("domain-dying") == [["away", 1]]
    assert link.events("remote-guest-gone") == []


def test_another_session_repeats_what_may_be_lost(node: Node, link: MirrorLink) -> None:
    """Each welcome of a broker: batches that were not acknowledged go again, unchanged; a tick acknowledges."""
    answer = ask(node, link)
    end = RemoteEnd(answer, lambda message: tell(node, "away", ["mirror"], message), Arch.X86_64)
    end.window(0x4000, 4096)
    end.flush()
    node._tick(0.0)
    assert [message.kind for message in link.answers()] == [MessageKind.ACK]
    hvm = node.core.hvm(1)
    assert hvm is not None
    node.core.post(1, 0, 1 << 24 | 7)
    node._ring() if node.core.bells else node._ship()
    first = [data for _, data in link.mirrored]
    assert mirror.unpack(first[0]).kind is MessageKind.BATCH
    link.mirrored.clear()
    node.link.member.on_welcome(2)
    assert [data for _, data in link.mirrored] == first


def test_what_was_said_leaves_in_the_same_turn(node: Node, link: MirrorLink) -> None:
    """The link is flushed once when something was said to such a guest, and not for its sake when nothing was."""
    node._ship()
    assert link.flushes == 0
    ask(node, link)
    node._ship()
    node._ship()
    assert link.flushes == 1
