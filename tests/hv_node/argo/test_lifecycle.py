"""Creation, death, reuse of ids and soft reset (Xen common/argo.c, common/domain.c)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hv_node.argo.options import ArgoOptions
from hv_node.domain import DomainState
from tests.hv_node.argo.policies import DenyingXsm
from tests.hv_node.argo.world import World

PORT = 0x10
LEN = 112


def test_argo_off() -> None:
    """No domain has state, and every op is refused."""
    world = World(options=ArgoOptions(False, True))
    assert world.domain(1).argo is None
    assert world.notify(1)[0] == -Errno.EOPNOTSUPP


def test_a_domain_that_may_not_use_argo() -> None:
    """It is created all the same; its calls are refused, and sends to it are."""
    xsm = DenyingXsm("enable")
    world = World(domids=(1,), xsm=xsm)
    assert world.domain(1).argo is None
    xsm.denied.clear()
    world.create(2)
    assert world.notify(1)[0] == -Errno.ENODEV
    assert world.send(2, (PORT, 1), b"m") == -Errno.ECONNREFUSED
    assert world.register(2, PORT, 1, LEN) == -Errno.ECONNREFUSED
    assert world.register(1, PORT, 2, LEN) == -Errno.ENODEV
    assert world.unregister(1, PORT, 2) == -Errno.ENODEV
    assert world.send(1, (PORT, 2), b"m") == -Errno.ENODEV


def test_dying_then_gone() -> None:
    """A dying domain still resolves: -ECONNREFUSED; a freed one does not: -ESRCH.  Its own calls find no device."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    world.kill(2)
    assert world.domain(2).state is DomainState.DYING
    assert world.send(1, (PORT, 2), b"m") == -Errno.ECONNREFUSED
    assert world.register(1, PORT, 2, LEN) == -Errno.ECONNREFUSED
    assert world.notify(2)[0] == -Errno.ENODEV
    world.kill(2)
    world.free(2)
    assert world.send(1, (PORT, 2), b"m") == -Errno.ESRCH
    assert world.register(1, PORT, 2, LEN) == -Errno.ESRCH


@pytest.mark.parametrize("end", ["kill", "soft_reset"])
def test_death_of_the_only_sender_deletes_the_ring(end: str) -> None:
    """The owner is not told, loses one from its counter, and finds nothing to unregister; its memory is untouched."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.register(1, PORT, DOMID_ANY, LEN, gfns=[30]) == 0
    assert world.send(2, (PORT, 1), b"m") == 1
    world.woken()
    before = bytes(world.ram[1])
    getattr(world, end)(2) if end == "kill" else world.argo.soft_reset(world.domain(2))
    assert world.woken() == []
    assert world.ram[1] == before
    argo = world.domain(1).argo
    assert argo is not None
    assert list(argo.rings) == [(PORT, DOMID_ANY)]
    assert argo.ring_count == 1
    assert world.unregister(1, PORT, 2) == -Errno.ENOENT


def test_duplicate_send_records_are_harmless() -> None:
    """The second record finds no ring: logged, nothing else; the drift of the owner's counter stays."""
    world = World()
    for _ in range(3):
        assert world.register(1, PORT, 2, LEN) == 0
    world.kill(2)
    argo = world.domain(1).argo
    assert argo is not None
    assert (argo.rings, argo.ring_count) == ({}, 2)


def test_stale_send_records_are_tolerated() -> None:
    """A record whose ring is gone, or whose owner is gone, does no harm when the partner dies."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.register(1, PORT, 2, LEN, gfns=[4000]) == -Errno.EINVAL  # destroys the ring, leaves the record
    assert world.register(3, PORT, 2, LEN) == 0
    world.free(3)
    world.sink.log.clear()
    world.kill(2)
    assert world.sink.log == [("event", "argo-stale-send-record", 2, 1, PORT, 1)]


def test_a_stale_record_meets_a_reused_id() -> None:
    """A new domain with the old owner's id registers the same ring: the partner's death deletes it once."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    world.free(1)
    world.create(1)
    assert world.register(1, PORT, 2, LEN) == 0
    world.kill(2)
    argo = world.domain(1).argo
    assert argo is not None
    assert (argo.rings, argo.ring_count) == ({}, 0)


@pytest.mark.parametrize("end", ["free", "soft_reset"])
def test_a_dead_waiter_leaves_no_stray_wake_up(end: str) -> None:
    """Waits on wildcard rings are purged, so that a reused id gets no signal and no slot leaks."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, 48) == 0
    assert world.send(2, (PORT, 1), b"x" * 16) == 16
    for domid in (2, 3):
        assert world.send(domid, (PORT, 1), b"x" * 16) == -Errno.EAGAIN
    world.woken()
    if end == "free":
        world.free(2)
        world.create(2)
    else:
        world.argo.soft_reset(world.domain(2))
    assert world.ring(1, PORT, DOMID_ANY).pending == {3: 16}
    world.set_rx(1, 32)
    assert world.notify(1)[0] == 0
    assert world.woken() == [3]


def test_death_of_an_owner_forgets_its_waiters() -> None:
    """Waiters are dropped silently, on their side too."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, 48) == 0
    assert world.send(2, (PORT, 1), b"x" * 16) == 16
    assert world.send(2, (PORT, 1), b"x" * 16) == -Errno.EAGAIN
    world.woken()
    world.kill(1)
    assert world.woken() == []
    argo = world.domain(2).argo
    assert argo is not None
    assert argo.waiting_on == {}


def test_messages_outlive_their_sender() -> None:
    """A wildcard ring keeps what a dead domain delivered; the id in it may denote somebody else later."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, LEN) == 0
    assert world.send(2, (PORT, 1), b"last words") == 10
    world.free(2)
    message = world.consumer(1, LEN).receive()
    assert message is not None
    assert (message.source_domid, message.payload) == (2, b"last words")


def test_soft_reset_keeps_argo_enabled() -> None:
    """No rings, a fresh counter, and calls go on; a dying domain is not brought back."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.register(1, PORT, 1, LEN, gfns=[30]) == 0
    world.argo.soft_reset(world.domain(1))
    assert world.send(2, (PORT, 1), b"m") == -Errno.ECONNREFUSED
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.send(2, (PORT, 1), b"m") == 1
    world.kill(1)
    world.argo.soft_reset(world.domain(1))
    assert world.domain(1).argo is None


def test_a_domain_that_names_itself() -> None:
    """Its ring is its own and its partner's: teardown meets it once."""
    world = World()
    assert world.register(1, PORT, 1, LEN) == 0
    assert world.send(1, (PORT, 1), b"x" * 80) == 80
    assert world.send(1, (PORT, 1), b"x") == -Errno.EAGAIN
    world.argo.soft_reset(world.domain(1))
    argo = world.domain(1).argo
    assert argo is not None
    assert (argo.rings, argo.ring_count, argo.waiters, argo.send_records) == ({}, 0, 0, {})
