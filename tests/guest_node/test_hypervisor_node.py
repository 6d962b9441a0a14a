"""The probe on Arm looks at the device tree's node /hypervisor: evidence of who is there, never an obstacle.

Sources: Linux bindings xen,xen; issue: the probe finds hypervisors by CPUID blocks, SMCCC UID and device-tree node.
"""

from __future__ import annotations

import random

import pytest

from guest_node.kernel.boot import BootError, Kernel
from guest_node.kernel.firmware import SHOWN_ERROR, SHOWN_NAME, SHOWN_NAMES, find_hypervisor
from guest_node.kernel.probe import Sign
from hmx import fdt
from hmx.hypervisors import HYPERVISOR_NODES, SMCCC_VENDOR_UID
from hv_node.doors import smccc
from tests.guest_node.test_firmware_boot import ARM, GIC, MIB, X86, blob, guest
from tests.guest_node.test_probe import World, exchange, simulate
from topologies.firmware import devicetree
from topologies.firmware.machine import Machine as Described
from topologies.firmware.machine import Range

EXPECTED = {"xen": "xen,xen", "kvm": "linux,kvm", "hyperv": "microsoft,hyperv", "smccc": "argosy,smccc"}


def tree_of(personality: str) -> bytes:
    """A machine under that personality, as the planner describes it."""
    return devicetree.build(Described(ARM, (0,), (Range(0, 2 * MIB),), personality=personality, gic=GIC, psci="hvc"))


def node_saying(compatible: bytes, name: bytes = b"hypervisor") -> bytes:
    """A tree with nothing but one node below the root, written out by hand (Devicetree Specification 0.4, 5)."""

    def cells(*values: int) -> bytes:
        return b"".join(value.to_bytes(4, "big") for value in values)

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    structure = cells(1, 0, 1) + padded(name + b"\0") + cells(3, len(compatible), 0) + padded(compatible)
    structure += cells(2, 2, 9)
    strings = b"compatible\0"
    total = 56 + len(structure) + len(strings)
    head = cells(0xD00DFEED, total, 56, 56 + len(structure), 40, 17, 16, 0, len(strings), len(structure))
    return head + bytes(16) + structure + strings


def boots(personality: str, firmware: bytes, doors: tuple[str, ...] = ("hvc",)) -> Kernel:
    """A guest under `personality` with that blob as its tree, which then exchanges with another."""
    kernels: list[Kernel] = []

    async def main() -> None:
        world = World(personality, ARM, "armv8", doors)
        a, b = await guest(world, 1, firmware, "devicetree"), await guest(world, 2, firmware, "devicetree")
        await exchange(world, a, b, 2)
        kernels.append(a)

    simulate(main())
    return kernels[0]


@pytest.mark.parametrize("personality", EXPECTED)
def test_the_node_is_evidence(personality: str) -> None:
    """Found beside the UID, under its path; the choice of the door is what it was."""
    kernel = boots(personality, tree_of(personality))
    found = kernel.probe.report()
    told = found["device_tree"]
    assert isinstance(told, dict)
    assert told["node"] == "/hypervisor" and told["hypervisor"] == personality
    assert EXPECTED[personality] in told["compatible"]
    seen = [(each.name, each.where) for each in kernel.probe.sightings]
    assert seen == [(personality, SMCCC_VENDOR_UID), (personality, "/hypervisor")]
    assert found["chosen"] == "hvc"
    assert {row.name: row.compatible for row in HYPERVISOR_NODES} == EXPECTED


