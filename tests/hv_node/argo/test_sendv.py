"""sendv beyond refusals: what is written, what is not, and who is told (Xen common/argo.c)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY, DOMID_SELF, IOV, SEND_ADDR, Op
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, PageType
from hv_node.argo.model import Ring
from tests.hv_node.argo.world import ARGS, DATA, IOVS, NPAGES, World

PORT = 0x10
LEN = PAGE_SIZE - 64
END = NPAGES * PAGE_SIZE


def test_iovs_are_joined_without_boundaries() -> None:
    """One message per call, whatever the buffers; empty ones count for nothing."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    parts = [b"", b"a" * 15, b"", b"bc", b"", b"d" * 100, b"", b"e"]
    assert world.send(1, (PORT, 2), *parts, message_type=0xFFFFFFFF) == 118
    message = world.consumer(2, LEN).receive()
    assert message is not None
    assert message.payload == b"".join(parts)
    assert message.message_type == 0xFFFFFFFF


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("niov", range(9))
def test_both_iov_layouts(niov: int, compat: bool) -> None:
    """0 to 8 iovs of 16 bytes, or of 12 bytes from a 32-bit x86 caller."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    parts = [bytes([65 + index]) * (index + 1) for index in range(niov)]
    assert world.send(1, (PORT, 2), *parts, compat=compat) == sum(map(len, parts))
    message = world.consumer(2, LEN).receive()
    assert message is not None
    assert message.payload == b"".join(parts)


def test_no_iov_pointer_is_needed_for_no_iovs() -> None:
    """niov 0 never faults, and success 0 is signalled."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    SEND_ADDR.pack_into(world.ram[1], ARGS, 5, 1, 0, PORT, 2, 0)
    for iovs in (0, END, (1 << 64) - 1):
        assert world.op(1, Op.SENDV, ARGS, iovs, 0, 0) == 0
    assert world.woken() == [2, 2, 2]


def test_an_empty_buffer_may_lie_anywhere() -> None:
    """iov_len 0 is skipped before its address is looked at."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    SEND_ADDR.pack_into(world.ram[1], ARGS, 5, 1, 0, PORT, 2, 0)
    IOV.pack_into(world.ram[1], IOVS, (1 << 64) - 1, 0, 0)
    assert world.op(1, Op.SENDV, ARGS, IOVS, 1, 0) == 0


def test_source() -> None:
    """The wildcard stands for the caller, any port may be claimed, another domain may not."""
    world = World()
    assert world.register(2, PORT, DOMID_ANY, LEN) == 0
    for source in (DOMID_ANY, 1):
        assert world.send(1, (PORT, 2), b"m", source=source, src_port=0xFFFFFFFF) == 1
    for source in (0, 2, DOMID_SELF, 0xFFFF):
        assert world.send(1, (PORT, 2), b"m", source=source) == -Errno.EPERM
    messages = world.consumer(2, LEN).drain()
    assert [(m.source_domid, m.source_port) for m in messages] == [(1, 0xFFFFFFFF)] * 2


@pytest.mark.parametrize("domid", [DOMID_ANY, DOMID_SELF, 9, 0xFFFF])
def test_destinations_that_do_not_exist(domid: int) -> None:
    """Reserved ids are unknown domains, the wildcard and DOMID_SELF among them."""
    assert World().send(1, (PORT, domid), b"m") == -Errno.ESRCH


def test_the_exact_ring_shadows_the_wildcard_ring() -> None:
    """A full exact ring does not overflow into the wildcard ring; other senders use that one."""
    world = World()
    assert world.register(2, PORT, DOMID_ANY, LEN, gfns=[30]) == 0
    assert world.send(1, (PORT, 2), b"to all") == 6
    assert world.register(2, PORT, 1, 48, gfns=[24]) == 0
    assert world.send(1, (PORT, 2), b"x" * 16) == 16
    assert world.send(1, (PORT, 2), b"x" * 16) == -Errno.EAGAIN
    assert world.send(3, (PORT, 2), b"from 3") == 6
    assert [m.payload for m in world.consumer(2, LEN, 30).drain()] == [b"to all", b"from 3"]


def test_self_send() -> None:
    """A domain may send to its own rings by its real id."""
    world = World()
    assert world.register(1, PORT, 1, LEN) == 0
    assert world.send(1, (PORT, 1), b"me") == 2
    assert world.woken() == [1]


def test_guest_stores_to_tx_are_overwritten() -> None:
    """The hypervisor's own tx counts."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    assert world.send(1, (PORT, 2), b"a") == 1
    world.set_tx(2, 0x800)
    assert world.send(1, (PORT, 2), b"b") == 1
    assert world.pointers(2) == (0, 64)


