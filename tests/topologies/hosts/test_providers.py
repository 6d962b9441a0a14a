"""Providers are found by name, built in or installed, and what is wrong with one is said in words."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from broker.binding import Binding
from tests.e2e.rig import wait_until
from topologies.agent.spec import LabSpec, Mode, NodeSpec
from topologies.hosts.binding import binding_of
from topologies.hosts.gather import listening_endpoint, make_providers, tcp_endpoint
from topologies.hosts.local import LocalProvider
from topologies.hosts.provider import (
    GROUP,
    HostProvider,
    HostsFailed,
    HostSpec,
    ProviderError,
    Way,
    end,
    provider_of,
    providers,
)
from topologies.hosts.ssh import SshProvider
from topologies.runtime import NodeKind


class Mine(LocalProvider):
    """A provider that somebody else wrote."""


def test_two_are_built_in(tmp_path: Path) -> None:
    """They are there whether the distribution is installed or not."""
    assert {"local", "ssh"} <= set(providers())
    assert isinstance(provider_of(HostSpec("a"), tmp_path), LocalProvider)
    assert isinstance(provider_of(HostSpec("a", "ssh", "b"), tmp_path), SshProvider)


def test_others_are_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Group ``argosy.host_providers``; a built-in name cannot be taken over."""
    points = [
        metadata.EntryPoint("mine", f"{__name__}:Mine", GROUP),
        metadata.EntryPoint("ssh", f"{__name__}:Mine", GROUP),
        metadata.EntryPoint("broken", "nowhere.at_all:Provider", GROUP),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == GROUP else [])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[__name__])
    assert type(provider_of(HostSpec("a", "mine"), tmp_path)).__name__ == "Mine"
    assert isinstance(provider_of(HostSpec("a", "ssh"), tmp_path), SshProvider)
    with pytest.raises(ProviderError, match="cannot be loaded"):
        provider_of(HostSpec("a", "broken"), tmp_path)


def test_every_host_without_a_provider_is_named(tmp_path: Path) -> None:
    """In one report, with what is installed."""
    with pytest.raises(HostsFailed) as failed:
        make_providers([HostSpec("a", "pigeon"), HostSpec("b"), HostSpec("c", "smoke")], tmp_path)
    words = str(failed.value)
    assert "2 things are missing, on 2 hosts" in words
    assert "no provider is called 'pigeon' [installed: local, ssh" in words


def test_the_interface_is_whole() -> None:
    """poll, wait, signal, kill, launch, cleanup, and what the leader needs beside them."""
    wanted = {"connect", "poll", "wait", "signal", "kill", "launch", "cleanup", "command", "words"}
    assert wanted <= set(dir(HostProvider))
    assert HostProvider.__abstractmethods__ == {"poll", "wait", "signal", "kill", "launch", "command"}


