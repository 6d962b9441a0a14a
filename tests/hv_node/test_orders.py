"""What the toolstack asks of a hypervisor's shell: domains made, freed, and every order answered, even twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.frames import Lane
from hmx.attach import Request, pack_request, unpack_reply
from hv_node.config import DomainConfig
from hv_node.node import Node
from hv_node.roster import TOKENS
from tests.doubles.hypervisor_node import Link, started

MIB = 1 << 20


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


@pytest.fixture
def node(short_tmp_path: Path, link: Link) -> Iterator[Node]:
    """A hypervisor with one domain, number 1, for guest `app`; its loop is turned by hand."""
    with started(short_tmp_path, link, DomainConfig("app", 1, MIB, 1)) as made:
        yield made


def order(node: Node, *record: Any) -> None:
    node._on_record(Lane.CONTROL, ["told", "agent", [*record]], b"")
    node.roster.free_due(time.monotonic())


def grant(node: Node, token: bytes) -> None:
    node._on_record(Lane.CONTROL, ["told", "broker", ["grant", "app", token]], b"")


def attach(node: Node, token: bytes) -> tuple[socket.socket, Any]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(node.config.attach_path)
    connection.send(pack_request(Request("app", token)))
    for _ in range(3):
        node._poll(0)
    connection.settimeout(5)
    return connection, unpack_reply(connection.recv(4096))


def test_a_domain_is_freed_when_its_process_is_gone(node: Node, link: Link) -> None:
    """Dying when the attach connection ends, freed when the agent has seen the exit; whichever came first."""
    grant(node, bytes(16))
    connection, reply = attach(node, bytes(16))
    assert not reply.refused
    connection.close()
    node._poll(0)
    node.roster.free_due(time.monotonic())
    assert link.events("domain-dying") == [["app", 1]]
    assert link.events("domain-freed") == []
    assert node.core.domains.lookup(1) is not None
    order(node, "exited", "app", 1)
    assert link.events("domain-freed") == [["app", 1]]
    assert node.core.domains.lookup(1) is None


def test_a_guest_that_never_attached_leaves_its_domain_as_well(node: Node, link: Link) -> None:
    """Else it could not be started again."""
    order(node, "exited", "app", 1)
    assert (link.events("domain-dying"), link.events("domain-freed")) == ([["app", 1]], [["app", 1]])


def test_orders_are_answered_every_time(node: Node, link: Link) -> None:
    """The toolstack repeats them until it has heard; nothing is done twice."""
    for _ in range(2):
        order(node, "exited", "app", 1)
        order(node, "create", "app", 2, MIB, 2)
    assert link.events("domain-freed") == [["app", 1], ["app", 1]]
    assert link.events("domain-created") == [["app", 2], ["app", 2]]
    hvm = node.core.hvm(2)
    assert hvm is not None and len(hvm.vcpus) == 2
    order(node, "exited", "app", 1)
    assert node.core.hvm(2) is hvm, "the end of its former life is not the end of this one"


def test_a_domain_that_cannot_be_made_is_refused_with_the_reason(node: Node, link: Link) -> None:
    """An id in use, a guest that has one, memory that nobody has."""
    order(node, "create", "app", 2, MIB, 1)
    order(node, "create", "other", 1, MIB, 1)
    order(node, "create", "huge", 3, 1 << 62, 1)
    refused = [(name, domid) for name, domid, _ in link.events("domain-refused")]
    assert refused == [("app", 2), ("other", 1), ("huge", 3)]
    assert "still has domain 1" in link.events("domain-refused")[0][2]
    assert set(node.roster.backings) == {"app"}


def test_a_fresh_domain_can_be_attached_to(node: Node) -> None:
    """With its own number and memory."""
    order(node, "exited", "app", 1)
    order(node, "create", "app", 2, 2 * MIB, 1)
    grant(node, bytes(16))
    connection, reply = attach(node, bytes(16))
    assert (reply.refused, reply.domid, reply.memory) == (False, 2, 2 * MIB)
    connection.close()


def test_counters_of_all_lives_add_up(node: Node) -> None:
    """A guest's counters are those of all its domains."""
    for domid in (1, 2):
        hvm = node.core.hvm(domid)
        assert hvm is not None
        hvm.counters.hypercalls = 5
        order(node, "exited", "app", domid)
        order(node, "create", "app", domid + 1, MIB, 1)
    assert node.counters()["arch"]["app"]["hypercalls"] == 10


def test_each_of_the_last_grants_is_good_once(node: Node) -> None:
    """A guest that asked twice, since a broker died in between, may show either token; then none is left."""
    tokens = [bytes([number]) * 16 for number in range(TOKENS + 1)]
    for token in tokens:
        grant(node, token)
    connection, reply = attach(node, tokens[0])
    assert reply.refused, "the oldest grant is forgotten"
    connection.close()
    connection, reply = attach(node, tokens[1])
    assert not reply.refused
    again, reply = attach(node, tokens[2])
    assert reply.refused and "nobody announced" in reply.text
    again.close()
    connection.close()