@pytest.mark.parametrize(("rx", "space"), [(8, 32), (0, 16), (64, 16), (0xFFFFFFFF, 16), (33, 0), (48, 0)])
def test_rx_is_sanitised_at_each_send(rx: int, space: int) -> None:
    """Ring of 64, tx 16: rx is rounded up and 0 when outside; a strange one changes the room, never the call."""
    world = World()
    assert world.register(2, PORT, 1, 64) == 0
    assert world.send(1, (PORT, 2)) == 0
    world.set_rx(2, rx)
    assert world.ring(2, PORT, 1).space() == space
    assert world.send(1, (PORT, 2), b"x" * 16) == (16 if space else -Errno.EAGAIN)


def test_a_fault_in_a_later_buffer() -> None:
    """Header and what could be read lie beyond tx; tx, signal and queue know nothing of it."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    ram = world.ram[1]
    ram[DATA : DATA + 4] = b"good"
    ram[END - 6 :] = b"prefix"
    SEND_ADDR.pack_into(ram, ARGS, 5, 1, 0, PORT, 2, 0)
    IOV.pack_into(ram, IOVS, DATA, 4, 0)
    IOV.pack_into(ram, IOVS + 16, END - 6, 60, 0)
    assert world.op(1, Op.SENDV, ARGS, IOVS, 2, 0) == -Errno.EFAULT
    data = world.data(2, LEN)
    assert data[:16] == bytes.fromhex("50000000 05000000 0100 0000 00000000")
    assert data[16:26] == b"goodprefix"
    assert data[26:] == bytes(LEN - 26)
    assert world.pointers(2) == (0, 0)
    assert world.woken() == []
    assert world.ring(2, PORT, 1).pending == {}


def test_a_fault_in_the_middle_of_a_buffer_that_wraps() -> None:
    """The readable pages before the fault are copied across the end of the ring."""
    world = World()
    world.set_rx(2, 2048)
    world.set_tx(2, 2048)
    assert world.register(2, PORT, 1, LEN) == 0
    ram = world.ram[1]
    ram[0x5000:0x6000] = b"p" * PAGE_SIZE
    world.memory(1).set_page(6, PageType.PAGED)
    SEND_ADDR.pack_into(ram, ARGS, 5, 1, 0, PORT, 2, 0)
    IOV.pack_into(ram, IOVS, 0x5000 + 1096, 3500, 0)
    assert world.op(1, Op.SENDV, ARGS, IOVS, 1, 0) == -Errno.EFAULT
    data = world.data(2, LEN)
    head = LEN - 2064
    assert data[2064:] == b"p" * head
    assert data[: 3000 - head] == b"p" * (3000 - head)
    assert data[3000 - head : 2048] == bytes(2048 - 3000 + head)


def test_a_buffer_on_an_unreadable_page_copies_nothing() -> None:
    """Not even the first byte could be read; the header is there."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    world.memory(1).set_page(DATA // PAGE_SIZE, PageType.INVALID)
    SEND_ADDR.pack_into(world.ram[1], ARGS, 5, 1, 0, PORT, 2, 0)
    IOV.pack_into(world.ram[1], IOVS, DATA, 8, 0)
    assert world.op(1, Op.SENDV, ARGS, IOVS, 1, 0) == -Errno.EFAULT
    assert world.data(2, LEN)[:4] == (24).to_bytes(4, "little")
    assert world.pointers(2) == (0, 0)


