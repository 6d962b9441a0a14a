"""`argosy exec`: a command of this host in the place of a node of a running lab."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from topologies import labs, rundir
from topologies.commands.lifecycle import ALIVE, NotFound
from topologies.exitcodes import ExitCode
from topologies.facts import environment
from topologies.labs import Lab

CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127
"""What shells answer for a command."""

IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def exec(node: str, command: Sequence[str], lab: str | None) -> int:
    """`argosy exec`: returns only when the command cannot be run; else this process is the command's from here on."""
    found, record = _choose(node, lab)
    directory = found.run_dir / rundir.NODES / node
    told = environment(found.state, {**record, "directory": directory}, os.environ)
    words = list(command[1:] if command[:1] == ["--"] else command)
    if not words:
        raise NotFound("there is no command to run: argosy exec NODE -- COMMAND...")
    far = [host for host in found.state.get("hosts", ()) if host["name"] == record.get("host")]
    if far:
        return _exec_there(found, far[0], node, words)
    try:
        os.chdir(directory)
    except OSError as error:
        raise NotFound(f"{directory}: {error.strerror}", ExitCode.INFRASTRUCTURE) from None
    return _become(words, told)


def _exec_there(lab: Lab, host: dict[str, Any], node: str, words: list[str]) -> int:
    """The same on the node's own host, through the connection that the lab has to it."""
    from topologies.hosts.names import part_name
    from topologies.hosts.provider import HostSpec, provider_of

    provider = provider_of(HostSpec(**host["spec"]), Path(lab.state["sockets"]))
    there = ["-P", "-m", "topologies.cli", "exec", "--lab", part_name(lab.name, host["name"]), node, "--", *words]
    terminal = os.isatty(0) and os.isatty(1)
    return _become(provider.command(there, terminal=terminal), dict(os.environ))


def _become(words: list[str], told: dict[str, str]) -> int:
    sys.stdout.flush()
    for number in IGNORED_BY_PYTHON:  # which a program that is started would inherit
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, told)
    except (FileNotFoundError, NotADirectoryError):
        print(f"argosy: {words[0]}: command not found", file=sys.stderr)
        return NOT_FOUND
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(f"argosy: {words[0]} cannot be run: {why}", file=sys.stderr)
        return CANNOT_RUN


def _choose(node: str, name: str | None) -> tuple[Lab, dict[str, Any]]:
    """The running lab that is meant, and what it says of `node`."""
    running = labs.running_labs(parts=labs.is_part(name))
    names = ", ".join(lab.name for lab in running)
    if name is not None and name not in (lab.name for lab in running):
        words = f"no lab {name!r} runs" + (f" [running: {names}]" if names else "")
        raise NotFound(words, ExitCode.NOTHING_TO_DO)
    if not running:
        raise NotFound("no lab runs", ExitCode.NOTHING_TO_DO)
    meant = [lab for lab in running if name in (None, lab.name)]
    found = [(lab, record) for lab in meant for record in lab.state["nodes"] if record["name"] == node]
    if not found:
        nodes = ", ".join(sorted({record["name"] for lab in meant for record in lab.state["nodes"]}))
        raise NotFound(f"no running lab has a node {node!r} [nodes: {nodes}]")
    if len(found) > 1:
        which = ", ".join(lab.name for lab, _ in found)
        raise NotFound(f"several labs have a node {node!r}: say which with --lab [labs: {which}]")
    lab, record = found[0]
    if record["state"] not in ALIVE:
        raise NotFound(f"{node} of {lab.name} does not run: it is {record['state']}", ExitCode.NOTHING_TO_DO)
    return lab, record
