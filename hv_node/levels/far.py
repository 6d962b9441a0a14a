"""What guests of other hypervisors do to ours: executed once, answered as often as asked.  Experimental."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import VIRQ_ARGO, Op
from hmx.errno import Errno
from hv_node.argo.sendv import send_several
from hv_node.domain import Domain
from hv_node.levels.answers import Admission, Answer, Answers
from hv_node.levels.calls import FLOOR_MASK
from hv_node.levels.carried import CARRY
from hv_node.levels.notices import notice
from hv_node.levels.paths import ITSELF, Path, absolute
from hv_node.levels.remote import (
    BACK_SHIFT,
    BATCH,
    POSTED,
    TABLE,
    PayloadError,
    execute_query,
    execute_send,
    pack_failures,
    unpack_batch,
)

if TYPE_CHECKING:
    from hv_node.levels.level import Level

MAX_HELD: Final = 1024  # posted messages of one source for one port that wait for room; the credit is smaller
RETRY_NS: Final = 50_000_000  # a receiver need not notify: look again
_NO_ROOM: Final = frozenset({-int(Errno.EAGAIN), -int(Errno.EBUSY)})
REFUSED: Final = -int(Errno.ECONNREFUSED)
_GONE: Final = Answer(-int(Errno.ESRCH))
_SENSELESS: Final = Answer(-int(Errno.EINVAL))
_ASKED: Final = frozenset({EnvelopeKind.SEND, EnvelopeKind.QUERY})
_NOTICES: Final = {
    Admission.RUNNING: notice("another copy is being executed"),
    Admission.FENCED: notice("fenced"),
    Admission.FULL: notice("no room on the way"),
}


class _Held:
    """Posted messages that travelled together, of which the ring has no room for all."""

    __slots__ = ("done", "envelope", "failures", "messages")

    def __init__(self, envelope: Envelope, payload: bytes) -> None:
        """PayloadError: it makes no sense."""
        self.envelope = envelope
        self.messages = unpack_batch(payload) if envelope.ret & BATCH else [payload]
        self.done = 0
        self.failures: list[tuple[int, int]] = []

    def run(self, execute: Callable[[Envelope, list[bytes]], list[int]]) -> bool:
        """Execute what is left, in order, until one finds no room.  Whether all are done."""
        for ret in execute(self.envelope, self.messages[self.done :] if self.done else self.messages):
            if ret in _NO_ROOM:
                return False
            self._note(ret)
        return True

    def refuse(self, ret: int) -> None:
        """What is left will not be executed."""
        while self.done < len(self.messages):
            self._note(ret)

    def _note(self, ret: int) -> None:
        if ret < 0:
            self.failures.append((self.done, ret))
        self.done += 1

    @property
    def answer(self) -> Answer:
        """What they are answered when all are done."""
        if self.envelope.ret & BATCH:
            return Answer(0, pack_failures(self.failures))
        return Answer(self.failures[0][1] if self.failures else len(self.messages[0]))


class Far:
    """The far side of every operation that comes in."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self.answers = Answers()
        self._held: dict[tuple[int, str, int], deque[_Held]] = {}  # by (source's proxy, guest, port)
        self._retry_at: int | None = None

    def arrived(self, envelope: Envelope, payload: bytes) -> None:
        """A request or a saying for us or a guest of ours; its `src_path` is complete."""
        path = absolute(envelope.src_path)
        floor = envelope.cookie & FLOOR_MASK
        admission, answer = self.answers.admit(path[:-1], envelope.origin_epoch, envelope.origin_seq, floor)
        asked = envelope.kind in _ASKED
        if admission is Admission.NEW:
            answer = self._execute(path, envelope, payload)
            if answer is None:
                return
            self._done(path, envelope, answer)
        elif answer is not None:
            self._level.reply(envelope, answer)
        elif asked:
            self._level.notice(envelope, _NOTICES[admission])
        elif admission is Admission.FENCED:
            self._level.reply(envelope, Answer(0))

    def _done(self, path: Path, envelope: Envelope, answer: Answer) -> None:
        self.answers.done(path[:-1], envelope.origin_epoch, envelope.origin_seq, answer)
        self._level.reply(envelope, answer)

    def _execute(self, path: Path, envelope: Envelope, payload: bytes) -> Answer | None:
        """The answer; None where it is given, or will be, by other means."""
        level = self._level
        kind = envelope.kind
        try:
            if kind == EnvelopeKind.SEND:
                return self._send(path, envelope, payload)
            if kind == EnvelopeKind.QUERY:
                return self._query(path, envelope, payload)
        except PayloadError as error:
            level.counters.malformed += 1
            level.host.event("malformed-envelope", "/".join(path), str(error))
            return _SENSELESS
        if kind == EnvelopeKind.WAKE:
            self._wake(path, envelope)
        elif kind == EnvelopeKind.ENDPOINT_DIED:
            level.died(path, envelope.op, payload, envelope.origin_epoch)
        return Answer(0)

    def _wake(self, path: Path, envelope: Envelope) -> None:
        level = self._level
        if envelope.dst == (*level.path, ITSELF):
            if path[:-1] == level.path[:-1]:
                level.wards.woken()
            return
        guest = level.guest(str(envelope.dst[-1]))
        if guest is not None:
            level.host.raise_virq(guest.domid, VIRQ_ARGO)

    # -- sendv ----

    def _send(self, path: Path, envelope: Envelope, payload: bytes) -> Answer | None:
        level = self._level
        if len(envelope.dst) == len(level.path) or not envelope.dst[-1]:
            return self._upwards(path, envelope, payload)
        source = level.proxies.meet(path, envelope.origin_epoch, envelope.label)
        guest = level.guest(str(envelope.dst[-1]))
        if source is None or guest is None:
            return _GONE
        if not envelope.ret & POSTED:
            ret = self._run(source, guest, envelope, payload)
            if ret >= 0 and level.on_reached is not None:
                level.on_reached(guest.domid)
            return Answer(ret)
        return self._posted(path, source, guest, envelope, payload)

    def _upwards(self, path: Path, envelope: Envelope, payload: bytes) -> Answer | None:
        """A message that a nested hypervisor leaves to us to direct; whoever executes it remembers it."""
        level = self._level
        found = _GONE.ret if level.on_upwards is None else level.on_upwards(path, envelope)
        if isinstance(found, int):
            return Answer(found)
        dst, port, *op = found
        envelope = envelope._replace(dst=dst, port_dst=port, op=op[0] if op else envelope.op)
        if dst[:-1] == level.path and dst[-1]:
            return self._send(path, envelope, payload)
        self.answers.withdrawn(path[:-1], envelope.origin_epoch, envelope.origin_seq)
        level.redirect(envelope, payload)
        return None

    def _run(self, source: Domain, guest: Domain, envelope: Envelope, payload: bytes) -> int:
        level = self._level
        ret = execute_send(level.argo, source, guest, envelope, payload)
        counters = level.counters
        counters.executed += 1
        if ret >= 0:
            counters.delivered += 1
            counters.delivered_bytes += ret
            if level.on_delivered is not None:
                level.on_delivered(envelope.op, guest.domid, source.domid, envelope.port_src)
        return ret

    def _run_all(self, source: Domain, guest: Domain, envelope: Envelope, messages: list[bytes]) -> list[int]:
        """Posted messages that travelled together: results up to the first that finds no room."""
        if envelope.ret & TABLE:
            return [self._run(source, guest, envelope, messages[0])]
        level, counters = self._level, self._level.counters
        ports = envelope.port_src, guest.domid, envelope.port_dst
        level.host.begin_run()
        try:
            results = send_several(level.argo, source, messages, *ports, envelope.msg_type, _NO_ROOM)
        finally:
            level.host.end_run()
        delivered = [ret for ret in results if ret >= 0]
        counters.executed += len(results)
        counters.delivered += len(delivered)
        counters.delivered_bytes += sum(delivered)
        if delivered and level.on_delivered is not None:
            level.on_delivered(envelope.op, guest.domid, source.domid, envelope.port_src)
        return results

    def _posted(
        self, path: Path, source: Domain, guest: Domain, envelope: Envelope, payload: bytes
    ) -> Answer | None:
        """In the order in which they were posted; one that finds no room waits here."""
        origin, seq = path[:-1], envelope.origin_seq
        back = envelope.ret >> BACK_SHIFT
        key = (source.domid, str(envelope.dst[-1]), envelope.port_dst)
        held = self._held.get(key)
        if (back and not self.answers.seen(origin, seq - back)) or (held is not None and len(held) >= MAX_HELD):
            self.answers.withdrawn(origin, envelope.origin_epoch, seq)
            self._level.notice(envelope, notice("no room on the way"))
            return None
        posted = _Held(envelope, payload)
        if held is None:
            if posted.run(partial(self._run_all, source, guest)):
                return posted.answer
            held = self._held[key] = deque()
        held.append(posted)
        return None

    def retry(self, domid: int | None = None) -> None:
        """There may be room: for what the proxy `domid` posted, or for all."""
        level = self._level
        for key in [key for key in self._held if domid is None or key[0] == domid]:
            held = self._held[key]
            source, guest = level.domains.lookup(key[0]), level.guest(key[1])
            while held:
                posted = held[0]
                envelope = posted.envelope
                path = absolute(envelope.src_path)
                stale = self.answers.stale(path[:-1], envelope.origin_epoch)
                if source is None or source.argo is None or guest is None or stale:
                    posted.refuse(_GONE.ret)
                elif not posted.run(partial(self._run_all, source, guest)):
                    break
                held.popleft()
                self._done(path, envelope, posted.answer)
            else:
                self._held.pop(key, None)

    def drop(self, unwanted: Callable[[Path, Envelope], bool]) -> None:
        """Posted messages that wait for room and may not arrive any more: refused."""
        for key, held in list(self._held.items()):
            for one in [one for one in held if unwanted(absolute(one.envelope.src_path), one.envelope)]:
                held.remove(one)
                one.refuse(REFUSED)
                self._done(absolute(one.envelope.src_path), one.envelope, one.answer)
            if not held:
                self._held.pop(key, None)

    @property
    def held(self) -> int:
        """Posted messages that wait for room."""
        return sum(len(one.messages) - one.done for held in self._held.values() for one in held)

    def on_timer(self, now_ns: int) -> None:
        """Look again at what is held."""
        if not self._held:
            self._retry_at = None
        elif self._retry_at is None:
            self._retry_at = now_ns + RETRY_NS
        elif now_ns >= self._retry_at:
            self._retry_at = now_ns + RETRY_NS
            self.retry()

    def deadline(self, known_ns: int) -> int | None:
        """When `on_timer` has something to do."""
        if not self._held:
            return None
        return known_ns if self._retry_at is None else self._retry_at

    # -- notify, and what others ask ----

    def _query(self, path: Path, envelope: Envelope, payload: bytes) -> Answer | None:
        level = self._level
        if envelope.op == CARRY:
            return level.wards.carried(path, payload, lambda answer: self._done(path, envelope, answer))
        if envelope.op != Op.NOTIFY:
            return level.requested(path, envelope.op, payload)
        source = level.proxies.meet(path, envelope.origin_epoch, envelope.label)
        if source is None:
            return _GONE
        level.counters.executed += 1
        ret, reply = execute_query(level.argo, source, payload, level.guest)
        if not ret and envelope.ret < 0:
            ret = envelope.ret  # what a level on the way refused behind these entries
        return Answer(ret, reply)
