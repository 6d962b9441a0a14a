"""uXen's v4v as a guest's program uses it: the Argo driver core over v4v's calls, and datagram sockets on top.

Specification: uXen public/v4v.h, its Linux v4v library (rings up to 4 MiB, ports from 1 upward) and its storage driver.
One core serves whatever interface stands above it: it takes line 7, passes over all rings, notifies and asks for room,
exactly as for Argo (:mod:`guest_node.drivers.core`); only the calls beneath and the dialect differ.

A guest has one peer, its device model, and addresses it as `DM`; the domain that runs the device models names guests by
domain id, and may make a placeholder for a ring that is not there yet, so that its sends wait instead of failing.
"""

from __future__ import annotations

from typing import Final, Protocol

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.dgram import DatagramSocket, datagram
from guest_node.drivers.dialect import DM_DOMID
from guest_node.drivers.hypercall import error
from guest_node.drivers.stream_table import DEFAULT_RING_LEN
from hmx.argo.abi import Address
from hmx.argo.calls import ArgoCalls, SpaceAnswer
from hmx.errno import Errno
from hmx.uxen_enum import Device
from hmx.v4v.abi import DOMID_ANY, DOMID_DM

DM: Final = DOMID_DM
ANY: Final = DOMID_ANY
MAX_RING: Final = 4 << 20
"""The longest ring that uXen's Linux library makes; the hypervisor takes up to 16 MiB."""


class V4vCalls(ArgoCalls, Protocol):
    """v4v's calls in Argo's shapes, and what only v4v and its hypervisor have."""

    hypercalls: int

    def virq(self) -> None:
        """Line 7 was raised."""

    async def create_ring(self, port: int, owner: int) -> int:
        """A placeholder for `owner`'s ring of (port, the caller); 0 or a negated errno."""

    async def signal(self, domid: int) -> int:
        """Raise a domain's line; 0 or a negated errno."""

    async def storage_ports(self) -> tuple[int, ...]:
        """The v4v ports of the storage units that the port bitmap shows."""

    async def devices(self) -> tuple[tuple[int, Device], ...] | None:
        """The occupied slots of the platform device's table; None where there is no such device."""


class V4vSockets:
    """`guest.v4v`.  Every method raises OSError with the errno that the hypervisor gave."""

    def __init__(self, driver: ArgoDriver, calls: V4vCalls) -> None:
        """`driver`: one over `calls`, with the dialect of v4v."""
        self.driver = driver
        self._calls = calls

    async def datagram(self, port: int = 0, *, partner: int = DM, ring: int = DEFAULT_RING_LEN) -> DatagramSocket:
        """A datagram socket at `port` (0: the next free one) for messages from domain `partner`.

        A guest's partner is `DM`; the device models' domain names a guest, or `ANY`.  `ring`: data bytes of its ring.
        """
        if ring > MAX_RING:
            raise error(Errno.EINVAL, f"ring of {ring} bytes, more than {MAX_RING}")
        return await datagram(self.driver, port, partner=DM if partner == DM_DOMID else partner, ring_len=ring)

    async def space(self, address: Address) -> SpaceAnswer:
        """Whether there is a ring at `address`, with Argo's flags, and the longest datagram that it ever takes."""
        return await self.driver.probe(address)

    async def placeholder(self, port: int, owner: int) -> None:
        """Make a placeholder for the ring of domain `owner` at `port` from which this domain is to send: sends to it
        wait until `owner` registers the ring.  For the domain that runs the device models only: EPERM.
        """
        ret = await self._calls.create_ring(port, owner)
        if ret < 0:
            raise error(-ret, f"no placeholder at port {port:#x} of domain {owner}")

    async def signal(self, domid: int) -> None:
        """Raise the line of domain `domid`.  For the domain that runs the device models only: EPERM."""
        ret = await self._calls.signal(domid)
        if ret < 0:
            raise error(-ret, f"cannot signal domain {domid}")

    async def storage_ports(self) -> tuple[int, ...]:
        """The ports of the storage units that the device model shows at I/O port 0x330 now."""
        return await self._calls.storage_ports()

    async def devices(self) -> tuple[tuple[int, Device], ...] | None:
        """The (slot, device) of the platform device's table; None where there is no such device."""
        return await self._calls.devices()
