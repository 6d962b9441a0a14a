"""A local APIC told a second time, from the words of the manual: sets, sorted lists, nothing cached, nothing shared.

Intel SDM vol. 3A 10.8 (priorities, acceptance, EOI), 10.4.7.2 (software disable), 10.5.3 (errors).  Slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReferenceApic:
    """The interrupt-handling part of a local APIC: IRR, ISR and TMR as sets of vectors."""

    requested: set[int] = field(default_factory=set)
    in_service: set[int] = field(default_factory=set)
    level: set[int] = field(default_factory=set)
    task_priority: int = 0
    software_enabled: bool = True
    suppress_broadcast: bool = False
    detected: set[str] = field(default_factory=set)

    def processor_priority(self) -> int:
        """10.8.3.1: the higher class of the task priority and of the highest vector in service."""
        serving = sorted(self.in_service)
        if not serving:
            return self.task_priority
        task_class, task_subclass = divmod(self.task_priority, 16)
        serving_class = serving[-1] // 16
        if task_class > serving_class:
            return task_class * 16 + task_subclass
        if task_class == serving_class:
            return self.task_priority
        return serving_class * 16

    def message(self, vector: int, level: bool) -> bool:
        """10.8.4: one interrupt message arrives."""
        if not self.software_enabled:
            return False
        if vector in range(16):
            self.detected.add("received illegal vector")
            return False
        if level:
            self.level.add(vector)
        else:
            self.level.discard(vector)
        new = vector not in self.requested
        self.requested.add(vector)
        return new

    def self_ipi(self, vector: int) -> bool:
        """10.12.11, 10.5.3: the same as a fixed edge message to oneself."""
        if vector in range(16):
            self.detected.add("sent illegal vector")
        return self.message(vector, level=False)

    def deliverable(self) -> list[int]:
        """Requested vectors of a class above the processor priority's, best first."""
        if not self.software_enabled:
            return []
        processor_class = self.processor_priority() // 16
        return sorted((vector for vector in self.requested if vector // 16 > processor_class), reverse=True)

    def dispatch(self) -> int | None:
        """10.8.4: the best deliverable vector goes into service."""
        best = self.deliverable()[:1]
        self.requested -= set(best)
        self.in_service |= set(best)
        return best[0] if best else None

    def end_of_interrupt(self) -> int | None:
        """10.8.5: the highest vector in service ends; a level-triggered one is broadcast."""
        if not self.in_service:
            return None
        ended = max(self.in_service)
        self.in_service = {vector for vector in self.in_service if vector != ended}
        return ended if ended in self.level and not self.suppress_broadcast else None

    def error_status(self) -> int:
        """10.5.3: writing the ESR shows what was detected since the last write."""
        shown, self.detected = self.detected, set()
        bits = {"sent illegal vector": 0b0010_0000, "received illegal vector": 0b0100_0000}
        return sum(bits[name] for name in shown)


def bits(vectors: set[int]) -> int:
    """The 256-bit register that holds `vectors`."""
    return sum(2**vector for vector in vectors)
