"""The attach handshake of a device model (hmx/attach.py): after the reply, the memory of each guest that it serves."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from guest_node.attach import attach
from hmx.attach import AttachError, Loan, pack_loan
from hmx.trap import Arch
from hv_node import attach as ours
from hv_node.config import DomainConfig

Answer = Callable[[socket.socket, ours.Backing, ours.Backing], object]


def attached(path: Path, targets: int, answer: Answer) -> tuple[dict[int, bytes], bytes]:
    """Attach to a hypervisor that hands over the domain of `model` and then answers.

    The first bytes of what was shared, and of the domain `app` after something else was written there.
    """
    model = ours.create_backing(DomainConfig("model", 5, 1 << 20, 1))
    target = ours.create_backing(DomainConfig("app", 7, 2 << 20, 1))
    target.ram[:5] = b"hello"
    listener = ours.listen(str(path))
    listener.setblocking(True)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            assert ours.read_request(connection) is not None
            ours.hand_over(connection, model, Arch.X86_64)
            answer(connection, model, target)

    server = threading.Thread(target=serve)
    server.start()
    try:
        found = attach(str(path), "model", bytes(16), 5.0, lambda *_: None, targets)
        shared = {domid: bytes(memory[:5]) for domid, memory in found.foreign.items()}
        for memory in found.foreign.values():
            memory[:5] = b"there"
        found.connection.close()
        for bell in found.bells:
            bell._in.close()
            os.close(bell._out)
        return shared, bytes(target.ram[:5])
    finally:
        server.join(10)
        listener.close()
        model.close()
        target.close()


def send(message: bytes, connection: socket.socket, *_: object) -> None:
    """Say this instead."""
    connection.send(message)


def test_the_memory_of_a_target(short_tmp_path: Path) -> None:
    """By its domain id, all of it, shared with the guest that has it."""
    found = attached(short_tmp_path / "a", 1, lambda connection, _, app: ours.share(connection, app))
    assert found == ({7: b"hello"}, b"there")


def test_several_and_none(short_tmp_path: Path) -> None:
    """As many messages as there are targets; a guest that serves nobody waits for none."""

    def both(connection: socket.socket, model: ours.Backing, app: ours.Backing) -> None:
        ours.share(connection, app)
        ours.share(connection, model)

    assert set(attached(short_tmp_path / "a", 2, both)[0]) == {5, 7}
    assert attached(short_tmp_path / "b", 0, lambda *_: None)[0] == {}


def test_what_is_no_such_message(short_tmp_path: Path) -> None:
    """Without a descriptor, or another message altogether: the handshake fails, and nothing is left open."""
    message = pack_loan(Loan("app", 7, 1 << 20))
    for number, wrong in enumerate((message, message[:10], b"")):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(AttachError, match="loan"):
            attached(short_tmp_path / f"{number}", 1, partial(send, wrong))
        assert len(os.listdir("/proc/self/fd")) == before
