"""The command itself, on rows of a few messages: labs of processes, peers, proof and report."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from topologies.bench import disk, labs, peers, startup
from topologies.bench.labs import OWN_TREE
from topologies.bench.rows import ROW_OF
from topologies.bench.transports import Unavailable
from topologies.exitcodes import ExitCode

DISKS = ("virtio-blk-4KiB-read", "virtio-blk-64KiB-read")
FAR = ("remote-rtt-64B", "remote-posted-64B", "remote-posted-64KiB", "nested-rtt-64B")


@pytest.mark.timeout(120)
def test_two_rows_of_few_messages() -> None:
    """`argosy bench --only ... --format json`: proven figures and ratios; nothing but JSON on standard output."""
    words = ["bench", "--only", "argo-windowed-64B,sendv-sync-64B", "--rounds", "1", "--scale", "0.02"]
    done = subprocess.run(
        [sys.executable, "-m", "topologies.cli", *words, "--format", "json"],
        env={**os.environ, "PYTHONPATH": os.fspath(OWN_TREE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr
    report = json.loads(done.stdout)
    windowed, hypercall = report["rows"]
    assert report["schema"] == "bench/1"
    assert windowed["frames"] == 1260
    assert windowed["value"] > 0
    assert {"zmq-proxy", "zmq-hv", "uds-seqpacket"} <= set(windowed["ratios"])
    assert hypercall["p99"] >= hypercall["p50"] == hypercall["value"]


@pytest.mark.parametrize("name", ["argo-inplace-1MiB", "argo-sync-256B", "argo-rtt-64B", "stream-4KiB", *DISKS, *FAR])
def test_every_kind_of_lab_proves_itself(name: str) -> None:
    assert labs.measure(ROW_OF[name], scale=0.02).value > 0


@pytest.mark.parametrize("name", sorted(peers.PEERS))
def test_every_peer_delivers_every_message(name: str) -> None:
    """With the same ledger as ours; one that is not installed says so."""
    row = next(row for row in ROW_OF.values() if name in row.peers)
    if name == "iceoryx2" and importlib.util.find_spec(name) is None:
        with pytest.raises(Unavailable, match="not installed"):
            peers.measure(name, row, 0.02)
    else:
        assert peers.measure(name, row, 0.02) > 0


def test_a_disk_that_holds_something_else_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte in each 4 KiB is wrong: the reader finds it."""
    wrong = bytearray(disk.content())
    wrong[4095::4096] = bytes(len(wrong) // 4096)
    monkeypatch.setattr(disk, "content", lambda: bytes(wrong))
    with pytest.raises(labs.LabFailed, match="not what the disk holds"):
        labs.measure(ROW_OF["virtio-blk-4KiB-read"], scale=0.02)


@pytest.mark.parametrize("name", DISKS)
def test_qemu_nbd_reads_the_same_disk(name: str) -> None:
    """Each read compared with the disk's content; where the server is not installed, that is said."""
    if shutil.which("qemu-nbd") is None:
        with pytest.raises(Unavailable, match="qemu-utils"):
            peers.measure("qemu-nbd", ROW_OF[name], 0.02)
    else:
        assert peers.measure("qemu-nbd", ROW_OF[name], 0.02) > 0


def test_a_window_through_a_ring_that_is_too_small_for_it() -> None:
    """A window of 64 through a ring of 8 messages: senders meet EAGAIN, and nothing is lost or reordered."""
    row = ROW_OF["argo-windowed-4KiB"]._replace(ring=8 * 4096 + 8 * 16)
    measured = labs.measure(row, scale=0.05)
    assert measured.columns["eagain"] > 0


def test_a_few_guests_start() -> None:
    row = ROW_OF["startup-50"]._replace(sends=3)
    measured = startup.measure(row)
    assert measured.value > 0
    assert measured.columns["guests"] == 3
    assert 0 < measured.columns["unique_mib"] < 50


@pytest.mark.long
@pytest.mark.timeout(120)
def test_200_guests_come_up() -> None:
    """They do, whatever it takes."""
    assert startup.measure(ROW_OF["startup-50"]._replace(sends=200)).columns["guests"] == 200
