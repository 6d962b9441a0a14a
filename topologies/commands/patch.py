"""`argosy connect`, `disconnect`, `impair` and `policy`: changes to a running lab, as the toolstack makes them.

What may be asked for is what the topology could have said: the change is written into the resolved topology and
checked as a whole before anybody is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from topologies import labs, levels, rundir
from topologies.agent.control import ask
from topologies.codec import encode
from topologies.commands.lifecycle import NotFound
from topologies.diagnose import EmptyTopology, TopologyError
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.labs import Lab
from topologies.load import load, loads, resolved
from topologies.schema import Topology
from topologies.yaml12 import dump

ANSWER_WITHIN: Final = 10.0
FRESH: Final = -1
"""The hypervisor gives a slot its number."""

Change = Callable[[dict[str, Any]], None]


def connect(row: Mapping[str, Any], lab: str | None, form: Format) -> int:
    """`argosy connect`: `row` as an entry of `destinations`; it replaces one for the same service or source port."""
    found = _lab(lab)
    topology = _changed(found, lambda data: data["destinations"].append(dict(row)))
    written = topology.destinations[-1]
    slot = levels.slot(topology, written.from_, FRESH, written)
    home = _home(topology, written.from_)
    return _order(found, [home], "connect", encode(slot), form, f"{written.from_} reaches {written.to}")


def disconnect(row: Mapping[str, Any], lab: str | None, form: Format) -> int:
    """`argosy disconnect`: revoke what leads from `row`'s guest by its service or source port, at every level."""
    found = _lab(lab)
    topology = _changed(found, lambda data: data["destinations"].append({**row, "to": _anybody(data, row)}))
    slot = levels.slot(topology, str(row["from"]), FRESH, topology.destinations[-1])
    data = {"holder": slot.holder, "port": slot.port, "source_port": slot.source_port}
    return _order(found, list(topology.hypervisors), "disconnect", data, form, f"{slot.holder} is disconnected")


def reload_policy(file: str, lab: str | None, form: Format) -> int:
    """`argosy policy`: every hypervisor judges by the policy of topology `file` from now on, its labels included."""
    found = _lab(lab)
    keys, topology = load(file).policy, _topology(found)
    policy = levels.policy(keys)
    if policy is None or keys is None:
        raise NotFound(f"{file} has no policy")
    policy = replace(policy, labels=levels.labels(topology, keys))
    hypervisors = list(topology.hypervisors)
    return _order(found, hypervisors, "policy", encode(policy), form, f"{len(policy.rules)} rules")


def impair(between: tuple[str, str], keys: Mapping[str, Any], lab: str | None, form: Format) -> int:
    """`argosy impair`: what the link between two hypervisors does to those who use it, from now on."""
    found = _lab(lab)
    link = {"between": list(between), "impair": dict(keys)}
    topology = _changed(found, lambda data: data["links"].append(link))
    row = levels.impairment(topology.links[-1])
    answer = _ask(found, "impair", {"between": list(between), "values": row})
    words = ", ".join(f"{key} {value}" for key, value in keys.items()) or "sound"
    return _tell(answer, form, f"{between[0]} - {between[1]}: {words}")


# ---- the lab and its topology -----------------------------------------------------------------------------


def _lab(name: str | None) -> Lab:
    running = labs.running_labs()
    names = ", ".join(lab.name for lab in running)
    meant = [lab for lab in running if name in (None, lab.name)]
    if not meant:
        words = f"no lab {name!r} runs" + (f" [running: {names}]" if names else "") if name else "no lab runs"
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    if len(meant) > 1:
        raise NotFound(f"several labs run: say which with --lab [labs: {names}]")
    return meant[0]


def _topology(lab: Lab) -> Topology:
    return load(str(lab.run_dir / rundir.RESOLVED))


def _changed(lab: Lab, change: Change) -> Topology:
    """The lab's topology with a change, checked.  NotFound says what is wrong with the change."""
    data = resolved(_topology(lab))
    for section in ("destinations", "links"):
        data.setdefault(section, [])
        data[section] = [] if section == "destinations" else data[section]
    change(data)
    try:
        return loads(dump(data), "the change")
    except (TopologyError, EmptyTopology) as error:
        words = "; ".join(one.message for one in error.diagnostics)
        raise NotFound(words) from None


def _home(topology: Topology, holder: str) -> str:
    """The hypervisor in whose table `holder` stands."""
    guest = topology.guests.get(holder)
    return levels.serving(topology, guest.on) if guest is not None else topology.hypervisors[holder].parent


def _anybody(data: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Some guest that might serve it, for a row of which only its beginning matters."""
    guests = [(name, keys.get("serves")) for name, keys in data["guests"].items() if name != row["from"]]
    able = (name for name, serves in guests if not serves or row.get("service") in serves)
    return next(able, str(row["from"]))


# ---- the agent --------------------------------------------------------------------------------------------


def _order(lab: Lab, hypervisors: list[str], what: str, data: Any, form: Format, words: str) -> int:
    return _tell(_ask(lab, "order", {"to": hypervisors, "what": what, "data": data}), form, words)


def _ask(lab: Lab, op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    assert lab.control is not None
    try:
        ask(lab.control, op, answers.append, ANSWER_WITHIN, fields)
    except OSError as error:
        raise NotFound(f"the agent of {lab.name} does not answer: {error}", ExitCode.INFRASTRUCTURE) from None
    if not answers:
        raise NotFound(f"the agent of {lab.name} went away", ExitCode.INFRASTRUCTURE)
    return answers[-1]


def _tell(answer: Mapping[str, Any], form: Format, words: str) -> int:
    """Print what came of it; a refusal of one hypervisor is a failure of the whole."""
    refusals = {name: why for name, why in answer.get("answers", {}).items() if why}
    if answer.get("what") == "error":
        refusals["agent"] = str(answer.get("words"))
    if form is Format.JSON:
        print(json.dumps({"schema": "change/1", "done": not refusals, "refused": refusals}))
    elif not refusals:
        print(words)
    if refusals:
        said = "; ".join(f"{name}: {why}" for name, why in sorted(refusals.items()))
        raise NotFound(said, ExitCode.CHECK_FAILED)
    return int(ExitCode.OK)
