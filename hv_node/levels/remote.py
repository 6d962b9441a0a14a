"""Payloads of SEND and QUERY, and their execution at the far side.  Experimental, not upstream.

Nothing is judged here.  The far side runs the core's own sendv and notify for the proxy of the caller, over memory
that holds what the envelope carried; so each check exists once, and the order of checks is the order of the core.

SEND: the payload is the message.  Where `ret` has Form.TABLE, the payload is: niov u32, then for each iov its length
u32 and its pad u32, then the bytes before the first buffer that faults; the far side then finds what is wrong, when it
comes to it.  With Form.BATCH the payload is several posted messages: their count u16, the length u32 of each, their
bytes; its answer has, for each one that was refused, the index u16 and the result i32.

QUERY: count of names u16; each name: length u8, bytes; then the structure of notify, in which a domid is the number of
a name.  Its answer: for each entry that was answered, flags u16, max_message_size u32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from enum import IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from hmx.argo.abi import (
    DOMID_SELF,
    ENT_MAX_MESSAGE_SIZE,
    MAX_IOVS,
    MAX_NOTIFY_ENTRIES,
    RING_DATA,
    RING_DATA_ENT,
)
from hmx.errno import Errno
from hv_node.argo.notify import Entries, QueryAnswer, QueryEntry
from hv_node.argo.sendv import MAX_RING_PAYLOAD, gather, send_given

if TYPE_CHECKING:
    from broker.envelope import Envelope
    from hv_node.argo.core import Argo
    from hv_node.domain import Domain

_COUNT: Final = Struct("<I")
_NAMES: Final = Struct("<H")
_IOV: Final = Struct("<II")
_ANSWER: Final = Struct("<HI")
_FAILURE: Final = Struct("<Hi")
_INVALID: Final = -int(Errno.EINVAL)


class Form(IntFlag):
    """`ret` of a SEND.  Above these bits: how many numbers back the posted message before this one stands; 0: none."""

    TABLE = 1  # the payload begins with the iovs
    POSTED = 2  # nobody waits: hold it while the ring is full, and keep the order
    BATCH = 4  # with POSTED: several messages from one port to another, of one type


TABLE: Final = int(Form.TABLE)  # operators of flags make objects, which costs more than a message
POSTED: Final = int(Form.POSTED)
BATCH: Final = int(Form.BATCH)
BACK_SHIFT: Final = 3
MAX_BATCH: Final = 128  # messages
MAX_BATCH_BYTES: Final = 32768


class PayloadError(ValueError):
    """A payload is not what its envelope says."""


# -- SEND ----


def pack_message(caller: Domain, ctx: int, iovs: tuple[int, ...]) -> tuple[int, int, bytes]:
    """(form, bytes of the message, payload) of a SEND with the caller's buffers."""
    if len(iovs) == 3:  # most often; a fault, and whatever is odd, is looked at below
        va, size, pad = iovs
        single = caller.memory.read(ctx, va, size) if 0 < size <= MAX_RING_PAYLOAD and not pad else None
        if single is not None:
            return 0, size, bytes(single)
    regular, data = gather(caller.memory, ctx, iovs)
    if regular:
        return 0, len(data), data
    table = [_IOV.pack(size, pad) for size, pad in zip(iovs[1::3], iovs[2::3], strict=True)]
    return TABLE, 0, b"".join((_COUNT.pack(len(table)), *table, data))


def pack_batch(messages: Sequence[bytes]) -> bytes:
    """The payload of a SEND with several messages, at most MAX_BATCH."""
    count = len(messages)
    return struct.pack(f"<H{count}I", count, *map(len, messages)) + b"".join(messages)


def unpack_batch(payload: bytes) -> list[bytes]:
    """The messages of a SEND with several.  PayloadError: it makes no sense."""
    try:
        (count,) = _NAMES.unpack_from(payload)
        if not 0 < count <= MAX_BATCH:
            raise PayloadError(f"{count} messages")
        lengths = struct.unpack_from(f"<{count}I", payload, _NAMES.size)
    except struct.error as error:
        raise PayloadError(str(error)) from error
    at = _NAMES.size + 4 * count
    if at + sum(lengths) != len(payload):
        raise PayloadError(f"{sum(lengths)} bytes of messages in {len(payload) - at}")
    messages = []
    for length in lengths:
        messages.append(payload[at : at + length])
        at += length
    return messages


def pack_failures(failures: Sequence[tuple[int, int]]) -> bytes:
    """What a batch is answered: (index, result) of each message that was refused."""
    return b"".join(_FAILURE.pack(index, ret) for index, ret in failures)


def unpack_failures(ret: int, reply: bytes, count: int) -> list[int]:
    """Results of those of `count` messages that were refused: all, if the answer is a refusal or makes no sense."""
    if ret < 0:
        return [ret] * count
    if len(reply) % _FAILURE.size or len(reply) > count * _FAILURE.size:
        return [-int(Errno.EIO)] * count
    return [result for _, result in _FAILURE.iter_unpack(reply)]


class _Carried:
    """Buffers that lie one behind the other in what was carried; beyond its end is a fault."""

    __slots__ = ("_data",)

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, ctx: int, va: int, n: int) -> memoryview | None:  # noqa: ARG002
        return self._data[va : va + n] if va + n <= len(self._data) else None

    def readable(self, ctx: int, va: int, n: int) -> int:  # noqa: ARG002
        return max(0, min(n, len(self._data) - va))


