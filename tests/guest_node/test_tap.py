"""A TAP interface of the host, in a network namespace of the test's own (Linux, tuntap.rst)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guest_node.files import DirectoryFiles

ALONE = ("unshare", "--user", "--map-root-user", "--net")

SCRIPT = """
import asyncio, fcntl, socket, struct
from guest_node.tap import Tap

SIOCGIFFLAGS, SIOCSIFFLAGS, UP = 0x8913, 0x8914, 1

async def main():
    seen = []
    tap = Tap("argosy0", seen.append)
    assert not tap.send(bytes(60)), "an interface that is down takes nothing"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", b"argosy0", UP))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as host:
        host.bind(("argosy0", 0x88B5))
        frame = bytes.fromhex("ffffffffffff0200a000000188b5") + bytes(range(46))
        for _ in range(3):
            host.send(frame)
        while len([one for one in seen if one == frame]) < 3:
            await asyncio.sleep(0.01)
        assert tap.send(memoryview(frame[::-1][:12] + frame[12:]))
        assert host.recv(2048)[12:] == frame[12:]
    tap.close()
    tap.close()
    assert not tap.send(frame)
    for name in ("", "x" * 16):
        try:
            Tap(name, seen.append)
        except OSError as refused:
            assert "1 to 15 bytes" in str(refused)
        else:
            raise AssertionError(name)

asyncio.run(asyncio.wait_for(main(), 20))
"""


def alone() -> bool:
    """Whether this host lets a user have a network of its own, with TAP interfaces in it."""
    if shutil.which("unshare") is None or not Path("/dev/net/tun").exists():
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not alone(), reason="no network namespaces, or no /dev/net/tun")
def test_frames_go_both_ways() -> None:
    """What the host sends comes, what is sent the host gets; one that is down or closed takes nothing."""
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr


def test_none_in_virtual_time(tmp_path: Path) -> None:
    """Nothing outside happens in a simulation."""
    with pytest.raises(OSError, match="no part in virtual time"):
        DirectoryFiles(tmp_path, tmp_path, virtual=True).open_tap("argosy0", lambda _frame: None)
