"""The targets, held against reports: `make bench-check`.

Best of three: the rows of what is still unmet are measured again, up to three times, one after the other on a
machine that should do nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from topologies.bench.rows import ROW_OF, TARGETS, Bound, Row, Target
from topologies.exitcodes import ExitCode

ATTEMPTS: Final = 3

Reporter = Callable[[Sequence[Row]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and the best that was found; None when the row or the peer gave nothing."""

    target: Target
    found: float | None

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.found is not None and self.target.bound.met(self.found, self.target.wanted)


def found_in(report: Mapping[str, Any], target: Target) -> float | None:
    """What a report has for a target: the ratio to the peer, or the row's own column."""
    for row in report["rows"]:
        if row["name"] == target.row:
            value = row["ratios"].get(target.of, row.get(target.of))
            return None if value is None else float(value)
    return None


def better(bound: Bound, one: float | None, other: float | None) -> float | None:
    """The one on the better side; nothing is worse than anything."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other) if bound is Bound.AT_LEAST else min(one, other)


def judge(report: Reporter, targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """The best of up to three attempts at each target."""
    verdicts = {target: Verdict(target, None) for target in targets}
    for _ in range(ATTEMPTS):
        open_ = [target for target, verdict in verdicts.items() if not verdict.met]
        if not open_:
            break
        names = dict.fromkeys(target.row for target in open_)
        found = report([ROW_OF[name] for name in names])
        for target in open_:
            best = better(target.bound, verdicts[target].found, found_in(found, target))
            verdicts[target] = Verdict(target, best)
    return list(verdicts.values())


def words(verdict: Verdict) -> str:
    """One line for a person."""
    target = verdict.target
    found = "nothing" if verdict.found is None else f"{verdict.found:.3g}"
    what = target.row if target.of == "value" else f"{target.row} / {target.of}"
    if target.of in ("unique_mib",):
        what = f"{target.row} {target.of}"
    aim = "" if target.aim is None else f", aim {target.aim:g}"
    state = "met" if verdict.met else "NOT MET"
    return f"{state:<8} {what:<40} {found:>8}  ({target.bound} {target.wanted:g}{aim})"


def main() -> int:
    """Measure what has targets and print how it stands.  0 when all are met."""
    from topologies.bench.run import Bench

    def report(rows: Sequence[Row]) -> Mapping[str, Any]:
        return Bench(rows, progress=lambda doing: print(doing, file=sys.stderr, flush=True)).run()

    verdicts = judge(report)
    for verdict in verdicts:
        print(words(verdict))
    return int(ExitCode.OK if all(verdict.met for verdict in verdicts) else ExitCode.CHECK_FAILED)


if __name__ == "__main__":
    sys.exit(main())
