"""Bytes of an input, read as the choices that a target offers.  What has run out reads as zeros: every input is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A cursor over an input."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, n: int) -> bytes:
        """The next bytes, at most `n`."""
        at = self._at
        self._at = at + n
        return self._data[at : at + n]

    def u8(self) -> int:
        """One byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def u16(self) -> int:
        """Two bytes, little-endian."""
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Eight bytes, little-endian."""
        return int.from_bytes(self.take(8), "little")

    def one_of(self, options: Sequence[T]) -> T:
        """One byte's choice."""
        return options[self.u8() % len(options)]

    def rest(self) -> bytes:
        """Everything that is left."""
        at = min(self._at, len(self._data))
        self._at = len(self._data)
        return self._data[at:]
