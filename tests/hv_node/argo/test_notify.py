"""notify: job A wakes, job B answers, arms and disarms (Xen common/argo.c)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY, RING_DATA, RING_DATA_ENT, Op
from hmx.argo.ring import bucket
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, PageType
from hv_node.argo.model import Ring
from hv_node.xsm import SiloXsm
from tests.hv_node.argo.policies import DenyingXsm
from tests.hv_node.argo.world import ARGS, NPAGES, World

PORT = 0x10
END = NPAGES * PAGE_SIZE
EXISTS, SHARED, EMPTY, SUFFICIENT, EMSGSIZE, EBUSY = 1, 2, 4, 8, 16, 32


def full_ring(partner: int = 1, ring_len: int = 112) -> World:
    """A ring of domain 2 whose payload space is 0."""
    world = World()
    assert world.register(2, PORT, partner, ring_len) == 0
    assert world.send(1, (PORT, 2), b"x" * (ring_len - 32)) == ring_len - 32
    world.woken()
    return world


@pytest.mark.parametrize(
    ("ring_len", "filled", "wanted", "flags"),
    [
        (112, 0, 0, EXISTS | EMPTY | SUFFICIENT),
        (112, 0, 80, EXISTS | EMPTY | SUFFICIENT),
        (112, 0, 81, EXISTS | EMPTY | EMSGSIZE),
        (112, 16, 48, EXISTS | SUFFICIENT),
        (112, 16, 49, EXISTS),
        (112, 16, 80, EXISTS),
        (112, 16, 81, EXISTS | EMSGSIZE),
        (112, 80, 0, EXISTS | SUFFICIENT),
        (112, 80, 1, EXISTS),
    ],
)
@pytest.mark.parametrize("partner", [1, DOMID_ANY])
def test_flags(ring_len: int, filled: int, wanted: int, flags: int, partner: int) -> None:
    """What is said of a ring of 112 bytes by fill and question; the wildcard ring adds SHARED."""
    world = World()
    assert world.register(2, PORT, partner, ring_len) == 0
    if filled:
        assert world.send(1, (PORT, 2), b"x" * filled) == filled
    shared = SHARED if partner == DOMID_ANY else 0
    assert world.notify(1, (PORT, 2, wanted)) == (0, [(flags | shared, 80)])
    armed = not flags & (SUFFICIENT | EMSGSIZE)
    assert world.ring(2, PORT, partner).pending == ({1: wanted} if armed else {})


def test_rings_that_are_not_there() -> None:
    """No domain, no Argo, no ring: flags 0 and the guest's own max_message_size, and the op goes on."""
    world = World()
    world.kill(3)
    entries = [(PORT, 9, 1), (PORT, 3, 1), (PORT, 2, 1), (PORT, DOMID_ANY, 1)]
    assert world.notify(1, *entries) == (0, [(0, 0xAAAA)] * 4)


def test_only_the_two_fields_are_written() -> None:
    """The rest of an entry keeps the guest's bytes, pads included."""
    world = World()
    assert world.register(2, PORT, 1, 112) == 0
    ram = world.ram[1]
    RING_DATA.pack_into(ram, ARGS, 1, 0xDEAD)
    RING_DATA_ENT.pack_into(ram, ARGS + 8, PORT, 2, 0xBEEF, 0x1111, 0xF00D, 5, 0x2222)
    assert world.op(1, Op.NOTIFY, ARGS) == 0
    assert RING_DATA.unpack_from(ram, ARGS) == (1, 0xDEAD)
    assert RING_DATA_ENT.unpack_from(ram, ARGS + 8) == (PORT, 2, 0xBEEF, 0x0D, 0xF00D, 5, 80)


def test_256_entries_and_257() -> None:
    """The 257th is one too many, after job A has run."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"y") == -Errno.EAGAIN
    assert world.notify(2, *[(1, 9, 0)] * 256)[0] == 0
    world.set_rx(2, 96)
    assert world.notify(2, *[(1, 9, 0)] * 257)[0] == -Errno.EACCES
    assert world.woken() == [1]


@pytest.mark.parametrize(("a1", "result"), [(0, 0), (END, -Errno.EFAULT), (END - 8, 0)])
def test_job_a_runs_before_arguments_are_read(a1: int, result: int) -> None:
    """A NULL or bad pointer does not keep waiters asleep."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"y") == -Errno.EAGAIN
    world.set_rx(2, 96)
    assert world.op(2, Op.NOTIFY, a1) == result
    assert world.woken() == [1]


