"""A front end whose back end lies: its device is broken, says why, and works again after a reset.

Source: docs/virtio-argo.md, trust; VIRTIO 1.4, 2.7.8 (the driver does not believe the used ring).
"""

from __future__ import annotations

import asyncio
import struct
from errno import EPROTO

import pytest

from guest_node.virtio.frontend import DeviceBroken
from hmx.argo.abi import Address
from hmx.virtio.argo import MESSAGE_TYPE_VIRTIO, Variant, head
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.msg import MsgId
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import PORT, EchoModel, KeepingModel, World, ask, live

PLAIN = feature_set(Feature.RING_PACKED, Feature.RING_EVENT_IDX)
USED_RING = 80  # of a split queue of 4: descriptors 0, available ring 64, used ring 80 to 118
ROOM = 10


def used(index: int, chain: int, written: int) -> list[tuple[int, bytes]]:
    """The used ring with one element."""
    return [(USED_RING, struct.pack("<HHII", 0, index, chain, written))]


def update(
    ranges: list[tuple[int, bytes]], pieces: list[tuple[int, bytes]], msg_id: MsgId = MsgId.USED, queue: int = 0
) -> bytes:
    lengths = [(handle, len(data)) for handle, data in pieces]
    return head(msg_id, 0, queue, ranges, lengths) + b"".join(data for _, data in pieces)


BAD_QUEUE = {
    "a length without its bytes": (update(used(1, 0, 5), []), "5 bytes are said to be written, 0 of them came"),
    "a length beyond the bytes": (update(used(1, 0, 5), [(0, b"abcd")]), "5 bytes .* 4 of them came"),
    "a length beyond the room": (update(used(1, 0, 11), [(0, b"abcd")]), "room for 10"),
    "more bytes than there is room for": (update([], [(0, bytes(11))]), "at most 10"),
    "bytes with a gap": (update([], [(1, b"a")]), "after 0 bytes"),
    "the same bytes again": (update([], [(0, b"a"), (0, b"a")]), "after 1 bytes"),
    "bytes for nobody": (update([], [(7 << 32, b"a")]), "not under way"),
    "a chain that is not under way": (update(used(1, 3, 0), []), "does not have"),
    "an index far ahead": (update(used(9, 0, 0), []), "at most 1 can be new"),
    "a change of the driver's part": (update([(64, b"\1")], []), "not the other side's"),
    "a change beyond the image": (update([(118, b"\1")], []), "not the other side's"),
}
BAD_MESSAGE = {
    "a message of the other variant": update(used(1, 0, 0), [], MsgId.SYNC_USED),
    "a message of the other side": update([(0, b"a")], [], MsgId.PUBLISH),
    "changes in DATA": update([(USED_RING, b"\0")], [], MsgId.DATA),
    "half a message": update(used(1, 0, 0), [])[:-1],
    "what is no control message": b"\1\2\0\0\0\0\xff\0",
    "an event that was cut": b"\0\x40\0\0\0\0\x0a\0\1\2",
}


async def lie(data: bytes, variant: Variant = Variant.INLINE) -> tuple[World, DeviceBroken, bool]:
    """A request is under way when `data` comes; why the device broke, and whether the connection stands."""
    world = World()
    await world.serve(KeepingModel)
    transport, (_, (queue,)) = await world.device(variant=variant, avoid=PLAIN, size=4)
    future = queue.submit((b"abc",), ROOM)
    await queue.kick()
    await asyncio.sleep(0.01)
    port = transport.bus.port  # type: ignore[attr-defined]
    await world.drivers[2].calls.sendv(Address(port, 1), PORT, (data,), MESSAGE_TYPE_VIRTIO)
    with pytest.raises(DeviceBroken) as broken:
        await asyncio.wait_for(future, 0.1)
    with pytest.raises(DeviceBroken):
        queue.submit((b"abc",), ROOM)
    with pytest.raises(DeviceBroken):
        await queue.kick()
    stands = transport.bus.connected
    _, (queue,) = await live(transport)
    future = queue.submit((b"abc",), ROOM)
    await queue.kick()
    await asyncio.sleep(0.01)
    (request,) = world.models[-1].kept  # type: ignore[union-attr]
    request.complete(b"fine")
    assert await future == b"fine"
    return world, broken.value, stands


@pytest.mark.parametrize("name", BAD_QUEUE)
def test_a_lie_about_a_queue_breaks_the_device(name: str) -> None:
    """The connection stands: it is this device that broke the rules."""
    data, why = BAD_QUEUE[name]

    async def main() -> None:
        _, broken, stands = await lie(data)
        assert broken.errno == EPROTO and stands
        with pytest.raises(DeviceBroken, match=why):
            raise broken

    simulate(main)


@pytest.mark.parametrize("name", BAD_MESSAGE)
def test_a_message_that_is_none_ends_the_connection(name: str) -> None:
    """It may have been for anybody.  A reset says HELLO anew."""

    async def main() -> None:
        world, broken, stands = await lie(BAD_MESSAGE[name])
        assert broken.errno == EPROTO and not stands
        assert world.left == [(1, "replaced")]

    simulate(main)


def test_bytes_in_a_message_that_has_none() -> None:
    """Mirror: bytes come in DATA."""

    async def main() -> None:
        _, broken, stands = await lie(update(used(1, 0, 1), [(0, b"a")], MsgId.SYNC_USED), Variant.MIRROR)
        assert broken.errno == EPROTO and not stands

    simulate(main)


def test_what_is_for_nobody_is_dropped() -> None:
    """A queue that is not ready, a device that is not there, an answer that nobody waits for: sent before they knew."""

    async def main() -> None:
        world = World()
        await world.serve(EchoModel)
        transport, (_, (queue,)) = await world.device(avoid=PLAIN, size=4)
        port = transport.bus.port  # type: ignore[attr-defined]
        other = head(MsgId.USED, 9, 0, used(1, 0, 0), [])
        for data in (update(used(1, 0, 0), [], queue=5), other, b"\1\2\0\0\x77\0\x24\0" + bytes(28)):
            await world.drivers[2].calls.sendv(Address(port, 1), PORT, (data,), MESSAGE_TYPE_VIRTIO)
            await asyncio.sleep(0.01)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)
