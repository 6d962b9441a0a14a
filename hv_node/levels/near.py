"""What our own guests do to guests of other hypervisors, and what others are told.  Experimental, not upstream."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.envelope import EnvelopeKind
from hmx.argo.abi import VIRQ_ARGO, Op
from hmx.errno import Errno
from hv_node.argo.notify import Entries, QueryAnswer, QueryEntry
from hv_node.domain import Domain
from hv_node.effects import PENDING
from hv_node.levels.calls import Operation
from hv_node.levels.options import POSTED_BYTES, Death
from hv_node.levels.paths import ITSELF, Path
from hv_node.levels.proxies import RemoteEnd
from hv_node.levels.remote import (
    BACK_SHIFT,
    BATCH,
    MAX_BATCH,
    MAX_BATCH_BYTES,
    POSTED,
    pack_batch,
    pack_message,
    pack_query,
    unpack_answers,
    unpack_failures,
)

if TYPE_CHECKING:
    from hv_node.levels.level import Level

_SENDV: Final = int(Op.SENDV)
_NO_CREDIT: Final = -int(Errno.EAGAIN)


class _Flow(NamedTuple):
    """From a guest's port to one elsewhere, messages of one type."""

    caller: int
    proxy: int
    src_port: int
    dst_port: int
    message_type: int


@dataclass(slots=True, eq=False)
class _Batch:
    """Posted messages of one flow that travel as one operation.  While an earlier one is unsettled it waits for more:
    until that is answered, it is full, or anything else goes the same way.
    """

    flow: _Flow
    op: Operation
    messages: list[bytes]
    size: int

    def close(self, op: Operation) -> None:
        """The operation is about to be sent: from now on it is what it is."""
        if len(self.messages) > 1:
            op.payload = pack_batch(self.messages)
            envelope = op.envelope
            op.envelope = envelope._replace(length=len(op.payload), ret=envelope.ret | BATCH)


@dataclass(slots=True)
class _PostedLink:
    """Messages posted to one far hypervisor."""

    open: int = 0
    bytes: int = 0  # of those
    last: int = 0  # number of the latest operation
    batch: _Batch | None = None  # the latest, while it takes more messages
    unsettled: Counter[_Flow] = field(default_factory=Counter)  # operations by flow
    waiting: dict[int, None] = field(default_factory=dict)  # guests that found no credit


