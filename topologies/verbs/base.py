"""What all verbs of the `argosy` command share: the command itself, flags, and how it ends.

Every flag has an environment variable, ``ARGOSY_<VERB>_<FLAG>``.  What was asked for goes to standard
output, progress and complaints to standard error.  Exit codes are those of :mod:`topologies.exitcodes`; no
Python traceback reaches a user: that of an internal error is kept in a file, and the command says where.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from topologies.cli import PROGRAM
from topologies.exitcodes import EXIT_CODES, ExitCode
from topologies.formats import Format, silence

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


def duration_of(text: str | None) -> int | None:
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


def finish(act: Callable[[], int]) -> NoReturn:
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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "writing"  # what was opened before, or standard output, is not named
        return _complain(f"{where}: {error.strerror}: make room, then try again", ExitCode.INFRASTRUCTURE)
    kept = basedir.keep_failure(traceback.format_exc())
    words = f"internal error: {type(error).__name__}: {error}"
    return _complain(f"{words} (traceback in {kept})" if kept else words, ExitCode.DIED)
