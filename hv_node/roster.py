"""The domains of a hypervisor's process: made, attached, dying, freed; and the toolstack's orders about them.

The toolstack repeats each order until it is answered, so every one may come twice.  A domain in which a hypervisor is
nested is the parent's own business: it is freed without an order, and one that comes again is given a fresh one.
"""

from __future__ import annotations

import hmac
import math
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from hmx.attach import AttachError, Loan, Request
from hmx.memory import Buffer, GuestMemory, MappedMemory
from hmx.mirror import MirrorError
from hv_node import attach
from hv_node.config import DomainConfig, HypervisorConfig
from hv_node.hvm import Hvm, Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.remote_guest import RemoteBacking, RemoteGuest, attach_request, refusal

TOKENS: Final = 4  # grants that a guest may hold: it asks again when the broker was restarted before it had the answer
NESTED_LAST: Final = 0x3FFF
"""Domain ids of hypervisors that come again, from here downwards: far from those that the toolstack gives to guests."""


@dataclass(slots=True)
class Dying:
    """A domain whose guest is gone: what is behind it, and when its id may be freed at the earliest."""

    backing: attach.Backing | RemoteBacking
    due: float


class Owner(Protocol):
    """The process shell around."""

    def watch(self, fd: int, events: int, handler: Callable[[], None]) -> None:
        """Call `handler` while `fd` has one of `events`."""

    def unwatch(self, fd: int) -> None:
        """No more."""

    def wake(self, vcpu: Vcpu) -> None:
        """The guest rang."""

    def report(self, code: str, *fields: Any) -> None:
        """Something that the lab wants to know."""

    def domain_created(self, config: DomainConfig, ram_fd: int) -> None:
        """There is a domain, with that file as its memory."""

    def domain_lent(self, config: DomainConfig, loan: Loan, memory: GuestMemory) -> None:
        """The nested hypervisor in that domain lends a guest's memory.  ValueError: it may not."""

    def mirror(self, guest: str, message: bytes) -> None:
        """Hand a message to the lane to a guest on another host; one that is not taken is repeated."""

    def domain_attached(self, config: DomainConfig, hvm: Hvm) -> None:
        """Somebody lives there now."""

    def domain_dying(self, config: DomainConfig, hvm: Hvm | None) -> None:
        """Nobody does any more; called before the core kills it."""


