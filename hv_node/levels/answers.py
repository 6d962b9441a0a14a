"""The far side of remote operations: none is executed twice.  Experimental, not upstream.

Per origin (a hypervisor's path) it remembers the epoch, what was executed and what was answered.  A request comes with
its origin's floor: everything below is settled there, so its answers are forgotten and its stragglers fenced.  An
origin of an older epoch is dead; whatever still comes from it is fenced too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from hv_node.levels.paths import Path, within

MAX_ORIGINS: Final = 4096
MAX_ANSWERS: Final = 8192  # of one origin; an origin has few operations open, and this bounds one that misbehaves


class Answer(NamedTuple):
    """What was answered."""

    ret: int
    reply: bytes = b""


class Admission(IntEnum):
    """What becomes of a request."""

    NEW = 1  # execute it, then say `done`
    REPEATED = 2  # answer what was answered
    RUNNING = 3  # it is being executed
    FENCED = 4  # it must not be executed any more
    FULL = 5  # no room to remember it


@dataclass(slots=True)
class Origin:
    """What is known of one origin.  `answers`: None where the operation is being executed."""

    epoch: int
    floor: int = 0
    answers: dict[int, Answer | None] = field(default_factory=dict)


class Answers:
    """All origins, as one far side knows them."""

    def __init__(self) -> None:
        self.origins: dict[Path, Origin] = {}
        self.repeated = 0
        self.fenced = 0

    def admit(self, path: Path, epoch: int, seq: int, floor: int) -> tuple[Admission, Answer | None]:
        """Judge a request.  With REPEATED comes its answer."""
        origin = self.origins.get(path)
        if origin is None:
            if len(self.origins) >= MAX_ORIGINS:
                return Admission.FULL, None
            origin = self.origins[path] = Origin(epoch)
        elif epoch > origin.epoch:
            origin.epoch, origin.floor = epoch, 0
            origin.answers.clear()
        answers = origin.answers
        if epoch < origin.epoch or seq < origin.floor:
            self.fenced += 1
            return Admission.FENCED, None
        if floor > origin.floor:
            origin.floor = floor
            for old in [known for known in answers if known < floor]:
                del answers[old]
        if seq < floor:
            self.fenced += 1
            return Admission.FENCED, None
        if seq in answers:
            self.repeated += 1
            answer = answers[seq]
            return (Admission.RUNNING, None) if answer is None else (Admission.REPEATED, answer)
        if len(answers) >= MAX_ANSWERS:
            return Admission.FULL, None
        answers[seq] = None
        return Admission.NEW, None

    def stale(self, path: Path, epoch: int) -> bool:
        """Whether the origin has begun anew since `epoch`."""
        origin = self.origins.get(path)
        return origin is not None and epoch < origin.epoch

    def seen(self, path: Path, seq: int) -> bool:
        """Whether an operation was admitted, or is settled."""
        origin = self.origins.get(path)
        return origin is not None and (seq < origin.floor or seq in origin.answers)

    def done(self, path: Path, epoch: int, seq: int, answer: Answer) -> None:
        """An admitted request was executed."""
        origin = self.origins.get(path)
        if origin is not None and origin.epoch == epoch and seq in origin.answers:
            origin.answers[seq] = answer

    def withdrawn(self, path: Path, epoch: int, seq: int) -> None:
        """An admitted request was not executed after all; a repeat may be."""
        origin = self.origins.get(path)
        if origin is not None and origin.epoch == epoch:
            origin.answers.pop(seq, None)

    def died(self, prefix: Path) -> None:
        """The hypervisors at or below `prefix` are gone: what they said up to now is stale for ever."""
        for path, origin in self.origins.items():
            if within(prefix, path):
                origin.epoch, origin.floor = origin.epoch + 1, 0
                origin.answers.clear()
