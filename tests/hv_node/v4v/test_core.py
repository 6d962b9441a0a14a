"""What the v4v core does beside answering: order of wake-ups, tokens, memory that runs out, guests that race."""

from __future__ import annotations

from struct import Struct
from typing import Any

import pytest

from hmx.argo.abi import Address
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.v4v.abi import DOMID_DM, IOV, OPERATIONS, Op
from hmx.v4v.layout import answers, pfn_list, ring_data, ring_header
from hv_node.argo.model import Allocation
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.v4v.core import V4v, V4vOptions
from tests.hv_node.v4v.language import World
from tests.hv_node.v4v.world import IOVS, QUERIES, token_of


def test_a_session_of_two() -> None:
    """A device model and its guest, as uXen's drivers speak: token and DM, one port, replies, wake-up by line 7."""
    world = World()
    host, guest = world.domain(0), world.domain(1)
    world.put(0, 24 * PAGE_SIZE, ring_header(0xD0000, 0x7FFE, 4032))
    world.put(0, 0x8000, pfn_list([24]))
    world.put(0, 0x80, token_of(1))
    assert world.v4v.op(host, Op.REGISTER_RING, 24 * PAGE_SIZE, 0x8000, 0x80, 1) == 0
    world.put(1, 24 * PAGE_SIZE, ring_header(0xD0000, DOMID_DM, 8128))
    world.put(1, 0x8000, pfn_list([24, 25]))
    assert world.v4v.op(guest, Op.REGISTER_RING, 24 * PAGE_SIZE, 0x8000, 0, 1) == 0
    world.ring_at = {(0, 0xD0000): 24 * PAGE_SIZE, (1, 0xD0000): 24 * PAGE_SIZE}
    world.run("send g1 to=DM:0xD0000 from=0xD0000 bytes=10 type=0x3C2C1DB8")
    request = world.consumer(0, 0xD0000).receive()
    assert request == (0xD0000, 1, 0x3C2C1DB8, b"ABCDEFGHIJ")
    world.run("send host to=g1:0xD0000 from=0xD0000 bytes=3")
    assert world.consumer(1, 0xD0000).receive() == (0xD0000, 0, 0, b"ABC")
    assert world.signals == [0, 1]


def test_wake_order() -> None:
    """uXen pending_notify: within a ring the oldest waiter first; rings visited later are signalled earlier.

    Buckets are visited upwards: port 32 for everybody (bucket 31) comes after port 1 for domain 1 (bucket 0).
    """
    world = World()
    for domid in (9, 8, 7):
        world.create(domid, 16)
    world.run("register host port=32 partner=ANY len=48 gfn=24; register host port=1 partner=g1 len=48 gfn=26")
    world.run("send g2 to=DM:32 bytes=16; send g1 to=DM:1 bytes=16; send g1 to=DM:1 bytes=16")
    for domid in (9, 7, 8):
        world.run(f"send {domid} to=DM:32 bytes=16")
    world.signals.clear()
    world.run("drain host:32; drain host:1; notify host null")
    assert world.signals == [9, 7, 8, 1]


def test_the_newest_ring_of_a_bucket_first() -> None:
    """uXen ring_add inserts at the head of the bucket; ports 1 and 33 share one."""
    world = World()
    world.run("register host port=33 partner=g1 len=48 gfn=24; register host port=1 partner=g2 len=48 gfn=26")
    world.run("register host port=2 partner=g2 len=48 gfn=28")  # bucket 0 as port 33 for domain 1: 33 ^ 1 = 32
    world.run(
        "send g1 to=DM:33 bytes=16; send g1 to=DM:33 bytes=16; send g2 to=DM:2 bytes=16; send g2 to=DM:2 bytes=16"
    )
    world.signals.clear()
    world.run("drain host:33; drain host:2; notify host null")
    assert world.signals == [1, 2], "the older ring is visited later and so signalled earlier"


def test_only_what_fits_is_woken() -> None:
    """A waiter for more stays, and keeps the largest size that it asked for."""
    world = World()
    world.run("register host port=7 partner=ANY len=96; send g1 to=DM:7 bytes=32; send g2 to=DM:7 bytes=16")
    world.run("send g1 to=DM:7 bytes=48; send g1 to=DM:7 bytes=16; send g2 to=DM:7 bytes=16")
    world.signals.clear()
    consumer = world.consumer(0, 7)
    assert consumer.receive() is not None
    world.run("notify host null")
    world.expect("waiters(host:7/ANY)=g1@48")
    assert world.signals == [2]


def test_the_operation_table_is_live() -> None:
    """OPERATIONS: what is not built in is unknown; every other row answers something else."""
    world = World()
    for row in OPERATIONS:
        assert (world.op(0, row.op) == -Errno.ENOSYS) is not row.built


