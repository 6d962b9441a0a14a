"""Where strangers wait: connected to the attach socket, and not yet said who they are.  Experimental, not upstream.

Strangers cost the hypervisor a bounded share of everything.  Of its time: a look at the lobby serves a few of them.  Of
its descriptors: so many wait at once, and a newcomer takes the place of whoever has been silent for the longest, so
that a guest, which speaks as soon as it is connected, gets in past any number of silent ones.  Of the lab's attention:
only so many refusals are told one by one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from hmx.attach import AttachError, Request
from hv_node import attach

STRANGERS: Final = 64  # waiting at once; the descriptors of a process are few, and guests need them
ADMITS: Final = 4  # looked at in one turn: each may be one that only wants to cost time
HANDSHAKE_S: Final = 5.0  # who says nothing for this long is refused
REFUSALS_TOLD: Final = 8  # between two ticks; the rest are counted, or one guest could keep the whole lab busy
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Lobby:
    """The attach socket at `path` and who has connected there, as one source that can be polled.

    `introduce(connection, request)` decides about one that said who it is, and owns the connection unless it raises
    AttachError or OSError, whose words the stranger is told.  `report` takes the event "attach-refused" with a reason.
    OSError when the path is taken or not writable.
    """

    def __init__(
        self, path: str, introduce: Callable[[socket.socket, Request], None], report: Callable[..., Any]
    ) -> None:
        self._introduce = introduce
        self._report = report
        self._path = path
        self._listener = attach.listen(path)
        self._epoll = select.epoll()
        self._strangers: dict[int, tuple[socket.socket, float]] = {}  # by descriptor, the longest silent first
        self._open = False
        self.refusals = 0  # since the last tick
        self._listen(True)

    def __len__(self) -> int:
        return len(self._strangers)

    def fileno(self) -> int:
        """Readable while somebody connects or speaks."""
        return self._epoll.fileno()

    def turn(self) -> None:
        """Serve some of those who connect or speak."""
        events = [fd for fd, _ in self._epoll.poll(0, ADMITS)]
        for fd in events:
            if fd in self._strangers:
                self._hear(self._leave(fd))
        # Last: a newcomer may be given the number of a descriptor that was spoken of above.
        if self._listener.fileno() in events:
            self._accept()

    def tick(self, now: float) -> None:
        """What time brings: who was silent for too long has to go, and refusals are told in one line."""
        for fd, (_, deadline) in tuple(self._strangers.items()):
            if now >= deadline:
                self._show_out(fd, f"nothing was said for {HANDSHAKE_S:g} s")
        if self.refusals > REFUSALS_TOLD:
            self._report("attach-refused", f"{self.refusals - REFUSALS_TOLD} more")
        self.refusals = 0
        self._listen(True)

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        for connection, _ in self._strangers.values():
            connection.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._epoll.close()

    # -- coming ----

    def _listen(self, wanted: bool) -> None:
        if wanted and not self._open:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        elif self._open and not wanted:
            self._epoll.unregister(self._listener.fileno())
        self._open = wanted

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._exhausted(error)
            return
        connection.setblocking(False)
        if attach.peer_uid(connection) != os.geteuid():
            self._refuse(connection, "only the user who runs the lab may attach")
            return
        if len(self._strangers) >= STRANGERS:
            self._make_room(f"{STRANGERS} others wait too, and none was silent for longer")
        self._strangers[connection.fileno()] = connection, time.monotonic() + HANDSHAKE_S
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _exhausted(self, error: OSError) -> None:
        """No descriptor for a newcomer, who stays at the door: somebody else's goes, or the door is shut for a while.

        Either way the listener, which stays readable, does not keep the hypervisor from its work.
        """
        if self._strangers:
            self._make_room(f"the hypervisor has no descriptors left ({error.strerror})")
        else:
            self._listen(False)

    # -- going ----

    def _make_room(self, reason: str) -> None:
        """The place of who came first: it is heard if it has spoken meanwhile, else refused for `reason`."""
        self._show_out(next(iter(self._strangers)), reason)

    def _show_out(self, fd: int, reason: str) -> None:
        self._hear(self._leave(fd), reason)

    def _leave(self, fd: int) -> socket.socket:
        connection, _ = self._strangers.pop(fd)
        self._epoll.unregister(fd)
        return connection

    def _hear(self, connection: socket.socket, silent: str = "nothing was said") -> None:
        """Let a stranger say who it is.  One that left is forgotten, one that is `silent` is told that."""
        try:
            request = attach.read_request(connection)
        except BlockingIOError:
            self._refuse(connection, silent)
        except (AttachError, OSError) as error:
            self._refuse(connection, str(error))
        else:
            if request is None:
                connection.close()
            else:
                self._present(connection, request)

    def _present(self, connection: socket.socket, request: Request) -> None:
        try:
            self._introduce(connection, request)
        except (AttachError, OSError) as error:
            self._refuse(connection, str(error))

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        self.refusals += 1
        if self.refusals <= REFUSALS_TOLD:
            self._report("attach-refused", reason)
        attach.refuse(connection, reason)
