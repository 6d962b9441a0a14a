"""List registers at the moments when guest and hypervisor pass each other: between a look and the store that follows.

The handshake is our own (hmx/cpu/gic.py); that nothing pending may be forgotten is Arm IHI 0069 4.1.2.
"""

from __future__ import annotations

from collections.abc import Callable

from hmx.gic import LR_OFFSET, MAX_LRS
from hmx.vcpu_area import AREA_SIZE
from tests.doubles.gic_model import Rig
from tests.hv_node.test_gic_frames import ready

LR = LR_OFFSET >> 3


class BeforeStore:
    """The hypervisor's view of the shared words: once, just before it stores to lr[n], the guest does something."""

    def __init__(self, rig: Rig, vcpu: int, n: int, act: Callable[[], object]) -> None:
        self._base, self._n, self._act = rig.areas[vcpu], n, act
        self.acted = False
        rig.dist.lists[vcpu]._words = self  # type: ignore[assignment]

    def __getitem__(self, index: int) -> int:
        return self._base[index]

    def __setitem__(self, index: int, value: int) -> None:
        if index == LR + self._n and not self.acted:
            self.acted = True
            self._act()
        self._base[index] = value


def test_an_entry_that_ends_before_its_eoi_bit() -> None:
    """The interrupt, moved while in service, comes again for its new vCPU though the guest never saw the EOI bit."""
    rig = ready(2)
    rig.dist.pulse(40)
    assert rig.cpus[0].iar() == 40
    rig.dist.set_route(rig.dist.spis[8], 1)
    race = BeforeStore(rig, 0, 0, lambda: rig.cpus[0].eoir(40))
    rig.dist.pulse(40)
    assert race.acted
    assert rig.cpus[1].hppir() == 40


def test_the_list_runs_empty_before_more_is_said() -> None:
    """The guest ends the last listed interrupt just before it could see that more wait."""
    rig = ready(lrs=1)
    rig.dist.set_priority(rig.dist.spis[0], 0x20)
    rig.dist.pulse(32)
    race = BeforeStore(rig, 0, 0, lambda: rig.cpus[0].eoir(rig.cpus[0].iar()))
    rig.dist.pulse(33)
    assert race.acted
    assert rig.cpus[0].hppir() == 33


def test_nothing_is_pending_any_more_before_more_is_said() -> None:
    """The guest only acknowledges it, and drops its priority: the entry must make room, as none ends."""
    rig = ready(lrs=1)
    cpu = rig.cpus[0]
    cpu.eoi_mode = 1
    rig.dist.set_priority(rig.dist.spis[0], 0x20)
    rig.dist.pulse(32)
    race = BeforeStore(rig, 0, 0, lambda: cpu.eoir(cpu.iar()))
    rig.dist.pulse(33)
    assert race.acted
    rig.pump()
    assert cpu.iar() == 33
    rig.end(0, cpu.dir_(32))
    assert not rig.dist.active(rig.dist.spis[0])


def test_posts_wake_the_vcpu_concerned() -> None:
    """An offer, another event of an active one, and a recall are each posted for their list register."""
    rig = ready(2)
    rig.dist.set_route(rig.dist.spis[8], 1)
    rig.dist.pulse(39)
    rig.dist.pulse(40)
    assert rig.cpus[1].iar() == 40
    rig.dist.pulse(40)
    rig.dist.set_enabled(rig.dist.spis[8], False)
    assert rig.posts == [(0, 0), (1, 0), (1, 0), (1, 0)]


def test_a_level_interrupt_is_looked_at_when_it_ends() -> None:
    """The wire is still up at EOI: the guest rings, and it is pending again (IHI 0069 4.1.2)."""
    rig = ready()
    rig.dist.set_edge(rig.dist.spis[8], False)
    rig.dist.raise_line(40, True)
    assert rig.cpus[0].iar() == 40
    assert rig.cpus[0].eoir(40) is None
    assert rig.ring(0)
    assert rig.cpus[0].hppir() == 40


def test_a_guest_that_scribbles_harms_itself() -> None:
    """lr_state holds anything: the hypervisor goes on, and other vCPUs get their interrupts."""
    rig = ready(2)
    rig.dist.set_route(rig.dist.spis[8], 1)
    for place in range(MAX_LRS):
        rig.areas[0][LR + MAX_LRS + place] = (1 << 64) - 1
    for intid in range(32, 64):
        rig.dist.pulse(intid)
        rig.dist.fold(0)
    assert rig.cpus[1].iar() == 40


def test_the_area_is_large_enough() -> None:
    """The words lie in a vCPU area."""
    assert LR + 2 * MAX_LRS <= AREA_SIZE >> 3
