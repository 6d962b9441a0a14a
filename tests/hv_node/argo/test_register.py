"""register_ring and unregister_ring beyond refusals: what they leave behind (Xen common/argo.c)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY, DOMID_SELF, RegisterFlag
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, PageType
from hv_node.argo.model import DomainArgo
from hv_node.argo.options import ArgoOptions
from tests.hv_node.argo.world import World

PORT = 0x10
LEN = PAGE_SIZE - 64


def state(world: World, domid: int) -> DomainArgo:
    argo = world.domain(domid).argo
    assert argo is not None
    return argo


@pytest.mark.parametrize(
    ("rx", "tx", "adopted"),
    [
        (0, 0, 0),
        (0, 32, 32),  # phantom messages: a valid tx is believed
        (5, LEN, 16),  # an invalid one gives way to rx rounded up
        (5, 8, 16),
        (LEN - 15, 7, 0),  # ... or to 0 when that leaves the ring
        (0xFFFFFFFF, 0xFFFFFFFF, 0),
    ],
)
def test_tx_at_registration(rx: int, tx: int, adopted: int) -> None:
    """A valid tx_ptr is adopted, an invalid one replaced in guest memory too; rx_ptr is never touched."""
    world = World()
    world.set_rx(1, rx)
    world.set_tx(1, tx)
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.ring(1, PORT, 2).tx == adopted
    assert world.pointers(1) == (rx, adopted)
    assert world.woken() == []


def test_reregistration_keeps_what_is_unread() -> None:
    """As after a resume: messages before it are still there, and sending goes on behind them."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.send(2, (PORT, 1), b"one") == 3
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.send(2, (PORT, 1), b"two") == 3
    consumer = world.consumer(1, LEN)
    assert [message.payload for message in consumer.drain()] == [b"one", b"two"]


def test_reregistration_raises_the_counter_until_enospc() -> None:
    """One ring registered 128 times ends in -ENOSPC, for new rings too; unregistering gives one back."""
    world = World()
    for _ in range(128):
        assert world.register(1, PORT, 2, LEN) == 0
    assert len(state(world, 1).rings) == 1
    assert world.register(1, PORT, 2, LEN) == -Errno.ENOSPC
    assert world.register(1, PORT, 2, LEN, flags=RegisterFlag.FAIL_EXIST) == -Errno.ENOSPC
    assert world.register(1, PORT + 1, 2, LEN) == -Errno.ENOSPC
    assert world.unregister(1, PORT, 2) == 0
    assert state(world, 1).ring_count == 127
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.register(1, PORT, 2, LEN) == -Errno.ENOSPC


def test_soft_reset_clears_the_drift() -> None:
    """After a soft reset the counter starts at 0 and the domain still has Argo."""
    world = World()
    for _ in range(128):
        assert world.register(1, PORT, 2, LEN) == 0
    world.argo.soft_reset(world.domain(1))
    assert state(world, 1).ring_count == 0
    assert world.unregister(1, PORT, 2) == -Errno.ENOENT
    for _ in range(128):
        assert world.register(1, PORT, 2, LEN) == 0
    assert world.register(1, PORT, 2, LEN) == -Errno.ENOSPC


def test_128_rings() -> None:
    """The limit counts every ring of the domain, wildcard or not."""
    world = World()
    for port in range(128):
        assert world.register(1, port, DOMID_ANY if port & 1 else 2, LEN) == 0
    assert world.register(1, 128, 2, LEN) == -Errno.ENOSPC
    assert world.unregister(1, 3, DOMID_ANY) == 0
    assert world.register(1, 128, 2, LEN) == 0


