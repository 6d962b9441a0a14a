"""How a nested hypervisor's process becomes a domain of its parent, and what it then does for its uplink.

The handshake is a guest's (hmx/attach.py): the broker mints a token, the parent says where it listens, and hands over
memory, vCPU areas and bells.  Nothing here blocks; the owner's loop watches the descriptors and takes the turns.
"""

from __future__ import annotations

import array
import contextlib
import errno
import mmap
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from broker.envelope import Envelope
from hmx.attach import MAX_MESSAGE, AttachError, Loan, Request, accepted, pack_loan, pack_request, unpack_reply
from hmx.trap import Arch
from hmx.vcpu_area import AREA_SIZE, AreaError, GuestSide
from hv_node.config import HypervisorConfig
from hv_node.doors.tables import PERSONALITIES
from hv_node.uplinks.parent import NoParent, ParentUplink

ATTACH_S: Final = 10.0
"""From the first question to the first word through the parent."""
ASK_AGAIN_S: Final = 0.1
_MAX_FDS: Final = 253
_LATER: Final = frozenset({errno.EAGAIN, errno.ECONNREFUSED, errno.ENOENT})  # its socket is full, or not there yet


class Residence:
    """The domain that this process is given: its memory and vCPU areas, and the bells between it and the parent."""

    def __init__(self, data: bytes, fds: list[int], name: str, arch: Arch) -> None:
        """AttachError, AreaError or OSError; the descriptors are this object's or closed."""
        self.bells: list[socket.socket] = []
        self._out: list[int] = []
        try:
            reply = accepted(data, len(fds), name)
            self.domid = reply.domid
            self.ram = mmap.mmap(fds[0], reply.memory)
            areas = memoryview(mmap.mmap(fds[1], reply.vcpus * AREA_SIZE))
            self.areas = [GuestSide(areas[at : at + AREA_SIZE], arch) for at in range(0, len(areas), AREA_SIZE)]
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        for fd in fds[:2]:
            os.close(fd)
        self._out = fds[2::2]
        self.bells = [socket.socket(fileno=fd) for fd in fds[3::2]]

    def ring(self, vcpu: int) -> None:
        """Wake the parent.  A full counter means that it is rung already."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._out[vcpu], 1)

    def drain(self) -> None:
        """Take the rings that have come."""
        for bell in self.bells:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while bell.recv(64):
                    pass

    def close(self) -> None:
        """Let go of the bells; the mappings go with their last view."""
        for fd in self._out:
            os.close(fd)
        for bell in self.bells:
            bell.close()


class Ascent:
    """A nested hypervisor's way up, from the first question on; an uplink of its level.

    `tell(record)` speaks to the broker; `watch(fd, events, handler)` and `unwatch(fd)` are the owner's loop.
    `on_up()` runs when the way is open, `on_lost(words)` once when there is none, or none any more.
    """

    def __init__(
        self,
        config: HypervisorConfig,
        tell: Callable[[list[Any]], object],
        watch: Callable[[int, int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self.on_envelope: Callable[[Envelope, bytes], object] = lambda _envelope, _payload: None
        self.on_up: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_lost: Callable[[str], None] = lambda _words: None
        self.on_event: Callable[..., None] = lambda *_: None
        self.uplink: ParentUplink | None = None
        self._config = config
        self._tell = tell
        self._watch = watch
        self._unwatch = unwatch
        self._connection: socket.socket | None = None
        self._residence: Residence | None = None
        self._granted: tuple[str, bytes] | None = None
        self._ask_at: float | None = None
        self._deadline: float | None = None
        self._lost = False
        self._loans: deque[tuple[Loan, int]] = deque()

    # -- attaching ----

    def start(self) -> None:
        """Ask the broker for a token."""
        self._deadline = time.monotonic() + ATTACH_S
        self.ask()

    def ask(self) -> None:
        """Ask, or ask again: another broker does not know what the last one was asked."""
        if self._granted is None and self._deadline is not None:
            self._ask_at = None
            self._tell(["attach", self._config.parent])

    def on_record(self, record: Sequence[Any]) -> bool:
        """Whether a control record was meant for this."""
        parent = self._config.parent
        match [*record]:
            case ["told", str(sender), ["granted", str(path), bytes(token)]] if sender == parent:
                if self._granted is None:
                    self._granted = path, token
                    self._connect()
            case ["nobody" | "busy", str(name), ["attach", _]] if name == parent:
                self._ask_at = time.monotonic() + ASK_AGAIN_S
            case _:
                return False
        return True

    def _connect(self) -> None:
        assert self._granted is not None
        path, token = self._granted
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(path)
            connection.send(pack_request(Request(self._config.name, token)))
        except OSError as error:
            connection.close()
            if error.errno in _LATER:
                self._ask_at = time.monotonic() + ASK_AGAIN_S
            else:
                self._lose(f"hypervisor {self._config.parent}: {error.strerror}: {path}")
            return
        self._connection = connection
        self._watch(connection.fileno(), select.EPOLLIN, self._heard)

    def _heard(self) -> None:
        """The reply; after it the connection says nothing more, and its end is the parent's."""
        assert self._connection is not None
        if self._residence is not None:
            self._lose(f"hypervisor {self._config.parent} {self._last_words(self._connection)}")
            return
        fds: list[int] = []
        arch = Arch[self._config.arch.upper()]
        try:
            data, ancillary, _, _ = self._connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4))
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    fds.extend(received)
            self._residence = Residence(data, fds, self._config.name, arch)
            self._move_in(self._residence, arch)
            self._hand_over()
        except (AttachError, AreaError, NoParent, OSError) as error:
            self._lose(f"hypervisor {self._config.parent}: {error}")

    @staticmethod
    def _last_words(connection: socket.socket) -> str:
        """Why the parent has nothing more to do with us."""
        with contextlib.suppress(OSError, AttachError):
            data = connection.recv(MAX_MESSAGE)
            if data:
                return f"refused what it was lent: {unpack_reply(data).text}"
        return "is gone"

    def lend(self, loan: Loan, ram_fd: int) -> None:
        """Give the parent the memory of a guest whose Argo it serves, now or once there is a way."""
        self._loans.append((loan, os.dup(ram_fd)))
        self._hand_over()

    def _hand_over(self) -> None:
        while self._loans and self._residence is not None and self._connection is not None:
            loan, fd = self._loans[0]
            try:
                socket.send_fds(self._connection, [pack_loan(loan)], [fd])
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(f"hypervisor {self._config.parent}: {error.strerror}")
                return
            self._loans.popleft()
            os.close(fd)

    def _move_in(self, residence: Residence, arch: Arch) -> None:
        for bell in residence.bells:
            self._watch(bell.fileno(), select.EPOLLIN, residence.drain)
        abi = PERSONALITIES[self._config.outer[-1].personality, arch].abi
        ram = memoryview(residence.ram)
        uplink = ParentUplink(ram, residence.areas, residence.ring, arch, self._config.cpu, abi)
        uplink.on_envelope, uplink.on_event = self.on_envelope, self.on_event
        uplink.on_up, uplink.on_room = self._open, self.on_room
        self.uplink = uplink

    def _open(self) -> None:
        self._deadline = None
        self.on_up()

    def _lose(self, words: str) -> None:
        if self._connection is not None:
            self._unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None
        self._ask_at = self._deadline = None
        if not self._lost:
            self._lost = True
            self.on_lost(words)

    # -- the owner's loop ----

    def send(self, envelope: Envelope, payload: bytes) -> bool:
        """Send an envelope upwards.  False: no room, or no way yet."""
        return self.uplink is not None and self.uplink.send(envelope, payload)

    def turn(self, now_ns: int) -> bool:
        """One bounded turn; whether anything was there."""
        now = now_ns / 1e9
        if self._deadline is not None and now >= self._deadline:
            self._lose(f"hypervisor {self._config.parent} let nobody in within {ATTACH_S:g} s")
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            if self._granted is None:
                self.ask()
            else:
                self._connect()
        if self.uplink is None or self._lost:
            return False
        if self._loans:
            self._hand_over()
        try:
            return self.uplink.turn(now_ns)
        except NoParent as error:
            self._lose(f"hypervisor {self._config.parent}: {error}")
            return False

    def next_deadline(self) -> int | None:
        """When `turn` has something to do though nothing is heard."""
        waits = [round(at * 1e9) for at in (self._ask_at, self._deadline) if at is not None]
        if self.uplink is not None and (at := self.uplink.next_deadline()) is not None:
            waits.append(at)
        return min(waits, default=None)

    def sleep(self) -> bool:
        """Have the parent ring from now on.  False: something is there already, take a turn."""
        return self.uplink is None or self._lost or self.uplink.sleep()

    def awake(self) -> None:
        """While the owner looks by itself the parent need not ring."""
        if self.uplink is not None:
            self.uplink.awake()

    def close(self) -> None:
        """Leave the domain: for the parent that is its end."""
        self._lost = True
        for _, fd in self._loans:
            os.close(fd)
        self._loans.clear()
        if self._connection is not None:
            self._connection.close()
        if self._residence is not None:
            self._residence.close()
