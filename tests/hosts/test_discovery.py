"""Every path by which a guest finds a service leads to back ends on other hosts; what comes and goes is seen.

Rules: issue "levels and hosts", 5; uXen's bitmap of storage units and device table, well-known ports, implicit
destinations, the Argo device of ACPI tables and device trees (experimental).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import wait_until
from tests.hosts.labs import Ran, alone, over_ssh
from tests.hosts.network import HostsRig

PROGRAMS = Path(__file__).parent / "programs"
WITHIN = 15.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""

STORAGE = {
    "name": "far-storage",
    "defaults": {"argo": {"mac-permissive": True}},
    "hypervisors": {"uxen": {"personality": "uxen", "host": "lab1"}, "far": {"arch": "aarch64", "host": "lab2"}},
    "guests": {
        "device-model": {
            "on": "uxen", "control": True, "program": "builtin:v4v-store",
            "with": {"serves": {"app": [0, 1]}, "disks": "far"},
        },
        "app": {"on": "uxen", "storage": [0, 1], "program": "builtin:v4v-disk", "with": {"within": "30s"}},
        "disks": {
            "on": "far", "program": "builtin:v4v-store",
            "with": {"serves": {"device-model": [0, 1]}, "over": "argo"},
        },
    },
    "destinations": [
        {"from": "device-model", "service": "storage", "instance": unit, "to": "disks"} for unit in (0, 1)
    ],
    "checks": [
        {"guest": name, "expect": {"exit": 0}, "within": "60s"} for name in ("app", "device-model", "disks")
    ],
}  # fmt: skip


@pytest.mark.parametrize("where", ["three hosts", "one machine", "inline"])
def test_uxen_storage_on_an_arm_host(world: HostsRig, where: str) -> None:
    """The library's v4v-disk, unchanged: units by table and bitmap, writes, reads and compares; disks on Arm."""
    data = over_ssh(STORAGE) if where == "three hosts" else alone(STORAGE)
    ran = Ran(world, data, arguments=("--runtime", "inline") if where == "inline" else ())
    app, model, disks = (ran.results[name] for name in ("app", "device-model", "disks"))
    assert (app["units"], app["wrong"], app["bytes"]) == ([0, 1], 0, 2 * 2 * 16 * 8 * 512)
    assert (model["shown"], model["refused"], disks["refused"]) == (2, 0, 0)
    assert disks["bytes"] >= app["bytes"]
    world.network.wait_for_nothing()


# ---- every path, in one lab ----

HYPERVISORS = {
    "uxen": {"personality": "uxen", "host": "lab1"},
    "x86": {"firmware": "acpi", "host": "lab1"},
    "arm": {"arch": "aarch64", "personality": "kvm", "firmware": "devicetree", "host": "lab2"},
    "far": {"host": "lab3"},
    "farther": {"arch": "aarch64", "host": "lab2"},
}
ROWS = (
    ("device-model", "storage", 0, "disks"), ("implicit", "echo", 0, "near-end"),
    ("acpi", "echo", 0, "near-end"), ("acpi", "console", 0, "near-end"), ("acpi", "console", 1, "near-end"),
    ("tree", "echo", 0, "near-end"), ("tree", "console", 1, "near-end"),
)  # fmt: skip
"""The patch panel at the start.  `near-end` is on host lab3, which is another one for everybody; so is `other-end`,
on lab2, but for `tree`, which finds it beside its own hypervisor."""


def lab(directory: Path) -> dict[str, Any]:
    """A watcher for each path; on other hosts than theirs two back ends, and the disks of the uXen guest."""

    def watcher(on: str, how: str, **more: Any) -> dict[str, Any]:
        keys = {"on": on, "program": "discovery:watches", "with": {"directory": str(directory), "how": how, **more}}
        return {"implicit-only": how in ("implicit", "firmware"), **keys}

    def end(on: str) -> dict[str, Any]:
        given = {"directory": str(directory), "services": ["echo", "console", "console:1"]}
        return {"on": on, "program": "discovery:offers", "with": given}

    return {
        "name": "discovery",
        "defaults": {"memory": "16MiB", "argo": {"mac-permissive": True}},
        "hypervisors": HYPERVISORS,
        "guests": {
            "device-model": {
                "on": "uxen", "control": True, "program": "builtin:v4v-store",
                "with": {"serves": {"bitmap": [0, 1]}, "disks": "far", "sessions": 0},
            },
            "bitmap": watcher("uxen", "bitmap") | {"storage": [0, 1]},
            "known": watcher("x86", "known", services=["echo"], to="near-end"),
            "implicit": watcher("x86", "implicit", services=["echo", "console"]),
            "acpi": watcher("x86", "firmware"),
            "tree": watcher("arm", "firmware"),
            "near-end": end("far"),
            "other-end": end("farther"),
            "disks": {
                "on": "far", "program": "builtin:v4v-store",
                "with": {"serves": {"device-model": [0, 1]}, "over": "argo", "sessions": 0},
            },
        },
        "destinations": [dict(zip(("from", "service", "instance", "to"), row, strict=True)) for row in ROWS],
    }  # fmt: skip


