"""VirtIO-Argo between parties that do not trust each other: lies end with the liar.

Source: docs/virtio-argo.md, trust; VIRTIO 1.4, 2.1.2 (DEVICE_NEEDS_RESET).  A hostile front end gets an error reply or
a device that needs a reset, a hostile back end a broken device; neither ends anything else.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.drivers.rings import DriverRing
from guest_node.virtio.argo_back import Limits
from guest_node.virtio.argo_image import plan_image
from guest_node.virtio.frontend import DeviceBroken
from guest_node.virtio.model import Request
from hmx.argo.abi import Address
from hmx.argo.calls import Outgoing
from hmx.virtio import msg
from hmx.virtio.argo import MESSAGE_TYPE_VIRTIO, Variant, head
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.msg import ARGO, BusId, HelloData, Message, MsgId, MsgType, Reason
from hmx.virtio.msg_client import Call, Caller
from hmx.virtio.status import Status
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import PORT, EchoModel, KeepingModel, World, ask

BACK = Address(PORT, 2)
SIZE = 16
EVIL = 0x99990


class Raw:
    """A front end that says what it likes: messages out, messages in."""

    def __init__(self, world: World, domid: int) -> None:
        self.world = world
        self.domid = domid
        self.got: list[bytes] = []
        self.caller = Caller(0)
        self.stream = 0

    async def open(self, ring_len: int = 1 << 16) -> None:
        driver = await self.world.driver(self.domid)
        await driver.rings.bind(EVIL, 2, ring_len, self)

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        self.got.append(bytes(payload))
        return True

    def lost(self, ring: DriverRing) -> None:
        raise AssertionError

    def broken(self, cause: BaseException) -> None:
        pass

    async def send(self, data: bytes, message_type: int = MESSAGE_TYPE_VIRTIO) -> None:
        result = await self.world.drivers[self.domid].calls.sendv(BACK, EVIL, (data,), message_type)
        assert result == len(data)
        await asyncio.sleep(0.001)

    async def call(self, call: Call[Any]) -> Any:
        before = len(self.got)
        await self.send(call.message)
        for answer in self.got[before:]:
            if not msg.unpack_message(answer).event:
                return call.result(answer)
        raise AssertionError(f"no answer to {call.message!r}")

    async def hello(self, variant: Variant = Variant.INLINE, window: int = 100_000) -> HelloData:
        found: HelloData = await self.call(self.caller.hello(HelloData(ARGO.number, 60_000, 1 << variant, window, 1)))
        return found

    async def live(self, features: int = feature_set(Feature.VERSION_1, Feature.ACCESS_PLATFORM)) -> None:
        caller = self.caller
        for status in (0, 3):
            await self.call(caller.set_status(status))
        await self.call(caller.set_driver_features(features, 2))
        assert await self.call(caller.set_status(11)) == 11
        _, descriptors, driver, device = plan_image(SIZE, features).layout
        await self.call(caller.set_queue(0, SIZE, descriptors, driver, device))
        assert await self.call(caller.set_status(15)) == 15
        self.stream = 0

    async def status(self) -> int:
        status: int = await self.call(self.caller.get_status())
        return status

    async def publish(
        self, descriptors: bytes, heads: list[int], index: int, payload: bytes = b"", handle: int | None = None
    ) -> None:
        """An update of a split queue: descriptors from 0 on, the available ring from its beginning."""
        available = struct.pack(f"<HH{len(heads)}H", 0, index & 0xFFFF, *heads)
        pieces = [(self.stream if handle is None else handle, len(payload))] if payload else []
        ranges = [(0, descriptors)] if descriptors else []
        ranges.append((16 * SIZE, available))
        await self.send(head(MsgId.PUBLISH, 0, 0, ranges, pieces) + payload)
        self.stream += len(payload)


def descriptor(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    return struct.pack("<QIHH", address, length, flags, following)


async def raw(world: World, domid: int = 3) -> Raw:
    found = Raw(world, domid)
    await found.open()
    await found.hello()
    await found.live()
    return found


async def honest_works(world: World) -> None:
    """Somebody else is served as if nothing were."""
    transport, (_, (queue,)) = await world.device(1)
    data = bytes(range(200))
    assert len(await ask(queue, data, 300)) == 300
    await transport.close()


def test_a_raw_front_end_is_served() -> None:
    """The double speaks the protocol: what follows is refused for its lies and not for its clumsiness."""

    async def main() -> None:
        world = World()
        await world.serve()
        evil = await raw(world)
        await evil.publish(descriptor(0, 3, 1, 1) + descriptor(7 << 32, 5, 2), [0], 1, b"abc")
        assert await evil.status() == 15
        used = [data for data in evil.got if data[1] == MsgId.USED]
        assert len(used) == 1 and used[0].endswith(bytes(b ^ 0x5A for b in b"abcab"))

    simulate(main)


LIES: dict[str, Callable[[Raw], Any]] = {
    "an index far ahead": lambda evil: evil.publish(descriptor(0, 3), [0], 100, b"abc"),
    "a head that is no descriptor": lambda evil: evil.publish(descriptor(0, 3), [SIZE], 1, b"abc"),
    "a descriptor without bytes": lambda evil: evil.publish(descriptor(0, 0), [0], 1),
    "a loop": lambda evil: evil.publish(descriptor(0, 3, 1, 0), [0], 1, b"abc"),
    "readable after writable": lambda evil: evil.publish(
        descriptor(1 << 32, 1, 3, 1) + descriptor(0, 3), [0], 1, b"abc"
    ),
    "an indirect table": lambda evil: evil.publish(descriptor(0, 16, 4), [0], 1, bytes(16)),
    "the same chain twice": lambda evil: evil.publish(descriptor(0, 1), [0, 0], 2, b"ab"),
    "an address elsewhere in the stream": lambda evil: evil.publish(descriptor(1, 3), [0], 1, b"abc"),
    "bytes that did not come": lambda evil: evil.publish(descriptor(0, 4), [0], 1, b"abc"),
    "bytes out of turn": lambda evil: evil.publish(descriptor(0, 3), [0], 1, b"abc", handle=5),
    "more bytes than the window": lambda evil: evil.publish(b"", [], 0, bytes(60_000)),
    "room for more than the window": lambda evil: evil.publish(descriptor(0, 0xFFFFFFFF, 2), [0], 1),
    "a change of the device's part": lambda evil: evil.send(
        head(MsgId.PUBLISH, 0, 0, [(plan_image(SIZE, 0).layout.device, b"\1")], [])
    ),
    "a change beyond the image": lambda evil: evil.send(head(MsgId.PUBLISH, 0, 0, [(1 << 20, b"\1")], [])),
    "a change over the end": lambda evil: evil.send(head(MsgId.PUBLISH, 0, 0, [(0xFFFFFFFF, b"\1")], [])),
    "a message of the other variant": lambda evil: evil.send(head(MsgId.SYNC, 0, 0, [(0, b"\1")], [])),
    "a message of the other side": lambda evil: evil.send(head(MsgId.USED, 0, 0, [(0, b"\1")], [])),
    "changes in DATA": lambda evil: evil.send(head(MsgId.DATA, 0, 0, [(0, b"\1")], [])),
    "an unknown message of the data plane": lambda evil: evil.send(b"\0\xdd" + bytes(40)),
    "a size that lies": lambda evil: evil.send(b"\0\xc0\0\0\0\0\xff\xff" + bytes(40)),
    "half a message behind a whole one": lambda evil: evil.send(head(MsgId.DATA, 0, 0, [], []) + b"\0\xc0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_needs_a_reset(lie: str) -> None:
    """The device says so with an event, serves nothing more, and works again after a reset.  Others notice nothing."""

    async def main() -> None:
        world = World()
        backend = await world.serve(limits=Limits(window=50_000))
        evil = await raw(world)
        await LIES[lie](evil)
        if lie == "more bytes than the window":
            await evil.send(head(MsgId.DATA, 0, 0, [], [(60_000, 1)]) + b"x")
        assert await evil.status() == 15 | Status.DEVICE_NEEDS_RESET, lie
        events = [data for data in evil.got if data[1] == MsgId.EVENT_CONFIG]
        assert len(events) == 1 and events[0][8] & Status.DEVICE_NEEDS_RESET
        assert len(world.trouble) == 1 and world.trouble[0].startswith("device 0")
        await evil.publish(descriptor(evil.stream, 3), [0], 1, b"abc")
        await honest_works(world)
        await evil.live()
        assert await evil.status() == 15
        await evil.publish(descriptor(0, 3, 1, 1) + descriptor(7 << 32, 5, 2), [0], 1, b"abc")
        assert evil.got[-1].endswith(bytes(b ^ 0x5A for b in b"abcab"))
        assert not backend.faults and not world.left[1:]

    simulate(main)


def test_what_is_refused_with_an_error() -> None:
    """Requests that make no sense are answered so; the device stays as it is."""

    async def main() -> None:
        world = World()
        await world.serve()
        evil = Raw(world, 3)
        await evil.open()
        caller = evil.caller

        async def refused(call: Call[Any]) -> Reason:
            with pytest.raises(msg.Refused) as why:
                await evil.call(call)
            return why.value.reason

        assert await refused(caller.hello(HelloData(1, 60_000, 1, 1000, 1))) == Reason.REVISION
        assert await refused(caller.hello(HelloData(ARGO.number, 60_000, 1 << 9, 1000, 1))) == Reason.REVISION
        assert await refused(caller.hello(HelloData(ARGO.number, 255, 1, 1000, 1))) == Reason.INVALID
        assert await refused(caller.hello(HelloData(ARGO.number, 60_000, 1, 0, 1))) == Reason.INVALID
        await evil.hello()
        assert await refused(Caller(5).info()) == Reason.NO_DEVICE
        assert await refused(caller.set_queue(0, 16, 0, 256, 296)) == Reason.STATE
        await evil.live()
        for layout in ((0, 16, 0, 256, 300), (0, 16, 16, 256, 296), (0, 16, 0, 258, 296), (0, 17, 0, 272, 312)):
            await evil.call(caller.set_status(0))
            await evil.call(caller.set_status(3))
            await evil.call(caller.set_driver_features(feature_set(Feature.VERSION_1, Feature.ACCESS_PLATFORM), 2))
            await evil.call(caller.set_status(11))
            assert await refused(caller.set_queue(*layout)) == Reason.INVALID
        assert await refused(caller.set_queue(7, 16, 0, 256, 296)) == Reason.NO_QUEUE
        assert await evil.status() == 11
        before = len(evil.got)
        for junk in (b"", b"\0", b"\0\2", bytes(7), bytes(8), b"\2" + bytes(300), b"\0\5\0\0\0\0\xff\xff"):
            await evil.send(junk)
        assert await evil.status() == 11
        assert [data for data in evil.got[before:-1] if data[1] != MsgId.ERROR] == []

    simulate(main)


def test_who_did_not_say_hello_is_told() -> None:
    """ERROR or BYE with ENOTCONN; a BYE, an answer and noise are not answered: no two back ends ever quarrel."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        evil = Raw(world, 3)
        await evil.open()
        await evil.send(evil.caller.get_status().message)
        await evil.send(head(MsgId.PUBLISH, 0, 0, [(0, b"\1")], []))
        assert [data[:2] for data in evil.got] == [b"\1\x81", b"\2\xc0"]
        assert all(data[-4:] == b"\x6b\0\0\0" for data in evil.got)
        bye = msg.pack_message(Message(MsgType.BUS, 0xC0, 0, 0, bytes(4)))
        response = msg.pack_message(Message(MsgType.BUS | MsgType.RESPONSE, BusId.PING, 0, 0, bytes(4)))
        for silent in (bye, response, b"", b"noise" * 9):
            await evil.send(silent)
        await evil.send(evil.caller.get_status().message, message_type=0x6447724D)
        assert len(evil.got) == 2 and not backend.clients

    simulate(main)


