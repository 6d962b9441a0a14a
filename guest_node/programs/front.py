"""What front-end programs share: the argument `device`, and a driver that is started on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from guest_node.config import DeviceConfig
from guest_node.devices import find
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.virtio.frontend import Transport

WITHIN = 10.0


class Driver(Protocol):
    """A device driver (guest_node/virtio/drivers)."""

    async def start(self) -> None:
        """Initialise the device."""


D = TypeVar("D", bound=Driver)


def device_of(guest: Guest, kind: str) -> DeviceConfig:
    """The device that argument `device` numbers among those of type `kind`."""
    number = args.whole(guest.arguments, "device", 0)
    try:
        return find(guest.devices, kind, number)
    except LookupError as problem:
        raise args.ArgumentError("device", str(problem)) from None


async def started(guest: Guest, kind: str, make: Callable[[Transport], D]) -> D:
    """The driver that `make` makes, on the device of the arguments, ready.  Raises OSError.

    The device is closed when the program ends.
    """
    device = device_of(guest, kind)
    within = args.seconds(guest.arguments, "within", WITHIN)
    driver = make(await guest.virtio(guest.devices.index(device), within=within))
    await driver.start()
    return driver


async def timed(guest: Guest, work: Awaitable[int]) -> int:
    """Its result; the report gets the seconds that it took."""
    begin = guest.time()
    code = await work
    guest.result(seconds=round(guest.time() - begin, 6))
    return code
