"""Finding labs: those that run, by their agents' control sockets; those that ended, by what they recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topologies import rundir, runlock, sockdir
from topologies.agent.control import ask
from topologies.hosts.names import PART

ANSWER_WITHIN = 2.0
"""Seconds that an agent may take to answer; one that is stopped answers never."""
YOUNG = 5.0
"""A socket directory without a listener is left alone for so many seconds: its agent may just be starting.
"""


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab: its state as recorded or as its agent says, and its control socket while it runs."""

    name: str
    run_dir: Path
    state: dict[str, Any]
    control: Path | None

    @property
    def running(self) -> bool:
        """Whether an agent answers for it."""
        return self.control is not None


def running_labs(*, parts: bool = False) -> list[Lab]:
    """Labs whose agent answers.  A part whose leader is on this machine too is told of there, unless all `parts` are
    asked for.
    """
    found = []
    for sockets in sockdir.socket_directories():
        control = sockets / rundir.CONTROL_SOCKET
        state = _state_of(control)
        if state is not None:
            found.append(Lab(state["lab"], Path(state["run_dir"]), state, control))
    return sorted(found if parts else _whole(found), key=lambda lab: lab.name)


def is_part(name: str | None) -> bool:
    """Whether this names a host's part of a lab rather than a lab."""
    return name is not None and PART in name


def _whole(found: list[Lab]) -> list[Lab]:
    names = {lab.name for lab in found}
    return [lab for lab in found if lab.state.get("part_of") not in names]


def _state_of(control: Path) -> dict[str, Any] | None:
    """What the agent at `control` says; what it recorded last if it is there and does not answer."""
    answers: list[dict[str, Any]] = []
    try:
        if not ask(control, "state", answers.append, ANSWER_WITHIN):
            return None
    except TimeoutError:
        path = sockdir.run_directory_of(control.parent)
        return None if path is None else rundir.read_state(path)
    except OSError:
        return None
    found = [answer for answer in answers if "lab" in answer]
    return found[0] if found else None


def ended_labs(running: list[Lab]) -> list[Lab]:
    """Labs below the base that left a record and are not among those `running`."""
    taken = {lab.run_dir for lab in running}
    found = []
    for path in rundir.recorded_labs():
        state = rundir.read_state(path)
        if path not in taken and state is not None and "lab" in state:
            found.append(Lab(state["lab"], path, state, None))
    whole = _whole([*running, *found])
    return [lab for lab in found if lab in whole]


def remove_leftovers() -> list[Path]:
    """Remove what killed agents left behind: socket directories, and the lock and link of their run directories.

    A lab's directories name each other, and its lock says whether it has an agent: what has one, or is not ours, is
    left alone.
    """
    removed = []
    runs = rundir.recorded_labs()
    for sockets in sockdir.socket_directories():
        if _abandoned(sockets):
            run = sockdir.run_directory_of(sockets)
            if run is not None and run not in runs:
                runs.append(run)
            sockdir.remove_socket_directory(sockets)
            removed.append(sockets)
    for run in runs:
        removed += rundir.release_abandoned(run)
    return removed


def _abandoned(sockets: Path) -> bool:
    """Whether the agent of a socket directory is gone."""
    try:
        if ask(sockets / rundir.CONTROL_SOCKET, "ping", lambda _answer: None, ANSWER_WITHIN):
            return False
        run = sockdir.run_directory_of(sockets)
        if run is not None:
            return not runlock.lock_is_held(run)
        return time.time() - sockets.stat().st_mtime > YOUNG
    except OSError:  # it is there and does not answer
        return False
