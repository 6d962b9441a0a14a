"""Everything about device models that one hypervisor keeps: who may serve whom, servers, mappings, grants.

The hypercalls are Xen's own, so only a hypervisor that speaks Xen's ABI has them.  The right over a target is Xen's XSM
`dm` privilege: a control domain has it over all, another domain over the targets that the toolstack named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from hmx import ioreq, xen
from hmx.errno import Errno
from hmx.ioreq import DmaFlag
from hmx.memory import FAULT
from hmx.trap import Arch
from hmx.xen import EvtchnOp, Hypercall
from hv_node.doors.handlers import Call
from hv_node.hvm import Hvm
from hv_node.ioreq.dmop import dm_op
from hv_node.ioreq.grants import Grants
from hv_node.ioreq.lines import Interrupt, Lines
from hv_node.ioreq.mapping import PhysMap, memory_op
from hv_node.ioreq.servers import Outcomes, Servers

Guard = Callable[[int, int, int, bool], "list[tuple[int, int]] | int"]
"""`guard(endpoint, address, size, write)`: the guest physical (address, size) pieces behind a device's address, or a
negated errno.
"""


@dataclass(slots=True)
class Target:
    """A domain that has, or may have, device models."""

    hvm: Hvm
    servers: Servers
    lines: Lines
    guard: Guard | None = None  # of its IOMMU; without one a device's address is a guest physical one


class Ioreqs:
    """The device models of one hypervisor.

    `hvm(domid)` finds a living domain; `interrupt` posts to a vCPU; `outcomes` says what becomes of frames;
    `device_models` are (emulator, target) pairs of domain names.
    """

    def __init__(
        self,
        arch: Arch,
        hvm: Callable[[int], Hvm | None],
        interrupt: Interrupt,
        outcomes: Outcomes,
        device_models: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.arch = arch
        self.hvm = hvm
        self.grants = Grants(self)
        self._interrupt = interrupt
        self._outcomes = outcomes
        self._rights = frozenset(device_models)
        self._targets: dict[int, Target] = {}
        self._physmaps: dict[int, PhysMap] = {}

    # -- who may ----

    def may(self, emulator: Hvm, target: Hvm) -> bool:
        """XSM's dm privilege of one domain over another."""
        return emulator.domain.is_control or (emulator.domain.name, target.domain.name) in self._rights

    def may_share(self, emulator: Hvm, target: Hvm) -> bool:
        """Whether the target's RAM may be handed to a domain: to a device model, and to whom it has granted pages."""
        return self.may(emulator, target) or self.grants.any_for(target, emulator)

    def target(self, caller: Hvm, domid: int) -> Target | int:
        """The domain that a device model speaks of.  -ESRCH: no such; -EPERM: itself, or without the right."""
        hvm = self.hvm(domid)
        if hvm is None:
            return -Errno.ESRCH
        if hvm is caller or not self.may(caller, hvm):
            return -Errno.EPERM
        return self.target_of(hvm)

    def target_of(self, hvm: Hvm) -> Target:
        """A domain as a target."""
        found = self._targets.get(hvm.domain.domid)
        if found is None:
            servers = hvm.servers = Servers(hvm, self.arch, self._outcomes)
            found = self._targets[hvm.domain.domid] = Target(hvm, servers, Lines(hvm, self._interrupt))
        return found

    def add_iommu(self, hvm: Hvm) -> None:
        """Give a domain a virtio-iommu at its last window (experimental)."""
        from hv_node.ioreq.iommu import IommuDevice  # for guests that have one

        target = self.target_of(hvm)
        window = ioreq.windows(self.arch)[-1]
        arm = self.arch is Arch.AARCH64

        def line(level: bool) -> None:
            change = target.lines.set_irq_level if arm else target.lines.set_isa_irq_level
            change(window.irq, int(level))

        device = IommuDevice(window, hvm.domain.memory, line)
        target.servers.inside = device
        target.guard = device.lists.guard

    def physmap(self, hvm: Hvm) -> PhysMap:
        """What a domain has mapped of others."""
        found = self._physmaps.get(hvm.domain.domid)
        if found is None:
            found = self._physmaps[hvm.domain.domid] = PhysMap(hvm)
        return found

    def died(self, hvm: Hvm) -> None:
        """A domain is gone: its servers end, and who waited for them goes on; what it mapped is unmapped."""
        domid = hvm.domain.domid
        mine = self._targets.pop(domid, None)
        if mine is not None:
            mine.servers.forget()
        for target in self._targets.values():
            for server in target.servers:
                if server.emulator is hvm:
                    target.servers.destroy(server)
        physmap = self._physmaps.pop(domid, None)
        if physmap is not None:
            for frame in tuple(physmap.pages):
                physmap.take(frame)
        self.grants.died(hvm)
        hvm.evtchn.drop_all()

    # -- hypercalls ----

    def hypercall(self, call: Call, number: int, cmd: int, a1: int, a2: int) -> int | None:
        """A Xen hypercall of a device model, or None: it is none."""
        found = _CALLS.get(number)
        return None if found is None else found(self, call, cmd, a1, a2)

    def dma(
        self,
        caller: Hvm,
        target: Target,
        ctx: int,
        buffer: tuple[int, int],
        address: int,
        size: int,
        flags: int,
        endpoint: int,
    ) -> int:
        """The experimental DMA operation: bytes of the target's memory into the caller's buffer, or back.

        0, or -EINVAL: no such flag, nothing or more than DMA_MAX to copy, or more than the buffer holds; -EFAULT: the
        buffer, or an address that is not the target's RAM; -EACCES: its IOMMU does not let the device there.  Nothing
        is copied unless all of it can be.
        """
        ours, theirs = caller.domain.memory, target.hvm.domain.memory
        if flags not in (0, DmaFlag.STORE) or not 0 < size <= ioreq.DMA_MAX or size > buffer[1]:
            return -Errno.EINVAL
        store = bool(flags & DmaFlag.STORE)
        pieces = [(address, size)]
        if target.guard is not None:
            allowed = target.guard(endpoint, address, size, store)
            if isinstance(allowed, int):
                return allowed
            pieces = allowed
        at = buffer[0]
        views = [theirs.read(0, start, length) for start, length in pieces]
        if any(view is FAULT for view in views):
            return -Errno.EFAULT
        if store:
            data = ours.read(ctx, at, size)
            if data is FAULT:
                return -Errno.EFAULT
            whole, done = bytes(data), 0
            for start, length in pieces:
                if not theirs.write(0, start, whole[done : done + length]):
                    return -Errno.EFAULT
                done += length
        elif not ours.write(ctx, at, b"".join([bytes(view) for view in views if view is not None])):
            return -Errno.EFAULT
        caller.counters.bytes_copied += size
        return 0


