"""`argosy exec`: a command in the place of a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.rig import PEERS, Rig, guest, lab, wait_until
from topologies.facts import FACTS

pytestmark = pytest.mark.timeout(60)


def test_exec(rig: Rig) -> None:
    """Directory, environment, standard input and output, exit code; then what there is no place for."""
    rig.program(PEERS)
    file = rig.topology(lab(guest("app", "waits") + guest("peer", "waits")))
    assert rig.run("up", "-d", file).returncode == 0
    directory = rig.base / "lab" / "nodes" / "app"
    found = rig.run("exec", "app", "--", "sh", "-c", "pwd; env")
    assert found.returncode == 0, found.stderr
    where, *lines = found.stdout.splitlines()
    assert where == str(directory)
    facts = {line.partition("=")[0]: line.partition("=")[2] for line in lines if line.startswith("ARGOSY_")}
    assert facts == {
        "ARGOSY_LAB": "lab", "ARGOSY_TOPOLOGY": str(rig.topologies / file), "ARGOSY_RUN_DIR": str(rig.base / "lab"),
        "ARGOSY_NODE": "app", "ARGOSY_KIND": "guest", "ARGOSY_PID": str(rig.node("app")["pid"]),
        "ARGOSY_NODE_DIR": str(directory), "ARGOSY_ARCH": "x86_64", "ARGOSY_RESTARTS": "0",
        "ARGOSY_HYPERVISOR": "hv0", "ARGOSY_DOMID": "1",
    }  # fmt: skip
    assert set(facts) == {fact.variable for fact in FACTS}
    of_broker = rig.run("exec", "broker", "env", ARGOSY_DOMID="7").stdout
    assert "ARGOSY_KIND=broker\n" in of_broker and "ARGOSY_DOMID" not in of_broker

    piped = subprocess.run(
        [sys.executable, "-m", "topologies.cli", "exec", "--lab", "lab", "app", "cat", "-", "log"],
        cwd=rig.topologies, env=rig.environment, input="told\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (piped.returncode, piped.stdout) == (0, "told\n" + (directory / "log").read_text())
    # SIGPIPE: Python ignores it, and a program that it starts would go on ignoring it.
    for words, code in (("exit 42", 42), ("kill -TERM $$", -signal.SIGTERM), ("kill -PIPE $$", -signal.SIGPIPE)):
        assert rig.run("exec", "app", "--", "sh", "-c", words).returncode == code, words

    (directory / "text").write_text("no program")
    for command, code, words in (
        (["./text"], 126, "argosy: ./text cannot be run: Permission denied\n"),
        (["./missing"], 127, "argosy: ./missing: command not found\n"),
        (["no-such-command"], 127, "argosy: no-such-command: command not found\n"),
    ):
        done = rig.run("exec", "app", "--", *command)
        assert (done.returncode, done.stderr) == (code, words)

    os.kill(rig.node("peer")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("peer")["state"] == "died")
    for arguments, code, words in (
        (["--lab", "nobody", "app", "ls"], 3, "no lab 'nobody' runs [running: lab]"),
        (["nobody", "ls"], 2, "no running lab has a node 'nobody' [nodes: app, broker, hv0, peer]"),
        (["peer", "ls"], 3, "peer of lab does not run: it is died"),
        (["app", "--"], 2, "there is no command to run"),
        (["app"], 2, "COMMAND"),
    ):
        done = rig.run("exec", *arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
    assert rig.run("up", "-d", file, "--name", "other").returncode == 0
    unsure = rig.run("exec", "app", "ls")
    assert unsure.returncode == 2
    assert "several labs have a node 'app': say which with --lab [labs: lab, other]" in unsure.stderr
    assert rig.run("exec", "--lab", "other", "app", "pwd").stdout == f"{Path(rig.base, 'other', 'nodes', 'app')}\n"
    assert rig.run("down", "--all").returncode == 0
    assert "no lab runs" in rig.run("exec", "app", "ls").stderr
    assert rig.leftovers() == []
