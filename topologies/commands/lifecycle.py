"""`argosy ps`, `down` and `logs`: what runs, and what is recorded of it, whatever became of the YAML."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import IO, Any

from topologies import basedir, labs, rundir, runlock
from topologies.agent.control import ask
from topologies.agent.entry import LOG
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.labs import Lab
from topologies.report import print_table
from topologies.runtime import signal_name

PS_SCHEMA, DOWN_SCHEMA, GC_SCHEMA = "ps/1", "down/1", "gc/1"
DOWN_WITHIN = 60.0
LOOK_EVERY = 0.1
"""Seconds between two looks at a log that is followed."""

AGENT = "agent"
ALIVE = ("starting", "joined", "ready", "stopping")
"""States of a node that has a process."""


class NotFound(Exception):
    """There is no such lab or node, or there are several: what to tell the user, and the exit code."""

    def __init__(self, words: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(words)
        self.code = code


# ---- ps ---------------------------------------------------------------------------------------------------


def ps(form: Format, *, everything: bool = False) -> int:
    """`argosy ps`: running labs, with `everything` ended ones as well."""
    found = labs.running_labs()
    if everything:
        found += labs.ended_labs(found)
    if form is Format.JSON:
        states = [{**lab.state, "running": lab.running} for lab in found]
        print(json.dumps({"schema": PS_SCHEMA, "labs": states}, indent=1))
        return int(ExitCode.OK)
    rows = [_row(lab, node) for lab in found for node in lab.state["nodes"]]
    hosts = [host for lab in found for host in ([""] * len(lab.state["nodes"]) if _alone(lab) else _homes(lab))]
    titles = ["lab", "node", "kind", "state", "pid", "on", "domain", "for", "restarts", "detail"]
    numbers = [False, False, False, False, True, False, True, True, True, False]
    if any(not _alone(lab) for lab in found):
        titles, numbers = [*titles[:2], "host", *titles[2:]], [*numbers[:2], False, *numbers[2:]]
        rows = [[*row[:2], host, *row[2:]] for row, host in zip(rows, hosts, strict=True)]
        rows += [_host_row(lab, host) for lab in found for host in lab.state.get("hosts", ())]
    print_table(titles, rows, numbers, sys.stdout)
    return int(ExitCode.OK)


def _alone(lab: Lab) -> bool:
    """Whether all of the lab runs here."""
    return not lab.state.get("hosts")


def _homes(lab: Lab) -> list[str]:
    return [node.get("host") or "" for node in lab.state["nodes"]]


def _host_row(lab: Lab, host: dict[str, Any]) -> list[str]:
    """A host other than the leader's, as its agent is known there."""
    alive = lab.running and host["state"] not in ("lost", "left")
    detail = host["detail"] or ""
    if alive and host["silent"] is not None:
        detail = f"not heard for {host['silent']:.0f} s"
    state = host["state"] if lab.running or "outcome" in lab.state else "lost"
    pid = str(host["pid"] or "") if alive else ""
    return [lab.name, host["name"], host["name"], "host", state, pid, host["address"] or "", "", "", "", detail]


def _row(lab: Lab, node: dict[str, Any]) -> list[str]:
    alive = lab.running and node["state"] in ALIVE
    state, detail = node["state"], node["detail"]
    if alive and node["silent"] is not None:
        state, detail = "unresponsive", f"not heard for {node['silent']:.0f} s"
    elif not lab.running and "outcome" not in lab.state:
        state = "lost"  # the agent was killed, and its nodes with it
    if node.get("lost"):
        state, detail = "lost", f"with host {node['host']}: {detail}"
    if node["signal"] is not None and not detail:
        detail = f"killed by {signal_name(node['signal'])}"
    elif node["exit"] is not None and not detail:
        detail = f"exit code {node['exit']}"
    if alive and node.get("restarts"):
        epoch = f"epoch {lab.state['epoch']}; " if node["kind"] == "broker" else ""
        detail = f"{detail + '; ' if detail else ''}{epoch}before it {node['last_error']}"
    age = _age(time.time() - node["since"]) if node["since"] and lab.running else ""
    return [
        lab.name,
        node["name"],
        node["kind"],
        state,
        str(node["pid"]) if alive else "",
        node["hypervisor"] or "",
        "" if node["domid"] is None else str(node["domid"]),
        age,
        str(node.get("restarts") or ""),
        detail,
    ]


