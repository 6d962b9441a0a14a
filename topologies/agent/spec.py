"""What an agent is told to run: nodes with their start arguments, checks, and how the lab is to end.

These are the only objects that travel from the launcher to the agent, over the inherited pipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from topologies.hosts.provider import HostSpec
from topologies.runtime import NodeKind
from topologies.units import format_duration


class Mode(StrEnum):
    """How a lab ends: `RUN` when its programs have ended, `UP` when somebody takes it down."""

    RUN = "run"
    UP = "up"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: `entry` is ``module:function`` and takes `config`, the node's start arguments.

    `restart`: a guest that dies or fails is started again; a hypervisor that ends is, and its guests with it.  A broker
    always is.  `host`: the other host on which it runs; "" for the leader's.
    """

    name: str
    kind: NodeKind
    entry: str
    config: Any = None
    hypervisor: str | None = None
    domid: int | None = None
    restart: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A check: `guest` ends with exit code `exit`, at most `within_ns` after the lab was ready.

    As in a shell, 128 + N stands for a death by signal N.
    """

    name: str
    guest: str
    exit: int = 0
    within_ns: int | None = None

    def met_by(self, exit_code: int | None, signal_number: int | None) -> bool:
        """Whether an ending by code or signal is the one expected."""
        return self.exit == (exit_code if signal_number is None else 128 + signal_number)

    def words(self) -> str:
        """What is expected, as a sentence without its subject."""
        limit = "" if self.within_ns is None else f" within {format_duration(self.within_ns)}"
        return f"guest {self.guest} ends with exit code {self.exit}{limit}"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab.

    `hosts` are the others on which something of it runs; none: all of it runs here.  `leader` is this host's name among
    those of the topology, if it has one, and `address` how others reach it, if the topology says so.
    """

    name: str
    mode: Mode
    nodes: tuple[NodeSpec, ...]
    checks: tuple[CheckSpec, ...] = ()
    timeout_ns: int | None = None
    run_dir: str = ""
    topology: str = ""
    resolved: str = ""
    hosts: tuple[HostSpec, ...] = ()
    leader: str = ""
    address: str = ""
    host_timeout_ns: int = 0
