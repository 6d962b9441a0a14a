"""How a driver brings a device to life, the same for every device and transport.

Source: VIRTIO 1.4, 3.1.1 (driver requirements: device initialisation), whose steps are the rows of STEPS.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from guest_node.virtio.frontend import Queue, Transport
from hmx.virtio.features import Feature, FeatureRow, bits_of, closed, feature_set
from hmx.virtio.status import Status


class NegotiationFailed(OSError):
    """A device could not be initialised; the step at which it failed, and why."""

    def __init__(self, step: str, why: str, number: int = errno.ENODEV) -> None:
        super().__init__(number, f"{step}: {why}")
        self.step = step


class Do(Enum):
    """What a step consists of."""

    RESET = "reset"
    SET = "set"  # a status bit, on top of those that are set
    FEATURES = "features"
    CHECK = "check"  # the device has kept a status bit
    SETUP = "setup"  # queues and whatever else the device needs


class Step(NamedTuple):
    """One step of the initialisation."""

    name: str
    do: Do
    bit: Status
    source: str


_NONE: Final = Status(0)

STEPS: Final = (
    Step("reset", Do.RESET, _NONE, "VIRTIO 1.4, 3.1.1 step 1"),
    Step("acknowledge", Do.SET, Status.ACKNOWLEDGE, "step 2"),
    Step("driver", Do.SET, Status.DRIVER, "step 3"),
    Step("features", Do.FEATURES, _NONE, "step 4"),
    Step("features ok", Do.SET, Status.FEATURES_OK, "step 5"),
    Step("features kept", Do.CHECK, Status.FEATURES_OK, "step 6"),
    Step("setup", Do.SETUP, _NONE, "step 7"),
    Step("driver ok", Do.SET, Status.DRIVER_OK, "step 8"),
)

TRANSPORT_FEATURES: Final = feature_set(
    Feature.RING_INDIRECT_DESC,
    Feature.RING_EVENT_IDX,
    Feature.VERSION_1,
    Feature.ACCESS_PLATFORM,
    Feature.RING_PACKED,
    Feature.IN_ORDER,
    Feature.ORDER_PLATFORM,
    Feature.NOTIFICATION_DATA,
    Feature.RING_RESET,
)
"""What is accepted wherever it is offered.  A transport that cannot do one of them does not show it."""


class Wants(NamedTuple):
    """What a driver needs and likes of a device.

    `rows`: the features of the device type, whose dependencies the accepted set meets.  `avoid`: features that are not
    accepted although they are offered, for tests and comparisons.
    """

    device_id: int
    required: int
    wanted: int
    rows: tuple[FeatureRow, ...]
    avoid: int = 0


Setup = Callable[[int], Awaitable[Sequence[Queue]]]
"""Makes the queues, given the accepted features; runs between FEATURES_OK and DRIVER_OK."""


class Negotiated(NamedTuple):
    """A live device."""

    features: int
    queues: tuple[Queue, ...]


async def negotiate(transport: Transport, wants: Wants, setup: Setup) -> Negotiated:
    """Carry out STEPS.  Raises NegotiationFailed, and whatever `setup` and the transport raise.

    A device that could not be initialised gets the status FAILED as long as it can be told.
    """
    if transport.device_id != wants.device_id:
        raise NegotiationFailed("discovery", f"device id {transport.device_id}, not {int(wants.device_id)}")
    run = _Run(transport, wants, setup)
    for step in STEPS:
        try:
            await run.carry_out(step)
        except (OSError, ValueError):
            await run.give_up()
            raise
    return Negotiated(run.features, run.queues)


async def queues_of(transport: Transport, count: int, size_max: int, first: int = 0) -> list[Queue]:
    """Queues `first` to `first` + `count` - 1, each as large as the device allows and at most `size_max`.

    Raises NegotiationFailed where one is not there.
    """
    made = []
    for index in range(first, first + count):
        most = await transport.queue_max(index)
        if most <= 0:
            raise NegotiationFailed("setup", f"there is no queue {index}")
        made.append(await transport.setup_queue(index, min(most, size_max)))
    return made


def accepted(offered: int, wants: Wants) -> int:
    """The features that a driver accepts of an offer.  Raises NegotiationFailed if what it needs is not among them."""
    wanted = (TRANSPORT_FEATURES | wants.wanted | wants.required) & ~wants.avoid
    features = closed(offered & wanted, wants.rows)
    lacking = (wants.required | feature_set(Feature.VERSION_1)) & ~features
    if lacking:
        names = ", ".join(str(bit) for bit in bits_of(lacking))
        raise NegotiationFailed("features", f"the device does not offer feature {names}", errno.EOPNOTSUPP)
    return features


class _Run:
    """One initialisation."""

    def __init__(self, transport: Transport, wants: Wants, setup: Setup) -> None:
        self.features = 0
        self.queues: tuple[Queue, ...] = ()
        self._transport = transport
        self._wants = wants
        self._setup = setup
        self._status = _NONE

    async def carry_out(self, step: Step) -> None:
        match step.do:
            case Do.RESET:
                await self._transport.reset()
            case Do.SET:
                self._status |= step.bit
                await self._transport.set_status(self._status)
            case Do.FEATURES:
                self.features = accepted(await self._transport.device_features(), self._wants)
                await self._transport.set_driver_features(self.features)
            case Do.CHECK:
                if not await self._transport.status() & step.bit:
                    why = f"the device refused {self.features:#x}"
                    raise NegotiationFailed(step.name, why, errno.EOPNOTSUPP)
            case Do.SETUP:
                self.queues = tuple(await self._setup(self.features))

    async def give_up(self) -> None:
        try:
            await self._transport.set_status(self._status | Status.FAILED)
        except OSError:
            pass  # the first error says more
