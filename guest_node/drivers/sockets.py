"""Argo sockets as a guest's program makes them.

A thin front of `dgram`, `stream` and `listener` that knows the guest's driver.
"""

from __future__ import annotations

from guest_node.drivers.connector import connect
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dgram import DatagramSocket, datagram
from guest_node.drivers.listener import StreamListener, listen
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_fsm import DEFAULT_BACKLOG, DEFAULT_BUDGET
from guest_node.drivers.stream_table import CONNECT_TIMEOUT, DEFAULT_RING_LEN
from hmx.argo.abi import DOMID_ANY, Address

ANY = DOMID_ANY


class ArgoSockets:
    """`guest.argo`.  Every method raises OSError with the errno that the hypervisor or the peer gave."""

    def __init__(self, driver: ArgoDriver) -> None:
        self.driver = driver

    async def datagram(self, port: int = 0, *, partner: int = ANY, ring: int = DEFAULT_RING_LEN) -> DatagramSocket:
        """A datagram socket at `port` (0: automatic) that receives from domain `partner`.

        `ring`: data bytes of its ring.
        """
        return await datagram(self.driver, port, partner=partner, ring_len=ring)

    async def connect(
        self,
        domid: int,
        port: int,
        *,
        ring: int = DEFAULT_RING_LEN,
        budget: int = DEFAULT_BUDGET,
        timeout: float = CONNECT_TIMEOUT,
    ) -> StreamConnection:
        """A stream to `port` of domain `domid`, once the program there has accepted it.

        `ring`: data bytes of the ring for what comes back; `budget`: unread bytes held beyond the ring;
        `timeout` in seconds.
        """
        return await connect(self.driver, Address(port, domid), ring_len=ring, budget=budget, timeout=timeout)

    async def listen(
        self,
        port: int = 0,
        *,
        partner: int = ANY,
        ring: int = DEFAULT_RING_LEN,
        backlog: int = DEFAULT_BACKLOG,
        budget: int = DEFAULT_BUDGET,
    ) -> StreamListener:
        """Accept streams at `port` (0: automatic) from domain `partner`.

        `ring`: data bytes of the listening ring, and of the ring that each peer gets; `backlog`:
        connections that may wait for accept; `budget`: unread bytes that each connection holds beyond its
        ring.
        """
        return await listen(self.driver, port, partner=partner, ring_len=ring, backlog=backlog, budget=budget)