def _iovs(form: int, payload: bytes) -> tuple[tuple[int, ...], memoryview]:
    data = memoryview(payload)
    if not form & TABLE:
        return (0, len(data), 0), data
    try:
        (count,) = _COUNT.unpack_from(data)
        if count > MAX_IOVS:
            raise PayloadError(f"{count} iovs")
        iovs: list[int] = []
        va = 0
        for index in range(count):
            size, pad = _IOV.unpack_from(data, _COUNT.size + index * _IOV.size)
            iovs += (va, size, pad)
            va += size
    except struct.error as error:
        raise PayloadError(str(error)) from error
    return tuple(iovs), data[_COUNT.size + count * _IOV.size :]


def execute_send(core: Argo, source: Domain, dst: Domain, envelope: Envelope, payload: bytes) -> int:
    """SEND by the proxy `source` to our guest `dst`: sendv's result.  PayloadError: it makes no sense."""
    iovs, data = _iovs(envelope.ret, payload)
    ports = envelope.port_src, dst.domid, envelope.port_dst
    return send_given(core, source, _Carried(data), *ports, envelope.msg_type, iovs, 0, None)


# -- QUERY ----


def pack_query(entries: Sequence[QueryEntry]) -> bytes:
    """The payload of a QUERY about rings of one far hypervisor's guests."""
    names: dict[bytes, int] = {}
    rows = []
    for entry in entries:
        assert entry.target.remote is not None
        number = names.setdefault(entry.target.remote.path[-1].encode(), len(names))
        rows.append(RING_DATA_ENT.pack(entry.port, number, 0, 0, 0, entry.wanted, entry.largest))
    return b"".join((_pack_names(names), RING_DATA.pack(len(rows), 0), *rows))


def _pack_names(names: Collection[bytes]) -> bytes:
    return b"".join((_NAMES.pack(len(names)), *(bytes((len(name),)) + name for name in names)))


def pack_names(names: Sequence[str]) -> bytes:
    """The beginning of a QUERY's payload."""
    return _pack_names([name.encode() for name in names])


def unpack_query(payload: bytes) -> tuple[list[str], bytearray]:
    """(names, structure of notify) of a QUERY.  PayloadError: it makes no sense."""
    try:
        (count,) = _NAMES.unpack_from(payload)
        at = _NAMES.size
        names = []
        for _ in range(count):
            end = at + 1 + payload[at]
            names.append(payload[at + 1 : end].decode())
            at = end
        (entries, _) = RING_DATA.unpack_from(payload, at)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PayloadError(str(error)) from error
    structure = bytearray(payload[at:])
    if entries > MAX_NOTIFY_ENTRIES or len(structure) != RING_DATA.size + entries * RING_DATA_ENT.size:
        raise PayloadError(f"{entries} entries in {len(structure)} bytes")
    return names, structure


class _Structure:
    """Memory that holds the structure of a notify; counts the entries that were written back."""

    __slots__ = ("_bytes", "answered")

    def __init__(self, structure: bytearray) -> None:
        self._bytes = structure
        self.answered = 0

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:  # noqa: ARG002
        return layout.unpack_from(self._bytes, va)

    def write(self, ctx: int, va: int, data: bytes) -> bool:  # noqa: ARG002
        self._bytes[va : va + len(data)] = data
        self.answered += (va - RING_DATA.size) % RING_DATA_ENT.size == ENT_MAX_MESSAGE_SIZE
        return True


def execute_query(
    core: Argo, source: Domain, payload: bytes, find: Callable[[str], Domain | None]
) -> tuple[int, bytes]:
    """QUERY by the proxy `source`: (result, answer).  `find` knows our guests by name.  PayloadError."""
    names, structure = unpack_query(payload)
    found = [find(name) for name in names]
    domids = [DOMID_SELF if domain is None else domain.domid for domain in found]  # Argo does not resolve that one
    for at in range(RING_DATA.size, len(structure), RING_DATA_ENT.size):
        port, number, *rest = RING_DATA_ENT.unpack_from(structure, at)
        if number >= len(domids):
            raise PayloadError(f"no name {number}")
        structure[at : at + RING_DATA_ENT.size] = RING_DATA_ENT.pack(port, domids[number], *rest)
    memory = source.memory
    scratch: Any = _Structure(structure)
    source.memory = scratch
    try:
        count = (len(structure) - RING_DATA.size) // RING_DATA_ENT.size
        ret = Entries(core, source, RING_DATA.size, count, 0, None).run()
    finally:
        source.memory = memory
    rows = []
    for index in range(scratch.answered):
        fields = RING_DATA_ENT.unpack_from(structure, RING_DATA.size + index * RING_DATA_ENT.size)
        rows.append(_ANSWER.pack(fields[3], fields[6]))
    return ret, b"".join(rows)


def unpack_answers(ret: int, reply: bytes, asked: int) -> QueryAnswer:
    """The answer to a QUERY about `asked` entries; -EIO where it is short without a reason."""
    count = min(len(reply) // _ANSWER.size, asked)
    entries = [_ANSWER.unpack_from(reply, index * _ANSWER.size) for index in range(count)]
    if ret >= 0:
        ret = 0 if count == asked else -int(Errno.EIO)
    return QueryAnswer([(flags, largest) for flags, largest in entries], ret)