def _event_channel_op(hub: Ioreqs, call: Call, cmd: int, arg: int, _a2: int) -> int | None:
    """EVTCHNOP_bind_interdomain; the other operations are not only for device models."""
    if cmd != EvtchnOp.BIND_INTERDOMAIN:
        return None
    hvm = call.vcpu.hvm
    memory = hvm.domain.memory
    fields = memory.unpack(xen.BIND_INTERDOMAIN, call.ctx, arg)
    if fields is FAULT:
        return -Errno.EFAULT
    domid, pad, remote_port, _ = fields
    far = hub.hvm(domid)
    if far is None:
        return -Errno.ESRCH
    port = hvm.evtchn.bind_interdomain(hvm.domain.domid, far.evtchn, domid, remote_port)
    if port < 0:
        return port
    data = xen.BIND_INTERDOMAIN.pack(domid, pad, remote_port, port)
    return 0 if memory.write(call.ctx, arg, data) else -Errno.EFAULT


def _grant_table_op(hub: Ioreqs, call: Call, cmd: int, address: int, count: int) -> int:
    return hub.grants.op(hub, call, cmd, address, count)


_CALLS: Final[dict[int, Callable[[Ioreqs, Call, int, int, int], int | None]]] = {
    Hypercall.MEMORY_OP: memory_op,
    Hypercall.GRANT_TABLE_OP: _grant_table_op,
    Hypercall.EVENT_CHANNEL_OP: _event_channel_op,
    Hypercall.DM_OP: dm_op,
}
