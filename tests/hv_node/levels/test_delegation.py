"""Capabilities on one hypervisor: passing a slot on, in bounds, and taking it back (the issue)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hmx.errno import Errno
from hmx.slots import (
    DelegateCall,
)
from hv_node.levels.delegation import DELEGATE_REFUSALS, MAX_DELEGATED
from hv_node.levels.narrowing import Narrowing
from hv_node.levels.slot_messages import (
    MAX_CHAIN,
)
from hv_node.levels.slot_table import (
    FIRST_DELEGATED,
    MAX_SLOTS,
    UP,
    SlotError,
    SlotId,
)
from hv_node.levels.slots import Hit
from hv_node.xsm import SiloXsm
from tests.hv_node.levels.lab import Host
from tests.hv_node.levels.slot_cases import (
    APP,
    ECHO,
    FAR,
    OTHER,
    STORAGE,
    STORE,
    Nobody,
    call,
    here,
    passing,
    send,
)


def test_delegate() -> None:
    """The peer reaches what the slot leads to, under the same name; the chain shows."""
    host, app, _, other = passing()
    assert send(host, other, STORAGE) == -Errno.ESRCH
    assert host.delegation.delegate(app, call()).ret == 0
    assert send(host, other, STORAGE) == Hit(2, STORAGE, SlotId(OTHER, FIRST_DELEGATED), False)
    rows = {row.slot: row for row in host.slots.inspect()}
    assert rows["hv1/other#0x10000"].chain == ("hv1/app#0x0",)
    assert rows["hv1/app#0x0"].passed_to == ("hv1/other",)
    assert not rows["hv1/other#0x10000"].delegable


def test_delegate_under_another_name_does_not_widen() -> None:
    """A slot for one service leads to that service's port, whatever its new holder calls it."""
    host, app, _, other = passing()
    assert host.delegation.delegate(app, call(port=6000)).ret == 0
    assert send(host, other, 6000).port == STORAGE
    assert send(host, other, STORAGE) == -Errno.ESRCH
    host.delegation.grant(1, 2, 9, None, STORE, 5001, delegable=True)
    assert host.delegation.delegate(app, call(2, port=6001)).ret == 0
    assert send(host, other, 6001).port == 5001


def test_delegate_narrows() -> None:
    """Ports, types and rate; never more than the slot lets pass."""
    host, app, _, _other = here()
    host.delegation.grant(1, 0, 9, None, STORE, narrowing=Narrowing(((10, 20),), (1, 2), 100.0), delegable=True)
    host.delegation.grant(1, 1, None, ECHO, OTHER)
    ticket = host.delegation.delegate(app, call(ranges=((15, 30), (5, 11)), types=(2, 3), rate=200))
    assert ticket.ret == 0
    row = host.slots.inspect()[-1]
    assert (row.source_port, row.ports, row.types, row.rate) == (9, ((10, 11), (15, 20)), (2,), 100.0)


def test_children_draw_on_their_parents_bucket() -> None:
    """Passing a slot on multiplies no rate."""
    host, app, _, other = passing()
    host.delegation.narrow(1, 0, Narrowing(rate=50))
    assert host.delegation.delegate(app, call(rate=40)).ret == 0
    passed = sum(isinstance(send(host, guest, STORAGE), Hit) for guest in (app, other) * 10)
    assert passed == 5  # the tenth of a second that the parent's bucket holds
    host.slots.now_ns = 100_000_000
    assert sum(isinstance(send(host, other, STORAGE), Hit) for _ in range(10)) == 4  # its own


def _no_way(host: Host) -> None:
    host.delegation.revoke(1, 1)


def _way_narrowed_to_nothing(host: Host) -> None:
    host.delegation.narrow(1, 1, Narrowing(ports=()))


def _regrant(number: int, *more: Any, **named: Any) -> Callable[[Host], None]:
    def regrant(host: Host) -> None:
        host.delegation.revoke(1, number)
        host.delegation.grant(1, number, *more, **named)

    return regrant


def _to_far(host: Host) -> None:
    _regrant(1, None, ECHO, FAR)(host)


def _up_to_far(host: Host) -> None:
    _to_far(host)
    _regrant(0, None, STORAGE, UP, delegable=True)(host)


def _limited_to_far(host: Host) -> None:
    _to_far(host)
    host.delegation.narrow(1, 0, Narrowing(rate=100))


def _long_chain(host: Host) -> None:
    slot = host.slots.by_id[SlotId(APP, 0)]
    slot.chain = (SlotId(FAR, 0),) * (MAX_CHAIN - 1)


def _delegated_often(host: Host) -> None:
    host.slots.holders[1].delegated = MAX_DELEGATED


def _full_table(host: Host) -> None:
    for number in range(MAX_SLOTS):
        host.delegation.grant(3, number, None, number, STORE)


def _same_key(host: Host) -> None:
    host.delegation.grant(3, 0, None, STORAGE, FAR)


def _nobody(host: Host) -> None:
    host.delegation.judge = Nobody()