class Near:
    """The door behind every proxy."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._full = min(MAX_BATCH, max(1, level.options.posted_credit // 2))
        self._waking: dict[int, tuple[Operation, bool]] = {}
        self._posted: dict[Path, _PostedLink] = {}
        self._resets: dict[tuple[str, Path], Operation] = {}  # soft resets that the far side may not know
        self._lost: dict[tuple[int, int, int], int] = {}  # (sender, proxy, port) -> errno of a posted message

    # -- sendv ----

    def send(
        self,
        end: RemoteEnd,
        caller: Domain,
        dst: Domain,
        src_port: int,
        dst_port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """The rest of a sendv to a proxy, from the search for the ring on."""
        level = self._level
        form, size, payload = pack_message(caller, ctx, iovs)
        link = self._posted_link(end.far) if not form else None
        if link is not None:
            known = self._lost.pop((caller.domid, dst.domid, dst_port), None) if self._lost else None
            if known is not None:
                return known
            if link.open >= level.options.posted_credit or (link.open and link.bytes + size > POSTED_BYTES):
                link.waiting[caller.domid] = None
                return _NO_CREDIT
            key = caller.domid, dst.domid, src_port, dst_port, message_type
            if self._append(link, key, payload):
                return size
            flow, form = _Flow._make(key), POSTED
            if level.calls.find(link.last) is not None:
                form |= (level.calls.next_seq - link.last) << BACK_SHIFT
        self._behind(end.far)
        level.counters.sends += 1
        op = level.calls.begin(
            EnvelopeKind.SEND,
            end.far,
            level.source(caller.domid, end.far),
            end.path,
            level.label_of(caller.domid),
            payload,
            op=level.argo.through,
            port_src=src_port,
            port_dst=dst_port,
            msg_type=message_type,
            ret=form,
            caller=caller.domid,
        )
        self._begun(op, caller.domid)
        if link is not None:
            return self._post(link, op, flow, size)
        return self._wait(op, token, caller.domid)

    def send_up(
        self,
        caller: Domain,
        src_port: int,
        port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """A sendv whose destination the parent finds; it is never posted."""
        level = self._level
        parent = level.path[:-1]
        self._behind(parent)
        form, _, payload = pack_message(caller, ctx, iovs)
        level.counters.sends += 1
        op = level.calls.begin(
            EnvelopeKind.SEND,
            parent,
            level.source(caller.domid, parent),
            (*parent, ITSELF),
            level.label_of(caller.domid),
            payload,
            op=level.argo.through,
            port_src=src_port,
            port_dst=port,
            msg_type=message_type,
            ret=form,
            caller=caller.domid,
            anybody=True,
        )
        return self._wait(op, token, caller.domid)

    def _wait(self, op: Operation, token: object, domid: int) -> int:
        """The result, if it is there at once."""
        self._level.calls.send(op)
        if op.ret is not None:
            return op.ret
        op.settled = lambda op: self._sent(op, token, domid)
        return PENDING

    def _sent(self, op: Operation, token: object, domid: int) -> None:
        if op.ret is not None and op.ret >= 0:
            self._level.host.message_sent(domid, op.ret)
        self._level.settle(token, domid, op.ret)

    # -- posted links ----

    def _posted_link(self, far: Path) -> _PostedLink | None:
        if far not in self._level.options.posted:
            return None
        link = self._posted.get(far)
        if link is None:
            link = self._posted[far] = _PostedLink()
        return link

    def _append(self, link: _PostedLink, flow: tuple[int, ...], message: bytes) -> bool:
        """Put a message into the batch that is open, if it is one of this flow with room."""
        batch, level = link.batch, self._level
        if batch is None or batch.flow != flow or batch.op.close is None or level.argo.through != _SENDV:
            return False
        size = batch.size + len(message)
        if size > MAX_BATCH_BYTES:
            return False
        counters, messages = level.counters, batch.messages
        counters.sends += 1
        counters.posted += 1
        link.open += 1
        link.bytes += len(message)
        batch.size = size
        messages.append(message)
        if len(messages) >= self._full:
            self._close(link)
        return True

    def _close(self, link: _PostedLink) -> None:
        """Send the batch that is open."""
        batch, link.batch = link.batch, None
        if batch is not None and batch.op.close is not None:
            self._level.calls.send(batch.op)

    def _behind(self, far: Path) -> None:
        """Something else goes to `far`: not before what was posted there."""
        link = self._posted.get(far)
        if link is not None and link.batch is not None:
            self._close(link)

    def _post(self, link: _PostedLink, op: Operation, flow: _Flow, size: int) -> int:
        """The sender goes on at once."""
        level = self._level
        level.counters.posted += 1
        link.open += 1
        link.bytes += size
        link.last = op.seq
        op.posted = True
        batch = _Batch(flow, op, [op.payload], size)
        op.settled = lambda op: self._returned(link, op, batch)
        link.unsettled[flow] += 1
        small = 2 * size <= MAX_BATCH_BYTES and self._full > 1
        if small and level.argo.through == Op.SENDV and link.unsettled[flow] > 1:
            op.close = batch.close
            link.batch = batch
        else:
            level.calls.send(op)
        return size

    def _returned(self, link: _PostedLink, op: Operation, batch: _Batch) -> None:
        """Posted messages were answered: there is credit again, and whoever waited for it is told as for room."""
        level, flow, count = self._level, batch.flow, len(batch.messages)
        link.open -= count
        link.bytes -= batch.size
        link.unsettled[flow] -= 1
        if not link.unsettled[flow]:
            del link.unsettled[flow]
        assert op.ret is not None
        key = flow.caller, flow.proxy, flow.dst_port
        for ret in unpack_failures(op.ret, op.reply, count) if count > 1 or op.ret < 0 else ():
            level.counters.posted_lost += 1
            level.host.event("posted-message-lost", *key, ret)
            if level.guest_path(key[0]) is not None:
                self._lost[key] = ret
        if link.batch is batch:
            link.batch = None
        elif link.batch is not None and link.batch.flow == flow:
            self._close(link)
        waiting = list(link.waiting)
        link.waiting.clear()
        for domid in waiting:
            level.host.raise_virq(domid, VIRQ_ARGO)

    # -- notify ----

    def query(self, end: RemoteEnd, entries: Entries, targets: list[QueryEntry]) -> QueryAnswer | None:
        """Ask the far hypervisor about rings; None: `entries.answered` comes later."""
        level = self._level
        self._behind(end.far)
        level.counters.queries += 1
        op = level.calls.begin(
            EnvelopeKind.QUERY,
            end.far,
            level.source(entries.caller.domid, end.far),
            (*end.far, ITSELF),
            level.label_of(entries.caller.domid),
            pack_query(targets),
            op=Op.NOTIFY,
            caller=entries.caller.domid,
        )
        level.calls.send(self._begun(op, entries.caller.domid))
        if op.ret is not None:
            return unpack_answers(op.ret, op.reply, len(targets))
        op.settled = lambda op: entries.answered(unpack_answers(op.ret or 0, op.reply, len(targets)))
        return None

    # -- what is said ----

    def wake(self, domain: Domain, far: Path, path: Path) -> None:
        """VIRQ_ARGO of `domain` for whom the hypervisor at `far` has at `path`.

        One that has not left yet serves for this one too.
        """
        known = self._waking.get(domain.domid)
        if known is not None:
            op, _ = known
            self._waking[domain.domid] = op, bool(op.out)
            return
        self._level.counters.wakes += 1
        op = self._say(EnvelopeKind.WAKE, far, ITSELF, path, 0)
        if op.ret is None:
            self._waking[domain.domid] = op, False
            op.settled = lambda _: self._woken(domain, far, path)

    def _woken(self, domain: Domain, far: Path, path: Path) -> None:
        _, again = self._waking.pop(domain.domid)
        if again and domain.argo is not None:
            self.wake(domain, far, path)

    def tell(self, guest: str, what: Death, name: str = "") -> None:
        """Tell every hypervisor that may know `guest` what became of it."""
        for far in self._level.peers():
            self.tell_one(far, guest, what, name)

    def tell_one(self, far: Path, guest: str, what: Death, name: str = "") -> None:
        """Tell the hypervisor at `far`."""
        before = self._resets.get((guest, far))
        op = self._say(EnvelopeKind.ENDPOINT_DIED, far, guest, (*far, ITSELF), what, name, before)
        if what == Death.RESET and op.ret is None:
            # What the guest does now belongs to its new state, and must not arrive before the old one's end.
            self._resets[guest, far] = op

    def _begun(self, op: Operation, domid: int) -> Operation:
        """A guest's operation: behind its latest soft reset, if that is not yet known at the far side."""
        path = self._level.guest_path(domid)
        key = (ITSELF if path is None else path[-1]), op.far
        reset = self._resets.get(key)
        if reset is not None and reset.ret is not None:
            del self._resets[key]
        else:
            op.after = reset
        return op

    def _say(
        self,
        kind: EnvelopeKind,
        far: Path,
        guest: str,
        dst: Path,
        op: int,
        name: str = "",
        after: Operation | None = None,
    ) -> Operation:
        level = self._level
        self._behind(far)
        src_path = level.started(guest, far)
        made = level.calls.begin(kind, far, src_path, dst, level.label_by_name(guest), name.encode(), op=op)
        made.after = after
        level.calls.send(made)
        return made

    def forget(self, domid: int) -> None:
        """A guest of ours is dead: nobody waits for its operations."""
        self._level.calls.forget_caller(domid)
        for link in self._posted.values():
            link.waiting.pop(domid, None)
        for key in [key for key in self._lost if key[0] == domid]:
            del self._lost[key]
