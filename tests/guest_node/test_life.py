"""What a guest tells of its start: the probe's report before it is ready, and also where it finds no door."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from guest_node.config import GuestConfig
from guest_node.life import Ending, World, live, machine_of
from guest_node.vcpu import Vcpu
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.argo_rig import simulate
from tests.doubles.files import MemoryFiles
from topologies.inline.machine import InlineMachine, SharedMemory

MEMORY = 1 << 20


def config(arch: str = "x86_64", **more: Any) -> GuestConfig:
    """A guest of domain 1 that asks somebody who is not there, for no longer than it must."""
    given = {"door": "auto", "notification": "auto", "apic": True, **more}
    return GuestConfig(
        "lab", "g", "", "", b"", 1, "hv0", 1, MEMORY, 1, arch, given["door"], given["notification"],
        "builtin:door-report", {"to": 9, "within": "100ms"}, {}, 0, "", "", given["apic"],
    )  # fmt: skip


async def life(
    personality: str, doors: tuple[str, ...], wanted: GuestConfig, coalesced: int = 0
) -> tuple[list[list[Any]], Ending]:
    """What the guest told, and how it ended."""
    options, _ = parse_options("on,mac-permissive")
    arch = Arch[wanted.arch.upper()]
    cpu = "intel" if arch is Arch.X86_64 else "armv8"
    core = Hypervisor(
        PERSONALITIES[personality, arch], cpu, options, xsm_by_name("dummy"), doors=doors,
        notifications=("line", "vector-per-cpu"),
    )  # fmt: skip
    machine, memory = InlineMachine(core, random.Random(1)), SharedMemory(MEMORY)
    (area,), (bells,) = machine.create_domain(1, memory, 1, name="g")
    told: list[list[Any]] = []
    gone: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    chance = random.Random(1), random.Random(2)
    world = World(told.append, lambda _: None, MemoryFiles(), *chance, gone, lambda: coalesced)
    return told, await live(wanted, [Vcpu(0, GuestSide(area, arch), bells)], memory.guest, world)


@pytest.mark.parametrize("personality", ["pv-only", "bare-metal"])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_without_a_door(personality: str, arch: str) -> None:
    """The probe is told although the guest does not become ready, and the result says why."""
    told, ending = simulate(life, personality, (), config(arch))
    assert [record[:2] for record in told] == [["event", "probe"], ["event", "result"]]
    found = json.loads(told[0][2])
    assert (found["chosen"], found["hypervisors"], found["arch"]) == (None, [], arch)
    result = json.loads(told[1][3])
    assert result["door"] is None and result["error"].startswith("no door to Argo was found")
    assert ending == Ending(1, result["error"])


def test_what_coalesced_on_the_way_is_counted() -> None:
    """docs/remote-guests.md: at the guest's end of the mirror interrupts coalesce as well."""
    counted = []
    for coalesced in (0, 5):
        told, _ = simulate(life, "kvm", ("msr",), config(), coalesced)
        counted.append(json.loads(told[-1][3])["arch"]["interrupts_coalesced"])
    assert counted[1] == counted[0] + 5


@pytest.mark.parametrize("apic", [True, False])
def test_what_was_chosen_is_told_before_it_is_ready(apic: bool) -> None:
    """Door and notification, and why the notification is another than was asked for."""
    told, ending = simulate(life, "kvm", ("msr",), config(door="msr", notification="vector-per-cpu", apic=apic))
    assert [record[:2] for record in told] == [["event", "probe"], ["ready"], ["event", "result"]]
    found = json.loads(told[0][2])
    assert (found["chosen"], found["notification"]) == ("msr", "vector-per-cpu" if apic else "line")
    assert ("no" if apic else "needs a local APIC") in (found["said"] or "no")
    result = json.loads(told[2][3])
    assert (result["door"], result["instruction"], result["notification"]) == ("msr", "WRMSR", found["notification"])
    assert ending == Ending(1, result["error"]) and "no exchange with 9" in ending.reason, "why it gave up"


def test_the_machine() -> None:
    """Everything that the topology says of it."""
    machine = machine_of(config("aarch64", door="smc", notification="line", apic=False))
    assert (machine.arch, machine.door, machine.notification) == (Arch.AARCH64, "smc", "line")
    assert (machine.apic, machine.domid) == (False, 1)