def test_a_local_process(tmp_path: Path) -> None:
    """It has three pipes, takes signals, and ends with its provider."""
    provider = LocalProvider(HostSpec("a"), tmp_path)
    provider.connect()
    assert provider.poll() is Way.OPEN
    process = provider.launch(
        ["-c", "import sys; print(sys.stdin.readline().upper(), end='', flush=True); sys.stdin.read()"]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"HELLO\n"
    provider.signal(process.pid, 15)
    wait_until(lambda: process.poll() == -15, 5)
    provider.signal(process.pid, 15)  # gone: no error
    end(process)
    provider.kill()
    assert provider.poll() is Way.CLOSED
    assert provider.wait(0)


def test_ssh_asks_nothing_and_shows_no_secret(tmp_path: Path) -> None:
    """One line for the host's shell, quoted; never a password prompt, never another connection behind one's back."""
    host = HostSpec("a", "ssh", "me@lab2", 2222, "/opt/py thon", "/conf")
    words = SshProvider(host, tmp_path).command(["-m", "x", "it's"])
    assert words[0] == "ssh"
    assert words[-3:] == ["--", "me@lab2", "'/opt/py thon' -m x 'it'\"'\"'s'"]
    assert "BatchMode=yes" in words
    assert "ProxyCommand=false" in words
    assert words[words.index("-F") + 1] == "/conf"
    assert words[words.index("-p") + 1] == "2222"


def test_ssh_without_an_address(tmp_path: Path) -> None:
    """Is refused before ssh is asked."""
    provider = SshProvider(HostSpec("a", "ssh"), tmp_path)
    with pytest.raises(ProviderError, match="address"):
        provider.connect()
    assert provider.poll() is Way.CLOSED
    assert provider.wait(0)


def test_ssh_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of what it said."""
    (tmp_path / "ssh").write_text("#!/bin/sh\necho first >&2\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    provider = SshProvider(HostSpec("a", "ssh", "lab2"), tmp_path)
    provider.connect()
    assert provider.wait(5)
    assert provider.poll() is Way.CLOSED
    assert provider.words() == "Permission denied (publickey)."
    with pytest.raises(ProviderError, match="Permission denied"):
        provider.launch([])
    provider.kill()
    provider.cleanup()


def test_the_broker_is_told_who_runs_where() -> None:
    """Every node and agent is bound to its host; hosts that are this machine have no key, and count as the leader's."""
    from tests.topologies.hosts.test_protocol import GUEST, HYPERVISOR

    nodes = (
        NodeSpec("broker", NodeKind.BROKER, "b"),
        NodeSpec("hv0", NodeKind.HYPERVISOR, "h", HYPERVISOR, host="far"),
        NodeSpec("a", NodeKind.GUEST, "g", GUEST, "hv0", 1, host="far"),
    )
    spec = LabSpec("lab", Mode.RUN, nodes, hosts=(HostSpec("far", "ssh"), HostSpec("too", "local")), leader="near")
    assert binding_of(spec, {"too"}) == {
        "host": "near",
        "binding": Binding(
            (("agent", "near"), ("hv0", "far"), ("a", "far"), ("agent.far", "far"), ("agent.too", "near")),
            (("hv0",),),
            ((("hv0", "a"), ""),),
        ),
    }
    assert binding_of(LabSpec("lab", Mode.RUN, nodes), ())["host"] == "@"


def test_endpoints_of_addresses() -> None:
    """ZeroMQ wants IPv6 in brackets."""
    assert tcp_endpoint("10.0.0.1", 5) == "tcp://10.0.0.1:5"
    assert tcp_endpoint("fe80::1", 5) == "tcp://[fe80::1]:5"


def test_where_the_broker_listens() -> None:
    """At the address that hosts were told, if it is one of this machine's; else they reach it in a roundabout way."""
    assert listening_endpoint("tcp://127.0.0.1:5") == "tcp://127.0.0.1:5"
    assert listening_endpoint("tcp://192.0.2.1:5") == "tcp://0.0.0.0:5"
    assert listening_endpoint("tcp://[2001:db8::1]:5") == "tcp://[::]:5"


def test_a_guest_whose_calls_are_taken_is_bound_to_the_hypervisor_that_takes_them() -> None:
    """issue 5, part 1: under `mode: steal` it lives at the hypervisor around its own, for all others."""
    import dataclasses

    from hv_node.config import DomainConfig, WardConfig
    from tests.topologies.hosts.test_protocol import HYPERVISOR

    def paths_under(mode: str) -> list[tuple[str, ...]]:
        ward = WardConfig("stolen", 0x4001, "red")
        inner = DomainConfig("hv1", 1, 1 << 20, 1, nested=True, mode=mode, wards=(ward,))
        outer = dataclasses.replace(HYPERVISOR, domains=(inner,))
        nodes = (NodeSpec("hv0", NodeKind.HYPERVISOR, "h", outer),)
        return [path for path, label in binding_of(LabSpec("lab", Mode.RUN, nodes), ())["binding"].guests if label]

    assert paths_under("steal") == [("hv0", "stolen")]
    assert paths_under("forward") == []
