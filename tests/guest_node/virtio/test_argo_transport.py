"""VirtIO-Argo, front end against back end: the same drivers and models as over any transport.

Source: docs/virtio-argo.md; VIRTIO 1.4, 2 and 3.1; the costs are those that the VirtIO-Argo notes of the Xen community
claim (at most two sendv for a request, one where bytes travel with descriptors, fewer when batched).
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from guest_node.virtio.argo_back import ArgoBackend, Client
from guest_node.virtio.argo_device import OFFERED
from guest_node.virtio.argo_front import ArgoTransport, discover
from guest_node.virtio.drivers.rng import RngDevice
from guest_node.virtio.frontend import DeviceBroken
from guest_node.virtio.model import Model
from guest_node.virtio.models.rng import RngModel
from hmx.argo.abi import DOMID_ANY, Address
from hmx.errno import Errno
from hmx.virtio.argo import Variant
from hmx.virtio.chain import QueueFull
from hmx.virtio.features import Feature, feature_set, has
from hmx.virtio.msg_client import Call
from hmx.virtio.status import Status
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import (
    ECHO_ID,
    PORT,
    EchoModel,
    KeepingModel,
    World,
    answer_to,
    ask,
    live,
)

EVENT_IDX = feature_set(Feature.RING_EVENT_IDX)
PACKED = feature_set(Feature.RING_PACKED)
AVOIDS = (0, PACKED, EVENT_IDX, PACKED | EVENT_IDX)
VARIANTS = tuple(Variant)


def sendvs(world: World, transport: ArgoTransport) -> tuple[int, int]:
    """Calls of sendv up to now: the front end's, the back end's."""
    assert world.backend is not None
    return transport.bus.traffic.sendv, world.backend.traffic.sendv  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("avoid", AVOIDS)
def test_every_request_gets_its_own_answer(variant: Variant, avoid: int) -> None:
    """VIRTIO 2.6: whatever the format, each chain comes back once with what the device wrote into it."""

    async def main() -> None:
        world = World()
        backend = await world.serve(lambda: EchoModel((16, 4)))
        transport, (features, queues) = await world.device(variant=variant, avoid=avoid)
        assert features & avoid == 0 and transport.device_id == ECHO_ID
        dice = random.Random(avoid)
        for turn in range(300):
            queue = queues[turn & 1]
            data, room = dice.randbytes(dice.choice((0, 1, 16, 100, 5000))), dice.choice((0, 1, 17, 4097))
            if data or room:
                assert await ask(queue, data, room) == answer_to(data, room)[:room]
        assert not backend.faults and transport.under_way == 0

    simulate(main)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("avoid", AVOIDS)
def test_answers_in_any_order_find_their_requests(variant: Variant, avoid: int) -> None:
    """VIRTIO 2.6: a device may return chains in any order; many tasks have one under way each."""

    async def main() -> None:
        world = World(7)
        dice = world.random

        async def delay() -> None:
            if dice.random() < 0.7:
                await asyncio.sleep(dice.random() * 0.01)

        await world.serve(lambda: EchoModel((16,), delay))
        _, (_, (queue,)) = await world.device(variant=variant, avoid=avoid)

        async def one(number: int) -> None:
            for turn in range(20):
                data = number.to_bytes(2, "little") + turn.to_bytes(2, "little") + bytes(dice.randrange(300))
                room = dice.randrange(1, 6000)
                while True:
                    try:
                        future = queue.submit((data[:3], data[3:]), room)
                        break
                    except QueueFull:
                        await queue.room()
                await queue.kick()
                assert await future == answer_to(data, room)[:room]

        async with asyncio.TaskGroup() as tasks:
            for number in range(12):
                tasks.create_task(one(number))

    simulate(main)


@pytest.mark.parametrize(
    ("variant", "data", "room", "front", "back"),
    [
        (Variant.INLINE, 4096, 1, 1, 1),
        (Variant.INLINE, 16, 4097, 1, 1),
        (Variant.MIRROR, 4096, 1, 2, 2),
        (Variant.MIRROR, 0, 64, 1, 2),
        (Variant.MIRROR, 64, 0, 2, 1),
    ],
)
@pytest.mark.parametrize("avoid", AVOIDS)
def test_what_a_request_costs(avoid: int, variant: Variant, data: int, room: int, front: int, back: int) -> None:
    """VirtIO-Argo notes: worst case two sendv for a request; with descriptor and payload gathered by iovs, one."""

    async def main() -> None:
        world = World()
        await world.serve()
        transport, (_, (queue,)) = await world.device(variant=variant, avoid=avoid)
        await asyncio.sleep(1)
        notifies = [world.rig.guests[domid].counts["notify"] for domid in (1, 2)]
        for _ in range(40):
            before = sendvs(world, transport)
            await ask(queue, bytes(data), room)
            after = sendvs(world, transport)
            assert (after[0] - before[0], after[1] - before[1]) == (front, back)
        # Beside those calls there are none: nobody can have been refused, so nobody has to be woken.  (The back end
        # looks after its front ends twice a second.)
        assert world.rig.guests[1].counts["notify"] == notifies[0]
        assert world.rig.guests[2].counts["notify"] <= notifies[1] + 1

    simulate(main)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("avoid", AVOIDS)
def test_many_requests_share_a_call(avoid: int, variant: Variant) -> None:
    """VirtIO-Argo notes: sendv is issued in notify, so its cost is shared by all that was added before it."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((64,)))
        transport, (_, (queue,)) = await world.device(variant=variant, avoid=avoid, size=64)
        before = sendvs(world, transport)
        futures = [queue.submit((bytes(4096),), 1024) for _ in range(32)]
        await queue.kick()
        await asyncio.gather(*futures)
        after = sendvs(world, transport)
        most = 2 if variant is Variant.MIRROR else 1
        assert after[0] - before[0] <= most and after[1] - before[1] <= most

    simulate(main)


