"""register_ring and unregister_ring, check by check (Xen common/argo.c).

Xen's habits are kept: a re-registration raises the ring counter again and leaves a second send record at
the partner, and it gives the old pages up before it looks at the new ones, so that a bad page costs the
working ring.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING

from hmx.argo.abi import (
    DOMID_ANY,
    GFN,
    MAX_RING_LEN,
    MAX_RING_PAGES,
    MAX_RINGS_PER_DOMAIN,
    MIN_RING_LEN,
    REGISTER_RING,
    SLOT,
    UNREGISTER_RING,
    RegisterFlag,
)
from hmx.argo.ring import npages_for, sanitise_tx
from hmx.memory import FAULT, RingPages
from hmx.nested import DOMID_XEN
from hv_node.argo.model import Allocation, Ring
from hv_node.argo.order import refusal
from hv_node.domain import Domain

if TYPE_CHECKING:
    from hv_node.argo.core import Argo

_OP = "register_ring"
_MANY_PAGES = refusal(_OP, "page count over 4096")
_FLAGS = refusal(_OP, "unknown flag")
_STRUCT = refusal(_OP, "structure")
_FIELDS = refusal(_OP, "length, page count or pad")
_NOT_PERMISSIVE = refusal(_OP, "wildcard without mac-permissive")
_NO_PARTNER = refusal(_OP, "partner unknown")
_RECORD_MEMORY = refusal(_OP, "memory for send record")
_RING_MEMORY = refusal(_OP, "memory for ring record")
_NO_ARGO = refusal(_OP, "caller without Argo")
_PARTNER_OFF = refusal(_OP, "partner without Argo")
_MANY_RINGS = refusal(_OP, "too many rings")
_EXISTS = refusal(_OP, "ring exists")
_RESIZED = refusal(_OP, "ring resized")
_ARRAY_MEMORY = refusal(_OP, "memory for page arrays")
_GFN_FAULT = refusal(_OP, "page frame array")
_MAPPING = refusal(_OP, "ring page mapping")

_UNREGISTER = "unregister_ring"
_U_ARGUMENT = refusal(_UNREGISTER, "superfluous argument")
_U_STRUCT = refusal(_UNREGISTER, "structure")
_U_PAD = refusal(_UNREGISTER, "pad")
_U_NO_ARGO = refusal(_UNREGISTER, "caller without Argo")
_U_NO_RING = refusal(_UNREGISTER, "no such ring")

_FAIL_EXIST = int(RegisterFlag.FAIL_EXIST)


def register_ring(core: Argo, caller: Domain, a1: int, a2: int, npages: int, flags: int, ctx: int) -> int:
    """arg1: register structure; arg2: page frame numbers; arg3: how many; arg4: flags.  0 or a refusal."""
    if npages > MAX_RING_PAGES:
        return _MANY_PAGES
    if flags & ~_FAIL_EXIST:
        return _FLAGS
    fields = caller.memory.unpack(REGISTER_RING, ctx, a1)
    if fields is FAULT:
        return _STRUCT
    port, partner_id, pad, ring_len = fields
    if (
        pad
        or not MIN_RING_LEN <= ring_len <= MAX_RING_LEN
        or ring_len % SLOT
        or npages_for(ring_len) != npages
    ):
        return _FIELDS
    allocate = core.allocate
    partner: Domain | None = None
    if partner_id == DOMID_ANY:
        if not core.mac_permissive:
            return _NOT_PERMISSIVE
        denied = core.xsm.register_any_source(caller)
        if denied:
            return denied
    elif partner_id != DOMID_XEN or not caller.nested:  # a nested hypervisor's downlink has us as its only sender
        partner = core.lookup(partner_id)
        if partner is None:
            return _NO_PARTNER
        denied = core.xsm.register_single_source(caller, partner)
        if denied:
            return denied
        if allocate is not None and not allocate(Allocation.SEND_RECORD):
            return _RECORD_MEMORY
    if allocate is not None and not allocate(Allocation.RING_RECORD):
        return _RING_MEMORY
    argo = caller.argo
    if argo is None:
        return _NO_ARGO
    if partner is not None and partner.argo is None:
        return _PARTNER_OFF
    if argo.ring_count >= MAX_RINGS_PER_DOMAIN:
        return _MANY_RINGS
    ring = argo.rings.get((port, partner_id))
    if ring is None:
        argo.serial += 1
        ring = Ring(caller, port, partner_id, ring_len, argo.serial)
        argo.insert(ring)
    elif flags & _FAIL_EXIST:
        return _EXISTS
    elif ring.len != ring_len:
        return _RESIZED
    ring.pages = None
    pages = _take_pages(core, caller, a2, npages, ctx)
    if isinstance(pages, int):
        argo.delete(ring, core.lookup)
        return pages
    # A valid tx_ptr is adopted, so that a ring registered anew after a resume keeps what is unread.
    found = pages.load_tx()
    tx = sanitise_tx(found, pages.load_rx(), ring_len)
    if tx != found:
        pages.store_tx(tx)
    ring.pages = pages
    ring.tx = tx
    argo.ring_count += 1
    if partner is not None and partner.argo is not None:
        partner.argo.add_send_record(caller.domid, port)
    return 0


def _take_pages(core: Argo, caller: Domain, gfns_va: int, npages: int, ctx: int) -> RingPages | int:
    """The pages that the array at `gfns_va` names; the first unfit one decides the refusal."""
    memory, allocate = caller.memory, core.allocate
    if allocate is not None and not allocate(Allocation.PAGE_ARRAYS):
        return _ARRAY_MEMORY
    size = GFN.size * npages
    array = memory.read(ctx, gfns_va, size)
    if array is FAULT:
        # Xen reads a number and judges its page before it reads the next: an unfit page before the fault
        # wins.
        readable = memory.readable(ctx, gfns_va, size) // GFN.size
        head = memory.read(ctx, gfns_va, GFN.size * readable) if readable else FAULT
        if head is FAULT:
            return _GFN_FAULT
        refused = memory.ring(unpack(f"<{readable}Q", head))
        return refused if isinstance(refused, int) else _GFN_FAULT
    pages = memory.ring(unpack(f"<{npages}Q", array))
    if not isinstance(pages, int) and allocate is not None and not allocate(Allocation.PAGE_MAPPING):
        return _MAPPING
    return pages


def unregister_ring(core: Argo, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int) -> int:
    """arg1: unregister structure.  0 or a refusal.  The partner must match; guest memory stays as it is."""
    if a2 or a3 or a4:
        return _U_ARGUMENT
    fields = caller.memory.unpack(UNREGISTER_RING, ctx, a1)
    if fields is FAULT:
        return _U_STRUCT
    port, partner_id, pad = fields
    if pad:
        return _U_PAD
    argo = caller.argo
    if argo is None:
        return _U_NO_ARGO
    ring = argo.rings.get((port, partner_id))
    if ring is None or (partner_id == DOMID_XEN and not caller.nested):
        return _U_NO_RING
    delete_ring(core, caller, ring)
    return 0


def delete_ring(core: Argo, owner: Domain, ring: Ring) -> None:
    """A ring of `owner` goes, and its only sender's record of it."""
    argo = owner.argo
    assert argo is not None
    argo.delete(ring, core.lookup)
    argo.ring_count -= 1
    if ring.partner != DOMID_ANY:
        partner = core.lookup(ring.partner)
        if partner is not None and partner.argo is not None:
            partner.argo.drop_send_record(owner.domid, ring.port)
