"""Compares the tests that were skipped with those that may be: `check_skips.py ALLOWED REPORT...`.

A report holds `node id<TAB>reason` lines.  The list of allowed skips holds `pattern | reason` lines: a shell
pattern over node ids, and why the test may be skipped.  Blank lines and lines that begin with # say nothing.
Every skip is printed; one that no pattern covers ends the program with 1, as does a report that is not there:
a suite that did not run.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple


class Skip(NamedTuple):
    """One skipped test: its node id and the reason that it gave."""

    nodeid: str
    reason: str


def read_allowed(text: str) -> dict[str, str]:
    """Patterns over node ids and why each may be skipped.  Raises ValueError for one without a reason."""
    allowed: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, bar, reason = line.partition(" | ")
        if not bar or not reason.strip():
            raise ValueError(f"line {number}: 'pattern | reason' expected, got {line!r}")
        allowed[pattern.strip()] = reason.strip()
    return allowed


def read_report(text: str) -> list[Skip]:
    """The skips that one run wrote down."""
    return [Skip(*line.partition("\t")[::2]) for line in text.splitlines() if line]


def unlisted(skips: list[Skip], allowed: dict[str, str]) -> list[Skip]:
    """The skips that no pattern covers.

    A node id may hold brackets, which a pattern would read as a set: an exact match is tried first.
    """
    return [
        skip
        for skip in skips
        if skip.nodeid not in allowed and not any(fnmatchcase(skip.nodeid, pattern) for pattern in allowed)
    ]


def main(argv: list[str]) -> int:
    """Print every skip and what is wrong; 0 if each is allowed."""
    allowed = read_allowed(Path(argv[0]).read_text())
    skips: list[Skip] = []
    missing = [name for name in argv[1:] if not Path(name).exists()]
    for name in argv[1:]:
        if name not in missing:
            skips += read_report(Path(name).read_text())
    wrong = unlisted(skips, allowed)
    print(f"skipped tests: {len(skips)}")
    for skip in skips:
        print(f"  {'NOT ALLOWED ' if skip in wrong else ''}{skip.nodeid}: {skip.reason}")
    for name in missing:
        print(f"no report {name}: its suite did not run")
    if wrong:
        print(f"{len(wrong)} skipped without a line in {argv[0]}")
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
