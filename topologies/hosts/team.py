"""The other hosts of a lab, for its leader: one agent on each, driven over the pipe of its provider.

The leader decides what starts and ends; the team carries it out on the host in question, says what became of it, and
how the hosts stand.  A host is silent when nothing was heard of it for two seconds, which kills nothing; it is lost
when its pipe ends, or, once the lab was left to its agents, when it is heard neither on the pipe nor on the fabric for
the host timeout.  Then its agent has taken its part of the lab down, and its nodes count as gone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from broker import keys
from topologies.agent.sources import Sources
from topologies.agent.spec import LabSpec, NodeSpec
from topologies.hosts import gather
from topologies.hosts.binding import binding_of
from topologies.hosts.fabric import Key
from topologies.hosts.member import GONE, Host, HostState, RemoteChild
from topologies.hosts.names import agent_name
from topologies.hosts.protocol import BEAT_EVERY, pack_config
from topologies.hosts.split import HostPlaces, placed
from topologies.rundir import KEYS
from topologies.runtime import NodeKind

LEAVE_WITHIN: Final = 10_000_000_000
"""How long (ns) hosts may take to take their part down; their agents' own limits are far below."""
HEARD: Final = ("joined", "ready")
"""States of a node of the fabric that is heard."""
LOOK_EVERY: Final = 100_000_000


class Owner(Protocol):
    """Who has a team: the leader's shell."""

    def far_spawned(self, child: RemoteChild) -> None:
        """A node's process runs."""

    def far_not_spawned(self, name: str, words: str) -> None:
        """It could not be started."""

    def far_ended(self, name: str, status: int, crash: str, last_words: str) -> None:
        """It is gone."""

    def far_log(self, name: str, at: int, data: bytes) -> None:
        """What it wrote, and where in its log."""

    def on_host(self, host: str, state: HostState, words: str) -> None:
        """How a host stands now."""

    def host_lost(self, host: str, words: str) -> None:
        """A host is lost, and whatever ran there."""


