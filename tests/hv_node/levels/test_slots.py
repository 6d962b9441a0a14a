"""Implicit destinations: what a send without a domain means, and what a slot lets pass.

Sources: VirtIO-Argo notes of the Xen community on implicit destinations; the issue's rules.
"""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY, U32_MAX
from hmx.errno import Errno
from hv_node.levels import slot_table
from hv_node.levels.narrowing import ALL_PORTS, BURST_NS, SECOND, Bucket, Narrowing, common, holds, normal, without
from hv_node.levels.slot_table import (
    MAX_SLOTS,
    UP,
    SlotError,
    SlotId,
)
from hv_node.levels.slots import REFUSALS, Hit
from tests.hv_node.levels.lab import Host
from tests.hv_node.levels.slot_cases import (
    APP,
    ECHO,
    FAR,
    OTHER,
    STORAGE,
    STORE,
    TYPE,
    here,
    send,
)


def test_without_an_entry_the_answer_is_upstreams() -> None:
    """Domain 0x7FF4 does not resolve: -ESRCH, with and without a table."""
    host, app, store, _ = here()
    assert send(host, app, STORAGE) == -Errno.ESRCH
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    assert send(host, app, STORAGE + 1) == -Errno.ESRCH
    assert send(host, store, STORAGE) == -Errno.ESRCH
    assert host.slots.resolve_query(app, DOMID_ANY, ECHO) == -Errno.ESRCH
    assert host.slots.resolve_query(store, DOMID_ANY, 0) == -Errno.ESRCH


def test_explicit_destinations_are_as_written() -> None:
    """Slots change nothing for a guest that names a domain and is not confined."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    assert send(host, app, STORAGE, 2) is None
    assert send(host, app, STORAGE, 77) is None
    assert host.slots.resolve_query(app, 2, STORAGE) is None


def test_by_service() -> None:
    """A well-known port leads to the endpoint, wherever it is, as written or at a port of its own."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.delegation.grant(1, 1, None, ECHO, FAR, 7007)
    assert send(host, app, STORAGE) == Hit(2, STORAGE, SlotId(APP, 0), False)
    assert send(host, app, ECHO) == Hit(0x4000, 7007, SlotId(APP, 1), False)
    assert host.slots.resolve_query(app, DOMID_ANY, ECHO) == Hit(0x4000, 7007, SlotId(APP, 1), False)


def test_by_source_port() -> None:
    """The patch panel: what comes out of a source port goes where that port is plugged in."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, 9, None, STORE, 5001)
    host.delegation.grant(1, 1, 10, None, STORE)
    assert send(host, app, 0, source_port=9) == Hit(2, 5001, SlotId(APP, 0), False)
    assert send(host, app, 77, source_port=9) == Hit(2, 5001, SlotId(APP, 0), False)
    assert send(host, app, 77, source_port=10) == Hit(2, 77, SlotId(APP, 1), False)
    assert send(host, app, 77, source_port=11) == -Errno.ESRCH
    # notify knows no source port: the entry names it instead.
    assert host.slots.resolve_query(app, DOMID_ANY, 9) == Hit(2, 5001, SlotId(APP, 0), False)


def test_what_says_more_comes_first() -> None:
    """Both ports, then the source port, then the service."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    host.delegation.grant(1, 1, 9, None, OTHER)
    host.delegation.grant(1, 2, 9, STORAGE, FAR)
    asked = ((STORAGE, 9), (ECHO, 9), (STORAGE, 8))
    assert [send(host, app, port, source_port=source).slot.number for port, source in asked] == [2, 1, 0]
    # For notify: the service, then the source port, then whichever slot has either.
    assert host.slots.resolve_query(app, DOMID_ANY, STORAGE).slot.number == 0  # type: ignore[union-attr]
    assert host.slots.resolve_query(app, DOMID_ANY, 9).slot.number == 1  # type: ignore[union-attr]
    assert send(host, app, STORAGE, source_port=9).slot.number == 2
    host.delegation.revoke(1, 2)
    assert send(host, app, STORAGE, source_port=9).slot.number == 1
    host.delegation.grant(1, 2, 9, STORAGE, FAR)
    host.delegation.revoke(1, 0)
    host.delegation.revoke(1, 1)
    assert host.slots.resolve_query(app, DOMID_ANY, STORAGE) == Hit(0x4000, STORAGE, SlotId(APP, 2), False)
    assert host.slots.resolve_query(app, DOMID_ANY, 9) == Hit(0x4000, STORAGE, SlotId(APP, 2), False)


