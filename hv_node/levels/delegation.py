"""Capabilities: granting slots, passing them on, narrowing and revoking them, here and on every other hypervisor.

Experimental, not upstream.  A slot that was passed on is a child of the slot that it came from, and never lets more
pass.  What is taken away is taken away here before the call returns; where a child lives on another hypervisor, or
where somebody there may still answer what came through the slot, that hypervisor is told, and the ticket that the call
returns is `done` when all of them have answered.  Whoever asked is told no sooner.

The owner sends each of a ticket's tells as a request to the hypervisor it names, on the lane of the data (so that it
arrives behind what went through the slot before), and calls `answered` with the result; it passes requests that
arrive to `told`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from hmx.errno import Errno
from hmx.slots import DelegateCall, DelegateFlag
from hv_node.levels.narrowing import ALL_PORTS, Narrowing, normal
from hv_node.levels.revocation import Revocation, Ticket
from hv_node.levels.slot_messages import MAX_CHAIN, Forget, ForgetSource, Grant, Message, Narrow, Revoke
from hv_node.levels.slot_table import LAST_NUMBER, MAX_SLOTS, Child, Path, Slot, SlotError, SlotId
from hv_node.levels.slots import Slots

if TYPE_CHECKING:
    from hv_node.domain import Domain

MAX_DELEGATED: Final = 256  # slots that one guest has passed on and that are still held


class Refusal(NamedTuple):
    """Why a slot is not passed on; rows in the order in which they are looked for."""

    rule: str
    errno: Errno
    note: str


DELEGATE_REFUSALS: Final = (
    Refusal("slot not held", Errno.EBADF, "the number means nothing to anybody but its holder"),
    Refusal("way not held", Errno.EBADF, "the slot that leads to the peer"),
    Refusal("slot may not be passed on", Errno.EPERM, "the toolstack, or whoever passed it, did not say so"),
    Refusal("peer unknown", Errno.ESRCH, "the way leads upwards, or to nobody any more"),
    Refusal("peer is oneself", Errno.EINVAL, ""),
    Refusal("upwards elsewhere", Errno.EOPNOTSUPP, "up means another hypervisor there"),
    Refusal("chain too long", Errno.ENOSPC, f"at most {MAX_CHAIN} slots in a chain"),
    Refusal("passed on too often", Errno.ENOSPC, f"at most {MAX_DELEGATED} slots of a guest at a time"),
    Refusal("nothing left", Errno.EINVAL, "what was asked for and what the slot lets pass have nothing in common"),
    Refusal("rate not stated", Errno.EINVAL, "a share of a limited rate must be named to leave this hypervisor"),
    Refusal("rate spent", Errno.ENOSPC, "that share is not left"),
    Refusal("policy", Errno.EACCES, "as FLASK denies"),
    Refusal("peer's table full", Errno.ENOSPC, f"at most {MAX_SLOTS} slots in a table"),
    Refusal("peer has such a slot", Errno.EEXIST, "nothing is put in the place of what a guest already has"),
)
_ERRNO: Final = {row.rule: -int(row.errno) for row in DELEGATE_REFUSALS}


class Judge(Protocol):
    """The part of a security policy that has a say here."""

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        """May `source` pass `recipient` a slot that leads to `endpoint` (None: upwards)?  0 or a negated errno."""


class Delegation(Revocation):
    """Who gave which slot to whom."""

    def __init__(self, slots: Slots, judge: Judge) -> None:
        super().__init__(slots)
        self.judge = judge

    # -- the toolstack ----

    def grant(
        self,
        domid: int,
        number: int,
        source_port: int | None,
        port: int | None,
        to: Path,
        to_port: int | None = None,
        narrowing: Narrowing = Narrowing(),  # noqa: B008  (frozen)
        *,
        delegable: bool = False,
    ) -> Ticket:
        """Give a guest a slot.  One that others passed to it and that serves the same makes way.  Raises SlotError."""
        holder = self.slots.holder(domid)
        narrowing = narrowing._replace(ports=normal(narrowing.ports))
        slot = Slot(SlotId(holder.path, number), source_port, port, to, to_port, narrowing, delegable=delegable)
        ticket = Ticket()
        passed = holder.by_key.get(slot.key)
        if passed is not None and not passed.chain:
            passed = None
        self.slots.check(domid, slot, passed)
        if passed is not None:
            self._cut(passed, ticket)
        self.slots.enter(holder, slot)
        return ticket

    def narrow(self, domid: int, number: int, narrowing: Narrowing) -> Ticket:
        """Let less pass through a slot and all that were made from it.  Raises SlotError."""
        ticket = Ticket()
        self._narrow(self._held(domid, number), narrowing._replace(ports=normal(narrowing.ports)), ticket)
        return ticket

    def revoke(self, domid: int, number: int) -> Ticket:
        """Take a slot away, its children first.  Raises SlotError."""
        ticket = Ticket()
        self._cut(self._held(domid, number), ticket)
        return ticket

    def domain_died(self, domid: int) -> Ticket:
        """A guest or proxy is gone: its slots, and what was made from them, with it; and its rights to answer."""
        ticket = Ticket()
        holder = self.slots.holders.get(domid)
        while holder is not None and holder.slots:
            self._cut(next(iter(holder.slots.values())), ticket)
        self.slots.remove_holder(domid)
        self.slots.drop_rights_with(domid)
        return ticket

    def _held(self, domid: int, number: int) -> Slot:
        holder = self.slots.holders.get(domid)
        slot = None if holder is None else holder.slots.get(number)
        if slot is None:
            raise SlotError(f"domain {domid} holds no slot {number:#x}")
        return slot

    # -- a guest passes a slot on ----

    def delegate(self, caller: Domain, call: DelegateCall) -> Ticket:
        """DELEGATE.  A ticket that is not done: the peer's hypervisor has still to agree."""
        found = self._judge(caller, call)
        if isinstance(found, int):
            return Ticket(found)
        slot, peer, narrowing = found
        serial = self._number()
        asked = slot.key if not call.port else (None, call.port)
        # What the slot served stays what it leads to, whatever name the peer has for it.
        to_port = slot.port if slot.to_port is None else slot.to_port
        grant = Grant(
            slot.id, serial, peer, *asked, slot.to, to_port, narrowing,
            bool(call.flags & DelegateFlag.DELEGABLE), (*slot.chain, slot.id),
        )  # fmt: skip
        if self.slots.is_local(peer):
            ret = self._accept(grant, slot, serial)
            if not ret:
                self.slots.holders[caller.domid].delegated += 1
            return Ticket(ret)
        ticket = Ticket()
        ticket.child = slot, serial
        slot.children[serial] = Child(peer, None, narrowing.rate)
        self._lend(slot, narrowing.rate)
        self.slots.holders[caller.domid].delegated += 1
        self._tell(ticket, peer[:-1], grant)
        return ticket

    def _judge(self, caller: Domain, call: DelegateCall) -> tuple[Slot, Path, Narrowing] | int:
        """All that can be said about a DELEGATE without the peer's table."""
        holder = self.slots.holders.get(caller.domid)
        slot = None if holder is None else holder.slots.get(call.slot)
        way = None if holder is None else holder.slots.get(call.to_slot)
        directory = self.slots.directory
        if holder is None or slot is None:
            return _ERRNO["slot not held"]
        if way is None:
            return _ERRNO["way not held"]
        if not slot.delegable:
            return _ERRNO["slot may not be passed on"]
        domid = directory.domid_of(way.to) if way.to and not way.narrowing.empty else None
        recipient = None if domid is None else directory.domain(domid)
        if recipient is None:
            return _ERRNO["peer unknown"]
        if recipient is caller:
            return _ERRNO["peer is oneself"]
        far = not self.slots.is_local(way.to)
        if far and not slot.to:
            return _ERRNO["upwards elsewhere"]
        if len(slot.chain) + 1 >= MAX_CHAIN:
            return _ERRNO["chain too long"]
        if holder.delegated >= MAX_DELEGATED:
            return _ERRNO["passed on too often"]
        narrowing = _asked(call).within(_passes(slot))
        if narrowing.empty:
            return _ERRNO["nothing left"]
        limited = [member for member in slot.lineage() if member.narrowing.rate]
        if far and limited:
            if not call.rate:
                return _ERRNO["rate not stated"]
            if any(call.rate >= member.narrowing.rate - member.lent for member in limited):
                return _ERRNO["rate spent"]
        endpoint = directory.domid_of(slot.to) if slot.to else None
        denied = self.judge.delegate(caller, recipient, None if endpoint is None else directory.domain(endpoint))
        return denied if denied else (slot, way.to, narrowing)

    def _accept(self, grant: Grant, parent: Slot | None, serial: int) -> int:
        """Enter a slot that was passed on into the peer's table."""
        domid = self.slots.directory.domid_of(grant.holder)
        if domid is None or not self.slots.is_local(grant.holder):
            return _ERRNO["peer unknown"]
        holder = self.slots.holder(domid)
        if len(holder.slots) >= MAX_SLOTS or holder.next_number > LAST_NUMBER:
            return _ERRNO["peer's table full"]
        if (grant.source_port, grant.port) in holder.by_key:
            return _ERRNO["peer has such a slot"]
        slot = Slot(
            SlotId(holder.path, holder.next_number), grant.source_port, grant.port, grant.to, grant.to_port,
            grant.narrowing, delegable=grant.delegable, chain=grant.chain, parent=parent, serial=serial,
        )  # fmt: skip
        holder.next_number += 1
        self.slots.enter(holder, slot)
        if parent is None:
            self._from_far[grant.parent, serial] = slot
        else:
            parent.children[serial] = Child(holder.path, slot, 0.0)
        return 0

    # -- requests of other hypervisors ----

    def told(self, message: Message, origin: Path) -> Ticket:
        """A request of the hypervisor at `origin` (whoever calls has made sure that it is).

        Answer it with the ticket's `ret` when the ticket is done.  -EPERM: it speaks of slots that are not its own.
        """
        if not _may_say(message, origin):
            return Ticket(-Errno.EPERM)
        match message:
            case Grant():
                return Ticket(self._accept_far(message))
            case Forget():
                self.slots.drop_rights(message.slot)
            case ForgetSource():
                return self._forget_source(message, origin)
            case Revoke() | Narrow():
                slot = self._from_far.get((message.parent, message.serial))
                ticket = Ticket()
                if slot is not None and isinstance(message, Narrow):
                    self._narrow(slot, message.narrowing, ticket)
                elif slot is not None:
                    self._cut(slot, ticket)
                return ticket
        return Ticket()

    def _accept_far(self, grant: Grant) -> int:
        """A grant from another hypervisor: what could be judged there is judged again with what is known here."""
        directory = self.slots.directory
        source, recipient = (directory.domid_of(path) for path in (grant.parent.holder, grant.holder))
        giver = None if source is None else directory.domain(source)
        taker = None if recipient is None else directory.domain(recipient)
        if giver is None or taker is None or not grant.to:
            return _ERRNO["peer unknown"]
        if not grant.chain or grant.chain[-1] != grant.parent or len(grant.chain) >= MAX_CHAIN:
            return _ERRNO["chain too long"]
        if grant.narrowing.empty or (grant.source_port is None and grant.port is None):
            return _ERRNO["nothing left"]
        if (grant.parent, grant.serial) in self._from_far:
            return _ERRNO["peer has such a slot"]
        endpoint = directory.domid_of(grant.to)
        denied = self.judge.delegate(giver, taker, None if endpoint is None else directory.domain(endpoint))
        return denied or self._accept(grant, None, grant.serial)

    def _forget_source(self, message: ForgetSource, origin: Path) -> Ticket:
        """A guest further in lost its way up: whoever it may have reached by way of us must not answer."""
        ticket = Ticket()
        domid = self.slots.directory.domid_of(message.source)
        if domid is not None:
            self.slots.drop_rights_with(domid)
        child = self.slots.directory.domid_of(origin)
        holder = None if child is None else self.slots.holders.get(child)
        for slot in [] if holder is None else holder.slots.values():
            if not slot.to:
                if len(self.slots.directory.path) > 1:
                    self._tell(ticket, self.slots.directory.path[:-1], message)
            elif not self.slots.is_local(slot.to):
                self._tell(ticket, slot.to[:-1], message)
        return ticket


def _may_say(message: Message, origin: Path) -> bool:
    """Each hypervisor speaks of the slots that its own guests hold, and of all sources inside it."""
    match message:
        case Forget():
            return message.slot.holder[:-1] == origin
        case ForgetSource():
            return message.source[: len(origin)] == origin
        case _:
            return message.parent.holder[:-1] == origin


def _asked(call: DelegateCall) -> Narrowing:
    """What a DELEGATE restricts."""
    return Narrowing(
        normal(call.ranges) if call.flags & DelegateFlag.PORTS else ALL_PORTS,
        call.types if call.flags & DelegateFlag.TYPES else None,
        float(call.rate),
    )


def _passes(slot: Slot) -> Narrowing:
    """What a slot lets pass, the one port that it leads to considered."""
    port = slot.port if slot.to_port is None else slot.to_port
    return slot.narrowing if port is None else Narrowing(ports=((port, port),)).within(slot.narrowing)
