"""What the broker process is told when it starts.  Filled in by the planner, handed over by the launcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The broker of one lab.

    Attributes:
        lab: Name of the lab.
        endpoint: ZeroMQ endpoint to bind, for instance `ipc:///run/user/1000/argosy/s/0a1b2c3d/broker`.
        token: The lab's secret; a HELLO without it is refused.
        epoch: Which life of the broker this is, from 1; it grows with every restart.
        node_dir: Directory of the broker's own log and events.
    """

    lab: str
    endpoint: str
    token: bytes
    epoch: int
    node_dir: str
