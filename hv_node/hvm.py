"""One domain as its hypervisor sees it, beside its Argo state: vCPUs, event channels, counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, cast

from hmx.vcpu_area import HypervisorSide, Post, post_entry
from hv_node.domain import Domain
from hv_node.doors.uxen_platform import PlatformDevice
from hv_node.interrupts.evtchn import EventChannels
from hv_node.interrupts.gic import Gic
from hv_node.interrupts.notification import Notification

if TYPE_CHECKING:
    from hv_node.ioreq.servers import Servers


@dataclass(slots=True)
class ArchCounters:
    """What the architecture did for one domain; host effects are counted by the shells."""

    exits: int = 0
    hypercalls: int = 0
    argo_ops: int = 0
    messages: int = 0
    bytes_copied: int = 0
    interrupts_raised: int = 0
    interrupts_posted: int = 0
    interrupts_coalesced: int = 0
    interrupts_dropped: int = 0
    pages_mapped: int = 0  # of other domains, into this one's address space
    pages_unmapped: int = 0
    ioreqs: int = 0  # accesses that a device model answered: round trips

    def sent(self, size: int, messages: int = 1) -> None:
        """Count messages, of `size` bytes together, that the hypervisor copied for this domain."""
        self.messages += messages
        self.bytes_copied += size


@cache
def _with_levels(levels: int) -> type[ArchCounters]:
    names = [f"exits_l{level}" for level in range(levels)] + [f"resumes_l{level}" for level in range(levels - 1)]
    made = make_dataclass("LevelCounters", [(name, int, 0) for name in names], bases=(ArchCounters,), slots=True)
    return cast("type[ArchCounters]", made)


def arch_counters(levels: int = 1) -> ArchCounters:
    """The counters of a domain below that many hypervisors.

    Below several they have also what its exits cost each, `exits_l0` and so on, and what the entries of those further
    in cost, `resumes_l0` and so on (hv_node/doors/composition.py).
    """
    return _with_levels(levels)() if levels > 1 else ArchCounters()


def count_levels(counters: ArchCounters, exits: Sequence[int], resumes: Sequence[int], times: int = 1) -> None:
    """Count a trap, `times` times, in counters for as many levels."""
    for family, each in (("exits_l", exits), ("resumes_l", resumes)):
        for level, count in enumerate(each):
            if count:
                name = f"{family}{level}"
                setattr(counters, name, getattr(counters, name) + count * times)


TURN: Final = 64  # frames of one vCPU before the next vCPU has its turn


class Vcpu:
    """One vCPU as its hypervisor sees it."""

    __slots__ = (
        "area", "asleep", "blocked", "budget", "chain", "deferred", "hvm", "index", "linked_to", "seq", "token",
    )  # fmt: skip

    def __init__(self, hvm: Hvm, index: int, area: HypervisorSide) -> None:
        self.hvm = hvm
        self.index = index
        self.area = area
        self.seq = 0
        self.chain = True  # whether a LINKed frame may run
        self.blocked: int | None = None  # seq of the pending frame that holds back all later ones
        self.linked_to: AsyncCall | None = None  # the pending ASYNC frame that LINKed followers wait for
        self.token: AsyncCall | None = None  # of the ASYNC frame that is being executed
        self.deferred = 0  # completions owed to pending ASYNC frames and their held followers
        self.budget = TURN  # the shell's note: frames of its next turn, fewer while its frames are costly
        self.asleep = True  # the shell's note: the area's hv_asleep flag is up


class AsyncCall:
    """A pending frame with ASYNC: it holds back only its LINKed followers."""

    __slots__ = ("held", "seq", "vcpu")

    def __init__(self, vcpu: Vcpu, seq: int) -> None:
        self.vcpu = vcpu
        self.seq = seq
        self.held: list[tuple[tuple[int, ...], tuple[int, ...]]] = []


@dataclass(slots=True)
class Hvm:
    """Everything of a domain beside its Argo state."""

    domain: Domain
    evtchn: EventChannels
    notification: Notification
    vcpus: list[Vcpu] = field(default_factory=list)
    counters: ArchCounters = field(default_factory=ArchCounters)
    shared_info: int | None = None  # guest physical address of the page, once the guest placed it
    gic: Gic | None = None  # on Arm
    platform: PlatformDevice | None = None  # a guest's, under uXen
    msrs: dict[int, int] = field(default_factory=dict)  # synthetic MSRs that keep what is written to them
    routes: dict[int, tuple[Vcpu, int, int]] = field(default_factory=dict)  # virq -> (vcpu, entry, port)
    servers: Servers | None = None  # once a device model took an interest in it

    def route(self, virq: int) -> tuple[Vcpu, int, int] | None:
        """Where a VIRQ goes, from the binding; remembered until a binding changes."""
        target = self.evtchn.target(virq)
        if target is None:
            return None
        vcpu, port = target
        route = self.routes[virq] = (self.vcpus[vcpu], post_entry(Post.PORT, port), port)
        return route
