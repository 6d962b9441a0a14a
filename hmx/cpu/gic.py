"""The GIC's virtual CPU interface, as a guest's process runs it: list registers in, acknowledged INTIDs out.

Behaviour is that of GICV and the ICV registers (Arm IHI 0048B chapter 5, IHI 0069 chapter 4) with five priority bits.
Acknowledge, priority drop and deactivation need no exit, as on silicon.

**The handshake** (experimental, not upstream).  On silicon a hypervisor edits list registers while the vCPU does not
run.  Here both run at once, and no word may have two writers, so each list register is a pair: `lr[n]`, which the
hypervisor alone writes, and `lr_state[n]`, which this class alone writes (layouts: hmx.gic).  What silicon keeps in one
place is said by the pair:

* *Pending* is a difference: `lr.phase != lr_state.taken`.  The hypervisor makes an entry pending by flipping `phase`,
  and only when it sees the two equal; acknowledging copies `phase` to `taken`.  Neither can undo the other: the
  hypervisor that sees them differ has coalesced with an event not yet taken, and each side fences between its store
  and its next load, so that either it sees the acknowledgement or the handler sees what came with the event.
* *Active* is the guest's word alone, and speaks of the generation that it names: an active bit of another generation
  means nothing.
* *Ownership* is the generation.  A new entry is written with the next generation, into a register whose last one the
  guest has brought to an end or handed back.  To take an entry back (disabled, moved, made room for) the hypervisor
  writes the next generation with state INVALID: a *recall*.  It knows nothing of the entry's fate until `lr_state`
  names that generation; `taken` and `active` then say how far the guest had brought it, for good.  An acknowledgement
  that raced with the recall names the older generation and is thus no answer.  At most three generations are in
  flight and eight bits tell them apart.

:meth:`VirtualCpuInterface.sync` answers recalls; a recalled entry is never delivered, answered or not.
:meth:`VirtualCpuInterface.take_maintenance` tells the owner to ring the hypervisor, as a maintenance interrupt would:
after a recall was answered, after an entry with the EOI bit has ended, and when no entry is merely pending any more
while the hypervisor holds more (`more` in lr[0]).
"""

from __future__ import annotations

from typing import Final

from hmx.gic import (
    GROUP1_PENDING,
    ICH_VMCR,
    IDLE_PRIORITY,
    LPI_BASE,
    LR_OFFSET,
    LR_STATE_OFFSET,
    MAX_LRS,
    PRIORITY_MASK,
    SHARED_LR,
    SHARED_LR_STATE,
    SPURIOUS,
    IntidKind,
    LrState,
    decode,
    encode,
    field,
    kind_of,
)
from hmx.shm import fence, load64, store64

PRIORITY_BITS: Final = 5
MIN_BPR0: Final = 7 - PRIORITY_BITS  # IHI 0069, ICH_VMCR_EL2.VBPR0: as many preemption bits as priority bits
MIN_BPR1: Final = MIN_BPR0 + 1
_APR_SHIFT: Final = 8 - PRIORITY_BITS

_VINTID: Final = field(SHARED_LR, "vintid")
_GENERATION: Final = field(SHARED_LR, "generation")
_PHASE: Final = field(SHARED_LR, "phase")
_MORE: Final = field(SHARED_LR, "more")
_EOI: Final = field(SHARED_LR, "eoi")
_PRIORITY: Final = field(SHARED_LR, "priority")
_GROUP: Final = field(SHARED_LR, "group")
_STATE: Final = field(SHARED_LR, "state")
_MY_GENERATION: Final = field(SHARED_LR_STATE, "generation")
_MY_TAKEN: Final = field(SHARED_LR_STATE, "taken")
_MY_ACTIVE: Final = field(SHARED_LR_STATE, "active")

_CTLR_MASK: Final = (1 << 10) - 1