def test_the_node_alone_leads_to_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Xen that answers no vendor UID, as those before 4.10: nobody but the tree says which call to try."""
    left = {key: value for key, value in smccc._TABLE.items() if key[1] != SMCCC_VENDOR_UID}
    monkeypatch.setattr(smccc, "_TABLE", left)
    kernel = boots("xen", tree_of("xen"))
    assert [seen.at for seen in kernel.probe.sightings] == ["/hypervisor"]
    assert kernel.probe.door is not None and kernel.probe.door.speaks == "xen" and kernel.interrupts.mode == "virq"


@pytest.mark.parametrize("claimed", EXPECTED)
@pytest.mark.parametrize("personality", ["kvm", "xen", "smccc", "hyperv"])
def test_a_tree_that_lies_costs_nothing(personality: str, claimed: str) -> None:
    """It adds a knock; only the answer at the door counts, and the notification is one that is really there."""
    kernel = boots(personality, tree_of(claimed))
    assert kernel.probe.door is not None and kernel.probe.door.door == "hvc"
    assert (kernel.probe.door.speaks == "xen") == (personality == "xen")
    assert (kernel.interrupts.mode == "virq") == (personality == "xen")
    if claimed == "xen" != personality:
        absent = [tried for tried in kernel.probe.attempts if tried.convention.speaks == "xen"]
        assert absent and all(tried.sign is not Sign.PRESENT for tried in absent)
        assert kernel.interrupts.said.endswith(f"; this guest uses {kernel.interrupts.mode} instead")
        honest = boots(personality, tree_of("kvm"))
        assert kernel.argo.memory.pages.free_pages() == honest.argo.memory.pages.free_pages(), "no page is lost"


@pytest.mark.parametrize(
    ("compatible", "abi"),
    [(b"xen,xen\0", "xen"), (b"linux,kvm\0", "smccc"), (b"microsoft,hyperv\0", "smccc"), (b"argosy,smccc\0", "smccc")],
)
def test_which_calls_a_node_points_to(compatible: bytes, abi: str) -> None:
    """Xen's node to Xen's hypercalls; all others to the vendor-specific range of the SMC Calling Convention."""
    found = find_hypervisor(fdt.parse(node_saying(compatible)))
    assert found is not None and found.abi == abi


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (node_saying(b"xen,xen\0", b"hypervisor@40000000"), ("/hypervisor@40000000", "xen")),
        (node_saying(b"acme,one\0xen,xen\0"), ("/hypervisor", "xen")),
        (node_saying(b"acme,one\0"), ("/hypervisor", "")),
        (node_saying(b""), ("/hypervisor", "")),
        (node_saying(b"xen,xen\0", b"hypervisors"), None),
    ],
    ids=["unit address", "second name", "stranger", "silent", "another node"],
)
def test_which_node_and_which_name(data: bytes, expected: tuple[str, str] | None) -> None:
    """The root's child `hypervisor`; the first of its names that is known."""
    found = find_hypervisor(fdt.parse(data))
    assert (None if found is None else (found.path, found.name)) == expected


def test_what_a_blob_says_is_cut_short() -> None:
    """A report travels in a record of bounded size, whatever a tree holds."""
    found = find_hypervisor(fdt.parse(node_saying((b"x" * 5000 + b"\0") * 9)))
    assert found is not None and found.compatible == ("x" * SHOWN_NAME,) * SHOWN_NAMES


HOSTILE = {
    "empty": b"",
    "magic alone": b"\xd0\x0d\xfe\xed" + bytes(60),
    "no list of strings": node_saying(b"xen,xen"),
    "not ASCII": node_saying(b"x\xffn,xen\0"),
    "cut off": tree_of("xen")[:200],
    "long name": node_saying(b"xen", b"h" * 255),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_corrupt_blob_is_recorded_and_survived(data: bytes) -> None:
    """The probe says why it could not read the tree and finds the door all the same, where the guest may go on."""

    async def main() -> None:
        world = World("kvm", ARM, "armv8", ("hvc",))
        try:
            found = (await guest(world, 1, data, "devicetree")).probe
        except BootError as error:  # promised firmware that is none: named, with the whole probe
            found, refusal = error.probe, str(error)
        else:
            refusal = "no devicetree at"
        assert "no devicetree at" in refusal and len(refusal) < SHOWN_ERROR + 100
        assert found.door is not None and found.door.door == "hvc"
        assert [seen.name for seen in found.sightings] == ["kvm"]
        told = found.report().get("device_tree")
        assert (told is None) == (data == HOSTILE["long name"])
        assert told is None or (isinstance(told, dict) and 0 < len(told["error"]) <= SHOWN_ERROR + 3)

    simulate(main())


def test_mutated_trees_never_stop_the_probe() -> None:
    """Any change of a few bytes: the guest boots, or names its firmware; nothing else is ever raised."""
    good, chance = tree_of("xen"), random.Random(4)

    async def main() -> None:
        for _ in range(60):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.choice((0, 1, 2, 3, 9, 0x7F, 0xFF, chance.randrange(256)))
            world = World("xen", ARM, "armv8", ("hvc",))
            try:
                found = (await guest(world, 1, bytes(data), "devicetree")).probe
            except BootError as error:
                found = error.probe
            assert found.door is not None and found.door.door == "hvc"

    simulate(main())


def test_x86_does_not_look() -> None:
    """CPUID says who is there."""

    async def main() -> None:
        kernel = await guest(World("xen", X86, "intel", ("hypercall",)), 1, blob(X86, "acpi", None), "acpi")
        assert kernel.probe.tree is None and "device_tree" not in kernel.probe.report()

    simulate(main())
