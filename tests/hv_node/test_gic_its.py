"""The ITS beyond the golden table: its command queue, errors, counters, and the LPI configuration table.

Source: Arm IHI 0069 chapter 5 and 12.18.
"""

from __future__ import annotations

import struct

import pytest

from hv_node.interrupts.its import COMMANDS, parse
from tests.doubles.gic_model import CONFIG_TABLE, QUEUE, Rig
from tests.hv_node.test_gic_frames import ready

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
