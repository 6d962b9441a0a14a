"""The verbs validate and schema."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from topologies.commands.validate import schema, validate
from topologies.json_schema import json_schema

SOUND = "name: lab\nhypervisors: {hv0: {}}\nguests: {app: {on: hv0, program: 'builtin:echo'}}\n"


def run(*paths: Path | str, json_format: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    code = validate([str(path) for path in paths], "json" if json_format else "table", out=out, err=err)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a sound, a wrong and an empty topology, as current directory."""
    (tmp_path / "good.yaml").write_text(SOUND)
    (tmp_path / "bad.yaml").write_text("name: lab\nhypervisor: {}\n")
    (tmp_path / "empty.yaml").write_text("name: lab\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("files")
def test_sound_and_wrong_files() -> None:
    """One line for a sound file on stdout, errors on stderr; the worst outcome is the exit code."""
    assert run("good.yaml") == (0, "good.yaml: valid: lab, 1 hypervisor, 1 guest\n", "")
    code, out, err = run("good.yaml", "bad.yaml", "empty.yaml")
    assert code == 2
    assert out == "good.yaml: valid: lab, 1 hypervisor, 1 guest\n"
    assert err.startswith("bad.yaml:2:1 hypervisor: unknown key. Did you mean 'hypervisors'? [valid: name, ")
    assert "empty.yaml:1:1: the topology has neither hypervisors nor guests" in err
    assert run("good.yaml", "empty.yaml")[0] == 3
    assert run("missing.yaml") == (2, "", "missing.yaml: no such file\n")
    assert run() == (2, "", "name a topology file\n")


@pytest.mark.usefixtures("files")
def test_json_goes_to_stdout_only() -> None:
    """topology.md: JSON on stdout; errors keep position, path, choices and hint apart."""
    code, out, err = run("good.yaml", "bad.yaml", json_format=True)
    assert (code, err) == (2, "")
    report = json.loads(out)
    assert report["schema"] == "argosy/validate/1"
    assert report["valid"] is False
    good, bad = report["files"]
    assert good == {
        "file": "good.yaml",
        "valid": True,
        "exit": 0,
        "name": "lab",
        "hypervisors": 1,
        "guests": 1,
        "checks": 0,
        "errors": [],
    }
    assert (bad["file"], bad["valid"], bad["exit"]) == ("bad.yaml", False, 2)
    assert bad["errors"][0]["path"] == "hypervisor"
    assert bad["errors"][0]["suggestion"] == "hypervisors"
    assert json.loads(run("good.yaml", json_format=True)[1])["valid"] is True
    assert json.loads(run(json_format=True)[1])["valid"] is False


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard input, as elsewhere."""

    class Stdin:
        buffer = io.BytesIO(SOUND.encode())

    monkeypatch.setattr("sys.stdin", Stdin())
    assert run("-") == (0, "<stdin>: valid: lab, 1 hypervisor, 1 guest\n", "")


def test_any_stream_can_show_any_error(tmp_path: Path) -> None:
    """A terminal that knows ASCII only, a file name that is no text: escaped, never an exception."""
    path = tmp_path / "caf\u00e9.yaml"
    path.write_text("name: caf\u00e9 \U0001f600\n", encoding="utf-8")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    assert validate([str(path)], err=stream) == 2
    assert b"caf\\xe9.yaml:1:7 name: 'caf\\xe9 \\U0001f600' is no name" in raw.getvalue()
    assert run(str(tmp_path / "\udcff\x1b[31m.yaml"))[2].endswith("\\udcff\\x1b[31m.yaml: no such file\n")


def test_schema_prints_the_json_schema() -> None:
    """What editors are given; as a table, one line for each key."""
    out = io.StringIO()
    assert schema(out=out) == 0
    assert json.loads(out.getvalue()) == json_schema()
    out = io.StringIO()
    assert schema("table", out=out) == 0
    lines = out.getvalue().splitlines()
    assert any(line.split() == ["guests.NAME.vcpus", "Virtual", "CPUs."] for line in lines)
    assert any(line.startswith("checks[].expect.exit ") for line in lines)
    assert any(line.split() == ["guests.NAME.devices[].transport", "How", "it", "is", "reached."] for line in lines)
    assert len(lines) > 60


def test_streams_default_to_the_standard_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """As the command calls them."""
    assert validate(["/nowhere/lab.yaml"]) == 2
    assert schema() == 0
    captured = capsys.readouterr()
    assert captured.err == "/nowhere/lab.yaml: no such file\n"
    assert captured.out.startswith("{")