class Roster:
    """All domains of one hypervisor's process."""

    def __init__(self, config: HypervisorConfig, core: Hypervisor, owner: Owner) -> None:
        self.backings: dict[str, attach.Backing | RemoteBacking] = {}
        self.bells: dict[Vcpu, socket.socket | RemoteBacking] = {}
        self.attached: dict[str, socket.socket | RemoteBacking] = {}
        self._remotes: dict[str, RemoteGuest] = {}  # those of `attached` that are on other hosts
        self._config = config
        self._core = core
        self._owner = owner
        self._tokens: dict[str, list[bytes]] = {}
        self._freeing: dict[int, Dying] = {}
        self._exited: set[int] = set()  # domains whose process the agent has seen the end of
        self._freed: set[int] = set()
        self._departed: dict[str, Counter[str]] = {}  # counters of domains that are gone, by guest
        self._nested_lives = 0

    # -- made ----

    def create(self, config: DomainConfig) -> None:
        """Make a domain and what is behind it.  OSError and ValueError leave nothing behind."""
        backing = RemoteBacking(config) if config.remote else attach.create_backing(config)
        try:
            hvm = self._core.create_domain(
                config.domid,
                backing.memory(),
                backing.area_views(),
                name=config.name,
                is_control=config.is_control,
                nested=config.nested,
            )
        except BaseException:
            backing.close()
            raise
        self.backings[config.name] = backing
        self.bells.update(zip(hvm.vcpus, backing.bells_out, strict=True))
        for vcpu, bell_in in zip(hvm.vcpus[: len(backing.bells_in)], backing.bells_in, strict=True):
            self._owner.watch(bell_in, select.EPOLLIN | select.EPOLLET, partial(self._owner.wake, vcpu))
        if isinstance(backing, attach.Backing):
            self._owner.domain_created(config, backing.ram_fd)

    def grant(self, guest: str, token: bytes) -> None:
        """The broker lets `guest` attach with `token`."""
        self._tokens[guest] = [*self._tokens.get(guest, [])[1 - TOKENS :], token]

    # -- attached ----

    def introduce(self, connection: socket.socket, request: Request) -> None:
        """A stranger said who it is: attach it, or raise AttachError with what it is told."""
        name = request.name
        self._check(request)
        if name not in self.backings:
            self._come_again(name)
        backing, hvm = self._domain_for(name)
        if isinstance(backing, RemoteBacking):
            raise AttachError(f"guest {name!r} attaches through the broker")
        targets = [self._target_of(name, target) for model, target in self._config.device_models if model == name]
        attach.hand_over(connection, backing, self._core.personality.arch)
        for target in targets:
            attach.share(connection, target)
        self.attached[name] = connection
        self._owner.watch(connection.fileno(), select.EPOLLIN, lambda: self._heard(name))
        self._owner.domain_attached(backing.config, hvm)
        self._owner.report("attached", name, backing.config.domid)

    def _target_of(self, name: str, target: str) -> attach.Backing:
        """What is behind a guest whose device model `name` is."""
        backing = self.backings.get(target)
        if not isinstance(backing, attach.Backing):
            raise AttachError(f"guest {name!r} is the device model of {target!r}, which is not here")
        return backing

    def _check(self, request: Request) -> None:
        """AttachError unless the guest may attach; it has used its token up then, or all of them where it may not."""
        name = request.name
        granted = self._tokens.get(name, [])
        shown = [token for token in granted if hmac.compare_digest(token, request.token)]
        attach.check_token(shown[0] if shown else granted[0] if granted else None, request)
        del self._tokens[name]  # only whom it was granted to uses it up
        if name in self.attached:
            raise AttachError(f"guest {name!r} is attached already")

    def _domain_for(self, name: str) -> tuple[attach.Backing | RemoteBacking, Hvm]:
        backing = self.backings.get(name)
        hvm = None if backing is None else self._core.hvm(backing.config.domid)
        if backing is None or hvm is None:
            raise AttachError(f"hypervisor {self._config.name!r} has no domain for a guest {name!r}")
        return backing, hvm

    def _heard(self, name: str) -> None:
        """The attach connection ended, or says something: what a nested hypervisor lends, if we serve its guests."""
        config, connection = self.backings[name].config, self.attached[name]
        if not config.nested or config.mode == "own" or isinstance(connection, RemoteBacking):
            self.gone(name)
            return
        try:
            found = attach.read_loan(connection)
            if found is not None:
                loan, ram = found
                self._owner.domain_lent(config, loan, MappedMemory(ram))
                return
        except BlockingIOError:
            return
        except (AttachError, ValueError, OSError) as error:
            self._owner.report("loan-refused", name, str(error))
            attach.say_no(connection, str(error))
        self.gone(name)

    def _come_again(self, name: str) -> None:
        """A nested hypervisor that died is there again: a fresh domain for it."""
        nested = next((config for config in self._config.domains if config.nested and config.name == name), None)
        if nested is not None:
            domid, self._nested_lives = NESTED_LAST - self._nested_lives, self._nested_lives + 1
            self.create(replace(nested, domid=domid))

    # -- guests on other hosts (experimental) ----

    def is_remote(self, name: str) -> bool:
        """Whether a guest is to attach through the broker."""
        return isinstance(self.backings.get(name), RemoteBacking)

    def remotes(self) -> Iterable[RemoteGuest]:
        """The guests on other hosts that are attached."""
        return tuple(self._remotes.values())

    def mirrored(self, name: str, data: Buffer) -> None:
        """A message of a guest on another host.  The broker vouches for its name."""
        guest = self._remotes.get(name)
        try:
            request = attach_request(data)
            if request is None:
                if guest is not None:
                    guest.receive(data)
            else:
                self._introduce_remote(name, request)
        except (MirrorError, AttachError) as error:
            # Of words of an attached guest that make no sense RemoteGuest itself has seen to.
            self._owner.mirror(name, refusal(str(error)))

    def _introduce_remote(self, name: str, request: Request) -> None:
        if request.name != name:
            raise AttachError(f"{name!r} cannot attach for {request.name!r}")
        present = self.attached.get(name)
        if isinstance(present, RemoteBacking) and hmac.compare_digest(present.token, request.token):
            self._remotes[name].attached_again()  # it did not hear the answer
            return
        self._check(request)
        backing, hvm = self._domain_for(name)
        if not isinstance(backing, RemoteBacking):
            raise AttachError(f"guest {name!r} attaches on its hypervisor's host")
        self.attached[name] = backing  # before it may wake a vCPU
        self._remotes[name] = backing.attach(
            request,
            time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            self._core.personality.arch,
            lambda index: self._owner.wake(hvm.vcpus[index]),
            partial(self._owner.mirror, name),
            lambda reason: self._remote_gone(name, reason),
        )
        self._owner.domain_attached(backing.config, hvm)
        self._owner.report("attached", name, backing.config.domid)

    def _remote_gone(self, name: str, reason: str) -> None:
        self._owner.report("remote-guest-gone", name, reason)
        self.gone(name)

    # -- dying, freed ----

    def gone(self, name: str) -> None:
        """The attach connection of a guest ended, or said something it has no business to say: kill the domain."""
        connection = self.attached.pop(name, None)
        self._remotes.pop(name, None)
        if connection is not None:
            self._owner.unwatch(connection.fileno())
            connection.close()
            self.die(name)

    def die(self, name: str) -> None:
        """The domain of a guest that will not use it any more: from here on peers see ECONNREFUSED."""
        backing = self.backings.pop(name)
        domid = backing.config.domid
        hvm = self._core.hvm(domid)
        self._owner.domain_dying(backing.config, hvm)
        if hvm is not None:
            self._departed.setdefault(name, Counter()).update(asdict(hvm.counters))
            for vcpu in hvm.vcpus:
                self.bells.pop(vcpu, None)
        self._core.kill_domain(domid)
        self._freeing[domid] = Dying(backing, time.monotonic() + self._config.linger_ns / 1e9)
        if backing.config.nested:
            self._exited.add(domid)
        self._owner.report("domain-dying", name, domid)

    def next_free(self) -> float:
        """When the next domain may be freed whose process is gone."""
        return min((dying.due for domid, dying in self._freeing.items() if domid in self._exited), default=math.inf)

    def free_due(self, now: float) -> None:
        """Free the domains whose time has come."""
        for domid, dying in tuple(self._freeing.items()):
            if now >= dying.due and domid in self._exited:
                self._free(domid)

    def _free(self, domid: int) -> None:
        """From here on peers see ESRCH."""
        self._exited.discard(domid)
        self._freed.add(domid)
        backing = self._freeing.pop(domid).backing
        self._core.free_domain(domid)
        for bell in backing.bells_in:
            self._owner.unwatch(bell)
        backing.close()
        self._owner.report("domain-freed", backing.config.name, domid)

    # -- the toolstack's orders, which it repeats until they are answered ----

    def on_exited(self, name: str, domid: int) -> None:
        """The process of guest `name` is gone, whether it had attached or not."""
        if domid in self._freed:
            self._owner.report("domain-freed", name, domid)
            return
        self._exited.add(domid)
        backing = self.backings.get(name)
        if backing is not None and backing.config.domid == domid:
            self.gone(name)
            if name in self.backings:
                self.die(name)

    def on_create(self, name: str, domid: int, memory: int, vcpus: int) -> None:
        """A fresh domain for a guest that is started again; all else is as it was planned."""
        known = next((each for each in self._config.domains if each.name == name), None)
        config = DomainConfig(name, domid, memory, vcpus)
        if known is not None:
            config = replace(known, domid=domid, memory=memory, vcpus=vcpus)
        present = self.backings.get(name)
        if present is None:
            try:
                self.create(config)
            except (OSError, ValueError) as error:
                self._owner.report("domain-refused", name, domid, str(error))
                return
            self._freed.discard(domid)
        elif present.config.domid != domid:
            words = f"guest {name!r} still has domain {present.config.domid}"
            self._owner.report("domain-refused", name, domid, words)
            return
        self._owner.report("domain-created", name, domid)

    # -- ----

    def counters(self) -> dict[str, dict[str, Any]]:
        """`arch.*` by domain, those of dead ones included."""
        arch = {name: Counter(counted) for name, counted in self._departed.items()}
        for name, counted in self._core.counters().items():
            arch.setdefault(name, Counter()).update(counted)
        return {name: dict(counted) for name, counted in arch.items()}

    def close(self) -> None:
        """Give everything back: guests see the end of their attach connection."""
        for connection in self.attached.values():
            connection.close()
        for backing in (*self.backings.values(), *(dying.backing for dying in self._freeing.values())):
            backing.close()
