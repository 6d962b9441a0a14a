"""A link is cut in the middle of a transfer, and heals or does not; a host is killed.

Rules: issue "levels and hosts", 2 and 4: within the link timeout only time is lost; beyond it an operation whose
outcome is unknown is -EIO, of which a stream makes ECONNRESET; nothing is delivered twice; `ps` names a lost host
within 3 s; who survives goes on, and finds the lost ones refused, then unknown.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.e2e.rig import PEERS, wait_until
from tests.hosts.network import HostsRig, topology

PROGRAMS = Path(__file__).parent / "programs"
HOSTS = ("lab1", "lab2")
BLOCKS = 300
ENDLESS = 20 * BLOCKS
"""Of streams that are never to arrive: however slowly a command comes, it finds them in their middle."""
NAMED_WITHIN = 3.0
LOADED = 8.0
"""Seconds by which a loaded machine may be late."""
HOST_TIMEOUT = 4.0
LINK_TIMEOUT = 2.0
PATIENT: dict[str, Any] = {"link_timeout": "60s", "host_timeout": "60s"}
"""For what heals in time, on a machine where a command may take seconds."""

ENDED = {"ECONNRESET", "ECONNREFUSED", "ESRCH"}


def lab(directory: Path, blocks: int, more: dict[str, Any]) -> str:
    """x86 on lab1, Arm on lab2: a slow stream in each direction, one that stays on lab1, and two that count.

    `blocks`: of the streams over the link.
    """

    def guest(on: str, program: str, **given: Any) -> dict[str, Any]:
        given = {"directory": str(directory), **given}
        return {"on": on, "memory": "8MiB", "program": program, "with": given}

    def streams(name: str, here: str, there: str, blocks: int = blocks) -> dict[str, Any]:
        return {
            f"{name}-from": guest(here, "lines:send", to=f"{name}-to", blocks=blocks, pace=0.02),
            f"{name}-to": guest(there, "lines:receive", blocks=blocks),
        }

    data = {
        "defaults": {"argo": {"mac-permissive": True}},
        "hypervisors": {"west": {"host": "lab1"}, "east": {"host": "lab2", "arch": "aarch64"}},
        "links": [{"between": ["west", "east"]}],
        "guests": {
            **streams("out", "west", "east"), **streams("home", "east", "west"),
            **streams("near", "west", "west", BLOCKS),
            "takes-near": guest("west", "peers:takes"), "takes-far": guest("east", "peers:takes"),
            "near": guest("west", "peers:counts", to="takes-near"),
            "far": guest("west", "peers:counts", to="takes-far"),
        },
        **more,
    }  # fmt: skip
    return topology("".join(f"{key}: {json.dumps(value)}\n" for key, value in data.items()), *HOSTS)


def up(rig: HostsRig, blocks: int = BLOCKS, **more: Any) -> None:
    """The lab, left to its agents, with all streams under way."""
    shutil.copy(PROGRAMS / "lines.py", rig.topologies / "lines.py")
    rig.program(PEERS, "peers.py")
    text = lab(rig.runtime, blocks, {key.replace("_", "-"): more[key] for key in more})
    done = rig.run("up", "-d", rig.topology(text))
    assert done.returncode == 0, done.stderr
    for name in ("out-to", "home-to", "near-to", "far", "near"):
        wait_until(lambda name=name: rig.sent(name) > 8, 15)  # type: ignore[misc]


def halted(rig: HostsRig, *names: str) -> None:
    """These streams are in their middle, and rest there."""
    time.sleep(0.5)
    before = [rig.sent(name) for name in names]
    time.sleep(0.7)
    assert [rig.sent(name) for name in names] == before
    assert all(8 < number < BLOCKS for number in before), before


def goes_on(rig: HostsRig) -> None:
    """What stays on lab1 is not concerned."""
    before = rig.sent("near")
    wait_until(lambda: rig.sent("near") > before + 5, 5)


def ends(rig: HostsRig, name: str, wanted: set[str], within: float) -> None:
    """That one has ended, as one of `wanted`."""
    wait_until(lambda: bool(rig.seen(name)), within)
    assert rig.seen(name)[0] in wanted, (name, rig.seen(name))


def all_arrived(rig: HostsRig) -> None:
    """Both sides of every stream: each byte once, in order, and no other."""
    for name in ("out", "home", "near"):
        ends(rig, f"{name}-from", {"same"}, 40)
        ends(rig, f"{name}-to", {"all"}, 5)


def words(rig: HostsRig, name: str) -> list[str]:
    """What that one was told, from its first success on: it may have asked before its peer had a ring."""
    told = [line.partition(" ")[2] for line in rig.seen(name)]
    return told[told.index("ok") :]


def down(rig: HostsRig) -> None:
    assert rig.run("down").returncode == 0
    rig.network.wait_for_nothing()


def ps_says(rig: HostsRig, host: str, *states: str) -> bool:
    rows = {line.split()[1]: line.split() for line in rig.run("ps").stdout.splitlines()[1:]}
    return rows[host][4] in states


def test_a_cable_is_pulled_and_put_back(rig: HostsRig) -> None:
    """For less than the link timeout: streams in both directions wait, go on, and nothing is lost or doubled."""
    up(rig, **PATIENT)
    rig.network["lab2"].cut()
    began = time.monotonic()
    wait_until(lambda: rig.host_states()["lab2"] == "silent", NAMED_WITHIN)
    assert time.monotonic() - began < NAMED_WITHIN
    assert ps_says(rig, "lab2", "silent")
    assert ps_says(rig, "lab1", "ready")
    halted(rig, "out-to", "home-to")
    goes_on(rig)
    rig.network["lab2"].heal()
    wait_until(lambda: rig.host_states()["lab2"] == "ready", 20)
    all_arrived(rig)
    assert "Input/output error" not in words(rig, "far")
    down(rig)


def test_a_partition_of_the_link_that_heals(rig: HostsRig) -> None:
    """The same by `argosy impair`, whose partition both ends hear of: pending operations wait for the link."""
    up(rig, **PATIENT)
    assert rig.run("impair", "west", "east", "--partition").returncode == 0
    halted(rig, "out-to", "home-to")
    assert ps_says(rig, "lab2", "ready")
    goes_on(rig)
    assert rig.run("impair", "west", "east").returncode == 0
    all_arrived(rig)
    down(rig)


def test_a_partition_of_the_link_that_lasts(rig: HostsRig) -> None:
    """Beyond the link timeout streams are reset on both sides; what had arrived is right; new ones work afterwards."""
    up(rig, ENDLESS, link_timeout=f"{LINK_TIMEOUT:g}s")
    before = time.monotonic()  # of the command: on a loaded machine it may end long after the link did
    assert rig.run("impair", "west", "east", "--partition").returncode == 0
    for name in ("out-from", "home-from"):  # refused: what waited when it was over had provably never left
        ends(rig, name, {"ECONNRESET", "ECONNREFUSED"}, LINK_TIMEOUT + LOADED)
    assert time.monotonic() - before > LINK_TIMEOUT, "it was given the time"
    try:
        wait_until(lambda: words(rig, "far")[1:2] in (["Input/output error"], ["Connection refused"]), LOADED)
    except AssertionError:
        raise AssertionError(f"far has seen {rig.seen('far')}") from None
    goes_on(rig)
    assert rig.run("impair", "west", "east").returncode == 0
    for name in ("out-to", "home-to"):  # never "closed": nobody takes a part for the whole
        ends(rig, name, {"ECONNRESET"}, LINK_TIMEOUT + LOADED)
        assert 8 < rig.sent(name) < ENDLESS
    wait_until(lambda: words(rig, "far")[-1] == "ok", LOADED)
    ends(rig, "near-from", {"same"}, 40)
    down(rig)


def test_a_cable_that_stays_pulled(rig: HostsRig) -> None:
    """The host is lost after its timeout: streams towards it are reset, messages refused; the others go on."""
    up(rig, ENDLESS, link_timeout=f"{LINK_TIMEOUT:g}s", host_timeout=f"{HOST_TIMEOUT:g}s")
    rig.network["lab2"].cut()
    wait_until(lambda: rig.host_states()["lab2"] == "silent", NAMED_WITHIN)
    lost = HOST_TIMEOUT + 1 + LOADED
    ends(rig, "out-from", {"ECONNRESET"}, lost)
    ends(rig, "home-to", {"ECONNRESET"}, lost)
    assert ps_says(rig, "lab2", "lost")
    wait_until(lambda: words(rig, "far")[-1] == "No such process", LOADED)
    goes_on(rig)
    ends(rig, "near-from", {"same"}, 40)
    assert {rig.node(name)["state"] for name in ("west", "near", "takes-near")} == {"ready"}
    assert {rig.node(name)["state"] for name in ("east", "takes-far", "home-from")} == {"died"}
    wait_until(lambda: not rig.network["lab2"].nodes(), HOST_TIMEOUT + LOADED)
    assert rig.run("down").returncode == 0


def test_a_host_is_killed(rig: HostsRig) -> None:
    """Its agent, and with it all that runs there: named at once, peers refused and then unknown, survivors go on."""
    up(rig, ENDLESS, link_timeout=f"{LINK_TIMEOUT:g}s", host_timeout=f"{HOST_TIMEOUT:g}s")
    pid = int(str(rig.hosts()["lab2"]["pid"]))
    assert pid in rig.network["lab2"].pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: rig.host_states()["lab2"] in ("lost", "away", "silent"), NAMED_WITHIN)
    wait_until(lambda: rig.host_states()["lab2"] == "lost", HOST_TIMEOUT + LOADED)
    assert ps_says(rig, "lab2", "lost")
    wait_until(lambda: words(rig, "far")[-1] == "No such process", 1 + LOADED)
    assert set(words(rig, "far")[1:-1]) <= {"Input/output error", "Connection refused"}
    ends(rig, "out-from", ENDED, LOADED)
    ends(rig, "home-to", {"ECONNRESET"}, LOADED)
    goes_on(rig)
    ends(rig, "near-from", {"same"}, 40)
    assert {rig.node(name)["state"] for name in ("west", "near", "takes-near")} == {"ready"}
    down(rig)
