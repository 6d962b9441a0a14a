"""Implicit destinations: what a guest's send means, by its table of slots.  Experimental, not upstream.

A send to domain `DOMID_ANY` is led by the sender's table: by its source port, or by the well-known port that it asks
for, to an endpoint or up to the next hypervisor.  Without an entry the answer is upstream's, -ESRCH.  A confined guest
has nothing but its slots: every domain id answers -ESRCH, except that whoever sent to it through a slot may be
answered, at the port that sent, for as long as that slot lives (its reply right).

Follows the VirtIO-Argo notes of the Xen community (2020-10 to 2021-01, "implicit destinations"), which leave encoding,
errors and reply path open; all of those are this project's.

This module keeps one hypervisor's slots.  Passing them on and revoking them across hypervisors is
:mod:`hv_node.levels.delegation`.  Time comes in by `now_ns`, which the owner sets at the start of a turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from hmx.argo.abi import DOMID_ANY, U32_MAX
from hmx.errno import Errno
from hv_node.levels.narrowing import holds
from hv_node.levels.slot_table import (
    LAST_NUMBER,
    MAX_FAR_SLOTS,
    MAX_RIGHTS,
    MAX_SLOTS,
    Holder,
    Path,
    Slot,
    SlotError,
    SlotId,
    SlotRow,
)

if TYPE_CHECKING:
    from hv_node.argo.model import Ring
    from hv_node.domain import Domain

class Refusal(NamedTuple):
    """What is answered to a sender, and why that."""

    rule: str
    errno: Errno
    source: str


REFUSALS: Final = (
    Refusal("no entry", Errno.ESRCH, "as upstream, where domain 0x7FF4 never resolves"),
    Refusal("confined", Errno.ESRCH, "the answer for a domain that does not exist, whichever id was tried"),
    Refusal("port", Errno.ESRCH, "what a slot does not cover is not there"),
    Refusal("endpoint gone", Errno.ESRCH, "the path no longer resolves"),
    Refusal("message type", Errno.EACCES, "a denial by policy, as FLASK answers"),
    Refusal("rate", Errno.EBUSY, "as sendv's -EBUSY: no wake-up will come, try again later"),
)
_ERRNO: Final = {row.rule: -int(row.errno) for row in REFUSALS}
_NO_ENTRY: Final = _ERRNO["no entry"]
_CONFINED: Final = _ERRNO["confined"]
_PORT: Final = _ERRNO["port"]
_GONE: Final = _ERRNO["endpoint gone"]
_TYPE: Final = _ERRNO["message type"]
_RATE: Final = _ERRNO["rate"]


class Hit(NamedTuple):
    """Where a send goes.  `up`: to the next hypervisor outwards; `domid` is then DOMID_ANY."""

    domid: int
    port: int
    slot: SlotId
    up: bool


class Directory(Protocol):
    """Who lives where, as this hypervisor knows it."""

    path: Path

    def domid_of(self, path: Path) -> int | None:
        """The domain id by which the guest at `path` is known here; None: unknown, or gone."""

    def path_of(self, domid: int) -> Path | None:
        """Its path; None for an unknown id."""

    def domain(self, domid: int) -> Domain | None:
        """The domain, or the proxy."""

    def label_of(self, domid: int) -> str:
        """Its label, "" for none."""


class Slots:
    """The slots of one hypervisor's guests."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.now_ns = 0
        self.holders: dict[int, Holder] = {}
        self.by_path: dict[Path, Holder] = {}
        self.by_id: dict[SlotId, Slot] = {}  # every slot held here
        # Rights that slots of others give here, by the hypervisor that holds the slot.
        self.far_rights: dict[Path, dict[SlotId, dict[tuple[int, int, int], None]]] = {}

    def holder(self, domid: int) -> Holder:
        """The table of a guest of this hypervisor, made when first asked for.  Raises SlotError."""
        found = self.holders.get(domid)
        if found is None:
            path = self.directory.path_of(domid)
            if path is None or not self.is_local(path):
                raise SlotError(f"domain {domid} is no guest of this hypervisor")
            found = self.holders[domid] = self.by_path[path] = Holder(domid, path)
        return found

    def is_local(self, path: Path) -> bool:
        """True if `path` is a guest of this very hypervisor."""
        return len(path) == len(self.directory.path) + 1 and path[:-1] == self.directory.path

    # -- the toolstack ----

    def confine(self, domid: int, confined: bool = True) -> None:
        """Leave a guest nothing but its slots (or lift that).  Raises SlotError."""
        self.holder(domid).confined = confined

    def confined(self, domid: int) -> bool:
        """True for a guest that has only its slots: no domain id resolves for it, and its own is hidden from it."""
        holder = self.holders.get(domid)
        return holder is not None and holder.confined

    def check(self, domid: int, slot: Slot, instead_of: Slot | None = None) -> Holder:
        """The table that `slot` may enter, once `instead_of` has left it.  Raises SlotError: it may not."""
        holder = self.holder(domid)
        if slot.source_port is None and slot.port is None:
            raise SlotError(f"slot {slot.id} serves neither a source port nor a service")
        for port in (slot.source_port, slot.port, slot.to_port):
            if port is not None and not 0 <= port <= U32_MAX:
                raise SlotError(f"slot {slot.id}: {port} is no port")
        if not 0 <= slot.id.number <= LAST_NUMBER:
            raise SlotError(f"{slot.id.number} is no number of a slot")
        if slot.id.number in holder.slots:
            raise SlotError(f"slot {slot.id} is in use")
        if holder.by_key.get(slot.key, instead_of) is not instead_of:
            raise SlotError(f"slot {slot.id} would serve what {holder.by_key[slot.key].id} serves")
        if len(holder.slots) - (instead_of is not None) >= MAX_SLOTS:
            raise SlotError(f"{'/'.join(holder.path)} has {MAX_SLOTS} slots")
        return holder

    def enter(self, holder: Holder, slot: Slot) -> None:
        """The slot may be used from now on."""
        holder.slots[slot.id.number] = slot
        holder.by_key[slot.key] = slot
        self.by_id[slot.id] = slot
        slot.set_rate(self.now_ns)

    def leave(self, slot: Slot) -> None:
        """The slot is gone, and nobody may answer what came through it."""
        self.drop_rights(slot.id)
        holder = self.by_path[slot.id.holder]
        del holder.slots[slot.id.number], holder.by_key[slot.key], self.by_id[slot.id]

    def remove_holder(self, domid: int) -> None:
        """A guest is gone; its slots have left."""
        holder = self.holders.pop(domid, None)
        if holder is not None:
            del self.by_path[holder.path]

    # -- the way of every message ----

    def resolve(self, caller: Domain, source_port: int, domid: int, port: int, message_type: int) -> Hit | int | None:
        """What `caller`'s send to (`domid`, `port`) means: None: as it is written; a Hit; or a negated errno."""
        holder = self.holders.get(caller.domid)
        if domid != DOMID_ANY:
            return _CONFINED if self.hides(caller.domid, domid, port) else None
        slot = None if holder is None else holder.find(source_port, port)
        if slot is None:
            return _NO_ENTRY
        hit = self._lead(slot, port)
        if isinstance(hit, int):
            return hit
        types = slot.narrowing.types
        if types is not None and message_type not in types:
            return _TYPE
        buckets = [member.bucket for member in slot.lineage() if member.bucket is not None]
        if not all(bucket.ready(self.now_ns) for bucket in buckets):
            return _RATE
        for bucket in buckets:
            bucket.take()
        return hit

    def resolve_query(self, caller: Domain, domid: int, port: int) -> Hit | int | None:
        """The same for an entry of notify, which has no source port, no message type and costs nothing.

        For DOMID_ANY `port` is a service that the caller has a slot for, or else the source port of a slot of its
        own.
        """
        holder = self.holders.get(caller.domid)
        if domid != DOMID_ANY:
            return _CONFINED if self.hides(caller.domid, domid, port) else None
        if holder is None:
            return _NO_ENTRY
        slot = holder.by_key.get((None, port)) or holder.by_key.get((port, None))
        if slot is None:
            slot = next((slot for slot in holder.slots.values() if slot.port == port), None)
        if slot is None:
            slot = next((slot for slot in holder.slots.values() if slot.source_port == port), None)
        if slot is None:
            return _NO_ENTRY
        return self._lead(slot, port if slot.port is None or slot.port == port else slot.port)

    def _lead(self, slot: Slot, port: int) -> Hit | int:
        """Where the slot leads a message for `port`."""
        if slot.to_port is not None:
            port = slot.to_port
        if not holds(slot.narrowing.ports, port):
            return _PORT
        if not slot.to:
            outermost = len(self.directory.path) <= 1
            return _GONE if outermost else Hit(DOMID_ANY, port, slot.id, True)
        domid = self.directory.domid_of(slot.to)
        return _GONE if domid is None else Hit(domid, port, slot.id, False)

    # -- who may answer ----

    def delivered(self, slot_id: SlotId, target: int, source: int, source_port: int) -> None:
        """A message that came through `slot_id` lies in a ring of `target`, which knows its sender as `source`.

        Called where `target` lives, for a slot held here or on another hypervisor: a confined `target` may answer.
        """
        holder = self.holders.get(target)
        if holder is None or not holder.confined:
            return
        given = self._rights_of(slot_id)
        right = (target, source, source_port)
        if right in given:
            return
        if len(given) >= MAX_RIGHTS:
            oldest = next(iter(given))
            del given[oldest]
            self._drop_right(slot_id, oldest)
        given[right] = None
        holder.rights.setdefault((source, source_port), {})[slot_id] = None

    def _rights_of(self, slot_id: SlotId) -> dict[tuple[int, int, int], None]:
        """The rights that a slot gives, to be looked at or added to."""
        slot = self.by_id.get(slot_id)
        if slot is not None:
            return slot.rights
        of_origin = self.far_rights.setdefault(slot_id.holder[:-1], {})
        if slot_id not in of_origin and len(of_origin) >= MAX_FAR_SLOTS:
            self.drop_rights(next(iter(of_origin)))
        return of_origin.setdefault(slot_id, {})

    def _drop_right(self, slot_id: SlotId, right: tuple[int, int, int]) -> None:
        target, source, source_port = right
        holder = self.holders.get(target)
        if holder is None:
            return
        givers = holder.rights.get((source, source_port), {})
        givers.pop(slot_id, None)
        if not givers:
            holder.rights.pop((source, source_port), None)

    def drop_rights(self, slot_id: SlotId) -> None:
        """Nobody may answer what came through this slot any more."""
        slot = self.by_id.get(slot_id)
        rights = self.far_rights.get(slot_id.holder[:-1], {}).pop(slot_id, {}) if slot is None else slot.rights
        for right in rights:
            self._drop_right(slot_id, right)
        rights.clear()

    def drop_rights_with(self, domid: int) -> None:
        """A domain died, or what it sent is not to be answered: nobody answers it, and it answers nobody."""
        given = [(slot.id, slot.rights) for slot in self]
        given += [pair for of_origin in self.far_rights.values() for pair in of_origin.items()]
        for slot_id, rights in given:
            for right in [right for right in rights if domid in right[:2]]:
                del rights[right]
                self._drop_right(slot_id, right)

    def may_name(self, caller: int, domid: int) -> bool:
        """May guest `caller` say `domid` at all, as a ring's partner or in QUERY_ENDPOINT?

        A confined guest may say whom it may answer; everybody else does not exist for it, itself included.
        """
        holder = self.holders.get(caller)
        return holder is None or not holder.confined or any(known == domid for known, _ in holder.rights)

    def hides(self, caller: int, domid: int, port: int) -> bool:
        """True where a confined guest names a port of a domain that it may not answer."""
        holder = self.holders.get(caller)
        return holder is not None and holder.confined and (domid, port) not in holder.rights

    def stale_waits(self, rings: Iterable[Ring]) -> list[tuple[Ring, int]]:
        """The (ring, waiter) pairs of confined guests that no longer lead anywhere, after a change.

        Their wake-ups are to be forgotten, unsignalled: they would tell of a ring that the guest cannot reach.
        """
        stale = []
        for ring in rings:
            for domid in ring.pending:
                holder = self.holders.get(domid)
                if holder is not None and holder.confined and not self._reaches(holder, ring):
                    stale.append((ring, domid))
        return stale

    def _reaches(self, holder: Holder, ring: Ring) -> bool:
        owner = ring.owner.domid
        if (owner, ring.port) in holder.rights:
            return True
        for slot in holder.slots.values():
            fits = holds(slot.narrowing.ports, ring.port) and slot.to_port in (None, ring.port)
            if slot.to_port is None and slot.port not in (None, ring.port):
                fits = False
            if fits and slot.to and self.directory.domid_of(slot.to) == owner:
                return True
        return False

    # -- for people ----

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self.by_id.values()))

    def inspect(self) -> list[SlotRow]:
        """Every slot held here, with the chain by which it came."""
        return [
            SlotRow(
                str(slot.id),
                tuple(str(link) for link in slot.chain),
                slot.source_port,
                slot.port,
                "/".join(slot.to) or "up",
                slot.to_port,
                slot.narrowing.ports,
                slot.narrowing.types,
                slot.narrowing.rate,
                slot.delegable,
                tuple("/".join(child.holder) for child in slot.children.values()),
                len(slot.rights),
            )
            for slot in self
        ]
