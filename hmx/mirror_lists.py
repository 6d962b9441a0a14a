"""List registers of a vCPU whose hypervisor is on another host (Arm GIC).  Experimental, not upstream.

The handshake of hmx/cpu/gic.py rests on both sides seeing each other's words at once.  Over a lane an interrupt that
is raised while "taken" is under way would coalesce with one that the guest has served already, and be lost.  So each
end plays the other one.  The hypervisor's end says "taken, and in service" as soon as it has shipped a pending
interrupt, so that a further one is shipped too; the guest's end keeps a phase of its own and coalesces, because it
knows what the guest has taken.  What became of an entry travels back with the number of the word that it answers: news
of an older word says nothing about the newer one.

Until the guest has said otherwise its hypervisor takes a pending interrupt for an active one; what software sees in
GICD_ISACTIVER may say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hmx.gic import LR_OFFSET, LR_STATE_OFFSET, MAX_LRS, SHARED_LR, SHARED_LR_STATE, encode, field
from hmx.shm import fence, load64, store64, words64

_GENERATION: Final = field(SHARED_LR, "generation")
_PHASE: Final = field(SHARED_LR, "phase")
_STATE: Final = field(SHARED_LR, "state")
_HIS_GENERATION: Final = field(SHARED_LR_STATE, "generation")
_TAKEN: Final = field(SHARED_LR_STATE, "taken")
_ACTIVE: Final = field(SHARED_LR_STATE, "active")
_LR: Final = LR_OFFSET >> 3
_LR_STATE: Final = LR_STATE_OFFSET >> 3
_M32: Final = 0xFFFF_FFFF


class Fate(NamedTuple):
    """What has become of what register `n` held as its word number `serial`; `answered`: the guest has seen it."""

    n: int
    serial: int
    pending: bool
    active: bool
    answered: bool


def _is_new(word: int, before: int) -> bool:
    """Whether `word` makes an interrupt pending that `before` did not."""
    same = _GENERATION.get(word) == _GENERATION.get(before) and _PHASE.get(word) == _PHASE.get(before)
    return bool(_STATE.get(word)) and not same


class Lister:
    """The hypervisor's end: stands in for the guest at lr_state[]."""

    def __init__(self, area: memoryview) -> None:
        self._words = words64(area)
        self._shipped = [0] * MAX_LRS
        self._serials = [0] * MAX_LRS

    def changed(self) -> list[int]:
        """Registers that the hypervisor has written since they were shipped."""
        return [n for n in range(MAX_LRS) if load64(self._words, _LR + n) != self._shipped[n]]

    def ship(self, n: int) -> int:
        """The word of register `n`, which counts as shipped and, if it made an interrupt pending, as taken."""
        word = load64(self._words, _LR + n)
        if _is_new(word, self._shipped[n]):
            self._say(n, word, pending=False, active=True)
        self._shipped[n] = word
        self._serials[n] = (self._serials[n] + 1) & _M32
        return word

    def told(self, fate: Fate) -> None:
        """The guest's end says what became of an entry.  The hypervisor is to look at its list registers."""
        n = fate.n
        word = self._shipped[n]
        if fate.serial != self._serials[n]:
            return
        if not _STATE.get(word):
            if fate.answered:
                self._say(n, word, fate.pending, fate.active)
        elif not fate.pending:
            self._say(n, word, pending=False, active=fate.active)

    def _say(self, n: int, word: int, pending: bool, active: bool) -> None:
        taken = _PHASE.get(word) ^ pending
        state = encode(SHARED_LR_STATE, generation=_GENERATION.get(word), taken=taken, active=int(active))
        store64(self._words, _LR_STATE + n, state)
        fence()


class Listed:
    """The guest's end: stands in for the hypervisor at lr[]."""

    def __init__(self, area: memoryview) -> None:
        self._words = words64(area)
        self._received = [0] * MAX_LRS
        self._mine = [0] * MAX_LRS
        self._serials = [0] * MAX_LRS
        self._told: list[Fate | None] = [None] * MAX_LRS

    def receive(self, n: int, word: int) -> bool:
        """The hypervisor wrote register `n`.  False: its interrupt coalesces with one that the guest has not taken."""
        his = load64(self._words, _LR_STATE + n)
        phase = _PHASE.get(self._mine[n])
        fresh = True
        if _is_new(word, self._received[n]):
            fresh = phase == _TAKEN.get(his)
            phase = _TAKEN.get(his) ^ 1
        self._received[n] = word
        self._serials[n] = (self._serials[n] + 1) & _M32
        self._mine[n] = word & ~_PHASE.put(1) | _PHASE.put(phase)
        fence()
        store64(self._words, _LR + n, self._mine[n])
        return fresh

    def news(self) -> Sequence[Fate]:
        """What the hypervisor's end has not been told."""
        found = []
        for n in range(MAX_LRS):
            if self._serials[n] and (fate := self._fate(n)) != self._told[n]:
                self._told[n] = fate
                found.append(fate)
        return found

    def _fate(self, n: int) -> Fate:
        word, his = self._mine[n], load64(self._words, _LR_STATE + n)
        same = _GENERATION.get(word) == _HIS_GENERATION.get(his)
        return Fate(n, self._serials[n], _PHASE.get(word) != _TAKEN.get(his), same and bool(_ACTIVE.get(his)), same)
