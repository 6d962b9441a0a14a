"""register_ring, unregister_ring and create_ring, check by check (uXen common/v4v.c).

uXen's habits are kept.  The ring's header in guest memory is corrected before the ring is looked for, the hypervisor's
tx is taken over before the pages are, and a page that does not fit costs a working ring its pages but not its length:
sends to it then answer -EFAULT.  A registration that fails leaves a placeholder where there was nothing.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING

from hmx.argo.abi import MIN_RING_LEN, SLOT
from hmx.argo.ring import sanitise_tx
from hmx.memory import FAULT, PAGE_SHIFT, PAGE_SIZE, GuestMemory
from hmx.v4v.abi import (
    DOMID_ANY,
    DOMID_DM,
    DOMID_UUID,
    MAX_RING_LEN,
    MAX_RING_PAGES,
    PFN,
    PFN_LIST,
    PFN_LIST_MAGIC,
    RING_HEADER,
    RING_ID,
    RING_ID_AT,
    RING_MAGIC,
    TOKEN,
    TX_PTR,
)
from hv_node.argo.model import Allocation
from hv_node.domain import Domain
from hv_node.v4v.channel import validate
from hv_node.v4v.model import V4vRing
from hv_node.v4v.notify import wake_senders
from hv_node.v4v.order import refusal
from hv_node.v4v.pages import V4vPages, take_pages

if TYPE_CHECKING:
    from hv_node.v4v.core import V4v

_OP = "register_ring"
_UNALIGNED = refusal(_OP, "ring address unaligned")
_OFF = refusal(_OP, "caller without v4v")
_HEADER = refusal(_OP, "ring header")
_MAGIC = refusal(_OP, "ring magic")
_LENGTH = refusal(_OP, "length under 48 or unaligned")
_TOO_LONG = refusal(_OP, "length over 16 MiB")
_TOKEN = refusal(_OP, "partner token")
_NO_TOKEN = refusal(_OP, "partner token unknown")
_ID_BACK = refusal(_OP, "write-back of id")
_TX_BACK = refusal(_OP, "write-back of tx")
_RING_MEMORY = refusal(_OP, "memory for ring record")
_EXISTS = refusal(_OP, "ring exists")
_LIST = refusal(_OP, "page list")
_LIST_MAGIC = refusal(_OP, "page list magic")
_FEW_PAGES = refusal(_OP, "fewer pages than the length")
_MANY_PAGES = refusal(_OP, "more than 4096 pages")
_ARRAY_MEMORY = refusal(_OP, "memory for page arrays")
_PFN_FAULT = refusal(_OP, "page number")
_PAGE = refusal(_OP, "page unfit")

_UNREGISTER = "unregister_ring"
_U_OFF = refusal(_UNREGISTER, "caller without v4v")
_U_HEADER = refusal(_UNREGISTER, "ring header")
_U_MAGIC = refusal(_UNREGISTER, "ring magic")
_U_NO_RING = refusal(_UNREGISTER, "no such ring")

_CREATE = "create_ring"
_C_ID = refusal(_CREATE, "ring id")
_C_NO_OWNER = refusal(_CREATE, "owner unknown or without v4v")
_C_MEMORY = refusal(_CREATE, "memory for ring record")


def register_ring(core: V4v, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int) -> int:
    """arg1: the ring, on a page boundary; arg2: page list; arg3: partner token, read for partner `DOMID_UUID` only;
    arg4: not 0 refuses a ring that exists.  0 or a refusal.
    """
    if a1 % PAGE_SIZE:
        return _UNALIGNED
    state = core.state(caller)
    if state is None:
        return _OFF
    memory = caller.memory
    header = memory.unpack(RING_HEADER, ctx, a1)
    if header is FAULT:
        return _HEADER
    magic, port, _, named, ring_len, rx, found_tx = header
    if magic != RING_MAGIC:
        return _MAGIC
    if ring_len < MIN_RING_LEN or ring_len % SLOT:
        return _LENGTH
    if ring_len > MAX_RING_LEN:
        return _TOO_LONG
    partner = named
    if named == DOMID_UUID:
        token = memory.unpack(TOKEN, ctx, a3)
        if token is FAULT:
            return _TOKEN
        resolved = core.resolve(token[0])
        if resolved is None:
            return _NO_TOKEN
        partner = resolved
    partner = validate(core, caller, partner, authorised=named == DOMID_UUID)
    if partner < 0:
        return partner
    # A guest goes on calling its device model DM; any other partner reads who it is.
    shown = DOMID_DM if named == DOMID_DM else partner
    if not memory.write(ctx, a1 + RING_ID_AT, RING_ID.pack(port, caller.domid, shown)):
        return _ID_BACK
    tx = sanitise_tx(found_tx, rx, ring_len)
    if tx != found_tx and not memory.write(ctx, a1 + TX_PTR, tx.to_bytes(4, "little")):
        return _TX_BACK
    ring = state.rings.get((port, partner))
    if ring is None:
        if core.allocate is not None and not core.allocate(Allocation.RING_RECORD):
            return _RING_MEMORY
        ring = state.create(port, partner)
    elif a4 and ring.len:
        return _EXISTS
    ring.tx = tx
    ret = _take_pages(core, caller, ring, a2, ring_len, ctx)
    if ret:
        return ret
    ring.len = ring_len
    wake_senders(core, state)  # who waits on a placeholder learns of its ring here
    return 0


def _take_pages(core: V4v, caller: Domain, ring: V4vRing, list_va: int, ring_len: int, ctx: int) -> int:
    """Give `ring` the pages of the list at `list_va`; those that it has stay if they are the same."""
    memory = caller.memory
    header = memory.unpack(PFN_LIST, ctx, list_va)
    if header is FAULT:
        return _LIST
    magic, npages, _ = header
    if magic != PFN_LIST_MAGIC:
        return _LIST_MAGIC
    if npages << PAGE_SHIFT < ring_len:  # the ring's own header is not counted
        return _FEW_PAGES
    if npages > MAX_RING_PAGES:
        return _MANY_PAGES
    pages = _read_pages(memory, list_va + PFN_LIST.size, npages, ctx)
    old, ring.pages = ring.pages, None
    if isinstance(pages, V4vPages) and old is not None and old.gfns == pages.gfns:
        ring.pages = old
        return 0
    if core.allocate is not None and not core.allocate(Allocation.PAGE_ARRAYS):
        return _ARRAY_MEMORY
    if isinstance(pages, int):
        return pages
    ring.pages = pages
    return 0


def _read_pages(memory: GuestMemory, start: int, npages: int, ctx: int) -> V4vPages | int:
    """The pages whose numbers stand at `start`; the first unfit page or unreadable number decides the refusal."""
    readable = memory.readable(ctx, start, PFN.size * npages) // PFN.size
    array = memory.read(ctx, start, PFN.size * readable) if readable else FAULT
    if array is FAULT:
        return _PFN_FAULT
    # A page is judged before the next number is read: an unfit page before a fault wins.
    pages = take_pages(memory, unpack(f"<{readable}Q", array))
    if isinstance(pages, int):
        return _PAGE
    return pages if readable == npages else _PFN_FAULT


def unregister_ring(core: V4v, caller: Domain, a1: int, _a2: int, _a3: int, _a4: int, ctx: int) -> int:
    """arg1: the ring, whose header names it.  0 or a refusal.  Guest memory stays as it is, waiters are not told."""
    state = core.state(caller)
    if state is None:
        return _U_OFF
    header = caller.memory.unpack(RING_HEADER, ctx, a1)
    if header is FAULT:
        return _U_HEADER
    if header[0] != RING_MAGIC:
        return _U_MAGIC
    partner = validate(core, caller, header[3])
    if partner < 0:
        return partner
    ring = state.rings.get((header[1], partner))
    if ring is None:
        return _U_NO_RING
    state.delete(ring)
    return 0


def create_ring(core: V4v, caller: Domain, a1: int, _a2: int, _a3: int, _a4: int, ctx: int) -> int:
    """arg1: ring id of a placeholder to be made in its owner; 0 also when there is such a ring.

    Unless the partner is the wildcard, it is the caller.
    """
    ring_id = caller.memory.unpack(RING_ID, ctx, a1)
    if ring_id is FAULT:
        return _C_ID
    port, owner, partner = ring_id
    if partner != DOMID_ANY:
        partner = caller.domid
    owner = validate(core, caller, owner)
    if owner < 0:
        return owner
    state = core.states.get(owner)
    if state is None:
        return _C_NO_OWNER
    if (port, partner) not in state.rings:
        if core.allocate is not None and not core.allocate(Allocation.RING_RECORD):
            return _C_MEMORY
        state.create(port, partner)
    return 0