def _age(seconds: float) -> str:
    """How long, in the unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


# ---- down -------------------------------------------------------------------------------------------------


def down(name: str | None, form: Format, *, everything: bool = False) -> int:
    """`argosy down`: take labs down and wait until nothing of them is left."""
    running = labs.running_labs(parts=labs.is_part(name))
    if everything:
        chosen = running
        leftovers = labs.remove_leftovers()
    else:
        chosen, leftovers = _choose(name, running), []
    results = [_take_down(lab) for lab in chosen]
    if form is Format.JSON:
        records = [{"lab": lab.name, "down": done} for lab, done in zip(chosen, results, strict=True)]
        print(json.dumps({"schema": DOWN_SCHEMA, "labs": records, "removed": [str(path) for path in leftovers]}))
    else:
        for lab, done in zip(chosen, results, strict=True):
            print(f"{lab.name} is down" if done else f"{lab.name}: its agent does not go")
        for path in leftovers:
            print(f"removed {path}, whose agent was gone")
    if not chosen and not leftovers:
        print("argosy: nothing runs", file=sys.stderr)
        return int(ExitCode.NOTHING_TO_DO)
    return int(ExitCode.OK if all(results) else ExitCode.INFRASTRUCTURE)


def _choose(name: str | None, running: list[Lab]) -> list[Lab]:
    names = ", ".join(lab.name for lab in running)
    if name is None:
        # A part of somebody else's lab is taken down here only when it is named.
        whole = [lab for lab in running if "part_of" not in lab.state] or running
        if len(whole) > 1:
            raise NotFound(f"several labs run: name one of {names}, or --all")
        return whole
    chosen = [lab for lab in running if lab.name == name]
    if not chosen:
        words = f"no lab {name!r} runs" + (f" [running: {names}]" if names else "")
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    return chosen


def _take_down(lab: Lab) -> bool:
    """Ask the lab's agent for the end and wait until its process is gone."""
    assert lab.control is not None
    pid = lab.state["agent"]["pid"]
    with contextlib.suppress(ProcessLookupError):
        agent = os.pidfd_open(pid)
        try:
            with contextlib.suppress(OSError):
                ask(lab.control, "down", lambda _record: None, DOWN_WITHIN)
            return bool(select.select([agent], [], [], DOWN_WITHIN)[0])
        finally:
            os.close(agent)
    return True


# ---- gc ---------------------------------------------------------------------------------------------------


def gc(form: Format) -> int:
    """`argosy gc`: remove what killed agents left behind; what lives, or is not ours, is left alone."""
    removed = labs.remove_leftovers()
    if form is Format.JSON:
        print(json.dumps({"schema": GC_SCHEMA, "removed": [str(path) for path in removed]}))
    else:
        for path in removed:
            print(f"removed {path}, whose agent was gone")
    if not removed:
        print("argosy: nothing is left behind", file=sys.stderr)
        return int(ExitCode.NOTHING_TO_DO)
    return int(ExitCode.OK)


# ---- logs -------------------------------------------------------------------------------------------------


def logs(node: str, lab: str | None, run_dir: str | None, *, follow: bool = False) -> int:
    """`argosy logs`: a node's log, with `follow` until its lab is down."""
    path, name = _find_log(node, lab, run_dir)
    file = _open_log(path, name, follow)
    with file:
        while True:
            _copy(file)
            if not follow:
                return int(ExitCode.OK)
            if not runlock.read_holder(path).pid:
                _copy(file)  # what it wrote between the look before and its end
                return int(ExitCode.OK)
            time.sleep(LOOK_EVERY)


def _open_log(path: Path, node: str, follow: bool) -> IO[bytes]:
    log = path / rundir.AGENT_LOG if node == AGENT else path / rundir.NODES / node / LOG
    while True:
        try:
            return open(log, "rb")
        except FileNotFoundError:
            if not follow or not runlock.read_holder(path).pid:
                raise NotFound(f"{node} has written no log: {log}", ExitCode.NOTHING_TO_DO) from None
        time.sleep(LOOK_EVERY)


def _copy(file: IO[bytes]) -> None:
    while data := file.read(65536):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _find_log(node: str, lab: str | None, run_dir: str | None) -> tuple[Path, str]:
    """The run directory in which `node` has its log."""
    if run_dir is not None:
        path = basedir.run_path("", run_dir)
        state = rundir.read_state(path)
        if state is None:
            raise NotFound(f"{path} is no lab's run directory")
        found = [Lab(state["lab"], path, state, None)]
    else:
        found = labs.running_labs(parts=labs.is_part(lab))
        found += labs.ended_labs(found)
    if lab is not None:
        found = [one for one in found if one.name == lab]
        if not found:
            raise NotFound(f"nothing is recorded of a lab {lab!r}", ExitCode.NOTHING_TO_DO)
    chosen = [one for one in found if node == AGENT or node in _names(one)]
    # A running lab is meant rather than one that ended.
    chosen = [one for one in chosen if one.running] or chosen
    if not chosen:
        names = sorted({name for one in found for name in _names(one)})
        raise NotFound(f"no lab has a node {node!r}" + (f" [nodes: {', '.join(names)}]" if names else ""))
    if len(chosen) > 1:
        which = ", ".join(one.name for one in chosen)
        raise NotFound(f"several labs have a node {node!r}: say which with --name [labs: {which}]")
    return chosen[0].run_dir, node


def _names(lab: Lab) -> list[str]:
    return [node["name"] for node in lab.state["nodes"]]
