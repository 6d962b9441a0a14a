"""Two guests' drivers, and a sink that keeps what comes."""

from __future__ import annotations

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.rings import DriverRing
from tests.doubles.argo_rig import Rig

TYPE = 0x1234


class Collector:
    """A sink that keeps what comes, up to a limit."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.got: list[bytes] = []
        self.lost_rings: list[DriverRing] = []
        self.cause: BaseException | None = None

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        if len(self.got) >= self.limit:
            return False
        self.got.append(bytes(payload))
        return True

    def lost(self, ring: DriverRing) -> None:
        self.lost_rings.append(ring)

    def broken(self, cause: BaseException) -> None:
        self.cause = cause


async def two(rig: Rig) -> tuple[ArgoDriver, ArgoDriver]:
    drivers = rig.driver(1), rig.driver(2)
    for driver in drivers:
        await driver.start()
    return drivers
