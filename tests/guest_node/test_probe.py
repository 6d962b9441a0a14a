"""A guest boots under every personality, by every door, and exchanges messages: the probe's choice is written down.

Expected choices are the project's rule (closeness, then declared cost) applied by hand to what each hypervisor offers.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from guest_node.kernel.boot import BootError, Kernel, Machine, boot
from guest_node.kernel.probe import Sign
from guest_node.vcpu import Vcpu
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.consumer import Consumer
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import NAMED, PERSONALITIES, possible_doors
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.golden import rows
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

MIB = 1 << 20
X86, ARM = Arch.X86_64, Arch.AARCH64
NOTIFICATIONS = ("virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")
CPUS_OF = {X86: ("intel", "amd"), ARM: ("armv8",)}
CHOICES = rows("door_choices.csv")


class World:
    """A machine under one hypervisor."""

    def __init__(
        self, personality: str, arch: Arch, cpu: str, doors: tuple[str, ...],
        notifications: tuple[str, ...] = NOTIFICATIONS, seed: int = 0,
    ) -> None:  # fmt: skip
        options, _ = parse_options("on,mac-permissive")
        core = Hypervisor(
            PERSONALITIES[personality, arch], cpu, options, xsm_by_name("dummy"), doors=doors,
            notifications=notifications,
        )  # fmt: skip
        self.arch = arch
        self.machine = InlineMachine(core, random.Random(seed))

    async def guest(self, domid: int, *, vcpus: int = 1, **wanted: str | bool) -> Kernel:
        memory = SharedMemory(MIB)
        areas, bells = self.machine.create_domain(domid, memory, vcpus, name=f"g{domid}")
        cpus = [Vcpu(index, GuestSide(area, self.arch), bells[index]) for index, area in enumerate(areas)]
        for vcpu in cpus:
            vcpu.start()
        return await boot(cpus, memory.guest, Machine(self.arch, domid=domid, **wanted))  # type: ignore[arg-type]


async def exchange(world: World, sender: Kernel, receiver: Kernel, to: int, count: int = 20) -> None:
    """`count` messages to a receiver that sleeps until it is interrupted."""
    ring = receiver.argo.allocate_ring(4032)
    rung = asyncio.Event()
    receiver.argo.on_virq(rung.set)
    assert await receiver.argo.register_ring(ring, 9, DOMID_ANY) == 0
    consumer, got = Consumer(ring.window, ring.ring_len), 0
    for index in range(count):
        await asyncio.sleep(0.01)
        assert await sender.argo.sendv(Address(9, to), 5, [b"message %d" % index], 7) == len(b"message %d" % index)
        await asyncio.wait_for(rung.wait(), 1)
        rung.clear()
        for message in consumer.drain():
            assert message.payload == b"message %d" % got
            got += 1
    assert got == count


def simulate(main: object) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)  # type: ignore[arg-type]


CASES = [(row.name, row.arch, cpu, door) for row in NAMED for cpu in CPUS_OF[row.arch] for door in possible_doors(row)]


@pytest.mark.parametrize(("personality", "arch", "cpu", "door"), CASES)
def test_every_personality_by_every_door(personality: str, arch: Arch, cpu: str, door: str) -> None:
    """Probe, choose, be interrupted, exchange, with one door offered; every other door is absent and harms nobody."""

    async def main() -> None:
        world = World(personality, arch, cpu, (door,))
        a, b = await world.guest(1), await world.guest(2)
        assert a.argo.door.door == door
        present = {tried.convention.door for tried in a.probe.attempts if tried.sign is Sign.PRESENT}
        assert present == {door}
        await exchange(world, a, b, 2)

    simulate(main())


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: "-".join(list(row.values())[:4]))
def test_the_choice(row: dict[str, str]) -> None:
    """tests/golden/door_choices.csv: offered doors, and the one that a guest left alone takes."""
    arch = Arch[row["arch"].upper()]

    async def main() -> str:
        offered = () if row["offered"] == "-" else tuple(row["offered"].split())
        world = World(row["personality"], arch, row["cpu"], offered)
        try:
            kernel = await world.guest(1)
        except BootError as error:
            return "none" if "door" in str(error) else f"no way to be interrupted: {error}"
        return kernel.argo.door.door

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(main()) == row["chosen"]


def test_a_guest_can_be_told_to_use_another() -> None:
    """`door:` overrides the ranking; a door that is not there is refused with what is."""

    async def main() -> None:
        world = World("xen", X86, "intel", ("hypercall", "cpuid"))
        kernel = await world.guest(1, door="cpuid")
        assert kernel.argo.door.door == "cpuid"
        with pytest.raises(BootError, match="pio was asked for and is not there; found: hypercall, cpuid"):
            await world.guest(2, door="pio")

    simulate(main())


def test_the_report_says_what_was_tried_and_why() -> None:
    """What `argosy inspect --probe` shows."""

    async def main() -> None:
        world = World("xen-viridian", X86, "amd", ("hypercall", "pio"))
        kernel = await world.guest(3)
        report = kernel.probe.report()
        assert [each["name"] for each in report["hypervisors"]] == ["hyperv", "xen"]  # type: ignore[attr-defined]
        assert {(each["door"], each["found"]) for each in report["doors"]} >= {  # type: ignore[attr-defined]
            ("hypercall", "present"), ("pio", "present"), ("msr", "fault"), ("mmio", "ignored or all ones"),
        }  # fmt: skip
        assert report["chosen"] == "hypercall" and "closest" in str(report["why"])
        assert kernel.domid == 3 and kernel.argo.door.kind.name == "VMMCALL"

    simulate(main())


@pytest.mark.parametrize("mode", ["line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority"])
@pytest.mark.parametrize(
    ("personality", "arch"), [("xen", X86), ("kvm", X86), ("xen", ARM), ("kvm", ARM), ("firmware", ARM)]
)
def test_every_notification_mode_wakes_a_sleeper(personality: str, arch: Arch, mode: str) -> None:
    """No event channel takes part."""

    async def main() -> None:
        doors = ("hvc", "smc") if arch is ARM else ("hypercall", "msr")
        world = World(personality, arch, CPUS_OF[arch][0], doors, ("virq", mode, "vector-per-cpu"))
        a, b = await world.guest(1, notification=mode), await world.guest(2, notification=mode, vcpus=2)
        assert (a.interrupts.mode, b.interrupts.page) == (mode, None)
        await exchange(world, a, b, 2)

    simulate(main())


@pytest.mark.parametrize("mode", ["line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority"])
@pytest.mark.parametrize("seed", range(4))
def test_an_arm_receiver_may_raise_its_priority_mask_and_turn_interrupts_off(mode: str, seed: int) -> None:
    """What PMR or PSTATE.I hold back comes when they let it, and nothing is lost (Arm IHI 0069 4.8)."""

    async def main() -> None:
        rng = random.Random(seed)
        world = World("kvm", ARM, "armv8", ("hvc",), ("line", "vector-per-cpu", mode), seed)
        a, b = await world.guest(1, notification=mode), await world.guest(2, notification=mode)
        rings = [b.argo.allocate_ring(4032) for _ in range(5)]  # more than one class, and more than four list registers
        rung: list[int] = []
        b.argo.on_virq(lambda: rung.append(1))
        for port, ring in enumerate(rings):
            assert await b.argo.register_ring(ring, port, DOMID_ANY) == 0
        consumers = [Consumer(ring.window, ring.ring_len) for ring in rings]
        vcpu, sent, got = b.vcpus[0], 0, 0
        for _ in range(40):
            how = rng.choice(("open", "pmr", "off"))
            if how == "pmr":
                vcpu.set_priority(0x40)
            elif how == "off":
                vcpu.enable_interrupts(False)
            rung.clear()
            for _ in range(rng.randint(1, 8)):
                assert await a.argo.sendv(Address(rng.randrange(5), 2), 5, [b"x"], 7) == 1
                sent += 1
            await asyncio.sleep(0.01)
            if how != "open":
                assert not rung, "held back"
                vcpu.set_priority(0xFF)
                vcpu.enable_interrupts(True)
                await asyncio.sleep(0.01)
            assert rung, "after the last post the handler ran"
            got += sum(len(consumer.drain()) for consumer in consumers)
            assert got == sent

    simulate(main())


def test_a_guest_without_a_local_apic_falls_back_and_says_so() -> None:
    """A vector needs an APIC; the line does not."""

    async def main() -> None:
        world = World("kvm", X86, "intel", ("msr",))
        a, b = await world.guest(1), await world.guest(2, notification="vector-per-ring", apic=False)
        assert b.interrupts.mode == "line" and "has none: it uses the line instead" in b.interrupts.said
        await exchange(world, a, b, 2)

    simulate(main())


def test_a_mode_that_is_not_offered_is_refused_in_words() -> None:
    """-EOPNOTSUPP, as upstream answers operations it does not know."""

    async def main() -> None:
        world = World("kvm", X86, "intel", ("msr",), ("line",))
        with pytest.raises(BootError, match="refuses notification 'vector-per-cpu': EOPNOTSUPP"):
            await world.guest(1, notification="vector-per-cpu")

    simulate(main())


@pytest.mark.parametrize(("personality", "arch", "cpu"), [("xen", X86, "intel"), ("xen", ARM, "armv8")])
@pytest.mark.parametrize(
    ("offered", "mode"),
    [
        ((), "virq"), (("virq",), "virq"), (("virq", "line", "vector-per-cpu"), "virq"), (("line",), "line"),
        (("line", "vector-per-cpu"), "vector-per-cpu"), (("vector-per-ring", "vector-per-cpu"), "vector-per-cpu"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)  # fmt: skip
@pytest.mark.parametrize("door", ["call", "mmio"])
def test_a_guest_left_alone_takes_what_is_offered(
    personality: str, arch: Arch, cpu: str, offered: tuple[str, ...], mode: str, door: str
) -> None:
    """Issue: modes are offered by the hypervisor; VIRQ_ARGO too, where it has a choice.  What was refused is said."""
    doors = ("hypercall" if arch is X86 else "hvc",) if door == "call" else ("mmio",)

    async def main() -> None:
        world = World(personality, arch, cpu, doors, offered)
        a, b = await world.guest(1), await world.guest(2)
        assert b.interrupts.mode == mode
        if mode == "virq":
            assert b.interrupts.said == ""
        else:
            assert b.interrupts.said.startswith("the hypervisor does not offer VIRQ_ARGO; ")
            assert b.interrupts.said.endswith(f"; this guest uses {mode} instead")
        await exchange(world, a, b, 2)

    simulate(main())


def test_what_is_not_offered_and_asked_for_stops_the_guest() -> None:
    """By name nothing else will do; left alone, every refusal is named."""

    async def main() -> None:
        world = World("xen", X86, "intel", ("hypercall",), ("line",))
        with pytest.raises(BootError, match="does not offer VIRQ_ARGO"):
            await world.guest(1, notification="virq")
        world = World("xen", X86, "intel", ("hypercall",), ("vectors-by-priority",))
        with pytest.raises(BootError, match=r"VIRQ_ARGO; .*'vector-per-cpu': EOPNOTSUPP.*'line': EOPNOTSUPP"):
            await world.guest(1)

    simulate(main())
