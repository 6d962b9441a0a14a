"""What tells of labs: inspect, events, doctor."""

from __future__ import annotations

import json
import os
import platform
import signal

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until

pytestmark = pytest.mark.timeout(60)


def test_inspect(rig: Rig) -> None:
    """One record per node, with the hypervisor's counters and what the guest's probe found."""
    rig.program(PEERS)
    guests = guest("app", "counts", to="peer", directory=str(rig.runtime)) + guest("peer", "takes")
    assert rig.run("up", "-d", rig.topology(lab(guests))).returncode == 0
    wait_until(lambda: rig.sent("app") > 2)
    found = rig.json("inspect")
    assert found["schema"] == "inspect/1"
    records = {record["name"]: record for record in found["labs"]["lab"]}
    assert list(records) == ["broker", "hv0", "app", "peer"]
    app = records["app"]
    assert (app["kind"], app["state"], app["health"], app["host"]) == ("guest", "ready", "healthy", platform.node())
    assert (app["hypervisor"], app["domid"], app["arch"], app["restarts"]) == ("hv0", 1, "x86_64", 0)
    assert (app["probe"]["chosen"], app["probe"]["notification"]) == ("hypercall", "virq")
    assert app["probe"]["hypervisors"] == [{"name": "xen", "at": "0x40000000", "abi": "xen", "domid": 1}]
    assert app["counters"]["hypervisor"]["messages"] >= 2
    assert app["counters"]["hypervisor"]["hypercalls"] > app["counters"]["hypervisor"]["messages"]
    assert records["hv0"]["counters"]["host"]["frames"] > 0
    assert records["broker"]["epoch"] == 1
    assert all(os.path.exists(f"/proc/{record['pid']}") for record in records.values())

    assert list(rig.json("inspect", "lab")["labs"]) == ["lab"]
    (only,) = rig.json("inspect", "peer")["labs"]["lab"]
    assert only["name"] == "peer"
    table = rig.run("inspect", "app").stdout
    assert "probe" in table and "0x40000000" in table
    unknown = rig.run("inspect", "nobody")
    assert unknown.returncode == 3
    assert "neither a lab nor a node 'nobody' [known: app, broker, hv0, lab, peer]" in unknown.stderr

    os.kill(records["peer"]["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("peer")["state"] == "died")
    (dead,) = rig.json("inspect", "peer")["labs"]["lab"]
    assert (dead["state"], dead["health"], dead["pid"]) == ("died", "none", None)
    assert dead["last_error"] == "was killed by SIGKILL"
    assert dead["counters"]["hypervisor"]["exits"] > 0
    assert rig.run("down").returncode == 0
    ended = {record["name"]: record for record in rig.json("inspect", "lab")["labs"]["lab"]}
    assert ended["app"]["state"] == "stopped"
    assert rig.leftovers() == []


def test_events(rig: Rig) -> None:
    """In the order of time; with the state first; and to the end of the lab."""
    rig.program(PEERS)
    assert rig.run("up", "-d", rig.topology(lab(guest("app", "waits")))).returncode == 0
    follower = rig.start("events", "-f", "--format", "json")
    lines = rig.run("events", "--initial-state", "--format", "json").stdout.splitlines()
    initial = [json.loads(line) for line in lines]
    assert [(event["node"], event["event"], event["fields"]["state"]) for event in initial] == [
        ("broker", "state", "ready"),
        ("hv0", "state", "ready"),
        ("app", "state", "ready"),
    ]
    assert rig.run("down", "lab").returncode == 0
    followed = [json.loads(line) for line in finish(follower).stdout.splitlines()]
    assert [event["time"] for event in followed[:5]] == sorted(event["time"] for event in followed[:5])
    of_app = [event["event"] for event in followed if event["node"] == "app"]
    assert of_app[:2] == ["starting", "joined"]
    assert "stopped" in of_app
    assert "attached" in [event["event"] for event in followed if event["node"] == "hv0"]
    recorded = rig.run("events", "lab").stdout
    assert len(recorded.splitlines()) == len(followed)
    nothing = rig.run("events")
    assert nothing.returncode == 3
    assert rig.leftovers() == []


def test_doctor(rig: Rig) -> None:
    """This machine runs these tests, so nothing is missing; every look has its own row, and leaves nothing behind."""
    found = rig.json("doctor")
    assert found["schema"] == "doctor/1"
    looks = {look["name"]: look for look in found["looks"]}
    assert {look["verdict"] for look in looks.values()} <= {"ok", "warning"}
    assert {"python", "memfd", "eventfd", "pidfd", "socket paths", "open files", "disk space"} <= set(looks)
    assert rig.leftovers() == []


def test_doctor_names_what_is_wrong_and_what_to_do(rig: Rig) -> None:
    """Exit code 4, and a fix."""
    rig.base.symlink_to("/tmp")
    done = rig.run("doctor")
    assert done.returncode == 4
    row = next(line for line in done.stdout.splitlines() if line.startswith("base directory"))
    assert "missing" in row and "symbolic link" in row and "XDG_RUNTIME_DIR" in row
