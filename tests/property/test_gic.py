"""What a GIC promises, whatever happens in whatever order: nothing lost, nothing given that is masked, nesting upwards.

The distributor and the CPU interfaces run over shared words with one to four list registers, so that most of what is
pending waits in the software queue.  Rules: Arm IHI 0069 chapter 4 (IHI 0048B chapter 3).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hv_node.interrupts.listregs import Interrupt
from tests.doubles.gic_model import CONFIG_TABLE, Key, Model, Rig, Source

CPUS = 2
EDGES = (33, 35, 37, 39, 41)
LEVELS = (32, 34, 36, 38)
BANKED = (3, 20)  # an SGI and a PPI of each vCPU
LPIS = (8192, 8200)
PRIORITIES = (0x20, 0x28, 0x60, 0xA0, 0xA8, 0xF0)


def keys() -> list[Key]:
    return [
        *((intid, -1) for intid in (*EDGES, *LEVELS, *LPIS)),
        *((intid, vcpu) for intid in BANKED for vcpu in range(CPUS)),
    ]


KEYS = keys()


class World:
    """A rig whose interrupts are all set up, everything enabled."""

    def __init__(self, lrs: int, eoi_mode: int) -> None:
        self.rig = rig = Rig(CPUS, 3, lrs)
        rig.dist.set_ctlr(3)
        for vcpu, cpu in enumerate(rig.cpus):
            cpu.enabled = [True, True]
            cpu.pmr = 0xFF
            cpu.eoi_mode = eoi_mode
            rig.gicrs[vcpu].write(0x70, CONFIG_TABLE | 15, 8)
            rig.lpis.enable(vcpu, True)
        for lpi in LPIS:
            rig.config[lpi] = 0xA1
            rig.lpis.attach(lpi, 0)
        for key in KEYS:
            irq = self.irq(key)
            rig.dist.set_edge(irq, key[0] not in LEVELS)
            rig.dist.set_enabled(irq, True)
            rig.dist.set_priority(irq, 0xA0)

    def irq(self, key: Key) -> Interrupt:
        intid, vcpu = key
        found = self.rig.dist.lpis.get(intid) or self.rig.dist.interrupt(intid, max(vcpu, 0))
        assert found is not None
        return found

    def set_priority(self, key: Key, priority: int) -> None:
        self.rig.dist.set_priority(self.irq(key), priority)

    def move(self, key: Key, vcpu: int) -> None:
        """An SPI by its route, an LPI as MOVI does."""
        if key[0] in LPIS:
            self.rig.lpis.attach(key[0], vcpu)
        else:
            self.rig.dist.set_route(self.irq(key), vcpu)

    def raise_(self, key: Key) -> None:
        if key[0] in LEVELS:
            self.rig.dist.raise_line(key[0], True)
        else:
            self.rig.dist.set_pending(self.irq(key))


vcpus = st.integers(0, CPUS - 1)
interrupts = st.sampled_from(KEYS)
movable = st.sampled_from([key for key in KEYS if key[1] < 0])
STEPS = st.one_of(
    st.tuples(st.just("raise"), interrupts, st.just(0)),
    st.tuples(st.just("raise"), interrupts, st.just(0)),
    st.tuples(st.just("raise"), interrupts, st.just(0)),
    st.tuples(st.just("lower"), st.sampled_from([(intid, -1) for intid in LEVELS]), st.just(0)),
    st.tuples(st.just("enable"), interrupts, st.integers(0, 1)),
    st.tuples(st.just("priority"), interrupts, st.sampled_from(PRIORITIES)),
    st.tuples(st.just("move"), movable, vcpus),
    st.tuples(st.just("clear"), interrupts, st.just(0)),
    st.tuples(st.just("iar"), st.just((0, 0)), vcpus),
    st.tuples(st.just("iar"), st.just((0, 0)), vcpus),
    st.tuples(st.just("iar"), st.just((0, 0)), vcpus),
    st.tuples(st.just("end"), st.just((0, 0)), vcpus),
    st.tuples(st.just("end"), st.just((0, 0)), vcpus),
    st.tuples(st.just("dir"), st.just((0, 0)), vcpus),
    st.tuples(st.just("pmr"), st.just((0, 0)), st.sampled_from((0x0, 0x28, 0x60, 0xA8, 0xFF))),
    st.tuples(st.just("bpr"), st.just((0, 0)), st.sampled_from((3, 5, 7))),
)
Step = tuple[str, Key, int]


class Lockstep:
    """Rig and model side by side: after every step both sides of the rig talk until they have nothing to say."""

    def __init__(self, lrs: int, eoi_mode: int, priorities: Sequence[int] = PRIORITIES) -> None:
        self.world = World(lrs, eoi_mode)
        self.eoi_mode = eoi_mode
        sources = {}
        for key, priority in zip(KEYS, itertools.cycle(priorities), strict=False):
            self.world.set_priority(key, priority)
            sources[key] = Source(priority, level=key[0] in LEVELS, home=max(key[1], 0))
        self.model = Model(
            sources,
            masks=[0xF8] * CPUS, grain=[3] * CPUS, running=[[] for _ in range(CPUS)],
        )  # fmt: skip
        self.stacks: list[list[Key]] = [[] for _ in range(CPUS)]
        self.dropped: list[list[Key]] = [[] for _ in range(CPUS)]

    def step(self, verb: str, key: Key, value: int) -> None:
        world, model, dist = self.world, self.model, self.world.rig.dist
        source = model.sources.get(key, Source())
        match verb:
            case "raise":
                world.raise_(key)
                source.wire |= source.level
                source.latched |= not source.level
            case "lower":
                dist.raise_line(key[0], False)
                source.wire = False
            case "enable":
                dist.set_enabled(world.irq(key), bool(value))
                source.enabled = bool(value)
            case "priority":
                world.set_priority(key, value)
                source.priority = value
            case "move":
                world.move(key, value)
                source.home = value
            case "clear":
                dist.clear_pending(world.irq(key))
                source.latched = False
            case "iar":
                self.acknowledge(value)
            case "end":
                self.end(value)
            case "dir" if self.dropped[value]:
                self.deactivate(value, self.dropped[value].pop(0))
            case "pmr":
                for vcpu, cpu in enumerate(world.rig.cpus):
                    cpu.pmr = value
                    model.masks[vcpu] = value & 0xF8
            case "bpr":
                for vcpu, cpu in enumerate(world.rig.cpus):
                    cpu.set_bpr(value, 1)
                    model.grain[vcpu] = value
        world.rig.pump()

    def acknowledge(self, vcpu: int) -> None:
        expected = self.model.best(vcpu)
        intid = self.world.rig.cpus[vcpu].iar()
        if not expected:
            assert intid == 1023
            return
        key = (intid, vcpu if intid < 32 else -1)
        assert key in expected
        self.model.acknowledge(vcpu, key)
        self.stacks[vcpu].append(key)

    def end(self, vcpu: int) -> None:
        if not self.stacks[vcpu]:
            return
        key = self.stacks[vcpu].pop()
        self.model.drop(vcpu)
        self.world.rig.end(vcpu, self.world.rig.cpus[vcpu].eoir(key[0]))
        if not self.eoi_mode:
            self.model.active.discard(key)
        elif key[0] not in LPIS:
            self.dropped[vcpu].append(key)

    def deactivate(self, vcpu: int, key: Key) -> None:
        self.world.rig.end(vcpu, self.world.rig.cpus[vcpu].dir_(key[0]))
        self.model.active.discard(key)

    def compare(self) -> None:
        dist = self.world.rig.dist
        for vcpu, cpu in enumerate(self.world.rig.cpus):
            assert cpu.signalled() == bool(self.model.best(vcpu))
            assert cpu.rpr() == min(self.model.running[vcpu], default=0xFF)
        for key, source in self.model.sources.items():
            assert dist.pending(self.world.irq(key)) == source.pending(), key
            assert dist.active(self.world.irq(key)) == (key in self.model.active), key


@settings(max_examples=100)
@given(
    st.integers(1, 4),
    st.integers(0, 1),
    st.permutations(PRIORITIES),
    st.lists(STEPS, min_size=25, max_size=60),
)
def test_as_the_model(lrs: int, eoi_mode: int, priorities: list[int], script: list[Step]) -> None:
    """Each acknowledge gives what the model gives, and pending, active and running priorities agree after each step."""
    both = Lockstep(lrs, eoi_mode, priorities)
    for step in script:
        both.step(*step)
        both.compare()


WEIGHTS = {
    "raise": 10, "lower": 3, "enable": 3, "priority": 2, "move": 2, "clear": 1, "iar": 10, "end": 8, "dir": 4, "pmr": 1,
    "bpr": 1,
}  # fmt: skip


def script_of(rng: random.Random, steps: int) -> list[Step]:
    """A busy guest: most interrupts are let through, acknowledged and ended."""
    script = []
    for verb in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
        key, value = rng.choice(KEYS), 0
        match verb:
            case "lower":
                key = (rng.choice(LEVELS), -1)
            case "enable":
                value = int(rng.random() < 0.7)
            case "priority":
                value = rng.choice(PRIORITIES)
            case "move":
                key, value = (rng.choice((*EDGES, *LEVELS, *LPIS)), -1), rng.randrange(CPUS)
            case "iar" | "end" | "dir":
                value = rng.randrange(CPUS)
            case "pmr":
                value = rng.choice((0x28, 0xA8, 0xFF, 0xFF))
            case "bpr":
                value = rng.choice((3, 3, 5, 7))
        script.append((verb, key, value))
    return script


@pytest.mark.parametrize("seed", range(32))
def test_as_the_model_when_busy(seed: int) -> None:
    """The same over long runs."""
    rng = random.Random(seed)
    both = Lockstep(1 + seed % 4, seed // 4 % 2, rng.sample(PRIORITIES, len(PRIORITIES)))
    for step in script_of(rng, 400):
        both.step(*step)
        both.compare()


@pytest.mark.parametrize("lrs", [1, 2, 4])
def test_a_flood_is_delivered_in_order_of_priority(lrs: int) -> None:
    """Overflow: all that is pending comes, most urgent first, however few list registers there are."""
    both = Lockstep(lrs, 0)
    for key in KEYS:
        both.step("raise", key, 0)
    got = []
    for vcpu in range(CPUS):
        while both.model.best(vcpu):
            both.step("iar", (0, 0), vcpu)
            key = both.stacks[vcpu][-1]
            if key[0] in LEVELS:
                both.step("lower", key, 0)
            both.step("end", (0, 0), vcpu)
            got.append(key)
    assert sorted(got) == sorted(KEYS)


# -- both sides at once ----


class Words:
    """A side's view of the shared words: at any load or store the other side may take a step first."""

    def __init__(self, base: memoryview, meddle: Callable[[], None]) -> None:
        self._base = base
        self._meddle = meddle

    def __getitem__(self, index: int) -> int:
        self._meddle()
        return self._base[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._meddle()
        self._base[index] = value
        self._meddle()


class Race:
    """Guest and hypervisor steps, each of which may happen in the middle of a step of the other side.

    What is checked is what neither order of two racing steps may break: an interrupt raised before an acknowledge
    returns is seen by that handler or comes again; what was disabled before an acknowledge began does not come;
    priorities in service only rise; nothing is in service twice.
    """

    def __init__(self, rng: random.Random, lrs: int, eoi_mode: int) -> None:
        self.rng = rng
        self.world = World(lrs, eoi_mode)
        self.eoi_mode = eoi_mode
        self.depth = 0
        self.owed: set[Key] = set()  # raised, and no handler has run since
        self.disabled: dict[Key, int] = {}  # the acknowledge in progress or to come when it was disabled
        self.serving: set[Key] = set()
        self.stacks: list[list[Key]] = [[] for _ in range(CPUS)]
        self.dropped: list[list[Key]] = [[] for _ in range(CPUS)]
        self.wires: set[Key] = set()
        self.acknowledges = 0
        self.delivered = 0
        self.chance = rng.choice((0.0, 0.05, 0.2))
        for key in KEYS:
            self.world.set_priority(key, rng.choice(PRIORITIES))
        for vcpu, cpu in enumerate(self.world.rig.cpus):
            cpu._words = Words(cpu._words, self.hypervisor_meddles)  # type: ignore[assignment]
            lists = self.world.rig.dist.lists[vcpu]
            lists._words = Words(lists._words, self.guest_meddles)  # type: ignore[assignment]

    def hypervisor_meddles(self) -> None:
        self.meddle(self.hypervisor_step)

    def guest_meddles(self) -> None:
        # A vCPU runs beside the hypervisor, but not inside its own trap; a trap is a hypervisor step.
        self.meddle(self.guest_step_without_trap)

    def meddle(self, step: Callable[[], None]) -> None:
        if self.depth == 1 and self.rng.random() < self.chance:
            self.depth = 2
            step()
            self.depth = 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.depth = 1
            self.rng.choice((self.hypervisor_step, self.guest_step, self.guest_step))()
            self.depth = 0

    def hypervisor_step(self) -> None:
        dist, key = self.world.rig.dist, self.rng.choice(KEYS)
        irq = self.world.irq(key)
        match self.rng.choice(("raise", "raise", "raise", "lower", "disable", "enable", "priority", "move", "fold")):
            case "raise":
                self.owed.add(key)
                if key[0] in LEVELS:
                    self.wires.add(key)
                self.world.raise_(key)
            case "lower" if key in self.wires:
                self.wires.discard(key)
                self.owed.discard(key)
                dist.raise_line(key[0], False)
            case "disable":
                dist.set_enabled(irq, False)
                self.disabled[key] = self.acknowledges
            case "enable":
                self.disabled.pop(key, None)
                dist.set_enabled(irq, True)
            case "priority":
                self.world.set_priority(key, self.rng.choice(PRIORITIES))
            case "move" if key[1] < 0:
                self.world.move(key, self.rng.randrange(CPUS))
            case _:
                dist.fold(self.rng.randrange(CPUS))

    def guest_step_without_trap(self) -> None:
        vcpu = self.rng.randrange(CPUS)
        self.rng.choice((self.world.rig.cpus[vcpu].sync, lambda: self.acknowledge(vcpu)))()

    def guest_step(self) -> None:
        vcpu = self.rng.randrange(CPUS)
        cpu = self.world.rig.cpus[vcpu]
        match self.rng.choice(("sync", "ring", "ring", "iar", "iar", "end", "dir", "pmr")):
            case "sync":
                cpu.sync()
            case "ring":
                self.world.rig.ring(vcpu)
            case "iar":
                self.acknowledge(vcpu)
            case "end":
                self.end(vcpu)
            case "dir" if self.dropped[vcpu]:
                self.deactivate(vcpu, self.dropped[vcpu].pop(0))
            case "pmr":
                cpu.pmr = self.rng.choice((0x28, 0xA0, 0xFF, 0xFF))

    def key_of(self, intid: int, vcpu: int) -> Key:
        return (intid, vcpu if intid < 32 else -1)

    def acknowledge(self, vcpu: int) -> Key | None:
        cpu = self.world.rig.cpus[vcpu]
        self.acknowledges += 1
        mine = self.acknowledges
        before = cpu.rpr()
        intid = cpu.iar()
        if intid == 1023:
            return None
        key = self.key_of(intid, vcpu)
        assert cpu.rpr() < min(before, cpu.pmr)
        assert key not in self.serving, "in service twice"
        assert self.disabled.get(key, mine) >= mine, "disabled before this acknowledge began"
        if intid not in LPIS:
            self.serving.add(key)
        if key not in self.wires:
            self.owed.discard(key)
        self.stacks[vcpu].append(key)
        self.delivered += 1
        return key

    def end(self, vcpu: int) -> None:
        if not self.stacks[vcpu]:
            return
        key = self.stacks[vcpu].pop()
        if not self.eoi_mode:
            self.serving.discard(key)
        elif key[0] not in LPIS:
            self.dropped[vcpu].append(key)
        self.world.rig.end(vcpu, self.world.rig.cpus[vcpu].eoir(key[0]))

    def deactivate(self, vcpu: int, key: Key) -> None:
        self.serving.discard(key)
        self.world.rig.end(vcpu, self.world.rig.cpus[vcpu].dir_(key[0]))

    def drain(self) -> None:
        """Everything is enabled and unmasked, every handler runs to its end and takes its wire down."""
        self.chance = 0.0
        rig = self.world.rig
        for key in KEYS:
            self.disabled.pop(key, None)
            rig.dist.set_enabled(self.world.irq(key), True)
        for vcpu, cpu in enumerate(rig.cpus):
            cpu.pmr = 0xFF
            while self.stacks[vcpu]:
                self.end(vcpu)
        for _ in range(200):
            for vcpu in range(CPUS):
                rig.ring(vcpu)
                if (given := self.acknowledge(vcpu)) is not None:
                    if given in self.wires:
                        self.wires.discard(given)
                        self.owed.discard(given)
                        rig.dist.raise_line(given[0], False)
                    self.end(vcpu)
                while self.dropped[vcpu]:
                    self.deactivate(vcpu, self.dropped[vcpu].pop())


@settings(max_examples=200)
@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(0, 1))
def test_any_interleaving(seed: int, lrs: int, eoi_mode: int) -> None:
    """Steps of guest and hypervisor inside one another: nothing lost, nothing masked or disabled delivered."""
    race = Race(random.Random(seed), lrs, eoi_mode)
    race.run(100)
    race.drain()
    assert race.owed == set(), "raised, and no handler has run since"
    assert race.serving == set()
    dist = race.world.rig.dist
    assert [key for key in KEYS if dist.pending(race.world.irq(key)) or dist.active(race.world.irq(key))] == []


@pytest.mark.long
def test_many_interleavings() -> None:
    """The same for many more, and longer, runs."""
    for seed in range(5000):
        race = Race(random.Random(seed), 1 + seed % 4, seed // 4 % 2)
        race.run(200)
        race.drain()
        assert race.owed == set(), seed
