"""Property: whatever bytes come as messages of VirtIO-Argo's data plane, they are Malformed, or updates that lie within
them and that `head` packs to the same bytes; applied to both ends of a queue they raise QueueBroken at worst, write
nothing that is not the other side's, and what was applied is never more than what came.  No wish of the other side
keeps an answer from being sent for good.

Input: format and size of a queue, then messages for its two ends.
"""

from __future__ import annotations

import asyncio

from guest_node.virtio.argo_device_queue import DeviceSide
from guest_node.virtio.argo_hold import LONGEST
from guest_node.virtio.argo_image import RingImage, plan_image
from guest_node.virtio.model import Request
from hmx.virtio.argo import Malformed, Update, decode, head, is_data
from hmx.virtio.chain import QueueBroken
from hmx.virtio.features import Feature
from tests.doubles.argo_rig import simulate
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
_SIZES = (1, 2, 4, 16)
_WINDOW = 4096


class _Host:
    """Serves every request at once."""

    def __init__(self) -> None:
        self.broken = False
        self.owed = 0  # bytes of answers that were not sent

    def serve(self, request: Request) -> None:
        """Answer with zeros."""
        assert len(request.readable) <= _WINDOW and request.writable <= _WINDOW
        self.owed += request.writable
        request.complete(bytes(request.writable))

    def answered(self, queue: DeviceSide) -> None:
        """Something to say."""

    def broke(self, why: str) -> None:
        """The queue is of no use."""
        self.broken = True


def one_input(data: bytes) -> None:
    """Messages for one queue, in virtual time."""
    simulate(_exchange, data)


async def _exchange(data: bytes) -> None:
    choices = Choices(data)
    how = choices.u8()
    size = _SIZES[how & 3]
    features = (1 << Feature.RING_PACKED if how & 4 else 0) | (1 << Feature.RING_EVENT_IDX if how & 8 else 0)
    plan = plan_image(size, features)
    host = _Host()
    queue = DeviceSide(host, 0, 0, size, features, _WINDOW)
    front = RingImage(plan.size)
    while choices:
        TALLY.count += 1
        message = choices.take(choices.u8() or 256)
        is_data(message)
        try:
            updates = decode(memoryview(message))
        except Malformed:
            continue
        assert b"".join(_packed(update) for update in updates) == _canonical(message, updates)
        for update in updates:
            _front(front, update, plan.size)
            if not host.broken:
                _back(host, queue, update)
    await asyncio.sleep(2 * LONGEST)
    if not host.broken:
        _send(host, queue)
    assert host.broken or host.owed == 0


def _packed(update: Update) -> bytes:
    pieces = [(handle, len(view)) for handle, view in update.pieces]
    return head(update.msg_id, update.dev_num, update.queue, update.ranges, pieces, update.more) + b"".join(
        bytes(view) for _, view in update.pieces
    )


def _canonical(message: bytes, updates: list[Update]) -> bytes:
    """The message with zeros where nobody looks: tokens and reserved fields."""
    found = bytearray(message)
    at = 0
    for update in updates:
        found[at + 4 : at + 6] = bytes(2)
        found[at + 18 : at + 20] = bytes(2)
        table = at + 24 + 8 * len(update.ranges)
        for index in range(len(update.pieces)):
            found[table + 16 * index + 12 : table + 16 * index + 16] = bytes(4)
        at += int.from_bytes(found[at + 6 : at + 8], "little") + sum(len(view) for _, view in update.pieces)
    return bytes(found)


def _front(image: RingImage, update: Update, size: int) -> None:
    plan = plan_image(16, 0) if size == plan_image(16, 0).size else None
    before = bytes(image.read(0, size))
    allowed = plan.device if plan is not None else ()
    try:
        image.apply(update.ranges, allowed)
    except QueueBroken:
        pass
    after = bytes(image.read(0, size))
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old == new or any(area.start <= index < area.end for area in allowed)
    assert not image.changes(), "what the other side wrote does not travel back"


def _back(host: _Host, queue: DeviceSide, update: Update) -> None:
    try:
        if queue.receive(update):
            queue.run(lambda: not host.broken)
    except QueueBroken:
        host.broken = True
        return
    _send(host, queue)


def _send(host: _Host, queue: DeviceSide) -> None:
    batch = queue.gather()
    if batch is not None:
        size = sum(length for _, length in batch.pieces)
        assert size == sum(map(len, batch.payload))
        host.owed -= size
