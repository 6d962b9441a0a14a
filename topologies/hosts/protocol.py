"""What the leader and the agent of another host say to each other: JSON lines over the pipe of the provider.

The leader's lines have `op`, the host's have `what`; the tables name both.  Nothing is unpickled.  An order names the
life of a node that it is for, so that one that is repeated after the pipe broke is recognised, and so is a report.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final, NamedTuple

from guest_node.config import GuestConfig
from hv_node.config import HypervisorConfig
from topologies.agent.control import LineWriter
from topologies.codec import decode, encode
from topologies.runtime import NodeKind

PROTOCOL: Final = 1
"""Grows with every change that an older side would not understand."""
BEAT_EVERY: Final = 500_000_000
SILENT_AFTER: Final = 2_000_000_000
"""A side that has said nothing for so long (ns) is silent; it is named, and nothing is done yet."""
MAX_LINE: Final = 16 << 20


class Word(NamedTuple):
    """One line of the vocabulary: who says it, its name, and what it means."""

    leader: bool
    name: str
    meaning: str


WORDS: Final = (
    Word(True, "begin", "be the agent of this host for this lab; the lab's key for it; first of all, and once"),
    Word(True, "spawn", "start this node"),
    Word(True, "signal", "send a node this signal"),
    Word(True, "beat", "the leader lives"),
    Word(True, "release", "the lab lives on when this pipe ends, as long as the fabric is heard"),
    Word(True, "leave", "take this part of the lab down and say when nothing is left"),
    Word(False, "agent", "the agent is there: its process, its directories; first of all, on every pipe"),
    Word(False, "refused", "there will be no agent, for this reason"),
    Word(False, "spawned", "a node's process runs"),
    Word(False, "not-spawned", "it could not be started, for this reason"),
    Word(False, "ended", "it is gone: how, what its own code raised, the last line of its log"),
    Word(False, "log", "what a node wrote to its standard output and error"),
    Word(False, "beat", "the agent lives"),
    Word(False, "leaving", "this part of the lab goes down, for this reason"),
    Word(False, "left", "nothing of this part is left"),
)

CONFIGS: Final = {NodeKind.HYPERVISOR: HypervisorConfig, NodeKind.GUEST: GuestConfig}


def pack_config(config: HypervisorConfig | GuestConfig) -> Any:
    """Start arguments as JSON."""
    return encode(config)


def unpack_config(kind: NodeKind, data: Any) -> HypervisorConfig | GuestConfig:
    """The inverse.  Raises CodecError."""
    return decode(CONFIGS[kind], data)


class Reader:
    """JSON objects, a line each, from a descriptor that does not block.  Other lines, a login shell's, are skipped."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.ended = False
        self.noise = ""
        """The last line that was none."""
        self._data = bytearray()

    def receive(self) -> list[dict[str, Any]]:
        """What has arrived."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = self.ended or not data or len(self._data) > MAX_LINE
        self._data += data
        *lines, rest = self._data.split(b"\n")
        self._data = bytearray(rest)
        return [record for line in lines if (record := self._record(bytes(line))) is not None]

    def _record(self, line: bytes) -> dict[str, Any] | None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        self.noise = line.decode(errors="replace").strip()[:400] or self.noise
        return None


class Pipe:
    """Both directions."""

    def __init__(self, read: int, write: int) -> None:
        self.reader = Reader(read)
        self.writer = LineWriter(write, limit=MAX_LINE)

    @property
    def ended(self) -> bool:
        """Whether the other side is gone."""
        return self.reader.ended or self.writer.broken
