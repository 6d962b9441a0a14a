"""The command without labs: flags and their variables, usage, exit codes, internal errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from topologies import cli, verbs
from topologies.exitcodes import EXIT_CODES, ExitCode

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture(autouse=True)
def own_base(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_tmp_path))
    # main() installs handlers; tests have their own.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return short_tmp_path


def options() -> list[tuple[str, Any]]:
    group = typer.main.get_command(verbs.app)
    found = []
    for verb, command in group.commands.items():  # type: ignore[attr-defined]
        found += [(verb, param) for param in command.params if param.param_type_name == "option"]
    return [(verb, param) for verb, param in found if param.name != "help"]


def test_every_flag_has_its_environment_variable(capfd: pytest.CaptureFixture[str]) -> None:
    """ARGOSY_<VERB>_<FLAG>, and --help says so."""
    verbs = {verb for verb, _ in options()}
    assert verbs >= {"run", "up", "down", "ps", "logs", "validate", "schema", "version"}
    shown = {verb: "".join(call(verb, "--help", capfd=capfd)[1].split()) for verb in verbs}
    for verb, param in options():
        flag = next(text for text in param.opts if text.startswith("--"))
        assert f"ARGOSY_{verb}_{flag[2:]}".upper().replace("-", "_") in shown[verb]


def test_a_variable_counts_and_a_flag_counts_more(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag before variable before default."""
    assert call("version", capfd=capfd)[1].startswith("argosy ")
    monkeypatch.setenv("ARGOSY_VERSION_FORMAT", "json")
    assert json.loads(call("version", capfd=capfd)[1])["schema"] == "version/1"
    assert call("version", "--format", "table", capfd=capfd)[1].startswith("argosy ")


def test_help_publishes_the_exit_codes(capfd: pytest.CaptureFixture[str]) -> None:
    """Every row of the table."""
    code, out, _ = call("--help", capfd=capfd)
    assert code == 0
    for row in EXIT_CODES:
        assert f"{row.code:>3}  {row.meaning}" in out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["run"], ["ps", "--format", "xml"], ["down", "a", "--all"], ["logs", "nobody"], ["validate"]],
)
def test_mistakes_are_usage_errors(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, words on stderr."""
    code, _, err = call(*arguments, capfd=capfd)
    assert code == 2
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["soon", "0s", "-1s", "5"])
def test_timeouts_that_are_none(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before anything is started."""
    code, _, err = call("run", str(tmp_path / "lab.yaml"), f"--timeout={text}", capfd=capfd)
    assert code == 2
    assert "--timeout" in err


def test_an_internal_error(own_base: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 5, one line, and the traceback in the file that it names."""
    from topologies.commands import lifecycle

    def fail(*_: object, **__: object) -> int:
        raise KeyError("oops")

    monkeypatch.setattr(lifecycle, "ps", fail)
    code, out, err = call("ps", capfd=capfd)
    kept = own_base / "argosy" / "failure.log"
    assert (code, out) == (5, "")
    assert err == f"argosy: internal error: KeyError: 'oops' (traceback in {kept})\n"
    assert "Traceback" in kept.read_text()


def test_a_base_that_cannot_be_used(own_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 4 and what is wrong: it belongs to the machine, not to the topology."""
    (own_base / "argosy").mkdir(mode=0o755)
    (own_base / "argosy").chmod(0o755)
    topology = own_base / "lab.yaml"
    topology.write_text("name: lab\nhypervisors: {hv0: {}}\n")
    code, _, err = call("run", str(topology), capfd=capfd)
    assert code == 4
    assert "chmod 700" in err


def test_the_entry_point_knows_its_exit_code() -> None:
    """It does not import the table, but says the same."""
    assert cli.INTERRUPTED == ExitCode.INTERRUPTED


def test_nothing_runs(capfd: pytest.CaptureFixture[str]) -> None:
    """An empty list is a list; there being nothing to take down is exit code 3."""
    assert call("ps", "--format", "json", capfd=capfd)[:2] == (0, '{\n "schema": "ps/1",\n "labs": []\n}\n')
    assert call("down", capfd=capfd)[0] == 3
    assert call("down", "lab", capfd=capfd)[0] == 3


def test_conform_hands_over_to_the_core(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its exit code is the command's."""
    code, _, err = call("conform", str(tmp_path / "missing"), capfd=capfd)
    assert code == 2
    assert "missing" in err


def test_a_closed_pipe_does_not_change_the_exit_code() -> None:
    """`argosy schema | head -0`."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "topologies.cli", "schema"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_not_needed_is_not_imported() -> None:
    """`ps` stays quick: no rich, no YAML, no ZeroMQ, nothing of the nodes."""
    program = (
        "import sys\n"
        "from topologies import cli\n"
        "try:\n    cli.main(['ps'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'rich', 'yaml', 'zmq', 'msgpack', 'multiprocess', 'asyncio', 'topologies.schema'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_agent_does_not_import_what_only_the_launcher_needs() -> None:
    """pydantic, YAML, typer and rich stay out of the agent, and so out of every node."""
    program = (
        "import sys\n"
        "import topologies.agent.__main__, topologies.agent.shell, topologies.agent.entry, topologies.agent.children\n"
        "heavy = {'rich', 'yaml', 'typer', 'pydantic', 'topologies.schema', 'topologies.plan'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_room_for_what_is_printed() -> None:
    """The machine's failure, not the command's: exit code 4, and no traceback is kept."""
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, "-m", "topologies.cli", "schema"]
        done = subprocess.run(arguments, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        ExitCode.INFRASTRUCTURE,
        "argosy: writing: No space left on device: make room, then try again\n",
    )
