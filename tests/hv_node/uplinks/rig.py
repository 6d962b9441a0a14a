"""A parent and a hypervisor nested in it, in memory: every turn is taken by hand."""

from __future__ import annotations

from typing import Any

from broker.envelope import VERSION, Envelope, EnvelopeKind
from hmx.memory import MappedMemory
from hmx.trap import Arch
from hmx.vcpu_area import AREA_SIZE, GuestSide
from hv_node.argo.options import ArgoOptions
from hv_node.doors.tables import PERSONALITIES
from hv_node.hvm import Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.uplinks.downlink import Downlink
from hv_node.uplinks.parent import ParentUplink
from hv_node.xsm import SiloXsm

MIB = 1 << 20
CHILD = 5


def envelope(number: int, *, kind: int = EnvelopeKind.SEND, dst: tuple[str, ...] = ("hv0", "hv1", "app")) -> Envelope:
    """An envelope with `number` in it."""
    return Envelope(VERSION, kind, number, 1, number, ("a", "hv0"), dst, 16, "", 3, 1, 2, 3, 0, 0, 0)


class Nest:
    """One nested hypervisor in its parent."""

    def __init__(
        self,
        personality: str = "xen",
        arch: Arch = Arch.X86_64,
        cpu: str = "intel",
        doors: tuple[str, ...] = ("hypercall",),
        *,
        memory: int = 4 * MIB,
        vcpus: int = 2,
    ) -> None:
        table = PERSONALITIES[personality, arch]
        self.parent = Hypervisor(table, cpu, ArgoOptions(enabled=True), SiloXsm(), doors=doors)
        self.ram = bytearray(memory)
        areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(vcpus)]
        self.hvm = self.parent.create_domain(CHILD, MappedMemory(self.ram), areas, name="hv1")
        self.hvm.domain.nested = True
        self.risen: list[tuple[Envelope, bytes]] = []
        self.sunk: list[tuple[Envelope, bytes]] = []
        self.events: list[tuple[Any, ...]] = []
        self.takes = True  # whether the parent's level takes what rises
        self.room = 0
        self.downlink = Downlink("hv1", self._rise, self._post, self._more)
        self.downlink.attach(self.hvm.domain, vcpus)
        self.parent.argo.on_uplink = lambda _domain, message, kind: self.downlink.upcall(message, kind)
        self.rung: list[int] = []
        self.child = ParentUplink(
            self.ram,
            [GuestSide(area, arch) for area in areas],
            self.rung.append,
            arch,
            cpu,
            table.abi,
        )
        self.child.on_envelope = lambda found, payload: self.sunk.append((found, payload))
        self.child.on_event = lambda *event: self.events.append(event)
        self.now = 0

    def _rise(self, found: Envelope, payload: bytes) -> bool:
        if self.takes:
            self.risen.append((found, payload))
        return self.takes

    def _post(self, vcpu: int, entry: int) -> None:
        self.parent.post(CHILD, vcpu, entry)

    def _more(self) -> None:
        self.room += 1

    def serve(self, vcpu: Vcpu | None = None) -> int:
        """The parent runs what was submitted, then writes what it held back."""
        done = sum(self.parent.run(each) for each in ([vcpu] if vcpu is not None else self.hvm.vcpus))
        if done:
            self.downlink.retry()
        return done

    def settle(self) -> None:
        """Both sides take turns until neither has anything to do."""
        for _ in range(10_000):
            if not self.child.turn(self.now) | bool(self.serve()):
                return
        raise AssertionError("they never come to rest")
