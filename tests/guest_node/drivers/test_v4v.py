"""The v4v driver of a guest: Argo's core over uXen's calls (uXen public/v4v.h, common/v4v.c, Linux v4v library)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from guest_node.drivers.dialect import ARGO, V4V
from guest_node.drivers.v4v import ANY, DM, MAX_RING, V4vSockets
from guest_node.kernel.v4v import WAYS, as_argo
from hmx.argo.abi import Address, NotifyFlag
from hmx.argo.consumer import Consumer
from hmx.errno import Errno
from hmx.hypervisors import AX_V4V_LEAF, WHPX_V4V_LEAF
from hmx.trap import Kind
from hmx.v4v import abi
from hmx.v4v.consumer import V4vConsumer
from hmx.v4v.layout import SpaceAnswer
from tests.guest_node.test_probe import simulate
from tests.guest_node.v4v_world import World

PORT = 0xD0000
APP = 1


def errno_of(error: pytest.ExceptionInfo[OSError]) -> int | None:
    return error.value.errno


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In virtual time, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    simulate(bounded())


def test_the_dialects() -> None:
    """Where rx lies, what a datagram is called, who gives out ports how, and who DM is."""
    assert tuple(V4V) == (V4vConsumer, 0x3C2C1DB8, True, 0x7FF1, 0)
    assert tuple(ARGO) == (Consumer, 0x6447724D, False, None, 0)
    assert (V4V.source(DM), V4V.source(5), ARGO.source(DM)) == (0, 5, DM)
    assert (DM, ANY, MAX_RING) == (0x7FF1, 0x7FFF, 4 << 20)


def test_the_ways() -> None:
    """argo.h numbers: hypercall 39 under uXen; CPUID with v4v's own leaves under AX and WHPX (uXen ax.h, dm/whpx)."""
    assert [row[:4] for row in WAYS] == [
        ("uxen", Kind.VMCALL, 0, 39), ("ax", Kind.CPUID, AX_V4V_LEAF, AX_V4V_LEAF),
        ("whpx", Kind.CPUID, WHPX_V4V_LEAF, WHPX_V4V_LEAF),
    ]  # fmt: skip


@pytest.mark.parametrize(("flags", "largest", "wanted", "told"), [
    (0, 0, 5, 0), (abi.NotifyFlag.EXISTS | abi.NotifyFlag.SUFFICIENT, 32, 5, NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT),
    (abi.NotifyFlag.EXISTS | abi.NotifyFlag.PENDING, 32, 5, NotifyFlag.EXISTS),
    (abi.NotifyFlag.EXISTS | abi.NotifyFlag.PENDING, 32, 33, NotifyFlag.EXISTS | NotifyFlag.EMSGSIZE),
    (abi.NotifyFlag.EXISTS | abi.NotifyFlag.PENDING, 0xFFFFFFE0, 1 << 20, NotifyFlag.EXISTS),
    (abi.NotifyFlag.EXISTS | abi.NotifyFlag.SUFFICIENT | abi.NotifyFlag.EMPTY, 32, 33,
     NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT | NotifyFlag.EMPTY),
])  # fmt: skip
def test_answers_of_notify(flags: int, largest: int, wanted: int, told: int) -> None:
    """The flags are permuted between v4v and Argo; what never fits is told instead of waited for."""
    assert as_argo(SpaceAnswer(flags, largest), wanted) == (told, largest)


@pytest.mark.parametrize(("personality", "cpu"), [
    ("uxen", "intel"), ("uxen", "amd"), ("ax", "intel"), ("whpx", "intel"),
])  # fmt: skip
@pytest.mark.parametrize("notification", ["line", "vector-per-cpu"])
def test_datagrams_both_ways(personality: str, cpu: str, notification: str) -> None:
    """The guest names its device model DM and no domain id, both use one port, both are woken by line 7 alone, whether
    Argo has the same line or not.
    """

    async def main() -> None:
        world = World(personality, cpu)
        host, app = await world.sockets(0), await world.sockets(APP, notification)
        async with (
            await host.datagram(PORT, partner=APP) as model,
            await app.datagram(PORT) as unit,
        ):
            unit.connect(Address(PORT, DM))
            for index in range(20):
                await asyncio.sleep(0.01)
                await unit.send_to(b"question %d" % index)
                question = await model.receive()
                assert question == (b"question %d" % index, Address(PORT, APP), len(question.payload))
                await asyncio.sleep(0.01)
                await model.send_to(b"answer %d" % index, question.source)
                assert (await unit.receive()).payload == b"answer %d" % index
            await asyncio.sleep(0.01)
            assert app.driver.counters.virqs >= 20 <= host.driver.counters.virqs
        await app.driver.close()
        await host.driver.close()
        assert world.core.v4v is not None
        assert all(not state.rings for state in world.core.v4v.states.values()), "close unregisters every ring"

    run(main)


