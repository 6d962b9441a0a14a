"""What interrupts a domain for Argo, beside event channels: a line, a vector per vCPU, a vector of the ring's own.

Pure state of one domain: which posts a message in a ring, or room in a peer's ring, turns into.  The owner makes the
posts.  Experimental (hmx/notify.py); MSI decode follows hv_node/interrupts/msi.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hmx.argo.abi import MAX_RINGS_PER_DOMAIN
from hmx.arm_map import LINE_INTID, V2M_BASE, V2M_FIRST_SPI, V2M_SPIS
from hmx.cpu.apic_regs import x2apic_address
from hmx.errno import Errno
from hmx.memory import FAULT, GuestMemory
from hmx.notify import FIRST_VECTOR, LINE_IRQ, MODES, REGISTER_RING_EX, Mode, NotifyOp
from hmx.trap import Arch
from hmx.vcpu_area import Post, post_entry
from hv_node.interrupts import msi
from hv_node.interrupts.gicd import SPIS
from hv_node.interrupts.v2m import MsiFrame

Target = tuple[int, int]  # vCPU; entry to post (x86), INTID (Arm)
V2M: Final = MsiFrame(V2M_BASE, V2M_FIRST_SPI, V2M_SPIS)
FIRST_PPI: Final = 16
LAST_INTID: Final = 32 + SPIS - 1


@dataclass(slots=True)
class Notification:
    """One domain's choice.  `vcpus` is how many it has; APIC ids are vCPU indexes."""

    arch: Arch
    vcpus: int
    offered: Sequence[str]
    mode: Mode = Mode.VIRQ
    per_vcpu: dict[int, int] = field(default_factory=dict)  # vector or INTID
    of_ring: dict[tuple[int, int], Target] = field(default_factory=dict)  # by (port, partner)
    home: dict[tuple[int, int], int] = field(default_factory=dict)  # the vCPU that registered the ring
    active: bool = False  # anything else than VIRQ_ARGO has been asked for

    def set_notification(self, mode: int, vcpu: int, vector: int) -> int:
        """SET_NOTIFICATION.  -EOPNOTSUPP: not offered; -EINVAL: no such mode, vCPU, or no vector that may be used."""
        if not self.offered:
            return -Errno.EOPNOTSUPP
        row = next((row for row in MODES if row.mode == mode and row.operation is NotifyOp.SET_NOTIFICATION), None)
        if row is None or vcpu >= self.vcpus:
            return -Errno.EINVAL
        if row.name not in self.offered:
            return -Errno.EOPNOTSUPP
        if row.mode is Mode.VECTOR_PER_CPU:
            if not self._usable(vector):
                return -Errno.EINVAL
            self.per_vcpu[vcpu] = vector
        self.mode = Mode(mode)
        self._changed()
        return 0

    def _usable(self, number: int) -> bool:
        if self.arch is Arch.AARCH64:
            return FIRST_PPI <= number <= LAST_INTID
        return FIRST_VECTOR <= number <= 255

    def own_target(self, address: int, data: int) -> Target | int:
        """Whom a ring's own interrupt reaches, or a negated errno.

        -EINVAL: no MSI; a delivery mode other than fixed and lowest priority; a vector below 16; level-triggered (a
        post carries no trigger mode, and nobody would raise the line again after EOI); a fixed message that names no
        vCPU of this domain, or several (a ring has one).  -ESRCH: lowest priority that names nobody; if it names
        several, the lowest index is chosen, here and once for all.  Arm: -EINVAL for all that is no SPI of the v2m
        frame.
        """
        if self.arch is Arch.AARCH64:
            spi = V2M.decode(address, data)
            return -Errno.EINVAL if spi is None else (0, spi)
        message = msi.decode(address, data, extended=True)
        if isinstance(message, int):
            return message
        if message.level:
            return -Errno.EINVAL
        found = msi.inject(message, [x2apic_address(index) for index in range(self.vcpus)])
        if isinstance(found, int):
            return found
        if len(found) != 1:
            return -Errno.EINVAL
        return found[0], post_entry(Post.VECTOR, message.vector)

    def register(
        self, memory: GuestMemory, ctx: int, a1: int, vcpu: int, register: Callable[[], int]
    ) -> int:
        """REGISTER_RING_EX: check the interrupt, then `register()` the ring; the interrupt counts if that succeeds.

        -EOPNOTSUPP: not offered; -EFAULT: the structure; -EINVAL: flags or pad, or as `own_target` says; then what
        register_ring says.
        """
        if not any(row.name in self.offered for row in MODES if row.own_vectors):
            return -Errno.EOPNOTSUPP
        fields = memory.unpack(REGISTER_RING_EX, ctx, a1)
        if fields is FAULT:
            return -Errno.EFAULT
        port, partner, _, _, flags, address, data, pad = fields
        if flags or pad:
            return -Errno.EINVAL
        target = self.own_target(address, data)
        if isinstance(target, int):
            return target
        ret = register()
        if not ret:
            self.of_ring[port, partner] = target
            self._at_home(port, partner, vcpu)
        return ret

    def registered(self, port: int, partner: int, vcpu: int) -> None:
        """A plain register_ring succeeded: the ring has no interrupt of its own (any more)."""
        self.of_ring.pop((port, partner), None)
        self._at_home(port, partner, vcpu)

    def _at_home(self, port: int, partner: int, vcpu: int) -> None:
        """Note where a ring was registered.

        A guest that rewrites the structure while register_ring reads it leaves entries for rings that it does not
        have: more than there can be rings are not kept.
        """
        self.home.pop((port, partner), None)
        self.home[port, partner] = vcpu
        if len(self.home) > MAX_RINGS_PER_DOMAIN:
            oldest = next(iter(self.home))
            del self.home[oldest]
            self.of_ring.pop(oldest, None)
        self._changed()

    def unregistered(self, port: int, partner: int) -> None:
        """The ring is gone."""
        self.of_ring.pop((port, partner), None)
        self.home.pop((port, partner), None)
        self._changed()

    def _changed(self) -> None:
        self.active = self.mode is not Mode.VIRQ or bool(self.of_ring)

    def target(self, ring: tuple[int, int] | None) -> Target | None:
        """The post for a message in `ring` ((port, partner); None: for room in a peer's ring).

        None: event channels serve it, or nothing does.
        """
        if ring is not None and (own := self.of_ring.get(ring)) is not None:
            return own
        match self.mode:
            case Mode.LINE:
                return (0, LINE_INTID) if self.arch is Arch.AARCH64 else (0, post_entry(Post.EXTINT, LINE_IRQ))
            case Mode.VECTOR_PER_CPU if self.per_vcpu:
                home = self.home.get(ring, 0) if ring is not None else 0
                vcpu = home if home in self.per_vcpu else min(self.per_vcpu)
                number = self.per_vcpu[vcpu]
                return vcpu, number if self.arch is Arch.AARCH64 else post_entry(Post.VECTOR, number)
        return None
