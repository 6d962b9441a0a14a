"""Files as a guest's program sees them: inputs by path, outputs by name.

A program never learns where its output directory lies.  An output appears under its name only when it is
complete; until then it has another, and it is removed if it is discarded.
"""

from __future__ import annotations

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


class Files(Protocol):
    """What the shell gives a guest."""

    def open_input(self, path: str) -> BinaryIO:
        """The file at `path`, relative to the topology's directory, for reading.  Raises OSError."""

    def create_output(self, name: str) -> Output:
        """A new file in the guest's output directory.  ValueError for a name with directories in it."""


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
    """Files of the host: inputs from `base` on, outputs in `output`, which is made when needed."""

    def __init__(self, base: str | Path, output: str | Path) -> None:
        self._base = Path(base)
        self._output = Path(output)

    def open_input(self, path: str) -> BinaryIO:
        """The file at `path`; an absolute path stands for itself."""
        return (self._base / path).open("rb")

    def create_output(self, name: str) -> Output:
        """A new file called `name` in the output directory."""
        if safe_name(name) != name:
            raise ValueError(f"{name!r} cannot name an output file: try {safe_name(name)!r}")
        self._output.mkdir(parents=True, exist_ok=True)
        return _FileOutput(self._output / name)


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
