"""`python -m tests.fuzz TARGET|all [--inputs N] [--operations N] [--seconds S] [--seed N] [--engine ENGINE]`.

ENGINE is `random`, `atheris` or, unless told otherwise, both where both can run.
Bounds hold for each target and engine.  `--replay FILE` runs one input; `--corpus` writes the committed corpus anew.
Exit code: 0 nothing found, 1 a property does not hold (the input is kept in build/fuzz/failures/TARGET), 2 usage.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.engine import Failure, have_atheris, run_atheris, run_one, run_random
from tests.fuzz.targets import TARGETS, target_named


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*(target.name for target in TARGETS), "all"])
    parser.add_argument("--inputs", type=int, help="inputs for each target and engine")
    parser.add_argument("--operations", type=int, help="what the target counts, with the random engine")
    parser.add_argument("--seconds", type=float, help="seconds for each target and engine")
    parser.add_argument("--engine", choices=["atheris", "random", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this one input")
    parser.add_argument("--corpus", action="store_true", help="write the committed corpus from valid messages")
    return parser.parse_args(argv)


def fuzz(name: str, options: argparse.Namespace) -> bool:
    """Run one target; False when something was found."""
    inputs, seconds = options.inputs, options.seconds
    if inputs is None and seconds is None and options.operations is None:
        seconds = 3.0
    counts = target_named(name).counts
    good = True
    if options.engine in ("random", "both"):
        try:
            ran = run_random(name, seed=options.seed, operations=options.operations, inputs=inputs, seconds=seconds)
            print(f"{name}: random: {ran.inputs} inputs, {ran.operations} {counts}, {ran.seconds:.1f} s", flush=True)
        except Failure as failure:
            traceback.print_exception(failure)
            good = False
    if options.engine == "atheris" or (options.engine == "both" and have_atheris()):
        start = time.monotonic()
        code = run_atheris(name, inputs=inputs, seconds=seconds, seed=options.seed)
        print(f"{name}: atheris: exit code {code}, {time.monotonic() - start:.1f} s", flush=True)
        good = good and code == 0
    return good


def main(argv: list[str]) -> int:
    """Run what the command line says."""
    options = arguments(argv)
    names = [target.name for target in TARGETS] if options.target == "all" else [options.target]
    if options.corpus:
        from tests.fuzz.seeds import write

        for name in names:
            print(f"{name}: {write(name)} inputs")
        return 0
    if options.replay is not None:
        if len(names) != 1:
            print("--replay needs one target", file=sys.stderr)
            return 2
        print(f"{run_one(target_named(names[0]), options.replay.read_bytes())} operations")
        return 0
    if options.engine != "random" and not have_atheris():
        print("atheris is not installed (pip install 'argosy[fuzz]')", file=sys.stderr)
        if options.engine == "atheris":
            return 2
    results = [fuzz(name, options) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
