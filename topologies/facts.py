"""What `argosy exec` tells a command of the node in whose place it runs: a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Fact(NamedTuple):
    """An environment variable, whether the lab's state holds it or the node's, under which key, and what it says."""

    variable: str
    of_lab: bool
    key: str
    meaning: str


FACTS: Final = (
    Fact("ARGOSY_LAB", True, "lab", "name of the lab"),
    Fact("ARGOSY_TOPOLOGY", True, "topology", "its file, - for standard input"),
    Fact("ARGOSY_RUN_DIR", True, "run_dir", "its run directory"),
    Fact("ARGOSY_NODE", False, "name", "name of the node"),
    Fact("ARGOSY_KIND", False, "kind", "broker, hypervisor or guest"),
    Fact("ARGOSY_PID", False, "pid", "its process"),
    Fact("ARGOSY_NODE_DIR", False, "directory", "its directory, where the command starts"),
    Fact("ARGOSY_ARCH", False, "arch", "its architecture; not of a broker"),
    Fact("ARGOSY_RESTARTS", False, "restarts", "how often it was started again"),
    Fact("ARGOSY_HYPERVISOR", False, "hypervisor", "of a guest: its hypervisor"),
    Fact("ARGOSY_DOMID", False, "domid", "of a guest: its domain id"),
)


def environment(lab: Mapping[str, Any], node: Mapping[str, Any], inherited: Mapping[str, str]) -> dict[str, str]:
    """The `inherited` environment with the facts of `node`; those that it has not are not inherited either."""
    told = {fact.variable: (lab if fact.of_lab else node).get(fact.key) for fact in FACTS}
    rest = {name: value for name, value in inherited.items() if name not in told}
    return {**rest, **{name: str(value) for name, value in told.items() if value is not None}}