def test_tasks_that_kick_together_share_a_message() -> None:
    """Sixteen tasks with one request each under way: in the long run a message carries many of them."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((64,)))
        transport, (_, (queue,)) = await world.device(size=64)
        before = sendvs(world, transport)

        async def one() -> None:
            for _ in range(50):
                await ask(queue, bytes(16), 512)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(16):
                tasks.create_task(one())
        after = sendvs(world, transport)
        assert after[0] - before[0] < 16 * 50 / 8 and after[1] - before[1] < 16 * 50 / 8

    simulate(main)


def test_nothing_is_sent_before_the_kick() -> None:
    """The Queue contract: nothing reaches the device before kick."""

    async def main() -> None:
        world = World()
        await world.serve()
        transport, (_, (queue,)) = await world.device()
        before = sendvs(world, transport)
        future = queue.submit((b"x",), 1)
        await asyncio.sleep(1)
        assert sendvs(world, transport) == before and not world.models[0].seen  # type: ignore[union-attr]
        await queue.kick()
        assert await future == answer_to(b"x", 1)[:1]
        before = sendvs(world, transport)
        await queue.kick()
        assert sendvs(world, transport) == before

    simulate(main)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_larger_than_a_message(variant: Variant) -> None:
    """A sendv takes no more than the peer's ring holds: larger requests and answers come in pieces, in order."""

    async def main() -> None:
        world = World()
        await world.serve(ring_len=16384)
        transport, (_, (queue,)) = await world.device(variant=variant, ring_len=8192)
        dice = random.Random(5)
        for size in (8000, 50_000, 200_001):
            data = dice.randbytes(size)
            assert await ask(queue, data, 2 * size) == answer_to(data, 2 * size)[: 2 * size]
        assert transport.bus.traffic.sendv > 20  # type: ignore[attr-defined]

    simulate(main)


