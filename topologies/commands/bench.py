"""`argosy bench`: performance against peers, side by side in one run, as ratios."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from topologies.bench.rows import ROW_OF, ROWS, Row
from topologies.exitcodes import ExitCode
from topologies.formats import Format

_DETAILS: Final = ("p99", "frames", "doorbells", "interrupts", "eagain", "ring", "window", "uplink_frames",
                   "records_per_frame")  # fmt: skip


class NoSuchRow(Exception):
    """`--only` names nothing."""

    code = ExitCode.USAGE


def chosen(only: Sequence[str]) -> list[Row]:
    """The rows that `--only` names, in the order of the table; all without it.  Raises NoSuchRow."""
    names = [name.strip() for words in only for name in words.split(",") if name.strip()]
    for name in names:
        if name not in ROW_OF:
            close = difflib.get_close_matches(name, ROW_OF, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise NoSuchRow(f"--only: there is no row {name!r}.{meant} [valid: {', '.join(ROW_OF)}]")
    return [row for row in ROWS if not names or row.name in names]


def bench(format: Format, only: Sequence[str], against: str | None, rounds: int, scale: float) -> int:
    """Measure and print.  1 when a row failed to prove itself, or fell behind the other revision."""
    rows = chosen(only)
    if against is None:
        from topologies.bench.run import Bench

        report = Bench(rows, rounds, scale, _progress).run()
    else:
        from topologies.bench.against import compare

        report = compare(rows, against, rounds, scale, _progress)
    if format is Format.JSON:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        for line in table(report):
            print(line)
    bad = report.get("fallen") or [row["name"] for row in report["rows"] if row["value"] is None]
    return int(ExitCode.CHECK_FAILED if bad else ExitCode.OK)


def _progress(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr, flush=True)


def table(report: Mapping[str, Any]) -> list[str]:
    """The report for a person: one line a row, one below it for each peer."""
    machine = report["machine"]
    load = ", ".join(f"{load:g}" for load in machine["load"])
    where = f"{machine['cpus']} CPUs, load {load}, Python {machine['python']}"
    lines = [f"{where}, medians of {report['rounds']} rounds", ""]
    for row in report["rows"]:
        if row["value"] is None:
            lines += [f"{row['name']:<22} no figure: {'; '.join(row['failures'])}", ""]
            continue
        detail = [f"{name} {_number(row[name])}" for name in _DETAILS if name in row]
        lines.append(f"{row['name']:<22}{_number(row['value']):>12} {row['unit']:<7} {', '.join(detail)}")
        for name, value in row.get("cpu_us", {}).items():
            lines.append(f"    CPU of {name:<11}{_number(value):>12} us/msg")
        for name in ("unique_mib", "memfd_mib"):
            if name in row:
                lines.append(f"    {name:<18}{_number(row[name]):>12} MiB")
        for name, ratio in row["ratios"].items():
            lines.append(f"    {name:<18}{_number(row['peers'][name]):>12} {row['unit']:<7} ratio {ratio:.3g}")
        for name, why in row.get("absent", {}).items():
            lines.append(f"    {name:<18}{'-':>12} {why}")
        if "speed" in row:
            lines.append(f"    {'as fast' if row['not_fallen'] else 'FALLEN'}: speed ratio {row['speed']:.3g}")
        lines.append("")
    return lines


def _number(value: float) -> str:
    """Three digits that count, thousands set apart."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