def test_the_number_of_front_ends_is_bounded() -> None:
    """Of one domain, and in all; who goes makes room."""

    async def main() -> None:
        world = World()
        backend = await world.serve(limits=Limits(clients=4, of_a_domain=3))
        first = [await world.connect(1) for _ in range(3)]
        with pytest.raises(OSError, match="refused HELLO"):
            await world.connect(1)
        other = await world.connect(3)
        with pytest.raises(OSError, match="refused HELLO"):
            await world.connect(4)
        await first[0].close()
        await asyncio.sleep(0.01)
        await world.connect(4)
        assert len(backend.clients) == 4 and other.device_id

    simulate(main)


def test_an_impatient_hello_is_answered_once() -> None:
    """While the first is being answered, the same again is the same; afterwards it is a new front end."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        evil = Raw(world, 3)
        await evil.open()
        hello = evil.caller.hello(HelloData(ARGO.number, 60_000, 1, 1000, 1)).message
        calls = world.drivers[3].calls
        for _ in range(3):
            assert await calls.sendv(BACK, EVIL, (hello,), MESSAGE_TYPE_VIRTIO) > 0
        await asyncio.sleep(0.01)
        assert (len(evil.got), len(backend.clients), world.left) == (1, 1, [])
        await evil.send(hello)
        assert (len(evil.got), len(backend.clients), world.left) == (2, 1, [(3, "replaced")])

    simulate(main)


def test_a_flood_of_hellos_leaves_nothing_behind() -> None:
    """Greetings under way are counted like front ends, and one address has one."""

    async def main() -> None:
        world = World()
        backend = await world.serve(limits=Limits(clients=4, of_a_domain=2))
        driver = await world.driver(3)
        caller = Caller(0)
        for port in range(100):
            hello = caller.hello(HelloData(ARGO.number, 60_000, 1, 1000, 1)).message
            await driver.calls.sendv(BACK, port % 10, (hello,), MESSAGE_TYPE_VIRTIO)
        await asyncio.sleep(3)
        assert not backend.clients, "nobody has a ring at these ports"
        assert [ring.partner for ring in world.drivers[2].rings] == [0x7FF4]
        await honest_works(world)

    simulate(main)


def test_a_model_that_fails_harms_its_front_end_only() -> None:
    """A defect of a model is kept for whoever looks; the device needs a reset."""

    async def main() -> None:
        class Failing(EchoModel):
            def request(self, request: Request) -> None:
                if bytes(request.readable) == b"fail":
                    raise ZeroDivisionError("a defect")
                super().request(request)

        world = World()
        backend = await world.serve(Failing)
        _, (_, (queue,)) = await world.device()
        with pytest.raises(DeviceBroken, match="needs a reset"):
            await ask(queue, b"fail", 1)
        assert [type(fault) for fault in backend.faults] == [ZeroDivisionError]
        assert "a defect" in world.trouble[0]
        await honest_works(world)

    simulate(main)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A message with something wrong in it."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        match dice.randrange(4):
            case 0 if changed:
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            case 1 if changed:
                changed[dice.randrange(min(len(changed), 64))] = dice.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[dice.randrange(len(changed) + 1) :]
            case _:
                changed += dice.randbytes(dice.randrange(20))
    return bytes(changed)


def tampering(world: World, domid: int, probability: float, dice: random.Random) -> None:
    """What this domain sends is changed on its way now and then."""
    calls = world.rig.guests[domid]
    send = calls._sendv

    def tampered(message: Outgoing) -> int:
        if dice.random() < probability:
            original = b"".join(bytes(buffer) for buffer in message.buffers)
            data = mutated(original, dice)
            result = send(message._replace(buffers=(data,) if data else ()))
            return len(original) if result >= 0 else result
        return send(message)

    calls._sendv = tampered  # type: ignore[method-assign]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    variant=st.sampled_from(Variant),
    liar=st.sampled_from((1, 2)),
    avoid=st.sampled_from((0, feature_set(Feature.RING_PACKED))),
)
def test_messages_that_were_tampered_with(seed: int, variant: Variant, liar: int, avoid: int) -> None:
    """Whatever one side sends: the other neither raises nor hangs, and goes on with others; a reset ends all."""

    async def main() -> None:
        dice = random.Random(seed)
        world = World(seed)
        backend = await world.serve(lambda: EchoModel((8, 8)))
        _, (_, (other, _)) = await world.device(3, variant)
        transport, (_, queues) = await world.device(1, variant, avoid=avoid, size=8, timeout=1.0)
        tampering(world, liar, 0.3, dice)
        for _ in range(12):
            try:
                futures = []
                for _ in range(dice.randrange(1, 4)):
                    data = dice.randbytes(dice.randrange(1, 90))
                    futures.append(dice.choice(queues).submit((data,), dice.randrange(200)))
                for queue in queues:
                    await queue.kick()
                _, late = await asyncio.wait(futures, timeout=20)
            except OSError:
                late = set()
            if late or dice.random() < 0.3 or not transport.bus.connected:
                try:
                    await transport.reset()
                    for status in (3, 11, 15):
                        if status == 11:
                            await transport.set_driver_features(await transport.device_features() & ~avoid)
                        await transport.set_status(status)
                        if status == 11:
                            queues = tuple([await transport.setup_queue(index, 8) for index in range(2)])
                except OSError:
                    pass
            assert all(future.done() for future in late), "a message that was lost is made good by a reset"
        for driver in world.drivers.values():
            assert driver.failure is None
        assert not backend.faults
        if liar == 1:
            assert await ask(other, b"a", 1) == b"\x3b"

    simulate(main)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
def test_noise(noise: list[bytes], greeted: bool) -> None:
    """Bytes of any kind at the port of a back end."""

    async def main() -> None:
        world = World()
        backend = await world.serve(lambda: KeepingModel())
        evil = Raw(world, 3)
        await evil.open()
        if greeted:
            await evil.hello()
            await evil.live()
        for data in noise:
            await evil.send(data)
        assert world.drivers[2].failure is None and not backend.faults
        transport = await world.connect(1)
        assert transport.device_id == 42

    simulate(main)


def test_rings_that_hold_nonsense() -> None:
    """A ring found corrupt loses messages: the queues that came through it are of no use, and both sides say so."""

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device()
        future = queue.submit((b"a",), 1)
        await queue.kick()
        await asyncio.sleep(0.01)
        for ring in world.drivers[2].rings:
            if ring.partner == 1:
                ring.memory.window.store32(4, 64)
                ring.memory.window.store32(64 + ring.consumer.rx, 3)
        world.rig.guests[2].deliver()
        world.drivers[2].kick()
        await asyncio.sleep(0.1)
        with pytest.raises(DeviceBroken, match="needs a reset"):
            await future
        assert world.trouble
        await transport.reset()
        await world.connect(1)

    simulate(main)


def test_sends_of_the_wrong_size_are_refused_by_argo() -> None:
    """A front end that lied about its ring gets -EMSGSIZE in our place: it is dropped."""

    async def main() -> None:
        world = World()
        await world.serve(EchoModel)
        evil = Raw(world, 3)
        driver = await world.driver(3)
        await driver.rings.bind(EVIL, 2, 512, evil)
        await evil.hello()
        await evil.live()
        await evil.publish(descriptor(7 << 32, 5000, 2), [0], 1)
        await asyncio.sleep(0.1)
        assert world.left == [(3, "gone")]
        await honest_works(world)

    simulate(main)