class VirtualCpuInterface:
    """The CPU interface of one vCPU.

    `version` 2 gives the plain methods the meaning of GICV_IAR, GICV_EOIR..., 3 that of ICC_IAR1_EL1, ICC_EOIR1_EL1...;
    a `group` (0 or 1) given explicitly names ICC_IAR0/1 and their like, or GICV_IAR/GICV_AIAR.  Out of reset both
    groups are disabled and PMR masks everything.
    """

    __slots__ = (
        "_lr", "_lrs", "_maintenance", "_mine", "_pmr", "_state", "_words", "ack_ctl", "apr", "bprs", "cbpr",
        "enabled", "eoi_mode", "fiq_en", "version",
    )  # fmt: skip

    def __init__(
        self,
        words: memoryview,
        version: int = 3,
        lrs: int = MAX_LRS,
        lr_offset: int = LR_OFFSET,
        state_offset: int = LR_STATE_OFFSET,
    ) -> None:
        """Use the u64 `words` that hold lr[] and lr_state[] at the given byte offsets, both zeroed."""
        self._words = words
        self._lr = lr_offset >> 3
        self._state = state_offset >> 3
        self._lrs = lrs
        self._mine = [0] * lrs  # what lr_state holds; the shared copy is never read back
        self._maintenance = False
        self._pmr = 0
        self.version = version
        self.enabled = [False, False]
        self.bprs = [MIN_BPR0, MIN_BPR1]
        self.cbpr = False
        self.ack_ctl = False
        self.fiq_en = False
        self.eoi_mode = 0
        self.apr = [0, 0]  # active priorities by group: bit n for priority n << 3

    # -- the shared words ----

    def _store(self, n: int, word: int, taken: int, active: bool) -> None:
        self._mine[n] = mine = encode(
            SHARED_LR_STATE, generation=_GENERATION.get(word), taken=taken, active=int(active)
        )
        store64(self._words, self._state + n, mine)

    def _offered(self, n: int, word: int) -> LrState:
        """State of the entry that `word` offers; INVALID for none, for one that has ended, and for a recall."""
        if not word >> _STATE.low:
            return LrState.INVALID
        mine = self._mine[n]
        pending = _PHASE.get(word) != _MY_TAKEN.get(mine)
        active = _MY_GENERATION.get(mine) == _GENERATION.get(word) and _MY_ACTIVE.get(mine)
        return LrState(pending | active << 1)

    def state(self, n: int) -> LrState:
        """State of list register `n` as the guest's silicon sees it now."""
        return self._offered(n, load64(self._words, self._lr + n))

    def sync(self) -> None:
        """Answer recalls.  Call when the hypervisor posted a list register, and after every trap."""
        answered = False
        for n in range(self._lrs):
            word = load64(self._words, self._lr + n)
            if word >> _STATE.low:
                continue
            mine = self._mine[n]
            generation = _GENERATION.get(word)
            if generation == _MY_GENERATION.get(mine):
                continue
            # The active bit speaks of the entry recalled only if that is the one this side took up.
            held = _MY_GENERATION.get(mine) == (generation - 1) & 0xFF
            self._store(n, word, _MY_TAKEN.get(mine), bool(held and _MY_ACTIVE.get(mine)))
            answered = True
        if answered:
            fence()
            self._maintenance = True

    def _after(self, n: int) -> None:
        """The guest has changed the state of entry `n`: does the hypervisor want to hear of it?"""
        fence()
        word = load64(self._words, self._lr + n)
        if _EOI.get(word) and self._offered(n, word) == LrState.INVALID:
            self._maintenance = True
        if _MORE.get(load64(self._words, self._lr)) and not any(
            self.state(other) == LrState.PENDING for other in range(self._lrs)
        ):
            self._maintenance = True

    def take_maintenance(self) -> bool:
        """True once after something that the hypervisor asked to hear of: ring it, then look again for interrupts."""
        wanted, self._maintenance = self._maintenance, False
        return wanted

    # -- priorities ----

    def group_mask(self, group: int) -> int:
        """Bits of a priority that decide preemption: 7:n+1 of BPR0, 7:n of BPR1 (IHI 0069 4.8.3, IHI 0048B 3.3.3)."""
        shift = self.bprs[1] if group and not self.cbpr else self.bprs[0] + 1
        return 0xFF << shift & 0xFF

    @property
    def pmr(self) -> int:
        """The priority mask: only lower numbers pass.  Five bits are implemented, the others read as zero."""
        return self._pmr

    @pmr.setter
    def pmr(self, value: int) -> None:
        self._pmr = value & PRIORITY_MASK

    def bpr(self, group: int | None = None) -> int:
        """Binary point of a group.  With CBPR set group 1 reads group 0's plus one (IHI 0069, ICC_BPR1_EL1)."""
        if self._natural(group) and self.cbpr:
            return min(self.bprs[0] + 1, 7)
        return self.bprs[self._natural(group)]

    def set_bpr(self, value: int, group: int | None = None) -> None:
        """Write a binary point; a value below the minimum sets the minimum.  Group 1's is read-only under CBPR."""
        index = self._natural(group)
        if not (index and self.cbpr):
            self.bprs[index] = max(value & 7, (MIN_BPR0, MIN_BPR1)[index])

    def rpr(self) -> int:
        """Running priority: that of the most urgent interrupt in service, 0xFF for none."""
        both = self.apr[0] | self.apr[1]
        return ((both & -both).bit_length() - 1) << _APR_SHIFT if both else IDLE_PRIORITY

    def _natural(self, group: int | None) -> int:
        return (0 if self.version == 2 else 1) if group is None else group

    def _highest(self) -> tuple[int, int] | None:
        """(list register, word) of the most urgent entry that is pending and not active, in an enabled group.

        Equal priorities: the lowest INTID first, which the architecture leaves open.
        """
        self.sync()
        best = None
        for n in range(self._lrs):
            word = load64(self._words, self._lr + n)
            if self._offered(n, word) == LrState.PENDING and self.enabled[_GROUP.get(word)]:
                key = _PRIORITY.get(word), _VINTID.get(word), n, word
                if best is None or key < best:
                    best = key
        return None if best is None else (best[2], best[3])

    def _preempts(self, word: int) -> bool:
        priority = _PRIORITY.get(word)
        mask = self.group_mask(_GROUP.get(word))
        running = self.rpr()
        return priority < self._pmr and (running == IDLE_PRIORITY or priority & mask < running & mask)

    def signalled(self) -> bool:
        """True when the interrupt line to the vCPU is up: something pending passes PMR and the running priority."""
        best = self._highest()
        return best is not None and self._preempts(best[1])

    def _visible(self, word: int, group: int | None) -> int:
        """What a read of IAR or HPPIR shows of the entry: its INTID, or a special one if it is the other group's."""
        entry_group = _GROUP.get(word)
        if entry_group == self._natural(group):
            return _VINTID.get(word)
        if self.version == 2 and entry_group == 1:
            return _VINTID.get(word) if self.ack_ctl else GROUP1_PENDING
        return SPURIOUS

    def hppir(self, group: int | None = None) -> int:
        """INTID of the most urgent pending interrupt whatever PMR and the running priority say, or 1023."""
        best = self._highest()
        return SPURIOUS if best is None else self._visible(best[1], group)

    # -- acknowledge, end ----

    def iar(self, group: int | None = None) -> int:
        """Acknowledge: the INTID (with the source CPU in 12:10 for a GICv2 SGI), now active; 1023 if none may come.

        1022 (GICv2): the interrupt is of group 1 and AckCtl is clear.
        """
        best = self._highest()
        if best is None or not self._preempts(best[1]):
            return SPURIOUS
        n, word = best
        intid = self._visible(word, group)
        if kind_of(intid) == IntidKind.SPECIAL:
            return intid
        entry_group = _GROUP.get(word)
        self.apr[entry_group] |= 1 << ((_PRIORITY.get(word) & self.group_mask(entry_group)) >> _APR_SHIFT)
        self._store(n, word, _PHASE.get(word), intid < LPI_BASE)  # an LPI has no active state
        self._after(n)
        return intid

    def eoir(self, value: int) -> int | None:
        """End of interrupt: drop the running priority and, with EOImode 0, deactivate.

        Returns None when all is done here, or the value that the hypervisor must deactivate because no list register
        holds it any more: trap with it.  Special INTIDs are ignored, and so is an EOI with nothing in service.
        """
        if kind_of(value & 0xFFFFFF) == IntidKind.SPECIAL or not self._drop():
            return None
        if self.eoi_mode or value >= LPI_BASE:
            return None
        return self._deactivate(value)

    def dir_(self, value: int) -> int | None:
        """Deactivate (EOImode 1; without it ignored).  Returns as :meth:`eoir` does."""
        if not self.eoi_mode or value >= LPI_BASE or kind_of(value) == IntidKind.SPECIAL:
            return None
        return self._deactivate(value)

    def _drop(self) -> bool:
        """Clear the most urgent active priority."""
        both = self.apr[0] | self.apr[1]
        low = both & -both
        group = 0 if self.apr[0] & low else 1
        self.apr[group] &= ~low
        return bool(both)

    def _deactivate(self, value: int) -> int | None:
        for n in range(self._lrs):
            word = load64(self._words, self._lr + n)
            if self._offered(n, word) & LrState.ACTIVE and _VINTID.get(word) == value:
                self._store(n, word, _MY_TAKEN.get(self._mine[n]), False)
                self._after(n)
                return None
        self.sync()  # the hypervisor must know that the entry was active before it is told to deactivate it
        return value

    # -- registers ----

    @property
    def vmcr(self) -> int:
        """The interface's controls in the layout of ICH_VMCR_EL2."""
        return encode(
            ICH_VMCR,
            VENG0=int(self.enabled[0]), VENG1=int(self.enabled[1]), VAckCtl=int(self.ack_ctl),
            VFIQEn=int(self.fiq_en), VCBPR=int(self.cbpr), VEOIM=self.eoi_mode,
            VBPR0=self.bprs[0], VBPR1=self.bprs[1], VPMR=self._pmr,
        )  # fmt: skip

    @vmcr.setter
    def vmcr(self, value: int) -> None:
        fields = decode(ICH_VMCR, value)
        self.enabled = [bool(fields["VENG0"]), bool(fields["VENG1"])]
        self.ack_ctl = bool(fields["VAckCtl"])
        self.fiq_en = bool(fields["VFIQEn"])
        self.cbpr = bool(fields["VCBPR"])
        self.eoi_mode = fields["VEOIM"]
        self.bprs = [max(fields["VBPR0"], MIN_BPR0), max(fields["VBPR1"], MIN_BPR1)]
        self.pmr = fields["VPMR"]

    @property
    def icc_ctlr(self) -> int:
        """ICC_CTLR_EL1: CBPR bit 0, EOImode bit 1, priority bits less one 10:8; 13:11 zero, for 16 INTID bits."""
        return int(self.cbpr) | self.eoi_mode << 1 | PRIORITY_BITS - 1 << 8

    @icc_ctlr.setter
    def icc_ctlr(self, value: int) -> None:
        self.cbpr = bool(value & 1)
        self.eoi_mode = value >> 1 & 1

    @property
    def ctlr(self) -> int:
        """GICC_CTLR (GICV_CTLR): bits 9:0 of ICH_VMCR_EL2."""
        return self.vmcr & _CTLR_MASK

    @ctlr.setter
    def ctlr(self, value: int) -> None:
        self.vmcr = self.vmcr & ~_CTLR_MASK | value & _CTLR_MASK