def test_up() -> None:
    """To the next hypervisor outwards; at the outermost there is none."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, UP)
    assert send(host, app, STORAGE) == -Errno.ESRCH
    inner = Host(("hv0", "hv1"))
    guest = inner.guest(1, "app")
    inner.delegation.grant(1, 0, None, STORAGE, UP)
    assert send(inner, guest, STORAGE) == Hit(DOMID_ANY, STORAGE, SlotId(("hv0", "hv1", "app"), 0), True)


def test_an_endpoint_that_is_gone() -> None:
    """A path that does not resolve (any more): -ESRCH."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, ("hv3", "nobody"))
    assert send(host, app, STORAGE) == -Errno.ESRCH
    host.proxy(0x4001, ("hv3", "nobody"))
    assert send(host, app, STORAGE).domid == 0x4001


def test_refusals() -> None:
    """The errnos, row by row."""
    assert [(row.rule, row.errno) for row in REFUSALS] == [
        ("no entry", Errno.ESRCH),
        ("confined", Errno.ESRCH),
        ("port", Errno.ESRCH),
        ("endpoint gone", Errno.ESRCH),
        ("message type", Errno.EACCES),
        ("rate", Errno.EBUSY),
    ]


@pytest.mark.parametrize(
    ("domid", "number", "source_port", "port", "to_port", "what"),
    [
        (1, 0, None, ECHO, None, "in use"),
        (1, 1, None, STORAGE, None, "would serve what hv1/app#0x0 serves"),
        (1, 1, None, None, None, "neither a source port nor a service"),
        (1, 1, None, -1, None, "-1 is no port"),
        (1, 1, U32_MAX + 1, None, None, "is no port"),
        (1, 1, None, ECHO, U32_MAX + 1, "is no port"),
        (1, -1, None, ECHO, None, "is no number"),
        (1, slot_table.LAST_NUMBER + 1, None, ECHO, None, "is no number"),
        (9, 1, None, ECHO, None, "no guest of this hypervisor"),
        (0x4000, 1, None, ECHO, None, "no guest of this hypervisor"),
    ],
)
def test_what_cannot_be_granted(
    domid: int, number: int, source_port: int | None, port: int | None, to_port: int | None, what: str
) -> None:
    """The toolstack is told, and nothing has changed."""
    host, _app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE)
    with pytest.raises(SlotError, match=what):
        host.delegation.grant(domid, number, source_port, port, STORE, to_port)
    assert [row.slot for row in host.slots.inspect()] == ["hv1/app#0x0"]


def test_a_table_is_bounded() -> None:
    """MAX_SLOTS in a table."""
    host, _, _, _ = here()
    for number in range(MAX_SLOTS):
        host.delegation.grant(1, number, None, number, STORE)
    with pytest.raises(SlotError, match=f"has {MAX_SLOTS} slots"):
        host.delegation.grant(1, MAX_SLOTS, None, MAX_SLOTS, STORE)


def test_only_its_holder_can_use_a_slot() -> None:
    """A capability: the same number, port and type in another guest's hand are nothing."""
    host, app, store, other = here()
    host.delegation.grant(1, 0, 9, STORAGE, STORE)
    assert isinstance(send(host, app, STORAGE), Hit)
    assert [send(host, guest, STORAGE) for guest in (store, other)] == [-Errno.ESRCH] * 2
    with pytest.raises(SlotError, match="domain 2 holds no slot"):
        host.delegation.revoke(2, 0)
    with pytest.raises(SlotError, match="domain 1 holds no slot 0x1"):
        host.delegation.narrow(1, 1, Narrowing())


def test_ranges() -> None:
    """Ports as sets: what both have, what is left, in normal form."""
    assert normal(((5, 9), (1, 2), (3, 4), (20, 30), (8, 12))) == ((1, 12), (20, 30))
    assert common(((1, 12), (20, 30)), ((10, 22), (30, 40))) == ((10, 12), (20, 22), (30, 30))
    assert without(((1, 12), (20, 30)), ((5, 6), (11, 22))) == ((1, 4), (7, 10), (23, 30))
    assert without(ALL_PORTS, ((0, 0), (U32_MAX, U32_MAX))) == ((1, U32_MAX - 1),)
    assert [holds(((1, 2), (5, 5)), port) for port in range(7)] == [False, True, True, False, False, True, False]
    assert ALL_PORTS == ((0, U32_MAX),)


