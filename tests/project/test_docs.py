"""The documents say what is: their commands exist, their links resolve, their version is the project's."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.render import fill
from tests.project.source import ROOT, tracked_files
from topologies.exitcodes import EXIT_CODES
from topologies.verbs import app

README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


SHARED_OPTIONS = (ROOT / "topologies" / "verbs" / "base.py").read_text()


def documents() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def code(text: str) -> Iterator[str]:
    """Every line of fenced code and every inline code of a document."""
    for _, body in FENCE.findall(text):
        yield from body.splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> Iterator[str]:
    """Links of the document at `path` (relative to the root) that lead nowhere in the tree."""
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / path).parent / file if file else ROOT / path
        leads = target.exists() and (not anchor or anchor in anchors(target.read_text() if file else text))
        if not leads:
            yield link


def make_targets() -> set[str]:
    names = re.findall(r"^([\w][\w \-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {name for line in names for name in line.split()}


def test_the_readme_opens_with_two_commands() -> None:
    """What a newcomer types: make quickstart, make test."""
    _, first = FENCE.findall(README.read_text())[0]
    commands = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make quickstart", "make test"]


def test_the_readme_pictures_what_ran() -> None:
    """The picture fits on a screen beside the table that quickstart prints."""
    _, picture = FENCE.findall(README.read_text())[1]
    assert 10 <= len(picture.splitlines()) <= 15
    assert all(word in picture for word in ("broker", "hv0", "SHA-256"))


@pytest.mark.parametrize("path", documents(), ids=str)
def test_make_targets_exist(path: Path) -> None:
    """Every `make X` that a document shows."""
    text = (ROOT / path).read_text()
    named = {match for line in code(text) for match in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", line)}
    assert named <= make_targets()


@pytest.mark.parametrize("path", documents(), ids=str)
def test_links_resolve(path: Path) -> None:
    """Every relative link, with its anchor."""
    assert list(broken_links(path, (ROOT / path).read_text())) == []


def test_the_tables_are_those_of_the_code() -> None:
    """Those of docs/tables.md, doors.md and interrupts.md; `make docs` writes them again."""
    run = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_tables_are_filled_in_between_their_markers() -> None:
    """What stood there goes, prose stays; a name that no table has and a marker without its end are errors."""
    marked = "a\n\n<!-- table: x -->\nold\n\nold\n<!-- end -->\n\nb <!-- end -->\n"
    filled = fill(marked, {"x": lambda: "new"})
    assert filled == "a\n\n<!-- table: x -->\n\nnew\n\n<!-- end -->\n\nb <!-- end -->\n"
    assert fill(filled, {"x": lambda: "new"}) == filled
    assert fill("<!-- table: x -->\n<!-- end -->", {"x": lambda: "new"}).count("new") == 1
    with pytest.raises(KeyError):
        fill(marked, {"y": lambda: "new"})
    with pytest.raises(ValueError, match="no end"):
        fill("<!-- table: x -->\n", {"x": lambda: "new"})


def test_the_readme_names_every_verb() -> None:
    """Its table of verbs is the command's, neither more nor less; flags that the README shows exist."""
    functions = [command.callback for command in app.registered_commands if command.callback is not None]
    verbs = {function.__name__: function for function in functions}
    text = README.read_text()
    table = re.findall(r"^\| `argosy ([a-z]+)", text, re.MULTILINE)
    assert sorted(table) == sorted(verbs)
    for line in code(text):
        for verb, rest in re.findall(r"argosy ([a-z]+)((?: [^;#]+)?)", line):
            assert verb in verbs, line
            options = inspect.getsource(verbs[verb]) + SHARED_OPTIONS
            flags = re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)
            assert [flag for flag in flags if f'"{flag}"' not in options] == [], line


@pytest.mark.parametrize("runtime", ["inline", "processes"])
def test_the_readme_example_runs(runtime: str, tmp_path: Path) -> None:
    """The topology and the program that the README shows, as they stand there."""
    blocks = dict(FENCE.findall(README.read_text()))
    (tmp_path / "hello.yaml").write_text(blocks["yaml"])
    (tmp_path / "hello.py").write_text(blocks["python"])
    run = subprocess.run(
        [sys.executable, "-m", "topologies.cli", "run", "--runtime", runtime, str(tmp_path / "hello.yaml")],
        cwd=ROOT,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "check 'greeted': passed" in run.stdout
    logs = "".join(path.read_text() for path in tmp_path.rglob("nodes/greeter/log"))
    assert "hello, Ada" in logs


def test_the_readme_publishes_the_exit_codes() -> None:
    """The table of exit codes is that of topologies/exitcodes.py, code by code and word by word."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", README.read_text(), re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in rows] == [(row.code, row.meaning) for row in EXIT_CODES]


def test_the_changelog_has_the_version() -> None:
    """Keep a Changelog: the version of pyproject.toml has a section, or stands under Unreleased."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE)


def test_the_licence_is_the_whole_text() -> None:
    """Apache License 2.0, from its title to the end of its appendix."""
    words = " ".join((ROOT / "LICENSE").read_text().split())
    assert words.startswith("Apache License Version 2.0, January 2004")
    assert "9. Accepting Warranty or Additional Liability." in words
    assert words.endswith("language governing permissions and limitations under the License.")


def test_the_checks_see_what_is_wrong() -> None:
    """What the tests above rely on."""
    assert list(broken_links(Path("README.md"), "[a](nowhere.md) [b](#none) [c](LICENSE)\n# D\n[e](#d)")) == [
        "nowhere.md",
        "#none",
    ]
    assert "quickstart" in make_targets() and "nonsense" not in make_targets()
    assert list(code("`make x`\n```sh\nmake y\n```\n")) == ["make y", "make x"]
