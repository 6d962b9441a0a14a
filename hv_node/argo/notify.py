"""notify: wake those who wait for room in my rings, then ask about others' rings (Xen common/argo.c).

Job A runs before any argument is looked at. Job B stops at the first entry that fails; what it wrote back
before stays written. Entries about rings on another hypervisor are asked about there (experimental, not upstream):
those that follow one another and go to the same place travel together, and the call is pending until they are
answered and written back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from hmx.argo.abi import (
    DOMID_ANY,
    ENT_FLAGS,
    ENT_MAX_MESSAGE_SIZE,
    MAX_NOTIFY_ENTRIES,
    RING_DATA,
    RING_DATA_ENT,
    VIRQ_ARGO,
    NotifyFlag,
)
from hmx.argo.ring import max_message_size
from hmx.errno import Errno
from hmx.memory import FAULT, Access
from hv_node.argo.model import DomainArgo, wait_for_space
from hv_node.argo.order import refusal
from hv_node.domain import Domain
from hv_node.effects import PENDING

if TYPE_CHECKING:
    from hv_node.argo.core import Argo

_OP = "notify"
_ARGUMENT = refusal(_OP, "superfluous argument")
_NO_ARGO = refusal(_OP, "caller without Argo")
_HEADER = refusal(_OP, "header")
_MANY = refusal(_OP, "more than 256 entries")
_ENTRY = refusal(_OP, "entry")
_WAITER_MEMORY = refusal(_OP, "memory for waiter")
_WRITE_BACK = refusal(_OP, "write-back")

_EXISTS = int(NotifyFlag.EXISTS)
_SHARED = int(NotifyFlag.SHARED)
_EMPTY = int(NotifyFlag.EMPTY)
_SUFFICIENT = int(NotifyFlag.SUFFICIENT)
_EMSGSIZE = int(NotifyFlag.EMSGSIZE)
_EBUSY = int(NotifyFlag.EBUSY)

_HIDDEN: Final = -int(Errno.ESRCH)  # a policy's way to say that no such domain is there for this caller
_REMOTE: Final = PENDING  # of an entry whose ring is on another hypervisor


def notify(core: Argo, caller: Domain, a1: int, a2: int, a3: int, a4: int, ctx: int, token: object) -> int:
    """arg1: ring data, or 0 for job A alone.  0, a refusal, or PENDING."""
    if a2 or a3 or a4:
        return _ARGUMENT
    argo = caller.argo
    if argo is None:
        return _NO_ARGO
    if argo.waiters or core.on_notify_window is not None:
        _wake_senders(core, argo)
    if not a1:
        return 0
    header = caller.memory.unpack(RING_DATA, ctx, a1)
    if header is FAULT:
        return _HEADER
    count = header[0]
    if count > MAX_NOTIFY_ENTRIES:
        return _MANY
    entry = a1 + RING_DATA.size
    for index in range(count):
        ret = _answer(core, caller, entry, ctx)
        if ret:
            return Entries(core, caller, entry, count - index, ctx, token).run() if ret is _REMOTE else ret
        entry += RING_DATA_ENT.size
    return 0


def _wake_senders(core: Argo, argo: DomainArgo) -> None:
    """Job A: signal every waiter whose size fits its ring now; each is forgotten as it is signalled."""
    woken: list[int] = []
    for ring in argo.in_order:
        if not ring.pending and core.on_notify_window is None:
            continue
        space = ring.space()
        if not space:
            continue
        if core.on_notify_window is not None:
            core.on_notify_window(ring)
        fitting = [domid for domid, size in ring.pending.items() if size <= space]
        for domid in fitting:
            argo.forget(ring, domid, core.lookup)
        # The oldest waiter of a ring first; rings visited later are signalled earlier.
        woken[:0] = fitting
    for domid in woken:
        core.sink.raise_virq(domid, VIRQ_ARGO)


def _answer(core: Argo, caller: Domain, entry: int, ctx: int) -> int:
    """Job B for one entry: judge the ring, arm or disarm the caller's wake-up there, write back."""
    memory = caller.memory
    fields = memory.unpack(RING_DATA_ENT, ctx, entry)
    if fields is FAULT:
        return _ENTRY
    port, domid, _, _, _, wanted, largest = fields
    flags = 0
    target = core.lookup(domid)
    if target is None and core.implicit_query is not None:
        target, port = core.implicit_query(caller, domid, port)
    if target is not None and target.argo is not None and not core.permissive:
        denied = core.send_to(caller, target, port, None)
        if denied == _HIDDEN:
            target = None
        elif denied:
            if core.loud:
                core.sink.event("argo-send-denied", caller.domid, domid)
            return denied
    if target is not None and target.argo is not None:
        rings = target.argo.rings
        ring = rings.get((port, caller.domid)) or rings.get((port, DOMID_ANY))
        if ring is None:
            if target.remote is not None:
                return _REMOTE
        else:
            flags = _EXISTS | _SHARED if ring.wildcard else _EXISTS
            largest = max_message_size(ring.len)
            space = ring.space()
            if wanted > largest:
                flags |= _EMSGSIZE
            elif space >= wanted:
                target.argo.forget(ring, caller.domid, core.lookup)
                flags |= _SUFFICIENT
            else:
                queued = wait_for_space(ring, caller, wanted, core.allocate)
                if queued is False:
                    flags |= _EBUSY
                elif queued is not True:
                    return _WAITER_MEMORY
            if space == largest:
                flags |= _EMPTY
    return _write_back(caller, entry, ctx, flags, largest)


