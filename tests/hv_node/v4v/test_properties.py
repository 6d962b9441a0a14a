"""Messages through a v4v ring arrive whole, once and in order; nothing that either side writes breaks the core."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.argo.consumer import RingCorrupt
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.v4v.abi import ADDR, DOMID_DM, IOV, RING_HEADER, RING_MAGIC, Op
from hmx.v4v.consumer import V4vConsumer
from hmx.v4v.layout import pfn_list, ring_data, ring_header
from tests.hv_node.v4v.language import World
from tests.hv_node.v4v.world import ARGS, DATA, IOVS, LIST, RING_GFN

PORT = 7
RING = RING_GFN * PAGE_SIZE
U32 = st.integers(0, 0xFFFF_FFFF)
ODD = st.one_of(st.integers(0, 300), U32, st.sampled_from([0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF1, 0xFFFF_FFFF]))


@dataclass
class Pipe:
    """A guest that sends to its device model, and what must come out."""

    ring_len: int
    world: World = field(default_factory=World)
    sent: list[bytes] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)
    waiting: bool = False

    def register(self) -> None:
        """The device model's ring; a guest that waits is woken by it."""
        self.world.run(f"register host port={PORT} partner=g1 len={self.ring_len} keep=1")
        assert self.world.result == 0
        self.told()

    def told(self) -> None:
        """The guest knows now whether it need wait any longer."""
        if 1 in self.world.signals:
            self.waiting = False
        self.world.signals.clear()

    def send(self, sizes: list[int], *, vector: bool) -> None:
        """One message of these buffers, if there is room: its payload tells its number."""
        world = self.world
        payload = (len(self.sent).to_bytes(4, "little") * 200)[: sum(sizes)]
        world.put(1, ARGS, ADDR.pack(9, 2) + b"__" + ADDR.pack(PORT, DOMID_DM))
        world.put(1, DATA, payload)
        iovs, va = b"", DATA
        for size in sizes:
            iovs += IOV.pack(va, size)
            va += size
        world.put(1, IOVS, iovs)
        if vector:
            ret = world.op(1, Op.SENDV, ARGS, ARGS + 8, IOVS, len(sizes), 3)
        else:
            ret = world.op(1, Op.SEND, ARGS, ARGS + 8, DATA, len(payload), 3)
        if ret == len(payload):
            self.sent.append(payload)
        elif len(payload) > self.ring_len - 32:
            assert ret == -90
        else:
            assert ret == -11
            self.waiting = True

    def receive(self, count: int) -> None:
        """Take up to `count` messages and notify: whoever waits is told once there is room."""
        consumer = self.world.consumer(0, PORT)
        for message in consumer.drain(count):
            assert message[:3] == (9, 1, 3)
            self.got.append(message.payload)
        self.world.signals.clear()
        assert self.world.op(0, Op.NOTIFY) == 0
        if self.waiting and consumer.available() == 0:
            assert self.world.signals == [1]
        self.told()


@settings(max_examples=60)
@given(st.data())
def test_fifo(data: st.DataObject) -> None:
    """uXen ringbuf_insert and copy_out: every accepted message comes out once, whole, in order."""
    pipe = Pipe(data.draw(st.sampled_from([48, 64, 80, 112, 400])))
    pipe.world.put(0, RING, ring_header(PORT, 1, pipe.ring_len))
    pipe.register()
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["send", "sendv", "receive", "again", "suspend"]))
        if action == "receive":
            pipe.receive(data.draw(st.integers(0, 3)))
        elif action == "again":
            pipe.register()
        elif action == "suspend":
            pipe.world.v4v.suspend(pipe.world.domain(0))
            pipe.register()
        else:
            count = data.draw(st.integers(0, 4)) if action == "sendv" else 1
            sizes = [data.draw(st.integers(0, 40)) for _ in range(count)]
            pipe.send(sizes, vector=action == "sendv")
    pipe.receive(0)
    assert pipe.got == pipe.sent


