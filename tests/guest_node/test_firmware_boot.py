"""A guest reads its firmware, follows the interrupt numbers it names, and exchanges by them (hmx/firmware.py)."""

from __future__ import annotations

import pytest

from guest_node.kernel.boot import BootError, Kernel, Machine, boot
from guest_node.vcpu import Vcpu
from hmx import arm_map
from hmx.doors import DOOR_CALL, DOOR_MSR, DOOR_SMCCC_HVC, MMIO_DOOR
from hmx.firmware import ArgoDevice, Door, VectorPolicy
from hmx.memory import FIRMWARE_BASE
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from tests.guest_node.test_probe import World, exchange, simulate
from topologies.firmware import acpi, devicetree
from topologies.firmware.machine import Gic, Range
from topologies.firmware.machine import Machine as Described
from topologies.inline.machine import SharedMemory

X86, ARM = Arch.X86_64, Arch.AARCH64
MIB = 1 << 20
GIC = Gic(3, arm_map.GICD_BASE, redistributors=(Range(arm_map.GICR_BASE, arm_map.GICR_STRIDE),))
DOORS = {
    X86: (Door("msr", DOOR_MSR), Door("cpuid", DOOR_CALL)),
    ARM: (Door("hvc", DOOR_SMCCC_HVC),),
}


def blob(arch: Arch, kind: str, argo: ArgoDevice | None) -> bytes:
    gic = GIC if arch is ARM else None
    machine = Described(arch, (0,), (Range(0, 2 * MIB),), argo=argo, gic=gic, psci="hvc" if gic else "")
    return devicetree.build(machine) if kind == "devicetree" else acpi.build(machine, FIRMWARE_BASE).data


async def guest(world: World, domid: int, firmware: bytes, kind: str, notification: str = "auto") -> Kernel:
    memory = SharedMemory(2 * MIB)
    memory.guest.buffer[FIRMWARE_BASE : FIRMWARE_BASE + len(firmware)] = firmware
    areas, bells = world.machine.create_domain(domid, memory, 1, name=f"g{domid}")
    vcpu = Vcpu(0, GuestSide(areas[0], world.arch), bells[0])
    vcpu.start()
    return await boot([vcpu], memory.guest, Machine(world.arch, notification=notification, firmware=kind))


CASES = [
    (X86, "acpi", ("msr",), VectorPolicy.SUGGESTED, (0x93, 0x83), 0x93),
    (X86, "acpi", ("cpuid",), VectorPolicy.GUEST, (0x40, 0x7F), 0x7F),
    (X86, "acpi", ("msr",), VectorPolicy.GUEST, (0x20, 0xEF), 0xD0),
    (ARM, "devicetree", ("hvc",), VectorPolicy.SUGGESTED, (27,), 27),
    (ARM, "acpi", ("hvc",), VectorPolicy.SUGGESTED, (28,), 28),
]


@pytest.mark.parametrize(("arch", "kind", "doors", "policy", "vectors", "taken"), CASES)
def test_firmware_tells_the_vector_and_the_guest_tells_the_hypervisor(
    arch: Arch, kind: str, doors: tuple[str, ...], policy: VectorPolicy, vectors: tuple[int, ...], taken: int
) -> None:
    """Probe, read, choose, register, be interrupted: the whole path, without event channels."""

    async def main() -> None:
        world = World("kvm", arch, "armv8" if arch is ARM else "intel", doors)
        argo = ArgoDevice(doors=DOORS[arch], policy=policy, vectors=vectors, mmio=MMIO_DOOR[arch])
        firmware = blob(arch, kind, argo)
        a, b = await guest(world, 1, firmware, kind), await guest(world, 2, firmware, kind)
        assert b.firmware is not None and b.firmware.doors == DOORS[arch] and b.firmware.policy is policy
        assert b.interrupts.mode == "vector-per-cpu" and b.interrupts.controller.per_cpu == taken
        hvm = world.machine.core.hvm(2)
        assert hvm is not None and hvm.notification.per_vcpu == {0: taken}
        free = b.memory.pages.free_pages()
        await exchange(world, a, b, 2)
        assert free < 2 * MIB // 4096 - 32, "the tables' pages are nobody's"

    simulate(main())


NO_TREE = b"\xd0\x0d\xfe\xed" + bytes(60)


@pytest.mark.parametrize(("kind", "data"), [("acpi", b""), ("devicetree", NO_TREE)], ids=["acpi", "devicetree"])
def test_firmware_that_cannot_be_read_is_named(kind: str, data: bytes) -> None:
    """No root pointer, a tree that is none: the guest does not start, and says where it looked."""

    async def main() -> None:
        world = World("kvm", X86, "intel", ("msr",))
        with pytest.raises(BootError, match=f"no {kind} at 0xe0000"):
            await guest(world, 1, data, kind)

    simulate(main())


def test_firmware_without_argo_is_no_obstacle() -> None:
    """The probe finds the doors by itself."""

    async def main() -> None:
        world = World("xen", X86, "intel", ("hypercall",))
        kernel = await guest(world, 1, blob(X86, "acpi", None), "acpi")
        assert kernel.firmware is None and kernel.interrupts.mode == "virq"

    simulate(main())
