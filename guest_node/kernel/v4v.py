"""v4v hypercalls as the guest's kernel makes them: uXen's structures in guest memory, by the way its hypervisor has.

Offers the calls in the shapes of :class:`hmx.argo.calls.ArgoCalls`, so that one driver core serves both: flags of
notify come back as Argo's, and a size that the ring never takes is told as EMSGSIZE, of which v4v has no flag.  Guest
memory is managed as for Argo.  Sources: uXen public/v4v.h, common/v4v.c, ax.h; dm/whpx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from guest_node.kernel.argo import Argo, GuestMemoryView, _Slot
from guest_node.kernel.discovery import platform_devices, storage_ports
from guest_node.kernel.pages import pages_for
from guest_node.kernel.probe import Probe
from guest_node.vcpu import Trap, Vcpu
from hmx.argo import abi as argo
from hmx.argo.calls import Outgoing, RingMemory, SpaceAnswer, SpaceQuery
from hmx.doors import Convention
from hmx.hypervisors import AX_V4V_LEAF, WHPX_V4V_LEAF
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, Kind
from hmx.uxen_enum import Device
from hmx.v4v import layout
from hmx.v4v.abi import ADDR, DOMID_SELF, HYPERCALL_V4V, IOV, NotifyFlag, Op

_DESTINATION: Final = 8  # offsets in a slot: source address, destination address, iovs; the payload as for Argo
_IOVS: Final = 16
_PAYLOAD: Final = 256
_SMALL: Final = PAGE_SIZE - _PAYLOAD
_ARGUMENTS: Final = (5, 4, 3, 8, 6)  # op, then arguments 1 to 4; argument 5 is in r9
_FIFTH: Final = 7


class Way(NamedTuple):
    """How a hypervisor's guests reach v4v: the instruction, its selector, and what rax holds."""

    hypervisor: str
    kind: Kind
    selector: int
    number: int
    source: str


WAYS: Final = (
    Way("uxen", Kind.VMCALL, 0, HYPERCALL_V4V, "uXen public/xen.h"),
    Way("ax", Kind.CPUID, AX_V4V_LEAF, AX_V4V_LEAF, "uXen ax.h"),
    Way("whpx", Kind.CPUID, WHPX_V4V_LEAF, WHPX_V4V_LEAF, "uXen dm/whpx"),
)


def way_of(found: Probe) -> Convention | None:
    """The register convention of v4v under the hypervisor that the probe saw; None where it has none."""
    names = {seen.name for seen in found.sightings}
    for row in WAYS:
        if row.hypervisor in names:
            own = (tried.convention.kind for tried in found.attempts if tried.convention.speaks == "uxen")
            kind = next(own, row.kind) if row.kind is Kind.VMCALL else row.kind
            return Convention(
                "v4v", Arch.X86_64, row.hypervisor, kind, row.selector, 0, row.number, _ARGUMENTS, 0, 64, row.source
            )
    return None


