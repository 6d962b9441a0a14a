"""Event channels of one domain, 2-level ABI: which port stands for which VIRQ, and which vCPU it interrupts.

The bitmaps live in the guest's shared_info page and are written by the guest's own process (hmx/cpu/evtchn.py).  The
hypervisor keeps the bindings and answers event_channel_op.  Source: Xen common/event_channel.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from hmx.errno import Errno
from hmx.xen import EVTCHN_2L_PORTS, NR_VIRQS, PER_VCPU_VIRQS, EvtchnState


@dataclass(slots=True)
class Binding:
    """A bound port: the VIRQ it stands for, the vCPU it was bound on, and the vCPU it notifies now."""

    virq: int
    vcpu: int
    notify_vcpu: int


class EventChannels:
    """The event channels of a domain with `vcpus` vCPUs."""

    __slots__ = ("_ports", "_vcpus", "_virqs")

    def __init__(self, vcpus: int) -> None:
        self._vcpus = vcpus
        self._ports: dict[int, Binding] = {}
        self._virqs: dict[tuple[int, int], int] = {}

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """EVTCHNOP_bind_virq.  The new port, or -EINVAL (range, not vCPU 0), -ENOENT (no such vCPU), -EEXIST,
        -ENOSPC.
        """
        if virq >= NR_VIRQS:
            return -Errno.EINVAL
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            return -Errno.EINVAL
        if vcpu >= self._vcpus:
            return -Errno.ENOENT
        if (virq, vcpu) in self._virqs:
            return -Errno.EEXIST
        port = next((port for port in range(1, EVTCHN_2L_PORTS) if port not in self._ports), 0)
        if port == 0:
            return -Errno.ENOSPC
        self._ports[port] = Binding(virq, vcpu, vcpu)
        self._virqs[virq, vcpu] = port
        return port

    def bind_vcpu(self, port: int, vcpu: int) -> int:
        """EVTCHNOP_bind_vcpu: notify another vCPU.  -ENOENT: no such vCPU; -EINVAL: a closed or per-vCPU port."""
        if vcpu >= self._vcpus:
            return -Errno.ENOENT
        binding = self._ports.get(port)
        if binding is None or binding.virq in PER_VCPU_VIRQS:
            return -Errno.EINVAL
        binding.notify_vcpu = vcpu
        return 0

    def close(self, port: int) -> int:
        """EVTCHNOP_close.  -EINVAL for a port that is not open."""
        binding = self._ports.pop(port, None)
        if binding is None:
            return -Errno.EINVAL
        del self._virqs[binding.virq, binding.vcpu]
        return 0

    def send(self, port: int) -> int:  # noqa: ARG002 - the signature is the operation's
        """EVTCHNOP_send.  Only interdomain and IPI ports can be sent on, and none exists yet: -EINVAL."""
        return -Errno.EINVAL

    def status(self, port: int) -> tuple[int, int, int] | int:
        """EVTCHNOP_status: (state, notified vCPU, VIRQ), or -EINVAL beyond the port range."""
        if not 0 < port < EVTCHN_2L_PORTS:
            return -Errno.EINVAL
        binding = self._ports.get(port)
        if binding is None:
            return EvtchnState.CLOSED, 0, 0
        return EvtchnState.VIRQ, binding.notify_vcpu, binding.virq

    def target(self, virq: int) -> tuple[int, int] | None:
        """(vCPU, port) that a per-domain VIRQ interrupts, or None while it is unbound."""
        port = self._virqs.get((virq, 0))
        return None if port is None else (self._ports[port].notify_vcpu, port)

    def is_open(self, port: int) -> int | None:
        """The vCPU that an open port notifies, or None for a closed one."""
        binding = self._ports.get(port)
        return None if binding is None else binding.notify_vcpu
