"""Confined guests: nothing but their slots, and answers to what came through somebody's slot (the issue)."""

from __future__ import annotations

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.slots import (
    DelegateCall,
    DelegateFlag,
)
from hv_node.argo.model import DomainArgo, Ring, wait_for_space
from hv_node.levels.narrowing import Narrowing
from hv_node.levels.slot_table import (
    FIRST_DELEGATED,
    MAX_FAR_SLOTS,
    MAX_RIGHTS,
    SlotId,
)
from hv_node.levels.slots import Hit
from tests.hv_node.levels.slot_cases import (
    APP,
    ECHO,
    FAR,
    OTHER,
    P2,
    STORAGE,
    STORE,
    here,
    send,
)


def test_confined() -> None:
    """Every domain id has one answer: neighbours, proxies, reserved ones, nobody, and the guest itself."""
    host, app, _store, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.slots.confine(1)
    assert host.slots.confined(1) and not host.slots.confined(2) and not host.slots.confined(77)
    domids = (0, 1, 2, 3, 9, 0x4000, 0x7FEF, 0x7FF0, 0x7FF2, 0x7FF5, 0xFFFF)
    assert {send(host, app, STORAGE, domid) for domid in domids} == {-Errno.ESRCH}
    assert {host.slots.resolve_query(app, domid, STORAGE) for domid in domids} == {-Errno.ESRCH}
    assert not any(host.slots.may_name(1, domid) for domid in domids)
    assert host.slots.may_name(2, 1)
    assert isinstance(send(host, app, STORAGE), Hit)
    host.slots.confine(1, False)
    assert send(host, app, STORAGE, 2) is None


def test_a_reply_right() -> None:
    """Who sent through a slot may be answered at the port that sent, and nobody else, and nowhere else."""
    host, app, store, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.slots.confine(2)
    assert send(host, store, 9, 1) == -Errno.ESRCH
    hit = send(host, app, STORAGE)
    host.slots.delivered(hit.slot, hit.domid, 1, 9)
    assert send(host, store, 9, 1) is None
    assert host.slots.resolve_query(store, 1, 9) is None
    assert host.slots.may_name(2, 1)
    assert [send(host, store, port, domid) for port, domid in ((8, 1), (9, 3), (9, 2))] == [-Errno.ESRCH] * 3
    assert host.slots.inspect()[0].reply_rights == 1


def test_a_reply_right_dies_with_its_slot() -> None:
    """Revoked: the answer has nowhere to go.  Another slot that gives the same right keeps it."""
    host, _app, store, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.delegation.grant(1, 1, None, ECHO, STORE)
    host.slots.confine(2)
    for number in (0, 1):
        host.slots.delivered(SlotId(APP, number), 2, 1, 9)
    host.delegation.revoke(1, 0)
    assert send(host, store, 9, 1) is None
    host.delegation.revoke(1, 1)
    assert send(host, store, 9, 1) == -Errno.ESRCH
    assert not host.slots.may_name(2, 1)


def test_an_unconfined_guest_needs_no_right() -> None:
    """Nothing is kept for it."""
    host, _, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.slots.confine(2, False)
    host.slots.delivered(SlotId(APP, 0), 2, 1, 9)
    host.slots.delivered(SlotId(FAR, 0), 2, 0x4000, 9)
    assert host.slots.inspect()[0].reply_rights == 0
    assert not host.slots.far_rights


def test_rights_are_bounded() -> None:
    """10^4 source ports of one slot cost it its own oldest rights only; so do 10^4 slots of one far hypervisor."""
    host, _app, store, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.slots.confine(2)
    host.slots.delivered(SlotId(("hv3", "x"), 5), 2, 3, 33)
    for port in range(10_000):
        host.slots.delivered(SlotId(APP, 0), 2, 1, port)
    assert host.slots.inspect()[0].reply_rights == MAX_RIGHTS
    assert send(host, store, 9_999, 1) is None and send(host, store, 9_999 - MAX_RIGHTS, 1) == -Errno.ESRCH
    for number in range(10_000):
        host.slots.delivered(SlotId(FAR, number), 2, 0x4000, number)
    assert len(host.slots.far_rights[P2]) == MAX_FAR_SLOTS
    assert send(host, store, 33, 3) is None
    assert len(host.slots.holders[2].rights) == MAX_RIGHTS + MAX_FAR_SLOTS + 1


def test_death() -> None:
    """A guest's slots and rights go with it; so do the rights to answer it."""
    host, app, store, other = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE, delegable=True)
    host.delegation.grant(1, 1, None, ECHO, OTHER)
    assert host.delegation.delegate(app, DelegateCall(0, 1, DelegateFlag(0), 0, 0, (), ())).ret == 0
    host.slots.confine(2)
    host.slots.delivered(SlotId(APP, 0), 2, 1, 9)
    host.slots.delivered(SlotId(FAR, 0), 2, 1, 10)
    ticket = host.delegation.domain_died(1)
    assert ticket.done and ticket.removed == [SlotId(OTHER, FIRST_DELEGATED), SlotId(APP, 0), SlotId(APP, 1)]
    assert not list(host.slots) and not host.slots.holders[2].rights
    assert send(host, other, STORAGE) == -Errno.ESRCH
    assert host.delegation.domain_died(1).removed == []
    host.slots.delivered(SlotId(FAR, 0), 2, 3, 10)
    host.delegation.domain_died(3)
    assert send(host, store, 10, 3) == -Errno.ESRCH
    host.slots.delivered(SlotId(FAR, 0), 2, 0x4000, 10)
    host.delegation.domain_died(2)
    assert not any(host.slots.far_rights[P2].values())


def test_stale_waits() -> None:
    """Once a slot is gone, a confined guest does not hear of room in the ring that it led to."""
    host, app, store, other = here()
    for guest in (app, store, other):
        guest.argo = DomainArgo()
    rings = [Ring(store, port, DOMID_ANY, 112, port) for port in (STORAGE, 7007)]
    assert store.argo is not None
    for ring in rings:
        store.argo.insert(ring)
        for guest in (app, other):
            assert wait_for_space(ring, guest, 8, None) is True
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.delegation.grant(1, 1, None, ECHO, STORE, 7007)
    elsewhere = Ring(other, STORAGE, DOMID_ANY, 112, 9)
    assert other.argo is not None
    other.argo.insert(elsewhere)
    assert wait_for_space(elsewhere, app, 8, None) is True
    assert host.slots.stale_waits([*rings, elsewhere]) == []
    host.slots.confine(1)
    assert host.slots.stale_waits([*rings, elsewhere]) == [(elsewhere, 1)]
    host.delegation.narrow(1, 1, Narrowing(((1, 2),)))
    assert host.slots.stale_waits(rings) == [(rings[1], 1)]
    host.delegation.revoke(1, 0)
    assert host.slots.stale_waits(rings) == [(rings[0], 1), (rings[1], 1)]
    host.slots.delivered(SlotId(FAR, 3), 1, 2, STORAGE)
    assert host.slots.stale_waits(rings) == [(rings[1], 1)]
    host.delegation.grant(1, 2, 9, None, STORE)
    assert host.slots.stale_waits(rings) == []
