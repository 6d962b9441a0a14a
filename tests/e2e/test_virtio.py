"""VirtIO devices in running labs: file systems that are read and written through them, frames, sockets, deaths."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import ROOT, Rig, finish, lab, wait_until
from tests.guest_node.test_tap import ALONE, alone

pytestmark = pytest.mark.timeout(240)

LIBRARY = ROOT / "topologies" / "library"
IMAGE = "../../build/virtio-blk.img"
MIB = 1 << 20
TOOLS = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
DEADLINE = 150.0
WITHIN = 30.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""
RUNTIMES = ["processes", "inline"]


def tool(*words: str | Path) -> str:
    """What a tool of e2fsprogs prints; it must be content."""
    assert shutil.which(str(words[0]), path=TOOLS["PATH"]), f"{words[0]} is missing: apt-get install e2fsprogs"
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, env={**os.environ, **TOOLS}
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system with what stands in `docs`, and with a file of 1 MiB."""
    directory = tmp_path_factory.mktemp("image")
    (directory / "tree").mkdir()
    for path in (ROOT / "docs").glob("*.md"):
        shutil.copy(path, directory / "tree" / path.name)
    (directory / "tree" / "spare.bin").write_bytes(b"spare" * (MIB // 5))
    image = directory / "disk.img"
    tool("mke2fs", "-q", "-t", "ext4", "-d", directory / "tree", image, "16M")
    return image


def shipped(rig: Rig, name: str, source: Path) -> str:
    """A topology of the library, with this test's image."""
    return rig.topology((LIBRARY / f"{name}.yaml").read_text().replace(IMAGE, str(source)), f"{name}.yaml")


def run(rig: Rig, path: str, *options: str) -> dict[str, Any]:
    """Run a topology to its end, which must be good."""
    done = finish(rig.start("run", path, *options, "--format", "json"), DEADLINE)
    outcome: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    assert done.returncode == 0, (outcome.get("reasons"), done.stderr, logs(rig))
    assert all(check["passed"] for check in outcome["checks"])
    assert rig.leftovers() == []
    return outcome


def logs(rig: Rig) -> str:
    """The end of every node's log."""
    return "\n".join(f"{path.parent.name}: {path.read_text()[-2000:]}" for path in rig.base.glob("*/nodes/*/log"))


def results(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node["result"] or {} for node in outcome["nodes"]}


def same_file_system(copy: Path, source: Path) -> None:
    """Equal to the last byte, clean, and with the same files."""
    assert copy.read_bytes() == source.read_bytes()
    tool("e2fsck", "-fn", copy)
    assert tool("debugfs", "-R", "ls -l", copy) == tool("debugfs", "-R", "ls -l", source)
    assert "spare.bin" in tool("debugfs", "-R", "ls", copy)


# ---- blk ----


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_block_is_read_and_written(rig: Rig, source: Path, runtime: str) -> None:
    """The shipped topology: a copy by one guest's reads, another one by another guest's writes, both clean."""
    before = source.read_bytes()
    outcome = run(rig, shipped(rig, "virtio-blk", source), "--runtime", runtime)
    nodes = Path(outcome["run_dir"]) / "nodes"
    same_file_system(nodes / "reader" / "copy.img", source)
    same_file_system(nodes / "scratch" / "disk.img", source)
    found = results(outcome)
    assert found["reader"]["sha256"] == found["writer"]["sha256"]
    assert found["reader"]["bytes"] == 16 * MIB
    assert source.read_bytes() == before
    for name in ("disk", "scratch"):
        assert (found[name]["sessions"], found[name]["lost"]) == (1, 0)


def blocks_of(image: Path, file: str, block: int = 4096) -> tuple[int, int]:
    """Offset and length in bytes of the first stretch of a file that lies in one piece."""
    numbers = [int(word) for word in tool("debugfs", "-R", f"blocks {file}", image).split()]
    count = 1
    while count < len(numbers) and numbers[count] == numbers[0] + count:
        count += 1
    found = re.search(r"Block size:\s+(\d+)", tool("dumpe2fs", "-h", image))
    assert found is not None
    return numbers[0] * int(found[1]), count * int(found[1])


FILE_LAB = """
name: files
hypervisors: {{hv0: {{argo: {{mac-permissive: true}}}}}}
kinds:
  user: {{on: hv0, implicit-only: true, memory: 16MiB, devices: [{{type: blk, variant: {variant}, queues: 2}}]}}
guests:
  disk: {{on: hv0, program: builtin:blk-server, with: {{image: {image}, copy: mine.img, queues: 2, sessions: 2}}}}
  writer:
    {{kind: user, program: builtin:blk-write, with: {{offset: {offset}, size: 4KiB, count: {count}, depth: 16}}}}
  other: {{kind: user, program: builtin:blk-copy, with: {{output: other.img}}}}
destinations:
  - {{from: writer, service: storage, to: disk}}
  - {{from: other, service: storage, to: disk}}
checks:
  - {{guest: writer, expect: {{exit: 0}}, within: 60s}}
  - {{guest: other, expect: {{exit: 0}}, within: 60s}}
  - {{guest: disk, expect: {{exit: 0}}, within: 60s}}
"""


@pytest.mark.parametrize("variant", ["inline", "mirror"])
def test_blocks_of_a_file_are_written_in_place(rig: Rig, source: Path, variant: str) -> None:
    """One guest writes the blocks of a file while another reads the disk: the file has them, the rest is as it was."""
    offset, length = blocks_of(source, "spare.bin")
    count = length // 4096
    assert count >= 100
    text = FILE_LAB.format(image=source, offset=offset, count=count, variant=variant)
    outcome = run(rig, rig.topology(text))
    nodes = Path(outcome["run_dir"]) / "nodes"
    mine = (nodes / "disk" / "mine.img").read_bytes()
    before = source.read_bytes()
    assert (mine[:offset], mine[offset + length :]) == (before[:offset], before[offset + length :])
    assert mine[offset : offset + length] != before[offset : offset + length]
    tool("e2fsck", "-fn", nodes / "disk" / "mine.img")
    assert tool("debugfs", "-R", "ls -l", nodes / "disk" / "mine.img") == tool("debugfs", "-R", "ls -l", source)
    other = (nodes / "other" / "other.img").read_bytes()
    for at in range(offset, offset + length, 4096):
        assert other[at : at + 512] in (before[at : at + 512], mine[at : at + 512]), "each sector is old or new"
    assert other[:offset] == before[:offset]


def test_an_image_that_is_not_there(rig: Rig) -> None:
    """What to type is in the log, and the run says which guest it was."""
    guests = "  disk: {on: hv0, memory: 16MiB, program: builtin:blk-server, with: {image: nowhere.img}}\n"
    done = rig.run("run", rig.topology(lab(guests)))
    assert done.returncode == 1, done.stderr
    assert "there is no disk: [Errno 2] No such file or directory" in done.stdout + done.stderr
    said = (rig.base / "lab" / "nodes" / "disk" / "log").read_text()
    assert f"mke2fs -q -t ext4 -d DIRECTORY {rig.topologies}/nowhere.img 16M" in said
    assert rig.leftovers() == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_back_ends_elsewhere(rig: Rig, source: Path, runtime: str) -> None:
    """The shipped topology: on another machine, around and inside a nested hypervisor; every copy is the image."""
    outcome = run(rig, shipped(rig, "virtio-two-hosts", source), "--runtime", runtime)
    nodes = Path(outcome["run_dir"]) / "nodes"
    for name in ("app", "below", "above"):
        same_file_system(nodes / name / "copy.img", source)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_way_it_is_done_today(rig: Rig, source: Path, runtime: str) -> None:
    """The shipped topology: virtio-mmio with a device model, by every way to reach memory, on x86 and Arm."""
    outcome = run(rig, shipped(rig, "virtio-mmio", source), "--runtime", runtime)
    nodes, found = Path(outcome["run_dir"]) / "nodes", results(outcome)
    for name in ("maps", "grants", "copies", "dma", "guarded", "argo", "arm-maps"):
        assert (nodes / name / "copy.img").read_bytes() == source.read_bytes(), name
    disk, arm = found["disk"], found["arm-disk"]
    assert (disk["sessions"], arm["sessions"], disk["lost"], disk["trouble"]) == (6, 1, 0, 0)
    assert disk["maps"] == disk["unmaps"] > arm["maps"] == arm["unmaps"] > 4096, "each page of a buffer, in both"
    # Two readers' bytes are copied from mapped pages by the back end, three readers' by the hypervisor.
    assert 2 * 16 * MIB < disk["copied_by_back_end"] < 2.1 * 16 * MIB
    assert 3 * 16 * MIB < disk["copied_by_hypervisor"] < 3.1 * 16 * MIB
    assert arm["copied_by_hypervisor"] == 0 and disk["round_trips"] > 2 * arm["round_trips"] > 100
    counted = {node["name"]: node["counters"] for node in outcome["nodes"] if node["kind"] == "hypervisor"}
    assert counted["hv0"]["arch"]["disk"]["pages_mapped"] >= disk["maps"]


AWAY = """
name: away
hosts: {{lab1: {{provider: local}}, lab2: {{provider: local}}}}
defaults: {{argo: {{mac-permissive: true}}, memory: 16MiB}}
hypervisors: {{west: {{host: lab1}}}}
kinds: {{user: {{on: west, implicit-only: true, with: {{within: 30s}}}}}}
guests:
  disk: {{on: west, program: builtin:blk-server, with: {{image: {image}, read-only: true}}}}
  far-app: {{kind: user, host: lab2, devices: [{{type: blk}}], program: builtin:blk-copy}}
  far-disk: {{on: west, host: lab2, program: builtin:blk-server, with: {{blank: 4MiB, instance: 1}}}}
  app:
    kind: user
    devices: [{{type: blk, instance: 1, variant: mirror}}]
    program: builtin:blk-write
    with: {{within: 30s, count: 256}}
destinations:
  - {{from: far-app, service: storage, to: disk}}
  - {{from: app, service: storage, instance: 1, to: far-disk}}
checks:
  - {{guest: far-app, expect: {{exit: 0}}, within: 100s}}
  - {{guest: app, expect: {{exit: 0}}, within: 100s}}
"""


def test_guests_on_another_host_than_their_hypervisor(rig: Rig, source: Path) -> None:
    """Front end or back end attached through the broker, in memory that travels."""
    found = results(run(rig, rig.topology(AWAY.format(image=source))))
    assert found["far-app"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (found["app"]["wrong"], found["app"]["bytes"]) == (0, MIB)


# ---- death ----

DYING = """
name: dying
hypervisors: {{hv0: {{restart: on-failure, argo: {{mac-permissive: true}}}}}}
guests:
  disk: {{on: hv0, restart: on-failure, program: builtin:blk-server, with: {{blank: 16MiB}}}}
  writer:
    on: hv0
    restart: on-failure
    devices: [{{type: blk, variant: {variant}}}]
    program: builtin:blk-write
    with: {{file: {image}, within: 30s, depth: 1}}
destinations:
  - {{from: writer, service: storage, to: disk}}
checks:
  - {{guest: writer, expect: {{exit: 0}}, within: 120s}}
  - {{guest: disk, expect: {{exit: 0}}, within: 120s}}
"""


@pytest.mark.parametrize(
    ("victim", "variant"),
    [("disk", "inline"), ("disk", "mirror"), ("writer", "inline"), ("writer", "mirror"), ("hv0", "mirror"),
     ("broker", "inline")],
)  # fmt: skip
def test_somebody_is_killed(rig: Rig, source: Path, victim: str, variant: str) -> None:
    """Started again it goes on: in the end the disk has every byte, and its back end has seen one goodbye."""
    command = rig.start("run", rig.topology(DYING.format(image=source, variant=variant)), "--format", "json")
    disk = rig.base / "dying" / "nodes" / "disk" / "disk.img"
    wait_until(lambda: disk.exists() and rig.node(victim)["pid"] is not None, WITHIN)
    pid = rig.node(victim)["pid"]  # asked before it counts: sixteen MiB are soon written
    wait_until(lambda: disk.stat().st_blocks > 0, WITHIN)
    os.kill(pid, signal.SIGKILL)
    done = finish(command, DEADLINE)
    outcome = json.loads(done.stdout)
    assert done.returncode == 0, (outcome["reasons"], done.stderr, logs(rig))
    found = {node["name"]: node for node in outcome["nodes"]}
    assert found[victim]["restarts"] == 1
    assert disk.read_bytes() == source.read_bytes()
    if victim == "disk":
        assert found["writer"]["result"]["resets"] >= 1, "it was killed too late"
    assert found["disk"]["result"]["sessions"] == 1
    rig.wait_for_nothing()


# ---- the other devices ----


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_other_devices(rig: Rig, runtime: str) -> None:
    """The shipped topology: frames through the switch, a console that echoes, entropy, sockets."""
    outcome = run(rig, str(LIBRARY / "virtio-devices.yaml"), "--runtime", runtime)
    found = results(outcome)
    ada, ben, switch = found["ada"], found["ben"], found["switch"]
    assert (ada["count"], ada["wrong"], ada["bytes"]) == (100, 0, 2 * 100 * 1400)
    assert ada["peer"] == ben["address"] != ada["address"]
    assert switch["ports"] == 2 and switch["frames_in"] >= switch["frames_out"] >= 204
    assert 1 <= switch["flooded"] <= 3 + ada["repeated"], "only until both addresses were learned"
    assert (found["terminal"]["lines"], found["terminal"]["wrong"]) == (16, 0)
    assert (Path(outcome["run_dir"]) / "nodes/gambler/noise.bin").stat().st_size == 65536
    assert (found["caller"]["peer"], found["called"]["cid"], found["caller"]["wrong"]) == (5, 5, 0)
    assert (found["knocker"]["peer"], found["knocker"]["wrong"]) == (2, 0)


TAP_LAB = """
name: tap
defaults: {argo: {mac-permissive: true}, memory: 16MiB}
hypervisors: {hv0: {}}
guests:
  app: {on: hv0, devices: [{type: net}], program: builtin:net-ping, with: {count: 50, within: 20s}}
  switch: {on: hv0, program: builtin:net-switch, with: {tap: argosy0}}
destinations: [{from: app, service: net, to: switch}]
checks:
  - {guest: app, expect: {exit: 0}, within: 40s}
  - {guest: switch, expect: {exit: 0}, within: 40s}
"""
TAP_HOST = """
import fcntl, json, socket, struct, subprocess, sys
from guest_node.programs.ethernet import Kind, Message, pack, unpack

HOST = bytes.fromhex("02aabbccddee")
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as host:
    while command.poll() is None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", b"argosy0", 1))
            host.bind(("argosy0", 0x88B5))
            break
        except OSError:
            pass
    host.settimeout(0.1)
    while command.poll() is None:
        try:
            frame = host.recv(2048)
        except OSError:
            continue
        asked = unpack(frame)
        if asked and asked.source != HOST:
            kind = {Kind.QUESTION: Kind.ANSWER, Kind.END: Kind.ENDED}[asked.kind]
            host.send(pack(Message(asked.source, HOST, kind, asked.number, asked.body)))
sys.stdout.write(command.stdout.read())
sys.exit(command.returncode)
"""


@pytest.mark.skipif(not alone(), reason="no network namespaces, or no /dev/net/tun")
def test_a_tap_interface_of_the_host(rig: Rig) -> None:
    """A guest exchanges frames with a program of the host, in a network of their own."""
    argosy = [sys.executable, "-m", "topologies.cli", "run", rig.topology(TAP_LAB), "--format", "json"]
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", TAP_HOST, *argosy],
        capture_output=True, text=True, check=False, timeout=100, cwd=rig.topologies, env=rig.environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr, logs(rig))
    found = results(json.loads(done.stdout))
    assert (found["app"]["wrong"], found["app"]["peer"]) == (0, "02:aa:bb:cc:dd:ee")
    assert found["switch"]["ports"] == 2
    inline = rig.run("run", "lab.yaml", "--runtime", "inline")
    assert inline.returncode == 1 and "no TAP interface" in inline.stdout
