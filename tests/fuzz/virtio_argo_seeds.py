"""Seeds for the target virtio_argo: what the driver's end of a queue says, in every format."""

from __future__ import annotations

from collections.abc import Iterator

from guest_node.virtio.argo_image import RingImage, plan_image
from hmx.virtio.argo import head
from hmx.virtio.chain import Segment
from hmx.virtio.features import Feature
from hmx.virtio.msg import MsgId
from hmx.virtio.queues import driver_queue

_SIZES = (1, 2, 4, 16)


def updates() -> Iterator[bytes]:
    """A few requests, with their bytes in the same message, ahead of it, or in halves; and noise of the right shape."""
    for how in (2, 3, 6, 7, 10, 14):
        size = _SIZES[how & 3]
        features = (1 << Feature.RING_PACKED if how & 4 else 0) | (1 << Feature.RING_EVENT_IDX if how & 8 else 0)
        plan = plan_image(size, features)
        image = RingImage(plan.size)
        ring = driver_queue(plan.layout, features, image)
        image.forget()
        messages: list[bytes] = []
        for index in range(3):
            ring.add([Segment(5 * index, 5)], [Segment(index << 32, 20)] if index < 2 else [], index)
            if size == 4 and index == 1:
                messages.append(_published(image, ring.publish(), 0, 10))
                break
        else:
            messages.append(_published(image, ring.publish(), 0, 15))
        yield _input(how, messages)
        ahead = head(MsgId.DATA, 0, 0, (), [(0, 4)]) + b"abcd" + head(MsgId.DATA, 0, 0, (), [(4, 11)]) + bytes(11)
        yield _input(how, [ahead, *messages])
    for size in range(4):
        yield _input(size, [head(MsgId.SYNC, 0, 0, [(0, bytes(16)), (16 << size, b"\1\0")], (), more=True)])
    yield _input(0, [head(MsgId.USED, 1, 2, [(0, b"ab"), (9, b"")], [(7, 1), (1 << 32, 0)]) + b"x"])


def _published(image: RingImage, wanted: bool, first: int, size: int) -> bytes:
    del wanted
    return head(MsgId.PUBLISH, 0, 0, image.changes(), [(first, size)]) + bytes(range(size))


def _input(how: int, messages: list[bytes]) -> bytes:
    found = bytes((how,))
    for message in messages:
        found += bytes((len(message),)) + message
    return found
