"""The verbs that launch labs, look at them and end them.  What a verb does is imported when it is called."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from topologies.facts import FACTS
from topologies.formats import Format
from topologies.verbs.base import (
    Complaint,
    File,
    FormatOption,
    NameOption,
    RunDirOption,
    SeedOption,
    TimeoutOption,
    app,
    duration_of,
    finish,
)

_FACTS = "\n".join(f"  {fact.variable:<18}  {fact.meaning}" for fact in FACTS)


class RuntimeName(StrEnum):
    """What runs the nodes."""

    PROCESSES = "processes"
    INLINE = "inline"


@app.command()
def run(
    file: File,
    runtime: Annotated[RuntimeName, typer.Option("--runtime", help="What runs the nodes.")] = RuntimeName.PROCESSES,
    seed: SeedOption = 0,
    name: NameOption = None,
    run_dir: RunDirOption = None,
    timeout: TimeoutOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Launch FILE, wait until its programs end, evaluate its checks, take it down.  The exit code is the
    verdict.
    """

    def act() -> int:
        from topologies.commands import launch

        options = launch.Options(file, name, run_dir, seed, duration_of(timeout), format)
        return launch.run(options, str(runtime))

    finish(act)


@app.command()
def up(
    file: File,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the lab is ready.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; start nothing.")] = False,
    seed: SeedOption = 0,
    name: NameOption = None,
    run_dir: RunDirOption = None,
    timeout: TimeoutOption = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Launch FILE and keep it until Ctrl-C or `argosy down`.  --timeout is for coming up."""

    def act() -> int:
        from topologies.commands import launch

        options = launch.Options(file, name, run_dir, seed, duration_of(timeout), format)
        return launch.dry_run(options) if dry_run else launch.up(options, detach=detach)

    finish(act)


@app.command()
def down(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The lab; the only one, if only one runs.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Every lab, and what killed agents left behind.")] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Take a lab down and wait until nothing of it is left."""

    def act() -> int:
        from topologies.commands import lifecycle

        if all and name is not None:
            raise Complaint("--all and NAME exclude each other")
        return lifecycle.down(name, format, everything=all)

    finish(act)


@app.command()
def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Labs that ended as well.")] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """List the nodes of running labs."""

    def act() -> int:
        from topologies.commands import lifecycle

        return lifecycle.ps(format, everything=all)

    finish(act)


@app.command()
def logs(
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node, or `agent`.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the lab is down.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The lab, where several have such a node.")] = None,
    run_dir: Annotated[str | None, typer.Option("--run-dir", help="Its run directory, if it was given one.")] = None,
) -> None:
    """Print what a node has written to its standard output and error."""

    def act() -> int:
        from topologies.commands import lifecycle

        return lifecycle.logs(node, name, run_dir, follow=follow)

    finish(act)


@app.command()
def inspect(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A lab, or a node of one; all, if not given.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", "-a", help="Labs that ended as well.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="What guests found when they looked for their hypervisor, and chose.")
    ] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Print everything that is known of nodes: one record for each."""

    def act() -> int:
        from topologies.commands import inspect as command

        return command.inspect(name, format, everything=all, probe=probe)

    finish(act)


@app.command()
def events(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The lab; the only one, if only one runs.")
    ] = None,
    initial_state: Annotated[
        bool, typer.Option("--initial-state", help="Begin with each node's state instead of what happened before.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the lab is down.")] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """Print what happened to a lab's nodes: a line for each event, as JSON an object in each line."""

    def act() -> int:
        from topologies.commands import events as command

        return command.events(name, format, initial_state=initial_state, follow=follow)

    finish(act)


@app.command()
def gc(format: FormatOption = Format.TABLE) -> None:
    """Remove what killed labs left behind: sockets, locks, links.  Logs and results stay."""

    def act() -> int:
        from topologies.commands import lifecycle

        return lifecycle.gc(format)

    finish(act)


@app.command(context_settings={"allow_interspersed_args": False}, epilog=f"\b\nThe environment:\n{_FACTS}")
def exec(
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node of a running lab.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, and its arguments.")],
    lab: Annotated[str | None, typer.Option("--lab", help="The lab, where several have such a node.")] = None,
) -> None:
    """Run a command on this host in the place of a node: in its directory, with its facts in the environment.

    The command takes over standard input and output, and the exit code is its own: 126 when it cannot be run, 127 when
    it is not found, 128 + N when signal N ended it.  A node has no file system of its own, nor a shell: its program is
    the one of its topology.
    """

    def act() -> int:
        from topologies.commands import exec as command_of

        return command_of.exec(node, command, lab)

    finish(act)


@app.command()
def agent(
    attach: Annotated[
        str | None, typer.Option("--attach", metavar="LAB@HOST", help="Join the pipe to the agent that is there.")
    ] = None,
) -> None:
    """Be the agent of this host for a lab that another host leads: started by `argosy up` over ssh, not by people."""

    def act() -> int:
        from topologies.commands import agent as command

        return command.agent(attach)

    finish(act)
