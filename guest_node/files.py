"""Files as a guest's program sees them: inputs by path, outputs by name.

A program never learns where its output directory lies.  An output appears under its name only when it is
complete; until then it has another, and it is removed if it is discarded.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol

NAME_LIMIT: Final = 200  # bytes of UTF-8; file systems allow 255, and an unfinished output has a suffix
UNFINISHED: Final = ".part"


class Output(Protocol):
    """A file being written."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append `data`."""

    def commit(self) -> None:
        """It is complete: close it, and let it appear under its name, in place of any older one."""

    def discard(self) -> None:
        """Remove it.  After `commit`, nothing."""


class Image(Protocol):
    """A disk image: a store of a block device (guest_node/virtio/models/store.py) that can be closed."""

    @property
    def size(self) -> int:
        """In bytes."""

    def pread(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on."""

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store all of `data`; it need not last before `flush`."""

    def flush(self) -> None:
        """Return when everything stored before is on stable storage."""

    def punch(self, offset: int, size: int) -> None:
        """The range is of no use any more."""

    def zero(self, offset: int, size: int) -> None:
        """The range reads as zeros."""

    def close(self) -> None:
        """Close it; what was not flushed may be lost."""


class Interface(Protocol):
    """A network interface of the host."""

    def send(self, frame: bytes | memoryview) -> bool:
        """Give the host an Ethernet frame; whether it took it."""

    def close(self) -> None:
        """Let go of it."""


class Files(Protocol):
    """What the shell gives a guest."""

    def open_input(self, path: str) -> BinaryIO:
        """The file at `path`, relative to the topology's directory, for reading.  Raises OSError."""

    def create_output(self, name: str) -> Output:
        """A new file in the guest's output directory.  ValueError for a name with directories in it."""

    def open_image(self, path: str, *, writable: bool = False) -> Image:
        """The disk image at `path`, relative to the topology's directory, to be used in place.  Raises OSError, also
        where somebody else writes to it, or uses it and `writable`.
        """

    def own_image(self, name: str, *, source: str = "", size: int = 0) -> Image:
        """The guest's own disk image `name` in its output directory, writable.

        Where it is not there yet (in the first of the guest's lives) it is made: a copy of the image at `source`, or
        else `size` bytes, all zero.  Raises OSError; ValueError for a name with directories in it.
        """

    def open_tap(self, name: str, on_frame: Callable[[bytes], object]) -> Interface:
        """TAP interface `name` of the host, whose frames go to `on_frame`.  Raises OSError, in virtual time always."""


def safe_name(name: str, default: str = "received") -> str:
    """A file name that stays in its directory, made from one that a stranger chose.

    The last component, whichever way its slashes lean, without control characters and leading dots, cut to
    200 bytes of UTF-8; `default` when nothing is left.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character for character in last if character.isprintable()).strip().lstrip(".")
    cut = printable.encode("utf-8", "ignore")[:NAME_LIMIT].decode("utf-8", "ignore").rstrip()
    return cut or default


class DirectoryFiles:
    """Files of the host: inputs from `base` on, outputs in `output`, which is made when needed.

    `virtual`: time is, so that nothing outside ever happens.
    """

    def __init__(self, base: str | Path, output: str | Path, *, virtual: bool = False) -> None:
        self._base = Path(base)
        self._output = Path(output)
        self._virtual = virtual

    def open_input(self, path: str) -> BinaryIO:
        """The file at `path`; an absolute path stands for itself."""
        return (self._base / path).open("rb")

    def create_output(self, name: str) -> Output:
        """A new file called `name` in the output directory."""
        self._output.mkdir(parents=True, exist_ok=True)
        return _FileOutput(self._output / _plain(name))

    def open_image(self, path: str, *, writable: bool = False) -> Image:
        """The disk image at `path`; an absolute path stands for itself."""
        from guest_node.images import FileStore  # for back ends of block devices alone

        return FileStore(self._base / path, writable=writable)

    def own_image(self, name: str, *, source: str = "", size: int = 0) -> Image:
        """The disk image called `name` in the output directory."""
        from guest_node import images

        path = self._output / _plain(name)
        return images.copy(self._base / source, path) if source else images.blank(path, size)

    def open_tap(self, name: str, on_frame: Callable[[bytes], object]) -> Interface:
        """TAP interface `name`, inside the running loop."""
        if self._virtual:
            raise OSError(errno.EOPNOTSUPP, "the host's network has no part in virtual time: use processes")
        from guest_node.tap import Tap  # for a switch that was asked for one

        return Tap(name, on_frame)


def _plain(name: str) -> str:
    if safe_name(name) != name:
        raise ValueError(f"{name!r} cannot name an output file: try {safe_name(name)!r}")
    return name


class _FileOutput:
    """An output on disk, under its unfinished name until it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + UNFINISHED)
        self._file = self._unfinished.open("wb")
        self.write = self._file.write

    def commit(self) -> None:
        """Close it and give it its name."""
        self._file.close()
        self._unfinished.replace(self._path)

    def discard(self) -> None:
        """Close and remove it."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)
