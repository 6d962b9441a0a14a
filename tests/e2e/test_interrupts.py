"""Ctrl-C at any moment: exit code 130, and no process, socket or lock is left.  The same for a killed launcher."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.rig import Rig, finish, guest, lab, lines_of, wait_until

pytestmark = pytest.mark.timeout(60)

FOREVER = lab(guest("app", "forever") + guest("peer", "forever"))


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.4, 0.6])
def test_ctrl_c_after_a_while(rig: Rig, delay: float) -> None:
    """At moments that fall into the launcher's imports, the agent's start, and the nodes' start."""
    command = rig.start("run", rig.topology(FOREVER))
    time.sleep(delay)
    command.send_signal(signal.SIGINT)
    _out, err = command.communicate(timeout=20)
    # Before the command's first function is called it is Python itself that answers.
    if "File " not in err or "in main" in err:
        assert command.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err
    rig.wait_for_nothing()


@pytest.mark.parametrize("moment", ["starting the broker", "starting guests", "running"])
def test_ctrl_c_in_each_phase(rig: Rig, moment: str) -> None:
    """Once the lab has begun: exit code 130 when everything is gone, not before."""
    command = rig.start("run", rig.topology(FOREVER))
    for line in lines_of(command):
        if line.strip() == moment:
            command.send_signal(signal.SIGINT)
            break
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert rig.leftovers() == []


@pytest.mark.parametrize("verb", ["run", "up"])
def test_ctrl_c_while_everybody_runs(rig: Rig, verb: str) -> None:
    """`run` and the attached `up` alike; SIGTERM counts as Ctrl-C."""
    number = signal.SIGINT if verb == "run" else signal.SIGTERM
    command = rig.start(verb, rig.topology(FOREVER))
    wait_until(lambda: rig.nodes().get("peer", {}).get("state") == "ready")
    command.send_signal(number)
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert rig.leftovers() == []


def test_ctrl_c_twice(rig: Rig) -> None:
    """Impatience changes nothing: a guest that never awaits is killed soon enough."""
    command = rig.start("run", rig.topology(lab(guest("app", "spins"))))
    wait_until(lambda: rig.nodes().get("app", {}).get("state") == "ready")
    command.send_signal(signal.SIGINT)
    time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    begin = time.monotonic()
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert time.monotonic() - begin < 3
    assert rig.leftovers() == []


def test_ctrl_c_until_it_is_gone(rig: Rig) -> None:
    """Somebody who leans on the key is told the same: 130, however late the last one comes."""
    command = rig.start("run", rig.topology(FOREVER))
    wait_until(lambda: len(rig.nodes()) > 1 and {node["state"] for node in rig.nodes().values()} == {"ready"})
    while command.poll() is None:
        command.send_signal(signal.SIGINT)
        time.sleep(0.001)
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and rig.leftovers() == []


def test_ctrl_c_in_the_inline_runtime(rig: Rig) -> None:
    """There is only one process to leave."""
    command = rig.start("run", rig.topology(lab(guest("app", "spins"))), "--runtime", "inline")
    wait_until(lambda: (rig.base / "lab" / "lock").exists())
    time.sleep(0.5)
    command.send_signal(signal.SIGINT)
    done = finish(command)
    assert done.returncode == 130, done.stderr
    assert rig.leftovers() == []


@pytest.mark.parametrize("moment", ["starting the broker", "running"])
def test_a_killed_launcher_takes_its_lab_along(rig: Rig, moment: str) -> None:
    """contracts 8: when the launcher's pipe closes, the agent takes the lab down and removes its files."""
    command = rig.start("run", rig.topology(FOREVER))
    for line in lines_of(command):
        if line.strip() == moment:
            break
    command.kill()
    command.communicate()
    rig.wait_for_nothing()


@pytest.mark.parametrize("victim", ["agent", "forkserver"])
def test_a_killed_agent_or_forkserver_takes_its_nodes_along(rig: Rig, victim: str) -> None:
    """contracts 8: PR_SET_PDEATHSIG.  The command says so (5), and `down --all` removes the sockets."""
    command = rig.start("run", rig.topology(FOREVER))
    wait_until(lambda: rig.nodes().get("peer", {}).get("state") == "ready")
    forkserver = parent_of(rig.nodes()["peer"]["pid"])
    os.kill(forkserver if victim == "forkserver" else parent_of(forkserver), signal.SIGKILL)
    done = finish(command)
    assert done.returncode == 5, done.stderr
    wait_until(lambda: not rig.processes(), 2)
    if victim == "agent":
        for path in rig.sockets():  # as if some seconds had passed
            os.utime(path, (time.time() - 60, time.time() - 60))
        assert rig.run("down", "--all").returncode == 0
        assert not rig.sockets()
        assert rig.run("run", rig.topology(lab(guest("app", "fine")))).returncode == 0
    assert rig.leftovers() == []


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
