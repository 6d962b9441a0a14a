"""At any quiet point delivered + coalesced + dropped + pending = raised (project contracts 10), in every mode.

Pending is what was raised and neither delivered nor lost: entries of the post ring and behind it, and what the silicon
in the guest's process holds (IRR, the page's pending bits, lines), or what distributor and list registers hold.
Coalesced is counted where it happens, on either side.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from guest_node.kernel.boot import Kernel, Machine, boot
from guest_node.vcpu import Vcpu
from hmx.argo.abi import VIRQ_ARGO
from hmx.shm import load32
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide, Post
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.interrupts import simulate
from topologies.inline.machine import InlineMachine, SharedMemory

MODES = ("virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")
RINGS = 3
VCPUS = 2
STEPS = st.lists(
    st.tuples(st.sampled_from(["raise", "raise", "raise", "poll", "off", "on", "mask", "unmask", "trap"]),
              st.integers(0, VCPUS - 1), st.integers(0, RINGS)),
    max_size=40,
)  # fmt: skip
Step = tuple[str, int, int]


class Lab:
    """One guest that is interrupted for Argo when the script says so, whatever is in its rings."""

    def __init__(self, arch: Arch, mode: str) -> None:
        options, _ = parse_options("on,mac-permissive")
        cpu, door = ("intel", "hypercall") if arch is Arch.X86_64 else ("armv8", "hvc")
        self.core = Hypervisor(
            PERSONALITIES["xen", arch], cpu, options, xsm_by_name("dummy"), doors=(door,), notifications=MODES
        )
        self.arch, self.mode = arch, mode
        self.machine = InlineMachine(self.core, random.Random(1))

    async def start(self) -> Kernel:
        memory = SharedMemory(1 << 20)
        areas, bells = self.machine.create_domain(1, memory, VCPUS, name="g")
        self.cpus = [Vcpu(index, GuestSide(area, self.arch), bells[index]) for index, area in enumerate(areas)]
        for cpu in self.cpus:
            cpu.start()
        kernel = await boot(self.cpus, memory.guest, Machine(self.arch, notification=self.mode, domid=1))
        hvm = self.core.hvm(1)
        assert hvm is not None
        self.hvm, self.kernel = hvm, kernel
        for port in range(RINGS):
            assert await kernel.argo.register_ring(kernel.argo.allocate_ring(4032), 9 + port, 0x7FF4) == 0
        state = hvm.domain.argo
        assert state is not None
        self.rings = [*state.rings.values()]
        assert len(self.rings) == RINGS
        return kernel

    def do(self, step: Step) -> None:
        what, index, which = step
        cpu = self.cpus[index]
        match what:
            case "raise":
                self.core.raise_virq(1, VIRQ_ARGO, self.rings[which] if which < RINGS else None)
            case "poll":
                cpu.poll_interrupts()
            case "off" | "on":
                cpu.enable_interrupts(what == "on")
            case "mask":
                cpu.set_priority(0xF0 if cpu.apic is not None else 0x78 + 8 * which)
            case "unmask":
                cpu.set_priority(0 if cpu.apic is not None else 0xFF)
            case _:  # the hypervisor looks, as it does before frames of this vCPU
                self.core.run(self.hvm.vcpus[index])

    def pending(self) -> int:
        """What was raised and has not come yet."""
        count = 0
        for vcpu, cpu in zip(self.hvm.vcpus, self.cpus, strict=True):
            area = vcpu.area
            head = load32(area.words, 0x100 // 4)
            waiting = [load32(area.words, (0x400 >> 2) + at % 256) for at in range(head, area.post_tail)]
            raised = [entry for entry in (*waiting, *area.backlog) if entry >> 24 != Post.LR]
            count += len(raised) + len(cpu._lines)
            count += 0 if cpu.apic is None else cpu.apic.irr.bit_count()
        page = self.kernel.interrupts.page
        count += page is not None and page.pending(self.kernel.interrupts.virq_port)
        if self.hvm.gic is not None:
            dist = self.hvm.gic.distributor
            for irq in (*dist.spis, *(irq for bank in dist.banked for irq in bank)):
                listed = irq.at is not None and irq.at.bank.look(irq.at).pending
                count += listed or irq.latch
                count += listed and irq.latch and irq.edge  # pulsed again while it is asked back: two for now
        return count

    def balance(self) -> tuple[int, int]:
        """What became of interrupts, and how many were raised."""
        hv = self.hvm.counters
        mine = [cpu.counters for cpu in self.cpus]
        delivered = sum(each.interrupts_delivered + each.interrupts_spurious for each in mine)
        coalesced = hv.interrupts_coalesced + sum(each.interrupts_coalesced for each in mine)
        return delivered + coalesced + hv.interrupts_dropped + self.pending(), hv.interrupts_raised


def play(arch: Arch, mode: str, steps: Sequence[Step]) -> None:
    async def main() -> None:
        lab = Lab(arch, mode)
        await lab.start()
        for number, step in enumerate(steps):
            lab.do(step)
            accounted, raised = lab.balance()
            assert accounted == raised, f"{raised} raised, {accounted} accounted for, after {steps[: number + 1]}"
        for index in range(VCPUS):
            for what in ("on", "unmask", "trap", "on", "trap", "on"):
                lab.do((what, index, 0))
        await asyncio.sleep(1)
        assert lab.pending() == 0, "everything was let through"
        accounted, raised = lab.balance()
        assert accounted == raised == sum(step[0] == "raise" for step in steps)

    simulate(main())


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64], ids=["x86", "arm"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
@example([("off", 0, 0), ("off", 1, 0), *[("raise", 0, ring) for ring in (0, 0, 1, 1, 3, 3)]])
@example([("mask", 0, 0), ("raise", 0, 0), ("poll", 0, 0), ("raise", 0, 0), ("poll", 0, 0), ("trap", 0, 0)])
def test_every_interrupt_is_accounted_for(arch: Arch, mode: str, steps: list[Step]) -> None:
    """After every step, not only at the end: the guest's processes stand still while the sum is made."""
    play(arch, mode, steps)


@pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64], ids=["x86", "arm"])
def test_an_unbound_virq_is_dropped(arch: Arch) -> None:
    """Dropped: the target is unbound."""

    async def main() -> None:
        lab = Lab(arch, "virq")
        await lab.start()
        lab.hvm.evtchn.close(lab.kernel.interrupts.virq_port)
        lab.hvm.routes.clear()
        for _ in range(3):
            lab.do(("raise", 0, 0))
        assert lab.hvm.counters.interrupts_dropped == 3 and lab.balance() == (3, 3)

    simulate(main())


def test_interrupts_of_one_configuration_word_stay_edge_triggered() -> None:
    """GICD_ICFGR configures 16 interrupts at once (IHI 0069 12.9.9): enabling one leaves its neighbours alone."""

    async def main() -> None:
        lab = Lab(Arch.AARCH64, "vectors-by-priority")
        await lab.start()
        assert lab.hvm.gic is not None
        used = [irq for irq in lab.hvm.gic.distributor.spis if irq.enabled]
        assert len(used) >= RINGS and all(irq.edge for irq in used)

    simulate(main())
