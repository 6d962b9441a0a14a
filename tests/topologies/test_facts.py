"""What a command in the place of a node is told."""

from __future__ import annotations

from typing import Any

import typer

from topologies import verbs
from topologies.agent.entry import HOOK_VARIABLE
from topologies.agent.preload import AGENT_PID_VARIABLE
from topologies.facts import FACTS, environment

LAB = {"lab": "l", "topology": "t", "run_dir": "r", "name": "no node's", "pid": 1}
NODE = {
    "name": "n", "kind": "guest", "pid": 7, "directory": "d", "arch": "x", "restarts": 0, "hypervisor": "h", "domid": 3,
    "lab": "no lab's",
}  # fmt: skip
TOLD = {
    "ARGOSY_LAB": "l", "ARGOSY_TOPOLOGY": "t", "ARGOSY_RUN_DIR": "r", "ARGOSY_NODE": "n", "ARGOSY_KIND": "guest",
    "ARGOSY_PID": "7", "ARGOSY_NODE_DIR": "d", "ARGOSY_ARCH": "x", "ARGOSY_RESTARTS": "0", "ARGOSY_HYPERVISOR": "h",
    "ARGOSY_DOMID": "3",
}  # fmt: skip


def test_every_fact_has_its_variable() -> None:
    """Published in --help: scripts rely on the names."""
    assert environment(LAB, NODE, {}) == TOLD
    assert [fact.variable for fact in FACTS] == list(TOLD)


def test_what_a_node_has_not_is_not_inherited_either() -> None:
    """A command in the place of a broker, itself started in the place of a guest."""
    broker = {**NODE, "domid": None, "hypervisor": None}
    told = environment(LAB, broker, {"ARGOSY_DOMID": "9", "PATH": "/bin"})
    assert told == {"PATH": "/bin"} | {name: value for name, value in TOLD.items() if value not in ("h", "3")}


def test_no_variable_is_one_that_the_agent_or_a_flag_listens_to() -> None:
    """`argosy run` in the place of a node is a run like any other."""
    group = typer.main.get_command(verbs.app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    flags = {f"ARGOSY_{verb}_{param.name}".upper() for verb, command in commands.items() for param in command.params}
    assert "ARGOSY_RUN_RUN_DIR" in flags
    assert not set(TOLD) & {AGENT_PID_VARIABLE, HOOK_VARIABLE, *flags}
