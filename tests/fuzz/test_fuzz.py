"""Every surface against its committed corpus and 2000 mutations of it, and the engine itself (hostile peers)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import engine
from tests.fuzz.__main__ import main
from tests.fuzz.engine import CORPUS, Failure, corpus, file_name, mutated, run_one, run_random
from tests.fuzz.seeds import MAKERS, made
from tests.fuzz.targets import TARGETS, Tally, target_named

NAMES = [target.name for target in TARGETS]
INPUTS = 2000


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_holds(name: str) -> None:
    """Each committed input, one by one: those that a defect was found with stay good."""
    assert all(run_one(target_named(name), data) >= 0 for data in corpus(name))


@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_the_corpus_hold(name: str) -> None:
    """A fixed seed: what fails once fails again, and the input is kept."""
    # A joined input is many mutations: the number of mutations is what is the same for all.
    ran = run_random(name, seed=20, inputs=len(corpus(name)) + INPUTS // target_named(name).joined)
    assert ran.operations > INPUTS / 4


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_what_its_makers_make(name: str) -> None:
    """Every seed is committed; names are those of the contents, so no input is there twice."""
    files = {path.name: path.read_bytes() for path in (CORPUS / name).iterdir()}
    assert made(name).items() <= files.items(), f"python -m tests.fuzz {name} --corpus"
    assert all(file == file_name(data) for file, data in files.items())
    assert sum(map(len, files.values())) < 64 * 1024, "small"
    assert set(MAKERS) == set(NAMES) == {path.name for path in CORPUS.iterdir()}


def test_a_seed_gives_the_same_inputs() -> None:
    """Deterministic by seed, different between seeds, bounded in size."""
    first, again, other = (list(islice(mutated([b"abc", b"defg"], seed), 500)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 300 and max(map(len, first)) <= engine.MAX_INPUT


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A target whose property fails for one byte in a thousand."""
    tally = Tally()

    def one_input(data: bytes) -> None:
        tally.count += 1
        assert b"\x7f" not in data

    monkeypatch.setattr(engine, "BUILD", tmp_path)
    monkeypatch.setattr(engine, "load", lambda _: SimpleNamespace(one_input=one_input, operations=lambda: tally.count))


@pytest.mark.usefixtures("broken")
def test_what_is_found_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 1; the input lies in a file, and running it again fails again."""
    assert main(["ring", "--engine", "random", "--inputs", "5000"]) == 1
    (path,) = (tmp_path / "failures" / "ring").iterdir()
    assert b"\x7f" in path.read_bytes()
    assert str(path) in capfd.readouterr().err
    with pytest.raises(Failure):
        main(["ring", "--replay", str(path)])


def test_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    """Says what it counted."""
    assert main(["attach", "--engine", "random", "--inputs", "500"]) == 0
    assert "attach: random: 500 inputs, 500 messages parsed" in capfd.readouterr().out
    assert main(["all", "--replay", "x"]) == 2
