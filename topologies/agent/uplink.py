"""The agent's link to the broker, which it joins as node ``agent`` whenever there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.client import ZmqLink
from broker.frames import Lane
from broker.link import OnRecord
from broker.router import SILENCE_NS
from topologies.agent.phases import MILLISECOND
from topologies.agent.sources import Sources
from topologies.agent.spec import NodeSpec

BROKER, AGENT = "broker", "agent"
HEARTBEAT = 500 * MILLISECOND
TELL_AGAIN = 200 * MILLISECOND
LOOK_FOR_BROKER = 2 * MILLISECOND


class Uplink:
    """Joins, beats, and says again what did not arrive.

    Args:
        broker: the broker's node.
        sources: what the owner's loop waits for.
        on_record: called with what the broker says.
        on_welcome: called when a broker has let the agent in.
        repeat: called with the name of a hypervisor that is to be told again what it has not answered.
    """

    def __init__(
        self,
        broker: NodeSpec,
        sources: Sources,
        on_record: OnRecord,
        on_welcome: Callable[[], None],
        repeat: Callable[[str], None],
    ) -> None:
        self._config = broker.config
        self._sources = sources
        self._on_record = on_record
        self._on_welcome = on_welcome
        self._repeat = repeat
        self._link: ZmqLink | None = None
        self._next_beat = 0
        self._again_at: dict[str, int] = {}
        self.busy = False
        """There is more to receive than the last look took."""

    def serve(self, now: int, broker_lives: bool) -> None:
        """One look, after everything that may have something to say: ZMQ_FD is edge-triggered."""
        if self._link is None:
            there = Path(self._config.endpoint.removeprefix("ipc://")).exists()
            if not broker_lives or not there:
                return
            self._link = self._join()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT
            self._link.heartbeat()
        for name, at in list(self._again_at.items()):
            if now >= at:
                del self._again_at[name]
                self._repeat(name)
        self.busy = self._link.pump()

    def moments(self, now: int, broker_lives: bool) -> list[int]:
        """When to look without anything having moved."""
        if self._link is not None:
            return [self._next_beat, *self._again_at.values()]
        return [now + LOOK_FOR_BROKER] if broker_lives else []

    def _join(self) -> ZmqLink:
        config = self._config
        link = ZmqLink(config.endpoint, kind=AGENT, name=AGENT, token=config.token, epoch=config.epoch)
        link.on_record = self._on_record
        link.member.on_welcome = lambda _epoch: self._on_welcome()
        link.send(Lane.CONTROL, ["subscribe"])
        link.send(Lane.CONTROL, ["ready"])
        self._sources.watch(link.fileno(), lambda: None)
        return link

    def silent_since(self) -> int | None:
        """Since when the broker has been silent for too long; None while it is heard, or was never."""
        silent = None if self._link is None else self._link.silent_ns()
        return None if silent is None or silent < SILENCE_NS else time.monotonic_ns() - silent

    def send(self, record: list[Any]) -> None:
        """Say something to the broker, if there is one."""
        if self._link is not None:
            self._link.send(Lane.CONTROL, record)

    def tell(self, name: str, record: list[Any]) -> None:
        """Say something to a node, at best."""
        self.send(["tell", name, record])

    def tell_again(self, name: str) -> None:
        """Something did not reach the node `name`: repeat it a little later, with all that it has not answered."""
        self._again_at[name] = time.monotonic_ns() + TELL_AGAIN

    def broker_died(self) -> None:
        """Look for the next one."""
        if self._link is not None:
            self._link.member.rejoin("the broker died")

    def close(self) -> None:
        """Let go."""
        if self._link is not None:
            self._link.close()
