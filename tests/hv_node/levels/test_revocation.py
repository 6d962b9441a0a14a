"""Capabilities across hypervisors: granted, narrowed and revoked everywhere before anybody is told so (the issue)."""

from __future__ import annotations

from typing import Any

import pytest

from hmx.errno import Errno
from hv_node.levels.narrowing import SECOND, Narrowing
from hv_node.levels.slot_messages import (
    MAX_CHAIN,
    Forget,
    ForgetSource,
    Grant,
    Message,
    Narrow,
    Revoke,
)
from hv_node.levels.slot_table import (
    FIRST_DELEGATED,
    UP,
    SlotId,
    op_of,
    slot_of,
)
from hv_node.levels.slots import Hit
from tests.hv_node.levels.lab import Host, Lab
from tests.hv_node.levels.slot_cases import (
    APP,
    ECHO,
    FAR,
    P1,
    P2,
    STORAGE,
    STORE,
    Nobody,
    call,
    send,
    shares,
    two,
)


def test_delegate_to_another_hypervisor() -> None:
    """Pending until the far side agreed; then the peer uses the slot where it lives."""
    lab, one, other, app, far = two()
    ticket = lab.start(one, one.delegation.delegate(app, call(delegable=True)))
    assert ticket.waiting
    assert send(other, far, STORAGE) == -Errno.ESRCH
    lab.settle()
    assert ticket.done and ticket.ret == 0 and lab.finished == [ticket]
    assert send(other, far, STORAGE) == Hit(0x4002, STORAGE, SlotId(FAR, FIRST_DELEGATED), False)
    assert other.slots.inspect()[-1].chain == ("hv1/app#0x0",)
    assert one.slots.inspect()[0].passed_to == ("hv2/far",)


