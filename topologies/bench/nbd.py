"""The peer `qemu-nbd`: a plain client of the Network Block Device protocol, on the image that VirtIO-Argo reads.

Source: the NBD protocol (doc/proto.md): fixed newstyle handshake with NBD_OPT_GO, simple replies.  QEMU's server is a
process of compiled code with threads of its own; the client is this process, with one Unix socket.  Both rely on the
host's page cache, as the back end of VirtIO-Argo does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

from topologies.bench.disk import IMAGE, NUMBER, blocks, checksum, content, reads
from topologies.bench.transports import Unavailable

MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY: Final = 0x3E889045565A9
REQUEST: Final = 0x25609513
REPLY: Final = 0x67446698

FIXED_NEWSTYLE: Final = 1  # a handshake flag, of either side
OPT_GO: Final = 7
REP_ACK: Final = 1
REP_INFO: Final = 3
REP_ERROR: Final = 1 << 31
INFO_EXPORT: Final = 0
CMD_READ: Final = 0
CMD_DISC: Final = 2

_GREETING: Final = Struct(">QQH")
_FLAGS: Final = Struct(">I")
_OPTION_HEADER: Final = Struct(">QII")
_OPTION_REPLY: Final = Struct(">QIII")
_GO: Final = Struct(">IH")  # an empty name, and no particular information asked for
_EXPORT: Final = Struct(">HQH")
_REQUEST: Final = Struct(">IHHQQI")
_REPLY: Final = Struct(">IIQ")

SERVER: Final = "qemu-nbd"
WITHIN: Final = 30.0
_ROOM: Final = 32  # replies that the client's buffer holds


class NbdFailed(Exception):
    """The server, or what it answered, is not what it has to be."""


class NbdClient:
    """A client on a connected stream socket; `size` is the export's in bytes."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.size = 0

    def negotiate(self) -> None:
        """The handshake, for the export without a name.  Raises NbdFailed."""
        magic, option, flags = _GREETING.unpack(self._exactly(_GREETING.size))
        if (magic, option) != (MAGIC, OPTION) or not flags & FIXED_NEWSTYLE:
            raise NbdFailed("no server with a fixed newstyle handshake")
        asked = _GO.pack(0, 0)
        self._socket.sendall(_FLAGS.pack(FIXED_NEWSTYLE) + _OPTION_HEADER.pack(OPTION, OPT_GO, len(asked)) + asked)
        while True:
            magic, option, kind, length = _OPTION_REPLY.unpack(self._exactly(_OPTION_REPLY.size))
            data = self._exactly(length)
            if magic != OPTION_REPLY or option != OPT_GO or kind & REP_ERROR:
                raise NbdFailed(f"the server answers NBD_OPT_GO with {kind:#x}")
            if kind == REP_ACK:
                break
            if kind == REP_INFO and len(data) == _EXPORT.size:
                what, size, _ = _EXPORT.unpack(data)
                if what == INFO_EXPORT:
                    self.size = size

    def read(self, size: int, places: Sequence[int], warm: int, depth: int) -> tuple[int, int, int]:
        """Read blocks `places` of `size` bytes, at most `depth` at once, and compare each with what the disk holds.

        Returns how many came, the sum of their first sector numbers, and nanoseconds since `warm` of them had come.
        Whatever lies in the socket is taken at once, and as many requests leave together.  Raises NbdFailed.
        """
        count, frame = len(places), _REPLY.size + size
        known = blocks(size)
        room = bytearray(max(_ROOM, 2 * depth) * frame)
        view = memoryview(room)
        pack, unpack, number = _REQUEST.pack, _REPLY.unpack_from, NUMBER.unpack_from
        requests = [pack(REQUEST, 0, CMD_READ, index, place * size, size) for index, place in enumerate(places)]
        out = [False] * count
        receive, send = self._socket.recv_into, self._socket.sendall
        done = total = began = start = end = 0
        sent = min(depth, count)
        out[:sent] = [True] * sent
        send(b"".join(requests[:sent]))
        while done < count:
            if len(room) - end < frame:
                view[: end - start] = view[start:end]
                start, end = 0, end - start
            n = receive(view[end:])
            if not n:
                raise NbdFailed("the server ended the connection")
            end += n
            before = done
            while end - start >= frame:
                magic, problem, index = unpack(room, start)
                if magic != REPLY or problem or index >= count or not out[index]:
                    raise NbdFailed(f"a reply with magic {magic:#x}, error {problem}, handle {index:#x}")
                out[index] = False
                data = view[start + _REPLY.size : start + frame]
                if known[places[index]] != data:
                    raise NbdFailed(f"block {places[index]} of {size} bytes is not what the disk holds")
                total += number(data)[0]
                start += frame
                done += 1
            if start == end:
                start = end = 0
            if done > before and sent < count:
                more = min(sent + done - before, count)
                out[sent:more] = [True] * (more - sent)
                send(b"".join(requests[sent:more]))
                sent = more
            if not began and done >= warm:
                began, warm = time.monotonic_ns(), done
        wall = time.monotonic_ns() - began
        return done, total, wall * (count - warm) // max(1, count - warm)

    def close(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(OSError):
            self._socket.sendall(_REQUEST.pack(REQUEST, 0, CMD_DISC, 0, 0, 0))
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise NbdFailed("the server ended the connection")
            data += part
        return data


@contextlib.contextmanager
def served(directory: str) -> Iterator[socket.socket]:
    """A connection to a server of a fresh image.  Raises Unavailable, NbdFailed."""
    program = shutil.which(SERVER)
    if program is None:
        raise Unavailable(f"{SERVER} is not installed (Debian package qemu-utils)")
    image, path = Path(directory, IMAGE), os.path.join(directory, "nbd")
    image.write_bytes(content())
    words = [program, "--read-only", "--format=raw", "--cache=writeback", f"--socket={path}", os.fspath(image)]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.settimeout(WITHIN)
            _connect(made, path, server)
            yield made
    finally:
        server.kill()
        server.communicate()


def _connect(made: socket.socket, path: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + WITHIN
    while True:
        try:
            made.connect(path)
            return
        except OSError:
            if server.poll() is not None:
                said = server.stderr.read().decode(errors="replace").strip() if server.stderr else ""
                raise NbdFailed(f"{SERVER} ended with {server.returncode}: {said}") from None
            if time.monotonic() > until:
                raise NbdFailed(f"{SERVER} does not listen") from None
        time.sleep(0.01)


def measure(size: int, count: int, warm: int, depth: int, directory: str) -> float:
    """Requests per second of one round.  Raises Unavailable, NbdFailed."""
    try:
        with served(directory) as connected:
            client = NbdClient(connected)
            client.negotiate()
            done, total, wall = client.read(size, reads(size, count), warm, depth)
            client.close()
    except OSError as problem:
        raise NbdFailed(f"{SERVER}: {problem}") from None
    if (done, total) != (count, checksum(size, count)):
        raise NbdFailed(f"{done} reads of {count}, or wrong ones")
    return (count - warm) / (wall / 1e9)
