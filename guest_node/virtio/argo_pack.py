"""What queues have to say, cut into Argo messages: the two variants of VirtIO-Argo's data plane.

`inline` puts the changes of a queue and the bytes of its buffers into one message, gathered by iovs.  `mirror` sends
the bytes first and the changes in a message of their own.  Either way what queues have to say at one time shares
messages, and what is larger than a message is cut: bytes go ahead in DATA, changes are marked MORE.
Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from hmx.argo.ring import max_message_size
from hmx.virtio.argo import HEAD_SIZE, MAX_MSG_SIZE, PIECE_SIZE, RANGE_SIZE, head
from hmx.virtio.memory import Buffer
from hmx.virtio.msg import MsgId

MOST_BUFFERS: Final = 7  # a sendv takes 8 iovs
SMALL: Final = 8192  # buffers below are joined rather than given an iov of their own
SMALLEST_MESSAGE: Final = 256  # Argo messages that a peer must take: the longest control message, and some progress
_HALF: Final = 512  # ... of rings whose half is smaller, the whole is used
_MOST: Final = 1 << 18

Ranges = list[tuple[int, bytes]]
Pieces = list[tuple[int, int]]
Payload = list[Buffer]


class Batch(NamedTuple):
    """What one queue has to say: changes of its image, and (handle, length) of the bytes that `payload` holds."""

    dev_num: int
    queue: int
    ranges: Ranges
    pieces: Pieces
    payload: Payload


class Unit(NamedTuple):
    """One message of the data plane: its bytes in all, and the buffers that they are gathered from."""

    size: int
    buffers: list[Buffer]


def message_limit(max_message: int) -> int:
    """Bytes of one Argo message for a ring that takes `max_message` at most.

    Half of the ring, so that the next message is copied while this one is read; of a tiny ring all there is, of a huge
    one no more than a kernel likes to keep buffers for.
    """
    half = max_message // 2 & ~15
    return min(half, _MOST) if half >= _HALF else max_message


def largest_in(ring_len: int) -> int:
    """The longest message that comes into a ring of `ring_len` bytes, as long as senders keep to `message_limit`.

    Room for one of these is there after most passes, so most need no notify.
    """
    return message_limit(max_message_size(ring_len))


def pack(batches: Sequence[Batch], sync: MsgId, joined: bool, limit: int) -> list[list[Buffer]]:
    """Argo messages of at most `limit` bytes, each as at most 7 buffers.

    `sync` is the message for changes; `joined`: bytes of buffers stand behind the changes where they fit.
    """
    if len(batches) == 1:
        quick = _quick(batches[0], sync, joined, limit)
        if quick is not None:
            return quick
    ahead: list[Unit] = []
    behind: list[Unit] = []
    for batch in batches:
        data = list(_data(batch, limit))
        changes = list(_changes(batch, sync, limit))
        if joined and data and changes:
            last = _join(batch, sync, data[-1], changes[-1], limit)
            if last is not None:
                data.pop()
                changes[-1] = last
        units = [unit.unit for unit in data] + [unit.unit for unit in changes]
        if joined:
            behind += units
        else:
            ahead += units[: len(data)]
            behind += units[len(data) :]
    return [*_fill(ahead, limit), *_fill(behind, limit)]


def _quick(batch: Batch, sync: MsgId, joined: bool, limit: int) -> list[list[Buffer]] | None:
    """The usual case: one queue, and everything fits."""
    dev_num, queue, ranges, pieces, payload = batch
    size = HEAD_SIZE + (RANGE_SIZE + 2) * len(ranges) + PIECE_SIZE * len(pieces)
    for _, data in ranges:
        size += len(data)
    if size > MAX_MSG_SIZE or size > limit:
        return None
    if not pieces:
        return [[head(sync, dev_num, queue, ranges, ())]] if ranges else []
    for buffer in payload:
        size += len(buffer)
    if size > limit:
        return None
    if joined:
        return [few([head(sync, dev_num, queue, ranges, pieces), *payload])]
    messages = [few([head(MsgId.DATA, dev_num, queue, (), pieces), *payload])]
    if ranges:
        messages.append([head(sync, dev_num, queue, ranges, ())])
    return messages


class _Part(NamedTuple):
    """A unit, and what it was made of."""

    unit: Unit
    ranges: Ranges
    pieces: Pieces
    payload: Payload


def _data(batch: Batch, limit: int) -> Iterator[_Part]:
    """The bytes of a batch's buffers as DATA messages."""
    pieces: Pieces = []
    payload: Payload = []
    room = limit - HEAD_SIZE
    tables = MAX_MSG_SIZE - HEAD_SIZE
    for handle, views in _pieces(batch):
        at = 0
        for view in views:
            while view:
                fresh = not pieces or pieces[-1][0] + pieces[-1][1] != handle + at
                need = PIECE_SIZE if fresh else 0
                if room < need + 1 or tables < need:
                    yield _part(batch, MsgId.DATA, [], pieces, payload)
                    pieces, payload = [], []
                    room, tables = limit - HEAD_SIZE, MAX_MSG_SIZE - HEAD_SIZE
                    continue
                taken = view[: room - need]
                if fresh:
                    pieces.append((handle + at, len(taken)))
                else:
                    pieces[-1] = pieces[-1][0], pieces[-1][1] + len(taken)
                payload.append(taken)
                room -= need + len(taken)
                tables -= need
                at += len(taken)
                view = view[len(taken) :]
    if pieces:
        yield _part(batch, MsgId.DATA, [], pieces, payload)


