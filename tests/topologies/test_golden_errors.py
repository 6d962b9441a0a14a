"""The exact words of every error a topology can have.

`tests/golden/topology-errors/NAME.yaml` holds a wrong topology, `NAME.log` what `argosy validate NAME.yaml`
prints.  After a deliberate change, ARGOSY_REWRITE_GOLDEN=1 writes the logs anew; read the difference before
committing it.
"""

from __future__ import annotations

import difflib
import io
import os
from pathlib import Path

import pytest

from topologies.commands.validate import validate

CASES = Path(__file__).resolve().parents[1] / "golden" / "topology-errors"
EMPTY = {"empty-topology", "empty-sections"}  # sound, but nothing to do


def printed(name: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of validating a case in the current directory."""
    out, err = io.StringIO(), io.StringIO()
    code = validate([f"{name}.yaml"], out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def test_every_wrong_topology_is_explained_in_the_agreed_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """topology.md: file:line:column, path, value, choices, "did you mean", hint; all errors of a file
    together.
    """
    monkeypatch.chdir(CASES)
    differences: list[str] = []
    for case in sorted(CASES.glob("*.yaml")):
        code, out, err = printed(case.stem)
        log = case.with_suffix(".log")
        if os.environ.get("ARGOSY_REWRITE_GOLDEN") == "1":
            log.write_text(err, encoding="utf-8")
        wanted = log.read_text(encoding="utf-8") if log.exists() else ""
        differences += difflib.unified_diff(
            wanted.splitlines(),
            err.splitlines(),
            f"{log.name} (wanted)",
            f"{log.name} (printed)",
            lineterm="",
        )
        assert out == "", case.name
        assert code == (3 if case.stem in EMPTY else 2), case.name
    assert not differences, "\n" + "\n".join(differences)


def test_the_corpus_is_complete() -> None:
    """At least 40 cases, each with its log, and no log without its case."""
    cases = {path.stem for path in CASES.glob("*.yaml")}
    assert len(cases) >= 40
    assert cases == {path.stem for path in CASES.glob("*.log")}


def test_no_log_shows_python() -> None:
    """No traceback, no class of pydantic or PyYAML reaches a user for a mistake of theirs."""
    for log in CASES.glob("*.log"):
        text = log.read_text(encoding="utf-8")
        for word in ("Traceback", "pydantic", "yaml.", "Error", "None", "True,"):
            assert word not in text.replace(log.stem, ""), log.name


def test_a_name_is_reported_once_where_it_is_inherited_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in `defaults` is one error, however many nodes inherit it."""
    monkeypatch.chdir(CASES)
    _, _, err = printed("defaults-wrong-once")
    assert err.count("'3MB' is no size") == 1
    assert err.count("defaults.") == 3