def test_job_a_does_not_run_for_a_refused_call() -> None:
    """Superfluous arguments are refused by the dispatcher."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"y") == -Errno.EAGAIN
    world.set_rx(2, 96)
    assert world.op(2, Op.NOTIFY, 0, 1) == -Errno.EINVAL
    assert world.woken() == []
    assert world.ring(2, PORT, 1).pending == {1: 1}


def test_only_what_fits_is_woken_and_only_once() -> None:
    """Each waiter by its own size; without reservation all that fit are woken; a wake-up is one-shot."""
    world = full_ring(DOMID_ANY)
    for domid, size in ((1, 80), (0, 16), (3, 48)):
        assert world.send(domid, (PORT, 2), b"x" * size) == -Errno.EAGAIN
    assert world.notify(2)[0] == 0
    assert world.woken() == []
    world.set_rx(2, 48)  # 48 bytes behind the reader: payload space 16
    assert world.notify(2)[0] == 0
    assert world.woken() == [0]
    world.set_rx(2, 96)
    assert world.notify(2)[0] == 0
    assert world.woken() == [1, 3]
    assert world.notify(2)[0] == 0
    assert world.woken() == []


def test_the_largest_size_counts() -> None:
    """A waiter who asked for much and then for little is woken when much is free."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"x" * 80) == -Errno.EAGAIN
    assert world.send(1, (PORT, 2), b"x") == -Errno.EAGAIN
    assert world.notify(1, (PORT, 2, 5)) == (0, [(EXISTS, 80)])
    assert world.ring(2, PORT, 1).pending == {1: 80}
    world.set_rx(2, 48)
    assert world.notify(2)[0] == 0
    assert world.woken() == []


def test_asking_for_nothing_disarms() -> None:
    """space_required 0 is sufficient on a full ring and cancels the wake-up; so does any size that fits."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"x" * 80) == -Errno.EAGAIN
    assert world.notify(1, (PORT, 2, 0)) == (0, [(EXISTS | SUFFICIENT, 80)])
    assert world.ring(2, PORT, 1).pending == {}
    assert world.send(1, (PORT, 2), b"x" * 80) == -Errno.EAGAIN
    world.set_rx(2, 48)
    assert world.notify(1, (PORT, 2, 16)) == (0, [(EXISTS | SUFFICIENT, 80)])
    assert world.ring(2, PORT, 1).pending == {}


def test_too_big_a_question_leaves_the_wake_up_armed() -> None:
    """EMSGSIZE queues nothing and cancels nothing."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"x" * 8) == -Errno.EAGAIN
    assert world.notify(1, (PORT, 2, 81)) == (0, [(EXISTS | EMSGSIZE, 80)])
    assert world.ring(2, PORT, 1).pending == {1: 8}


