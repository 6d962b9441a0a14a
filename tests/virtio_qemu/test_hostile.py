"""A driver that breaks the rules of the ring: the device stops and says so, and a reset revives it.

Source: VIRTIO 1.4, 2.1 (DEVICE_NEEDS_RESET and its notification), 2.7.4 to 2.7.6, 2.8.  The chains are written into the
ring by hand, behind the back of the driver's queue, which made the ring; addresses are those of the board.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import pytest

from guest_node.virtio.drivers.negotiate import Wants, negotiate
from guest_node.virtio.drivers.rng import WANTS, RngDevice
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.mmio import Interrupt
from hmx.virtio.status import Status
from tests.virtio_qemu.conftest import Benches
from tests.virtio_qemu.transport import MmioQueue, MmioTransport, run

PACKED = feature_set(Feature.RING_PACKED)
INDIRECT = feature_set(Feature.RING_INDIRECT_DESC)
N, W, T, A = 1, 2, 4, 0x80  # flags: next, write, (indirect) table, available
SIZE = 4
NOWHERE = 0xFFFF_FFFF_F000


class Poke:
    """A queue of 4 whose memory is written field by field."""

    def __init__(self, transport: MmioTransport, queue: MmioQueue) -> None:
        self.transport = transport
        self.layout = queue.layout
        self.memory = transport.board.memory
        self.buffer = transport.arena.lend(4096)
        self.table = transport.arena.lend(4096)

    def descriptor(self, index: int, address: int, size: int, third: int, fourth: int, table: int = 0) -> None:
        at = (table or self.layout.descriptors) + 16 * index
        self.memory.write(at, struct.pack("<QIHH", address, size, third, fourth))

    def available(self, *heads: int, index: int | None = None) -> None:
        for slot, head in enumerate(heads):
            self.memory.store16(self.layout.driver + 4 + 2 * slot, head)
        self.memory.store16(self.layout.driver + 2, len(heads) if index is None else index)


class Theirs(Enum):
    """What QEMU 7.2 does."""

    STOPS = "as our device does"
    GOES_ON = "it drops the chain, or finds that it has no room, and the status stays as it is"
    HANGS = "its entropy device looks at the chain for ever"


class Case(NamedTuple):
    """One broken rule."""

    name: str
    features: int  # beside VERSION_1
    poke: Callable[[Poke], None]
    theirs: Theirs


def _split(name: str, poke: Callable[[Poke], None], theirs: Theirs = Theirs.STOPS) -> Case:
    return Case(name, INDIRECT, poke, theirs)


def _packed(name: str, poke: Callable[[Poke], None], theirs: Theirs = Theirs.STOPS) -> Case:
    return Case(name, INDIRECT | PACKED, poke, theirs)


def _idx_ahead(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, W, 0)
    p.available(0, index=SIZE + 1)


def _head(p: Poke) -> None:
    p.available(SIZE)


def _head_far(p: Poke) -> None:
    p.available(0xFFFF)


def _next_far(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, N | W, SIZE)
    p.available(0)


def _loop_one(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, N | W, 0)
    p.available(0)


def _loop_two(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, N | W, 1)
    p.descriptor(1, p.buffer + 16, 16, N | W, 0)
    p.available(0)


def _order(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, N | W, 1)
    p.descriptor(1, p.buffer + 16, 16, 0, 0)
    p.available(0)


def _no_bytes(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, N | W, 1)
    p.descriptor(1, p.buffer + 16, 0, W, 0)
    p.available(0)


def _outside(p: Poke) -> None:
    p.descriptor(0, NOWHERE, 16, W, 0)
    p.available(0)


def _table_odd(p: Poke) -> None:
    p.descriptor(0, p.table, 24, T, 0)
    p.available(0)


def _table_empty(p: Poke) -> None:
    p.descriptor(0, p.table, 0, T, 0)
    p.available(0)


def _table_in_table(p: Poke) -> None:
    p.descriptor(0, p.table, 32, T, 0)
    p.descriptor(0, p.table + 64, 16, T, 0, p.table)
    p.descriptor(0, p.buffer, 16, W, 0, p.table + 64)
    p.available(0)


def _table_loop(p: Poke) -> None:
    p.descriptor(0, p.table, 32, T, 0)
    p.descriptor(0, p.buffer, 16, N | W, 1, p.table)
    p.descriptor(1, p.buffer + 16, 16, N | W, 0, p.table)
    p.available(0)


def _table_next_far(p: Poke) -> None:
    p.descriptor(0, p.table, 32, T, 0)
    p.descriptor(0, p.buffer, 16, N | W, 2, p.table)
    p.available(0)


def _table_outside(p: Poke) -> None:
    p.descriptor(0, NOWHERE, 32, T, 0)
    p.available(0)


def _twice(p: Poke) -> None:
    p.descriptor(0, NOWHERE, 16, W, 0)
    p.descriptor(1, p.buffer, 16, W, 0)
    p.available(0, 1)


def _packed_order(p: Poke) -> None:
    p.descriptor(1, p.buffer + 16, 16, 1, A)
    p.descriptor(0, p.buffer, 16, 1, N | W | A)


def _packed_long(p: Poke) -> None:
    for index in reversed(range(SIZE)):
        p.descriptor(index, p.buffer + 16 * index, 16, 0, N | W | A)


def _packed_no_bytes(p: Poke) -> None:
    p.descriptor(0, p.buffer, 0, 0, W | A)


def _packed_outside(p: Poke) -> None:
    p.descriptor(0, NOWHERE, 16, 0, W | A)


def _packed_table_odd(p: Poke) -> None:
    p.descriptor(0, p.table, 24, 0, T | A)


def _packed_table_outside(p: Poke) -> None:
    p.descriptor(0, NOWHERE, 32, 0, T | A)


def _packed_table_in_chain(p: Poke) -> None:
    p.descriptor(0, p.buffer, 16, 0, W, p.table)
    p.descriptor(1, p.table, 16, 0, T | A)
    p.descriptor(0, p.buffer + 16, 16, 0, N | W | A)


CASES = (
    _split("index ahead by more than the queue", _idx_ahead),
    _split("head outside the table", _head),
    _split("head far outside the table", _head_far),
    _split("next outside the table", _next_far),
    _split("loop of one", _loop_one),
    _split("loop of two", _loop_two),
    _split("readable after writable", _order),
    _split("a descriptor without bytes", _no_bytes),
    _split("a buffer outside the memory", _outside, Theirs.GOES_ON),
    _split("a table of an odd length", _table_odd),
    _split("an empty table", _table_empty),
    _split("a table in a table", _table_in_table, Theirs.GOES_ON),
    _split("a loop in a table", _table_loop),
    _split("next outside a table", _table_next_far),
    _split("a table outside the memory", _table_outside, Theirs.GOES_ON),
    _split("a good chain behind a bad one", _twice, Theirs.GOES_ON),
    _packed("packed: readable after writable", _packed_order, Theirs.HANGS),
    _packed("packed: longer than the ring", _packed_long),
    _packed("packed: a descriptor without bytes", _packed_no_bytes, Theirs.GOES_ON),
    _packed("packed: a buffer outside the memory", _packed_outside, Theirs.GOES_ON),
    _packed("packed: a table of an odd length", _packed_table_odd),
    _packed("packed: a table outside the memory", _packed_table_outside, Theirs.GOES_ON),
    _packed("packed: a table in a chain", _packed_table_in_chain, Theirs.HANGS),
)


PAIRS = [
    pytest.param(side, case, id=f"{side}-{case.name}")
    for side in ("ours", "theirs")
    for case in CASES
    if side == "ours" or case.theirs is not Theirs.HANGS
]


@pytest.mark.parametrize(("side", "case"), PAIRS)
def test_a_driver_that_breaks_the_rules(bench: Benches, side: str, case: Case) -> None:
    """DEVICE_NEEDS_RESET with its configuration interrupt; no buffer comes back; a reset mends it."""
    found = bench("rng")
    transport = found.transport()
    avoid = feature_set(Feature.RING_PACKED, Feature.RING_EVENT_IDX) & ~case.features

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, SIZE)]

    run(transport, negotiate(transport, Wants(DeviceId.RNG, 0, 0, (), avoid), setup))
    case.poke(Poke(transport, transport.queues[0]))
    transport.queues[0].notify()
    for _ in range(10):
        if not found.board.wait(0.01) or found.board.interrupt():
            break
    status = transport.read("Status")
    if side == "ours" or case.theirs is Theirs.STOPS:
        assert status & Status.DEVICE_NEEDS_RESET
        assert transport.read("InterruptStatus") & Interrupt.CONFIG
        assert found.board.interrupt()
    else:
        assert not status & Status.DEVICE_NEEDS_RESET
    run(transport, transport.reset())
    assert transport.read("InterruptStatus") == 0
    transport = found.transport()
    device = RngDevice(transport, WANTS)
    run(transport, device.start())
    assert len(run(transport, device.read(100))) == 100


def test_a_device_that_needs_a_reset_does_nothing_else(bench: Benches) -> None:
    """Good buffers behind a bad one are not touched, kicks are not heard, and the driver cannot clear the bit (2.1)."""
    found = bench("rng")
    transport = found.transport()

    async def setup(features: int) -> list[MmioQueue]:
        return [await transport.setup_queue(0, SIZE)]

    avoid = feature_set(Feature.RING_PACKED, Feature.RING_EVENT_IDX)
    run(transport, negotiate(transport, Wants(DeviceId.RNG, 0, 0, (), avoid), setup))
    queue = transport.queues[0]
    poke = Poke(transport, queue)
    poke.available(SIZE)
    queue.notify()
    assert transport.read("Status") & Status.DEVICE_NEEDS_RESET
    poke.descriptor(0, poke.buffer, 16, W, 0)
    poke.memory.write(poke.buffer, bytes(16))
    poke.available(0)
    queue.notify()
    found.board.wait(0.01)
    assert bytes(poke.memory.read(poke.buffer, 16)) == bytes(16)
    assert poke.memory.load16(poke.layout.device + 2) == 0
    if found.side == "ours":  # QEMU stores what it is given
        transport.write("Status", 0x0F)
        assert transport.read("Status") & Status.DEVICE_NEEDS_RESET
