"""Guests whose drivers have stream sockets, and what their tests ask of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from guest_node.drivers.connector import connect
from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.listener import StreamListener, listen
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_table import (
    HEADER,
    MESSAGE_TYPE_STREAM,
)
from hmx.argo.abi import Address
from tests.doubles.argo_rig import Rig, RigCalls

PORT = 80


class Net:
    """Guests 1..n with started drivers."""

    def __init__(self, rig: Rig, count: int) -> None:
        self.rig = rig
        self.drivers = {domid: rig.driver(domid) for domid in range(1, count + 1)}

    @classmethod
    async def make(cls, count: int = 2, **options: Any) -> Net:
        net = cls(Rig(**options), count)
        for driver in net.drivers.values():
            await driver.start()
        return net

    def __getitem__(self, domid: int) -> ArgoDriver:
        return self.drivers[domid]

    def calls(self, domid: int) -> RigCalls:
        return self.rig.guests[domid]

    async def pair(
        self, client: int = 1, server: int = 2, **options: Any
    ) -> tuple[StreamConnection, StreamConnection, StreamListener]:
        """(the connector's end, the accepted end, the listener)"""
        ring_len = options.pop("ring_len", 65536)
        listener = await listen(self[server], PORT, ring_len=ring_len, **options)
        accepting = asyncio.create_task(listener.accept())
        connected = await connect(self[client], Address(PORT, server), ring_len=ring_len)
        return connected, await accepting, listener

    async def close(self) -> None:
        """Every driver ends, and nothing is left: no ring, no page, no task."""
        for domid, driver in self.drivers.items():
            if not self.calls(domid).dead:
                await driver.close()
                argo = self.calls(domid).domain.argo
                assert argo is not None
                assert argo.rings == {}
                assert list(driver.rings) == []
                assert len(driver.wakeups) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


def rings_of(net: Net, domid: int) -> set[tuple[int, int]]:
    argo = net.calls(domid).domain.argo
    return set(argo.rings) if argo is not None else set()


async def fill(net: Net, sender: int, socket: StreamConnection) -> None:
    """Fill what room is left in the peer's ring with frames that carry nothing: not even a control frame fits."""
    filler = HEADER.pack(0, socket._core.conid)
    while await net.calls(sender).sendv(socket.peer, socket.port, (filler,), MESSAGE_TYPE_STREAM) > 0:
        pass


async def errno_of(call: Any) -> int:
    with pytest.raises(OSError) as caught:
        await call
    return caught.value.errno or -1


async def end_guest(net: Net, domid: int) -> None:
    """The domain dies with everything that runs in it."""
    net.rig.kill(domid)
    driver = net[domid]
    if driver._timer is not None:
        driver._timer.cancel()
    assert driver._pump is not None
    driver._pump.cancel()
    await asyncio.wait([driver._pump])
