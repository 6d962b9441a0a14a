"""Disk images in files of the host: what a block device keeps its sectors in (guest_node/virtio/models/store.py).

Sources: pread(2), pwrite(2), fdatasync(2), fallocate(2), flock(2) of Linux.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from guest_node.files import UNFINISHED

Buffer = bytes | bytearray | memoryview

_KEEP_SIZE: Final = 0x01  # FALLOC_FL_*, linux/falloc.h
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_ZEROS: Final = bytes(1 << 16)
_COPY_CHUNK: Final = 1 << 20


class ImageInUse(OSError):
    """Somebody else writes to the image, or reads what this one would write to."""


class Unsupported(OSError):
    """The file system cannot do it."""


class FileStore:
    """An image in a file, from its first to its last byte.  Locked while open: one writer, or any number of readers.

    The lock is advisory (flock) and ends with the process, however that ends.
    """

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        """Open the file.  Raises OSError, ImageInUse among them."""
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            _lock(self._fd, path, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            os.close(self._fd)
            raise
        self._open = True

    @property
    def size(self) -> int:
        """In bytes, as it was when it was opened."""
        return self._size

    def pread(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.  Raises OSError EIO where the file has become shorter."""
        self._check(offset, size)
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, f"the image ends before byte {offset + size}: it was cut while in use")
            data += more
        return data

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Store all of `data`."""
        left = memoryview(data).cast("B")
        self._check(offset, len(left))
        _write_all(self._fd, offset, left)

    def flush(self) -> None:
        """Return when everything stored before is on stable storage."""
        os.fdatasync(self._fd)

    def punch(self, offset: int, size: int) -> None:
        """Give the range back to the file system, which then reads as zeros.  Where that cannot be done, nothing."""
        self._check(offset, size)
        with contextlib.suppress(Unsupported):
            _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size)

    def zero(self, offset: int, size: int) -> None:
        """The range reads as zeros."""
        self._check(offset, size)
        try:
            _fallocate(self._fd, _ZERO_RANGE | _KEEP_SIZE, offset, size)
        except Unsupported:
            for at in range(offset, offset + size, len(_ZEROS)):
                self.pwrite(at, memoryview(_ZEROS)[: min(len(_ZEROS), offset + size - at)])

    def close(self) -> None:
        """Close the file.  A second time, nothing."""
        if self._open:
            self._open = False
            os.close(self._fd)

    def _check(self, offset: int, size: int) -> None:
        if size < 0 or not 0 <= offset <= self._size - size:
            raise OSError(errno.EINVAL, f"{size} bytes at {offset} are not in an image of {self._size}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def blank(path: Path, size: int) -> FileStore:
    """The image at `path`, writable: the one that is there, else a new one of `size` bytes, all zero."""
    return _found_or_made(path, lambda fd: os.ftruncate(fd, size))


def copy(source: Path, path: Path) -> FileStore:
    """The image at `path`, writable: the one that is there, else a new one with the bytes of `source`, holes as holes.

    A back end that was started again thus goes on with the disk that it had.
    """
    with FileStore(source) as old:
        return _found_or_made(path, lambda fd: _copy_into(fd, old))


def _found_or_made(path: Path, fill: Callable[[int], object]) -> FileStore:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + UNFINISHED)
        fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fill(fd)
            os.fdatasync(fd)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    return FileStore(path, writable=True)


def _copy_into(fd: int, old: FileStore) -> None:
    os.ftruncate(fd, old.size)
    for at in range(0, old.size, _COPY_CHUNK):
        data = old.pread(at, min(_COPY_CHUNK, old.size - at))
        if data.count(0) < len(data):
            _write_all(fd, at, memoryview(data))


def _write_all(fd: int, offset: int, left: memoryview) -> None:
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done


def _lock(fd: int, path: str | Path, how: int) -> None:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        what = "somebody uses this image" if how == fcntl.LOCK_EX else "somebody writes to this image"
        raise ImageInUse(errno.EBUSY, what, str(path)) from None


@cache
def _libc() -> Any:
    import ctypes  # Python has no fallocate with flags; what never discards need not load this

    found = ctypes.CDLL(None, use_errno=True)
    found.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


def _fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2) of the C library.  Raises Unsupported, or OSError."""
    import ctypes

    if size and _libc().fallocate(fd, mode, offset, size):
        number = ctypes.get_errno()
        raise (Unsupported if number in _UNSUPPORTED else OSError)(number, os.strerror(number))
