"""The ITS beyond the golden table: its command queue, errors, counters, and the LPI configuration table.

Source: Arm IHI 0069 chapter 5 and 12.18.
"""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Final

import pytest

from hmx import arm_map
from hmx.trap import Arch, Kind, Outcome
from hv_node.interrupts.gicr import LPIS_A_STEP
from hv_node.interrupts.its import COMMANDS, STEPS, parse
from tests.doubles.gic_model import CONFIG_TABLE, QUEUE, Rig
from tests.doubles.machine import Guest, Machine
from tests.hv_node.test_gic_frames import ready
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

DEVICE, EVENT, LPI = 0x77, 5, 8200


def command(code: int, device: int = 0, low: int = 0, high: int = 0, third: int = 0, fourth: int = 0) -> bytes:
    return struct.pack("<4Q", code | device << 32, high << 32 | low, third, fourth)


MAPD = command(0x08, DEVICE, 4, third=1 << 63)
MAPC = command(0x09, third=1 << 63 | 0 << 16 | 3)
MAPTI = command(0x0A, DEVICE, EVENT, LPI, 3)
MOVI, INT, CLEAR, SYNC, MAPI, INV, INVALL, MOVALL, DISCARD = 1, 3, 4, 5, 11, 12, 13, 14, 15


def mapped(cpus: int = 1) -> Rig:
    rig = ready(cpus)
    for vcpu in range(cpus):
        rig.gicrs[vcpu].write(0x70, CONFIG_TABLE | 15, 8)
        rig.gicrs[vcpu].write(0, 1)
    rig.config[LPI] = 0xA1
    rig.its.write(0, 1, 4)
    assert [rig.its.execute(raw) for raw in (MAPD, MAPC, MAPTI)] == [None] * 3
    return rig


def test_commands() -> None:
    """IHI 0069 5.3: number, and doubleword and bits of each argument."""
    found = {
        row.name: (row.number, {arg.name: (arg.dw, arg.high, arg.low, arg.shift, arg.plus) for arg in row.fields})
        for row in COMMANDS
    }
    device, event, collection = (0, 63, 32, 0, 0), (1, 31, 0, 0, 0), (2, 15, 0, 0, 0)
    valid, rdbase = (2, 63, 63, 0, 0), (2, 50, 16, 0, 0)
    interrupt = {"device": device, "event": event}
    assert found == {
        "MOVI": (1, {**interrupt, "collection": collection}),
        "INT": (3, interrupt),
        "CLEAR": (4, interrupt),
        "SYNC": (5, {"rdbase": rdbase}),
        "MAPD": (8, {"device": device, "bits": (1, 4, 0, 0, 1), "itt": (2, 51, 8, 8, 0), "valid": valid}),
        "MAPC": (9, {"collection": collection, "rdbase": rdbase, "valid": valid}),
        "MAPTI": (10, {**interrupt, "intid": (1, 63, 32, 0, 0), "collection": collection}),
        "MAPI": (11, {**interrupt, "collection": collection}),
        "INV": (12, interrupt),
        "INVALL": (13, {"collection": collection}),
        "MOVALL": (14, {"rdbase": rdbase, "rdbase2": (3, 50, 16, 0, 0)}),
        "DISCARD": (15, interrupt),
    }
    assert parse(command(0x02)) is None


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (command(0x02), "COMMAND_UNKNOWN"),
        (command(0x08, 1 << 16, 4, third=1 << 63), "MAPD_DEVICE_OOR"),
        (command(0x08, 1, 16, third=1 << 63), "MAPD_ITTSIZE_OOR"),
        (command(0x08, 0xFFFF, 15, third=1 << 63), None),
        (command(0x09, third=1 << 63 | 1 << 16), "MAPC_PROCNUM_OOR"),
        (command(0x09, third=1 << 63 | 256), "MAPC_COLLECTION_OOR"),
        (command(0x09, third=1 << 63 | 255), None),
        (command(0x0A, DEVICE + 1, EVENT, LPI, 3), "MAPTI_UNMAPPED_DEVICE"),
        (command(0x0A, DEVICE, 32, LPI, 3), "MAPTI_ID_OOR"),
        (command(0x0A, DEVICE, 31, LPI, 3), None),
        (command(0x0A, DEVICE, EVENT, 8191, 3), "MAPTI_PHYSICALID_OOR"),
        (command(0x0A, DEVICE, EVENT, 65536, 3), "MAPTI_PHYSICALID_OOR"),
        (command(0x0A, DEVICE, EVENT, 65535, 3), None),
        (command(0x0A, DEVICE, EVENT, LPI, 256), "MAPC_COLLECTION_OOR"),
        (command(MAPI, DEVICE, EVENT, third=3), "MAPTI_PHYSICALID_OOR"),
        (command(MOVI, DEVICE, EVENT, third=4), "MOVI_UNMAPPED_COLLECTION"),
        (command(MOVI, DEVICE, 6, third=3), "MOVI_UNMAPPED_INTERRUPT"),
        (command(INT, DEVICE, 6), "INT_UNMAPPED_INTERRUPT"),
        (command(CLEAR, DEVICE, 6), "CLEAR_UNMAPPED_INTERRUPT"),
        (command(INV, DEVICE, 6), "INV_UNMAPPED_INTERRUPT"),
        (command(DISCARD, DEVICE, 6), "DISCARD_UNMAPPED_INTERRUPT"),
        (command(INVALL, third=4), "INVALL_UNMAPPED_COLLECTION"),
        (command(MOVALL, third=0, fourth=1 << 16), "MOVALL_PROCNUM_OOR"),
        (command(MOVALL, third=1 << 16, fourth=0), "MOVALL_PROCNUM_OOR"),
        (command(SYNC), None),
    ],
)
def test_errors(raw: bytes, error: str | None) -> None:
    """A command that cannot be executed is counted by the manual's name and changes nothing."""
    rig = mapped()
    assert rig.its.execute(raw) == error
    assert rig.its.errors == ({error: 1} if error else {})
    if error:
        assert rig.its.translate(DEVICE, EVENT) == (LPI, 0)


