"""Children of a real forkserver: output, exit codes, crashes, signals, and death together."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from topologies.agent.entry import CRASH, INTERNAL_ERROR, LOG, resolve

ROOT = Path(__file__).resolve().parents[3]

# A forkserver belongs to a process for good, so every test has a process of its own to be its agent.
AGENT = """
import json, os, select, signal, sys
from pathlib import Path
from topologies.agent.children import Children, SpawnError

directory, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
children = Children(directory, ["topologies.agent.preload", "topologies.agent.entry"])
spawned = {}
for name, config in plan["nodes"].items():
    (directory / name).mkdir()
    spawned[name] = children.spawn(name, directory / name, "tests.topologies.agent.stubs:obey", config)
pids = {name: child.pid for name, child in spawned.items()}
print(json.dumps({"forkserver": children.forkserver_pid, **pids}), flush=True)
if plan.get("wait_for_line"):
    sys.stdin.readline()
if plan.get("kill_forkserver"):
    os.kill(children.forkserver_pid, signal.SIGKILL)
if plan.get("terminate"):
    for child in spawned.values():
        child.signal(signal.SIGKILL)
ends = {}
for name, child in spawned.items():
    select.select([child.sentinel] + ([child.pidfd] if child.pidfd >= 0 else []), [], [])
    ends[name] = [child.wait(), child.crash()]
    child.close()
late = None
if plan.get("kill_forkserver"):
    try:
        children.spawn("late", directory, "tests.topologies.agent.stubs:obey", {})
    except SpawnError as error:
        late = str(error)
children.close()
children.close()
print(json.dumps({"ends": ends, "late": late, "left": os.listdir(directory)}), flush=True)
"""

pytestmark = pytest.mark.timeout(30)


def start(directory: Path, **plan: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, str(directory), json.dumps(plan)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def agent(directory: Path, **plan: Any) -> dict[str, Any]:
    process = start(directory, **plan)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_ways_to_end(short_tmp_path: Path) -> None:
    """The code of main is the process's; a signal is negative; what main raises is a crash with code 70."""
    nodes = {
        "fine": {"name": "fine"},
        "code": {"name": "code", "code": 3},
        "large": {"name": "large", "code": 256 + 7},
        "last": {"name": "last", "code": 255},
        "exit": {"name": "exit", "exits": 5},
        "killed": {"name": "killed", "signal": int(signal.SIGKILL)},
        "crash": {"name": "crash", "raises": "two\nlines"},
    }
    found = agent(short_tmp_path, nodes=nodes)
    assert found["ends"] == {
        "fine": [0, ""],
        "code": [3, ""],
        "large": [7, ""],
        "last": [255, ""],
        "exit": [5, ""],
        "killed": [-9, ""],
        "crash": [INTERNAL_ERROR, "ValueError: two lines"],
    }
    assert (short_tmp_path / "fine" / LOG).read_text() == "out of fine\nerr\n"
    log = (short_tmp_path / "crash" / LOG).read_text()
    assert "Traceback" in log
    assert (short_tmp_path / "crash" / CRASH).exists()
    assert sorted(found["left"]) == sorted(nodes)  # and no socket of the forkserver's


def test_children_have_no_input(short_tmp_path: Path) -> None:
    """Standard input is empty, so nobody waits for a terminal."""
    found = agent(short_tmp_path, nodes={"reader": {"name": "reader", "reads_stdin": True}})
    assert found["ends"] == {"reader": [0, ""]}


def test_a_child_is_killed_by_its_pidfd(short_tmp_path: Path) -> None:
    """SIGKILL reaches one that ignores SIGTERM."""
    found = agent(short_tmp_path, nodes={"deaf": {"name": "deaf", "sleeps": 60}}, terminate=True)
    assert found["ends"] == {"deaf": [-9, ""]}


def test_children_die_with_their_forkserver(short_tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG in the children; the agent sees them gone though nobody reports, and starts no more."""
    nodes = {name: {"name": name, "sleeps": 60} for name in ("a", "b")}
    found = agent(short_tmp_path, nodes=nodes, kill_forkserver=True)
    assert found["ends"] == {"a": [-9, ""], "b": [-9, ""]}
    assert found["late"] == "the forkserver is gone"


def test_everything_dies_with_the_agent(short_tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG in the forkserver, though its children keep its own pipe open."""
    process = start(short_tmp_path, nodes={"a": {"name": "a", "sleeps": 60}}, wait_for_line=True)
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    watched = [os.pidfd_open(pid) for pid in pids.values()]
    log = short_tmp_path / "a" / LOG
    end = time.monotonic() + 10
    while not (log.exists() and log.read_text()):  # it has got past its entry
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for fd in watched:
        assert select.select([fd], [], [], 2.0)[0]
        os.close(fd)


def test_resolve() -> None:
    """``module:function``."""
    assert resolve("topologies.agent.entry:resolve") is resolve
    with pytest.raises(AttributeError):
        resolve("topologies.agent.entry:nothing")
