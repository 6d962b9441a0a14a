"""The interrupt controller put together for tests, and a reference model of it that is written differently.

:class:`Rig` joins a distributor with one virtual CPU interface a vCPU over zeroed vCPU areas; nothing moves between
the two sides except through the shared words, and each side takes its steps when a test says so.

:class:`Model` is the GIC of the manual's state diagrams: sets of pending and active interrupts that everybody sees at
once, without list registers, generations or queues.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hmx.cpu.gic import VirtualCpuInterface
from hmx.shm import words64
from hv_node.interrupts.gicd import Distributor
from hv_node.interrupts.gicr import DistributorFrame, Lpis, Redistributor
from hv_node.interrupts.its import Its

CONFIG_TABLE = 0x4000_0000
QUEUE = 0x5000_0000


class Rig:
    """One guest: `cpus` vCPUs, a GIC of `version`, `lrs` list registers in use."""

    def __init__(self, cpus: int = 1, version: int = 3, lrs: int = 4, spis: int = 96) -> None:
        self.posts: list[tuple[int, int]] = []
        areas = [words64(bytearray(0x1000)) for _ in range(cpus)]
        self.areas = areas
        self.dist = Distributor(areas, lambda vcpu, n, new: self.posts.append((vcpu, n)), version, spis, lrs)
        self.cpus = [VirtualCpuInterface(area, version, lrs) for area in areas]
        self.gicd = DistributorFrame(self.dist)
        self.config: dict[int, int] = {}
        self.queue = bytearray(0x1_0000)
        self.lpis = Lpis(self.dist, self.memory)
        self.gicrs = [Redistributor(self.dist, self.lpis, vcpu) for vcpu in range(cpus)]
        self.its = Its(self.dist, self.lpis, self.memory)

    def memory(self, address: int, size: int) -> bytes | None:
        """Guest memory: an LPI configuration table and a command queue, and nothing else."""
        if CONFIG_TABLE <= address < CONFIG_TABLE + 0x10000:
            return bytes(self.config.get(8192 + address - CONFIG_TABLE + place, 0) for place in range(size))
        if QUEUE <= address <= QUEUE + len(self.queue) - size:
            return bytes(self.queue[address - QUEUE : address - QUEUE + size])
        return None

    def ring(self, vcpu: int) -> bool:
        """The guest looks at its list registers and rings if it must; True if it did."""
        self.cpus[vcpu].sync()
        if not self.cpus[vcpu].take_maintenance():
            return False
        self.dist.fold(vcpu)
        return True

    def pump(self) -> None:
        """Let both sides do what is due, until nothing is."""
        rounds = 0
        while sum(self.ring(vcpu) for vcpu in range(len(self.cpus))):
            rounds += 1
            assert rounds < 1000, "guest and hypervisor ring each other for ever"

    def end(self, vcpu: int, rest: int | None) -> None:
        """What EOIR or DIR returned: the trap if the interrupt was listed no more."""
        if rest is not None:
            self.dist.deactivate(vcpu, rest)


Key = tuple[int, int]  # (INTID, vCPU whose copy it is; -1 for a shared one)


@dataclass
class Source:
    """An interrupt of the model."""

    priority: int = 0xA0
    enabled: bool = True
    level: bool = False
    wire: bool = False
    latched: bool = False
    home: int | None = 0

    def pending(self) -> bool:
        return self.latched or (self.level and self.wire)


@dataclass
class Model:
    """What each vCPU would be given, from what is pending, in service and masked.

    `running` holds the group priorities in service of each vCPU; `grain` is how many low bits of a priority do not
    count when it comes to preemption (3: every one of the 32 levels preempts the next).
    """

    sources: dict[Key, Source]
    masks: list[int]
    grain: list[int]
    running: list[list[int]]
    active: set[Key] = field(default_factory=set)

    def deliverable(self, vcpu: int) -> list[tuple[int, Key]]:
        """(priority, interrupt) of what `vcpu` may be given now."""
        levels = [level >> self.grain[vcpu] for level in self.running[vcpu]]
        return [
            (source.priority, key)
            for key, source in self.sources.items()
            if source.home == vcpu and source.enabled and source.pending() and key not in self.active
            and source.priority < self.masks[vcpu]
            and all(source.priority >> self.grain[vcpu] < level for level in levels)
        ]  # fmt: skip

    def best(self, vcpu: int) -> set[Key]:
        """What `vcpu` may be given now: any of the most urgent ones.  Which of them first is left open."""
        ready = self.deliverable(vcpu)
        return {key for priority, key in ready if priority == min(ready)[0]}

    def acknowledge(self, vcpu: int, key: Key) -> None:
        source = self.sources[key]
        source.latched = False
        if key[0] < 8192:  # LPIs have no active state
            self.active.add(key)
        self.running[vcpu].append(source.priority >> self.grain[vcpu] << self.grain[vcpu])

    def drop(self, vcpu: int) -> None:
        self.running[vcpu].remove(min(self.running[vcpu]))
