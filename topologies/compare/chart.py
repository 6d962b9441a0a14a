"""The comparison as a picture: for each work, what every way counts per request; SVG or PNG by the file's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from topologies.compare.costs import Costs
from topologies.compare.figures import Figures
from topologies.compare.render import Line
from topologies.exitcodes import ExitCode

FORMATS: Final = (".svg", ".png")


class ChartError(Exception):
    """No picture: the message says why, and what to do."""

    code = ExitCode.USAGE


def check(path: str) -> None:
    """Refuse early what cannot be drawn.  Raises ChartError."""
    if Path(path).suffix not in FORMATS:
        raise ChartError(f"--chart: {path}: the name must end with {' or '.join(FORMATS)}")
    folder = Path(path).parent
    if not folder.is_dir():
        raise ChartError(f"--chart: {path}: there is no directory {folder}: make it first")
    if Path(path).is_dir():
        raise ChartError(f"--chart: {path}: is a directory: name a file in it")
    try:
        import matplotlib  # noqa: F401  (looked for before minutes of counting)
    except ImportError:
        raise ChartError("--chart needs matplotlib: pip install 'argosy[chart]'") from None


_PANELS: Final[tuple[tuple[str, Callable[[Figures], float]], ...]] = (
    ("exits", lambda figures: float(figures.exits_l0 + figures.exits_l1 + figures.exits_l2)),
    ("bytes copied", lambda figures: float(figures.copied_by_hypervisor + figures.copied_by_back_end)),
    ("pages mapped and unmapped", lambda figures: float(figures.pages_mapped + figures.pages_unmapped)),
    ("round trips", lambda figures: float(figures.round_trips)),
)


def panels(costs: Costs | None) -> Iterator[tuple[str, Callable[[Figures], float]]]:
    """The titles of the panels, and what each shows."""
    yield from _PANELS
    if costs is not None:
        yield f"projected us ({costs.name})", costs.microseconds_of


def draw(lines: Sequence[Line], path: str, costs: Costs | None = None) -> None:
    """Draw the cells that have figures into `path`.  Raises ChartError."""
    check(path)
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    found = [(line.cell.name, line.figures) for line in lines if line.figures is not None]
    if not found:
        raise ChartError("--chart: no cell has figures")
    shown = list(panels(costs))
    figure = Figure(figsize=(4 * len(shown) + 4, 0.22 * len(found) + 1.5), layout="constrained")
    FigureCanvasSVG(figure)
    every = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    names = [name for name, _ in found]
    for axis, (title, value) in zip(every, shown, strict=True):
        axis.barh(names, [value(figures) for _, figures in found], color="tab:blue")
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.margins(y=0.01)
    every[0].invert_yaxis()
    # Without a date the same figures give the same file.
    metadata = {"Date": None} if path.endswith(".svg") else {}
    try:
        figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise ChartError(f"--chart: {path}: cannot be written: {error.strerror}") from None
