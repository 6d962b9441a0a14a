"""The guest's side of attaching: connect, prove oneself, map what comes back."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hmx.attach import MAX_MESSAGE, Reply, Request, accepted, pack_request, unpack_loan
from hmx.vcpu_area import AREA_SIZE

_MAX_FDS: Final = 253
_BRIEFLY_S: Final = 0.0002
_PAUSE_S: Final = 0.00005


@dataclass(slots=True)
class Attachment:
    """What a guest holds of its domain."""

    reply: Reply
    connection: socket.socket
    ram: mmap.mmap
    areas: mmap.mmap
    bells: list[Bells]
    foreign: dict[int, mmap.mmap]  # by domain id: the memory of guests whose device model this one is

    def area(self, vcpu: int) -> memoryview:
        """The shared pages of one vCPU."""
        return memoryview(self.areas)[vcpu * AREA_SIZE : (vcpu + 1) * AREA_SIZE]


class Bells:
    """The bells of one vCPU between processes: an eventfd out, a datagram socket in."""

    def __init__(self, out_fd: int, bell: socket.socket, add_reader: Callable[[int, Callable[[], None]], Any]) -> None:
        self._out = out_fd
        self._in = bell
        self._add_reader = add_reader
        self._waits = [bell]

    def ring(self) -> None:
        """Wake the hypervisor.  A full counter means that it is rung already."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._out, 1)

    def yield_cpu(self) -> None:
        """Let another process run."""
        os.sched_yield()

    def pause(self) -> None:
        """Sleep a little."""
        time.sleep(_PAUSE_S)

    def wait_briefly(self) -> None:
        """Wait for the hypervisor's bell, at most 200 us.  select: poll and epoll would round up to a millisecond."""
        if select.select(self._waits, (), (), _BRIEFLY_S)[0]:
            self._drain()

    def on_bell(self, handler: Callable[[], None]) -> None:
        """Call `handler` from the loop when the hypervisor rang."""

        def rung() -> None:
            self._drain()
            handler()

        self._add_reader(self._in.fileno(), rung)

    def _drain(self) -> None:
        # One datagram a ring; a few at most are queued, since the hypervisor rings sleepers only.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._in.recv(64):
                pass


def attach(
    path: str,
    name: str,
    token: bytes,
    timeout: float,
    add_reader: Callable[[int, Callable[[], None]], Any],
    targets: int = 0,
) -> Attachment:
    """Attach to the hypervisor that listens at `path`, as the device model of so many `targets`.

    Raises AttachError when it refuses or answers nonsense, OSError when it is not there or does not answer in `timeout`
    seconds.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds: list[int] = []
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.send(pack_request(Request(name, token)))
        data = _receive(connection, fds)
        reply = accepted(data, len(fds), name)
        foreign = dict(_shared(connection) for _ in range(targets))
        ram = mmap.mmap(fds[0], reply.memory)
        areas = mmap.mmap(fds[1], reply.vcpus * AREA_SIZE)
        bells = [
            Bells(fds[at], socket.socket(fileno=fds[at + 1]), add_reader) for at in range(2, 2 + 2 * reply.vcpus, 2)
        ]
        os.close(fds[0])
        os.close(fds[1])
    except BaseException:
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        connection.close()
        raise
    connection.setblocking(False)
    return Attachment(reply, connection, ram, areas, bells, foreign)


def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """One message; the descriptors that came with it are added to `fds`."""
    data, ancillary, _flags, _address = connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
            fds.extend(received)
    return data


def _shared(connection: socket.socket) -> tuple[int, mmap.mmap]:
    """The memory of one guest whose device model this one is, by its domain id."""
    fds: list[int] = []
    try:
        loan = unpack_loan(_receive(connection, fds), len(fds))
        return loan.domid, mmap.mmap(fds[0], loan.memory)
    finally:
        for fd in fds:
            os.close(fd)