def test_the_far_side_may_refuse() -> None:
    """Its policy, its table: the caller gets the answer, and nothing is left of the attempt."""
    for prepare, errno in (
        (lambda other: setattr(other.delegation, "judge", Nobody()), Errno.EACCES),
        (lambda other: other.delegation.grant(1, 0, None, STORAGE, APP), Errno.EEXIST),
        (lambda other: other.directory.by_domid.pop(0x4001), Errno.ESRCH),
    ):
        lab, one, other, app, _ = two()
        prepare(other)
        one.delegation.narrow(1, 0, Narrowing(rate=100))
        before = one.slots.inspect()
        ticket = lab.start(one, one.delegation.delegate(app, call(rate=60)))
        assert shares(one.slots.by_id[SlotId(APP, 0)]) == (60, SECOND // 40, 1)
        lab.settle()
        assert ticket.ret == -errno
        assert one.slots.inspect() == before and one.slots.holders[1].delegated == 0
        assert shares(one.slots.by_id[SlotId(APP, 0)]) == (0, SECOND // 100, 0)


def chain_of_three() -> tuple[Lab, Host, Host, Host]:
    """storage: app@hv1 -> far@hv2 -> deep@hv3."""
    lab, one, other, app, far = two()
    lab.start(one, one.delegation.delegate(app, call(delegable=True)))
    lab.settle()
    lab.start(other, other.delegation.delegate(far, call(FIRST_DELEGATED)))
    lab.settle()
    third = lab.hosts["hv3",]
    deep = third.directory.domain(1)
    assert deep is not None and isinstance(send(third, deep, STORAGE), Hit)
    assert third.slots.inspect()[0].chain == ("hv1/app#0x0", "hv2/far#0x10000")
    lab.finished.clear()
    return lab, one, other, third


def test_revocation_holds_everywhere_before_it_returns() -> None:
    """The ticket is done when the last hypervisor in the chain has answered, and not before."""
    lab, one, other, third = chain_of_three()
    ticket = lab.start(one, one.delegation.revoke(1, 0))
    app, far, deep = one.directory.domain(1), other.directory.domain(1), third.directory.domain(1)
    assert app is not None and far is not None and deep is not None
    assert send(one, app, STORAGE) == -Errno.ESRCH  # here at once
    steps = 0
    while not ticket.done:
        assert isinstance(send(third, deep, STORAGE), Hit) or steps > 0
        assert lab.deliver()
        steps += 1
    assert ticket.ret == 0
    assert [send(host, guest, STORAGE) for host, guest in ((other, far), (third, deep))] == [-Errno.ESRCH] * 2
    assert steps >= 3
    lab.settle()


def test_far_children_go_before_their_parents_answer() -> None:
    """hv2 does not answer hv1 while hv3 has not answered hv2."""
    lab, one, _other, _third = chain_of_three()
    ticket = lab.start(one, one.delegation.revoke(1, 0))
    lab.deliver()  # hv2 has revoked and told hv3, and hv1 (where the endpoint is)
    assert ticket.waiting
    assert {tell.to for _, tell in lab.flight} == {("hv3",), P1}
    lab.deliver()
    assert ticket.waiting
    lab.settle()
    assert ticket.done


def test_narrowing_goes_as_far_as_the_slot_went() -> None:
    """As revocation: done when all have answered."""
    lab, one, _other, third = chain_of_three()
    ticket = lab.start(one, one.delegation.narrow(1, 0, Narrowing(types=(5,))))
    deep = third.directory.domain(1)
    assert deep is not None
    lab.settle()
    assert ticket.done
    assert send(third, deep, STORAGE) == -Errno.EACCES


def test_a_dead_hypervisor_is_not_waited_for() -> None:
    """It holds nothing any more; what came from it is gone too."""
    _lab, one, _other, third = chain_of_three()
    ticket = one.delegation.revoke(1, 0)
    finished, orphans = one.delegation.lost(P2)
    assert ticket.done and finished == [ticket] and orphans.removed == []
    finished, orphans = third.delegation.lost(P2)
    assert finished == [] and orphans.removed == [SlotId(("hv3", "deep"), FIRST_DELEGATED)]
    assert one.delegation.answered(1, 0) is None


def test_lost_gives_back_what_was_lent() -> None:
    """Children on a dead hypervisor are forgotten, their share of the rate comes back."""
    lab, one, _other, app, _far = two()
    one.delegation.narrow(1, 0, Narrowing(rate=100))
    lab.start(one, one.delegation.delegate(app, call(rate=60)))
    lab.settle()
    slot = one.slots.by_id[SlotId(APP, 0)]
    assert shares(slot) == (60, SECOND // 40, 1)
    assert one.delegation.delegate(app, call(rate=40, port=8)).ret == -Errno.ENOSPC
    one.delegation.lost(P2)
    assert shares(slot) == (0, SECOND // 100, 0)
    assert one.slots.holders[1].delegated == 0


def test_a_rate_is_not_multiplied_across_hypervisors() -> None:
    """Shares that do not fit a new rate, or that were unlimited, are revoked."""
    lab, one, other, app, far = two()
    lab.start(one, one.delegation.delegate(app, call()))
    lab.settle()
    ticket = lab.start(one, one.delegation.narrow(1, 0, Narrowing(rate=100)))
    lab.settle()
    assert ticket.done and send(other, far, STORAGE) == -Errno.ESRCH
    lab.start(one, one.delegation.delegate(app, call(rate=60)))
    lab.settle()
    assert isinstance(send(other, far, STORAGE), Hit)
    lab.start(one, one.delegation.narrow(1, 0, Narrowing(rate=80)))
    lab.settle()
    other.slots.now_ns = SECOND
    assert isinstance(send(other, far, STORAGE), Hit)
    lab.start(one, one.delegation.narrow(1, 0, Narrowing(rate=60)))
    lab.settle()
    assert send(other, far, STORAGE) == -Errno.ESRCH
    slot = one.slots.by_id[SlotId(APP, 0)]
    assert (slot.lent, slot.children, one.slots.holders[1].delegated) == (0, {}, 0)


def test_reply_rights_end_with_a_revocation_far_away() -> None:
    """The hypervisor of the endpoint forgets what came through the slot before the revocation is done."""
    lab, one, other, _app, far = two()
    other.slots.confine(1)
    slot_id = slot_of(op_of(SlotId(APP, 1)), APP)
    assert slot_id == SlotId(APP, 1)
    other.slots.delivered(slot_id, 1, 0x4001, 9)
    assert send(other, far, 9, 0x4001) is None
    ticket = lab.start(one, one.delegation.revoke(1, 1))
    assert ticket.waiting and send(other, far, 9, 0x4001) is None
    lab.settle()
    assert ticket.done and send(other, far, 9, 0x4001) == -Errno.ESRCH


def test_reply_rights_end_with_a_slot_that_led_upwards() -> None:
    """Who was reached is known further out only: the message climbs, and goes down where the child's table leads."""
    outer, inner, far_host = Host(("hv0",)), Host(("hv0", "hv1")), Host(P2)
    inner.guest(1, "app")
    outer.guest(1, "hv1")
    store = outer.guest(2, "store")
    outer.proxy(0x4001, ("hv0", "hv1", "app"))
    far = far_host.guest(1, "far")
    far_host.proxy(0x4001, ("hv0", "hv1", "app"))
    inner.delegation.grant(1, 0, None, STORAGE, UP)
    outer.delegation.grant(1, 0, None, STORAGE, ("hv0", "store"))
    outer.delegation.grant(1, 1, None, ECHO, FAR)
    outer.delegation.grant(1, 2, None, 12, UP)
    for host, domid in ((outer, 2), (far_host, 1)):
        host.slots.confine(domid)
    outer.slots.delivered(SlotId(("hv0", "hv1"), 0), 2, 0x4001, 9)
    far_host.slots.delivered(SlotId(("hv0", "hv1"), 1), 1, 0x4001, 9)
    lab = Lab(outer, inner, far_host)
    ticket = lab.start(inner, inner.delegation.revoke(1, 0))
    assert send(outer, store, 9, 0x4001) is None and send(far_host, far, 9, 0x4001) is None
    lab.settle()
    assert ticket.done
    assert send(outer, store, 9, 0x4001) == send(far_host, far, 9, 0x4001) == -Errno.ESRCH


@pytest.mark.parametrize(
    "message",
    [
        Revoke(SlotId(APP, 0), 1),
        Narrow(SlotId(APP, 0), 1, Narrowing(ports=())),
        Forget(SlotId(APP, 0)),
        ForgetSource(APP),
        Grant(SlotId(APP, 0), 99, FAR, None, 1, STORE, None, Narrowing(), True, (SlotId(APP, 0),)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nobody_speaks_for_others(message: Message) -> None:
    """hv3 cannot revoke, narrow, forget or grant in hv1's name."""
    lab, one, other, app, far = two()
    lab.start(one, one.delegation.delegate(app, call()))
    lab.settle()
    other.slots.confine(1)
    other.slots.delivered(SlotId(APP, 0), 1, 0x4001, 9)
    ticket = other.delegation.told(message, ("hv3",))
    assert ticket.ret == -Errno.EPERM
    assert isinstance(send(other, far, STORAGE), Hit) and send(other, far, 9, 0x4001) is None
    assert other.delegation.told(message, P1).ret == 0


@pytest.mark.parametrize(
    ("change", "errno"),
    [
        ({"holder": APP}, Errno.ESRCH),
        ({"holder": (*P2, "nobody")}, Errno.ESRCH),
        ({"to": UP}, Errno.ESRCH),
        ({"parent": SlotId((*P1, "nobody"), 0)}, Errno.ESRCH),
        ({"chain": ()}, Errno.ENOSPC),
        ({"chain": (SlotId(STORE, 0),)}, Errno.ENOSPC),
        ({"chain": (SlotId(APP, 0),) * MAX_CHAIN}, Errno.ENOSPC),
        ({"narrowing": Narrowing(ports=())}, Errno.EINVAL),
        ({"port": None}, Errno.EINVAL),
        ({"port": ECHO}, Errno.EEXIST),
    ],
    ids=str,
)
def test_a_grant_is_judged_where_it_arrives(change: dict[str, Any], errno: Errno) -> None:
    """Another hypervisor is believed what is its own, and nothing else."""
    _, _, other, _, far = two()
    grant = Grant(SlotId(APP, 0), 5, FAR, None, STORAGE, STORE, None, Narrowing(), False, (SlotId(APP, 0),))
    assert other.delegation.told(grant._replace(**change), P1).ret == -errno
    assert len(list(other.slots)) == 1
    assert other.delegation.told(grant, P1).ret == 0
    # A repeat that was not recognised as one does no harm.
    assert other.delegation.told(grant._replace(port=88), P1).ret == -Errno.EEXIST
    assert other.delegation.told(Revoke(SlotId(APP, 0), 5), P1).tells[0].message == Forget(SlotId(FAR, FIRST_DELEGATED))
    assert other.delegation.told(Revoke(SlotId(APP, 0), 5), P1).done
    assert send(other, far, STORAGE) == -Errno.ESRCH


def test_answers_that_nobody_waits_for() -> None:
    """Unknown or repeated keys change nothing."""
    _lab, one, _, app, _ = two()
    ticket = one.delegation.delegate(app, call())
    key = ticket.tells[0].key
    assert one.delegation.answered(key + 1, -5) is None and not ticket.done
    assert one.delegation.answered(key, 0) is ticket
    assert one.delegation.answered(key, -5) is None and ticket.ret == 0
    assert one.slots.inspect()[0].passed_to == ("hv2/far",)


def test_a_ticket_is_handed_back_with_its_last_answer() -> None:
    """Two hypervisors were told; the first answer completes nothing, whoever it comes from."""
    _, one, _, app, _ = two()
    one.proxy(0x4005, ("hv3", "deep"))
    one.delegation.delegate(app, call())
    one.delegation.revoke(1, 1)
    one.delegation.grant(1, 1, None, ECHO, ("hv3", "deep"))
    one.delegation.delegate(app, call(port=8))
    ticket = one.delegation.revoke(1, 0)
    first, second = ticket.tells
    assert {first.to, second.to} == {P2, ("hv3",)}
    assert one.delegation.answered(second.key, 0) is None and ticket.waiting
    assert one.delegation.answered(first.key, 0) is ticket


def test_a_grant_overtaken_by_a_revocation() -> None:
    """Revoked before the far side answered: it is told behind the grant, and its answer changes nothing here."""
    lab, one, other, app, far = two()
    granted = lab.start(one, one.delegation.delegate(app, call()))
    revoked = lab.start(one, one.delegation.revoke(1, 0))
    lab.settle()
    assert granted.done and revoked.done and one.slots.holders[1].delegated == 0
    assert send(other, far, STORAGE) == -Errno.ESRCH
    lab, one, other, app, far = two()
    other.delegation.judge = Nobody()
    granted = lab.start(one, one.delegation.delegate(app, call()))
    revoked = lab.start(one, one.delegation.revoke(1, 0))
    lab.settle()
    assert (granted.ret, revoked.ret, one.slots.holders[1].delegated) == (-Errno.EACCES, 0, 0)
