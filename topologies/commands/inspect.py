"""`argosy inspect`: everything that is known of each node, one record for each."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

from topologies import labs
from topologies.agent.control import ask
from topologies.commands.lifecycle import ALIVE, NotFound
from topologies.diagnose import nearest
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.labs import Lab
from topologies.report import print_table
from topologies.runtime import signal_name

SCHEMA = "inspect/1"
PROBE_SCHEMA = "probe/1"
SHOWN_NAMES = 12
APART = ("slots", "more_slots", "confined", "policy")
"""What a hypervisor tells with its counters and is none: who is led where, and who is refused what."""
SEEN_COLUMNS = ("name", "at", "abi", "domid")
SEEN_TITLES = ("hypervisor", "found at", "its calls", "domain id told")
DOOR_COLUMNS = ("door", "speaks", "instruction", "selector", "found", "detail", "closeness", "exits", "cycles")


def inspect(name: str | None, form: Format, *, everything: bool = False, probe: bool = False) -> int:
    """`argosy inspect`: of every running lab, with `everything` of ended ones too, or of the lab or node `name`.

    With `probe` only what guests found when they looked for their hypervisor, and why they chose their door.
    """
    found = labs.running_labs()
    if everything or name is not None:
        found += labs.ended_labs(found)
    records = {lab.name: [_record(lab, node) for node in _state(lab)["nodes"]] for lab in found}
    if name is not None:
        records = _named(name, records)
    if probe:
        return _print_probes(_probed(name, records), form)
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
        close, shown = nearest(name, tuple(known)), ", ".join(known[:SHOWN_NAMES])
        more = f", ... {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
        words = f"there is neither a lab nor a node {name!r}"
        words += (f". Did you mean {close!r}?" if close else "") + (f" [known: {shown}{more}]" if known else "")
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
    lost = (not lab.running and "outcome" not in lab.state) or node.get("lost")
    ended = {record["name"]: record for record in lab.state.get("outcome", {}).get("nodes", [])}
    counters = dict(node.get("counters", ended.get(node["name"], {}).get("counters", {})))
    return {
        "name": node["name"],
        "kind": node["kind"],
        "state": "lost" if lost else node["state"],
        "health": _health(node, alive),
        "silent": node["silent"] if alive else None,
        "host": node.get("host") or platform.node(),
        "pid": node["pid"] if alive else None,
        "hypervisor": node["hypervisor"],
        "domid": node["domid"],
        "arch": node.get("arch"),
        "epoch": lab.state.get("epoch") if node["kind"] == "broker" else None,
        "restarts": node.get("restarts", 0),
        "last_error": _last_error(node),
        "probe": _probe(node.get("probe")),
        **{key: counters.pop(key) for key in APART if key in counters},
        "counters": counters,
    }


def _health(node: dict[str, Any], alive: bool) -> str:
    if not alive:
        return "none"
    if node["silent"] is not None:
        return "unresponsive"
    return "healthy" if node["state"] == "ready" else "starting" if node["state"] != "stopping" else "stopping"


def _last_error(node: dict[str, Any]) -> str:
    """How its last life ended, if that was not well; else the one before."""
    if node.get("lost"):
        return f"was lost with host {node['host']}: {node['detail']}"
    if node["signal"] is not None:
        return ": ".join(filter(None, (f"was killed by {signal_name(node['signal'])}", node["detail"])))
    if node["exit"]:
        return ": ".join(filter(None, (f"ended with exit code {node['exit']}", node["detail"])))
    return str(node.get("last_error") or "")


def _probe(found: list[Any] | None) -> dict[str, Any] | None:
    """What the guest found when it looked for its hypervisor; None as well for what an older version recorded."""
    try:
        told = json.loads(found[0]) if found else None
    except (TypeError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _probed(name: str | None, records: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """What each guest's probe reported, by lab and guest.  NotFound where there is nothing to show, with the reason."""
    nodes = [record for found in records.values() for record in found]
    guests = [record for record in nodes if record["kind"] == "guest"]
    probes = {
        lab: {record["name"]: record["probe"] for record in found if record["probe"] is not None}
        for lab, found in records.items()
    }
    probes = {lab: found for lab, found in probes.items() if found}
    if probes:
        return probes
    if name is None or name in records:
        raise NotFound("no guest has probed for its hypervisor", ExitCode.NOTHING_TO_DO)
    if not guests:
        words = f"{name!r} is a {nodes[0]['kind']}: only guests probe for their hypervisor"
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    alive = guests[0]["state"] in ALIVE
    words = f"guest {name!r} has not probed for its hypervisor{' yet' if alive else ''}: it is {guests[0]['state']}"
    raise NotFound(words, ExitCode.NOTHING_TO_DO)


def _print_probes(probes: dict[str, dict[str, dict[str, Any]]], form: Format) -> int:
    if form is Format.JSON:
        print(json.dumps({"schema": PROBE_SCHEMA, "labs": probes}, indent=1))
        return int(ExitCode.OK)
    for lab, guests in probes.items():
        for name, found in guests.items():
            print(f"{name} in lab {lab}, {found['arch']}\n")
            _print_rows(SEEN_TITLES, SEEN_COLUMNS, found["hypervisors"], "no hypervisor announces itself")
            _print_rows(DOOR_COLUMNS, DOOR_COLUMNS, found["doors"], "no door was tried")
            if found.get("device_tree"):
                print(f"device tree: {_tree(found['device_tree'])}")
            print(f"door: {found['chosen'] or 'none'} ({found['why']})")
            if found.get("notification"):
                print(f"notification: {found['notification']}{_in_brackets(found.get('said'))}")
            print()
    return int(ExitCode.OK)


def _tree(told: dict[str, Any]) -> str:
    """What the guest read of its hypervisor in its device tree."""
    if told.get("error"):
        return f"unreadable: {told['error']}"
    names = ", ".join(told["compatible"]) or "nothing"
    return f"{told['node']} is compatible with {names}{'' if told['hypervisor'] else ', which names nobody known'}"


def _print_rows(titles: Sequence[str], keys: Sequence[str], rows: Sequence[dict[str, Any]], nothing: str) -> None:
    if rows:
        cells = [["" if row[key] is None else str(row[key]) for key in keys] for row in rows]
        numbers = [all(isinstance(row[key], int) for row in rows) for key in keys]
        print_table(titles, cells, numbers, sys.stdout)
    else:
        print(nothing)
    print()


def _in_brackets(words: str | None) -> str:
    return f" ({words})" if words else ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
