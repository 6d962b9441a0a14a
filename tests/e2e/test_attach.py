"""The attach socket of a running hypervisor: who is let in, what is refused, what it says (project handshake)."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmx.attach import AttachError, Request, pack_request, unpack_reply, unpack_request
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


@pytest.mark.long
def test_a_million_malformed_requests(lab: Path) -> None:
    """Cut short, stretched, bent in any field: each connection ends, and afterwards the hypervisor still answers."""
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