def test_a_device_may_write_less_than_there_is_room_for() -> None:
    """VIRTIO 2.6: the used length counts what was written; the future has exactly that."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((16,), short=5))
        _, (_, (queue,)) = await world.device()
        assert await ask(queue, b"abc", 100) == answer_to(b"abc", 95)[:95]
        assert await ask(queue, b"abc", 3) == b""

    simulate(main)


def test_the_registers() -> None:
    """VIRTIO 3.1.1 and virtio-msg: status, features, configuration with its generation, queues, one queue's reset."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((16, 8)))
        transport = await world.connect()
        await transport.reset()
        assert await transport.status() == 0
        assert await transport.set_status(Status.ACKNOWLEDGE | Status.DRIVER) == 3
        offered = await transport.device_features()
        assert has(offered, Feature.VERSION_1) and has(offered, Feature.ACCESS_PLATFORM)
        assert not has(offered, Feature.RING_INDIRECT_DESC) and not has(offered, Feature.NOTIFICATION_DATA)
        await transport.set_driver_features(offered | 1 << 70)
        assert await transport.set_status(11) == 3, "what was not offered may not be accepted"
        await transport.set_driver_features(offered)
        assert await transport.set_status(11) == 11
        assert await transport.queue_max(0) == 16 and await transport.queue_max(1) == 8
        assert await transport.queue_max(2) == 0
        with pytest.raises(DeviceBroken):
            await transport.setup_queue(1, 9)
        queue = await transport.setup_queue(0, 16)
        assert await transport.set_status(15) == 15
        assert await transport.read_config(3, 30) == bytes(range(3, 33))
        assert await transport.write_config(4, b"\xff\xfe")
        assert await transport.read_config(0, 8) == b"\0\1\2\3\xff\xfe\6\7"
        assert await ask(queue, b"a", 1) == b"\x3b"
        await transport.reset_queue(0)
        with pytest.raises(DeviceBroken):
            queue.submit((b"a",), 1)
        again = await transport.setup_queue(0, 4)
        assert await ask(again, b"a", 1) == b"\x3b"
        with pytest.raises(DeviceBroken):
            await transport.reset_queue(5)
        assert await transport.status() == 15, "a refusal breaks nothing"

    simulate(main)


def test_configuration_changes_are_told() -> None:
    """virtio-msg EVENT_CONFIG; SET_CONFIG with a generation that is no longer the current one is refused."""

    async def main() -> None:
        world = World()
        await world.serve()
        transport, _ = await world.device()
        told: list[int] = []
        transport.on_config = lambda: told.append(1)
        before = await transport.read_config(0, 4)
        model = world.models[0]
        assert isinstance(model, EchoModel)
        model.configuration[0] = 0x77
        model.on_config()
        await asyncio.sleep(0.1)
        assert told == [1]
        assert not await transport.write_config(0, b"\1"), "written without having seen the change"
        assert before[0] == 0 and await transport.read_config(0, 1) == b"\x77"
        assert await transport.write_config(0, b"\1")

    simulate(main)


def test_a_configuration_is_read_whole() -> None:
    """VIRTIO 2.5.1: one that is larger than a message, and changes in between, is read again until it did not."""

    async def main() -> None:
        model = EchoModel()
        model.configuration = bytearray(500)
        world = World()
        await world.serve(lambda: model)
        transport, _ = await world.device()
        bus, reads = transport.bus, 0
        call = bus.call

        async def changing(request: Call[Any]) -> Any:
            nonlocal reads
            answer = await call(request)
            reads += 1
            if reads in (1, 4):  # after the first part, and again
                model.configuration = bytearray([reads]) * 500
            return answer

        bus.call = changing  # type: ignore[assignment, method-assign]
        assert await transport.read_config(0, 500) == b"\4" * 500
        assert reads == 9

    simulate(main)


def test_the_real_drivers_do_not_notice() -> None:
    """A front-end driver knows a Transport and no more: the entropy device, through an implicit destination's shape."""

    async def main() -> None:
        world = World()
        driver = await world.driver(2)
        backend = ArgoBackend(driver, PORT)
        backend.add_device(3, lambda client: RngModel(random.Random(client.domid).randbytes))
        await backend.start()
        bus = await discover(await world.driver(1), Address(PORT, 2))
        assert list(bus.devices) == [3]
        device = RngDevice(bus.devices[3])
        await device.start()
        dice = random.Random(1)
        assert await device.read(10_000) == b"".join(dice.randbytes(size) for size in (4096, 4096, 1808))
        await bus.close()

    simulate(main)


def test_buffers_made_available_before_driver_ok() -> None:
    """VIRTIO 2.1: a device consumes nothing before DRIVER_OK, and then looks at what is there although nobody kicks."""

    async def main() -> None:
        world = World()
        await world.serve()
        transport = await world.connect()
        await transport.reset()
        await transport.set_status(3)
        await transport.set_driver_features(await transport.device_features())
        await transport.set_status(11)
        queue = await transport.setup_queue(0, 8)
        future = queue.submit((b"a",), 1)
        await queue.kick()
        await asyncio.sleep(1)
        assert not world.models[0].seen  # type: ignore[union-attr]
        await transport.set_status(15)
        assert await future == b"\x3b"

    simulate(main)