class Team:
    """The other hosts of a lab.

    Args:
        spec: the lab.
        sockets: the lab's socket directory; ssh keeps its sockets there as well.
        orders: the launcher's pipe.
    """

    def __init__(self, spec: LabSpec, sockets: Path, orders: int) -> None:
        self._spec = spec
        self._orders = gather.Orders(orders)
        self._providers = gather.make_providers(spec.hosts, sockets)
        self._hosts = {
            provider.host.name: Host(provider, spec.host_timeout_ns, self._on_record) for provider in self._providers
        }
        self._homes = {node.name: node.host for node in spec.nodes if node.host in self._hosts}
        self._agents = {agent_name(name): host for name, host in self._hosts.items()}
        self._keys: Mapping[str, Key] = {}
        self._owner: Owner | None = None
        self._sources: Sources | None = None
        self._released = self._leaving = False
        self._next_beat = 0

    # ---- before the lab -----------------------------------------------------------------------------------

    def gather(self, run_dir: Path, say: Any) -> LabSpec:
        """Have an agent on every host; the lab as its broker and nodes are to be told.  Raises HostsFailed."""
        gather.say_looking(self._providers, say)
        port, leader = gather.look_at(self._spec, self._providers, self._orders)
        directory = run_dir / KEYS
        told = gather.make_keys(directory, self._spec, self._providers, port, leader)
        self._keys = told.keys
        begin = {
            "lab": self._spec.name,
            "mode": str(self._spec.mode),
            "topology": self._spec.topology,
            "host_timeout": self._spec.host_timeout_ns,
        }
        gather.start_agents(list(self._hosts.values()), begin, told, self._orders)
        return replace(self._spec, nodes=tuple(self._told(node, directory) for node in self._spec.nodes))

    def _told(self, node: NodeSpec, directory: Path) -> NodeSpec:
        if node.kind is not NodeKind.BROKER:
            return node
        far = [provider.host.name for provider in self._providers if not provider.same_machine]
        here = {provider.host.name for provider in self._providers if provider.same_machine}
        config = replace(node.config, **binding_of(self._spec, here))
        if far:
            endpoints = sorted({gather.listening_endpoint(key.endpoint) for key in self._keys.values() if key.server})
            config = replace(config, endpoints=tuple(endpoints), curve=keys.server_curve(directory, far))
        return replace(node, config=config)

    # ---- with the lab -------------------------------------------------------------------------------------

    def open(self, sources: Sources, owner: Owner) -> None:
        """From now on `owner` is told; its loop watches `sources`."""
        self._sources, self._owner = sources, owner
        for host in self._hosts.values():
            self._watch(host)
            self._set(host, HostState.READY)

    def _watch(self, host: Host) -> None:
        assert self._sources is not None
        assert host.pipe is not None
        self._sources.watch(host.pipe.reader.fd, lambda: self._on_pipe(host))

    def has(self, name: str) -> bool:
        """Whether node `name` runs on another host."""
        return name in self._homes

    def spawn(self, node: NodeSpec, config: Any) -> None:
        """Start a node; the owner is told what came of it."""
        host = self._hosts[self._homes[node.name]]
        if host.state in GONE or host.places is None:
            self._say_not_spawned(node.name, f"host {host.name} is {host.state}")
            return
        life = host.lives[node.name] = host.lives.get(node.name, 0) + 1
        config = placed(config, host.places, self._keys[host.name].endpoint, host.spec.directory)
        order = {"op": "spawn", "name": node.name, "kind": str(node.kind), "life": life}
        order |= {"hypervisor": node.hypervisor or "", "config": pack_config(config)}
        host.ordered[node.name] = order
        host.say(order)

    def _say_not_spawned(self, name: str, words: str) -> None:
        assert self._owner is not None
        self._owner.far_not_spawned(name, words)

    def release(self) -> None:
        """The lab lives on without the launcher, and hosts without their pipe as long as they hear the fabric."""
        self._released = True
        for host in self._hosts.values():
            host.say({"op": "release"})

    # ---- what agents say ----------------------------------------------------------------------------------

    def _on_pipe(self, host: Host) -> None:
        host.receive(time.monotonic_ns())
        if host.pipe is not None and host.pipe.ended:
            self._pipe_ended(host)

    def _pipe_ended(self, host: Host) -> None:
        """Without its pipe a host is gone, unless the lab was left to its agents."""
        assert self._sources is not None
        assert host.pipe is not None
        self._sources.unwatch(host.pipe.reader.fd)
        words = host.why()
        nobody = host.state is HostState.AWAY and host.nobody_there()
        host.drop_pipe()
        if host.state in GONE:
            return
        if nobody:
            self._lose(host, "its agent is gone")
        elif host.state is HostState.LEAVING and not self._leaving:
            self._lose(host, host.words)
        elif self._released:
            self._set(host, HostState.AWAY, words)
        else:
            self._lose(host, f"the connection to its agent ended{f' ({words})' if words else ''}")

    def _on_record(self, host: Host, record: dict[str, Any]) -> None:
        name, life = str(record.get("name", "")), record.get("life")
        match record.get("what"):
            case "agent":
                host.pid = int(record["pid"])
                host.places = HostPlaces(str(record["run_dir"]), str(record["sockets"]))
            case "refused":
                host.words = str(record["words"])
            case "spawned" if life == host.lives.get(name):
                self._spawned(host, name, int(record["pid"]))
            case "not-spawned" if host.ordered.pop(name, None) is not None:
                self._say_not_spawned(name, f"on host {host.name}: {record['words']}")
            case "ended" if life == host.lives.get(name) and host.ended.get(name) != life:
                self._ended(host, name, record)
            case "log" if self._owner is not None and self._homes.get(name) == host.name:
                self._owner.far_log(name, int(record["at"]), str(record["data"]).encode("latin-1"))
            case "leaving":
                self._set(host, HostState.LEAVING, str(record["words"]))
            case "left":
                self._left(host, str(record["words"]))
            case _:
                pass

    def _spawned(self, host: Host, name: str, pid: int) -> None:
        if host.ordered.pop(name, None) is not None and self._owner is not None:
            child = host.living[name] = RemoteChild(name, host.lives[name], pid, host)
            self._owner.far_spawned(child)

    def _ended(self, host: Host, name: str, record: Mapping[str, Any]) -> None:
        assert self._owner is not None
        host.ended[name] = host.lives[name]
        if host.state is HostState.LEAVING and not self._leaving:
            return  # its agent took it down: the host is lost, for the reason that the agent gave, and so is this
        if host.ordered.pop(name, None) is not None:  # it began and ended while there was no pipe
            self._owner.far_spawned(RemoteChild(name, host.lives[name], 0, host))
        host.living.pop(name, None)
        self._owner.far_ended(name, int(record["status"]), str(record["crash"]), str(record["last_words"]))

    def _left(self, host: Host, words: str) -> None:
        if self._leaving:
            self._set(host, HostState.LEFT, "")
        else:
            self._lose(host, words)

    def on_fabric(self, name: str, state: str) -> None:
        """What the broker says of a node that is none of the lab's: of a host's agent, perhaps."""
        host = self._agents.get(name)
        if host is None:
            return
        heard = state in HEARD
        if host.on_fabric and not heard:
            host.heard = max(host.heard, time.monotonic_ns() - BEAT_EVERY * 4)
        host.fabric_is_news |= heard and not host.on_fabric
        host.on_fabric = heard

    def fabric_silent(self) -> None:
        """The broker is gone: nobody is heard there until the next one says so."""
        for name in self._agents:
            self.on_fabric(name, "lost")

    # ---- time ---------------------------------------------------------------------------------------------

    def serve(self, now: int) -> None:
        """Beat, look who is silent, and try to reach those whose pipe broke."""
        beat = now >= self._next_beat
        if beat:
            self._next_beat = now + BEAT_EVERY
        for host in self._hosts.values():
            if host.state in GONE:
                continue
            if host.pipe is not None:
                if beat:
                    host.say({"op": "beat"})
                host.pipe.writer.flush()
                if host.pipe.ended:
                    self._pipe_ended(host)
                    continue
            elif host.come_back(self._spec.name, now):
                self._back(host)
            self._judge(host, now)

    def _back(self, host: Host) -> None:
        """There is a new pipe: what was not answered is said again."""
        self._watch(host)
        for order in host.ordered.values():
            host.say(order)
        if self._leaving:
            host.say({"op": "leave"})

    def _judge(self, host: Host, now: int) -> None:
        silent = host.silent(now)
        if host.overdue(now):
            self._lose(host, f"nothing was heard of it for {silent / 1e9:.0f} s")
        elif silent and host.state in (HostState.READY, HostState.AWAY):
            self._set(host, HostState.SILENT, f"not heard for {silent / 1e9:.0f} s")
        elif not silent and host.state is HostState.SILENT:
            self._set(host, HostState.READY if host.pipe is not None else HostState.AWAY)
        elif host.state is HostState.AWAY and host.pipe is not None and host.heard > host.since:
            self._set(host, HostState.READY)

    def moments(self, now: int) -> list[int]:
        """When to look again, whatever happens."""
        return [max(now + LOOK_EVERY, self._next_beat)] if self._hosts else []

    def _set(self, host: Host, state: HostState, words: str = "") -> None:
        if host.state is state:
            return
        host.state, host.words, host.since = state, words, time.monotonic_ns()
        if self._owner is not None:
            self._owner.on_host(host.name, state, words)

    def _lose(self, host: Host, words: str) -> None:
        self._set(host, HostState.LOST, words)
        host.living.clear()
        ordered = list(host.ordered)
        host.ordered.clear()
        if self._sources is not None and host.pipe is not None:
            self._sources.unwatch(host.pipe.reader.fd)
        host.clean()
        assert self._owner is not None
        if not self._leaving:
            self._owner.host_lost(host.name, words)
            for name in ordered:
                self._say_not_spawned(name, f"host {host.name} is lost: {words}")

    # ---- the end ------------------------------------------------------------------------------------------

    def leave(self) -> int:
        """Have every host take down what is left there; until when (ns) to wait for :attr:`over`."""
        self._leaving = True
        for host in self._hosts.values():
            host.say({"op": "leave"})
        return time.monotonic_ns() + LEAVE_WITHIN

    @property
    def over(self) -> bool:
        """Whether nothing is left anywhere, as far as that can be known."""
        return all(host.state in GONE for host in self._hosts.values())

    def not_left(self) -> list[str]:
        """Hosts that did not say that nothing is left there, as sentences."""
        return [
            f"host {host.name} did not say that nothing is left there; its agent ends it by itself"
            for host in self._hosts.values()
            if host.state is not HostState.LEFT and not (host.state is HostState.LOST and host.words)
        ]

    def close(self) -> None:
        """Let go of every host, at once."""
        for host in self._hosts.values():
            with contextlib.suppress(OSError):
                host.close()

    # ---- what is ------------------------------------------------------------------------------------------

    def home(self, name: str) -> str:
        """The host on which node `name` runs."""
        return self._homes.get(name, self._spec.leader)

    def nodes_on(self, host: str) -> list[str]:
        """The nodes of a host."""
        return [name for name, home in self._homes.items() if home == host]

    def agent_of(self, host: str) -> str:
        """The name of a host's agent."""
        return agent_name(host)

    def records(self, now: int) -> list[dict[str, Any]]:
        """What there is to say of each host."""
        return [host.record(now) for host in self._hosts.values()]
