"""Slots in front of the real core: what a confined guest gets from sendv, notify and register_ring."""

from __future__ import annotations

from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY, NotifyFlag
from hmx.errno import Errno
from hv_node.domain import Domain
from hv_node.levels.policy import FirewallXsm
from hv_node.levels.rules import FRONT_END_OF, Rule, Table
from hv_node.levels.slot_table import UP, SlotId, op_of
from hv_node.levels.slots import Hit
from hv_node.xsm import DummyXsm
from tests.hv_node.levels.walled import STORAGE, Walled

SUFFICIENT = NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT | NotifyFlag.EMPTY | NotifyFlag.SHARED


def test_a_slot_leads_through_the_whole_of_sendv() -> None:
    """The message arrives, from the sender's own id and port; errors behind the lookup are the core's."""
    walled = Walled()
    world = walled.world
    assert world.send(1, (STORAGE, DOMID_ANY), b"hello", src_port=9) == 5
    message = world.consumer(2, 112, 8).receive()
    assert message is not None
    assert (message.source_domid, message.source_port, bytes(message.payload)) == (1, 9, b"hello")
    assert world.woken() == [2]
    assert world.send(1, (STORAGE, DOMID_ANY), bytes(100)) == -Errno.EMSGSIZE
    assert world.unregister(2, STORAGE, DOMID_ANY) == 0
    assert world.send(1, (STORAGE, DOMID_ANY), b"hello") == -Errno.ECONNREFUSED
    assert world.send(1, (STORAGE + 1, DOMID_ANY), b"hello") == -Errno.ESRCH
    assert world.argo.through == 3


def test_a_confined_guest_and_the_core() -> None:
    """No id, no ring, no neighbour: -ESRCH, no flag, no partner; what it is led to opens nothing else."""
    walled = Walled()
    world = walled.world
    for domid in (0, 1, 2, 3, 9, 0x4000, 0x7FF0, 0xFFFF):
        for port in (STORAGE, 77, 5):
            assert world.send(1, (port, domid), b"x") == -Errno.ESRCH
            assert world.notify(1, (port, domid, 8)) == (0, [(0, 0xAAAA)])
        assert world.register(1, 5, domid, 112) == -Errno.ESRCH
    queries = [(STORAGE, DOMID_ANY, 8), (STORAGE, 2, 8), (STORAGE, DOMID_ANY, 8), (77, 2, 8), (77, DOMID_ANY, 8)]
    flags = [flags for flags, _ in world.notify(1, *queries)[1]]
    assert flags == [SUFFICIENT, 0, SUFFICIENT, 0, 0]
    assert world.send(1, (STORAGE, DOMID_ANY), b"x") == 1
    assert world.send(1, (STORAGE, 2), b"x") == -Errno.ESRCH


def test_others_are_not_touched() -> None:
    """An unconfined guest names whom it likes, and 0x7FF4 is nobody without a slot."""
    walled = Walled()
    assert walled.world.send(3, (STORAGE, 2), b"x") == 1
    assert walled.world.send(3, (STORAGE, DOMID_ANY), b"x") == -Errno.ESRCH
    assert walled.world.send(3, (STORAGE, 9), b"x") == -Errno.ESRCH
    assert walled.world.notify(3, (STORAGE, 2, 8), (STORAGE, 9, 8))[0] == 0
    assert walled.world.register(3, 5, 2, 112) == 0


def test_answering() -> None:
    """2 is confined too: it may answer 1 where 1 sent from, register a ring for it, and nothing else."""
    walled = Walled()
    world = walled.world
    walled.slots.confine(2)
    assert world.register(1, 9, DOMID_ANY, 112, gfns=[9]) == 0
    assert world.send(2, (9, 1), b"x") == -Errno.ESRCH
    assert world.register(2, 5, 1, 112, gfns=[10]) == -Errno.ESRCH
    assert world.send(1, (STORAGE, DOMID_ANY), b"x", src_port=9) == 1
    assert world.send(2, (9, 1), b"x") == 1
    assert world.notify(2, (9, 1, 8))[1][0][0] & NotifyFlag.EXISTS
    assert world.register(2, 5, 1, 112, gfns=[10]) == 0
    assert [world.send(2, (10, 1), b"x"), world.send(2, (9, 3), b"x")] == [-Errno.ESRCH] * 2
    walled.delegation.revoke(1, 0)
    assert world.send(2, (9, 1), b"x") == -Errno.ESRCH


