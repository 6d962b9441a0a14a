"""The verbs of the `argosy` command and their flags.  What a verb does is imported when it is called.

Every flag has an environment variable, ``ARGOSY_<VERB>_<FLAG>``.  What was asked for goes to standard
output, progress and complaints to standard error.  Exit codes are those of :mod:`topologies.exitcodes`; no
Python traceback reaches a user: that of an internal error is kept in a file, and the command says where.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from topologies.cli import PROGRAM
from topologies.exitcodes import EXIT_CODES, ExitCode
from topologies.facts import FACTS
from topologies.formats import Format, silence


class RuntimeName(StrEnum):
    """What runs the nodes."""

    PROCESSES = "processes"
    INLINE = "inline"


_FACTS = "\n".join(f"  {fact.variable:<18}  {fact.meaning}" for fact in FACTS)
_CODES = "\n".join(f"  {row.code:>3}  {row.meaning}" for row in EXIT_CODES)

app = typer.Typer(
    name=PROGRAM,
    help=f"Runs labs of hypervisors and guests that exchange data over Argo.\n\n\b\nExit codes:\n{_CODES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ARGOSY"},
)

File = Annotated[str, typer.Argument(metavar="FILE", help="Topology (YAML); - is standard input.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the lab, instead of the topology's.")]
RunDirOption = Annotated[str | None, typer.Option("--run-dir", help="Where the lab keeps its files.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything that is left to chance.")]
TimeoutOption = Annotated[
    str | None, typer.Option("--timeout", help="Give up after this time, for instance 30s.", metavar="DURATION")
]


class Complaint(Exception):
    """A mistake of the user's: what to say, and the exit code."""

    def __init__(self, words: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(words)
        self.code = code


# ---- verbs ------------------------------------------------------------------------------------------------


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

        options = launch.Options(file, name, run_dir, seed, _duration(timeout), format)
        return launch.run(options, str(runtime))

    _finish(act)


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

        options = launch.Options(file, name, run_dir, seed, _duration(timeout), format)
        return launch.dry_run(options) if dry_run else launch.up(options, detach=detach)

    _finish(act)


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

    _finish(act)


@app.command()
def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Labs that ended as well.")] = False,
    format: FormatOption = Format.TABLE,
) -> None:
    """List the nodes of running labs."""

    def act() -> int:
        from topologies.commands import lifecycle

        return lifecycle.ps(format, everything=all)

    _finish(act)


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

    _finish(act)


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

    _finish(act)


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

    _finish(act)


@app.command()
def gc(format: FormatOption = Format.TABLE) -> None:
    """Remove what killed labs left behind: sockets, locks, links.  Logs and results stay."""

    def act() -> int:
        from topologies.commands import lifecycle

        return lifecycle.gc(format)

    _finish(act)


@app.command()
def services(format: FormatOption = Format.TABLE) -> None:
    """Print the well-known Argo ports, and uXen's beside them."""

    def act() -> int:
        from topologies.commands import services as command

        return command.services(format)

    _finish(act)


@app.command()
def doctor(format: FormatOption = Format.TABLE) -> None:
    """Say what this machine can run, and what to do where it cannot.  Exit code 4 when something is missing."""

    def act() -> int:
        from topologies.commands import doctor as command

        return command.doctor(format)

    _finish(act)


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

    _finish(act)


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

    _finish(act)


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Topologies; - is standard input.")],
    format: FormatOption = Format.TABLE,
) -> None:
    """Check topologies and print every error there is."""

    def act() -> int:
        from topologies.commands import validate as command

        return command.validate(files, format.value)

    _finish(act)


@app.command()
def schema(format: FormatOption = Format.JSON) -> None:
    """Print the JSON Schema of a topology, or its keys as a table."""

    def act() -> int:
        from topologies.commands import validate as command

        return command.schema(format.value)

    _finish(act)


@app.command()
def conform(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Golden traces of Argo calls.")],
) -> None:
    """Replay golden Argo traces against the hypervisor's core; prints `N ops, M mismatches`."""

    def act() -> int:
        from hv_node.conform import main as conform_main

        return conform_main(traces)

    _finish(act)


@app.command()
def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Rows to measure; repeat it, or separate names by commas.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="REV", help="Measure this git revision beside this tree instead.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds, of which medians are taken.")] = 5,
    scale: Annotated[float, typer.Option("--scale", min=0.001, help="Shorten or lengthen each round.")] = 1.0,
    format: FormatOption = Format.TABLE,
) -> None:
    """Measure Argo next to peers in one run, as ratios.  Every row proves itself or has no figure."""

    def act() -> int:
        from topologies.commands import bench as command

        return command.bench(format, only or (), against, rounds, scale)

    _finish(act)


@app.command()
def version(format: FormatOption = Format.TABLE) -> None:
    """Print the version."""

    def act() -> int:
        from topologies.commands import version as command

        return command.version(format.value)

    _finish(act)


# ---- exit codes -------------------------------------------------------------------------------------------


def _duration(text: str | None) -> int | None:
    """Nanoseconds of a flag's value."""
    if text is None:
        return None
    from topologies.units import UnitError, parse_duration

    try:
        duration = parse_duration(text)
    except UnitError as error:
        raise Complaint(f"--timeout: {error.message} ({error.hint})") from None
    if not duration:
        raise Complaint("--timeout: a deadline of 0s has always passed")
    return duration


def _finish(act: Callable[[], int]) -> NoReturn:
    """Carry a verb out and leave with its exit code."""
    try:
        code = act()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _complain("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        silence(sys.stdout)  # whoever read it has enough
        code = int(ExitCode.OK)
    except Exception as error:
        code = _explain(error)
    raise typer.Exit(code)


def _complain(words: str, code: ExitCode) -> int:
    try:
        print(f"{PROGRAM}: {words}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        silence(sys.stderr)
    return int(code)


def _explain(error: Exception) -> int:
    """Say what went wrong, as far as it can be the user's or the machine's doing; else keep the traceback."""
    from topologies import basedir
    from topologies.diagnose import TopologyError, emit

    if isinstance(error, TopologyError):
        emit(sys.stderr, f"{error}\n")
        return int(error.exit_code)
    if isinstance(error, basedir.RunDirError):
        return _complain(str(error), ExitCode.INFRASTRUCTURE)
    code = getattr(error, "code", None)
    if isinstance(code, ExitCode):
        return _complain(str(error), code)
    kept = basedir.keep_failure(traceback.format_exc())
    words = f"internal error: {type(error).__name__}: {error}"
    return _complain(f"{words} (traceback in {kept})" if kept else words, ExitCode.DIED)


from topologies import live_verbs  # noqa: E402, F401  (its verbs are this command's too, and need what is above)