class V4v(Argo):
    """v4v over one vCPU, in the shapes of Argo's calls."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemoryView, way: Convention, domid: int = DOMID_SELF) -> None:
        super().__init__(vcpu, memory, way, domid)

    # -- what v4v does otherwise ----

    async def register_ring(
        self,
        ring: RingMemory,
        port: int,
        partner: int,
        flags: int = 0,
        *,
        interrupt: tuple[int, int] | None = None,  # noqa: ARG002  (v4v has one line for all rings)
        vcpu: Vcpu | None = None,
    ) -> int:
        """Register `ring` as (port, partner), emptied; 0 or a negated errno.  `flags` 1: refuse one that exists."""
        ring.window.write(0, layout.ring_header(port, partner, ring.ring_len))
        ring.window.publish()
        data = layout.pfn_list(ring.gfns)
        first, pages = self._lay(data)
        try:
            at = first * PAGE_SIZE
            return await self.call(Op.REGISTER_RING, ring.window.gpa, at, 0, flags & 1, vcpu)
        finally:
            self.memory.pages.release(first, pages)

    async def unregister_ring(self, port: int, partner: int) -> int:
        """Unregister (port, partner), which a header outside the ring names; 0 or a negated errno."""
        return await self._with_scratch(Op.UNREGISTER_RING, layout.ring_header(port, partner, 0))

    async def create_ring(self, port: int, owner: int) -> int:
        """A placeholder for `owner`'s ring of (port, this domain); 0 or a negated errno."""
        return await self._with_scratch(Op.CREATE_RING, layout.ring_id(port, owner, 0))

    async def signal(self, domid: int) -> int:
        """Raise a domain's line 7; 0 or a negated errno."""
        return await self.call(Op.SIGNAL, 0, 0, 0, domid)

    async def notify(self, entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
        """One notify: wakes those who wait for room in our rings, then queries `entries`."""
        if not entries:
            return await self.call(Op.NOTIFY, 0, 0, 0, 0), []
        data = layout.ring_data(entries)
        first, pages = self._lay(data)
        try:
            at = first * PAGE_SIZE
            ret = await self.call(Op.NOTIFY, at, 0, 0, 0)
            found = layout.answers(bytes(self._ram[at : at + len(data)]))
        finally:
            self.memory.pages.release(first, pages)
        return ret, [as_argo(answer, query.space_required) for answer, query in zip(found, entries, strict=True)]

    # -- what is there ----

    async def storage_ports(self) -> tuple[int, ...]:
        """The v4v ports of the storage units that the port bitmap shows."""
        return await storage_ports(self.vcpu)

    async def devices(self) -> tuple[tuple[int, Device], ...] | None:
        """The occupied slots of the platform device's table; None where there is no such device."""
        return await platform_devices(self.vcpu)

    # -- frames ----

    def call_trap(self, cmd: int, a1: int, a2: int, a3: int, a4: int, a5: int = 0) -> Trap:
        """The frame of one v4v call."""
        self.hypercalls += 1
        way = self.door
        regs = [0] * 9
        regs[way.number] = way.call
        for slot, value in zip((*way.arguments, _FIFTH), (cmd, a1, a2, a3, a4, a5), strict=True):
            regs[slot] = value
        return Trap(way.kind, tuple(regs), address=way.selector)

    def _send_trap(self, slot: _Slot, message: Outgoing) -> Trap:
        dst, src_port, buffers, message_type = message
        ram, base = self._ram, slot.address
        ADDR.pack_into(ram, base, src_port, argo.DOMID_ANY)  # the hypervisor puts the caller's own id there
        ADDR.pack_into(ram, base + _DESTINATION, dst.port, dst.domid)
        sizes = [len(buffer) for buffer in buffers]
        total = sum(sizes)
        at = base + _PAYLOAD if total <= _SMALL else self._big(slot, total)
        for index, (buffer, size) in enumerate(zip(buffers, sizes, strict=True)):
            ram[at : at + size] = buffer
            IOV.pack_into(ram, base + _IOVS + index * IOV.size, at, size)
            at += size
        return self._sendv_trap(slot, len(sizes), message_type)

    def _sendv_trap(self, slot: _Slot, count: int, message_type: int) -> Trap:
        base = slot.address
        return self.call_trap(Op.SENDV, base, base + _DESTINATION, base + _IOVS, count, message_type)

    # -- guest memory ----

    def _lay(self, data: bytes) -> tuple[int, int]:
        """Lay an argument into pages of its own: the first frame, and how many."""
        pages = pages_for(len(data))
        first = self.memory.pages.allocate(pages)
        self._ram[first * PAGE_SIZE : first * PAGE_SIZE + len(data)] = data
        return first, pages

    async def _with_scratch(self, op: Op, data: bytes) -> int:
        first, pages = self._lay(data)
        try:
            return await self.call(op, first * PAGE_SIZE, 0, 0, 0)
        finally:
            self.memory.pages.release(first, pages)


def as_argo(answer: layout.SpaceAnswer, wanted: int) -> SpaceAnswer:
    """An answer of v4v's notify with Argo's flags.

    A ring that exists, and will never take `wanted` bytes, says EMSGSIZE; v4v would let its caller wait for good.  A
    placeholder will take anything, for all that is known: its largest message is close to 2^32.
    """
    flags, largest = answer
    told = 0
    if flags & NotifyFlag.EXISTS:
        told = int(argo.NotifyFlag.EXISTS)
        if flags & NotifyFlag.SUFFICIENT:
            told |= argo.NotifyFlag.SUFFICIENT
        elif wanted > largest:
            told |= argo.NotifyFlag.EMSGSIZE
        if flags & NotifyFlag.EMPTY:
            told |= argo.NotifyFlag.EMPTY
    return SpaceAnswer(told, largest)
