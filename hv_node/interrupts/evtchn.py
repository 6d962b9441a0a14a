"""Event channels of one domain, 2-level ABI: what each port stands for, and which vCPU it interrupts.

The bitmaps live in the guest's shared_info page and are written by the guest's own process (hmx/cpu/evtchn.py).  The
hypervisor keeps the bindings and answers event_channel_op.  Source: Xen common/event_channel.c.

Interdomain channels exist between a domain and the hypervisor itself only: the hypervisor allocates a port in the
domain that it speaks for, another domain binds to it (Xen's consumer_is_xen).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hmx.errno import Errno
from hmx.xen import EVTCHN_2L_PORTS, NR_VIRQS, PER_VCPU_VIRQS, EvtchnState


@dataclass(slots=True)
class Binding:
    """A bound port: the VIRQ it stands for, the vCPU it was bound on, and the vCPU it notifies now."""

    virq: int
    vcpu: int
    notify_vcpu: int


@dataclass(slots=True)
class Channel:
    """A port of an interdomain channel.  `peer` is the other end, None while nobody is bound.

    `notified` makes it an end of the hypervisor's own: it is called when the other end sends, and the domain in whose
    numbers the port is may not use it.  `remote` is the domain that may bind to it, or that is bound.
    """

    owner: EventChannels
    port: int
    notify_vcpu: int
    remote: int
    notified: Callable[[], None] | None = None
    peer: Channel | None = None


class EventChannels:
    """The event channels of a domain with `vcpus` vCPUs.

    `raised(vcpu, port)`, which the owner sets, is called when the other end of an interdomain channel sends.
    """

    __slots__ = ("_channels", "_ports", "_vcpus", "_virqs", "raised")

    def __init__(self, vcpus: int) -> None:
        self._vcpus = vcpus
        self._ports: dict[int, Binding] = {}
        self._virqs: dict[tuple[int, int], int] = {}
        self._channels: dict[int, Channel] = {}
        self.raised: Callable[[int, int], None] = lambda _vcpu, _port: None

    def _free_port(self) -> int:
        """The lowest port that is closed, or 0."""
        ports, channels = self._ports, self._channels
        return next((port for port in range(1, EVTCHN_2L_PORTS) if port not in ports and port not in channels), 0)

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
        port = self._free_port()
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
        if binding is None:
            channel = self._own(port)
            if channel is None:
                return -Errno.EINVAL
            channel.notify_vcpu = vcpu
            return 0
        if binding.virq in PER_VCPU_VIRQS:
            return -Errno.EINVAL
        binding.notify_vcpu = vcpu
        return 0

    def close(self, port: int) -> int:
        """EVTCHNOP_close.  -EINVAL for a port that is not open, or the hypervisor's own."""
        binding = self._ports.pop(port, None)
        if binding is None:
            channel = self._own(port)
            if channel is None:
                return -Errno.EINVAL
            self.drop(channel)
            return 0
        del self._virqs[binding.virq, binding.vcpu]
        return 0

    def send(self, port: int) -> int:
        """EVTCHNOP_send: tell the other end of an interdomain channel; one without another end drops it.

        -EINVAL for every other port (IPI ports, on which one can send too, do not exist here).
        """
        channel = self._own(port)
        if channel is None:
            return -Errno.EINVAL
        peer = channel.peer
        if peer is not None:
            if peer.notified is not None:
                peer.notified()
            else:
                peer.owner.raised(peer.notify_vcpu, peer.port)
        return 0

    def status(self, port: int) -> tuple[int, int, int] | int:
        """EVTCHNOP_status: (state, notified vCPU, VIRQ or remote end), -EINVAL beyond the port range, -EACCES for the
        hypervisor's own.  A remote end is its domain in bits 15:0 and its port from bit 32 on.
        """
        if not 0 < port < EVTCHN_2L_PORTS:
            return -Errno.EINVAL
        binding = self._ports.get(port)
        if binding is not None:
            return EvtchnState.VIRQ, binding.notify_vcpu, binding.virq
        channel = self._channels.get(port)
        if channel is None:
            return EvtchnState.CLOSED, 0, 0
        if channel.notified is not None:
            return -Errno.EACCES
        if channel.peer is None:
            return EvtchnState.UNBOUND, channel.notify_vcpu, channel.remote
        return EvtchnState.INTERDOMAIN, channel.notify_vcpu, channel.remote | channel.peer.port << 32

    def target(self, virq: int) -> tuple[int, int] | None:
        """(vCPU, port) that a per-domain VIRQ interrupts, or None while it is unbound."""
        port = self._virqs.get((virq, 0))
        return None if port is None else (self._ports[port].notify_vcpu, port)

    def is_open(self, port: int) -> int | None:
        """The vCPU that an open port notifies, or None for a closed one."""
        binding = self._ports.get(port)
        if binding is None:
            channel = self._own(port)
            return None if channel is None else channel.notify_vcpu
        return binding.notify_vcpu

    # -- interdomain channels ----

    def _own(self, port: int) -> Channel | None:
        """A channel's port that this domain may use."""
        channel = self._channels.get(port)
        return None if channel is None or channel.notified is not None else channel

    def allocate(self, vcpu: int, remote: int, notified: Callable[[], None]) -> Channel | None:
        """A port of the hypervisor's own, for `vcpu`, to which domain `remote` may bind (Xen's
        alloc_unbound_xen_event_channel).  None: no port is free.
        """
        port = self._free_port()
        if port == 0:
            return None
        channel = self._channels[port] = Channel(self, port, vcpu, remote, notified)
        return channel

    def bind_interdomain(self, domid: int, far: EventChannels, remote: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain by this domain, `domid`: the new port, -ENOSPC, or -EINVAL for a port of `far`
        that does not wait for it.  The port is pending at once, as Xen has it: nothing sent before is lost.
        """
        port = self._free_port()
        if port == 0:
            return -Errno.ENOSPC
        there = far.waiting(remote_port, domid)
        if there is None:
            return -Errno.EINVAL
        here = self._channels[port] = Channel(self, port, 0, remote, None, there)
        there.peer = here
        self.raised(0, port)
        return port

    def waiting(self, port: int, domid: int) -> Channel | None:
        """The unbound channel at `port` to which `domid` may bind."""
        channel = self._channels.get(port)
        return channel if channel is not None and channel.peer is None and channel.remote == domid else None

    def drop(self, channel: Channel) -> None:
        """Close one end, whoever owns it: the other one is unbound again."""
        self._channels.pop(channel.port, None)
        if channel.peer is not None:
            channel.peer.peer = None
            channel.peer = None

    def drop_all(self) -> None:
        """The domain is gone: so are its ends."""
        for channel in tuple(self._channels.values()):
            self.drop(channel)
