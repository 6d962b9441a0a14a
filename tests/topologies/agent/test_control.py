"""The control socket: who is served, what is answered, and that nobody can make the agent wait."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from topologies.agent import control
from topologies.agent.control import Client, ControlSocket, LineWriter, ask


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, Client]]:
    """The other end, and the agent's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs, Client(ours)


def test_a_request_may_come_in_pieces(connected: tuple[socket.socket, Client]) -> None:
    """One JSON object per line, however it is cut."""
    other, client = connected
    assert client.request() is None
    other.send(b'{"op": ')
    assert client.request() is None
    other.send(b'"state"}\n')
    assert client.request() == {"op": "state"}
    other.close()
    with pytest.raises(ConnectionError):
        client.request()


@pytest.mark.parametrize(
    "data", [b"[]\n", b"{\n", b"\xff\xfe\n", b"x" * control.MAX_REQUEST], ids=["list", "open", "bytes", "endless"]
)
def test_what_is_no_request(connected: tuple[socket.socket, Client], data: bytes) -> None:
    """Refused; the client is dropped by its owner."""
    other, client = connected
    other.send(data)
    with pytest.raises(ValueError):
        client.request()


def test_a_reader_that_does_not_read_is_not_waited_for() -> None:
    """What it does not take is kept up to a limit; beyond that it is given up."""
    read, write = os.pipe()
    writer = LineWriter(write, limit=200_000)
    for _ in range(100):
        writer.write({"words": "x" * 10_000})
    assert (writer.broken, writer.pending) == (True, False)
    os.close(read)
    os.close(write)


def test_what_was_kept_arrives_in_order() -> None:
    """A slow reader loses nothing below the limit."""
    read, write = os.pipe()
    writer = LineWriter(write)
    for n in range(50):
        writer.write({"n": n, "fill": "x" * 10_000})
    got = bytearray()
    reads = 0
    while writer.pending:
        got += os.read(read, 65536)
        writer.flush()
        reads += 1
    assert reads > 1
    os.close(write)
    while data := os.read(read, 65536):
        got += data
    os.close(read)
    assert [json.loads(line)["n"] for line in got.splitlines()] == list(range(50))


def test_a_reader_that_left_is_no_error() -> None:
    """The launcher may be killed at any moment."""
    read, write = os.pipe()
    writer = LineWriter(write)
    os.close(read)
    writer.write({"n": 1})
    writer.write({"n": 2})
    assert (writer.broken, writer.pending) == (True, False)
    os.close(write)


def test_another_user_is_not_served(short_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_PEERCRED: the lab's user, or root."""
    listening = ControlSocket(short_tmp_path / "control")
    for uid, served in ((os.geteuid(), True), (0, True), (os.geteuid() + 1, False)):
        monkeypatch.setattr(control, "peer_uid", lambda _connection, uid=uid: uid)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(listening.path))
            client = listening.accept()
            assert (client is not None) == served
            if not served:
                assert other.recv(1) == b""
    listening.close()
    assert not listening.path.exists()


def test_peer_uid_is_the_kernel_s_word() -> None:
    """Both ends of this pair are ours."""
    ours, theirs = socket.socketpair()
    assert control.peer_uid(ours) == os.geteuid()
    ours.close()
    theirs.close()


def test_ask(short_tmp_path: Path) -> None:
    """Every line is passed on until the agent closes; without an agent the answer is False."""
    path = short_tmp_path / "control"
    answers: list[dict[str, Any]] = []
    assert not ask(path, "state", answers.append, 1.0)
    listening = ControlSocket(path)
    listening.listener.setblocking(True)

    def serve() -> None:
        client = listening.accept()
        assert client is not None
        client.connection.setblocking(True)
        assert client.request() == {"op": "down"}
        client.writer.write({"n": 1})
        client.writer.write({"n": 2})
        listening.drop(client)

    server = threading.Thread(target=serve)
    server.start()
    assert ask(path, "down", answers.append, 5.0)
    server.join()
    listening.close()
    assert answers == [{"n": 1}, {"n": 2}]
