"""The attach socket of a running hypervisor: who is let in, what is refused, what it says (project handshake)."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmx.attach import AttachError, Request, pack_request, unpack_reply, unpack_request
from hv_node.lobby import STRANGERS
from tests.e2e.rig import Rig, guest, wait_until
from tests.e2e.rig import lab as rig_lab
from tests.e2e.test_transfer import argosy

LAB = """
name: attaching
hypervisors: {hv0: {argo: {mac-permissive: true}}}
guests:
  echo: {on: hv0, memory: 1MiB, program: builtin:echo}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Path]:
    """A running lab; yields the directory of its sockets."""
    directory = Path(tempfile.mkdtemp(prefix="av-"))
    (directory / "lab.yaml").write_text(LAB)
    code, up, errors = argosy(directory, "up", "-d", str(directory / "lab.yaml"), "--format", "json")
    assert code == 0, errors
    try:
        yield Path(up["run_dir"]) / "sockets"
    finally:
        code, _, errors = argosy(directory, "down", "attaching", "--format", "json")
        assert code == 0, errors


def connect(lab: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.path.realpath(lab / "attach-0"))  # blocks while the backlog is full
        connection.settimeout(10)
    except BaseException:
        connection.close()
        raise
    return connection


def answer(lab: Path, message: bytes) -> str:
    """What the hypervisor answers to a first message: its refusal."""
    with connect(lab) as connection:
        connection.send(message)
        reply = unpack_reply(connection.recv(4096))
        assert reply.refused
        assert connection.recv(16) == b"", "a refusal is the end"
        return reply.text


SEQPACKET = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
GOOD = pack_request(Request("echo", bytes(16)))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (GOOD, "nobody announced a guest 'echo' here"),
        (pack_request(Request("stranger", bytes(16))), "nobody announced a guest 'stranger' here"),
        (b"x", "attach request of 1 bytes"),
        (b"NOPE" + GOOD[4:], "magic is"),
        (GOOD[:4] + b"\x09\x00" + GOOD[6:], "version is 9"),
        (GOOD + b"more", "announces a name of 4 bytes and carries 8"),
        (GOOD[:24] + b"\xff\xfe\xfd\xfc", "not UTF-8"),
        (os.urandom(900), "magic is"),
    ],
)
def test_strangers_are_refused_with_the_reason(lab: Path, message: bytes, words: str) -> None:
    """Malformed, unknown, without a token: each is told what is wrong; the echo guest stays attached."""
    assert words in answer(lab, message)


def test_silence_and_haste_do_no_harm(lab: Path) -> None:
    """Connections that say nothing, or leave at once, cost the hypervisor nothing that others notice."""
    quiet = [connect(lab) for _ in range(50)]
    for _ in range(50):
        connect(lab).close()
    assert "nobody announced" in answer(lab, GOOD)
    for connection in quiet:
        connection.close()


def test_a_connection_that_says_nothing_is_closed(lab: Path) -> None:
    """After five seconds, with the reason."""
    with connect(lab) as connection:
        reply = unpack_reply(connection.recv(4096))
        assert reply.refused and "nothing was said for 5 s" in reply.text