def test_hot_plug() -> None:
    """virtio-msg EVENT_DEVICE: devices come and go while the bus lives."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        bus = await discover(await world.driver(1), Address(PORT, 2))
        events: list[tuple[int, bool]] = []
        bus.on_device = lambda number, present: events.append((number, present))
        backend.add_device(9, lambda client: EchoModel((8,)))
        backend.add_device(300, lambda client: EchoModel((8,)))
        await asyncio.sleep(0.1)
        assert events == [(9, True), (300, True)] and sorted(bus.devices) == [0, 9, 300]
        transport = bus.devices[9]
        _, (queue,) = await live(transport)
        assert await ask(queue, b"a", 1) == b"\x3b"
        backend.remove_device(9)
        future = queue.submit((b"a",), 1)
        await asyncio.sleep(0.1)
        assert events[2:] == [(9, False)] and sorted(bus.devices) == [0, 300]
        with pytest.raises(DeviceBroken):
            await future
        with pytest.raises(DeviceBroken):
            await transport.reset()
        with pytest.raises(ValueError, match="there already"):
            backend.add_device(300, lambda client: EchoModel())
        other = await discover(await world.driver(3), Address(PORT, 2))
        assert sorted(other.devices) == [0, 300]

    simulate(main)


def test_a_device_can_be_refused() -> None:
    """The error reply, which virtio-msg lacks: its errno reaches who asked, and nobody else is hurt."""

    async def main() -> None:
        world = World()

        def make(client: Client) -> Model:
            if client.domid == 1:
                raise OSError(int(Errno.EACCES), "not for you")
            return EchoModel()

        driver = await world.driver(2)
        backend = ArgoBackend(driver, PORT)
        backend.add_device(0, make)
        await backend.start()
        with pytest.raises(OSError) as refused:
            await world.connect(1)
        assert refused.value.errno == Errno.EACCES
        _, (_, (queue,)) = await world.device(3)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


def test_variants_are_agreed_on() -> None:
    """HELLO names the variants that the front end speaks; a back end without any of them refuses."""

    async def main() -> None:
        world = World()
        await world.serve(variants=(Variant.MIRROR,))
        with pytest.raises(OSError) as refused:
            await world.connect(1, Variant.INLINE)
        assert refused.value.errno == Errno.EOPNOTSUPP
        transport = await world.connect(1, "mirror")
        assert transport.bus.variant is Variant.MIRROR  # type: ignore[attr-defined]

    simulate(main)


def test_nobody_serves() -> None:
    """sendv's own answer: no ring at that port is ECONNREFUSED, no such domain ESRCH."""

    async def main() -> None:
        world = World()
        await world.driver(2)
        with pytest.raises(ConnectionRefusedError):
            await world.connect()
        with pytest.raises(ProcessLookupError):
            await discover(await world.driver(1), Address(PORT, 99))
        assert not list(world.drivers[1].rings)

    simulate(main)


def test_front_ends_do_not_see_each_other() -> None:
    """One model for each front end, also for two in one domain."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        lives = [await world.device(domid) for domid in (1, 3, 3)]
        for index, (_, (_, (queue,))) in enumerate(lives):
            assert await ask(queue, bytes([index]), 1) == bytes([index ^ 0x5A])
        assert [model.seen for model in world.models] == [[(0, bytes([i]), 1)] for i in range(3)]  # type: ignore[union-attr]
        assert len({client.address for client in backend.clients}) == 3
        # A ring for anybody and one for each domain, none for each front end.
        assert sorted(ring.partner for ring in world.drivers[2].rings) == [1, 3, DOMID_ANY]
        await lives[1][0].close()
        await asyncio.sleep(0.1)
        assert await ask(lives[2][1].queues[0], b"a", 1) == b"\x3b"
        await lives[2][0].close()
        await asyncio.sleep(0.1)
        assert sorted(ring.partner for ring in world.drivers[2].rings) == [1, DOMID_ANY]
        assert world.left == [(3, "bye"), (3, "bye")]

    simulate(main)


def test_without_a_ring_of_its_own_a_front_end_shares() -> None:
    """A hypervisor lets a domain have 128 rings: who finds none left comes through the common one."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        world.rig.guests[2].refuse = lambda op, detail: -Errno.ENOSPC if detail == (PORT, 1) else None
        _, (_, (queue,)) = await world.device()
        assert await ask(queue, bytes(100_000), 1) == b"\x5a"
        assert backend.shared == 1

    simulate(main)