def test_why_a_message_is_dropped() -> None:
    """Unmapped messages are dropped, and counted by what was missing."""
    rig = mapped()
    assert rig.its.message(DEVICE, EVENT)
    rig.its.execute(command(0x0A, DEVICE, 6, LPI + 1, 9))
    for device, event in ((DEVICE + 1, EVENT), (DEVICE, 7), (DEVICE, 6)):
        assert not rig.its.message(device, event)
    rig.gicrs[0].write(0, 0)
    assert not rig.its.message(DEVICE, EVENT)
    rig.its.write(0, 0, 4)
    assert not rig.its.message(DEVICE, EVENT)
    assert rig.dist.dropped == {
        "device not mapped": 1, "event not mapped": 1, "collection not mapped": 1, "LPIs disabled": 1,
        "ITS disabled": 1,
    }  # fmt: skip


def test_the_queue() -> None:
    """Commands between CREADR and CWRITER are executed when CWRITER is written, round the end of the queue."""
    rig = ready()
    rig.gicrs[0].write(0x70, CONFIG_TABLE | 15, 8)
    rig.gicrs[0].write(0, 1)
    rig.config[LPI] = 0xA1
    rig.its.write(0x80, 1 << 63 | QUEUE, 8)
    for place, raw in enumerate((MAPD, MAPC, MAPTI)):
        rig.queue[place * 32 : place * 32 + 32] = raw
    rig.its.write(0x88, 64, 8)
    assert rig.its.read(0x90) == 0, "not enabled yet"
    rig.its.write(0, 1, 4)
    assert (rig.its.read(0x90), rig.its.translate(DEVICE, EVENT)) == (64, "event not mapped")
    rig.its.write(0x88, 96, 4)
    assert (rig.its.read(0x88), rig.its.translate(DEVICE, EVENT)) == (96, (LPI, 0))
    for place in range(96, 4096, 32):
        rig.queue[place : place + 32] = command(SYNC)
    rig.queue[0:32] = command(INT, DEVICE, EVENT)
    rig.its.write(0x88, 32, 8)
    assert rig.its.read(0x90) == 32 * STEPS, "a turn is bounded"
    assert [rig.its.turn() for _ in range(3)] == [STEPS, 129 - 2 * STEPS, 0]
    assert rig.its.read(0x90) == 32
    assert rig.cpus[0].iar() == LPI
    rig.its.write(0x88, 4096, 8)
    assert rig.its.read(0x88) == 32, "beyond the queue: ignored"
    rig.its.write(0x80, 0, 8)
    assert rig.its.read(0x80) == 1 << 63 | QUEUE, "fixed while enabled"


