"""Files of a guest in memory."""

from __future__ import annotations

import io
from typing import BinaryIO

from guest_node.files import Output, safe_name


class MemoryFiles:
    """`inputs` by path; `outputs` by name, as they were committed."""

    def __init__(self, inputs: dict[str, bytes] | None = None) -> None:
        self.inputs = dict(inputs or {})
        self.outputs: dict[str, bytes] = {}
        self.open_outputs: set[str] = set()

    def open_input(self, path: str) -> BinaryIO:
        if path not in self.inputs:
            raise FileNotFoundError(2, "No such file", path)
        return io.BytesIO(self.inputs[path])

    def create_output(self, name: str) -> Output:
        if safe_name(name) != name:
            raise ValueError(f"{name!r} cannot name an output file")
        self.open_outputs.add(name)
        return _MemoryOutput(self, name)


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
