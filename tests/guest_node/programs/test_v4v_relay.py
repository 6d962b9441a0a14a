"""Storage units whose disks are behind an implicit destination: transfers as they are, and what a loss looks like."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guest_node.drivers.v4v import DM
from guest_node.guest import Guest
from guest_node.programs import scsi, v4v_disk, v4v_relay, v4v_store
from guest_node.programs.arguments import ArgumentError
from guest_node.programs.scsi import Opcode, Status, cdb, read_sense
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import SpaceQuery
from hmx.uxen_stor import Request, pack_request, unpack_reply
from tests.guest_node.test_probe import simulate
from tests.guest_node.v4v_world import World

HOST, APP, OTHER = 0, 1, 2
UNIT = 0xD0000


def lead(guest: Guest, port: int, to: int) -> None:
    """What a hypervisor with a patch panel does: `port` of domain DOMID_ANY is that port of domain `to`."""
    calls: Any = guest.driver.calls
    sendv, notify = calls.sendv, calls.notify

    def led(address: Address) -> Address:
        return Address(port, to) if address == Address(port, DOMID_ANY) else address

    async def led_sendv(dst: Address, *rest: Any) -> int:
        result: int = await sendv(led(dst), *rest)
        return result

    async def led_notify(entries: Any) -> Any:
        return await notify([SpaceQuery(led(entry.address), entry.space_required) for entry in entries])

    calls.sendv, calls.notify = led_sendv, led_notify


def test_a_disk_of_another_domain() -> None:
    """The library's guest program, unchanged: table, bitmap, writes and reads; the disk is reached by Argo alone."""

    async def main() -> None:
        world = World(storage={"app": [0]})
        host = await world.guest(HOST, serves={"app": [0]}, disks="far")
        app = await world.guest(APP, count=4, blocks=2)
        other = await world.guest(OTHER, serves={"host": [0]}, over="argo")
        lead(host, UNIT, OTHER)
        async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
            codes = [tasks.create_task(app.run(v4v_disk.main)), tasks.create_task(host.run(v4v_store.main))]
            await asyncio.sleep(1)
            assert await app.v4v.storage_ports() == (), "nobody is there: it does not show"
            codes.append(tasks.create_task(other.run(v4v_store.main)))
        assert [code.result() for code in codes] == [0, 0, 0]
        assert (app.results["bytes"], app.results["wrong"]) == (2 * 4 * 1024, 0)
        assert (host.results["shown"], host.results["failed"], host.results["refused"]) == (1, 0, 0)
        assert host.results["commands"] == other.results["commands"]
        assert "line" not in other.results

    simulate(main())


def test_the_disk_goes_and_comes_again() -> None:
    """A command that was under way fails with NOT READY; the unit is gone until there is a disk again."""

    async def main() -> None:
        world = World(storage={"app": [0]})
        host = await world.guest(HOST, serves={"app": [0]}, disks="far", sessions=2)
        app, other = await world.guest(APP), await world.guest(OTHER)
        lead(host, UNIT, OTHER)
        relaying = asyncio.create_task(host.run(v4v_store.main))

        async def uses(_: Any) -> None:
            for answers in (False, True):
                async with await other.argo.datagram(UNIT, partner=HOST) as disk:
                    while await app.v4v.storage_ports() != (UNIT,):  # noqa: ASYNC110
                        await asyncio.sleep(v4v_relay.LOOK_EVERY)
                    async with await app.v4v.datagram(UNIT, partner=DM, ring=1 << 16) as unit:
                        unit.connect(Address(UNIT, DM))
                        await unit.send_to(b"junk")
                        await unit.send_to(pack_request(Request(7, cdb(Opcode.TEST_UNIT_READY))))
                        datagram, source, _ = await disk.receive()
                        if answers:
                            await disk.send_to(b"junk", source)
                            await disk.send_to(datagram, source)
                        await disk.close()
                        reply = unpack_reply((await unit.receive()).payload)
                        assert reply.seq == 7
                        if answers:
                            assert (reply.status, reply.data) == (Status.GOOD, b"")
                        else:
                            assert reply.status == Status.CHECK_CONDITION
                            assert read_sense(reply.sense)[:2] == scsi.NOT_READY[:2] == (2, 4)
                while await app.v4v.storage_ports():  # noqa: ASYNC110
                    await asyncio.sleep(v4v_relay.LOOK_EVERY)

        async def whole(_: Any) -> int:
            return await app.run(uses)

        async with asyncio.timeout(100):
            assert await other.run(whole) == 0
            assert await relaying == 0
        assert (host.results["shown"], host.results["failed"], host.results["refused"]) == (2, 1, 2)

    simulate(main())


@pytest.mark.parametrize("arguments", [
    {"serves": {"app": [0], "other": [0]}, "disks": "far"}, {"serves": {"app": [0]}, "disks": "far", "over": "argo"},
    {"serves": {"app": [0]}, "disks": "there"}, {"serves": {"app": [0]}, "over": "tcp"},
    {"serves": {"app": [0]}, "sessions": -1},
])  # fmt: skip
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    """Two units of one number would share one destination; a relay has guests of v4v."""

    async def main() -> None:
        guest = await World().guest(HOST, **arguments)
        with pytest.raises(ArgumentError):
            await guest.run(v4v_store.main)

    simulate(main())