def test_a_send_that_was_refused_may_not_be_answered() -> None:
    """The right comes with the message."""
    walled = Walled()
    world = walled.world
    walled.slots.confine(2)
    assert world.register(1, 9, DOMID_ANY, 112, gfns=[9]) == 0
    assert world.send(1, (STORAGE, DOMID_ANY), bytes(100), src_port=9) == -Errno.EMSGSIZE
    assert world.send(2, (9, 1), b"x") == -Errno.ESRCH


def test_policy_behind_the_gate() -> None:
    """What a slot leads to is judged as if it had been named; what is hidden is not even asked about."""
    rules = (Rule("l1", "l2", ((77, 77),)), Rule("l3", "*"))
    policy = FirewallXsm(DummyXsm(), Table(FRONT_END_OF["firewall"], rules), label_of="l{}".format)
    walled = Walled(policy)
    assert walled.world.send(1, (STORAGE, DOMID_ANY), b"x") == -Errno.EACCES
    assert policy.denials == {("d1", "d2"): 1}
    assert walled.world.send(1, (STORAGE, 2), b"x") == -Errno.ESRCH
    assert walled.world.notify(1, (STORAGE, DOMID_ANY, 8))[0] == -Errno.EACCES
    assert policy.denials == {("d1", "d2"): 2}
    assert walled.gate.name == "firewall+dummy" and not walled.gate.permissive
    one, two, three = (walled.world.domain(domid) for domid in (1, 2, 3))
    assert walled.gate.send(one, two) == walled.gate.query(one, two) == -Errno.ESRCH
    assert walled.gate.send(three, two) == walled.gate.query(three, two) == 0


def test_upwards() -> None:
    """A slot that leads up hands the send to whoever was told to carry it; at the outermost there is nobody."""
    walled = Walled(path=("hv0", "hv1"))
    walled.delegation.grant(1, 1, None, 7, UP)
    assert walled.world.send(1, (7, DOMID_ANY), b"x") == -Errno.ESRCH
    assert walled.world.notify(1, (7, DOMID_ANY, 8)) == (0, [(0, 0xAAAA)])
    sent: list[Any] = []

    def upwards(
        caller: Domain, hit: Hit, source_port: int, message_type: int, iovs: tuple[int, ...], ctx: int, token: object
    ) -> int:
        sent.append((caller.domid, hit, source_port, message_type))
        return 1

    walled.gate.upwards = upwards
    assert walled.world.send(1, (7, DOMID_ANY), b"x", src_port=9, message_type=5) == 1
    assert sent == [(1, Hit(DOMID_ANY, 7, SlotId(("hv0", "hv1", "g1"), 1), True), 9, 5)]


def test_a_far_send_says_which_slot_it_went_through() -> None:
    """The envelope's op, for the time of that send only; whoever carries it has the final port."""
    walled = Walled()
    core, seen = walled.world.argo, list[tuple[int, int]]()

    class Far:
        path = ("hv2", "far")

        def send(self, caller: Domain, dst: Domain, src_port: int, dst_port: int, *_: object) -> int:
            seen.append((core.through, dst_port))
            return -Errno.EAGAIN

    proxy = walled.world.create(0x4000)
    proxy.remote = Far()  # type: ignore[assignment]  # it is sent to, and not asked
    walled.slots.directory.add(proxy, Far.path, "far_t")  # type: ignore[attr-defined]
    walled.delegation.grant(1, 6, None, 7, Far.path, 7007)
    assert walled.world.send(1, (7, DOMID_ANY), b"x") == -Errno.EAGAIN
    assert walled.world.send(3, (7, 0x4000), b"x") == -Errno.EAGAIN
    assert seen == [(op_of(SlotId(("hv1", "g1"), 6)), 7007), (3, 7)]


def test_oneself_is_no_secret() -> None:
    """To the module a confined guest that asks about itself is as any other."""
    walled = Walled()
    one = walled.world.domain(1)
    assert walled.gate.query(one, one) == 0


@pytest.mark.parametrize(("op", "answered"), [(3, False), (op_of(SlotId(("hv1", "g3"), 5)), True)])
def test_what_came_from_elsewhere(op: int, answered: bool) -> None:
    """A message of another hypervisor's guest gives a right if its envelope says which slot it came through."""
    walled = Walled()
    walled.gate.delivered(op, 1, 3, 33)
    walled.gate.delivered(op, 1, 99, 33)  # from nobody
    assert walled.world.register(3, 33, DOMID_ANY, 112, gfns=[11]) == 0
    assert (walled.world.send(1, (33, 3), b"x") == 1) == answered
