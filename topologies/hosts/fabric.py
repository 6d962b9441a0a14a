"""What a host needs to join the lab's fabric, and its agent's place there.

The agent is a node of the fabric (kind ``agent``, name ``agent.HOST``): so the broker tells the leader when the host
falls silent, and the agent knows that the leader's side lives when the pipe is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from broker.client import ZmqLink
from broker.frames import Lane
from broker.keys import ClientCurve, KeyPair
from guest_node.config import GuestConfig
from hv_node.config import HypervisorConfig
from topologies.agent.sources import Sources
from topologies.codec import decode, encode
from topologies.hosts.names import AGENT, agent_name

Config = TypeVar("Config", bound=HypervisorConfig | GuestConfig)
HEARTBEAT: Final = 500_000_000
FAREWELL: Final = 0.3
"""Seconds that the agent waits until the broker knows that it leaves."""


@dataclass(frozen=True, slots=True)
class Key:
    """What opens the fabric to one host: it goes there over the provider's pipe, and nowhere else.

    Attributes:
        endpoint: Where the host reaches the broker.
        token: The lab's secret.
        epoch: The broker's epoch at the start.
        server: The broker's public CURVE key, Z85; empty on the leader's own machine.
        public: The host's own.
        secret: Its other half.
    """

    endpoint: str
    token: bytes = field(repr=False)
    epoch: int = 1
    server: bytes = b""
    public: bytes = b""
    secret: bytes = field(default=b"", repr=False)

    def pack(self) -> Any:
        """As JSON."""
        return encode(self)

    @classmethod
    def unpack(cls, data: Any) -> Key:
        """The inverse.  Raises CodecError."""
        return decode(cls, data)

    def curve(self) -> ClientCurve | None:
        """What the host's nodes show the broker; None where they need nothing."""
        return ClientCurve(self.server, KeyPair(self.public, self.secret)) if self.server else None

    def into(self, config: Config) -> Config:
        """Start arguments of a node of this host, with what it shows the broker."""
        shown: dict[str, Any] = {"curve": self.curve()} if self.server else {}
        return dataclasses.replace(config, **shown)


class Fabric:
    """The agent's link to the broker; `on_refused` is called, once, with the broker's words when it lets nobody in."""

    def __init__(self, key: Key, host: str, sources: Sources, on_refused: Callable[[str], None]) -> None:
        name = agent_name(host)
        self._link = ZmqLink(key.endpoint, kind=AGENT, name=name, token=key.token, epoch=key.epoch, curve=key.curve())
        self._link.member.on_refused = lambda code, words: on_refused(f"the broker refuses it: {code}: {words}")
        self._link.send(Lane.CONTROL, ["ready"])
        self._next_beat = 0
        self.busy = False
        """There is more to receive than the last look took."""
        sources.watch(self._link.fileno(), lambda: None)

    @property
    def heard_ns(self) -> int | None:
        """When the broker was heard last; None before it was."""
        return self._link.member.heard_ns

    @property
    def epoch(self) -> int:
        """The broker's, as far as it is known."""
        return self._link.member.epoch

    def serve(self, now: int) -> None:
        """One look, after everything that may have something to say: ZMQ_FD is edge-triggered."""
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT
            self._link.heartbeat()
        self.busy = self._link.pump()

    def moments(self, now: int) -> list[int]:
        """When to look again, whatever happens."""
        return [max(now, self._next_beat)]

    def close(self, words: str = "") -> None:
        """Leave."""
        self._link.leave(0, words, FAREWELL)