class Discovery:
    """The lab, up; `spread`: over three hosts.  What its guests write down is in `directory`."""

    def __init__(self, rig: HostsRig, directory: Path, spread: bool) -> None:
        self.rig = rig
        self.directory = directory
        self.spread = spread

    def change(self, *words: str) -> None:
        """Change the patch panel, live."""
        done = self.rig.run(*words)
        assert done.returncode == 0, done.stderr

    def lines(self, name: str) -> list[str]:
        """Each change that a watcher has seen."""
        file = self.directory / f"seen-{name}"
        return file.read_text().splitlines() if file.exists() else []

    def seen(self, name: str) -> dict[str, str]:
        """What a watcher has found at last."""
        lines = self.lines(name)
        found: dict[str, str] = json.loads(lines[-1]) if lines else {"nothing": "yet"}
        return found

    def sees(self, name: str, **services: str) -> None:
        """It finds these, and they answer so; `echo_0` is echo:0."""
        wanted = {key.replace("_", ":"): words for key, words in services.items()}
        try:
            wait_until(lambda: self.seen(name) == wanted, WITHIN)
        except AssertionError:
            raise AssertionError(f"{name} sees {self.lines(name)[-3:]}, not {wanted}") from None

    def unplug(self, name: str, unplugged: bool = True) -> None:
        """Take a back end's rings away, or give them back."""
        file = self.directory / f"unplugged-{name}"
        file.touch() if unplugged else file.unlink()


@pytest.fixture(scope="module", params=["three hosts", "one machine"])
def up(world: HostsRig, request: pytest.FixtureRequest) -> Iterator[Discovery]:
    """One lab for all paths; the tests change different rows of its patch panel."""
    shutil.copy(PROGRAMS / "discovery.py", world.topologies / "discovery.py")
    spread = request.param == "three hosts"
    directory = world.runtime / ("spread" if spread else "alone")
    directory.mkdir()
    data = lab(directory)
    done = world.run("up", "-d", world.topology(json.dumps(over_ssh(data) if spread else alone(data))))
    assert done.returncode == 0, done.stderr
    yield Discovery(world, directory, spread)
    assert world.run("down").returncode == 0
    world.network.wait_for_nothing()


def test_uxen_bitmap(up: Discovery) -> None:
    """A unit shows while its disk, on another host, is connected; the guest speaks SCSI over v4v as ever."""
    up.sees("bitmap", storage_0="v4v disk")
    up.change("connect", "device-model", "storage:1", "disks")
    up.sees("bitmap", storage_0="v4v disk", storage_1="v4v disk")
    up.change("disconnect", "device-model", "storage")
    up.sees("bitmap", storage_1="v4v disk")
    up.change("connect", "device-model", "storage", "disks")
    up.sees("bitmap", storage_0="v4v disk", storage_1="v4v disk")
    up.change("disconnect", "device-model", "storage:1")
    up.sees("bitmap", storage_0="v4v disk")


def test_well_known_port(up: Discovery) -> None:
    """A guest that knows the domain asks for the service's port: it is there while somebody serves it."""
    up.sees("known", echo_0="echo:0 by near-end")
    up.unplug("near-end")
    up.sees("known")
    up.unplug("near-end", unplugged=False)
    up.sees("known", echo_0="echo:0 by near-end")


def test_implicit_destination(up: Discovery) -> None:
    """A guest that knows nobody: led to one host, to another one, to a second service, and to nobody."""
    up.sees("implicit", echo_0="echo:0 by near-end")
    up.change("disconnect", "implicit", "echo")
    up.sees("implicit")
    up.change("connect", "implicit", "echo", "other-end")
    up.sees("implicit", echo_0="echo:0 by other-end")
    up.change("connect", "implicit", "console", "near-end")
    up.sees("implicit", echo_0="echo:0 by other-end", console_0="console:0 by near-end")
    up.change("disconnect", "implicit", "console")
    up.sees("implicit", echo_0="echo:0 by other-end")


@pytest.mark.parametrize(("name", "others"), [("acpi", ("console_0", "console_1")), ("tree", ("console_1",))])
def test_firmware(up: Discovery, name: str, others: tuple[str, ...]) -> None:
    """The tables, or the tree, name what the patch panel had at the start; each is there while it is connected."""
    named = {"acpi": [["console", 0xA2000, 2], ["echo", 7, 1]], "tree": [["console", 0xA2001, 1], ["echo", 7, 1]]}
    record = up.rig.json("inspect", name, "--probe")["labs"]["discovery"][name]
    assert record["firmware"]["services"] == named[name]
    words = {key: f"{key.replace('_', ':')} by near-end" for key in others}
    up.sees(name, echo_0="echo:0 by near-end", **words)
    up.change("disconnect", name, "echo")
    up.sees(name, **words)
    up.change("connect", name, "echo", "other-end")
    up.sees(name, echo_0="echo:0 by other-end", **words)
    up.unplug("other-end")
    up.sees(name, **words)
    up.unplug("other-end", unplugged=False)
    up.sees(name, echo_0="echo:0 by other-end", **words)


def test_a_back_end_dies(up: Discovery) -> None:
    """Its process on the other host is killed: all that was led to it no longer find it."""
    [pid] = [node["pid"] for state in up.rig.states() for node in state["nodes"] if node["name"] == "near-end"]
    (up.rig.network["lab3"] if up.spread else up.rig.leader).signal(pid)
    up.sees("known")
    wait_until(lambda: not any("near-end" in words for words in up.seen("acpi").values()), WITHIN)
    wait_until(lambda: not any("near-end" in words for words in up.seen("tree").values()), WITHIN)
    up.sees("bitmap", storage_0="v4v disk")
