"""The NBD client of the peer `qemu-nbd`, against a server of a few lines.  Source: the NBD protocol (doc/proto.md)."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

import pytest

from topologies.bench import disk, peers
from topologies.bench.nbd import NbdClient, NbdFailed
from topologies.bench.rows import ROW_OF
from topologies.bench.transports import Unavailable

SIZE = 4096
REQUEST = Struct(">IHHQQI")
REPLY = Struct(">IIQ")
Answer = Callable[[int, int, int], tuple[int, int, int, bytes]]  # handle, offset, size -> magic, error, handle, data


def honest(handle: int, offset: int, size: int) -> tuple[int, int, int, bytes]:
    return 0x67446698, 0, handle, disk.content()[offset : offset + size]


class Server(threading.Thread):
    """Serves the disk on one socket; `reads` are the requests as they came, `most` how many of them waited at once."""

    def __init__(self, connected: socket.socket, answer: Answer = honest, batch: int = 3, flags: int = 3) -> None:
        super().__init__(daemon=True)
        self.reads: list[tuple[int, int]] = []
        self.most = 0
        self.left = False
        self.option: tuple[Any, ...] = ()
        self._socket, self._answer, self._batch, self._flags = connected, answer, batch, flags

    def run(self) -> None:
        with self._socket:
            try:
                self._handshake()
                self._serve()
            except OSError:
                pass

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError("the client has gone")
            data += part
        return data

    def _handshake(self) -> None:
        self._socket.sendall(b"NBDMAGICIHAVEOPT" + self._flags.to_bytes(2, "big"))
        flags, magic, option, length = Struct(">I8sII").unpack(self._exactly(20))
        self.option = flags, magic, option, self._exactly(length)
        head = Struct(">QIII")
        info = Struct(">HQH").pack(0, disk.DISK_SIZE, 1)
        self._socket.sendall(head.pack(0x3E889045565A9, 7, 3, len(info)) + info)
        blocks = Struct(">HIII").pack(3, 1, 4096, 1 << 25)  # NBD_INFO_BLOCK_SIZE, which nobody asked for
        self._socket.sendall(head.pack(0x3E889045565A9, 7, 3, len(blocks)) + blocks)
        self._socket.sendall(head.pack(0x3E889045565A9, 7, 1, 0))

    def _serve(self) -> None:
        """Answer several at once, the last first, cut anywhere."""
        waiting: list[tuple[int, int, int]] = []
        data = b""
        while True:
            part = self._socket.recv(1 << 16)
            data += part
            while len(data) >= REQUEST.size:
                magic, _, command, handle, offset, size = REQUEST.unpack_from(data)
                data = data[REQUEST.size :]
                if magic != 0x25609513:
                    return
                if command == 2:
                    self.left = True
                    return
                self.reads.append((offset, size))
                waiting.append((handle, offset, size))
            self.most = max(self.most, len(waiting))
            if not part:
                return
            while waiting:
                now, waiting = waiting[: self._batch], waiting[self._batch :]
                out = b""
                for asked in reversed(now):
                    magic, problem, handle, found = self._answer(*asked)
                    out += REPLY.pack(magic, problem, handle) + found
                self._socket.sendall(out[:1000])
                self._socket.sendall(out[1000:])


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield ours, theirs


def test_every_read_of_the_sequence_comes_back_once(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Fixed newstyle with NBD_OPT_GO for the unnamed export; replies in any order; never more than the depth."""
    server = Server(sockets[1])
    server.start()
    client = NbdClient(sockets[0])
    client.negotiate()
    assert client.size == disk.DISK_SIZE
    found = client.read(SIZE, disk.reads(SIZE, 210), 10, 16)
    client.close()
    server.join(30)
    assert server.option == (1, b"IHAVEOPT", 7, bytes(6))
    assert server.reads == [(place * SIZE, SIZE) for place in disk.reads(SIZE, 210)]
    assert 1 < server.most <= 16
    assert server.left
    assert (found.came, found.checksum) == (210, disk.checksum(SIZE, 210))
    assert 180 <= found.timed <= 200
    assert found.wall_ns > 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda handle, offset, size: honest(handle, offset + 512, size), "not what the disk holds"),
        (lambda handle, offset, size: (*honest(handle, offset, size)[:3], bytes(size)), "not what the disk holds"),
        (lambda handle, offset, size: (1, *honest(handle, offset, size)[1:]), "magic 0x1"),
        (lambda handle, offset, size: (0x67446698, 5, handle, bytes(size)), "error 5"),
        (lambda handle, offset, size: honest(handle + 40, offset, size), "handle"),
        (lambda handle, offset, size: honest(0, offset, size), "handle 0x0|not what the disk holds"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_found(sockets: tuple[socket.socket, socket.socket], answer: Answer, words: str) -> None:
    Server(sockets[1], answer).start()
    client = NbdClient(sockets[0])
    client.negotiate()
    with pytest.raises(NbdFailed, match=words):
        client.read(SIZE, disk.reads(SIZE, 40), 4, 16)


def test_a_server_that_goes_away_is_no_round(sockets: tuple[socket.socket, socket.socket]) -> None:
    def gone(_handle: int, _offset: int, _size: int) -> Any:
        raise OSError("it dies")

    Server(sockets[1], gone).start()
    client = NbdClient(sockets[0])
    client.negotiate()
    with pytest.raises((NbdFailed, OSError)):
        client.read(SIZE, disk.reads(SIZE, 40), 4, 16)


def test_an_old_server_is_refused(sockets: tuple[socket.socket, socket.socket]) -> None:
    Server(sockets[1], flags=0).start()
    with pytest.raises(NbdFailed, match="fixed newstyle"):
        NbdClient(sockets[0]).negotiate()


def test_without_the_server_the_peer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Unavailable, match="qemu-nbd is not installed"):
        peers.measure("qemu-nbd", ROW_OF["virtio-blk-4KiB-read"], 0.01)


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere"])
def test_a_server_that_does_not_start_fails_the_peer(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: program)
    with pytest.raises(peers.PeerFailed, match="qemu-nbd"):
        peers.measure("qemu-nbd", ROW_OF["virtio-blk-4KiB-read"], 0.01)


def test_a_sector_says_where_it_is() -> None:
    assert len(disk.content()) == disk.DISK_SIZE
    assert disk.content()[5 * 512 :][:512] == disk.sector(5) != disk.sector(6)
    assert disk.NUMBER.unpack_from(disk.sector(77))[0] == 77


def test_a_sequence_of_reads_is_the_same_every_time() -> None:
    """And its beginning is that of a longer one; it leaves nothing of the disk out for good."""
    assert disk.reads(SIZE, 50) == disk.reads(SIZE, 100)[:50]
    assert len(set(disk.reads(SIZE, 60_000))) == disk.DISK_SIZE // SIZE
    assert disk.checksum(SIZE, 50) == sum(place * 8 for place in disk.reads(SIZE, 50))
