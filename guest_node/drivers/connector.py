"""Connecting stream sockets: a ring of one's own, the SYN, the wait for the ACK.

Specification: the connecting half of OpenXT's Linux Argo driver; tables in `stream_table`, engine in `stream_fsm`.
"""

from __future__ import annotations

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_fsm import DEFAULT_BUDGET, Connection, Connector, connecting
from guest_node.drivers.stream_table import CONNECT_TIMEOUT, DEFAULT_RING_LEN
from hmx.argo.abi import Address
from hmx.errno import Errno


class ConnectorSink:
    """What stands behind a connector's ring."""

    def __init__(self, socket: StreamConnection, core: Connection) -> None:
        self._socket = socket
        self.receive = Connector(core).receive

    def lost(self, ring: DriverRing) -> None:  # noqa: ARG002  (it has one ring)
        """What it held is gone, so the stream ends here."""
        self._socket.fail(Errno.EIO)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self._socket.broken(cause)


async def connect(
    driver: ArgoDriver,
    peer: Address,
    *,
    ring_len: int = DEFAULT_RING_LEN,
    budget: int = DEFAULT_BUDGET,
    timeout: float = CONNECT_TIMEOUT,
) -> StreamConnection:
    """Connect to `peer`, with a ring of `ring_len` data bytes for what it sends.

    "Connected" means that the peer's program called accept.  Raises OSError: ECONNREFUSED (no such ring, or
    refused), ETIMEDOUT after `timeout` seconds, or what the hypervisor answers.
    """
    port = driver.rings.auto_port()
    core = connecting(port, peer, driver.randomness.getrandbits(32), budget=budget)
    socket = StreamConnection(driver, core)
    try:
        ring = await driver.rings.bind(port, peer.domid, ring_len, ConnectorSink(socket, core))

        async def release() -> None:
            await driver.rings.unbind(ring)

        socket.attach((ring,), lambda: None, release)
        await socket.open(timeout)
    except BaseException:
        await socket.close()
        raise
    return socket
