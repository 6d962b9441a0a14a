"""A guest's start: find the hypervisor, choose a door, arrange to be interrupted.

The probe (guest_node/kernel/probe.py) never faults a guest; what it chose carries every Argo call from then on.  Then
the notification is arranged (guest_node/kernel/interrupts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    from hmx.firmware import ArgoDevice


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

    @property
    def domid(self) -> int:
        """This domain's own id, DOMID_SELF while nobody told it."""
        return self.argo.domid


async def boot(vcpus: Sequence[Vcpu], memory: GuestMemoryView, machine: Machine = Machine()) -> Kernel:
    """Probe, choose the door, have VIRQ_ARGO or what stands for it delivered.  BootError when there is no way."""
    found = await probe(vcpus[0], machine.arch, machine.door)
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
        from guest_node.kernel import firmware  # the readers of tables are for guests that have some

        try:
            device = firmware.read_firmware(memory, machine.firmware)
        except firmware.FirmwareError as error:
            raise BootError(str(error), found) from None
        if device is not None:
            firmware.follow(interrupts.controller, device)
    try:
        await interrupts.choose(machine.notification)
    except NoInterrupts as error:
        raise BootError(str(error), found) from None
    return Kernel(tuple(vcpus), memory, found, argo, interrupts, device)


def _no_door(found: Probe) -> str:
    names = ", ".join(seen.name for seen in found.sightings)
    there = f"hypervisors that announce themselves: {names}" if names else "no hypervisor announces itself"
    return f"{found.why} ({there})"