@settings(max_examples=150)
@given(ODD, ODD, ODD, st.sampled_from([0, 1, 2, DOMID_DM, 0x7FFE, 0x7FFF]), st.binary(max_size=200))
def test_a_hostile_owner(ring_len: int, rx: int, tx: int, partner: int, junk: bytes) -> None:
    """Whatever a ring's owner writes into its header, every call answers with a number and memory elsewhere stays."""
    world = World()
    world.put(1, RING, RING_HEADER.pack(RING_MAGIC, PORT, 0, partner, ring_len, rx, tx) + junk)
    npages = min(max(-(-min(ring_len, 1 << 25) // PAGE_SIZE), 1), 30)
    world.put(1, LIST, pfn_list(range(RING_GFN, RING_GFN + npages)))
    rest = bytes(world.ram[1][RING + npages * PAGE_SIZE :])
    ret = world.op(1, Op.REGISTER_RING, RING, LIST, 0x80, 0)
    assert -200 < ret <= 0
    if ret == 0:
        for size in (0, 1, 40):
            world.put(1, RING + 20, rx.to_bytes(4, "little"))
            world.run(f"send host to=g1:{PORT} bytes={size}; notify host g1:{PORT}@{size}")
            assert world.result == 0
        ring = world.ring(1, PORT, 0)
        assert ring is not None
        assert ring.tx < ring.len == ring_len
        assert ring.tx % 16 == 0
    assert bytes(world.ram[1][RING + npages * PAGE_SIZE :]) == rest


@settings(max_examples=150)
@given(st.integers(0, 0x12), *[st.one_of(ODD, st.sampled_from([ARGS, RING, LIST]), st.integers(0, 1 << 64))] * 5)
def test_any_call_answers(cmd: int, a1: int, a2: int, a3: int, a4: int, a5: int) -> None:
    """A guest and a host may pass anything: the answer is an int32, and never an exception."""
    world = World()
    world.put(1, RING, ring_header(PORT, DOMID_DM, 64))
    world.put(1, LIST, pfn_list([RING_GFN]))
    for domid in (0, 1):
        ret = world.op(domid, cmd, a1, a2, a3, a4, a5)
        assert -(1 << 31) <= ret < 1 << 31


@settings(max_examples=150)
@given(st.integers(0, 200), ODD, ODD, st.binary(min_size=64, max_size=64))
def test_a_hostile_ring_never_breaks_the_receiver(length: int, rx: int, tx: int, junk: bytes) -> None:
    """uXen's safe copy: the worst that a receiver sees is RingCorrupt, and recover ends it."""
    world = World()
    world.put(1, RING, ring_header(PORT, DOMID_DM, 64, rx, tx) + length.to_bytes(4, "little") + junk)
    world.ring_at[1, PORT] = RING
    consumer = V4vConsumer(world.window(1, PORT), 64)
    try:
        for _ in range(10):
            message = consumer.receive()
            if message is None:
                break
            assert len(message.payload) <= 32 + 16
    except RingCorrupt:
        consumer.recover()
    assert consumer.rx < 64
    assert consumer.rx % 16 == 0


@pytest.mark.parametrize(("count", "result", "flags"), [
    (0xFFFF_FFFF, -Errno.EACCES, 0), (1025, -Errno.EACCES, 0), (1024, -Errno.EFAULT, 0x0A),
])  # fmt: skip
def test_many_entries_are_refused_and_some_end_with_memory(count: int, result: int, flags: int) -> None:
    """Ours: over 1024 entries none is looked at.  uXen notify: one beyond memory answers -EFAULT there, and what
    precedes it is done.
    """
    world = World()
    world.run("register host port=7 partner=g1 len=64")
    entries = ring_data([])
    at = len(world.ram[1]) - 0x1000
    world.put(1, at, entries[:8] + count.to_bytes(4, "little"))
    for entry in range(at + 48, len(world.ram[1]) - 15, 16):
        world.put(1, entry, (7).to_bytes(4, "little") + DOMID_DM.to_bytes(2, "little"))
    assert world.op(1, Op.NOTIFY, at) == result
    assert world.ram[1][at + 48 + 6] == world.ram[1][-10] == flags
