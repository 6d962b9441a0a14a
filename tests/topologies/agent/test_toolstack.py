"""Domain ids and orders to hypervisors: no process, no socket, no clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from topologies.agent.phases import SECOND
from topologies.agent.spec import NodeSpec
from topologies.agent.toolstack import REST, DomainIds, NoDomid, Toolstack
from topologies.runtime import NodeKind


def test_fresh_ids_go_up() -> None:
    """As Xen's domctl gives them: the next after the last, whatever was freed."""
    ids = DomainIds([1, 2])
    assert ids.take(0) == 3
    ids.free(3, 0)
    ids.free(1, 0)
    assert [ids.take(0), ids.take(0)] == [4, 5]


def test_a_freed_id_rests_for_a_minute() -> None:
    """contracts 8: not reused for 60 s ..."""
    ids = DomainIds([1, 2, 3], limit=5)
    ids.free(2, 10)
    assert ids.take(10) == 4
    ids.free(3, 11)
    assert ids.take(10 + REST) == 2
    assert REST == 60 * SECOND


def test_or_until_no_other_is_left() -> None:
    """... or until exhausted: then the one that rested longest; ids in use are never given."""
    ids = DomainIds([1, 2, 3], limit=4)
    ids.free(3, 10)
    ids.free(1, 11)
    assert ids.take(12) == 3
    assert ids.take(12) == 1
    with pytest.raises(NoDomid, match="all 3 domain ids"):
        ids.take(10 * REST)


def test_freeing_twice_or_what_was_never_given_changes_nothing() -> None:
    """Orders are repeated, so answers are."""
    ids = DomainIds([1], limit=4)
    ids.free(7, 0)
    ids.free(1, 0)
    ids.free(1, REST // 2)
    assert [ids.take(0), ids.take(0), ids.take(0)] == [2, 3, 1]


def toolstack() -> tuple[Toolstack, list[tuple[str, list[Any]]]]:
    config = SimpleNamespace(memory=1 << 20, vcpus=2)
    nodes = [
        NodeSpec("hv0", NodeKind.HYPERVISOR, "x:y"),
        NodeSpec("a", NodeKind.GUEST, "x:y", config, "hv0", 1),
        NodeSpec("b", NodeKind.GUEST, "x:y", config, "hv0", 2),
        NodeSpec("c", NodeKind.GUEST, "x:y", config, "hv1", 1),
    ]
    told: list[tuple[str, list[Any]]] = []
    return Toolstack(nodes, lambda name, record: told.append((name, record))), told


def test_a_restarted_guest_gets_a_fresh_domain_and_its_peers_learn_of_it() -> None:
    """The neighbours' table holds the new id from the moment it is given; another hypervisor's guests have none."""
    stack, told = toolstack()
    stack.exited("a", 1)
    stack.renew("a", 0)
    assert told == [("hv0", ["exited", "a", 1]), ("hv0", ["create", "a", 3, 1 << 20, 2])]
    assert (stack.peers("b"), stack.peers("a"), stack.peers("c")) == ({"a": 3}, {"b": 2}, {})
    assert stack.answered("hv0", "domain-created", "a", 3, 0)


def test_orders_are_repeated_until_they_are_answered() -> None:
    """A broker may die with what it was told."""
    stack, told = toolstack()
    stack.exited("a", 1)
    stack.renew("a", 0)
    del told[:]
    stack.repeat("hv0")
    assert [record[:3] for _, record in told] == [["exited", "a", 1], ["create", "a", 3]]
    assert not stack.answered("hv0", "domain-freed", "a", 1, 0)
    assert stack.answered("hv0", "domain-created", "a", 3, 0)
    assert not stack.answered("hv0", "domain-created", "a", 3, 0)
    del told[:]
    stack.repeat("hv0")
    stack.repeat("hv1")
    assert told == []


def test_a_proxy_that_is_not_the_planned_one() -> None:
    """Guests beside it, and those inside whose Argo is served there, learn its id; nobody on another hypervisor."""
    domain = SimpleNamespace(nested=True, domid=9, wards=(SimpleNamespace(name="d"),))
    nodes = [
        NodeSpec("hv0", NodeKind.HYPERVISOR, "x:y", SimpleNamespace(domains=(domain,))),
        NodeSpec("a", NodeKind.GUEST, "x:y", None, "hv0", 1),
        NodeSpec("c", NodeKind.GUEST, "x:y", None, "hv1", 1),
        NodeSpec("d", NodeKind.GUEST, "x:y", None, "hv2", 1),
    ]
    stack = Toolstack(nodes, lambda _name, _record: None)
    assert stack.met("hv0", "c", 0x6000) == ["d", "a"]
    assert stack.met("hv0", "c", 0x6003) == ["d", "a"]
    assert (stack.peers("a"), stack.peers("d"), stack.peers("c")) == ({"c": 0x6003}, {"c": 0x6003}, {})
    assert stack.met("hv0", "a", 0x6001) == stack.met("hv0", "nobody", 0x6004) == [], "it lives there, or nowhere"
    assert stack.met("hv0", "d", 0x6005) == ["a"], "its Argo is served there, but it has another hypervisor"
    assert (stack.peers("a"), stack.peers("d")) == ({"c": 0x6003, "d": 0x6005}, {"c": 0x6003})
    assert (stack.acting_as("a"), stack.acting_as("hv2"), stack.acting_as("x")) == (["a"], ["d"], ["x"])


def test_no_id_of_a_proxy_is_given_twice() -> None:
    """Of one hypervisor, whose next life knows those elsewhere as planned until it is told otherwise."""
    stack, _ = toolstack()
    assert stack.fresh_from("hv0") == 0x6000
    stack.met("hv0", "c", 0x6005)
    stack.hypervisor_died("hv0", 0)
    assert stack.peers("a") == {"b": 2}
    assert (stack.fresh_from("hv0"), stack.fresh_from("hv1")) == (0x6006, 0x6000)
    assert (stack.meet("hv0", "c"), stack.meet("hv0", "c")) == (0x6006, 0x6007)
    assert stack.peers("a") == {"b": 2, "c": 0x6007}
    stack.met("hv0", "c", 0x7FEF)
    assert stack.meet("hv0", "c") is None


def test_a_late_answer_for_a_former_domain_starts_nobody() -> None:
    """Only the domain that the guest is to have now counts."""
    stack, _ = toolstack()
    stack.renew("a", 0)
    stack.renew("a", 0)
    assert not stack.answered("hv0", "domain-created", "a", 3, 0)
    assert stack.answered("hv0", "domain-created", "a", 4, 0)


def test_a_dead_hypervisor_takes_its_domains_and_orders_along() -> None:
    """What it was told is void; the ids rest; the late end of a process in one of them is nobody's order."""
    stack, told = toolstack()
    stack.renew("a", 0)
    stack.hypervisor_died("hv0", 0)
    assert [stack.give("a", 0), stack.give("b", 0)] == [4, 5]
    del told[:]
    stack.repeat("hv0")
    for domid in (1, 3):
        stack.exited("a", domid)
    assert told == []
    stack.exited("a", 4)
    assert told == [("hv0", ["exited", "a", 4])]
    assert stack.peers("a") == {"b": 5}
