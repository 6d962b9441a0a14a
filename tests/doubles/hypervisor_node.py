"""A hypervisor's process shell whose loop a test turns, and the link on which it keeps what is said."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from broker.client import ZmqLink
from hv_node.config import DomainConfig, HypervisorConfig
from hv_node.node import Node


class Link:
    """The parts of a ZmqLink that the shell uses, with nobody at the other end."""

    def __init__(self) -> None:
        self.said: list[list[Any]] = []
        self.flushes = 0
        self.member = SimpleNamespace(on_welcome=None, on_disconnected=None)
        self._ends = socket.socketpair()

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def send(self, _lane: int, record: list[Any], _payload: bytes = b"") -> bool:
        self.said.append(record)
        return True

    def credit(self, _lane: int) -> int:
        return 1

    def heartbeat(self) -> None:
        pass

    def flush(self) -> bool:
        self.flushes += 1
        return False

    def receive(self) -> bool:
        return False

    def pump(self) -> bool:
        return False

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def events(self, code: str) -> list[list[Any]]:
        """The fields of the events with this code."""
        return [record[2:] for record in self.said if record[:2] == ["event", code]]


def configured(**more: Any) -> HypervisorConfig:
    """`hv0` of a lab, Xen on x86 with its plainest door, unless `more` says otherwise."""
    return HypervisorConfig(**{
        "lab": "lab", "name": "hv0", "node_dir": "", "broker_endpoint": "", "token": b"", "epoch": 1,
        "personality": "xen", "arch": "x86_64", "cpu": "intel", "doors": ("hypercall",), "notifications": (),
        "argo_cmdline": "1", "xsm": "dummy", "attach_path": "", "linger_ns": 0, "seed": 0, "domains": (), **more,
    })  # fmt: skip


@contextmanager
def started(directory: Path, link: Link, *domains: DomainConfig) -> Iterator[Node]:
    """A hypervisor that stands alone, with these domains and Argo as it is without options."""
    config = configured(
        node_dir=str(directory), attach_path=str(directory / "attach"), notifications=("virq",), argo_cmdline="",
        domains=domains,
    )  # fmt: skip
    node = Node(config, cast(ZmqLink, link))
    node.start()
    yield node
    node.close()
