"""A kernel whose hypervisor is on another host: the tests of the kernel nearby, unchanged, over a lane with delays.

Rules: the project's mirror protocol (docs/remote-guests.md); guest_node/kernel and drivers run unchanged.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guest_node.kernel.boot import Kernel, Machine, boot
from guest_node.remote import RemoteEnd
from guest_node.vcpu import Vcpu
from hmx import mirror
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.consumer import Consumer
from hmx.attach import AttachError, Reply, pack_reply
from hmx.mirror import Batch, MessageKind, Section
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.mirror import MirrorMemory as MirrorDouble
from tests.doubles.remote import RemoteDomain, SharedAreas
from tests.guest_node import test_kernel
from tests.topologies.inline import test_runtime
from topologies.exitcodes import ExitCode
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine

MIB = 1 << 20


class RemoteWorld(test_kernel.World):
    """The world of the kernel's tests, whose guests live on another host."""

    def __init__(self, seed: int, personality: Any = None) -> None:
        super().__init__(seed, personality)
        self.chance = random.Random(seed)
        self.domains: list[RemoteDomain] = []

    async def guest(self, domid: int, vcpus: int = 1) -> Kernel:
        domain = RemoteDomain(self.machine, domid, MIB, vcpus, chance=self.chance, together=self.domains)
        attached = domain.attach()
        cpus = [Vcpu(index, GuestSide(attached.area(index)), attached.bells[index]) for index in range(vcpus)]
        for vcpu in cpus:
            vcpu.start()
        return await boot(cpus, attached.memory)


SEEDED = [
    function
    for name, function in inspect.getmembers(test_kernel, inspect.isfunction)
    if name.startswith("test_") and set(inspect.signature(function).parameters) <= {"seed"}
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("function", SEEDED, ids=lambda function: function.__name__)
def test_the_kernels_own_tests_pass(monkeypatch: pytest.MonkeyPatch, function: Callable[..., None], seed: int) -> None:
    """Every test of tests/guest_node/test_kernel.py that takes no more than a seed, with all guests remote."""
    monkeypatch.setattr(test_kernel, "World", RemoteWorld)
    if "seed" in inspect.signature(function).parameters:
        function(seed)
    elif not seed:
        function()


@pytest.mark.parametrize("memory", [MirrorDouble, SharedAreas])
@pytest.mark.parametrize("seed", range(2))
def test_a_file_arrives_on_mirrored_memory(tmp_path: Path, seed: int, memory: Any) -> None:
    """The inline runtime's file transfer: the same history with the double's memory and the real one as without."""
    outcome, log = test_runtime.run(tmp_path, seed, memory=memory)
    assert outcome.code == ExitCode.OK
    assert outcome.nodes[-1].result["sha256"] == outcome.nodes[-2].result["sha256"]
    assert log == test_runtime.run(tmp_path, seed)[1], "a mirror changes nothing that anybody can observe"


ARCHES = pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64])


@ARCHES
@pytest.mark.parametrize("seed", range(6))
def test_no_wake_up_is_lost(seed: int, arch: Arch) -> None:
    """A receiver that looks at its ring in its interrupt handler only gets every message, whatever the lanes' delays.

    An interrupt that is raised while the guest's "taken" is under way must not coalesce with the one that was taken.
    """
    count = 60

    async def main() -> None:
        options, _ = parse_options("on,mac-permissive")
        cpu = "intel" if arch is Arch.X86_64 else "armv8"
        core = Hypervisor(
            PERSONALITIES["xen", arch], cpu, options, xsm_by_name("dummy"), notifications=("line", "vector-per-cpu")
        )
        chance = random.Random(seed)
        machine = InlineMachine(core, random.Random(seed))
        kernels, domains = [], []
        for domid in (1, 2):
            domain = RemoteDomain(machine, domid, MIB, arch=arch, chance=chance)
            domains.append(domain)
            attached = domain.attach()
            vcpu = Vcpu(0, GuestSide(attached.area(0), arch), attached.bells[0])
            vcpu.start()
            kernels.append(await boot([vcpu], attached.memory, Machine(arch, notification="line")))
        a, b = kernels
        ring = b.argo.allocate_ring(4032)
        assert await b.argo.register_ring(ring, 9, DOMID_ANY) == 0
        consumer = Consumer(ring.window, ring.ring_len)
        received: list[bytes] = []
        b.argo.on_virq(lambda: received.extend(message.payload for message in consumer.drain()))
        for number in range(count):
            assert await a.argo.sendv(Address(9, 2), 5, [bytes([number])], 77) == 1
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() * 0.02)
        await asyncio.sleep(5)
        assert received == [bytes([number]) for number in range(count)]
        assert not any(domain.reasons for domain in domains)
        counted = core.counters()["g2"]
        merged = domains[1].end.coalesced(0)
        seen = kernels[1].vcpus[0].counters
        assert counted["interrupts_raised"] == count
        merged += seen.interrupts_coalesced + counted["interrupts_coalesced"]
        assert seen.interrupts_delivered + merged == count

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_a_refusal_is_an_attach_error() -> None:
    """The hypervisor's words reach whoever attaches; an answer that makes no sense is none."""
    refused = mirror.pack(MessageKind.REFUSED, 0, pack_reply(Reply(True, 0, 0, 0, 0, "wrong attach token")))
    with pytest.raises(AttachError, match="wrong attach token"):
        RemoteEnd(mirror.unpack(refused), lambda _: None)
    for reply in (Reply(False, 1, 0, 1, 8192, ""), Reply(False, 1, 1, 1, 4096, ""), Reply(False, 1, 1, 9, 8192, "")):
        with pytest.raises(AttachError):
            RemoteEnd(mirror.unpack(mirror.pack(MessageKind.ATTACHED, 1, pack_reply(reply))), lambda _: None)


def test_what_a_hypervisor_must_not_say_ends_the_attachment() -> None:
    """Data outside RAM, completions out of place, a vCPU that is not there: the guest tells why, and ends."""
    answer = mirror.pack(MessageKind.ATTACHED, 3, pack_reply(Reply(False, 1, 1, 1, 8192, "")))
    wrong = [
        (Section.STORE, 0, mirror.AT.pack(8186) + bytes(7)),
        (Section.WORDS, 0, mirror.WORD.pack(8192, 1)),
        (Section.WORDS, 0, mirror.WORD.pack(6, 1)),
        (Section.COMPLETIONS, 0, mirror.DONE.pack(1, 0) + bytes(32)),
        (Section.COMPLETIONS, 1, mirror.DONE.pack(0, 0) + bytes(32)),
        (Section.COMPLETIONS, 0, mirror.DONE.pack(0, 0) + bytes(32) * 65),
        (Section.LISTS, 0, mirror.LISTS.pack(3) + bytes(8)),
        (Section.FRAMES, 0, bytes(36)),
    ]
    for section, vcpu, body in wrong:
        sent: list[bytes] = []
        gone: list[str] = []
        end = RemoteEnd(mirror.unpack(answer), sent.append)
        end.on_gone = gone.append
        batch = Batch(1 << 14)
        batch.add(section, vcpu, body)
        end.receive(mirror.pack(MessageKind.BATCH, 3, batch.body(), 1, 0, 1))
        assert len(gone) == 1 and mirror.unpack(sent[-1]).kind is MessageKind.GONE, section
