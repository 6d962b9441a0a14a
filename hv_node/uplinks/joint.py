"""One hypervisor's level and the links around it, for whatever shell it lives in: no I/O, no clock.

The shell hands in what arrives and says when it is; what it must do comes back through the uplink that it provides and
through the hypervisor's own bells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from broker.envelope import Envelope, EnvelopeKind
from broker.frames import LARGE, whole_bytes
from hmx.errno import Errno
from hmx.memory import GuestMemory
from hv_node.config import DomainConfig, HypervisorConfig
from hv_node.domain import Domain
from hv_node.hvm import Hvm, Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.levels.carried import OWN, STEAL, Carrier
from hv_node.levels.furnish import Furniture
from hv_node.levels.level import Level
from hv_node.levels.options import LevelOptions
from hv_node.levels.orders import Orders
from hv_node.levels.proxies import RemoteConfig
from hv_node.levels.uplink import Uplink
from hv_node.levels.wards import WardPlan
from hv_node.uplinks.downlink import Downlink
from hv_node.xsm import xsm_by_name

_SEND: Final = EnvelopeKind.SEND  # a message is only sliced and copied, so it may stay where it was received
ORDER_DONE: Final = "order-done"
PROXY_MET: Final = "proxy-met"


def level_options(config: HypervisorConfig, epoch: int) -> LevelOptions:
    """What a plan says about a level."""
    remotes = tuple(RemoteConfig(row.name, row.domid, row.path, row.label) for row in config.remotes)
    labels = [(domain.name, domain.label) for domain in config.domains]
    labels += [(ward.name, ward.label) for domain in config.domains for ward in domain.wards]
    return LevelOptions(
        epoch=epoch,
        link_timeout_ns=config.link_timeout_ns,
        linger_ns=config.linger_ns,
        remotes=remotes,
        labels={name: label for name, label in labels if label},
        children=tuple(domain.name for domain in config.domains if domain.nested),
        peers=config.hypervisors,
        posted=frozenset(row.path[:-1] for row in remotes if row.path[0] in config.posted),
        wards={
            domain.name: WardPlan(domain.mode, {ward.name: ward.domid for ward in domain.wards})
            for domain in config.domains
            if domain.nested and domain.mode != OWN
        },
        again=config.again,
        fresh_from=config.fresh_from,
    )


class Joint:
    """A level between its guests, the hypervisors nested in it, and its uplink.

    `clock()` is the time in ns, `report(code, *fields)` tells the lab.  The level begins without an uplink: `above`
    brings one.
    """

    def __init__(
        self,
        config: HypervisorConfig,
        core: Hypervisor,
        epoch: int,
        clock: Callable[[], int],
        report: Callable[..., None] = lambda *_: None,
    ) -> None:
        self._core = core
        self._clock = clock
        self.level = Level(config.path or (config.name,), core, level_options(config, epoch))
        self._downlinks = {name: self._downlink(name) for name in self.level.options.children}
        core.levels = self.level
        self.level.proxies.on_met = lambda name, domid: report(PROXY_MET, name, domid)
        self.furniture = Furniture(config, self.level, xsm_by_name(config.xsm))
        self._orders = Orders(self.furniture, lambda number, words: report(ORDER_DONE, number, words))
        self.furniture.on_policy = core.end_v4v
        core.keep_apart(self.furniture.slots.confined, self.furniture.speaks_v4v)
        core.argo.on_uplink = self._rise
        self._carrier: Carrier | None = None
        if config.parent and config.mode != OWN and (config.mode == STEAL or core.argo.enabled):
            self._carrier = Carrier(self.level)
            core.carry(config.mode, self._carrier.carry)

    # -- above ----

    def above(self, uplink: Uplink) -> None:
        """The way up is open, for the first time or again."""
        self.level.set_uplink(uplink, self._clock())

    def cut(self) -> None:
        """The way up was lost."""
        self.level.on_link(False, self._clock())

    def arrived(self, envelope: Envelope, payload: Any) -> None:
        """An envelope from above."""
        if envelope.kind != _SEND or len(payload) < LARGE:
            payload = whole_bytes(payload)
        self.level.on_envelope(None, envelope, payload, self._clock())

    def peer(self, name: str, state: str, pid: int = 0) -> None:
        """The fabric says of another L0, whose process is `pid`, that it is up, down or dead."""
        self.level.on_peer(name, state, self._clock(), pid)

    def room(self) -> None:
        """The way up takes envelopes again."""
        self.level.on_room()
        for downlink in self._downlinks.values():
            downlink.room()

    # -- below ----

    def _downlink(self, name: str) -> Downlink:
        def rise(envelope: Envelope, payload: bytes) -> bool:
            return self.level.on_envelope(name, envelope, payload, self._clock())

        def post(vcpu: int, entry: int) -> None:
            domain = self._downlinks[name].domain
            if domain is not None:
                self._core.post(domain.domid, vcpu, entry)

        return Downlink(name, rise, post, lambda: self._lower(name))

    def _lower(self, name: str) -> None:
        """A child takes envelopes again, and so may whoever was turned away for its sake."""
        self.level.on_room(name)
        for downlink in self._downlinks.values():
            downlink.room()

    def _rise(self, caller: Domain, message: bytes, message_type: int) -> int:
        downlink = self._downlinks.get(caller.name)
        if downlink is None or downlink.domain is not caller:
            return -int(Errno.ESRCH)
        return downlink.upcall(message, message_type)

    def attached(self, config: DomainConfig, hvm: Hvm) -> None:
        """Somebody lives in a domain now."""
        downlink = self._downlinks.get(config.name) if config.nested else None
        if downlink is not None:
            downlink.attach(hvm.domain, len(hvm.vcpus))
            self.level.attach(config.name, downlink, self._clock())

    def lent(self, config: DomainConfig, guest: str, memory: GuestMemory) -> None:
        """A nested hypervisor lends the memory of a guest of its own, whose Argo is ours.  ValueError: unasked."""
        self.level.wards.lend(config.name, guest, memory)

    def lending(self) -> list[tuple[int, str]]:
        """Whose memory the parent must have, since it serves their Argo: domain ids, and names as it knows them."""
        if self._carrier is None:
            return []
        paths = [(domain.domid, self.level.guest_path(domain.domid)) for domain in self.level.guests()]
        return [(domid, path[-1]) for domid, path in paths if path is not None]

    def when_served(self, then: Callable[[], None]) -> None:
        """Call `then` when our guests' Argo is served: at once where it is ours."""
        if self._carrier is None:
            then()
        else:
            self._carrier.when_present([name for _, name in self.lending()], then)

    def dying(self, config: DomainConfig) -> None:
        """Nobody does any more."""
        downlink = self._downlinks.get(config.name) if config.nested else None
        if downlink is not None and downlink.domain is not None:
            downlink.detach()
            self.level.child_died(config.name, self._clock())

    def ran(self, vcpu: Vcpu) -> None:
        """Frames of a vCPU were executed: a nested hypervisor's may have made room for what is held back."""
        domain = vcpu.hvm.domain
        if domain.nested:
            downlink = self._downlinks.get(domain.name)
            if downlink is not None:
                downlink.retry()

    def order(self, number: int, what: str, text: str) -> None:
        """The toolstack changes slots or policy; what came of it is reported when it holds everywhere."""
        self._orders.order(number, what, text)

    # -- time ----

    def next_deadline(self) -> int | None:
        """When `turn` has something to do."""
        moments = (self.level.next_deadline(), self.furniture.next_deadline())
        return min((at for at in moments if at is not None), default=None)

    def turn(self) -> None:
        """Do what is due."""
        now, deadline = self._clock(), self.level.next_deadline()
        if deadline is not None and deadline <= now:
            self.level.on_timer(now)
        self.furniture.turn(now)

    def counters(self) -> dict[str, int]:
        """What the level and its links counted."""
        level = self.level
        counted = {name: getattr(level.counters, name) for name in level.counters.__dataclass_fields__}
        counted |= {
            "outcome_unknown": level.calls.unknown,
            "repeats": level.calls.repeats,
            "repeated": level.far.answers.repeated,
            "fenced": level.far.answers.fenced,
        }
        for downlink in self._downlinks.values():
            for name, count in downlink.counters.items():
                key = f"downlink_{name.replace(' ', '_')}"
                counted[key] = counted.get(key, 0) + count
        return counted