def test_a_queue_that_is_not_there() -> None:
    """No memory behind CBASER: counted, and the queue is given up."""
    rig = ready()
    rig.its.write(0x80, 1 << 63 | 0x1000, 8)
    rig.its.write(0, 1, 4)
    rig.its.write(0x88, 64, 8)
    assert rig.its.errors == {"QUEUE_FAULT": 1}
    assert rig.its.read(0x90) == 64


def test_registers() -> None:
    """GITS_TYPER: physical LPIs, 8-byte entries, 16 bits of EventID and DeviceID; CTLR: quiescent while off."""
    rig = Rig()
    assert rig.its.read(8) == 1 | 7 << 4 | 15 << 8 | 15 << 13 | 255 << 24
    assert rig.its.read(0, 4) == 1 << 31
    rig.its.write(0, 1, 4)
    assert rig.its.read(0, 4) == 1
    assert (rig.its.read(0xFFE8, 4), rig.its.read(4, 4), rig.its.read(0x100), rig.its.read(0x48)) == (0x3B, 0x43B, 0, 0)


def test_configuration_table() -> None:
    """IHI 0069 5.1.1: a byte an LPI from INTID 8192; what PROPBASER's IDbits leave out is disabled."""
    rig = mapped()
    rig.config[LPI] = 0x47
    rig.its.execute(command(INV, DEVICE, EVENT))
    assert (rig.dist.lpis[LPI].priority, rig.dist.lpis[LPI].enabled) == (0x40, True)
    assert rig.dist.lpis[LPI].group == 1
    rig.gicrs[0].write(0, 0)
    rig.gicrs[0].write(0x70, CONFIG_TABLE | 12, 8)
    rig.gicrs[0].write(0, 1)
    assert not rig.dist.lpis[LPI].enabled, "13 bits: no LPI at all"
    rig.gicrs[0].write(0, 0)
    rig.gicrs[0].write(0x70, 0x7000_0000 | 15, 8)
    rig.gicrs[0].write(0, 1)
    assert not rig.dist.lpis[LPI].enabled, "no memory there"


def test_lpis_overflow_like_all_others() -> None:
    """More LPIs than list registers: all come, each once."""
    rig = mapped()
    for place in range(20):
        rig.config[8300 + place] = 0xA1
        rig.its.execute(command(0x0A, DEVICE, 8 + place, 8300 + place, 3))
        assert rig.its.message(DEVICE, 8 + place)
    got = []
    while (intid := rig.cpus[0].iar()) != 1023:
        got.append(intid)
        rig.end(0, rig.cpus[0].eoir(intid))
        rig.pump()
    assert got == list(range(8300, 8320))


QUEUE_PAGES: Final = 256  # the largest: 32768 commands
FULL: Final = QUEUE_PAGES * 4096


