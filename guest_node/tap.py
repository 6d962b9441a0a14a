"""A TAP interface of the host: frames that the host's network stack sends there, and takes from there.

Source: Linux Documentation/networking/tuntap.rst, linux/if_tun.h.  Opening one needs CAP_NET_ADMIN, or an interface
that was made for this user: `ip tuntap add NAME mode tap user USER`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Final

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
NAME_MAX: Final = 15
FRAME_MAX: Final = 65536
AT_ONCE: Final = 64
"""Frames that are taken before anything else has its turn."""
_REQUEST: Final = struct.Struct("16sH22x")


class Tap:
    """An open interface.  `on_frame` gets each frame that the host sends, from its destination address on."""

    def __init__(self, name: str, on_frame: Callable[[bytes], object]) -> None:
        """Open it, inside the running loop.  Raises OSError."""
        if not 0 < len(name.encode()) <= NAME_MAX:
            raise OSError(errno.EINVAL, f"{name!r} cannot name an interface: 1 to {NAME_MAX} bytes")
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, TUNSETIFF, _REQUEST.pack(name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError:
            os.close(self._fd)
            raise
        self._on_frame = on_frame
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def send(self, frame: bytes | memoryview) -> bool:
        """Give the host a frame; False where it does not take it: it is down, or busy."""
        try:
            return os.write(self._fd, frame) == len(frame)
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the interface.  A second time, nothing."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            try:
                frame = os.read(self._fd, FRAME_MAX)
            except OSError:  # nothing more, or the interface is gone
                return
            self._on_frame(frame)
