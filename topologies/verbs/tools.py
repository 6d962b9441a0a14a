"""The verbs that need no lab: what can be said of a file, of this machine, of the code.

What a verb does is imported when it is called.
"""

from __future__ import annotations

from typing import Annotated

import typer

from topologies.formats import CompareFormat, Format
from topologies.verbs.base import FormatOption, app, finish


@app.command()
def services(format: FormatOption = Format.TABLE) -> None:
    """Print the well-known Argo ports, and uXen's beside them."""

    def act() -> int:
        from topologies.commands import services as command

        return command.services(format)

    finish(act)


@app.command()
def doctor(format: FormatOption = Format.TABLE) -> None:
    """Say what this machine can run, and what to do where it cannot.  Exit code 4 when something is missing."""

    def act() -> int:
        from topologies.commands import doctor as command

        return command.doctor(format)

    finish(act)


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Topologies; - is standard input.")],
    format: FormatOption = Format.TABLE,
) -> None:
    """Check topologies and print every error there is."""

    def act() -> int:
        from topologies.commands import validate as command

        return command.validate(files, format.value)

    finish(act)


@app.command()
def schema(format: FormatOption = Format.JSON) -> None:
    """Print the JSON Schema of a topology, or its keys as a table."""

    def act() -> int:
        from topologies.commands import validate as command

        return command.schema(format.value)

    finish(act)


@app.command()
def conform(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Golden traces of Argo calls.")],
) -> None:
    """Replay golden Argo traces against the hypervisor's core; prints `N ops, M mismatches`."""

    def act() -> int:
        from hv_node.conform import main as conform_main

        return conform_main(traces)

    finish(act)


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

    finish(act)


@app.command()
def compare(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="WORDS", help="Cells whose names hold these words, set apart by commas."),
    ] = None,
    costs: Annotated[
        str | None, typer.Option("--costs", metavar="FILE", help="Project time by this cost file, or one that ships.")
    ] = None,
    chart: Annotated[str | None, typer.Option("--chart", metavar="FILE", help="Draw it too: .svg or .png.")] = None,
    format: Annotated[CompareFormat, typer.Option("--format", help="How to print.")] = CompareFormat.TABLE,
) -> None:
    """Compare designs by what a request costs: exits, hypercalls, copies, interrupts.  Counted, never timed."""

    def act() -> int:
        from topologies.commands import compare as command

        return command.compare(format, only or (), costs, chart)

    finish(act)


@app.command()
def version(format: FormatOption = Format.TABLE) -> None:
    """Print the version."""

    def act() -> int:
        from topologies.commands import version as command

        return command.version(format.value)

    finish(act)