def flooded(raw: bytes) -> tuple[Machine, Guest, Guest]:
    """A guest whose queue is full of one command, and a neighbour; nothing has run of the queue yet."""
    machine = Machine(arch=Arch.AARCH64, cpu="armv8")
    flood, other = machine.guest(1, pages=2 * QUEUE_PAGES), machine.guest(2)
    flood.ram[FULL:] = raw * (FULL // 32)
    for address, value in ((0x80, 1 << 63 | FULL | QUEUE_PAGES - 1), (0, 1)):
        done = flood.trap(Kind.STORE, (value,), address=arm_map.GITS_BASE + address, size=8, privilege=1)
        assert done.outcome == Outcome.DONE
    for place in range(63):  # a full submission ring of stores: they share the turn
        end = FULL - 32 - 32 * (place & 1)
        flood.submit(Kind.STORE, (end,), address=arm_map.GITS_BASE + 0x88, size=8, privilege=1)
    flood.submit(Kind.LOAD, (0,), address=arm_map.GITS_BASE + 0x90, size=8, privilege=1)
    flood.side.publish()
    return machine, flood, other


def test_a_full_queue_takes_bounded_turns() -> None:
    """Contracts 2: each source's turn is bounded.  A neighbour's frames run between any two turns, to the end."""
    machine, flood, other = flooded(command(SYNC))
    core, its = machine.core, flood.hvm.gic.its  # type: ignore[union-attr]
    turns = before = 0
    while core.run(flood.vcpu):
        turns += 1
        progress = (its.creadr - before) // 32
        assert 0 <= progress <= STEPS, f"{progress} commands in one turn"
        before = its.creadr
        served = other.trap(Kind.LOAD, (0,), address=arm_map.GITS_BASE + 0x90, size=8, privilege=1)
        assert served.outcome == Outcome.DONE, "the neighbour is served in between"
    assert its.creadr == its.cwriter == FULL - 32 and not its.busy
    assert turns == -(-(FULL // 32 - 1) // STEPS)
    assert flood.side.completed() == 64


def test_a_command_for_every_lpi_takes_several_turns() -> None:
    """INVALL looks at all LPIs of a redistributor: it is done in parts, and CREADR passes it when all were."""
    machine, flood, _ = flooded(command(SYNC))
    its = flood.hvm.gic.its  # type: ignore[union-attr]
    lpis, count = its._lpis, 8 * STEPS * LPIS_A_STEP
    for intid in range(8192, 8192 + count):
        lpis.attach(intid, 0)
    its._collections[0] = 0
    flood.ram[FULL : FULL + 32] = struct.pack("<4Q", 13, 0, 0, 0)
    lpis.propbaser[0] = 0x4000 | 15
    flood.ram[0x4000 : 0x4000 + 100] = b"\xa1" * 100
    turns = 0
    while its.creadr == 0:
        assert machine.core.run(flood.vcpu) >= STEPS
        turns += 1
    assert turns == 9, "one beyond the parts: the store's own turn had one step less"
    assert [irq.enabled for irq in its._dist.lpis.values()] == [True] * 100 + [False] * (count - 100)


def test_a_queue_goes_on_by_itself_and_the_machine_comes_to_rest() -> None:
    """The loop comes back while commands wait, with no frame of anybody's; then it sleeps."""

    async def main() -> tuple[int, int]:
        machine = Machine(arch=Arch.AARCH64, cpu="armv8")
        inline = InlineMachine(machine.core, random.Random(1))
        memory = SharedMemory(2 * FULL)
        memory.guest.buffer[FULL : 2 * FULL] = command(SYNC) * (FULL // 32)
        inline.create_domain(9, memory, 1, name="flood")
        hvm = machine.core.hvm(9)
        assert hvm is not None and hvm.gic is not None
        its = hvm.gic.its
        its.cbaser, its.enabled, its.cwriter = 1 << 63 | FULL | QUEUE_PAGES - 1, True, FULL - 32
        inline.wake(hvm.vcpus[0])
        for turn in range(10_000):
            await asyncio.sleep(0)
            if not inline._active:
                return its.creadr, turn
        raise AssertionError("it never came to rest")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        creadr, turns = runner.run(main())
    assert creadr == FULL - 32 and turns < 2 * FULL // 32 // STEPS
