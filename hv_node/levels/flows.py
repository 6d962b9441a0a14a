"""Who may answer whom under a firewall: what an allowed message lets come back.  Experimental, not upstream.

An allowed message from (asker, port) lets the one who got it send to that port, from whatever port it likes: a source
port is only what its sender says.  Bounded by asker, whose oldest flow goes first; the next message brings it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from hv_node.levels.rules import Party

MAX_FLOWS: Final = 1024  # of one asker


class Flow(NamedTuple):
    """One allowed direction: `asker` from `asker_port` to `port` of `replier`."""

    asker: Party
    asker_port: int
    replier: Party
    port: int


class Flows:
    """All flows of one hypervisor."""

    def __init__(self) -> None:
        self._of_asker: dict[Party, dict[Flow, None]] = {}
        self._answers: dict[tuple[Party, Party, int], dict[int, None]] = {}  # (replier, asker, port) -> ports asked

    def __len__(self) -> int:
        return sum(map(len, self._of_asker.values()))

    def note(self, flow: Flow) -> None:
        """A message was allowed that may be answered."""
        ports = self._answers.get((flow.replier, flow.asker, flow.asker_port))
        if ports is not None and flow.port in ports:
            return
        own = self._of_asker.setdefault(flow.asker, {})
        if len(own) >= MAX_FLOWS:
            self._drop(next(iter(own)))
        own[flow] = None
        self._answers.setdefault((flow.replier, flow.asker, flow.asker_port), {})[flow.port] = None

    def answers(self, replier: Party, asker: Party, port: int) -> bool:
        """May `replier` send to `port` of `asker`?"""
        return (replier, asker, port) in self._answers

    def know(self, one: Party, other: Party) -> bool:
        """True if either has asked the other."""
        pairs = ((one, other), (other, one))
        return any(flow.replier is asked for asker, asked in pairs for flow in self._of_asker.get(asker, ()))

    def rename(self, present: Callable[[Party], Party]) -> None:
        """Each party is what `present` makes of it, from now on; flows stay, in their order."""
        flows = [flow for own in self._of_asker.values() for flow in own]
        self._of_asker.clear()
        self._answers.clear()
        for flow in flows:
            self.note(flow._replace(asker=present(flow.asker), replier=present(flow.replier)))

    def _drop(self, flow: Flow) -> None:
        own = self._of_asker[flow.asker]
        del own[flow]
        if not own:
            del self._of_asker[flow.asker]
        key = (flow.replier, flow.asker, flow.asker_port)
        ports = self._answers[key]
        del ports[flow.port]
        if not ports:
            del self._answers[key]

    def keep(self, wanted: Callable[[Flow], bool]) -> list[Flow]:
        """Drop all flows but those that are wanted; those dropped, in their order."""
        unwanted = [flow for own in self._of_asker.values() for flow in own if not wanted(flow)]
        for flow in unwanted:
            self._drop(flow)
        return unwanted