def test_the_attach_socket_is_private(lab: Path) -> None:
    """0600, in a directory that only its owner can enter."""
    path = Path(os.path.realpath(lab / "attach-0"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_thousand_malformed_requests(lab: Path) -> None:
    """Each is answered; afterwards the hypervisor still answers."""
    deadline = time.monotonic() + 30
    for number in range(1000):
        with contextlib.suppress(BrokenPipeError), connect(lab) as connection:
            connection.send(number.to_bytes(4, "little") * 10)
        assert time.monotonic() < deadline
    assert "nobody announced" in answer(lab, GOOD)


@pytest.mark.parametrize("data", [b"", b"AVAT", GOOD[:-1], GOOD[:24]])
def test_requests_are_checked_field_by_field(data: bytes) -> None:
    """The same parser without a process: an AttachError for everything that is not a request."""
    with pytest.raises(AttachError):
        unpack_request(data)


BOUNCES = """
import asyncio, os
from guest_node.programs.echo import DEFAULT_PORT

async def bounces(guest):
    trips = 0
    while True:
        try:
            connection = await guest.argo.connect(guest.peers["echo"], DEFAULT_PORT)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    file = os.open(guest.arguments["file"], os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        data = b"%8d" % trips
        await connection.send(data)
        assert await connection.receive_exactly(8) == data
        trips += 1
        os.pwrite(file, data, 0)

async def waits(guest):
    await asyncio.sleep(1e6)
"""
CROWD = 500


class Crowded:
    """A lab in which `app` and `echo` bounce messages, and `late` is started again whenever it dies; and a crowd."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.trips_file = rig.runtime / "trips"
        rig.program(BOUNCES)
        guests = "  echo: {on: hv0, memory: 1MiB, program: builtin:echo}\n"
        guests += guest("app", "bounces", file=str(self.trips_file)) + guest("late", "waits", restart="on-failure")
        assert rig.run("up", "-d", rig.topology(rig_lab(guests))).returncode == 0
        wait_until(lambda: self.trips() > 0)
        wait_until(lambda: rig.node("late")["state"] == "ready")
        self.pid = rig.node("hv0")["pid"]
        (self.sockets,) = rig.sockets()
        self.crowd: list[socket.socket] = []

    def trips(self) -> int:
        try:
            return int(self.trips_file.read_text() or 0)
        except OSError:
            return 0

    def descriptors(self) -> list[int]:
        return [int(name) for name in os.listdir(f"/proc/{self.pid}/fd")]

    def comes(self, count: int) -> None:
        """So many more connect, and say nothing."""
        self.crowd += (connect(self.sockets) for _ in range(count))

    def refusals(self) -> Counter[str]:
        """What was said to the crowd so far."""
        found: Counter[str] = Counter()
        for connection in self.crowd:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                found[unpack_reply(connection.recv(4096, socket.MSG_PEEK)).text] += 1
        return found

    def late_is_started_again(self, life: int) -> None:
        """It dies, and gets in as if nobody else were there; the others bounce on."""
        os.kill(self.rig.node("late")["pid"], signal.SIGKILL)
        wait_until(lambda: (self.rig.node("late")["restarts"], self.rig.node("late")["state"]) == (life, "ready"))
        before = self.trips()
        wait_until(lambda: self.trips() > before + 20)


@pytest.fixture
def crowded(rig: Rig) -> Iterator[Crowded]:
    made = Crowded(rig)
    yield made
    for connection in made.crowd:
        connection.close()
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_a_guest_gets_in_past_500_silent_connections(crowded: Crowded) -> None:
    """contracts 2: they cost the hypervisor a bounded number of descriptors, and its guests nothing."""
    before = len(crowded.descriptors())
    crowded.comes(CROWD)
    words = f"{STRANGERS} others wait too, and none was silent for longer"
    wait_until(lambda: crowded.refusals()[words] >= CROWD // 2, 10)
    assert len(crowded.descriptors()) <= before + STRANGERS + 1, "one for who comes, before another one has to go"
    assert set(crowded.refusals()) <= {words, "nothing was said for 5 s"}
    crowded.late_is_started_again(1)


def test_a_hypervisor_without_descriptors_goes_on(crowded: Crowded) -> None:
    """EMFILE: it says so to those who are silent, does not spin on the rest, and recovers."""
    limits = resource.prlimit(crowded.pid, resource.RLIMIT_NOFILE)
    os.kill(crowded.rig.node("app")["pid"], signal.SIGKILL)  # nothing else to do: time that is used is wasted
    time.sleep(1)
    free = 3
    taken = set(crowded.descriptors())
    lowest = [number for number in range(1000) if number not in taken][free]
    resource.prlimit(crowded.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    crowded.comes(60)
    used = cpu_seconds(crowded.pid)
    time.sleep(1)
    assert cpu_seconds(crowded.pid) - used < 0.5, "it spins"
    assert crowded.refusals()["the hypervisor has no descriptors left (Too many open files)"] >= 60 - free
    resource.prlimit(crowded.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    crowded.comes(10)
    used = cpu_seconds(crowded.pid)
    time.sleep(1)
    assert cpu_seconds(crowded.pid) - used < 0.5, "it spins"
    resource.prlimit(crowded.pid, resource.RLIMIT_NOFILE, limits)
    os.kill(crowded.rig.node("late")["pid"], signal.SIGKILL)
    wait_until(lambda: (crowded.rig.node("late")["restarts"], crowded.rig.node("late")["state"]) == (1, "ready"))


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.long
def test_a_million_malformed_requests(lab: Path) -> None:
    """Cut short, stretched, bent in any field, one connection each: every one ends (each eighth is waited for), and
    afterwards the hypervisor still answers.  About a minute and a half on two idle cores.
    """
    chance = random.Random(1)
    path = os.path.realpath(lab / "attach-0")
    for number in range(1_000_000):
        message = bytearray(GOOD)
        for _ in range(1 + number % 3):
            message[chance.randrange(len(message))] = chance.getrandbits(8)
        data = bytes(message[: chance.randrange(1, 40)]) if number % 4 == 0 else bytes(message)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), socket.socket(*SEQPACKET) as connection:
            connection.connect(path)
            connection.send(data)
            if number % 8 == 0:
                assert unpack_reply(connection.recv(4096)).refused
    assert "nobody announced" in answer(lab, GOOD)
