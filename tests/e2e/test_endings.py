"""How a run can end: programs that fail, nodes that die, mistakes in the topology.  Each has its exit code."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import Rig, finish, guest, lab, wait_until

pytestmark = pytest.mark.timeout(60)


def test_a_program_of_the_user_s_own(rig: Rig) -> None:
    """`module:function` from the topology's directory; what it reports and prints is found again."""
    file = rig.topology(lab(guest("app", "fine")))
    done = rig.run("run", file)
    assert done.returncode == 0, done.stderr
    assert "app: answer 42" in done.stdout
    assert "all is well" in rig.run("logs", "app").stdout
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("program", "arguments", "code", "words"),
    [
        ("raises", {}, 1, "guest app ended with exit code 1: the program raised ValueError: no such luck"),
        ("leaves", {"code": 3}, 1, "guest app ended with exit code 3"),
        ("dies", {}, 5, "guest app was killed by SIGKILL"),
        ("boasts", {}, 1, "guest app ended with exit code 1: the program raised ValueError: guest.result: the report"),
        ("rants", {}, 1, "guest app ended with exit code 1: the program raised ValueError: no no no"),
    ],
)
def test_a_guest_that_fails_ends_the_run(
    rig: Rig, program: str, arguments: dict[str, Any], code: int, words: str
) -> None:
    """1 for a program that raises or ends non-zero, 5 for one that is killed; the peer is stopped.

    A traceback is in the log that the command names, and not on the terminal.
    """
    file = rig.topology(lab(guest("app", program, **arguments) + guest("peer", "forever")))
    done = rig.run("run", file)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert rig.leftovers() == []
    if program == "raises":
        log = next(line.split("its log: ")[1] for line in done.stderr.splitlines() if "its log: " in line)
        assert "ValueError: no such luck" in Path(log).read_text()


def test_the_largest_report(rig: Rig) -> None:
    """It arrives whole, with the guest's counters in the same record."""
    done = rig.run("run", rig.topology(lab(guest("app", "reports"))), "--format", "json")
    assert done.returncode == 0, done.stderr
    app = next(node for node in json.loads(done.stdout)["nodes"] if node["name"] == "app")
    assert len(app["result"]["a"]) == 49130 and app["counters"]["arch"]["traps"] > 0


ROGUE = """
name: rogue
hypervisors: {{hv0: {{argo: {{mac-permissive: true}}}}}}
guests:
  app: {{on: hv0, devices: [{{type: rng, transport: virtio-mmio}}], program: "mine:{program}"}}
  model: {{on: hv0, program: "mine:model"}}
destinations: [{{from: app, service: rng, to: model}}]
"""


@pytest.mark.parametrize(("runtime", "program"), [("processes", "uses"), ("processes", "waits"), ("inline", "uses")])
def test_a_guest_whose_domain_crashes(rig: Rig, runtime: str, program: str) -> None:
    """Its device model broke the protocol of ioreq.h: Xen crashes the domain, and the verdict says so."""
    rig.program((Path(__file__).parent / "programs" / "rogue.py").read_text())
    done = rig.run("run", rig.topology(ROGUE.format(program=program)), "--runtime", runtime)
    assert done.returncode == 1, done.stderr
    assert "guest app ended with exit code 4: its domain crashed: vCPU 0: " in done.stderr
    assert "Traceback" not in done.stderr
    assert rig.leftovers() == []


def test_checks_that_expect_failures(rig: Rig) -> None:
    """No faults then: exit code 0.  128 + N is a death by signal N."""
    guests = guest("leaver", "leaves", code=3) + guest("raiser", "raises") + guest("victim", "dies")
    expected = {"leaver": 3, "raiser": 1, "victim": 137}
    checks = "".join(
        f"  - {{name: {name} fails, guest: {name}, expect: {{exit: {code}}}}}\n" for name, code in expected.items()
    )
    done = rig.run("run", rig.topology(lab(guests, checks=checks)))
    assert done.returncode == 0, done.stderr
    for name in expected:
        assert f"check '{name} fails': passed" in done.stdout


