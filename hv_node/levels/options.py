"""What a level is told when it is made, what it counts, and what it needs of its hypervisor.  Experimental."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from hv_node.argo.core import Argo
from hv_node.domain import DomainTable
from hv_node.levels.paths import Path
from hv_node.levels.proxies import RemoteConfig

if TYPE_CHECKING:
    from hv_node.levels.wards import WardPlan

LINK_TIMEOUT_NS = 5_000_000_000
LINGER_NS = 500_000_000
POSTED_CREDIT = 512
POSTED_BYTES = 1 << 24  # of one far hypervisor's posted messages; a single one may be larger


class Host(Protocol):
    """The hypervisor around a level: its Argo, its domains, and its effects (hv_node.effects.Sink)."""

    argo: Argo
    domains: DomainTable

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        """Raise a per-domain virtual interrupt of a guest."""

    def begin_run(self) -> None:
        """Several messages of one sender follow: what is the same of their interrupts may be raised as one."""

    def end_run(self) -> None:
        """No more."""

    def complete(self, token: object, ret: int) -> None:
        """A pending operation ends."""

    def message_sent(self, domid: int, size: int) -> None:
        """A guest's sendv that was pending has delivered `size` bytes."""

    def event(self, code: str, *fields: Any) -> None:
        """Something that a person may want to know."""


@dataclass(frozen=True, slots=True)
class LevelOptions:
    """How one level behaves.

    Attributes:
        epoch: Of this incarnation of the hypervisor; a later one has a larger number.
        link_timeout_ns: How long a vCPU stays trapped while the way is down.
        linger_ns: How long the proxies of a dead hypervisor still resolve.
        remotes: Guests of other hypervisors that the topology names.
        labels: Label of each own guest and nested guest, by name in the topology.
        children: Names of the hypervisors that are guests of this one.
        peers: Paths of the lab's other hypervisors, as far as they have no guest among `remotes`.
        posted: Paths of far hypervisors to which messages are posted.
        posted_credit: Posted messages without an answer, per far hypervisor.
        wards: By nested hypervisor, its guests whose Argo is served here.
        again: It lived before: to others its guests are dead until they hear of them.
        fresh_from: First id for proxies that are not planned, behind those of its former lives; None: it had none.
    """

    epoch: int = 1
    link_timeout_ns: int = LINK_TIMEOUT_NS
    linger_ns: int = LINGER_NS
    remotes: tuple[RemoteConfig, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    peers: tuple[Path, ...] = ()
    posted: frozenset[Path] = frozenset()
    posted_credit: int = POSTED_CREDIT
    wards: Mapping[str, WardPlan] = field(default_factory=dict)
    again: bool = False
    fresh_from: int | None = None


@dataclass(slots=True)
class LevelCounters:
    """What a level did.  `outcome_unknown`, `repeats`, `repeated`, `fenced` are kept where they happen."""

    sends: int = 0
    queries: int = 0
    executed: int = 0
    forwarded: int = 0
    refused: int = 0
    forged: int = 0
    stale: int = 0
    hops: int = 0
    dropped: int = 0
    wakes: int = 0
    deaths: int = 0
    posted: int = 0
    posted_lost: int = 0
    malformed: int = 0
    carried: int = 0  # operations of guests of a nested hypervisor that are served here
    delivered: int = 0  # messages from elsewhere that lie in rings of guests here
    delivered_bytes: int = 0


class Death(IntEnum):
    """`op` of an ENDPOINT_DIED: what became of whom `src_path` names; after a death, that there is a next life."""

    DYING = 1
    FREED = 2  # its domain id is free where it lived
    RESET = 3  # a soft reset: it lives on with new Argo state
    SUCCEEDED = 4  # it is dead and the payload names who has come in its place
    CHILD = 5  # the payload names a nested hypervisor, a guest of the speaker's, that is dead
    BORN = 6  # it lives, and is the first of its name in this life of its hypervisor, which had others
