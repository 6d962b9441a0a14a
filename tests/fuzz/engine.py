"""Two ways to make inputs for a target.

`random`: mutations of the committed corpus (splice, flip, truncate, repeat, interesting integers); a seed gives the
same inputs on every machine.  `atheris`: libFuzzer guided by the coverage of our packages, where atheris is installed
(`pip install argosy[fuzz]`); what it learns is kept in build/fuzz/TARGET, never in the committed corpus.

Either counts operations, not only inputs: what one operation is, each target says.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from tests.fuzz.targets import Target, load, target_named

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = Path(__file__).parent / "corpus"
BUILD: Final = ROOT / "build" / "fuzz"
MAX_INPUT: Final = 4096

_INTERESTING: Final = tuple(
    (value & (1 << 8 * size) - 1).to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (
        0, 1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 4095, 4096, 4097, 65535, 65536, 0x7FF4, 0x7FF0, 1 << 24, 1 << 31,
        (1 << 31) - 1, (1 << 32) - 16, 1 << 63, -1, -2, -16, -64,
    )
    for order in ("little", "big")
)  # fmt: skip


class Failure(Exception):
    """A target's property does not hold for `data`, which lies in `path`."""

    def __init__(self, target: str, data: bytes, path: Path, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error}\ninput of {len(data)} bytes: {path}")
        self.target = target
        self.data = data
        self.path = path


class Ran(NamedTuple):
    """What a run did."""

    inputs: int
    operations: int
    seconds: float


def corpus(name: str) -> list[bytes]:
    """The committed inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def file_name(data: bytes) -> str:
    """Under which name an input is kept: equal inputs are one file."""
    return hashlib.sha256(data).hexdigest()[:16]


def mutated(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Endless inputs: the same for the same corpus and seed."""
    # random.Random's own methods are made for fairness; a fuzzer wants them quick.
    bits = random.Random(seed).getrandbits
    count = len(seeds)
    while True:
        data = bytearray(seeds[bits(24) % count])
        for _ in range(1 + (bits(8) & 3)):
            size = len(data)
            if not size:
                data += bits(64).to_bytes(8, "little")
                continue
            at = bits(20) % size
            match bits(8) % 9:
                case 0:
                    data[at] ^= 1 << (bits(8) & 7)
                case 1:
                    data[at] = bits(8)
                case 2:
                    piece = _INTERESTING[bits(16) % len(_INTERESTING)]
                    data[at : at + len(piece)] = piece
                case 3:
                    del data[at:]
                case 4:
                    del data[at : at + 1 + (bits(8) & 15)]
                case 5:
                    other = seeds[bits(24) % count]
                    data[at:] = other[bits(20) % (len(other) or 1) :]
                case 6:
                    data[at:at] = data[at : at + 1 + (bits(8) & 31)]
                case 7:
                    size = 1 + (bits(8) & 31)
                    data[at:at] = bits(8 * size).to_bytes(size, "little")
                case _:
                    data[at] = (data[at] + (bits(8) & 31) - 16) & 255
        yield bytes(data[:MAX_INPUT])


def keep(name: str, data: bytes) -> Path:
    """Write an input that failed where it is found again."""
    directory = BUILD / "failures" / name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(data)
    path.write_bytes(data)
    return path


def run_one(target: Target, data: bytes) -> int:
    """The operations of one input.  Failure when the property does not hold."""
    loaded = load(target)
    before = loaded.operations()
    try:
        loaded.one_input(data)
    except Exception as error:
        raise Failure(target.name, data, keep(target.name, data), error) from error
    return loaded.operations() - before


def run_random(
    name: str, *, seed: int = 0, operations: int | None = None, inputs: int | None = None, seconds: float | None = None
) -> Ran:
    """The corpus, then mutations of it, until one of the bounds is reached.  Raises Failure."""
    target = target_named(name)
    loaded = load(target)
    one_input, count = loaded.one_input, loaded.operations
    seeds = corpus(name)
    begin, done, ran = count(), 0, 0
    start = time.monotonic()
    stream = mutated(seeds, seed)
    for data in seeds:
        run_one(target, data)
        ran += 1
    joined = target.joined
    while inputs is None or ran < inputs:
        data = next(stream) if joined == 1 else b"".join(islice(stream, joined))
        try:
            one_input(data)
        except Exception as error:
            raise Failure(name, data, keep(name, data), error) from error
        ran += 1
        if not ran & 15:
            done = count() - begin
            if operations is not None and done >= operations:
                break
            if seconds is not None and time.monotonic() - start >= seconds:
                break
    return Ran(ran, count() - begin, time.monotonic() - start)


def have_atheris() -> bool:
    """Whether the coverage-guided engine can run here."""
    return find_spec("atheris") is not None


def run_atheris(name: str, *, inputs: int | None, seconds: float | None, seed: int = 0) -> int:
    """One target under libFuzzer, in a process of its own.  Returns its exit code."""
    learned = BUILD / "learned" / name
    failures = BUILD / "failures" / name
    learned.mkdir(parents=True, exist_ok=True)
    failures.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_len={MAX_INPUT}", f"-artifact_prefix={failures}/", f"-seed={seed + 1}", "-timeout=20",
        "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1",
    ]  # fmt: skip
    if inputs is not None:
        options.append(f"-runs={inputs}")
    if seconds is not None:
        options.append(f"-max_total_time={max(1, int(seconds))}")
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *options, str(learned), str(CORPUS / name)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
