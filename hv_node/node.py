"""A hypervisor as a process: the core, what its plan has it made of, and whom it talks to.

It has one thread and one epoll set (hv_node/turns.py).  Here it is made, and here is what the broker, the agent and the
roster of its domains have to tell it.
"""

from __future__ import annotations

import gc
import json
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from broker.client import JoinRefused, JoinTimeout, ZmqLink
from broker.envelope import Envelope
from broker.frames import Lane
from hmx.attach import Loan
from hmx.memory import GuestMemory
from hmx.trap import Arch
from hv_node.argo.options import parse_options
from hv_node.config import DomainConfig, HypervisorConfig
from hv_node.doors.tables import PERSONALITIES
from hv_node.hvm import Hvm
from hv_node.hypervisor import Hypervisor
from hv_node.lobby import Lobby
from hv_node.roster import Roster
from hv_node.turns import Turns
from hv_node.uplinks.around import is_joined, parents_of
from hv_node.xsm import xsm_by_name

if TYPE_CHECKING:
    from hv_node.uplinks.ascent import Ascent
    from hv_node.uplinks.fabric import FabricUplink
    from hv_node.uplinks.joint import Joint

JOIN_S: Final = 10.0
EXIT_INFRASTRUCTURE: Final = 4


class Node(Turns):
    """The process shell of one hypervisor."""

    def __init__(self, config: HypervisorConfig, link: ZmqLink) -> None:
        options, ret = parse_options(config.argo_cmdline)
        if ret:
            print(f"argo={config.argo_cmdline}: error {ret}; what was understood of it is kept", flush=True)
        core = Hypervisor(
            PERSONALITIES[config.personality, Arch[config.arch.upper()]],
            config.cpu,
            options,
            xsm_by_name(config.xsm),
            self.report,
            doors=config.doors,
            notifications=config.notifications,
            storage=config.storage,
            device_models=config.device_models,
            iommus=config.iommus,
            parents=parents_of(config),
        )
        super().__init__(core, link)
        self.config = config
        self.failure = ""
        self.roster = Roster(config, core, self)
        link.on_record = self._on_record
        if is_joined(config):
            self.joint = self._join()
            if config.parent:
                self.ascent = self._ascend(self.joint)
            else:
                self._fabric = self._join_fabric(self.joint)
        if is_joined(config) or any(domain.remote for domain in config.domains):
            self.link.member.on_welcome = self._welcome

    def _welcome(self, _epoch: int) -> None:
        """The broker let us in, the first one or another: what was under way in the last session may be lost."""
        if self.ascent is not None:
            self.ascent.ask()
        elif self._fabric is not None and self.joint is not None:
            self.joint.above(self._fabric)
        for remote in self.roster.remotes():
            remote.link_up()

    def _join(self) -> Joint:
        from hv_node.uplinks.joint import Joint  # levels are for labs that have some

        # Later lives have later epochs: this clock goes on while the machine sleeps.
        epoch = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Joint(self.config, self.core, epoch, time.monotonic_ns, self.report)

    def _ascend(self, joint: Joint) -> Ascent:
        """The way up of a nested hypervisor: its parent."""
        from hv_node.uplinks.ascent import Ascent

        ascent = Ascent(self.config, self._say, self.watch, self.unwatch)
        ascent.on_envelope, ascent.on_room, ascent.on_event = joint.arrived, joint.room, self.report

        def up() -> None:
            joint.above(ascent)
            joint.when_served(lambda: self._say(["ready"]))

        def lost(words: str) -> None:
            if not self._stopping:
                self.failure = words
                self._stopping = True

        ascent.on_up, ascent.on_lost = up, lost
        return ascent

    def _join_fabric(self, joint: Joint) -> FabricUplink:
        """The way up of an L0: the broker, which may be another one each time."""
        from hv_node.uplinks.fabric import FabricUplink

        fabric = FabricUplink(self.link)
        joint.level.on_reached = self._reached
        self.link.member.on_disconnected = lambda _reason: joint.cut()
        return fabric

    # -- start ----

    def start(self) -> None:
        """Create the domains and listen for their guests."""
        for config in self.config.domains:
            self.roster.create(config)
        try:
            self.lobby = Lobby(self.config.attach_path, self.roster.introduce, self.report)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.config.attach_path) from error
        self.watch(self.lobby.fileno(), select.EPOLLIN, self.lobby.turn)
        self.watch(self.link.fileno(), select.EPOLLIN, self._pump)

    # -- domains ----

    def domain_created(self, config: DomainConfig, ram_fd: int) -> None:
        """There is a domain: one whose Argo our parent serves needs its memory there."""
        if self.ascent is not None and self.joint is not None:
            for domid, name in self.joint.lending():
                if domid == config.domid:
                    self.ascent.lend(Loan(name, domid, config.memory), ram_fd)

    def domain_lent(self, config: DomainConfig, loan: Loan, memory: GuestMemory) -> None:
        """The nested hypervisor in that domain lends a guest's memory.  ValueError: it may not."""
        assert self.joint is not None
        self.joint.lent(config, loan.name, memory)

    def domain_attached(self, config: DomainConfig, hvm: Hvm) -> None:
        """Somebody lives there now."""
        if self.joint is not None:
            self.joint.attached(config, hvm)

    def domain_dying(self, config: DomainConfig, hvm: Hvm | None) -> None:
        """Nobody does any more."""
        self._promptness.gone(config.domid)
        if hvm is not None:
            for vcpu in hvm.vcpus:
                self._active.pop(vcpu, None)
                self._parked.pop(vcpu, None)
        if self.joint is not None:
            self.joint.dying(config)

    # -- the broker ----

    def report(self, code: str, *fields: Any) -> None:
        """Something that the lab wants to know."""
        self._say(["event", code, *fields])

    def _say(self, record: list[Any]) -> None:
        self.link.send(Lane.CONTROL, record)

    def _on_record(self, _lane: Lane, record: Sequence[Any], payload: Any) -> None:
        if isinstance(record, Envelope):
            if self._fabric is not None and self.joint is not None:
                self.joint.arrived(record, payload)
            return
        match [*record]:
            case _ if self.ascent is not None and self.ascent.on_record(record):
                pass
            case ["peer", str(name), str(state), _, int(pid)] if self.joint is not None:
                self.joint.peer(name, state, pid)
            case ["told", "broker", ["grant", str(guest), bytes(token)]]:
                self.roster.grant(guest, token)
                path = "" if self.roster.is_remote(guest) else self.config.attach_path
                self._say(["tell", guest, ["granted", path, token]])
            case ["told", str(guest), ["mirror"]]:
                self.roster.mirrored(guest, payload)
            case ["told", str(sender), ["counters?"]]:
                self._say(["tell", sender, ["counters", json.dumps(self.counters())]])
            case ["told", "agent", ["exited", str(guest), int(domid)]]:
                self.roster.on_exited(guest, domid)
            case ["told", "agent", ["create", str(guest), int(domid), int(memory), int(vcpus)]]:
                self.roster.on_create(guest, domid, memory, vcpus)
            case ["told", "agent", ["order", int(number), str(what), str(text)]]:
                self.joint = self.joint or self._join()  # one that had neither slots nor policy needs it from now on
                self.joint.order(number, what, text)
            case ["shutdown"] | ["told", "agent", ["shutdown"]]:
                self._stopping = True
            case _:
                pass  # news for others: node states, answers nobody asked for

    def counters(self) -> dict[str, Any]:
        """`arch.*` by domain, those of dead ones included, and this process's `host.*`."""
        counted: dict[str, Any] = {"arch": self.roster.counters(), "host": asdict(self.host)}
        if self.joint is not None:
            counted["level"] = self.joint.counters()
            if self._fabric is not None:
                counted["fabric"] = self.link.member.traffic()
            counted |= self.joint.furniture.inspect()
        return counted

    def close(self) -> None:
        """Give everything back: guests see the end of their attach connection."""
        if self.ascent is not None:
            self.ascent.close()
        self.roster.close()
        self.lobby.close()
        self._epoll.close()


def main(config: HypervisorConfig) -> int:
    """Run one hypervisor until it is told to stop.  0, or 4 when it cannot join the lab or open its sockets."""
    link = ZmqLink(
        config.broker_endpoint, kind="hypervisor", name=config.name, token=config.token, epoch=config.epoch,
        curve=config.curve,
    )  # fmt: skip
    node = Node(config, link)
    node.stop_on(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to act on
    try:
        node.start()
        link.wait_joined(JOIN_S)
    except (OSError, JoinRefused, JoinTimeout) as error:
        print(f"hypervisor {config.name}: {error}", file=sys.stderr, flush=True)
        return EXIT_INFRASTRUCTURE
    if node.ascent is None:
        link.send(Lane.CONTROL, ["ready"])  # else once its parent has let it in
    gc.freeze()  # what is there now stays: nobody need look through it again
    try:
        node.run()
        if node.failure:
            print(f"hypervisor {config.name}: {node.failure}", file=sys.stderr, flush=True)
    finally:
        link.leave(EXIT_INFRASTRUCTURE if node.failure else 0, node.failure or "told to stop")
        node.close()
    return EXIT_INFRASTRUCTURE if node.failure else 0
