"""`argosy inspect`: everything that is known of each node, one record for each."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

from topologies import labs
from topologies.agent.control import ask
from topologies.commands.lifecycle import ALIVE, NotFound
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.labs import Lab
from topologies.report import print_table
from topologies.runtime import signal_name

SCHEMA = "inspect/1"


def inspect(name: str | None, form: Format, *, everything: bool = False) -> int:
    """`argosy inspect`: of every running lab, with `everything` of ended ones too, or of the lab or node `name`."""
    found = labs.running_labs()
    if everything or name is not None:
        found += labs.ended_labs(found)
    records = {lab.name: [_record(lab, node) for node in _state(lab)["nodes"]] for lab in found}
    if name is not None:
        records = _named(name, records)
    if form is Format.JSON:
        print(json.dumps({"schema": SCHEMA, "labs": records}, indent=1))
        return int(ExitCode.OK)
    for lab, nodes in records.items():
        for record in nodes:
            told = {key: value for key, value in {"lab": lab, **record}.items() if value not in (None, "", {})}
            rows = [[key, _shown(value)] for key, value in told.items()]
            print_table([record["name"], ""], rows, [False, False], sys.stdout)
            print()
    return int(ExitCode.OK)


def _named(name: str, records: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    if name in records:
        return {name: records[name]}
    chosen = {lab: [record for record in nodes if record["name"] == name] for lab, nodes in records.items()}
    chosen = {lab: nodes for lab, nodes in chosen.items() if nodes}
    if not chosen:
        known = sorted({*records, *(record["name"] for nodes in records.values() for record in nodes)})
        words = f"there is neither a lab nor a node {name!r}" + (f" [known: {', '.join(known)}]" if known else "")
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    return chosen


def _state(lab: Lab) -> dict[str, Any]:
    """The state with counters: what the agent says, or what was recorded."""
    answers: list[dict[str, Any]] = []
    if lab.control is not None:
        try:
            ask(lab.control, "inspect", answers.append, labs.ANSWER_WITHIN)
        except OSError:
            pass  # it does not answer: what it recorded last must do
    found = [answer for answer in answers if "nodes" in answer]
    return found[0] if found else lab.state


def _record(lab: Lab, node: dict[str, Any]) -> dict[str, Any]:
    alive = lab.running and node["state"] in ALIVE
    lost = not lab.running and "outcome" not in lab.state
    ended = {record["name"]: record for record in lab.state.get("outcome", {}).get("nodes", [])}
    return {
        "name": node["name"],
        "kind": node["kind"],
        "state": "lost" if lost else node["state"],
        "health": _health(node, alive),
        "silent": node["silent"] if alive else None,
        "host": platform.node(),
        "pid": node["pid"] if alive else None,
        "hypervisor": node["hypervisor"],
        "domid": node["domid"],
        "arch": node.get("arch"),
        "epoch": lab.state.get("epoch") if node["kind"] == "broker" else None,
        "restarts": node.get("restarts", 0),
        "last_error": _last_error(node),
        "probe": _probe(node.get("probe")),
        "counters": node.get("counters", ended.get(node["name"], {}).get("counters", {})),
    }


def _health(node: dict[str, Any], alive: bool) -> str:
    if not alive:
        return "none"
    if node["silent"] is not None:
        return "unresponsive"
    return "healthy" if node["state"] == "ready" else "starting" if node["state"] != "stopping" else "stopping"


def _last_error(node: dict[str, Any]) -> str:
    """How its last life ended, if that was not well; else the one before."""
    if node["signal"] is not None:
        return ": ".join(filter(None, (f"was killed by {signal_name(node['signal'])}", node["detail"])))
    if node["exit"]:
        return ": ".join(filter(None, (f"ended with exit code {node['exit']}", node["detail"])))
    return str(node.get("last_error") or "")


def _probe(found: list[Any] | None) -> dict[str, Any] | None:
    """What the guest found when it looked for its hypervisor."""
    return json.loads(found[0]) if found else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
