"""Before a lab on several hosts starts: look at every host, make keys, start the agents.

Nothing is left on any host when this fails: what was started there ends with its pipe.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from broker import keys
from topologies.agent.spec import LabSpec, NodeSpec
from topologies.commands.version import installed_version
from topologies.exitcodes import ExitCode
from topologies.hosts.fabric import Key
from topologies.hosts.member import Host
from topologies.hosts.preflight import Finding, Look, Wanted, needed_paths, report
from topologies.hosts.provider import HostProvider, HostsFailed, HostSpec, ProviderError, provider_of
from topologies.runtime import NodeKind

STEP: Final = 0.02
"""Seconds between two looks at what has no descriptor."""
AGENTS_WITHIN: Final = 20.0


class Orders:
    """The launcher's pipe, of which only the end is awaited here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def wait(self, fds: Iterable[int], seconds: float) -> None:
        """Wait until one of `fds` moves.  HostsFailed when the launcher leaves meanwhile."""
        poller = select.poll()
        for fd in {self.fd, *fds}:
            poller.register(fd, select.POLLIN)
        if any(fd == self.fd for fd, _ in poller.poll(seconds * 1000)) and not os.read(self.fd, 4096):
            raise HostsFailed(ExitCode.INTERRUPTED, "interrupted")


class Listener:
    """Where the broker will listen; until then it greets who asks, so that hosts can see whether they reach it."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._socket = socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def step(self) -> None:
        """Greet who has come."""
        try:
            while True:
                guest, _ = self._socket.accept()
                with guest:
                    guest.setblocking(False)
                    guest.send(self.greeting.encode())
        except OSError:
            return

    def close(self) -> None:
        """Free the port."""
        self._socket.close()


class Gathered(NamedTuple):
    """What hosts, broker and nodes need of each other: the port of the broker, and each host's key."""

    port: int
    keys: Mapping[str, Key]


def make_providers(hosts: Iterable[HostSpec], directory: Path) -> list[HostProvider]:
    """A provider for each host.  HostsFailed names every one that there is none for."""
    found, missing = [], []
    for host in hosts:
        try:
            found.append(provider_of(host, directory))
        except ProviderError as error:
            missing.append(Finding(host.name, "provider", str(error)))
    if missing:
        raise HostsFailed(ExitCode.INFRASTRUCTURE, report(missing))
    return found


def look_at(spec: LabSpec, providers: list[HostProvider], orders: Orders) -> tuple[int, dict[str, str]]:
    """Look at all hosts at once: a free port for the broker, and the leader's address as each of them sees it.

    Raises HostsFailed with everything that is missing.
    """
    listener = Listener(os.urandom(8).hex())
    looks: list[Look] = []
    try:
        now = time.monotonic()
        looks += [Look(provider, wanted_of(spec, provider, listener), now) for provider in providers]
        while not all(look.done for look in looks):
            orders.wait([listener.fileno(), *(fd for look in looks for fd in look.fds())], STEP)
            listener.step()
            for look in looks:
                look.step(time.monotonic())
        findings = [finding for look in looks for finding in look.findings]
        if findings:
            raise HostsFailed(ExitCode.INFRASTRUCTURE, report(findings))
        return listener.port, {look.host: str((look.facts or {}).get("leader", "")) for look in looks}
    finally:
        for look in looks:
            look.close()
        listener.close()


def wanted_of(spec: LabSpec, provider: HostProvider, listener: Listener) -> Wanted:
    """What `provider`'s host is to have."""
    guests = [node.config for node in spec.nodes if node.host == provider.host.name and node.kind is NodeKind.GUEST]
    paths: set[str] = set()
    for config in guests:
        paths.update(needed_paths([config.program], config.base_dir, provider.host.directory or config.base_dir))
    port = 0 if provider.same_machine else listener.port
    return Wanted(installed_version(), tuple(sorted(paths)), spec.address, port, listener.greeting)


def make_keys(
    directory: Path, spec: LabSpec, providers: list[HostProvider], port: int, leader: Mapping[str, str]
) -> Gathered:
    """The lab's keys, and what each host is told of the fabric."""
    broker = next(node.config for node in spec.nodes if node.kind is NodeKind.BROKER)
    far = [provider.host.name for provider in providers if not provider.same_machine]
    if far:
        keys.make_keys(directory, far)
    told = {}
    for provider in providers:
        name = provider.host.name
        if provider.same_machine:
            told[name] = Key(broker.endpoint, broker.token, broker.epoch)
            continue
        curve = keys.client_curve(directory, name)
        endpoint = tcp_endpoint(leader[name], port)
        told[name] = Key(endpoint, broker.token, broker.epoch, curve.server, curve.pair.public, curve.pair.secret)
    return Gathered(port, told)


def tcp_endpoint(address: str, port: int) -> str:
    """The ZeroMQ endpoint of an address, which may be one of IPv6."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def listening_endpoint(endpoint: str) -> str:
    """Where the broker listens so that `endpoint` leads to it: there, or, behind a translated address, everywhere."""
    address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    six = address.startswith("[")
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET) as probe:
            probe.bind((address.strip("[]"), 0))
    except OSError:
        return f"tcp://{'[::]' if six else '0.0.0.0'}:{port}"
    return endpoint


def start_agents(hosts: list[Host], begin: Mapping[str, Any], told: Gathered, orders: Orders) -> None:
    """Start an agent on every host and wait until all are there.  HostsFailed names every one that is not."""
    missing = []
    for host in hosts:
        try:
            host.start(begin, told.keys[host.name], time.monotonic_ns())
        except ProviderError as error:
            missing.append(Finding(host.name, "agent", str(error)))
    end = time.monotonic() + AGENTS_WITHIN
    waiting = [host for host in hosts if host.pipe is not None]
    while waiting and time.monotonic() < end:
        orders.wait([host.pipe.reader.fd for host in waiting if host.pipe is not None], STEP)
        for host in list(waiting):
            assert host.pipe is not None
            host.pipe.writer.flush()
            host.receive(time.monotonic_ns())
            if host.places is not None:
                waiting.remove(host)
            elif host.words or host.pipe.ended:
                missing.append(Finding(host.name, "agent", host.words or host.why() or "it ended without a word"))
                waiting.remove(host)
    missing += [Finding(host.name, "agent", f"it says nothing for {AGENTS_WITHIN:g} s") for host in waiting]
    if missing:
        raise HostsFailed(ExitCode.INFRASTRUCTURE, report(missing))


def on_host(nodes: Iterable[NodeSpec], host: str) -> list[NodeSpec]:
    """The nodes that run on `host`."""
    return [node for node in nodes if node.host == host]


def say_looking(providers: list[HostProvider], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Tell the launcher what the wait is for."""
    names = ", ".join(provider.host.name for provider in providers)
    say({"what": "log", "words": f"looking at hosts: {names}"})
