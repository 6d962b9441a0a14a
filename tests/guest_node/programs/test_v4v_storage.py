"""Storage over v4v: the disk's commands (SPC-4, SBC-3), the back end, the guest's program, and hostile requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_node.drivers.v4v import DM
from guest_node.programs import scsi, v4v_disk, v4v_store
from guest_node.programs.arguments import ArgumentError
from guest_node.programs.scsi import Disk, Opcode, Status, cdb, read_sense
from hmx.argo.abi import Address
from hmx.uxen_stor import HEADER, Request, pack_request, unpack_reply
from tests.guest_node.test_probe import simulate
from tests.guest_node.v4v_world import World

GOOD, CHECK = Status.GOOD, Status.CHECK_CONDITION


def failed(disk: Disk, command: bytes, data: bytes = b"", room: int = 1 << 16) -> tuple[int, int]:
    """Sense key and code of a command that must fail."""
    status, returned, sense = disk.execute(command, data, room)
    assert (status, returned, len(sense)) == (CHECK, b"", 18)
    assert sense[0] == 0x70 and sense[7] == 10, "current error, fixed format, ten more bytes"
    return read_sense(sense)[:2]


def test_the_numbers() -> None:
    """Operation codes of SPC-4 and SBC-3, status bytes of SAM-5, sense of SPC-4."""
    assert {row.name: row.value for row in Opcode} == {
        "TEST_UNIT_READY": 0x00, "INQUIRY": 0x12, "START_STOP_UNIT": 0x1B, "READ_CAPACITY": 0x25, "READ": 0x28,
        "WRITE": 0x2A,
    }  # fmt: skip
    assert (GOOD, CHECK) == (0, 2)
    assert [row[:2] for row in (scsi.ILLEGAL_OPCODE, scsi.ILLEGAL_ADDRESS, scsi.ILLEGAL_FIELD)] == [
        (5, 0x20), (5, 0x21), (5, 0x24),
    ]  # fmt: skip


def test_inquiry() -> None:
    """36 bytes: a direct access device of SPC-4; the allocation length cuts; vital product data are not here."""
    status, data, _ = Disk(8).execute(bytes((0x12, 0, 0, 0, 36, 0)), b"", 1000)
    assert status == GOOD and len(data) == 36
    assert data[:5] == bytes((0, 0, 6, 2, 31)) and data[8:] == b"Argosy  v4v disk        1   "
    assert Disk(8).execute(bytes((0x12, 0, 0, 0, 5, 0)), b"", 1000).data == data[:5]
    assert Disk(8).execute(bytes((0x12, 0, 0, 1, 0, 0)), b"", 4).data == data[:4]
    assert failed(Disk(8), bytes((0x12, 1, 0x80, 0, 36, 0))) == (5, 0x24)


def test_capacity_ready_and_stop() -> None:
    """READ CAPACITY tells the LAST block; STOP is START STOP UNIT without its start bit."""
    disk = Disk(8, 4096)
    assert disk.execute(cdb(Opcode.READ_CAPACITY), b"", 8).data == bytes((0, 0, 0, 7, 0, 0, 16, 0))
    assert disk.execute(cdb(Opcode.TEST_UNIT_READY), b"", 0) == (GOOD, b"", b"")
    assert disk.execute(cdb(Opcode.START_STOP_UNIT, 0, 1), b"", 0) == (GOOD, b"", b"") and not disk.stopped
    assert disk.execute(cdb(Opcode.START_STOP_UNIT), b"", 0) == (GOOD, b"", b"") and disk.stopped


def test_what_is_written_is_read() -> None:
    """Blocks are where they were put; others stay zero; no block, no data."""
    disk = Disk(8)
    assert cdb(Opcode.WRITE, 0x01020304, 0x0506) == bytes((0x2A, 0, 1, 2, 3, 4, 0, 5, 6, 0))
    assert disk.execute(cdb(Opcode.WRITE, 6, 2), b"x" * 1024, 0) == (GOOD, b"", b"")
    assert disk.execute(cdb(Opcode.READ, 5, 3), b"", 1536).data == bytes(512) + b"x" * 1024
    assert disk.execute(cdb(Opcode.READ, 8, 0), b"", 0) == (GOOD, b"", b"")


@pytest.mark.parametrize(("command", "data", "sense"), [
    (cdb(Opcode.READ, 7, 2), b"", (5, 0x21)), (cdb(Opcode.READ, 0xFFFFFFFF, 0xFFFF), b"", (5, 0x21)),
    (cdb(Opcode.WRITE, 8, 1), bytes(512), (5, 0x21)), (cdb(Opcode.WRITE, 0, 1), bytes(511), (5, 0x24)),
    (cdb(Opcode.WRITE, 0, 1), b"", (5, 0x24)), (cdb(Opcode.WRITE, 0, 1), bytes(1024), (5, 0x24)),
    (cdb(Opcode.READ, 0, 8), b"", (5, 0x24)), (b"\xff" * 16, b"", (5, 0x20)), (b"\x28", b"", (5, 0x24)),
    (b"\x12" * 5, b"", (5, 0x24)), (b"\x28" * 9, b"", (5, 0x24)), (b"\x88" + bytes(15), b"", (5, 0x20)),
])  # fmt: skip
def test_what_a_disk_refuses(command: bytes, data: bytes, sense: tuple[int, int]) -> None:
    """Past the end, another length than announced, more than there is room for, a CDB cut short, an unknown command."""
    disk = Disk(8)
    assert failed(disk, command, data, 2048) == sense
    assert disk.execute(cdb(Opcode.READ, 0, 4), b"", 2048).data == bytes(2048), "nothing was written"


@given(st.binary(min_size=1, max_size=16), st.binary(max_size=1100), st.integers(0, 2000))
def test_any_command_ends(command: bytes, data: bytes, room: int) -> None:
    """No CDB raises, none reads more than there is room for, the medium keeps its size."""
    disk = Disk(3)
    status, returned, sense = disk.execute(command, data, room)
    assert len(returned) <= room and bool(sense) == (status != GOOD)
    assert disk.execute(cdb(Opcode.READ, 0, 3), b"", 1536).status == GOOD


def lab(serves: dict[str, list[int]], storage: dict[str, list[int]], store: Any = None, **disk: Any) -> dict[str, Any]:
    """The back end and one guest of each name in `storage`, to their ends; results and exit codes."""

    async def one(world: World, domid: int, program: Any, arguments: dict[str, Any], found: dict[str, Any]) -> None:
        guest = await world.guest(domid, **arguments)
        code = await guest.run(program)
        found[guest.name] = {**guest.results, "code": code}

    found: dict[str, Any] = {}

    async def main() -> None:
        world = World(storage=storage)
        async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
            for name in storage:
                tasks.create_task(one(world, 1 if name == "app" else 2, v4v_disk.main, disk, found))
            await asyncio.sleep(0.3)
            tasks.create_task(one(world, 0, v4v_store.main, {"serves": serves, **(store or {})}, found))

    simulate(main())
    return found


def test_from_the_table_to_the_last_block() -> None:
    """The back end starts late: each guest waits for its units in the bitmap, uses them and stops them."""
    found = lab({"app": [0, 3], "other": [1]}, {"app": [0, 3], "other": [1]}, count=4, blocks=2)
    app, other, host = found["app"], found["other"], found["host"]
    assert (app["code"], other["code"], host["code"]) == (0, 0, 0)
    assert (app["table"], app["units"]) == ([[0, 4, 0], [1, 4, 3]], [0, 3])
    assert (other["table"], other["units"]) == ([[0, 4, 1]], [1])
    assert (app["bytes"], other["bytes"], app["wrong"], other["wrong"]) == (2 * 2 * 4 * 1024, 2 * 4 * 1024, 0, 0)
    assert app["product"] == "Argosy v4v disk 1" and (app["blocks"], app["block"]) == (2048, 512)
    assert app["line"] > 0 < host["line"]
    assert (host["units"], host["failed"], host["refused"]) == (3, 3, 0), "one read past the end of each unit"


def test_a_disk_smaller_than_what_is_asked_for() -> None:
    """Fewer and shorter writes, never beyond the end but for the one that must fail."""
    found = lab({"app": [0]}, {"app": [0]}, {"blocks": 3}, count=9, blocks=2)
    assert (found["app"]["code"], found["app"]["bytes"], found["app"]["blocks"]) == (0, 2 * 1024, 3)


def test_a_unit_that_nobody_serves() -> None:
    """In the table and not in the bitmap: the guest goes on with the others, and says so."""
    found = lab({"app": [1]}, {"app": [0, 1]}, count=1, within=0.5)
    assert (found["app"]["code"], found["app"]["units"]) == (0, [1])


def test_no_unit_at_all() -> None:
    """Nothing in the table, nothing in the bitmap: exit code 1."""

    async def main() -> None:
        guest = await World().guest(1)
        assert await guest.run(v4v_disk.main) == 1
        assert (guest.results["table"], guest.results["units"]) == ([], [])

    simulate(main())


@pytest.mark.parametrize("program", [v4v_disk.main, v4v_store.main])
def test_under_another_hypervisor(program: Any) -> None:
    """The program says that there is no v4v, and ends with 1."""

    async def main() -> None:
        arguments = {"serves": {"other": [0]}} if program is v4v_store.main else {}
        guest = await World("kvm").guest(1, **arguments)
        assert await guest.run(program) == 1
        assert "no v4v" in guest.results["error"]

    simulate(main())


@pytest.mark.parametrize("serves", [
    None, {}, {"nobody": [0]}, {"app": []}, {"app": [128]}, {"app": [True]}, {"app": 0},
])  # fmt: skip
def test_arguments_that_are_no_units(serves: Any) -> None:
    """Each is told with what would be right."""

    async def main() -> None:
        guest = await World().guest(0, serves=serves)
        with pytest.raises(ArgumentError):
            await guest.run(v4v_store.main)

    simulate(main())


def test_hostile_requests_cost_nobody_else_anything() -> None:
    """Junk is counted and unanswered, lies are refused with sense, and the unit goes on to its stop."""

    async def main() -> None:
        world = World()
        host = await world.guest(0, serves={"app": [0]}, blocks=8)
        serving = asyncio.create_task(host.run(v4v_store.main))
        guest = await world.guest(1)

        async def hostile(_: Any) -> int:
            await asyncio.sleep(0.2)
            async with await guest.v4v.datagram(0xD0000, ring=1 << 16) as socket:
                socket.connect(Address(0xD0000, DM))
                for junk in (b"", b"x" * 31, HEADER.pack(1, 0, 0, 0, 0, 0, 0), HEADER.pack(2, 6, 1 << 31, 0, 0, 0, 0)):
                    await socket.send_to(junk)
                lies = (
                    (Request(10, cdb(Opcode.READ, 0, 8), read_size=0xFFFFFFFF), (0, 0)),
                    (Request(11, cdb(Opcode.READ, 0, 8), read_size=512), (5, 0x24)),
                    (Request(12, cdb(Opcode.WRITE, 0, 1), b"y" * 512, b"PAGES"), (5, 0x24)),
                    (Request(13, b"\xff" * 16), (5, 0x20)),
                    (Request(14, b"\x28"), (5, 0x24)),
                    (Request(15, cdb(Opcode.READ, 0, 1), read_size=512), (0, 0)),
                )
                for request, sense in lies:
                    await socket.send_to(pack_request(request))
                    reply = unpack_reply((await socket.receive()).payload)
                    assert (reply.seq, *read_sense(reply.sense)[:2]) == (request.seq, *sense)
                assert reply.data == bytes(512), "the write by page list wrote nothing"
                await socket.send_to(pack_request(Request(99, cdb(Opcode.START_STOP_UNIT))))
                await socket.receive()
            return 0

        async with asyncio.timeout(50):
            assert await guest.run(hostile) == 0
            assert await serving == 0
        assert (host.results["refused"], host.results["failed"], host.results["commands"]) == (4, 4, 7)

    simulate(main())
