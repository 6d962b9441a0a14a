"""SIGKILL for whoever, whenever: after two seconds nothing is left that should not be, and the others go on.

Victim x attached or detached x moment.  A third of the matrix runs always, all of it with the long tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until

VICTIMS = ("launcher", "agent", "forkserver", "broker", "hv0", "hv1", "peer")
"""`hv0` is gone for good, `hv1` is started again."""
MOMENTS = ("starting", "ready", "transfer", "going down")

ENDS_THE_LAB = ("launcher", "agent", "forkserver")


class Case(NamedTuple):
    """One cell of the matrix."""

    victim: str
    attached: bool
    moment: str


def cases() -> list[Case]:
    """All cells: a detached lab has a launcher while it starts only."""
    found = [Case(victim, attached, moment) for victim in VICTIMS for attached in (True, False) for moment in MOMENTS]
    return [case for case in found if case.victim != "launcher" or case.attached or case.moment == "starting"]


def parameters() -> Sequence[object]:
    """Every third cell always: among them each victim, each moment, attached and detached."""
    found = []
    for number, case in enumerate(cases()):
        marks = [] if number % 3 == 0 else [pytest.mark.long]
        name = f"{case.victim}-{'attached' if case.attached else 'detached'}-{case.moment.replace(' ', '-')}"
        found.append(pytest.param(case, id=name, marks=marks))
    return found


def test_the_third_that_always_runs_is_representative() -> None:
    """Every victim, every moment, both ways."""
    always = cases()[::3]
    assert {case.victim for case in always} == set(VICTIMS)
    assert {case.moment for case in always} == set(MOMENTS)
    assert {case.attached for case in always} == {True, False}


def topology(rig: Rig, case: Case) -> str:
    """Two pairs of neighbours; that of the victim is quiet where nothing is to be under way.

    Where a hypervisor is the victim the other pair has one of its own.
    """
    rig.program(PEERS)
    directory = str(rig.runtime)
    quiet = case.moment == "ready"
    pair = guest("app", "waits") if quiet else guest("app", "counts", to="peer", directory=directory)
    others = guest("left", "counts", to="right", directory=directory) + guest("right", "takes")
    pair += guest("peer", "takes")
    if case.victim == "hv0":
        others = others.replace("on: hv0", "on: hv1")
    elif case.victim == "hv1":
        pair = pair.replace("on: hv0", "on: hv1")
    text = lab(pair + others).replace("mac-permissive: true", "mac-permissive: true, linger: 300ms")
    if case.victim in ("hv0", "hv1"):
        again = "on-failure" if case.victim == "hv1" else "never"
        text = text.replace("guests:\n", f"  hv1: {{restart: {again}, argo: {{mac-permissive: true}}}}\nguests:\n", 1)
    return rig.topology(text)


def pid_of(rig: Rig, case: Case, launcher: subprocess.Popen[str]) -> int | None:
    """The victim's process, as soon as there is one."""
    if case.victim == "launcher":
        return launcher.pid
    states = rig.states()
    if not states or "agent" not in states[0]:
        return None
    agent: int = states[0]["agent"]["pid"]
    if case.victim == "agent":
        return agent
    if case.victim == "forkserver":
        return next((pid for pid, words in rig.processes() if "forkserver" in words and parent_of(pid) == agent), None)
    found: int | None = rig.node(case.victim)["pid"]
    return found


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def bring_to_its_moment(rig: Rig, case: Case, launcher: subprocess.Popen[str]) -> subprocess.Popen[str] | None:
    """Wait until the lab is where the victim is to die; the command that takes it down, if one does."""
    if case.moment == "starting":
        wait_until(lambda: bool(rig.sockets()) and pid_of(rig, case, launcher) is not None)
        return None
    wait_until(lambda: any(state.get("phase") == "running" for state in rig.states()))
    if case.moment != "ready":
        wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"] and rig.sent("left") > 2)
    if not case.attached:
        assert finish(launcher).returncode == 0
    if case.moment != "going down":
        return None
    return rig.start("down", "--all")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("case", parameters())