def _write_back(caller: Domain, entry: int, ctx: int, flags: int, largest: int) -> int:
    memory = caller.memory
    if not memory.write(ctx, entry + ENT_FLAGS, flags.to_bytes(2, "little")):
        return _WRITE_BACK
    if not memory.write(ctx, entry + ENT_MAX_MESSAGE_SIZE, largest.to_bytes(4, "little")):
        return _WRITE_BACK
    return 0


class QueryEntry(NamedTuple):
    """One entry for a far hypervisor: the proxy of the ring's owner, and the entry's fields as the guest wrote them."""

    target: Domain
    port: int
    wanted: int
    largest: int


class QueryAnswer(NamedTuple):
    """What the far hypervisor found: (flags, largest) of the entries that it answered; then `ret` if one failed."""

    entries: list[tuple[int, int]]
    ret: int


class Entries:
    """Job B from an entry on whose ring is on another hypervisor (experimental, not upstream)."""

    __slots__ = ("caller", "core", "ctx", "entry", "left", "memory", "token")

    def __init__(self, core: Argo, caller: Domain, entry: int, left: int, ctx: int, token: object) -> None:
        self.core = core
        self.caller = caller
        self.memory = caller.memory  # a domain may speak for several guests, each with its own
        self.entry = entry
        self.left = left
        self.ctx = ctx
        self.token = token

    def run(self) -> int:
        """Go on from where it stopped.  The call's result, or PENDING."""
        while self.left:
            ret = _answer(self.core, self.caller, self.entry, self.ctx)
            if ret is _REMOTE:
                run = self._together()
                assert run[0].target.remote is not None
                answer = run[0].target.remote.query(self, run)
                if answer is None:
                    return PENDING
                ret = self._absorb(answer)
            else:
                self._next()
            if ret:
                return ret
        return 0

    def answered(self, answer: QueryAnswer) -> None:
        """The answer that `query` did not have at once."""
        caller, memory = self.caller, self.caller.memory
        caller.memory = self.memory
        try:
            ret = self._absorb(answer) or self.run()
        finally:
            caller.memory = memory
        if ret is not PENDING:
            self.core.sink.complete(self.token, ret)

    def _next(self) -> None:
        self.entry += RING_DATA_ENT.size
        self.left -= 1

    def _absorb(self, answer: QueryAnswer) -> int:
        for flags, largest in answer.entries:
            ret = _write_back(self.caller, self.entry, self.ctx, flags, largest)
            if ret:
                return ret
            self._next()
        return answer.ret

    def _together(self) -> list[QueryEntry]:
        """The entries from here on that can be asked in one go: the first, and those like it behind it.

        None behind one that cannot be written back: that one ends the call, and the rest must not have been asked.
        """
        run: list[QueryEntry] = []
        at = self.entry
        for _ in range(self.left):
            found = self._look(at)
            if found is None or (run and not _same_place(run[0].target, found.target)):
                break
            run.append(found)
            if not self._writable(at):
                break
            at += RING_DATA_ENT.size
        return run

    def _look(self, entry: int) -> QueryEntry | None:
        """An entry about a ring elsewhere that nothing here speaks against."""
        core = self.core
        fields = self.caller.memory.unpack(RING_DATA_ENT, self.ctx, entry)
        if fields is FAULT:
            return None
        port, domid, _, _, _, wanted, largest = fields
        target = core.lookup(domid)
        if target is None and core.implicit_query is not None:
            target, port = core.implicit_query(self.caller, domid, port)
        if target is None or target.argo is None or target.remote is None:
            return None
        if not core.permissive and core.send_to(self.caller, target, port, None):
            return None
        return QueryEntry(target, port, wanted, largest)

    def _writable(self, entry: int) -> bool:
        translate = self.caller.memory.translate
        for at, size in ((ENT_FLAGS, 2), (ENT_MAX_MESSAGE_SIZE, 4)):
            for end in (0, size - 1):
                if translate(self.ctx, entry + at + end, Access.WRITE) is None:
                    return False
        return True


def _same_place(one: Domain, other: Domain) -> bool:
    """Whether two proxies stand for guests of the same hypervisor."""
    return one.remote is not None and other.remote is not None and one.remote.path[:-1] == other.remote.path[:-1]
