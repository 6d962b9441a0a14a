"""Reaching a front end's memory by grants: only what the front end granted, by its grant-DMA addresses.

`GrantMapAccess` maps granted pages and unmaps them, `GrantCopyAccess` has the hypervisor copy and maps queues only.
Sources: Xen public/grant_table.h; Linux drivers/xen/grant-dma-ops.c for the addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from guest_node.virtio.access import MappedAccess
from guest_node.virtio.access_copied import CopiedAccess
from guest_node.virtio.xen_calls import GRANT_BATCH, XenCalls, XenRefused, chunks
from hmx import xen
from hmx.grants import DMA_GRANT, CopyFlag, GrantOp, GrantStatus, MapFlag, split_dma
from hmx.memory import PAGE_SIZE
from hmx.virtio.memory import BadAddress

BOUNCE: Final = 1 << 16
_MAX_GREF: Final = 1 << 32


def _gref(address: int, size: int = 0) -> int:
    try:
        gref = split_dma(address)[0]
    except ValueError:
        raise BadAddress(address, size) from None
    if gref >= _MAX_GREF:
        raise BadAddress(address, size)
    return gref


class GrantMapAccess(MappedAccess):
    """Grant-DMA addresses of domain `target`.

    A page is mapped to be written if that is granted, else to be read.
    """

    def __init__(self, calls: XenCalls, target: int, keep: bool = False) -> None:
        super().__init__(calls, target, keep)
        self._handles: dict[int, tuple[int, int]] = {}  # page -> frame, handle

    def _map(self, pages: Sequence[int]) -> None:
        refused = self._try(pages, MapFlag.HOST_MAP)
        if refused:
            refused = self._try(refused, MapFlag.HOST_MAP | MapFlag.READONLY)
        if refused:
            raise BadAddress(refused[0] * PAGE_SIZE, PAGE_SIZE)

    def _try(self, pages: Sequence[int], flags: MapFlag) -> list[int]:
        """Map what can be mapped so; the rest."""
        wanted = [(page, self.frame(), _gref(page * PAGE_SIZE)) for page in pages]
        refused = []
        for part in chunks(wanted, GRANT_BATCH):
            elements = [(frame * PAGE_SIZE, flags, gref, self._target, 0, 0, 0) for _, frame, gref in part]
            self.counters.hypercalls += 1
            for (page, frame, _), answer in zip(part, self._op(GrantOp.MAP_GRANT_REF, elements), strict=True):
                *_, status, handle, machine = answer
                if status:
                    self.free_frame(frame)
                    refused.append(page)
                else:
                    self.counters.maps += 1
                    self._handles[page] = frame, handle
                    self._mapped[page] = machine
        return refused

    def _op(self, op: GrantOp, elements: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        try:
            return self._xen.grant_op(op, elements)
        except XenRefused:
            raise BadAddress(0, 0) from None

    def _unmap(self, pages: Sequence[int]) -> None:
        wanted = []
        for page in pages:
            del self._mapped[page]
            wanted.append(self._handles.pop(page))
        for part in chunks(wanted, GRANT_BATCH):
            self.counters.hypercalls += 1
            self.counters.unmaps += len(part)
            self._op(GrantOp.UNMAP_GRANT_REF, [(frame * PAGE_SIZE, 0, handle, 0) for frame, handle in part])
            for frame, _ in part:
                self.free_frame(frame)


class GrantCopyAccess(CopiedAccess):
    """The same addresses; buffers are copied by the hypervisor, queues are mapped."""

    def __init__(self, calls: XenCalls, target: int) -> None:
        super().__init__(calls, target, GrantMapAccess(calls, target), BOUNCE)

    def _steps(self, address: int, size: int) -> Iterable[tuple[int, int]]:
        if not address >= DMA_GRANT or address + size > 1 << 64:
            raise BadAddress(address, size)
        return ((address + done, min(BOUNCE, size - done)) for done in range(0, size, BOUNCE))

    def _copy(self, address: int, size: int, *, store: bool) -> None:
        """A hypercall with an element for each run of bytes that leaves neither end's page."""
        elements = []
        for start, length in _runs(address, self._bounce, size):
            ours = self._bounce + start - address
            theirs = _gref(start, length), self._target, start % PAGE_SIZE
            mine = ours // PAGE_SIZE, xen.DOMID_SELF, ours % PAGE_SIZE
            ends, flag = ((*mine, *theirs), CopyFlag.DEST_GREF) if store else ((*theirs, *mine), CopyFlag.SOURCE_GREF)
            elements.append((*ends, length, flag, 0))
        self.counters.hypercalls += 1
        try:
            answers = self._xen.grant_op(GrantOp.COPY, elements)
        except XenRefused:
            raise BadAddress(address, size) from None
        if any(answer[-1] != GrantStatus.OKAY for answer in answers):
            raise BadAddress(address, size)
        self.counters.copied_by_hypervisor += size


def _runs(theirs: int, ours: int, size: int) -> Iterator[tuple[int, int]]:
    """Parts of a range that leave no page at either end."""
    done = 0
    while done < size:
        step = min(size - done, PAGE_SIZE - (theirs + done) % PAGE_SIZE, PAGE_SIZE - (ours + done) % PAGE_SIZE)
        yield theirs + done, step
        done += step