def test_sigkill(rig: Rig, case: Case) -> None:
    """Issue: no process, socket or file is left that should not be; survivors exchange; `ps` knows who died of what."""
    launcher = rig.start("up", *([] if case.attached else ["-d"]), topology(rig, case))
    down = bring_to_its_moment(rig, case, launcher)
    if down is not None:
        wait_until(lambda: not any(state.get("phase") == "running" for state in rig.states()))
    victim = pid_of(rig, case, launcher)
    if victim is not None:  # else it went down with the rest just now
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            victim = None
    if case.victim == "agent":
        wait_until(lambda: not [words for _, words in rig.processes() if "topologies.cli" not in words], 2.0)
        collected = rig.run("gc")
        assert collected.returncode in (0, 3), collected.stderr
        rig.wait_for_nothing()
    elif down is not None:
        finish(down)  # which has limits of its own
        rig.wait_for_nothing()
    elif case.victim in ENDS_THE_LAB:
        rig.wait_for_nothing()
    else:
        survive(rig, case)
        assert rig.run("down", "--all").returncode in (0, 3)
        rig.wait_for_nothing()
    for command in filter(None, (launcher, down)):
        finish(command)
    if case.attached and case.moment in ("ready", "transfer"):
        assert launcher.returncode == {"launcher": -9, "agent": 5, "forkserver": 5}.get(case.victim, 130)


def survive(rig: Rig, case: Case) -> None:
    """The lab of a dead node goes on as far as it can."""
    if case.moment == "starting":
        # It comes up all the same, or goes down with its reason; which of the two is a matter of milliseconds.
        wait_until(lambda: all(state.get("phase") in ("running", None) for state in rig.states()))
        return
    if case.victim == "broker":
        wait_until(lambda: (rig.node("broker")["restarts"], rig.node("broker")["state"]) == (1, "ready"), 5.0)
        row = next(line for line in rig.run("ps").stdout.splitlines() if " broker " in line)
        assert "epoch 2" in row and "was killed by SIGKILL" in row
    elif case.victim == "hv1":
        wait_until(lambda: [rig.node(name)["restarts"] for name in ("hv1", "app", "peer")] == [1, 1, 1], 5.0)
        wait_until(lambda: {node["state"] for node in rig.nodes().values()} == {"ready"}, 5.0)
        assert "was killed by SIGKILL" in rig.node("hv1")["last_error"]
        if case.moment == "transfer":
            wait_until(lambda: rig.seen("app")[-1:] == ["4 ok"], 5.0)
    else:
        wait_until(lambda: rig.node(case.victim)["state"] == "died", 2.0)
        row = next(line for line in rig.run("ps").stdout.splitlines() if f" {case.victim} " in line)
        assert "died" in row and "killed by SIGKILL" in row
    if case.victim == "hv0":
        wait_until(lambda: {rig.node(name)["state"] for name in ("app", "peer")} == {"failed"}, 5.0)
    before = rig.sent("left")
    wait_until(lambda: rig.sent("left") > before + 3, 5.0)
    assert rig.seen("left")[-1] == ("2 ok" if case.victim in ("hv0", "hv1") else "4 ok")
    if case.victim == "peer" and case.moment == "transfer":
        wait_until(lambda: rig.seen("app")[-2:] == ["2 Connection refused", "2 No such process"], 5.0)


def test_gc_leaves_alone_what_lives_and_what_is_not_ours(rig: Rig) -> None:
    """Ownership is recorded: a lock that is held, a directory of another shape, a young one without a lab."""
    rig.program(PEERS)
    assert rig.run("up", "-d", rig.topology(lab(guest("app", "waits")))).returncode == 0
    strange = rig.base / "s" / "0a1b2c3d"
    strange.mkdir(mode=0o700)
    (strange / "notes").write_text("mine")
    young = rig.base / "s" / "0a1b2c3e"
    young.mkdir(mode=0o700)

    def gc() -> subprocess.CompletedProcess[str]:
        os.utime(young)  # young, however long this takes
        return rig.run("gc")

    os.kill(rig.states()[0]["agent"]["pid"], signal.SIGSTOP)
    stopped = gc()
    assert stopped.returncode == 3, stopped.stdout
    sockets = Path(os.readlink(rig.base / "lab" / "sockets"))
    assert sockets.is_dir() and strange.is_dir() and young.is_dir()
    (sockets / "control").unlink()  # even without its socket, the lock says that it lives
    assert gc().returncode == 3
    assert sockets.is_dir()
    agent = int((rig.base / "lab" / "lock").read_text().split('"pid": ')[1].split(",")[0])
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: not rig.processes(), 2.0)
    done = gc()
    assert done.returncode == 0, done.stderr
    assert str(sockets) in done.stdout
    assert (strange / "notes").exists() and young.is_dir()
    assert (rig.base / "lab" / "state.json").exists()
    assert not (rig.base / "lab" / "lock").exists() and not os.path.lexists(rig.base / "lab" / "sockets")
    row = next(line for line in rig.run("ps", "--all").stdout.splitlines() if " app " in line)
    assert "lost" in row
