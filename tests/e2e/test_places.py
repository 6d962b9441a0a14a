"""Places that will not do: a full disk, no permission, a path in use, long names.  Clear words, right exit code."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import PEERS, Rig, finish, guest, lab, wait_until

pytestmark = pytest.mark.timeout(60)

NO_MOUNT = "only root can mount a small file system"


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of so few bytes at `path`."""
    path.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "argosy-test", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(NO_MOUNT)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> None:
    """Take every byte that is left."""
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        for size in (4096, 64, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_full_disk_below_the_run_directory(rig: Rig) -> None:
    """Exit code 4, the reason and the place; nothing runs on."""
    rig.program(PEERS)
    file = rig.topology(lab(guest("app", "waits")))
    with small_disk(rig.runtime / "disk", "64k") as disk:
        fill(disk)
        done = rig.run("run", file, "--run-dir", str(disk / "lab"))
        assert done.returncode == 4, (done.stdout, done.stderr)
        assert "No space left on device" in done.stderr
        assert str(disk / "lab") in done.stderr
    rig.wait_for_nothing()


def test_a_disk_that_fills_up_while_the_lab_runs(rig: Rig) -> None:
    """The same; the lab does not go on without being able to tell of itself."""
    rig.program(PEERS)
    file = rig.topology(lab(guest("app", "waits")))
    with small_disk(rig.runtime / "disk", "256k") as disk:
        command = rig.start("run", file, "--run-dir", str(disk / "lab"))
        wait_until(lambda: rig.node("app")["state"] == "ready")

        def over() -> bool:
            fill(disk)  # again and again: a state that was just being replaced gives its room back
            return command.poll() is not None

        wait_until(over)
        done = finish(command)
        assert done.returncode == 4, (done.stdout, done.stderr)
        assert "No space left on device" in done.stderr
        rig.wait_for_nothing()


def test_a_place_where_nothing_may_be_made(rig: Rig) -> None:
    """Exit code 4, naming the place: sysfs takes no directory from anybody."""
    rig.program(PEERS)
    done = rig.run("run", rig.topology(lab(guest("app", "waits"))), "--run-dir", "/sys/argosy")
    assert done.returncode == 4, done.stderr
    assert re.search(r"/sys/argosy cannot be made a private directory: \w", done.stderr)
    assert rig.leftovers() == []


def test_a_socket_path_in_use(rig: Rig) -> None:
    """Who is there already is left in peace; exit code 4 names the path."""
    rig.program(PEERS)
    for name, words in (("broker", "somebody listens there already"), ("attach-0", "Address already in use")):
        command = rig.start("run", rig.topology(lab(guest("app", "waits"))))
        wait_until(lambda: bool(rig.sockets()))
        path = rig.sockets()[0] / name
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(os.fspath(path))
            taken.listen()
            done = finish(command)
            assert done.returncode == 4, done.stderr
            assert words in done.stderr and str(path) in done.stderr, done.stderr
        rig.wait_for_nothing()


def test_a_name_of_200_bytes(rig: Rig) -> None:
    """Exit code 2 in the topology's terms, or it runs; whichever, nothing is left and nothing is cut short."""
    rig.program(PEERS)
    done = rig.run("run", rig.topology(lab(guest("app", "waits"), name="n" * 200)))
    assert done.returncode == 2
    assert "name" in done.stderr and "lab.yaml:1:" in done.stderr
    assert rig.run("run", "lab.yaml", "--name", "n" * 200).returncode == 2
    assert rig.leftovers() == []