def test_a_check_whose_time_is_up(rig: Rig) -> None:
    """Exit code 1, and the guest that is still at it is taken down, even one that never awaits."""
    checks = "  - {name: soon, guest: app, expect: {exit: 0}, within: 200ms}"
    done = rig.run("run", rig.topology(lab(guest("app", "spins"), checks=checks)))
    assert done.returncode == 1, done.stderr
    assert "check 'soon' failed: guest app has not ended" in done.stderr
    assert rig.leftovers() == []


def test_the_timeout_of_a_run(rig: Rig) -> None:
    """--timeout: exit code 6, naming what was waited for.  As environment variable as well."""
    file = rig.topology(lab(guest("app", "forever")))
    done = rig.run("run", file, ARGOSY_RUN_TIMEOUT="1500ms")
    assert done.returncode == 6, done.stderr
    assert "guest app to end" in done.stderr
    assert rig.leftovers() == []


@pytest.mark.parametrize(("victim", "words"), [("hv0", "hypervisor hv0"), ("app", "guest app")])
def test_a_node_that_is_killed_from_outside(rig: Rig, victim: str, words: str) -> None:
    """Exit code 5 naming it, everything down: a dead hypervisor ends its guests, and is the one named."""
    command = rig.start("run", rig.topology(lab(guest("app", "forever") + guest("peer", "forever"))))
    wait_until(lambda: rig.nodes().get("peer", {}).get("state") == "ready")
    begin = time.monotonic()
    os.kill(rig.nodes()[victim]["pid"], signal.SIGKILL)
    done = finish(command)
    assert done.returncode == 5, done.stderr
    reasons = [line for line in done.stderr.splitlines() if line.startswith("argosy: ")]
    assert reasons == [f"argosy: {words} was killed by SIGKILL"]
    assert time.monotonic() - begin < 5
    assert rig.leftovers() == []


def test_a_broken_topology(rig: Rig) -> None:
    """Exit code 2, every error at once, nothing started."""
    file = rig.topology("name: lab\nhypervisors: {hv0: {personalty: xen}}\nguests: {app: {on: hv9}}\n")
    done = rig.run("run", file)
    assert done.returncode == 2
    assert f"{file}:2:" in done.stderr
    assert f"{file}:3:" in done.stderr
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "FILE"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "lab.yaml", "--timeout", "soon"], "duration"),
        (["run", "lab.yaml", "--runtime", "threads"], "threads"),
        (["run", "lab.yaml", "--name", "../up"], "name"),
        (["run", "lab.yaml", "--runtime", "inline", "--timeout", "5s"], "--timeout"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistakes_in_using_the_command(rig: Rig, arguments: list[str], words: str) -> None:
    """Exit code 2 and a sentence, whatever the mistake."""
    rig.topology(lab(guest("app", "fine")))
    done = rig.run(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert words in done.stderr
    assert rig.leftovers() == []


def test_nothing_to_do(rig: Rig) -> None:
    """Exit code 3: a topology without nodes, `down` without labs."""
    assert rig.run("run", rig.topology("name: lab\n")).returncode == 3
    assert rig.run("down").returncode == 3
    assert rig.run("down", "nobody").returncode == 3
    assert rig.run("down", "--all").returncode == 3


def test_a_run_directory_of_the_user_s(rig: Rig) -> None:
    """--run-dir: everything but the sockets is there, 0700; one that holds other things is refused with 4."""
    file = rig.topology(lab(guest("app", "fine")))
    path = rig.runtime / "results"
    done = rig.run("run", file, "--run-dir", str(path))
    assert done.returncode == 0, done.stderr
    assert (path / "nodes" / "app" / "log").read_text() == "all is well\n"
    assert path.stat().st_mode & 0o777 == 0o700
    state = json.loads((path / "state.json").read_text())
    assert state["outcome"]["verdict"] == "ok"
    assert "on: hv0" in (path / "topology.resolved.yaml").read_text()
    path.chmod(0o755)
    done = rig.run("run", file, "--run-dir", str(path))
    assert done.returncode == 4
    assert f"chmod 700 {path}" in done.stderr
    assert rig.leftovers() == []