def test_switched_off() -> None:
    """With v4v off no domain has any state, and every call of a guest says so."""
    core = V4v(DomainTable(), RecordingSink(), V4vOptions(enabled=False), lambda _: None)
    domain = Domain(1, MappedMemory(bytearray(PAGE_SIZE)))
    core.domain_init(domain, token_of(1))
    assert not core.states
    assert not core.tokens
    assert core.op(domain, Op.NOTIFY) == -Errno.ENODEV


def test_another_device_model_domain() -> None:
    """V4vOptions.dm_domid: DM is that domain, and its id is the other name by which a guest may call it."""
    domains, signals = DomainTable(), list[int]()
    core = V4v(domains, RecordingSink(), V4vOptions(dm_domid=3), signals.append)
    guest = Domain(1, MappedMemory(bytearray(4 * PAGE_SIZE)))
    for domain in (guest, Domain(3, MappedMemory(bytearray(PAGE_SIZE)), is_control=True)):
        domains.create(domain)
        core.domain_init(domain)
    for named, result in ((DOMID_DM, 0), (3, 0), (0, -Errno.EPERM)):
        guest.memory.write(0, 0x100, ring_data([(Address(5, named), 1)]))
        assert core.op(guest, Op.NOTIFY, 0x100) == result


def test_the_answers_of_notify() -> None:
    """hmx.v4v.layout: what a guest lays out is what the hypervisor reads, and back."""
    world = World()
    world.run("register host port=7 partner=g1 len=64")
    data = ring_data([(Address(7, DOMID_DM), 48), (Address(8, DOMID_DM), 1)])
    world.put(1, QUERIES, data)
    assert world.op(1, Op.NOTIFY, QUERIES) == 0
    assert answers(bytes(world.ram[1][QUERIES : QUERIES + len(data)])) == [(0x0A, 32), (0, 0)]


def test_tokens() -> None:
    """A token has 16 bytes and one owner; it goes with its domain."""
    world = World()
    with pytest.raises(ValueError, match="16 bytes"):
        world.v4v.domain_init(Domain(5, MappedMemory(bytearray(PAGE_SIZE))), b"short")
    with pytest.raises(ValueError, match="one domain"):
        world.v4v.domain_init(Domain(5, MappedMemory(bytearray(PAGE_SIZE))), token_of(1))
    assert world.v4v.resolve(token_of(1)) == 1
    world.v4v.domain_kill(world.domain(1))
    world.v4v.domain_kill(world.domain(1))
    assert world.v4v.resolve(token_of(1)) is None
    world.v4v.domain_init(Domain(5, MappedMemory(bytearray(PAGE_SIZE))), token_of(1))
    assert world.v4v.resolve(token_of(1)) == 5


def test_no_memory_for_a_waiter() -> None:
    """uXen: send answers -ENOMEM, also at a placeholder; notify says PENDING and forgets; a known waiter needs none."""
    world = World()
    world.run("create host g1:5; register host port=7 partner=ANY len=48; send g1 to=DM:7 bytes=16")
    world.v4v.allocate = lambda what: what is not Allocation.WAITER
    world.run("send host to=g1:5 bytes=1")
    world.expect("result=-ENOMEM; waiters(g1:5/host)=none")
    world.run("send g1 to=DM:7 bytes=16")
    world.expect("result=-ENOMEM; waiters(host:7/ANY)=none")
    world.run("notify g1 DM:7@16")
    world.expect("result=0; flags=EXISTS+PENDING; waiters(host:7/ANY)=none")
    world.v4v.allocate = None
    world.run("send g1 to=DM:7 bytes=1")
    world.v4v.allocate = lambda what: what is not Allocation.WAITER
    world.run("send g1 to=DM:7 bytes=16")
    world.expect("result=-EAGAIN; waiters(host:7/ANY)=g1@16")


def test_a_kept_mapping_needs_no_memory() -> None:
    """uXen find_ring_mfns: arrays are allocated unless the pages stay."""
    world = World()
    world.run("register g1 port=5 partner=DM len=64")
    world.v4v.allocate = lambda what: what is not Allocation.PAGE_ARRAYS
    world.run("register g1 port=5 partner=DM len=64")
    world.expect("result=0; mapping(g1:5/host)=kept")
    world.run("register g1 port=5 partner=DM len=64 gfn=30")
    world.expect("result=-ENOMEM; mapping(g1:5/host)=none")


class Shifting(MappedMemory):
    """RAM whose owner changes the sizes of its iovs when they have been read `after` times."""

    after = 0
    grown = 0

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        found = super().unpack(layout, ctx, va)
        if layout is not IOV or found is None:
            return found
        self.after -= 1
        if self.after >= 0:
            return found
        return None if self.grown < 0 else (found[0], self.grown)


