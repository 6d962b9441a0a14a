"""`argosy events`: what happened to a lab's nodes, in the order of time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from topologies import labs, rundir, runlock
from topologies.agent.journal import EVENTS
from topologies.commands.lifecycle import LOOK_EVERY, NotFound
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.hosts.names import agent_name
from topologies.labs import Lab


def events(name: str | None, form: Format, *, initial_state: bool = False, follow: bool = False) -> int:
    """`argosy events`: what is recorded; with `initial_state` what is now; with `follow` what comes until the end."""
    lab = _choose(name)
    names = [node["name"] for node in lab.state["nodes"]]
    names += [agent_name(host["name"]) for host in lab.state.get("hosts", ())]
    tails = {name: Tail(name, lab.run_dir) for name in names}
    past = _read(tails)
    if initial_state:
        now = round(time.time(), 6)
        past = [{"time": now, "node": node["name"], "event": "state", "fields": node} for node in lab.state["nodes"]]
    _print(past, form)
    while follow:
        over = not runlock.lock_is_held(lab.run_dir)
        _print(_read(tails), form)
        if over:
            break
        time.sleep(LOOK_EVERY)
    return int(ExitCode.OK)


def _choose(name: str | None) -> Lab:
    running = labs.running_labs()
    found = running if name is None else [lab for lab in running + labs.ended_labs(running) if lab.name == name]
    if not found:
        words = "no lab runs: name one that ended" if name is None else f"nothing is recorded of a lab {name!r}"
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    if len(found) > 1:
        raise NotFound(f"several labs run: name one of {', '.join(lab.name for lab in found)}")
    return found[0]


class Tail:
    """The events of one node, as far as they were not read."""

    def __init__(self, node: str, run_dir: Path) -> None:
        self.node = node
        self._path = run_dir / rundir.NODES / node / EVENTS
        self._at = 0

    def read(self) -> list[dict[str, Any]]:
        """What was added; a line that is not finished waits."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._at)
                data = file.read()
        except OSError:
            return []
        lines, newline, _ = data.rpartition(b"\n")
        self._at += len(lines) + len(newline)
        found = [json.loads(line) for line in lines.splitlines()]
        return [{"time": line["time"], "node": self.node, **line} for line in found]


def _read(tails: dict[str, Tail]) -> list[dict[str, Any]]:
    found = [event for tail in tails.values() for event in tail.read()]
    return sorted(found, key=lambda event: float(event["time"]))


def _print(found: list[dict[str, Any]], form: Format) -> None:
    for event in found:
        if form is Format.JSON:
            print(json.dumps(event))
            continue
        when = time.strftime("%H:%M:%S", time.localtime(event["time"])) + f"{event['time'] % 1:.3f}"[1:]
        fields = event["fields"]
        words = fields["state"] if event["event"] == "state" else " ".join(str(field) for field in fields)
        print(f"{when} {event['node']} {event['event']} {words}".rstrip())
    sys.stdout.flush()
