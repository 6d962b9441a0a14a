"""Which guest memory a call touches, computed from its arguments alone.

A guest whose hypervisor runs on another host ships the bytes that a call will read together with the call,
and gets those that it wrote back with the result. Ranges are (guest virtual address, bytes). Ring pages
are not in them: they are named by page frame at registration and travel by their window's `publish`.

Nothing here judges a call: what the hypervisor would refuse has the footprint of what it reads before
refusing, and a structure that cannot be read ends the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, Protocol

from hmx.argo.abi import (
    ENT_FLAGS,
    ENT_MAX_MESSAGE_SIZE,
    GFN,
    IOV,
    IOV_ARRAYS,
    IOV_COMPAT,
    IOV_COMPAT_ARRAYS,
    MAX_IOVS,
    MAX_NOTIFY_ENTRIES,
    MAX_RING_PAGES,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    SEND_ADDR,
    UNREGISTER_RING,
    Op,
)

Range = tuple[int, int]
Footprint = tuple[tuple[Range, ...], tuple[Range, ...]]

_NOTHING: Final[Footprint] = ((), ())
_FLAGS_BYTES: Final = 2
_SIZE_BYTES: Final = 4


class Unpacks(Protocol):
    """The one method of GuestMemory that is needed here."""

    def unpack(self, layout: Struct, ctx: int, va: int) -> tuple[Any, ...] | None:
        """The structure at `va`, or None."""


def footprint(
    cmd: int, args: Sequence[int], memory: Unpacks, *, ctx: int = 0, compat: bool = False
) -> Footprint:
    """(reads, writes) of argo_op(cmd, *args) by a caller with this memory; `compat`: a 32-bit x86 caller."""
    a1, a2, a3, _ = args
    if cmd == Op.REGISTER_RING:
        if a3 > MAX_RING_PAGES:
            return _NOTHING
        return ((a1, REGISTER_RING.size), (a2, GFN.size * a3)), ()
    if cmd == Op.UNREGISTER_RING:
        return ((a1, UNREGISTER_RING.size),), ()
    if cmd == Op.SENDV:
        return _sendv(a1, a2, a3, memory, ctx, compat)
    if cmd == Op.NOTIFY:
        return _notify(a1, memory, ctx)
    return _NOTHING


def _sendv(a1: int, a2: int, niov: int, memory: Unpacks, ctx: int, compat: bool) -> Footprint:
    reads: list[Range] = [(a1, SEND_ADDR.size)]
    if 0 < niov <= MAX_IOVS:
        reads.append((a2, (IOV_COMPAT if compat else IOV).size * niov))
        iovs = memory.unpack((IOV_COMPAT_ARRAYS if compat else IOV_ARRAYS)[niov], ctx, a2)
        if iovs is not None:
            reads += [(iovs[i], iovs[i + 1]) for i in range(0, 3 * niov, 3) if iovs[i + 1]]
    return tuple(reads), ()


def _notify(a1: int, memory: Unpacks, ctx: int) -> Footprint:
    if not a1:
        return _NOTHING
    header = memory.unpack(RING_DATA, ctx, a1)
    reads: list[Range] = [(a1, RING_DATA.size)]
    writes: list[Range] = []
    if header is not None and 0 < header[0] <= MAX_NOTIFY_ENTRIES:
        first, stride = a1 + RING_DATA.size, RING_DATA_ENT.size
        reads.append((first, stride * header[0]))
        for entry in range(first, first + stride * header[0], stride):
            writes.append((entry + ENT_FLAGS, _FLAGS_BYTES))
            writes.append((entry + ENT_MAX_MESSAGE_SIZE, _SIZE_BYTES))
    return tuple(reads), tuple(writes)