PREPARE: dict[str, tuple[Callable[[Host], Any], DelegateCall]] = {
    "slot not held": (lambda host: None, call(7)),
    "way not held": (_no_way, call()),
    "slot may not be passed on": (_regrant(0, None, STORAGE, STORE), call()),
    "peer unknown": (_regrant(1, None, ECHO, UP), call()),
    "peer is oneself": (_regrant(1, None, ECHO, APP), call()),
    "upwards elsewhere": (_up_to_far, call()),
    "chain too long": (_long_chain, call()),
    "passed on too often": (_delegated_often, call()),
    "nothing left": (lambda host: None, call(ranges=((1, 2),))),
    "rate not stated": (_limited_to_far, call()),
    "rate spent": (_limited_to_far, call(rate=100)),
    "policy": (_nobody, call()),
    "peer's table full": (_full_table, call()),
    "peer has such a slot": (_same_key, call()),
}
EXPECTED = {
    "slot not held": Errno.EBADF, "way not held": Errno.EBADF, "slot may not be passed on": Errno.EPERM,
    "peer unknown": Errno.ESRCH, "peer is oneself": Errno.EINVAL, "upwards elsewhere": Errno.EOPNOTSUPP,
    "chain too long": Errno.ENOSPC, "passed on too often": Errno.ENOSPC, "nothing left": Errno.EINVAL,
    "rate not stated": Errno.EINVAL, "rate spent": Errno.ENOSPC, "policy": Errno.EACCES,
    "peer's table full": Errno.ENOSPC, "peer has such a slot": Errno.EEXIST,
}  # fmt: skip


@pytest.mark.parametrize("rule", [row.rule for row in DELEGATE_REFUSALS])
def test_delegate_refused(rule: str) -> None:
    """Each row of the table, and nothing has changed."""
    host, app, _, _ = passing()
    prepare, asked = PREPARE[rule]
    prepare(host)
    before = host.slots.inspect()
    ticket = host.delegation.delegate(app, asked)
    assert ticket.done and ticket.ret == -EXPECTED[rule]
    assert host.slots.inspect() == before
    assert {row.rule: row.errno for row in DELEGATE_REFUSALS}[rule] == EXPECTED[rule]


def test_delegate_needs_a_way_that_leads_somewhere() -> None:
    """A way that lets nothing pass leads to nobody; a guest without a table holds nothing."""
    host, app, _, other = passing()
    assert host.delegation.delegate(other, call()).ret == -Errno.EBADF
    _way_narrowed_to_nothing(host)
    assert host.delegation.delegate(app, call()).ret == -Errno.ESRCH


def test_silo_has_a_say() -> None:
    """SILO keeps guests apart here too."""
    host, app, _, _ = passing()
    host.delegation.judge = SiloXsm()
    assert host.delegation.delegate(app, call()).ret == -Errno.EPERM


def test_limits() -> None:
    """10^5 attempts of one guest: bounded slots, bounded chains, all of it gone with one revoke."""
    host, app, _, _other = passing()
    host.delegation.grant(3, 1, None, ECHO, APP)
    results = [host.delegation.delegate(app, call(port=port + 1, delegable=True)).ret for port in range(100_000)]
    assert (MAX_SLOTS, MAX_DELEGATED, MAX_CHAIN) == (256, 256, 16)
    assert results.count(0) == MAX_SLOTS - 1  # beside the one that other holds
    assert set(results) == {0, -Errno.ENOSPC, -Errno.EEXIST}
    assert host.slots.holders[1].delegated == MAX_SLOTS - 1
    host.delegation.revoke(1, 0)
    assert host.slots.holders[1].delegated == 0
    assert len(list(host.slots)) == 2


def test_a_chain_goes_to_and_fro_only_so_often() -> None:
    """Two guests that pass one slot to each other: every pass is a new slot, MAX_CHAIN at most."""
    host, app, _, other = passing()
    host.delegation.grant(3, 1, None, ECHO, APP)
    number, holder, made = 0, app, 0
    for port in range(2 * MAX_CHAIN):
        ret = host.delegation.delegate(holder, call(number, port=100 + port, delegable=True)).ret
        if ret:
            break
        made += 1
        newest = max(slot.id for slot in host.slots if slot.chain and len(slot.chain) == made)
        number, holder = newest.number, other if newest.holder == OTHER else app
    assert (made, ret) == (MAX_CHAIN - 1, -Errno.ENOSPC)
    ticket = host.delegation.revoke(1, 0)
    assert len(ticket.removed) == MAX_CHAIN and ticket.removed[-1] == SlotId(APP, 0)
    assert [len(list(host.slots)), host.slots.holders[1].delegated, host.slots.holders[3].delegated] == [2, 0, 0]


def test_the_toolstack_comes_before_guests() -> None:
    """A slot that others passed makes way for the toolstack's; numbers of slots passed on are never used again."""
    host, app, _, other = passing()
    host.delegation.delegate(app, call())
    ticket = host.delegation.grant(3, 0, None, STORAGE, FAR)
    assert ticket.removed == [SlotId(OTHER, FIRST_DELEGATED)]
    assert send(host, other, STORAGE) == Hit(0x4000, STORAGE, SlotId(OTHER, 0), False)
    host.delegation.revoke(3, 0)
    host.delegation.delegate(app, call())
    assert send(host, other, STORAGE).slot.number == FIRST_DELEGATED + 1
    # In a full table too.
    for number in range(MAX_SLOTS - len(host.slots.holders[3].slots)):
        host.delegation.grant(3, number, None, 0x100 + number, STORE)
    host.delegation.grant(3, MAX_SLOTS, None, STORAGE, STORE)
    host.delegation.revoke(3, MAX_SLOTS)
    host.delegation.delegate(app, call())
    # What cannot be granted leaves the other where it is.
    with pytest.raises(SlotError):
        host.delegation.grant(3, 0, None, STORAGE, FAR, -1)
    assert send(host, other, STORAGE).domid == 2


def test_narrowing_reaches_children() -> None:
    """What the toolstack takes from a slot, it takes from all that were made from it."""
    host, app, _, other = passing()
    host.delegation.delegate(app, call())
    host.delegation.narrow(1, 0, Narrowing(types=(1,)))
    assert send(host, other, STORAGE, kind=2) == -Errno.EACCES
    assert isinstance(send(host, other, STORAGE, kind=1), Hit)