def test_a_send_does_not_disarm() -> None:
    """A waiter that got through meanwhile is still woken."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"x" * 16) == -Errno.EAGAIN
    world.set_rx(2, 96)
    assert world.send(1, (PORT, 2), b"x" * 16) == 16
    assert world.ring(2, PORT, 1).pending == {1: 16}
    world.woken()
    assert world.notify(2)[0] == 0
    assert world.woken() == [1]


def test_repeated_questions_about_one_ring() -> None:
    """Entries are independent: growing sizes leave the largest armed, a later one that fits cancels it."""
    world = World()
    assert world.register(2, PORT, 1, 112) == 0
    assert world.send(1, (PORT, 2), b"x" * 16) == 16
    ret, answers = world.notify(1, (PORT, 2, 50), (PORT, 2, 60))
    assert (ret, [flags for flags, _ in answers]) == (0, [EXISTS, EXISTS])
    assert world.ring(2, PORT, 1).pending == {1: 60}
    ret, answers = world.notify(1, (PORT, 2, 70), (PORT, 2, 48))
    assert [flags for flags, _ in answers] == [EXISTS, EXISTS | SUFFICIENT]
    assert world.ring(2, PORT, 1).pending == {}


def test_xsm_denial_ends_the_op() -> None:
    """Earlier entries stay written, the denied one is not, later ones are not reached."""
    world = World(xsm=SiloXsm())
    assert world.register(0, PORT, 1, 112) == 0
    ret, answers = world.notify(1, (PORT, 0, 0), (PORT, 2, 0), (PORT, 0, 0))
    assert ret == -Errno.EPERM
    assert answers == [(EXISTS | EMPTY | SUFFICIENT, 80), (0xFFFF, 0xAAAA), (0xFFFF, 0xAAAA)]


def test_xsm_is_not_asked_about_domains_without_argo() -> None:
    """Existence comes before permission."""
    world = World(xsm=DenyingXsm("send"))
    world.kill(2)
    assert world.notify(1, (PORT, 2, 0), (PORT, 9, 0)) == (0, [(0, 0xAAAA)] * 2)


def test_write_back_stops_at_the_faulting_page() -> None:
    """An entry that straddles into a read-only page: flags are written, max_message_size is not."""
    world = World()
    assert world.register(2, PORT, 1, 112) == 0
    va = 0x6000 - 8 - 12  # the entry's first 12 bytes lie in page 5, max_message_size in page 6
    world.memory(1).set_page(6, PageType.RAM_RO)
    ret, answers = world.notify(1, (PORT, 2, 0), va=va)
    assert ret == -Errno.EFAULT
    assert answers == [(EXISTS | EMPTY | SUFFICIENT, 0xAAAA)]


def test_a_fault_in_a_later_entry() -> None:
    """What was answered before stays answered."""
    world = World()
    assert world.register(2, PORT, 1, 112) == 0
    ram = world.ram[1]
    va = END - 8 - 20 - 10
    RING_DATA.pack_into(ram, va, 2, 0)
    RING_DATA_ENT.pack_into(ram, va + 8, PORT, 2, 0, 0xFFFF, 0, 0, 0xAAAA)
    assert world.op(1, Op.NOTIFY, va) == -Errno.EFAULT
    assert RING_DATA_ENT.unpack_from(ram, va + 8)[3] == EXISTS | EMPTY | SUFFICIENT


def test_room_found_in_the_window_does_not_count() -> None:
    """Waiters are judged by the room measured before: rx stored in between helps at the next notify."""
    world = full_ring()
    assert world.send(1, (PORT, 2), b"y" * 80) == -Errno.EAGAIN
    world.set_rx(2, 48)
    windows: list[Ring] = []

    def window(ring: Ring) -> None:
        windows.append(ring)
        world.set_rx(2, 96)

    world.argo.on_notify_window = window
    assert world.notify(2)[0] == 0
    assert windows == [world.ring(2, PORT, 1)]
    assert world.woken() == []
    assert world.notify(2)[0] == 0
    assert world.woken() == [1]


def test_room_lost_in_the_window_still_counts() -> None:
    """... and a send in between may take the room: the waiter is woken for nothing, and may wait again."""
    world = full_ring(DOMID_ANY)
    assert world.send(1, (PORT, 2), b"y" * 80) == -Errno.EAGAIN
    world.set_rx(2, 96)
    results: list[int] = []

    def window(_: Ring) -> None:
        results.append(world.send(3, (PORT, 2), b"z" * 80))
        results.append(world.send(0, (PORT, 2), b"z" * 16))

    world.argo.on_notify_window = window
    assert world.notify(2)[0] == 0
    assert results == [80, -Errno.EAGAIN]
    assert world.woken() == [2, 1, 0]
    assert world.ring(2, PORT, DOMID_ANY).pending == {}
    world.argo.on_notify_window = None
    assert world.send(1, (PORT, 2), b"y" * 80) == -Errno.EAGAIN


def test_no_window_without_room() -> None:
    """A ring without room is not scanned at all."""
    world = full_ring()
    world.argo.on_notify_window = lambda ring: pytest.fail("scanned")
    assert world.notify(2)[0] == 0


def test_order_of_wake_ups() -> None:
    """Oldest waiter of a ring first; rings visited later, by bucket and then newest first, are signalled earlier."""
    world = World(domids=range(9))
    in_bucket: dict[int, list[int]] = {}
    for port in range(1, 400):
        in_bucket.setdefault(bucket(port, 0, DOMID_ANY), []).append(port)
    low, older, newer, high = in_bucket[0][0], *in_bucket[9][:2], in_bucket[31][0]
    waiters = {low: (1, 2), older: (3, 4), newer: (5, 6), high: (7, 8)}
    for index, port in enumerate(waiters):
        assert world.register(0, port, DOMID_ANY, 48, gfns=[24 + index]) == 0
        assert world.send(1, (port, 0), b"x" * 16) == 16
    for port, domids in waiters.items():
        for domid in domids:
            assert world.send(domid, (port, 0), b"x" * 16) == -Errno.EAGAIN
    world.woken()
    for index in range(4):
        world.set_rx(0, 32, 24 + index)
    assert world.notify(0)[0] == 0
    # visited: low bucket, then in the shared bucket newer before older, then high
    assert world.woken() == [7, 8, 3, 4, 5, 6, 1, 2]
