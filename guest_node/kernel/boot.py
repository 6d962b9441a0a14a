"""A guest's start: find the hypervisor, choose a door, arrange to be interrupted.

The probe (guest_node/kernel/probe.py) never faults a guest; what it chose carries every Argo call from then on.  Then
the notification is arranged (guest_node/kernel/interrupts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guest_node.kernel.argo import Argo, GuestMemoryView
from guest_node.kernel.interrupts import Interrupts, NoInterrupts
from guest_node.kernel.probe import Probe, probe
from guest_node.vcpu import Vcpu
from hmx import xen
from hmx.cpu.gic import VirtualCpuInterface
from hmx.cpu.lapic import LocalApic
from hmx.shm import words64
from hmx.trap import Arch

if TYPE_CHECKING:
    from guest_node.kernel.firmware import Firmware
    from guest_node.kernel.v4v import V4v
    from hmx.firmware import ArgoDevice


V4V_SPEAKERS: Final = frozenset({"uxen", "ax", "whpx"})
"""Hypervisors that serve v4v, by the names of their signatures."""


class BootError(Exception):
    """The guest cannot run here; the message says what it looked for and what it found, `probe` all of it."""

    def __init__(self, words: str, probe: Probe) -> None:
        super().__init__(words)
        self.probe = probe


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is told about itself: its architecture, and what it should use instead of the best."""

    arch: Arch = Arch.X86_64
    door: str = "auto"
    notification: str = "auto"
    apic: bool = True
    domid: int | None = None  # where no hypervisor tells it
    firmware: str = "none"  # or "acpi", "devicetree": what the hypervisor placed in memory


@dataclass(frozen=True, slots=True)
class Kernel:
    """A booted guest kernel.  Its Argo calls go through vCPU 0."""

    vcpus: tuple[Vcpu, ...]
    memory: GuestMemoryView
    probe: Probe
    argo: Argo
    interrupts: Interrupts
    firmware: ArgoDevice | None = None  # Argo as the firmware describes it
    v4v: V4v | None = None  # under uXen and its kin

    @property
    def domid(self) -> int:
        """This domain's own id, DOMID_SELF while nobody told it."""
        return self.argo.domid


async def boot(vcpus: Sequence[Vcpu], memory: GuestMemoryView, machine: Machine = Machine()) -> Kernel:
    """Probe, choose the door, have VIRQ_ARGO or what stands for it delivered.  BootError when there is no way."""
    described, unreadable = _firmware(memory, machine.firmware)
    tree = described.hypervisor() if described is not None and machine.arch is Arch.AARCH64 else None
    found = await probe(vcpus[0], machine.arch, machine.door, tree)
    if found.door is None:
        raise BootError(_no_door(found), found)
    if machine.arch is Arch.X86_64 and machine.apic:
        for vcpu in vcpus:
            vcpu.attach_apic(LocalApic(vcpu.index))
    elif machine.arch is Arch.AARCH64:
        for vcpu in vcpus:
            vcpu.attach_gic(VirtualCpuInterface(words64(vcpu.area.buffer)))
    domid = next((each for each in (found.domid, machine.domid) if each is not None), xen.DOMID_SELF)
    argo = Argo(vcpus[0], memory, found.door, domid)
    interrupts = Interrupts(tuple(vcpus), argo, found)
    device = None
    if machine.firmware != "none":
        from guest_node.kernel import firmware

        try:
            if described is None:
                raise firmware.FirmwareError(unreadable)
            device = described.argo()
        except firmware.FirmwareError as error:
            raise BootError(str(error), found) from None
        if device is not None:
            firmware.follow(interrupts.controller, device)
    try:
        await interrupts.choose(machine.notification)
    except NoInterrupts as error:
        raise BootError(str(error), found) from None
    return Kernel(tuple(vcpus), memory, found, argo, interrupts, device, _v4v(found, interrupts))


def _v4v(found: Probe, interrupts: Interrupts) -> V4v | None:
    """v4v beside Argo, where the hypervisor is one that has it; its line is shared with Argo's if that is the same."""
    if V4V_SPEAKERS.isdisjoint(seen.name for seen in found.sightings):
        return None
    from guest_node.kernel.v4v import V4v, way_of  # for guests of such a hypervisor

    way = way_of(found)
    assert way is not None, "every speaker has a way"
    v4v = V4v(interrupts.vcpus[0], interrupts.argo.memory, way, interrupts.argo.domid)
    interrupts.share_line(v4v.virq)
    return v4v


def _firmware(memory: GuestMemoryView, kind: str) -> tuple[Firmware | None, str]:
    """What the hypervisor placed in memory, or why there is no room for it."""
    if kind == "none":
        return None, ""
    from guest_node.kernel import firmware  # the readers of tables are for guests that have some

    try:
        return firmware.Firmware(memory, kind), ""
    except firmware.FirmwareError as error:
        return None, str(error)


def _no_door(found: Probe) -> str:
    names = ", ".join(dict.fromkeys(seen.name for seen in found.sightings))
    there = f"hypervisors that announce themselves: {names}" if names else "no hypervisor announces itself"
    return f"{found.why} ({there})"
