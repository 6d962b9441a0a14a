"""One vCPU's list registers as the hypervisor sees them: which pending interrupts are listed, and who waits.

A vCPU has few list registers (four in use by default, the usual number in silicon); what does not fit waits in a
software queue ordered by priority.  The most urgent pending interrupt is always listed, or a register is being freed
for it.  What the guest did with an entry is folded back by :meth:`ListRegisters.update`.

The handshake on the shared words (recall, phase, generation) is described in hmx/cpu/gic.py.  Source of the rules: Arm
IHI 0069 chapters 4 and 6; level interrupts are never listed as pending and active, their line is looked at again when
they end (so does KVM's vgic, virt/kvm/arm/vgic).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

from hmx.gic import (
    LR_OFFSET,
    LR_STATE_OFFSET,
    SHARED_LR,
    SHARED_LR_STATE,
    IntidKind,
    LrState,
    encode,
    field,
)
from hmx.shm import fence, load64, store64

DEFAULT_LRS: Final = 4
_SOURCE_SHIFT: Final = 10  # a GICv2 SGI's source CPU in the INTID that the guest reads (IHI 0048B 4.4.4)

_PHASE: Final = field(SHARED_LR, "phase").put(1)
_MORE: Final = field(SHARED_LR, "more").put(1)
_EOI: Final = field(SHARED_LR, "eoi").put(1)
_RANK: Final = field(SHARED_LR, "priority").put(0xFF) | field(SHARED_LR, "group").put(1)
_GENERATION: Final = field(SHARED_LR, "generation")
_HIS_GENERATION: Final = field(SHARED_LR_STATE, "generation")
_HIS_TAKEN: Final = field(SHARED_LR_STATE, "taken")
_HIS_ACTIVE: Final = field(SHARED_LR_STATE, "active")
_PHASE_FIELD: Final = field(SHARED_LR, "phase")


class Interrupt:
    """The distributor's state of one interrupt (of one vCPU's copy, for SGIs and PPIs).

    `latch` is a pending state that an edge or software set, `line` the level of its wire; `sources` are the CPUs with a
    GICv2 SGI pending.  `active` is held here only while no list register holds it.  `target` is the vCPU that it goes
    to, `at` its entry if it is listed.
    """

    __slots__ = (
        "active", "at", "edge", "enabled", "group", "intid", "kind", "latch", "line", "listed", "mask", "priority",
        "route", "sources", "target",
    )  # fmt: skip

    def __init__(self, intid: int, kind: IntidKind, group: int, target: int | None) -> None:
        self.intid = intid
        self.kind = kind
        self.edge = kind in (IntidKind.SGI, IntidKind.LPI)
        self.enabled = kind == IntidKind.SGI
        self.group = group
        self.priority = 0
        self.latch = False
        self.listed = 0  # how often a list register has made it pending
        self.line = False
        self.active = False
        self.sources = 0
        self.mask = 1
        self.route = 0
        self.target = target
        self.at: Entry | None = None

    def waiting(self) -> bool:
        """True when something is pending here, whatever a list register holds."""
        return self.latch or bool(self.sources) or (self.line and not self.edge)


class Entry:
    """What one list register holds.  `dropped`: its pending state was cleared while the guest may still hold it;
    `ended`: the same of its active state; `recalled`: asked back; `taken`: the guest has acknowledged it.
    """

    __slots__ = ("bank", "dropped", "ended", "group", "irq", "priority", "recalled", "slot", "source", "taken")

    def __init__(self, bank: ListRegisters, slot: int, irq: Interrupt) -> None:
        self.bank = bank
        self.slot = slot
        self.irq = irq
        self.priority = irq.priority
        self.group = irq.group
        self.source: int | None = None
        self.recalled = False
        self.dropped = False
        self.ended = False
        self.taken = False


class View(NamedTuple):
    """What the two shared words say of an entry; `answered`: the guest has handed a recalled one back."""

    pending: bool
    active: bool
    answered: bool


class ListRegisters:
    """The list registers of `vcpu`, in use: the first `lrs`.

    `post(vcpu, n, new)` is called when the guest must look at register n, with `new` when an interrupt became pending
    there (else one is asked back); `requeue(irq)` when an interrupt may have to be
    listed somewhere (it calls `consider` of its target's registers); `admits(irq)` says whether the distributor lets
    the interrupt pass now (its group enabled, for an LPI its redistributor's LPIs); `merged()` is told when a pending
    entry that comes back finds its interrupt pending anew.
    """

    __slots__ = (
        "_admits", "_lr", "_merged", "_post", "_queue", "_queued", "_requeue", "_state", "_words", "entries", "more",
        "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        vcpu: int,
        words: memoryview,
        post: Callable[[int, int, bool], None],
        requeue: Callable[[Interrupt], None],
        admits: Callable[[Interrupt], bool],
        lrs: int = DEFAULT_LRS,
        lr_offset: int = LR_OFFSET,
        state_offset: int = LR_STATE_OFFSET,
        merged: Callable[[], None] = lambda: None,
    ) -> None:
        """Use the u64 `words` that hold lr[] and lr_state[] at the given byte offsets, both zeroed."""
        self.vcpu = vcpu
        self.entries: list[Entry | None] = [None] * lrs
        self.more = False
        self._words = words
        self._lr = [0] * (lr_offset >> 3) + [0] * lrs  # private copies of lr[], at the same indexes
        self._state = state_offset >> 3
        self._post = post
        self._requeue = requeue
        self._admits = admits
        self._merged = merged
        self._queue: list[tuple[int, int]] = []  # a heap of (priority, INTID); what no longer belongs is skipped
        self._queued: dict[tuple[int, int], Interrupt] = {}

    # -- the shared words ----

    def _index(self, slot: int) -> int:
        return len(self._lr) - len(self.entries) + slot

    def _store(self, slot: int, word: int) -> None:
        index = self._index(slot)
        self._lr[index] = word
        fence()
        store64(self._words, index, word)
        fence()

    def look(self, entry: Entry) -> View:
        """What has become of `entry`."""
        word = self._lr[self._index(entry.slot)]
        his = load64(self._words, self._state + entry.slot)
        pending = _PHASE_FIELD.get(word) != _HIS_TAKEN.get(his)
        same = _GENERATION.get(word) == _HIS_GENERATION.get(his)
        return View(pending, same and bool(_HIS_ACTIVE.get(his)), same)

    def _offer(self, slot: int, irq: Interrupt) -> None:
        """List `irq` as pending in a free register."""
        entry = Entry(self, slot, irq)
        vintid = irq.intid
        if irq.sources:
            entry.source = (irq.sources & -irq.sources).bit_length() - 1
            irq.sources &= irq.sources - 1
            vintid |= entry.source << _SOURCE_SHIFT
        elif irq.edge:
            irq.latch = False
        old = self._lr[self._index(slot)]
        taken = _HIS_TAKEN.get(load64(self._words, self._state + slot))
        word = encode(
            SHARED_LR,
            vintid=vintid,
            generation=(_GENERATION.get(old) + 1) & 0xFF,
            phase=taken ^ 1,
            eoi=int(not irq.edge or bool(irq.sources)),
            priority=irq.priority,
            group=irq.group,
            state=LrState.PENDING,
        )
        self.entries[slot] = irq.at = entry
        irq.listed += 1
        self._store(slot, word | old & _MORE)
        self._post(self.vcpu, slot, True)

    def recall(self, entry: Entry) -> None:
        """Ask for `entry` back.  What it had come to is known when the guest answers."""
        if entry.recalled:
            return
        entry.recalled = True
        old = self._lr[self._index(entry.slot)]
        generation = _GENERATION.put((_GENERATION.get(old) + 1) & 0xFF)
        self._store(entry.slot, generation | old & (_PHASE | _MORE))
        self._post(self.vcpu, entry.slot, False)

    def _again(self, entry: Entry) -> None:
        """Make an entry that the guest has in service pending once more."""
        entry.taken = entry.dropped = False
        entry.irq.listed += 1
        entry.priority, entry.group = entry.irq.priority, entry.irq.group  # they may have changed while it was active
        word = self._lr[self._index(entry.slot)] & ~_RANK ^ _PHASE
        self._store(entry.slot, word | encode(SHARED_LR, priority=entry.priority, group=entry.group))
        self._post(self.vcpu, entry.slot, True)

    def _ask_eoi(self, entry: Entry) -> None:
        """Have the guest ring when `entry` ends."""
        word = self._lr[self._index(entry.slot)]
        if not self._fold(entry) and not word & _EOI:
            self._store(entry.slot, word | _EOI)
            self._fold(entry)  # it may have ended before the guest saw the bit

    def _set_more(self, more: bool) -> None:
        self.more = more
        word = self._lr[self._index(0)]
        self._store(0, word | _MORE if more else word & ~_MORE)

    # -- decisions ----

    def _wanted(self, irq: Interrupt) -> bool:
        return irq.enabled and irq.target == self.vcpu and irq.at is None and not irq.active and irq.waiting()

    def consider(self, irq: Interrupt) -> None:
        """Something about `irq` has changed: queue it, recall it, or make its entry pending again."""
        entry = irq.at
        if entry is not None:
            entry.bank._reconsider(entry)
        elif self._wanted(irq) and self._admits(irq):
            key = irq.priority, irq.intid
            if key not in self._queued:
                self._queued[key] = irq
                heapq.heappush(self._queue, key)

    def _reconsider(self, entry: Entry) -> None:
        irq = entry.irq
        if entry.recalled:
            return  # decided anew when the guest answers
        view = self.look(entry)
        fits = irq.enabled and irq.target == self.vcpu and self._admits(irq) and not irq.active
        if view.pending:
            same = (entry.priority, entry.group) == (irq.priority, irq.group)
            held = not entry.dropped and (irq.edge or irq.waiting())
            if not (fits and same and held) or entry.ended:
                self.recall(entry)
            elif entry.source is not None:
                irq.sources &= ~(1 << entry.source)  # pending already; other sources wait for their turn
                if irq.sources:
                    self._ask_eoi(entry)
            elif irq.edge:
                irq.latch = False  # one bit: a second edge before the first is acknowledged coalesces
        elif entry.ended:
            self.recall(entry)
        elif irq.waiting():
            if view.active and fits and irq.edge and not irq.sources and entry.source is None:
                irq.latch = False
                self._again(entry)
            else:
                self._ask_eoi(entry)

    def _best(self) -> Interrupt | None:
        """The most urgent interrupt of the queue that still belongs there."""
        while self._queue:
            irq = self._queued[self._queue[0]]
            if self._wanted(irq) and self._admits(irq) and irq.priority == self._queue[0][0]:
                return irq
            self._pop()
        return None

    def _pop(self) -> None:
        del self._queued[heapq.heappop(self._queue)]

    def _fold(self, entry: Entry) -> bool:
        """Take over what the guest did with `entry`.  True when its register is free."""
        irq = entry.irq
        view = self.look(entry)
        if not view.pending and not entry.taken:
            entry.taken = True
            if not irq.edge:
                irq.latch = False  # what software had set pending is consumed; the line speaks for itself
        if entry.recalled:
            if not view.answered:
                return False
            if view.pending and not entry.dropped:
                if entry.source is not None:
                    irq.sources |= 1 << entry.source
                elif irq.edge:
                    if irq.latch:  # pulsed again while it was on its way back
                        self._merged()
                    irq.latch = True
            irq.active |= view.active and not entry.ended
        elif view.pending or view.active:
            return False
        self.entries[entry.slot] = None
        irq.at = None
        self._requeue(irq)
        return True

    def _refill(self) -> None:
        """List what waits, most urgent first, and recall an entry that stands in the way of a more urgent one."""
        while (irq := self._best()) is not None:
            if None in self.entries:
                self._pop()
                self._offer(self.entries.index(None), irq)
                continue
            victim = self._victim(irq)
            if victim is not None:
                self.recall(victim)
            if self.more:
                return  # the guest rings when nothing listed is pending any more
            self._set_more(True)
            self._fold_all()  # once more: the guest may have gone on before it saw the flag
        if self.more:
            self._set_more(False)

    def _victim(self, irq: Interrupt) -> Entry | None:
        """The entry to be taken back for `irq`: the least urgent pending one if it is less urgent; the least urgent
        active one if nothing listed is pending; none if a recall is on its way already.
        """
        entries = [entry for entry in self.entries if entry is not None]
        if any(entry.recalled for entry in entries):
            return None
        waiting = []
        for entry in entries:
            view = self.look(entry)
            if view.pending and not view.active:
                waiting.append(entry)
        worst = max(waiting or entries, key=lambda entry: (entry.priority, entry.irq.intid))
        return worst if not waiting or irq.priority < worst.priority else None

    def _fold_all(self) -> None:
        for entry in self.entries:
            if entry is not None:
                self._fold(entry)

    def refresh(self, irq: Interrupt) -> None:
        """Fold back what the guest did with `irq`, wherever it is listed."""
        if irq.at is not None:
            irq.at.bank._fold(irq.at)

    def update(self) -> None:
        """Fold back what the guest did, then list what waits.  Call after every trap and bell of this vCPU."""
        self._fold_all()
        self._refill()

    def recalling(self) -> bool:
        """True while the guest has not answered some recall."""
        return any(entry is not None and entry.recalled for entry in self.entries)