def test_32_waiters_and_not_one_more() -> None:
    """The 33rd domain gets -EBUSY: no wake-up will come.  Those who wait may ask again."""
    world = World(domids=range(35), npages=30)
    assert world.register(0, PORT, DOMID_ANY, 48) == 0
    assert world.send(1, (PORT, 0), b"x" * 16) == 16
    for domid in range(1, 33):
        assert world.send(domid, (PORT, 0), b"x") == -Errno.EAGAIN
    assert world.send(33, (PORT, 0), b"x") == -Errno.EBUSY
    assert world.send(5, (PORT, 0), b"xx") == -Errno.EAGAIN
    assert world.notify(33, (PORT, 0, 16))[1] == [(0x23, 16)]
    world.woken()
    world.set_rx(0, 32)
    assert world.notify(0)[0] == 0
    assert world.woken() == list(range(1, 33))
    assert world.send(33, (PORT, 0), b"x") == 1


def test_an_oversized_message_never_waits() -> None:
    """-EMSGSIZE comes before fullness."""
    world = World()
    assert world.register(2, PORT, 1, 48) == 0
    assert world.send(1, (PORT, 2), b"x" * 16) == 16
    assert world.send(1, (PORT, 2), b"x" * 17) == -Errno.EMSGSIZE
    assert world.ring(2, PORT, 1).pending == {}


def test_scattered_pages() -> None:
    """The pages of a ring need not be neighbours, nor in order; a message may cross all of them."""
    world = World()
    gfns = [40, 24, 25, 31]
    ring_len = 4 * PAGE_SIZE - 64
    assert world.register(2, PORT, 1, ring_len, gfns=gfns) == 0
    payload = bytes(range(256)) * 60
    assert world.send(1, (PORT, 2), payload) == len(payload)
    logical = b"".join(bytes(world.ram[2][gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]) for gfn in gfns)
    assert logical[80 : 80 + len(payload)] == payload
    assert logical[:8] == bytes(4) + (16 + len(payload)).to_bytes(4, "little")
    # rx moves on; the next message wraps within those pages
    world.ram[2][40 * PAGE_SIZE : 40 * PAGE_SIZE + 4] = (16 + len(payload)).to_bytes(4, "little")
    assert world.send(1, (PORT, 2), payload[:4000]) == 4000
    logical = b"".join(bytes(world.ram[2][gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]) for gfn in gfns)
    data = logical[64 : 64 + ring_len]
    at = 16 + len(payload) + 16
    assert data[at:] + data[: 4000 - (ring_len - at)] == payload[:4000]


def test_the_window_before_publication() -> None:
    """The hook finds the message in the ring and tx_ptr not showing it; guest stores there change nothing."""
    world = World()
    assert world.register(2, PORT, 1, LEN) == 0
    seen: list[tuple[bytes, tuple[int, int], list[int]]] = []

    def window(ring: Ring) -> None:
        assert ring is world.ring(2, PORT, 1)
        seen.append((world.data(2, LEN)[16:20], world.pointers(2), world.woken()))
        world.set_tx(2, 0xFFFFFFFF)
        world.set_rx(2, 0xFFFFFFFF)

    world.argo.on_payload_written = window
    assert world.send(1, (PORT, 2), b"data") == 4
    assert seen == [(b"data", (0, 0), [])]
    assert world.pointers(2) == (0xFFFFFFFF, 32)
    assert world.woken() == [2]


def test_results_are_int32() -> None:
    """Whatever the call, the answer fits a signed 32-bit register."""
    world = World()
    results = [world.op(1, cmd, 1 << 63, 1 << 63, a3, 0) for cmd in range(6) for a3 in (0, 1, 1 << 32, (1 << 64) - 1)]
    assert all(-(1 << 31) <= result < 1 << 31 for result in results)
    assert all(type(result) is int or isinstance(result, int) for result in results)
