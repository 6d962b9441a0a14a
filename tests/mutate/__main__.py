"""`python -m tests.mutate`: see the package's docstring.  Exit 0 when every survivor is explained, else 1."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from tests.mutate.campaign import Target, campaign, plan, summary
from tests.mutate.cells import Sources, TableError, mutants
from tests.mutate.runner import warm_up

HERE = Path(__file__).resolve().parent


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="targets whose name holds WORD")
    parser.add_argument("--list", action="store_true", help="print the mutants, run none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tables at once")
    parser.add_argument("--report", type=Path, help="also write the summary here")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the tree to mutate")
    parser.add_argument("--targets", type=Path, default=HERE / "targets.py", help="a file that sets TARGETS")
    return parser.parse_args(argv)


def print_mutants(root: Path, targets: list[Target]) -> int:
    """Every mutant of every target."""
    for target in targets:
        try:
            cells, words, opaque = plan(root, target)
            everything = mutants(Sources(root), target.module, target.attribute)
        except TableError as error:
            print(error)
            return 1
        print(f"{target.name}: {len(cells)} of {len(everything.cells)} cells, {words} words")
        for cell in cells:
            print(f"  {cell.line:5}  {cell.path}: {cell.old} -> {cell.new}")
        for text in opaque:
            print(f"  opaque {text}")
    return 0


def main(argv: list[str]) -> int:
    """Run the campaign that the command line asks for."""
    options = arguments(argv)
    root = options.root.resolve()
    every: tuple[Target, ...] = runpy.run_path(str(options.targets))["TARGETS"]
    targets = [target for target in every if options.only in target.name]
    if not targets:
        print(f"no target's name holds {options.only!r}", file=sys.stderr)
        return 2
    if options.list:
        return print_mutants(root, targets)
    warm_up()
    try:
        verdicts = campaign(targets, root, options.jobs, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    text = summary(verdicts)
    print(f"\n{text}")
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(f"{text}\n")
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
