"""What the hypervisor remembers about Argo: rings, waiters, and records for teardown (Xen common/argo.c).

A ring belongs to its owner and is keyed by (port, partner); partner `DOMID_ANY` is the wildcard. A waiter
is a domain that found too little room: one size per ring and domain, the largest that it asked for. A
wildcard ring's waiters are linked to their domain too, since the ring does not die with it. A send record
at a partner names a ring of which it is the only sender; it exists to delete that ring when the partner
dies.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from hmx.argo.abi import DOMID_ANY, MAX_PENDING_PER_RING
from hmx.argo.ring import bucket
from hmx.memory import RingPages
from hv_node.domain import Domain

Lookup = Callable[[int], Domain | None]


class Allocation(IntEnum):
    """Memory that Xen allocates or maps during a call, as the fault-injection hook names it."""

    SEND_RECORD = 1
    RING_RECORD = 2
    PAGE_ARRAYS = 3
    PAGE_MAPPING = 4
    WAITER = 5


class Ring:
    """One registered ring.  `tx` here is authoritative; the guest's copy is only written."""

    __slots__ = ("len", "owner", "pages", "partner", "pending", "port", "sort_key", "tx", "wildcard")

    def __init__(self, owner: Domain, port: int, partner: int, ring_len: int, serial: int) -> None:
        self.owner = owner
        self.port = port
        self.partner = partner
        self.wildcard = partner == DOMID_ANY
        self.len = ring_len
        self.tx = 0
        self.pages: RingPages | None = None
        #: waiting domain -> payload bytes wanted, oldest waiter first
        self.pending: dict[int, int] = {}
        #: job A of notify visits buckets upwards and, within one, the newest ring first
        self.sort_key = (bucket(port, owner.domid, partner), -serial)

    def space(self) -> int:
        """The largest payload that fits now, by the guest's rx_ptr as it stands (one load)."""
        pages = self.pages
        if pages is None:
            return 0
        ring_len, tx = self.len, self.tx
        rx = (pages.load_rx() + 15) & 0xFFFF_FFF0
        if rx >= ring_len:
            rx = 0
        free = ring_len if rx == tx else rx - tx if rx > tx else rx - tx + ring_len
        return free - 32 if free > 32 else 0

    def __repr__(self) -> str:
        return f"<Ring {self.port:#x} of {self.owner.domid} for {self.partner:#x}, {self.len} bytes>"


class DomainArgo:
    """The Argo state of one domain.

    `ring_count` is Xen's counter, which a re-registration raises too; it may exceed the number of rings.
    """

    __slots__ = ("in_order", "ring_count", "rings", "send_records", "serial", "waiters", "waiting_on")

    def __init__(self) -> None:
        self.rings: dict[tuple[int, int], Ring] = {}
        self.in_order: tuple[Ring, ...] = ()
        self.ring_count = 0
        self.serial = 0
        #: (owner's domid, port) -> how many records: rings of others of which this domain is the only sender
        self.send_records: dict[tuple[int, int], int] = {}
        #: wildcard rings of others on which this domain waits
        self.waiting_on: dict[Ring, None] = {}
        #: entries in the pending queues of all own rings
        self.waiters = 0

    def insert(self, ring: Ring) -> None:
        """Enter a new ring."""
        self.rings[ring.port, ring.partner] = ring
        self._reorder()

    def _reorder(self) -> None:
        self.in_order = tuple(sorted(self.rings.values(), key=lambda ring: ring.sort_key))

    def delete(self, ring: Ring, lookup: Lookup) -> None:
        """Unlink a ring and forget its waiters, unsignalled.  `ring_count` is the caller's business."""
        for domid in list(ring.pending):
            self.forget(ring, domid, lookup)
        ring.pages = None
        del self.rings[ring.port, ring.partner]
        self._reorder()

    def forget(self, ring: Ring, domid: int, lookup: Lookup) -> None:
        """Remove `domid` from the waiters of own ring `ring`, if it is among them."""
        if ring.pending.pop(domid, None) is None:
            return
        self.waiters -= 1
        if ring.wildcard:
            waiter = lookup(domid)
            if waiter is not None and waiter.argo is not None:
                waiter.argo.waiting_on.pop(ring, None)

    def add_send_record(self, owner: int, port: int) -> None:
        """`owner` registered a ring of which this domain is the only sender; again, if it did so before."""
        self.send_records[owner, port] = self.send_records.get((owner, port), 0) + 1

    def drop_send_record(self, owner: int, port: int) -> None:
        """Remove one such record, if there is one."""
        count = self.send_records.pop((owner, port), 0)
        if count > 1:
            self.send_records[owner, port] = count - 1


def wait_for_space(
    ring: Ring, waiter: Domain, size: int, allocate: Callable[[Allocation], bool] | None
) -> Allocation | bool:
    """Let `waiter` wait for `size` payload bytes on `ring`.

    True: it waits (with the largest size that it asked for). False: the queue is full. Allocation.WAITER:
    no memory.
    """
    owner = ring.owner.argo
    state = waiter.argo
    assert owner is not None
    assert state is not None
    pending = ring.pending
    domid = waiter.domid
    known = pending.get(domid)
    if known is not None:
        if size > known:
            pending[domid] = size
        return True
    if len(pending) >= MAX_PENDING_PER_RING:
        return False
    if allocate is not None and not allocate(Allocation.WAITER):
        return Allocation.WAITER
    pending[domid] = size
    owner.waiters += 1
    if ring.wildcard:
        state.waiting_on[ring] = None
    return True
