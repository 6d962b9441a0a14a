"""Carrying what slots have to say to other hypervisors until they have answered.  Experimental, not upstream.

A ticket (hv_node.levels.revocation) names whom it has to be told.  Each is asked by a request of the level, which
travels behind the data that went before it.  Who was asked answers at once, or says that it must ask others first and
tells when they have answered.  A hypervisor that cannot be reached has not answered: what takes something away is
asked again until it is there, or dead.  What a guest still has under way through a slot that was taken from it is
refused where it provably never left, and awaited where it may have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from broker.codec import CodecError, pack, unpack_array
from broker.envelope import Envelope, EnvelopeKind
from hmx.errno import Errno
from hv_node.levels.delegation import Delegation
from hv_node.levels.paths import Path, within
from hv_node.levels.revocation import Tell, Ticket
from hv_node.levels.slot_messages import Forget, Grant, MessageError, Revoke, read, record
from hv_node.levels.slot_table import SlotId, op_of, slot_of

if TYPE_CHECKING:
    from hv_node.levels.level import Level

AGAIN_NS: Final = 100_000_000
"""From an answer that is none to the next question."""
LOOK_NS: Final = 50_000_000
"""How often operations under way are looked at, if nothing else happens."""
LATER: Final = 1
"""Answer to a question: others have to be asked first, FINISHED follows."""
_REFUSED: Final = -int(Errno.ECONNREFUSED)
_UNKNOWN: Final = -int(Errno.EIO)
_NO_ANSWER: Final = frozenset({_REFUSED, _UNKNOWN})
_SENSELESS: Final = -int(Errno.EINVAL)

Done = Callable[[int], None]


class Request(IntEnum):
    """What hypervisors tell each other about slots; the number space is that of hmx.slots.SlotOp."""

    TELL = 0x4000_0020  # [key, message of slot_messages]: 0, a refusal, or LATER
    FINISHED = 0x4000_0021  # [key, result] of a TELL that was answered with LATER


def _unknown(_origin: Path, _op: int, _payload: bytes) -> tuple[int, bytes]:
    return -int(Errno.EOPNOTSUPP), b""


@dataclass(slots=True, eq=False)
class _Job:
    """A ticket on its way, the operations that it waits for, and who wants to know."""

    ticket: Ticket
    done: Done | None
    under_way: set[int] = field(default_factory=set)


class Errands:
    """The tickets of one hypervisor."""

    def __init__(self, level: Level, delegation: Delegation) -> None:
        self.malformed = 0
        self._level = level
        self._delegation = delegation
        self._jobs: dict[Ticket, _Job] = {}
        self._asked: dict[int, Tell] = {}  # by key: those of ours that are unanswered
        self._working: set[tuple[Path, int]] = set()  # those of others that we answered with LATER
        self._lost: set[Path] = set()  # hypervisors of which nothing was heard since they died
        self._again: list[tuple[int, Callable[[], None]]] = []
        self.others: Callable[[Path, int, bytes], tuple[int, bytes]] = _unknown
        level.on_request = self.requested

    @property
    def open(self) -> int:
        """Tickets that are not done."""
        return len(self._jobs)

    # -- ours ----

    def carry(self, ticket: Ticket, done: Done | None = None) -> None:
        """Tell whom the ticket names; `done(result)` when all have answered, perhaps before this returns."""
        job = self._jobs[ticket] = _Job(ticket, done)
        for slot_id in ticket.removed:
            job.under_way |= self._under_way(slot_id)
        for tell in ticket.tells:
            self._asked[tell.key] = tell
        for tell in ticket.tells:
            self._ask(tell)
        self._look(job)

    def _under_way(self, slot_id: SlotId) -> set[int]:
        """Numbers of the sends through a slot that may yet arrive; those that never left are refused."""
        level = self._level
        op = op_of(slot_id)
        left = set()
        for one in level.calls:
            envelope = one.envelope
            if envelope.kind != EnvelopeKind.SEND or envelope.op != op or envelope.src_path[0] != slot_id.holder[-1]:
                continue
            if one.out:
                left.add(one.seq)
            else:
                level.calls.give_up(one)
        return left

    def _ask(self, tell: Tell) -> None:
        if self._level.is_dead(tell.to):
            self._answered(tell, _REFUSED)
            return
        payload = pack([tell.key, record(tell.message)])
        self._level.request(tell.to, Request.TELL, payload, lambda ret, _reply: self._heard(tell, ret))

    def _heard(self, tell: Tell, ret: int) -> None:
        if tell.key and self._asked.get(tell.key) is not tell:
            return  # FINISHED came first, or there is nobody left to ask
        if ret not in _NO_ANSWER:
            self._lost.discard(tell.to)
            if ret != LATER:
                self._answered(tell, ret)
        elif isinstance(tell.message, Grant) or self._gone(tell.to):
            self._answered(tell, ret)
            if ret == _UNKNOWN and isinstance(tell.message, Grant):
                grant = tell.message
                self._ask(Tell(0, tell.to, Revoke(grant.parent, grant.serial)))
        else:
            self._later(lambda: self._ask(tell))

    def _gone(self, far: Path) -> bool:
        return far in self._lost or self._level.is_dead(far)

    def _later(self, action: Callable[[], None]) -> None:
        self._again.append((self._level.now_ns + AGAIN_NS, action))

    def _answered(self, tell: Tell, ret: int) -> None:
        self._asked.pop(tell.key, None)
        ticket = self._delegation.answered(tell.key, ret)
        if ticket is not None and ticket in self._jobs:
            self._look(self._jobs[ticket])

    def _look(self, job: _Job) -> None:
        """End a job that is over."""
        job.under_way = {seq for seq in job.under_way if self._level.calls.find(seq) is not None}
        over = job.ticket.done and not job.under_way
        if over and self._jobs.pop(job.ticket, None) is not None and job.done is not None:
            job.done(job.ticket.ret)

    # -- others' ----

    def requested(self, path: Path, op: int, payload: bytes) -> tuple[int, bytes]:
        """Another hypervisor asks: (result, nothing)."""
        origin = path[:-1]
        self._lost.discard(origin)
        if op not in tuple(Request):
            return self.others(origin, op, payload)
        try:
            match op, unpack_array(payload):
                case Request.TELL, [int(key), message]:
                    return self._told(origin, key, message), b""
                case Request.FINISHED, [int(key), int(ret)]:
                    tell = self._asked.get(key)
                    if tell is not None and tell.to == origin:
                        self._answered(tell, ret)
                    return 0, b""
        except (CodecError, MessageError):
            pass
        self.malformed += 1
        return _SENSELESS, b""

    def _told(self, origin: Path, key: int, found: Any) -> int:
        if (origin, key) in self._working:
            return LATER
        message = read(found)
        ticket = self._delegation.told(message, origin)
        if isinstance(message, Forget) and ticket.ret >= 0:
            self._drop_held(message.slot)
        answer: list[int] = []
        late: list[bool] = []

        def done(ret: int) -> None:
            if late:
                self._working.discard((origin, key))
                self._finished(origin, key, ret)
            else:
                answer.append(ret)

        self.carry(ticket, done)
        if answer:
            return answer[0]
        late.append(True)
        self._working.add((origin, key))
        return LATER

    def _drop_held(self, slot_id: SlotId) -> None:
        """Messages that were posted through the slot, and for which there was no room up to now."""

        def through(path: Path, envelope: Envelope) -> bool:
            return slot_of(envelope.op, path) == slot_id

        self._level.far.drop(through)

    def _finished(self, origin: Path, key: int, ret: int) -> None:
        def heard(result: int, _reply: bytes) -> None:
            if result in _NO_ANSWER and not self._gone(origin):
                self._later(lambda: self._finished(origin, key, ret))

        if not self._level.is_dead(origin):
            self._level.request(origin, Request.FINISHED, pack([key, ret]), heard)

    # -- deaths, time ----

    def lost(self, hypervisor: Path) -> None:
        """A hypervisor is dead, and all inside it."""
        self._lost |= {tell.to for tell in self._asked.values() if within(hypervisor, tell.to)} | {hypervisor}
        for key in [key for key, tell in self._asked.items() if within(hypervisor, tell.to)]:
            del self._asked[key]
        self._working = {known for known in self._working if not within(hypervisor, known[0])}
        finished, orphans = self._delegation.lost(hypervisor)
        for ticket in finished:
            if ticket in self._jobs:
                self._look(self._jobs[ticket])
        self.carry(orphans)

    def turn(self, now_ns: int) -> None:
        """Ask again, look again."""
        due = [item for item in self._again if item[0] <= now_ns]
        if due:
            self._again = [item for item in self._again if item[0] > now_ns]
            for _, action in due:
                action()
        for job in list(self._jobs.values()):
            if job.under_way:
                self._look(job)

    def next_deadline(self, now_ns: int) -> int | None:
        """When `turn` has something to do."""
        moments = [at for at, _ in self._again]
        if any(job.under_way for job in self._jobs.values()):
            moments.append(now_ns + LOOK_NS)
        return min(moments, default=None)
