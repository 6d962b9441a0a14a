"""The project speaks of itself alone: no path of a machine that it was written on, no talk of how."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.source import ROOT, text_files

# Put together from parts, so that this file does not hold what it forbids.
HOMES = tuple("/".join(("", *parts, "")) for parts in (("root",), ("work",), ("tmp", "argosy")))
OUTSIDE = tuple("/".join(("shared", part)) for part in ("design", "reference", "vectors"))

CHATTER = (
    r"\b(this|the (last|previous)|an earlier) coding session\b",
    r"\bas (you )?(requested|instructed|asked for) (above|in the)\b",
    r"\bworking notes for\b",
    r"\b(my|your) instructions\b",
    r"\bfile was (written|generated) by an? (assistant|model|bot)\b",
)


def machine_paths(root: Path) -> tuple[str, ...]:
    """Prefixes that only the machine holding `root` would know: where the tree lies and its user's home."""
    own = tuple(f"{path}/" for path in (root, Path.home()) if len(path.parts) > 2)
    return HOMES + own


def findings(text: str, paths: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Lines of `text` that name a forbidden path or talk of how the text came about."""
    for number, line in enumerate(text.splitlines(), 1):
        for path in paths:
            # A path begins where no other goes on: /usr/local/ is not /local/.
            if re.search(rf"(?<![\w.~/-]){re.escape(path)}", line):
                yield number, path
        for path in OUTSIDE:
            if path in line:
                yield number, path
        for pattern in CHATTER:
            if re.search(pattern, line, re.IGNORECASE):
                yield number, pattern


def test_no_file_names_a_machine() -> None:
    """Every text file of the project, documents and tests included."""
    paths = machine_paths(ROOT)
    files = list(text_files())
    assert len(files) > 5
    wrong = [f"{path}:{line}: {what}" for path, text in files for line, what in findings(text, paths)]
    assert wrong == []


@pytest.mark.parametrize("path", [*HOMES, "/srv/ci/argosy/"])
def test_a_path_is_found(path: str) -> None:
    """What the test above relies on."""
    paths = machine_paths(Path("/srv/ci/argosy"))
    assert list(findings(f"see {path}main/README.md", paths))
    assert list(findings(f'open("{path}x")', paths))
    assert not list(findings(f"see /usr{path}x", paths))


def test_chatter_is_found() -> None:
    """What the first test relies on."""
    assert list(findings("as was done in the " + "previous coding session", ()))
    assert not list(findings("the session id of setsid(2)", ()))
