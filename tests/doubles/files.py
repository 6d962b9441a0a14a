"""Files of a guest in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

from guest_node.files import Image, Interface, Output, safe_name
from guest_node.virtio.models.store import MemoryStore


class MemoryImage(MemoryStore):
    """An image in memory that remembers its flushes, and whether it is open."""

    def __init__(self, size: int, data: bytes = b"") -> None:
        super().__init__(size, data)
        self.flushes = 0
        self.closed = False

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        self.closed = True


class MemoryTap:
    """A network interface that remembers what it was given; a test calls `on_frame`."""

    def __init__(self, on_frame: Callable[[bytes], object]) -> None:
        self.on_frame = on_frame
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, frame: bytes | memoryview) -> bool:
        self.sent.append(bytes(frame))
        return True

    def close(self) -> None:
        self.closed = True


class MemoryFiles:
    """`inputs` by path; `outputs` by name, as they were committed; `images` by path or name."""

    def __init__(self, inputs: dict[str, bytes] | None = None) -> None:
        self.inputs = dict(inputs or {})
        self.outputs: dict[str, bytes] = {}
        self.open_outputs: set[str] = set()
        self.images: dict[str, MemoryImage] = {}
        self.taps: dict[str, MemoryTap] = {}

    def open_input(self, path: str) -> BinaryIO:
        if path not in self.inputs:
            raise FileNotFoundError(2, "No such file", path)
        return io.BytesIO(self.inputs[path])

    def create_output(self, name: str) -> Output:
        if safe_name(name) != name:
            raise ValueError(f"{name!r} cannot name an output file")
        self.open_outputs.add(name)
        return _MemoryOutput(self, name)

    def open_image(self, path: str, *, writable: bool = False) -> Image:
        del writable
        if path not in self.images:
            self.images[path] = MemoryImage(len(self.open_input(path).read()), self.inputs[path])
        return self.images[path]

    def own_image(self, name: str, *, source: str = "", size: int = 0) -> Image:
        if name not in self.images:
            data = self.open_input(source).read() if source else b""
            self.images[name] = MemoryImage(len(data) or size, data)
        return self.images[name]

    def open_tap(self, name: str, on_frame: Callable[[bytes], object]) -> Interface:
        self.taps[name] = MemoryTap(on_frame)
        return self.taps[name]


class _MemoryOutput:
    def __init__(self, files: MemoryFiles, name: str) -> None:
        self._files = files
        self._name = name
        self._data = bytearray()

    def write(self, data: bytes | memoryview, /) -> object:
        self._data += data
        return len(data)

    def commit(self) -> None:
        self._files.outputs[self._name] = bytes(self._data)
        self._files.open_outputs.discard(self._name)

    def discard(self) -> None:
        self._files.open_outputs.discard(self._name)