def _pieces(batch: Batch) -> Iterator[tuple[int, list[memoryview]]]:
    """Each piece with the views of its bytes."""
    source = iter(batch.payload)
    view = memoryview(b"")
    for handle, length in batch.pieces:
        views = []
        while length:
            while not view:
                view = memoryview(next(source))
            taken = view[:length]
            views.append(taken)
            view = view[len(taken) :]
            length -= len(taken)
        yield handle, views


def _changes(batch: Batch, sync: MsgId, limit: int) -> Iterator[_Part]:
    """The changes of a batch, all but the last message marked MORE."""
    most = min(limit, MAX_MSG_SIZE) - HEAD_SIZE
    ranges: Ranges = []
    room = most
    for offset, data in batch.ranges:
        while data:
            if room < RANGE_SIZE + 1:
                yield _part(batch, sync, ranges, [], [], more=True)
                ranges, room = [], most
            taken = data[: room - RANGE_SIZE]
            ranges.append((offset, taken))
            room -= RANGE_SIZE + len(taken)
            offset += len(taken)
            data = data[len(taken) :]
    if ranges:
        yield _part(batch, sync, ranges, [], [])


def _join(batch: Batch, sync: MsgId, data: _Part, changes: _Part, limit: int) -> _Part | None:
    """The last bytes behind the last changes, if one message takes both."""
    tables = changes.unit.size + PIECE_SIZE * len(data.pieces)
    if tables > MAX_MSG_SIZE or changes.unit.size + data.unit.size - HEAD_SIZE > limit:
        return None
    return _part(batch, sync, changes.ranges, data.pieces, data.payload)


def _part(batch: Batch, msg_id: MsgId, ranges: Ranges, pieces: Pieces, payload: Payload, more: bool = False) -> _Part:
    buffers: list[Buffer] = [head(msg_id, batch.dev_num, batch.queue, ranges, pieces, more), *payload]
    return _Part(Unit(sum(map(len, buffers)), buffers), ranges, pieces, payload)


def _fill(units: Iterable[Unit], limit: int) -> Iterator[list[Buffer]]:
    """Units one behind another, as many in each Argo message as it takes."""
    buffers: list[Buffer] = []
    size = 0
    for unit in units:
        if buffers and size + unit.size > limit:
            yield few(buffers)
            buffers, size = [], 0
        buffers = buffers + unit.buffers
        size += unit.size
    if buffers:
        yield few(buffers)


def few(buffers: list[Buffer]) -> list[Buffer]:
    """The same bytes in at most 7 buffers, none of them empty: small neighbours are joined, if need be larger ones.

    Whatever is joined is copied once more, so it is those neighbours that hold the fewest bytes.
    """
    if len(buffers) <= MOST_BUFFERS and all(buffers):
        return buffers
    joined: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < SMALL:
            run.append(buffer)
            continue
        if run:
            joined.append(b"".join(run))
            run = []
        joined.append(buffer)
    if run:
        joined.append(b"".join(run))
    joined = [buffer for buffer in joined if buffer]
    over = len(joined) - MOST_BUFFERS
    if over > 0:
        sizes = [*map(len, joined)]
        start = min(range(MOST_BUFFERS), key=lambda at: sum(sizes[at : at + over + 1]))
        joined[start : start + over + 1] = [b"".join(joined[start : start + over + 1])]
    return joined
