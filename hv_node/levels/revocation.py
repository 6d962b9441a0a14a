"""Taking slots away, and less of them: here at once, and on every other hypervisor before anybody is told so.

Experimental, not upstream.  A slot that was passed on is a child of the slot that it came from and goes before it.
Where a child lives on another hypervisor, or where somebody there may still answer what came through a slot, that
hypervisor is told; the ticket is `done` when all who were told have answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hmx.errno import Errno
from hv_node.levels.narrowing import Narrowing
from hv_node.levels.slot_messages import Forget, ForgetSource, Message, Narrow, Revoke
from hv_node.levels.slot_table import Path, Slot, SlotId
from hv_node.levels.slots import Slots


class Tell(NamedTuple):
    """A request to the hypervisor at `to`; `key` is for `answered`."""

    key: int
    to: Path
    message: Message


class Ticket:
    """An operation on slots.  `done` when everybody has answered; `ret` is then its result.

    `removed`: slots that are gone from this hypervisor, children before their parents.  `token` is the owner's.
    """

    __slots__ = ("child", "removed", "ret", "tells", "token", "waiting")

    def __init__(self, ret: int = 0) -> None:
        self.ret = ret
        self.tells: list[Tell] = []
        self.waiting: dict[int, Path] = {}
        self.removed: list[SlotId] = []
        self.child: tuple[Slot, int] | None = None  # of a grant: whose child, under which serial
        self.token: object = None

    @property
    def done(self) -> bool:
        """Everybody has answered."""
        return not self.waiting


class Revocation:
    """The tickets of one hypervisor's slots, and how slots go."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self._next = 1
        self._tickets: dict[int, Ticket] = {}  # by the key of each unanswered tell
        self._from_far: dict[tuple[SlotId, int], Slot] = {}  # slots whose parents live elsewhere

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _tell(self, ticket: Ticket, to: Path, message: Message) -> None:
        tell = Tell(self._number(), to, message)
        ticket.tells.append(tell)
        ticket.waiting[tell.key] = to
        self._tickets[tell.key] = ticket

    def _lend(self, slot: Slot, rate: float) -> None:
        """Take a share of the rate out of a slot and of those it came from; a negative one comes back."""
        for member in slot.lineage():
            member.lent += rate
            member.set_rate(self.slots.now_ns)

    # -- narrowing and revoking ----

    def _narrow(self, slot: Slot, narrowing: Narrowing, ticket: Ticket) -> None:
        slot.narrowing = narrowing.within(slot.narrowing)
        for serial, child in list(slot.children.items()):
            if child.slot is not None:
                self._narrow(child.slot, narrowing, ticket)
            elif slot.narrowing.rate and not child.rate:
                self._cut_far(slot, serial, ticket)  # it would have the whole rate once more
            else:
                self._tell(ticket, child.holder[:-1], Narrow(slot.id, serial, narrowing))
        if slot.narrowing.rate and slot.lent >= slot.narrowing.rate:
            for member in list(_tree(slot)):
                for serial in [serial for serial, child in member.children.items() if child.slot is None]:
                    self._cut_far(member, serial, ticket)
        slot.set_rate(self.slots.now_ns)

    def _cut_far(self, slot: Slot, serial: int, ticket: Ticket) -> None:
        """Revoke a child that lives on another hypervisor."""
        child = slot.children.pop(serial)
        self._lend(slot, -child.rate)
        self._given_back(slot)
        self._tell(ticket, child.holder[:-1], Revoke(slot.id, serial))

    def _cut(self, slot: Slot, ticket: Ticket) -> None:
        """Revoke a slot: its children first, then what it gave, then itself."""
        for serial, child in list(slot.children.items()):
            if child.slot is not None:
                self._cut(child.slot, ticket)
            else:
                self._cut_far(slot, serial, ticket)
        if not slot.to:
            self._forget_upwards(slot, ticket)
        elif not self.slots.is_local(slot.to):
            self._tell(ticket, slot.to[:-1], Forget(slot.id))
        self.slots.leave(slot)
        if slot.parent is not None:
            del slot.parent.children[slot.serial]
            self._given_back(slot.parent)
        elif slot.chain:
            self._from_far.pop((slot.chain[-1], slot.serial), None)
        ticket.removed.append(slot.id)

    def _given_back(self, slot: Slot) -> None:
        self.slots.by_path[slot.id.holder].delegated -= 1

    def _forget_upwards(self, slot: Slot, ticket: Ticket) -> None:
        """Who was reached is known further out only."""
        if len(self.slots.directory.path) > 1:
            self._tell(ticket, self.slots.directory.path[:-1], ForgetSource(slot.id.holder))

    # -- other hypervisors ----

    def answered(self, key: int, ret: int) -> Ticket | None:
        """A tell was answered.  The ticket, if that was the last answer it waited for.

        A hypervisor may only refuse a grant; other messages say what is so already.
        """
        ticket = self._tickets.pop(key, None)
        if ticket is None or ticket.waiting.pop(key, None) is None:
            return None
        if ticket.child is not None:
            slot, serial = ticket.child
            if ret < 0 and serial in slot.children:
                child = slot.children.pop(serial)
                self._lend(slot, -child.rate)
                self._given_back(slot)
            ticket.ret = ret
        return ticket if ticket.done else None

    def lost(self, hypervisor: Path) -> tuple[list[Ticket], Ticket]:
        """A hypervisor, and all that is inside it, is gone for good.

        The tickets that waited only for it; and a new one for what was made from slots that lived there, which nobody
        could revoke any more, and which are gone.
        """

        def inside(path: Path) -> bool:
            return path[: len(hypervisor)] == hypervisor

        finished = []
        for key, ticket in list(self._tickets.items()):
            if inside(ticket.waiting[key]):
                finished.append(self.answered(key, -Errno.ECONNREFUSED))
        for slot in self.slots:
            for serial, child in list(slot.children.items()):
                if child.slot is None and inside(child.holder):
                    del slot.children[serial]
                    self._lend(slot, -child.rate)
                    self._given_back(slot)
        orphans = Ticket()
        for (parent, _), slot in list(self._from_far.items()):
            if inside(parent.holder):
                self._cut(slot, orphans)
        for origin in [path for path in self.slots.far_rights if inside(path)]:
            for slot_id in list(self.slots.far_rights[origin]):
                self.slots.drop_rights(slot_id)
            del self.slots.far_rights[origin]
        return [ticket for ticket in finished if ticket is not None], orphans


def _tree(slot: Slot) -> Iterator[Slot]:
    """The slot and its children on this hypervisor, parents first."""
    yield slot
    for child in list(slot.children.values()):
        if child.slot is not None:
            yield from _tree(child.slot)