def test_a_bad_page_destroys_the_working_ring() -> None:
    """Re-registration drops the old pages first: ring and waiters are gone, counter and send record are not."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.send(2, (PORT, 1), b"x" * (LEN - 32)) == LEN - 32
    assert world.send(2, (PORT, 1), b"y") == -Errno.EAGAIN
    world.memory(1).set_page(25, PageType.PAGED)
    assert world.register(1, PORT, 2, LEN, gfns=[25]) == -Errno.EAGAIN
    assert world.send(2, (PORT, 1), b"z") == -Errno.ECONNREFUSED
    assert state(world, 1).rings == {}
    assert state(world, 1).waiters == 0
    assert state(world, 1).ring_count == 1
    assert state(world, 2).send_records == {(1, PORT): 1}
    assert world.unregister(1, PORT, 2) == -Errno.ENOENT


def test_a_failed_first_registration_leaves_nothing() -> None:
    """No ring, no count, no send record."""
    world = World()
    world.memory(1).set_page(24, PageType.MMIO_DIRECT)
    assert world.register(1, PORT, 2, LEN) == -Errno.EPERM
    assert state(world, 1).rings == {}
    assert state(world, 1).ring_count == 0
    assert state(world, 2).send_records == {}


def test_waiters_survive_a_successful_reregistration() -> None:
    """The pending queue stays, and is judged against the new pages at the next notify only."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, LEN) == 0
    assert world.send(2, (PORT, 1), b"x" * (LEN - 32)) == LEN - 32
    assert world.send(3, (PORT, 1), b"yy") == -Errno.EAGAIN
    world.woken()
    assert world.register(1, PORT, DOMID_ANY, LEN, gfns=[30]) == 0
    assert world.woken() == []
    assert world.ring(1, PORT, DOMID_ANY).pending == {3: 2}
    assert world.notify(1)[0] == 0
    assert world.woken() == [3]


def test_send_records_are_duplicated() -> None:
    """Each registration adds one at the partner, each unregistration removes one."""
    world = World()
    for _ in range(3):
        assert world.register(1, PORT, 2, LEN) == 0
    assert state(world, 2).send_records == {(1, PORT): 3}
    assert world.unregister(1, PORT, 2) == 0
    assert state(world, 2).send_records == {(1, PORT): 2}


def test_one_port_many_partners() -> None:
    """A port may be registered once per partner and once for all; a resize is refused with or without the flag."""
    world = World()
    for index, partner in enumerate((DOMID_ANY, 0, 1, 2, 3)):
        assert world.register(1, PORT, partner, LEN, gfns=[24 + index]) == 0
    for flags in (0, RegisterFlag.FAIL_EXIST):
        assert world.register(1, PORT, 2, LEN - 16, flags=flags) == -Errno.EEXIST


def test_unregister_is_exact_and_leaves_memory_alone() -> None:
    """No wildcard fallback either way; pointers and unread messages stay readable by the owner."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, LEN) == 0
    assert world.send(2, (PORT, 1), b"unread") == 6
    assert world.unregister(1, PORT, 2) == -Errno.ENOENT
    assert world.unregister(1, PORT, DOMID_ANY) == 0
    assert world.pointers(1) == (0, 32)
    assert world.consumer(1, LEN).receive() is not None
    assert world.register(1, PORT, 2, LEN) == 0
    assert world.unregister(1, PORT, DOMID_ANY) == -Errno.ENOENT


def test_unregister_does_not_need_mac_permissive_and_signals_nobody() -> None:
    """Waiters are dropped silently."""
    world = World()
    assert world.register(1, PORT, DOMID_ANY, 48) == 0
    assert world.send(2, (PORT, 1), b"x" * 16) == 16
    assert world.send(2, (PORT, 1), b"x" * 16) == -Errno.EAGAIN
    world.argo.mac_permissive = False
    world.woken()
    assert world.unregister(1, PORT, DOMID_ANY) == 0
    assert world.woken() == []
    assert state(world, 2).waiting_on == {}


@pytest.mark.parametrize("domid", [DOMID_SELF, 0x7FF5, 0xFFFF, 9])
def test_reserved_ids_are_unknown_partners(domid: int) -> None:
    """DOMID_SELF and its like are not resolved."""
    assert World().register(1, PORT, domid, LEN) == -Errno.ESRCH


def test_wildcard_is_refused_to_the_control_domain_too() -> None:
    """mac-permissive is a boot-time decision about everybody."""
    world = World(options=ArgoOptions(True, False))
    assert world.register(0, PORT, DOMID_ANY, LEN) == -Errno.EPERM
    assert world.register(0, PORT, 0, LEN) == 0


def test_registration_outlives_a_change_of_page_type() -> None:
    """The hypervisor holds the pages of a ring: later types do not matter."""
    world = World()
    assert world.register(1, PORT, 2, LEN) == 0
    world.memory(1).set_page(24, PageType.INVALID)
    assert world.send(2, (PORT, 1), b"still") == 5
    assert world.consumer(1, LEN).receive() is not None