def test_one_partner_without_mac_permissive() -> None:
    """Where rings for anybody are refused, a back end serves the one domain that it names."""

    async def main() -> None:
        world = World(mac_permissive=False)
        with pytest.raises(PermissionError):
            await world.serve()
        await world.driver(1)
        await world.serve(partner=1)
        _, (_, (queue,)) = await world.device()
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


def test_requests_that_are_kept_are_answered_later() -> None:
    """A receiving queue: the model keeps the buffers and completes them when there is something, in any order."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((16,)))
        _, (_, (queue,)) = await world.device()
        futures = [queue.submit((), 100) for _ in range(16)]
        await queue.kick()
        await asyncio.sleep(0.1)
        kept = list(world.models[0].kept)  # type: ignore[union-attr]
        for index in (5, 0, 15):
            kept[index].complete(b"%d" % index)
            assert await futures[index] == b"%d" % index
        with pytest.raises(RuntimeError):
            kept[5].complete(b"again")
        with pytest.raises(ValueError, match="room for 100"):
            kept[6].complete(bytes(101))
        kept[6].complete(bytearray(b"fine"))
        assert await futures[6] == b"fine"

    simulate(main)


def test_a_cancelled_request_takes_nothing_with_it() -> None:
    """Who waits may be cancelled; the chain comes back all the same and its place is free again."""

    async def main() -> None:
        world = World()
        await world.serve(lambda: KeepingModel((4,)))
        transport, (_, (queue,)) = await world.device(size=4)
        futures = [queue.submit((b"x",), 10) for _ in range(2)]
        await queue.kick()
        await asyncio.sleep(0.1)
        futures[0].cancel()
        for request in list(world.models[0].kept):  # type: ignore[union-attr]
            request.complete(b"y")
        assert await futures[1] == b"y"
        assert transport.under_way == 0
        assert len([queue.submit((b"x",), 10) for _ in range(2)]) == 2

    simulate(main)


def test_the_example_of_the_document() -> None:
    """docs/virtio-argo.md shows a request and its answer, byte by byte."""
    text = (Path(__file__).parents[3] / "docs" / "virtio-argo.md").read_text()
    block = text.partition("### An example")[2].split("```")[1].partition("\n")[2]
    messages = "\n".join(line.partition("#")[0] for line in block.splitlines()).strip().split("\n\n")
    shown = [bytes.fromhex(message.replace("\n", "")) for message in messages]

    async def main() -> None:
        world = World()
        await world.serve(lambda: EchoModel((4,)))
        _, (_, (queue,)) = await world.device(avoid=PACKED | EVENT_IDX, size=4)
        front, back = world.rig.guests[1], world.rig.guests[2]
        front.sent, back.sent = [], []
        assert await ask(queue, b"abc", 5) == b";89;8"
        assert [front.sent[0][2], back.sent[0][2]] == shown

    simulate(main)


def test_what_has_no_use_here_is_not_shown() -> None:
    """Indirect tables would have to travel, and there is no kick apart: a driver does not see them, whoever offers."""

    async def main() -> None:
        world = World()
        useless = feature_set(Feature.RING_INDIRECT_DESC, Feature.NOTIFICATION_DATA)
        await world.serve(features=OFFERED | useless)
        transport = await world.connect()
        await transport.reset()
        assert await transport.device_features() == OFFERED

    simulate(main)


@pytest.mark.parametrize("avoid", [0, PACKED])
def test_in_order(avoid: int) -> None:
    """VIRTIO 2.6: a back end may offer IN_ORDER; a model that completes in any order is then waited for."""

    async def main() -> None:
        world = World(5)

        async def delay() -> None:
            await asyncio.sleep(world.random.random() * 0.01)

        await world.serve(lambda: EchoModel((16,), delay), features=OFFERED | feature_set(Feature.IN_ORDER))
        _, (features, (queue,)) = await world.device(avoid=avoid)
        assert has(features, Feature.IN_ORDER)
        done: list[int] = []

        async def one(number: int) -> None:
            assert await ask(queue, bytes([number]) * 9, 20) == answer_to(bytes([number]) * 9, 20)[:20]
            done.append(number)

        for _ in range(5):
            done.clear()
            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(one(number))
            assert done == sorted(done)

    simulate(main)
