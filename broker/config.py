"""What the broker process is told when it starts.  Filled in by the planner, handed over by the launcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.binding import Binding
from broker.impair import Impairment
from broker.keys import ServerCurve
from broker.operations import RELEASE_NS


class ConfigError(ValueError):
    """A configuration that would not be safe to start."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The broker of one lab.

    Attributes:
        lab: Name of the lab.
        endpoint: ZeroMQ endpoint to bind, for instance `ipc:///run/user/1000/argosy/s/0a1b2c3d/broker`.
        token: The lab's secret; a HELLO without it is refused.
        epoch: Which life of the broker this is, from 1; it grows with every restart.
        node_dir: Directory of the broker's own log and events.
        endpoints: Further endpoints to bind, for other hosts: `tcp://10.0.0.1:5555`.
        curve: Keys, which every `tcp://` endpoint needs ...
        insecure: ... unless this was asked for by name.
        host: The broker's own host, of which nodes over `ipc://` are; "" leaves them unjudged.
        binding: What each host may say; None leaves it unjudged.
        impair: (a, b, what is wrong) of links between two hypervisors or two hosts, from the start.
        seed: Of the chance in impairments.
        release_ns: How long the room of a request whose destination left stays reserved; longer than the
            origin waits for a link.
    """

    lab: str
    endpoint: str
    token: bytes = field(repr=False)
    epoch: int
    node_dir: str
    endpoints: tuple[str, ...] = ()
    curve: ServerCurve | None = None
    insecure: bool = False
    host: str = ""
    binding: Binding | None = None
    impair: tuple[tuple[str, str, Impairment], ...] = ()
    seed: int = 0
    release_ns: int = RELEASE_NS

    def __post_init__(self) -> None:
        """ConfigError: an endpoint of no known transport, or one over tcp with nothing to protect it."""
        for endpoint in (self.endpoint, *self.endpoints):
            if not endpoint.startswith(("ipc://", "tcp://")):
                raise ConfigError(f"{endpoint}: neither ipc:// nor tcp://")
            if endpoint.startswith("tcp://") and self.curve is None and not self.insecure:
                raise ConfigError(f"{endpoint}: no keys for an endpoint that other machines can reach")