def test_narrowings_meet() -> None:
    """Ports and types in common, the smaller rate."""
    one = Narrowing(((1, 10),), (1, 2), 5.0)
    assert one.within(Narrowing()) == Narrowing().within(one) == one
    assert one.within(Narrowing(((5, 20),), (2, 3), 9.0)) == Narrowing(((5, 10),), (2,), 5.0)
    assert not one.empty and one.within(Narrowing(((11, 12),))).empty and one.within(Narrowing(types=(3,))).empty


def test_ports_of_a_slot() -> None:
    """What a slot does not cover is not there."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, 9, None, STORE, narrowing=Narrowing(((20, 22), (10, 12))))
    verdicts = [isinstance(send(host, app, port), Hit) for port in (9, 10, 12, 13, 19, 20, 22, 23)]
    assert verdicts == [False, True, True, False, False, True, True, False]
    assert send(host, app, 13) == -Errno.ESRCH
    # It is the port at the endpoint that counts.
    host.delegation.grant(1, 1, None, 10, STORE, 13, Narrowing(((10, 12),)))
    assert send(host, app, 10, source_port=8) == -Errno.ESRCH


def test_types_of_a_slot() -> None:
    """Other message types are denied as by policy."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE, narrowing=Narrowing(types=(TYPE,)))
    assert isinstance(send(host, app, STORAGE), Hit)
    assert send(host, app, STORAGE, kind=TYPE + 1) == -Errno.EACCES
    assert isinstance(host.slots.resolve_query(app, DOMID_ANY, STORAGE), Hit)


def test_bucket() -> None:
    """A tenth of a second's messages at once, one at least; then one whenever its time has come."""
    bucket = Bucket(100.0, 0)
    assert (BURST_NS, SECOND) == (100_000_000, 1_000_000_000)

    def burst(now_ns: int) -> int:
        passed = 0
        while bucket.ready(now_ns):
            bucket.take()
            passed += 1
        return passed

    assert [burst(0), burst(9_999_999), burst(10_000_000), burst(10 * SECOND)] == [10, 0, 1, 10]
    bucket.set_rate(1.0)
    assert [burst(10 * SECOND), burst(11 * SECOND - 1), burst(11 * SECOND)] == [0, 0, 1]
    bucket.set_rate(0)
    assert burst(100 * SECOND) == 0
    assert not Bucket(0, 0).ready(SECOND)


def test_rate_of_a_slot() -> None:
    """-EBUSY: no wake-up will come; time, which the owner brings, helps.  A query costs nothing."""
    host, app, _, _ = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE, narrowing=Narrowing(rate=10))
    assert isinstance(send(host, app, STORAGE), Hit)
    assert send(host, app, STORAGE) == -Errno.EBUSY
    assert isinstance(host.slots.resolve_query(app, DOMID_ANY, STORAGE), Hit)
    host.slots.now_ns = 99_999_999
    assert send(host, app, STORAGE) == -Errno.EBUSY
    host.slots.now_ns = 100_000_000
    assert isinstance(send(host, app, STORAGE), Hit)
    # A refusal for another reason costs nothing either.
    host.slots.now_ns = 200_000_000
    host.delegation.narrow(1, 0, Narrowing(types=(TYPE,)))
    assert send(host, app, STORAGE, kind=0) == -Errno.EACCES
    assert isinstance(send(host, app, STORAGE), Hit)


def test_narrowing_live() -> None:
    """The toolstack lets less pass, never more."""
    host, _app, _, _ = here()
    host.delegation.grant(1, 0, 9, None, STORE, narrowing=Narrowing(((1, 9),)))
    assert host.delegation.narrow(1, 0, Narrowing(((5, 20),), (TYPE,), 3.0)).done
    row = host.slots.inspect()[0]
    assert (row.ports, row.types, row.rate) == (((5, 9),), (TYPE,), 3.0)
    host.delegation.narrow(1, 0, Narrowing())
    assert host.slots.inspect()[0] == row
