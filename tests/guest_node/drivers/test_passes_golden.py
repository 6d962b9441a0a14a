"""The passes over the rings, for an interrupt and for those who wait for room, against the golden table."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dgram import MESSAGE_TYPE_DGRAM, datagram
from guest_node.drivers.stream_table import HEADER, MESSAGE_TYPE_STREAM, Flag
from hmx.argo.abi import MAX_NOTIFY_ENTRIES, RING_HEADER_SIZE, RX_PTR, TX_PTR, Address, NotifyFlag
from hmx.argo.calls import Outgoing, SpaceAnswer, SpaceQuery
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate
from tests.guest_node.drivers.golden_scene import FAR, NEAR, PORT, Scene, answer, core_of, play
from tests.guest_node.drivers.golden_stream import Answer, GoldenRow, driven, expected

# -- the interrupt pass --------------------------------------------------------------------------------------


async def rx_pass(scene: Scene, row: GoldenRow) -> Answer:
    if row.state == "DGRAM":
        socket = await datagram(scene.near, PORT, partner=FAR)
        port = PORT
        socket._reader = asyncio.get_running_loop().create_future()
    else:
        mine, other = await scene.pair("CONNECTED" if row.state == "CONNECTOR" else "ACCEPTED")
        port = mine.port
        if "cannot queue" in row.condition:
            core_of(mine).budget = 100
        if row.event == "interrupt":
            for _ in range(3):
                await other.send(bytes(60))
    (ring,) = scene.near.rings
    if row.event == "corrupt":
        window, tx = ring.memory.window, ring.memory.window.load32(TX_PTR)
        window.write(RING_HEADER_SIZE + tx, b"\x05\0\0\0" + bytes(12))  # a message shorter than its header
        window.store32(TX_PTR, tx + 64)
        scene.near._virq()
        await asyncio.sleep(0.1)
        if row.state == "DGRAM":
            # the pump leaves datagrams to their reader, and the reader recovers
            assert socket.receive_now() is None
        same = window.load32(RX_PTR) == window.load32(TX_PTR) == tx + 64
        return answer(row.state, "-", *(["rx-set-to-tx"] if same else []))
    if row.state == "DGRAM":
        await scene.far_calls.sendv(Address(port, NEAR), 9, (b"x",), MESSAGE_TYPE_DGRAM)
    await asyncio.sleep(0.1)
    effects = set()
    if not ring.consumer.available():
        effects.add("process-until-empty")
    else:
        effects.add("leave-in-ring")
        if row.state == "DGRAM":
            assert socket._reader is not None
            effects |= {"wake-reader"} if socket._reader.done() else set()
        elif ring.held:
            effects.add("stop-ring-pass")
    return answer(row.state, "-", *effects)


@pytest.mark.parametrize("row", driven(lambda row: row.machine == "rx-pass"), ids=str)
def test_rx_pass(row: GoldenRow) -> None:
    """What the pass over the rings does to each kind of ring."""
    play(row, rx_pass)


# -- the notify pass -----------------------------------------------------------------------------------------


class Scripted(RigCalls):
    """Calls whose answers are written down: each send and each query takes the next."""

    results: list[int]
    flags: list[int]
    asked: list[list[SpaceQuery]]

    async def sendv_linked(self, messages: Any) -> list[int]:
        outcome = []
        for message in messages:
            outcome.append(self.results.pop(0))
            if outcome[-1] >= 0:
                assert self.sent is not None
                self.sent.append((message.dst, message.src_port, bytes(message.buffers[0]), message.message_type))
        return outcome

    async def notify(self, entries: Any) -> tuple[int, list[SpaceAnswer]]:
        self.asked.append(list(entries))
        assert len(entries) <= MAX_NOTIFY_ENTRIES
        return 0, [SpaceAnswer(self.flags.pop(0) if self.flags else 0, 1000) for _ in entries]


FLAG_WORDS = {
    "EXISTS and SUFFICIENT": NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT,
    "EXISTS without SUFFICIENT": NotifyFlag.EXISTS,
    "not EXISTS": NotifyFlag(0),
}


@pytest.mark.parametrize("row", driven(lambda row: row.machine == "notify-pass"), ids=str)
def test_notify_pass(row: GoldenRow) -> None:
    """What becomes of those who wait for room when the hypervisor answers."""

    async def main() -> None:
        rig = Rig()
        calls = Scripted(rig, NEAR, 8 << 20)
        calls.results, calls.flags, calls.asked, calls.sent = [], [], [], []
        driver = ArgoDriver(calls, random.Random(1))
        await driver.start()
        await asyncio.sleep(0.01)
        if row.state == "inline":
            observed = await inline(calls, driver, row)
        elif row.state == "waiter":
            observed = await waiter(calls, driver, row)
        elif "over 256" in row.condition:
            observed = await many(calls, driver)
        else:
            driver.rings.freed = True  # something was consumed, nobody waits
            driver.kick()
            await asyncio.sleep(0.01)
            observed = answer("-", "-", *(["notify-with-0-entries"] if calls.asked == [[]] else []))
        assert observed == expected(row)

    simulate(main, limit=10)


async def inline(calls: Scripted, driver: ArgoDriver, row: GoldenRow) -> Answer:
    words = [word.strip() for word in row.condition.split(";")]
    flag = Flag[words[0].removeprefix("pending ")]
    to = Address(PORT, FAR)
    calls.results = [-Errno.EAGAIN]
    driver.controls.post(Outgoing(to, 9, (HEADER.pack(flag, 1),), MESSAGE_TYPE_STREAM), lambda errno, waited: None)
    await asyncio.sleep(0.01)
    assert not calls.results
    calls.flags = [FLAG_WORDS[words[1]]]
    if len(words) > 2:
        calls.results = [{"send works": 8, "send gives EAGAIN": -Errno.EAGAIN}.get(words[2], -Errno.EPERM)]
    driver._virq()
    await asyncio.sleep(0.01)
    assert not calls.results
    assert calls.asked == [[SpaceQuery(to, 8)]]
    kept = len(driver.controls) == 1
    sent = "+".join(str(Flag(HEADER.unpack(data)[0]).name) for _, _, data, _ in calls.sent or []) or "-"
    return answer("-", sent, "keep-entry" if kept else "drop-entry")


async def waiter(calls: Scripted, driver: ArgoDriver, row: GoldenRow) -> Answer:
    calls.flags = [FLAG_WORDS[row.condition]]
    future = driver.want_space(Address(PORT, FAR), 100)
    await asyncio.sleep(0.01)
    if not future.done():
        assert len(driver.wakeups) == 1
        return answer("-", "-", "keep-entry")
    assert len(driver.wakeups) == 0
    return answer("-", "-", "drop-entry", "wake-writers")


async def many(calls: Scripted, driver: ArgoDriver) -> Answer:
    calls.flags = [FLAG_WORDS["EXISTS and SUFFICIENT"]] * 600
    futures = [driver.want_space(Address(port, FAR), 100) for port in range(600)]
    await asyncio.wait(futures)
    assert sorted(len(entries) for entries in calls.asked) == [88, 256, 256]
    assert not len(driver.wakeups)
    return answer("-", "-", "nothing-processed" if not calls.asked else "all-processed")