def test_many_wait_for_room_and_nothing_is_lost() -> None:
    """A small ring, five senders: -EAGAIN queues the sender, notify wakes it, every datagram comes once, in order."""

    async def main() -> None:
        world = World(seed=3)
        host, app = await world.sockets(0), await world.sockets(APP)
        async with await host.datagram(PORT, partner=APP, ring=256) as model:
            senders = [await app.datagram() for _ in range(5)]
            assert [sender.port for sender in senders] == [1, 2, 3, 4, 5], "ports are given out from 1 upward"

            async def send(number: int) -> None:
                for index in range(40):
                    data = bytes((number, index)) * random.Random(number * 100 + index).randrange(1, 60)
                    await senders[number].send_to(data, Address(PORT, DM))

            tasks = [asyncio.create_task(send(number)) for number in range(5)]
            seen: list[list[int]] = [[] for _ in range(5)]
            for _ in range(200):
                payload = (await model.receive()).payload
                assert payload == bytes(payload[:2]) * (len(payload) // 2)
                seen[payload[0]].append(payload[1])
                await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
            assert seen == [list(range(40))] * 5
            assert app.driver.counters.notifies > 0
        await app.driver.close()

    run(main)


def test_a_placeholder_lets_a_sender_wait_for_the_ring() -> None:
    """uXen create_ring, ring_add: a send to a placeholder waits, and the registration wakes it."""

    async def main() -> None:
        world = World()
        host, app = await world.sockets(0), await world.sockets(APP)
        async with await host.datagram(PORT, partner=APP) as model:
            with pytest.raises(ConnectionRefusedError):
                await model.send_to(b"too early", Address(PORT, APP))
            await host.placeholder(PORT, APP)
            await host.placeholder(PORT, APP)
            answer = await host.space(Address(PORT, APP))
            assert answer == (NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT, 0xFFFFFFE0)
            sending = asyncio.create_task(model.send_to(b"in time", Address(PORT, APP)))
            await asyncio.sleep(5)
            assert not sending.done()
            async with await app.datagram(PORT) as unit:
                assert (await unit.receive()).payload == b"in time"
                assert await sending == 7
        with pytest.raises(PermissionError):
            await app.placeholder(PORT, 0)
        with pytest.raises(PermissionError):
            await app.signal(0)
        before = app.driver.counters.virqs
        await host.signal(APP)
        await asyncio.sleep(0.1)
        assert app.driver.counters.virqs == before + 1

    run(main)


def test_a_datagram_that_a_waiting_ring_will_never_take() -> None:
    """v4v has no flag for it (its PENDING would be for good): the sender is told EMSGSIZE once the ring is there."""

    async def main() -> None:
        world = World()
        host, app = await world.sockets(0), await world.sockets(APP)
        async with await host.datagram(PORT, partner=APP) as model:
            await host.placeholder(PORT, APP)
            sending = asyncio.create_task(model.send_to(bytes(4000), Address(PORT, APP)))
            await asyncio.sleep(1)
            async with await app.datagram(PORT, ring=64):
                with pytest.raises(OSError) as error:
                    await sending
                assert errno_of(error) == Errno.EMSGSIZE

    run(main)


def test_refusals() -> None:
    """A guest has no peer but DM and no wildcard ring; the host has both; a ring over 4 MiB is not asked for."""

    async def main() -> None:
        world = World()
        host, app, other = await world.sockets(0), await world.sockets(APP), await world.sockets(2)
        for partner, expected in ((2, Errno.EPERM), (ANY, Errno.EPERM)):
            with pytest.raises(OSError) as error:
                await app.datagram(9, partner=partner)
            assert errno_of(error) == expected
        with pytest.raises(OSError) as error:
            await app.datagram(9, ring=MAX_RING + 16)
        assert errno_of(error) == Errno.EINVAL
        async with await app.datagram(9) as unit, await other.datagram(9):
            with pytest.raises(PermissionError):
                await unit.send_to(b"x", Address(9, 2))
            with pytest.raises(ConnectionRefusedError):
                await unit.send_to(b"x", Address(9, DM))
            with pytest.raises(OSError) as error:
                await app.datagram(9, partner=0)  # DM by its domain id: the same ring
            assert errno_of(error) == Errno.EADDRINUSE
            with pytest.raises(OSError) as error:
                await app.space(Address(9, 2))
            assert errno_of(error) == Errno.EPERM
            async with await host.datagram(9, partner=ANY) as wildcard:
                await unit.send_to(b"to anybody", Address(9, DM))
                assert (await wildcard.receive()).source == Address(9, APP)

    run(main)


def corrupt(world: World, sockets: V4vSockets, **words: int) -> None:
    """Overwrite words of the only ring's header, as a device model or the guest itself might."""
    (ring,) = sockets.driver.rings
    for at, value in words.items():
        ring.memory.window.store32({"len": 16, "rx": 20, "tx": 24, "message": 64}[at], value)


@pytest.mark.parametrize("words", [
    {"tx": 0xFFFFFFFF}, {"tx": 7}, {"rx": 0xFFFFFFF1}, {"len": 0xFFFFFFFF}, {"len": 0}, {"message": 0xFFFFFFFF},
    {"message": 3}, {"tx": 4032 + 16}, {"rx": 33, "message": 0},
])  # fmt: skip
def test_a_corrupt_ring_header_costs_messages_at_most(words: dict[str, int]) -> None:
    """uXen's safe copy: lengths and pointers found in the ring are not believed; the socket goes on."""

    async def main() -> None:
        world = World()
        host, app = await world.sockets(0), await world.sockets(APP)
        async with await host.datagram(PORT, partner=APP) as model, await app.datagram(PORT, ring=4032) as unit:
            unit.connect(Address(PORT, DM))
            await model.send_to(b"first", Address(PORT, APP))
            corrupt(world, app, **words)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        assert len((await unit.receive()).payload) <= 4032
                        continue
                break
            # The hypervisor's own tx is right: what it sends next repairs the ring.
            got = []
            for index in range(10):
                with contextlib.suppress(BlockingIOError):
                    await model.send_to(b"again %d" % index, Address(PORT, APP), wait=False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        while True:
                            got.append((await unit.receive()).payload)
            assert got and got[-1] == b"again 9"

    run(main)


def test_a_foreign_message_is_not_a_datagram() -> None:
    """A stream's message, or another sender's on a connected socket, is dropped."""

    async def main() -> None:
        world = World()
        host, app = await world.sockets(0), await world.sockets(APP)
        async with await host.datagram(PORT, partner=APP) as model, await app.datagram(PORT) as unit:
            unit.connect(Address(PORT, DM))
            to = Address(PORT, APP)
            assert await host.driver.calls.sendv(to, PORT, (b"stream",), abi.MESSAGE_TYPE_STREAM) == 6
            assert await host.driver.calls.sendv(to, PORT + 1, (b"other",), abi.MESSAGE_TYPE_DGRAM) == 5
            await model.send_to(b"mine", to)
            assert (await unit.receive()).payload == b"mine"
            assert await host.driver.calls.sendv(to, PORT, (b"in ", b"three ", b"parts"), abi.MESSAGE_TYPE_DGRAM) == 14
            assert (await unit.receive()).payload == b"in three parts"

    run(main)


def test_a_guest_without_v4v_says_so() -> None:
    """`guest.v4v` under another hypervisor: ENOSYS; a domain whose v4v is off: what the hypervisor answers."""

    async def main() -> None:
        guest = await World("kvm").guest(APP)
        with pytest.raises(OSError) as error:
            _ = guest.v4v
        assert errno_of(error) == Errno.ENOSYS
        world = World()
        app = await world.sockets(APP)
        assert world.core.v4v is not None
        world.core.v4v.domain_kill(world.core._hvms[APP].domain)
        with pytest.raises(OSError) as error:
            await app.datagram(PORT)
        assert errno_of(error) == Errno.EINVAL

    run(main)
