"""Strangers at the attach socket: how many, how long, and what of them anybody else notices (contracts 2)."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hmx.attach import AttachError, Request, pack_request, unpack_reply
from hv_node import attach
from hv_node.lobby import ADMITS, HANDSHAKE_S, REFUSALS_TOLD, STRANGERS, Lobby

GUEST = Request("app", bytes(16))


class Scene:
    """A lobby that lets in guest `app`, strangers who connect to it, and what is told of them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.told: list[list[Any]] = []
        self.let_in: list[socket.socket] = []
        self.guests: list[socket.socket] = []
        self.lobby = Lobby(self.path, self.introduce, lambda *event: self.told.append([*event]))

    def introduce(self, connection: socket.socket, request: Request) -> None:
        if request != GUEST:
            raise AttachError(f"no {request.name!r} here")
        self.let_in.append(connection)

    def stranger(self, says: bytes = b"") -> socket.socket:
        """Somebody new at the door, who may have spoken already."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        connection.setblocking(False)
        if says:
            connection.send(says)
        self.guests.append(connection)
        return connection

    def settle(self) -> None:
        """Turns until nobody wants anything; they are bounded."""
        for _ in range(10 * STRANGERS):
            self.lobby.turn()

    def inside(self, count: int) -> list[socket.socket]:
        """So many silent ones, each accepted before the next comes."""
        made = []
        for _ in range(count):
            made.append(self.stranger())
            self.lobby.turn()
        return made

    def close(self) -> None:
        self.lobby.close()
        for connection in (*self.guests, *self.let_in):
            connection.close()


@pytest.fixture
def scene(short_tmp_path: Path) -> Iterator[Scene]:
    made = Scene(short_tmp_path / "attach")
    yield made
    made.close()


def words(connection: socket.socket) -> str | None:
    """What somebody was refused with; None while nothing was said."""
    with contextlib.suppress(BlockingIOError):
        reply = unpack_reply(connection.recv(4096))
        assert reply.refused
        assert connection.recv(1) == b"", "a refusal is the end"
        return reply.text
    return None


def test_the_longest_silent_makes_room(scene: Scene) -> None:
    """As many as there are places wait; the next takes the place of the first, who is told so."""
    silent = scene.inside(STRANGERS)
    assert len(scene.lobby) == STRANGERS
    assert {words(one) for one in silent} == {None}
    scene.inside(3)
    assert len(scene.lobby) == STRANGERS
    assert [words(one) for one in silent] == [f"{STRANGERS} others wait too, and none was silent for longer"] * 3 + [
        None
    ] * (STRANGERS - 3)


def test_a_guest_gets_in_past_any_number_of_silent_ones(scene: Scene) -> None:
    """Silent ones before it and behind it, at the door and inside."""
    scene.inside(STRANGERS)
    crowd = [scene.stranger() for _ in range(20)]
    scene.stranger(pack_request(GUEST))
    crowd += [scene.stranger() for _ in range(20)]
    scene.settle()
    assert len(scene.let_in) == 1
    assert len(scene.lobby) == STRANGERS
    assert {words(one) for one in crowd} == {None}


def test_who_has_spoken_is_not_refused_for_silence(scene: Scene) -> None:
    """The first to go has said something that nobody had time to hear: it is heard."""
    first, *_ = scene.inside(STRANGERS)
    first.send(pack_request(GUEST))
    lobby = scene.lobby
    scene.stranger()
    lobby._accept()  # the listener's turn comes before the first one's
    assert len(scene.let_in) == 1
    second = scene.inside(1)[0]
    second.send(pack_request(GUEST))
    lobby.tick(time.monotonic() + HANDSHAKE_S)
    assert len(scene.let_in) == 2
    assert len(lobby) == 0


def test_silence_is_ended(scene: Scene) -> None:
    """After some seconds, with the reason."""
    (silent,) = scene.inside(1)
    scene.lobby.tick(time.monotonic())
    assert words(silent) is None
    scene.lobby.tick(time.monotonic() + HANDSHAKE_S)
    assert words(silent) == "nothing was said for 5 s"
    assert len(scene.lobby) == 0


def test_newcomers_have_a_bounded_turn(scene: Scene) -> None:
    """However many speak at once, one turn serves a few of them."""
    for silent in scene.inside(3 * ADMITS):
        silent.send(b"x")
    scene.lobby.turn()
    assert scene.lobby.refusals == ADMITS


def test_refusals_are_told_within_limits(scene: Scene) -> None:
    """Who is refused a hundred times between two ticks makes a few lines, not a hundred."""
    for _ in range(100):
        scene.stranger(b"x")
        scene.lobby.turn()
        scene.lobby.turn()
    assert scene.told == [["attach-refused", "attach request of 1 bytes; it has at least 24"]] * REFUSALS_TOLD
    scene.lobby.tick(0.0)
    assert scene.told[-1] == ["attach-refused", f"{100 - REFUSALS_TOLD} more"]
    scene.stranger(b"x")
    scene.settle()
    assert len(scene.told) == REFUSALS_TOLD + 2


def test_others_are_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the user who runs the lab: whoever else gets as far as the socket is told so, unheard."""
    monkeypatch.setattr(attach, "peer_uid", lambda _: 12345)
    other = scene.stranger()
    scene.stranger(pack_request(GUEST))
    scene.settle()
    assert words(other) == "only the user who runs the lab may attach"
    assert not scene.let_in


class NoDescriptors:
    """A listener in a process, or on a machine, that has no descriptor left."""

    def __init__(self, listener: socket.socket, number: int) -> None:
        self.listener = listener
        self.number = number
        self.asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.number:
            raise OSError(self.number, "no more of them")
        return self.listener.accept()

    def fileno(self) -> int:
        return self.listener.fileno()

    def close(self) -> None:
        self.listener.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_nothing_spins(scene: Scene, number: int) -> None:
    """Silent ones go, one for each that could not be accepted; then the door is shut until the next tick."""
    silent = scene.inside(3)
    none_left = NoDescriptors(scene.lobby._listener, number)
    scene.lobby._listener = none_left  # type: ignore[assignment]
    guest = scene.stranger(pack_request(GUEST))
    scene.settle()
    assert none_left.asked == 4
    assert [words(one) for one in silent] == ["the hypervisor has no descriptors left (no more of them)"] * 3
    assert not scene.lobby._epoll.poll(0), "it does not wake the hypervisor again"
    scene.lobby.tick(0.0)
    scene.settle()
    assert none_left.asked == 5, "one look for each tick"
    none_left.number = 0
    scene.lobby.tick(0.0)
    scene.settle()
    assert len(scene.let_in) == 1
    assert words(guest) is None