@pytest.mark.parametrize(
    ("size", "result"),
    [(17, -Errno.EFAULT), (1 << 40, -Errno.EFAULT), (-1, -Errno.EFAULT), (16, 32), (3, 32), (0, 32)],
)
def test_iovs_that_change_between_the_looks(size: int, result: int) -> None:
    """uXen reads the array twice: a buffer that has grown beyond what was counted is refused, and nothing published."""
    world = World()
    world.run("register host port=7 partner=g1 len=128")
    memory = Shifting(world.ram[1])
    memory.after, memory.grown = 2 + 1, size  # the sizes, and the first buffer
    world.domain(1).memory = memory
    world.run("sendv g1 to=DM:7 bytes=16+16")
    assert world.result == result
    ring = world.ring(0, 7, 1)
    assert ring is not None
    assert ring.tx == world.window(0, 7).load32(24) == (48 if result > 0 else 0)
    assert world.signals == ([0] if result > 0 else [])
    if result > 0:
        message = world.consumer(0, 7).receive()
        assert message is not None
        assert len(message.payload) == 32


def test_a_fault_leaves_what_precedes_it_beyond_tx() -> None:
    """uXen ringbuf_insert: header and payload up to the fault lie in free space; nothing is published or woken."""
    world = World()
    world.run("register host port=7 partner=g1 len=128")
    end = len(world.ram[1])
    world.put(1, end - 4, b"tail")
    world.put(1, 0x100, bytes.fromhex("99000000 0100 0000 07000000 f17f"))
    world.put(1, IOVS, IOV.pack(end - 4, 8))
    assert world.op(1, Op.SENDV, 0x100, 0x108, IOVS, 1, 0x55) == -Errno.EFAULT
    data = bytes(world.ram[0][24 * PAGE_SIZE + 64 :][:24])
    assert data == bytes.fromhex("18000000 99000000 0100 0000 55000000") + b"tail" + bytes(4)
    world.expect("header.tx=0; hv.tx(host:7/g1)=0; waiters(host:7/g1)=none; signalled=none")


def test_an_empty_iov_lies_anywhere() -> None:
    """uXen ringbuf_insert: an iov without bytes is passed over, wherever it points."""
    world = World()
    world.run("register host port=7 partner=g1 len=128")
    world.put(1, 0x100, bytes.fromhex("99000000 0100 0000 07000000 f17f"))
    world.put(1, IOVS, IOV.pack((1 << 64) - 1, 0) + IOV.pack(0x100, 4))
    assert world.op(1, Op.SENDV, 0x100, 0x108, IOVS, 2, 0x55) == 4


def test_a_message_that_ends_with_the_ring() -> None:
    """uXen ringbuf_insert: tx at the very end is 0; the next header lies at the start; a buffer may end there too."""
    world = World()
    world.run("register host port=7 partner=g1 len=64 rx=16 tx=16; sendv g1 to=DM:7 bytes=32+0")
    world.expect("result=32; header.tx=0; hv.tx(host:7/g1)=0")
    world.run("drain host:7; sendv g1 to=DM:7 bytes=16; drain host:7; sendv g1 to=DM:7 bytes=16+4")
    world.expect("result=20; header.tx=16")
    message = world.consumer(0, 7).receive()
    assert message is not None
    assert message.payload == b"ABCDEFGHIJKLMNOPABCD"


def test_scattered_pages() -> None:
    """A ring's pages need not be contiguous; the header is in the first one named."""
    world = World()
    at = 30 * PAGE_SIZE
    world.put(0, at, ring_header(7, 1, 8128))
    world.put(0, 0x8000, pfn_list([30, 26]))
    assert world.op(0, Op.REGISTER_RING, at, 0x8000, 0, 0) == 0
    world.run("send g1 to=DM:7 bytes=5000")
    assert world.result == 5000
    pattern = bytes(0x41 + index % 26 for index in range(5000))
    assert bytes(world.ram[0][at + 80 : 31 * PAGE_SIZE]) == pattern[:4016]
    assert bytes(world.ram[0][26 * PAGE_SIZE :][: 5000 - 4016]) == pattern[4016:]


def test_the_header_lies_in_the_first_page_named() -> None:
    """uXen maps page 0 of the list: pointers live there, wherever the address passed at registration was."""
    world = World()
    world.put(0, 24 * PAGE_SIZE, ring_header(7, 1, 64))
    world.put(0, 0x8000, pfn_list([40]))
    assert world.op(0, Op.REGISTER_RING, 24 * PAGE_SIZE, 0x8000, 0, 0) == 0
    world.run("send g1 to=DM:7 bytes=4")
    assert world.ram[0][40 * PAGE_SIZE + 24] == 32
    assert world.ram[0][24 * PAGE_SIZE + 24] == 0
    world.ram[0][40 * PAGE_SIZE + 20] = 32  # consumed, as page 40 says
    world.ring_at[0, 7] = 40 * PAGE_SIZE
    world.run("send g1 to=DM:7 bytes=32")
    assert world.result == 32
