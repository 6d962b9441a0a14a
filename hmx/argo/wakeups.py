"""Who waits for room in which foreign ring: the sender's half of notify, without I/O.

A hypervisor tells a sender "there is room somewhere" with the VIRQ that also means "a message came": no
ring, no size. So a domain keeps the list itself, and after each VIRQ asks about every ring that somebody
waits for. The owner of a `Wakeups` calls `want` for each waiter, `woken` on each VIRQ_ARGO, and carries
`batch` to notify and its answers to `absorb`, until `batch` is empty.

What the hypervisor remembers is one size per ring and waiting domain, the largest asked for. Waiters of
one ring are therefore served in order of arrival, one question at a time, and a smaller question after a
larger one is preceded by a question about 0 bytes, which always answers "sufficient" and disarms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from enum import Enum

from hmx.argo.abi import MAX_NOTIFY_ENTRIES, Address, NotifyFlag
from hmx.argo.calls import SpaceAnswer, SpaceQuery
from hmx.errno import Errno

_EXISTS = int(NotifyFlag.EXISTS)
_SUFFICIENT = int(NotifyFlag.SUFFICIENT)
_EMSGSIZE = int(NotifyFlag.EMSGSIZE)
_EBUSY = int(NotifyFlag.EBUSY)


class Outcome(Enum):
    """How a wait ended.  Each ends it: who still wants room calls `want` again."""

    SUFFICIENT = "there was room; send now, and be ready for -EAGAIN again"
    GONE = "no such ring that this domain may send to"
    TOO_BIG = "larger than the ring ever takes"
    BUSY = "the ring's queue of waiters is full: no wake-up will come, try later"


class _Place:
    """One foreign ring: its waiters in order of arrival as (waiter, bytes), and what is armed there."""

    __slots__ = ("armed", "ask", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[tuple[Hashable, int]] = deque()
        self.armed = 0  # the size that the hypervisor may hold for us; 0: none
        self.ask = False


class Wakeups:
    """The waiters of one domain.  A waiter is any hashable object and waits for one ring at a time."""

    def __init__(self) -> None:
        self._places: dict[Address, _Place] = {}
        self._where: dict[Hashable, Address] = {}
        self._asked: list[SpaceQuery] = []
        self._single: set[Address] = set()  # asked one at a time, since a batch with them was refused
        #: Counts what may have ended an arming: VIRQs, and answers that disarm; see `want`.
        self.generation = 0

    def __len__(self) -> int:
        """Waiters."""
        return len(self._where)

    def want(self, address: Address, size: int, waiter: Hashable, *, armed_since: int | None = None) -> None:
        """`waiter` waits until `size` payload bytes fit the ring at `address`.  It leaves any wait it was in.

        `armed_since`: the caller tried sendv, which answered -EAGAIN and thereby armed the wake-up; the
        value is `generation` as read before that call. Nothing is asked then until a VIRQ comes, unless
        one came since.
        """
        size = max(size, 1)  # room for nothing is always "sufficient", yet a bare header may find none
        self.forget(waiter)
        place = self._places.setdefault(address, _Place())
        place.waiters.append((waiter, size))
        self._where[waiter] = address
        if armed_since is not None:
            place.armed = max(place.armed, size)
        if armed_since != self.generation:
            place.ask = True

    def forget(self, waiter: Hashable) -> None:
        """End the wait of `waiter`, if any, without an outcome."""
        address = self._where.pop(waiter, None)
        if address is None:
            return
        place = self._places[address]
        if place.waiters[0][0] == waiter:
            place.ask = True  # for the next in line, or to disarm
        place.waiters = deque(entry for entry in place.waiters if entry[0] != waiter)

    def woken(self) -> None:
        """A VIRQ_ARGO came: there may be room anywhere."""
        self.generation += 1
        for place in self._places.values():
            place.ask = True

    def pending(self) -> bool:
        """Whether `batch` would have questions."""
        return any(place.ask and (place.waiters or place.armed) for place in self._places.values())

    def batch(self) -> list[SpaceQuery]:
        """The next questions for notify, at most 256; empty when there are none.

        The answers go to `absorb` before the next batch is taken.
        """
        queries: list[SpaceQuery] = []
        for address, place in list(self._places.items()):
            size = place.waiters[0][1] if place.waiters else 0
            if not size and not place.armed:
                del self._places[address]
                continue
            if not place.ask:
                continue
            questions = [SpaceQuery(address, 0)] if place.armed > size else []
            if size:
                questions.append(SpaceQuery(address, size))
            single = address in self._single
            if (single and queries) or len(queries) + len(questions) > MAX_NOTIFY_ENTRIES:
                continue
            queries += questions
            place.ask = False
            if single:
                break
        self._asked = queries
        return queries

    def absorb(self, result: int, answers: Sequence[SpaceAnswer]) -> list[tuple[Hashable, Outcome]]:
        """What notify said to the last batch: its result, one answer a query.  Returns ended waits."""
        asked, self._asked = self._asked, []
        ended: list[tuple[Hashable, Outcome]] = []
        if result < 0:
            self._refused(asked, result, ended)
            return ended
        for query, answer in zip(asked, answers, strict=True):
            place = self._places.get(query.address)
            if place is None:
                continue
            self._single.discard(query.address)
            flags = answer.flags
            if not flags & _EXISTS:
                place.armed = 0
                self._end_all(query.address, place, Outcome.GONE, ended)
            elif not query.space_required:
                self._disarmed(place)
                place.ask = bool(place.waiters)  # the real question follows, for whoever came meanwhile too
            elif flags & _EMSGSIZE:
                self._end_first(place, query, Outcome.TOO_BIG, ended)
            elif flags & _SUFFICIENT:
                self._disarmed(place)
                self._end_first(place, query, Outcome.SUFFICIENT, ended)
            elif flags & _EBUSY:
                self._end_first(place, query, Outcome.BUSY, ended)
            else:
                place.armed = max(place.armed, query.space_required)
        return ended

    def _disarmed(self, place: _Place) -> None:
        """The answer took an armed wake-up away, also one of a send whose refusal is not booked yet: see `want`."""
        place.armed = 0
        self.generation += 1

    def _end_first(
        self, place: _Place, query: SpaceQuery, outcome: Outcome, ended: list[tuple[Hashable, Outcome]]
    ) -> None:
        """End the wait that the query was for; it may have been forgotten meanwhile."""
        if place.waiters and place.waiters[0][1] == query.space_required:
            waiter = place.waiters.popleft()[0]
            del self._where[waiter]
            ended.append((waiter, outcome))
        place.ask = bool(place.waiters)

    def _end_all(
        self, address: Address, place: _Place, outcome: Outcome, ended: list[tuple[Hashable, Outcome]]
    ) -> None:
        for waiter, _ in place.waiters:
            del self._where[waiter]
            ended.append((waiter, outcome))
        del self._places[address]

    def _refused(self, asked: list[SpaceQuery], result: int, ended: list[tuple[Hashable, Outcome]]) -> None:
        """The whole call failed: an entry was denied, or memory ran out.  Ask singly to find the culprit."""
        addresses = dict.fromkeys(query.address for query in asked)
        for address in addresses:
            place = self._places.get(address)
            if place is None:
                continue
            if len(addresses) > 1:
                self._single.add(address)
                place.ask = True
            elif result in (-Errno.ENOMEM, -Errno.EAGAIN):
                self._end_all(address, place, Outcome.BUSY, ended)
            else:
                self._single.discard(address)
                self._end_all(address, place, Outcome.GONE, ended)
