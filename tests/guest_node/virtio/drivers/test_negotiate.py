"""The order of device initialisation, and what a driver does when a step fails (VIRTIO 1.4, 3.1.1)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

import pytest

from guest_node.virtio.drivers.negotiate import (
    STEPS,
    Do,
    Negotiated,
    NegotiationFailed,
    Wants,
    accepted,
    negotiate,
    queues_of,
)
from guest_node.virtio.frontend import DeviceBroken, Queue
from guest_node.virtio.models.rng import RngModel
from hmx.virtio.features import Feature, FeatureRow, Kind, feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.status import Status
from tests.doubles.virtio_loopback import RINGS, Loopback

WANTS = Wants(DeviceId.RNG, 0, 0, ())


def loopback(offered: int = RINGS) -> Loopback:
    return Loopback(RngModel(bytes), offered=offered)


async def bring_up(transport: Loopback, wants: Wants = WANTS, size: int = 8, count: int = 1) -> Negotiated:
    async def setup(_features: int) -> Sequence[Queue]:
        return await queues_of(transport, count, size)

    return await negotiate(transport, wants, setup)


def test_the_order() -> None:
    """3.1.1: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues, DRIVER_OK; no status bit is cleared."""
    transport = loopback()
    live = asyncio.run(bring_up(transport))
    assert transport.history == [
        ("reset",),
        ("status", 1),
        ("status", 3),
        ("features", RINGS),
        ("status", 11),
        ("queue", 0, 8),
        ("status", 15),
    ]
    assert live.features == RINGS
    assert len(live.queues) == 1


def test_the_steps_are_those_of_the_specification() -> None:
    """3.1.1: eight steps in one order; the status is read back between FEATURES_OK and setup."""
    assert [(step.do, int(step.bit)) for step in STEPS] == [
        (Do.RESET, 0),
        (Do.SET, 1),
        (Do.SET, 2),
        (Do.FEATURES, 0),
        (Do.SET, 8),
        (Do.CHECK, 8),
        (Do.SETUP, 0),
        (Do.SET, 4),
    ]
    assert len({step.name for step in STEPS}) == len(STEPS)


def failure(transport: Loopback, wants: Wants = WANTS, count: int = 1) -> NegotiationFailed:
    with pytest.raises(NegotiationFailed) as error:
        asyncio.run(bring_up(transport, wants, count=count))
    return error.value


def test_features_that_the_device_refuses() -> None:
    """3.1.1 step 6: FEATURES_OK is re-read; without it the driver gives up, with FAILED, before any queue is made."""
    transport = loopback()
    transport.refuse_features = True
    error = failure(transport)
    assert (error.step, error.errno) == ("features kept", errno.EOPNOTSUPP)
    assert transport.history[-2:] == [("status", 11), ("status", 139)]


def test_a_legacy_device_is_refused() -> None:
    """6.1: a driver that needs VERSION_1 gives up where it is not offered."""
    transport = loopback(offered=feature_set(Feature.RING_EVENT_IDX))
    error = failure(transport)
    assert (error.step, error.errno) == ("features", errno.EOPNOTSUPP)
    assert "32" in str(error)
    assert transport.history[-1] == ("status", 3 | Status.FAILED)


def test_a_required_feature_that_is_not_offered() -> None:
    """2.2.1: what the driver cannot do without."""
    assert "feature 9" in str(failure(loopback(), WANTS._replace(required=feature_set(9))))


def test_another_device() -> None:
    """5: a driver touches only its own type of device."""
    transport = loopback()
    assert failure(transport, WANTS._replace(device_id=DeviceId.BLK)).step == "discovery"
    assert transport.history == []


def test_a_queue_that_is_not_there() -> None:
    """4.2.3.2: a size of 0 says that a queue is not available."""
    transport = loopback()
    assert failure(transport, count=2).step == "setup"
    assert transport.history[-1] == ("status", 11 | Status.FAILED)


def test_a_device_that_breaks_meanwhile() -> None:
    """2.1: the first error is reported, not that of telling a dead device."""
    transport = loopback()
    transport.broken = True

    async def reset() -> None:
        """It stays broken."""

    async def set_status(status: int) -> int:
        if status & Status.FAILED:
            raise DeviceBroken("nobody there")
        return status

    transport.reset = reset  # type: ignore[method-assign]
    transport.set_status = set_status  # type: ignore[method-assign]
    with pytest.raises(DeviceBroken, match="wants a reset"):
        asyncio.run(bring_up(transport))


def test_queues_are_no_larger_than_either_side_wants() -> None:
    """4.2.3.2: at most the device's maximum."""
    transport = loopback()
    asyncio.run(bring_up(transport, size=1000))
    assert transport.history[-2] == ("queue", 0, RngModel.queue_sizes[0])


def test_what_is_accepted() -> None:
    """2.2.1, 2.2.2: only what is offered, wanted, not avoided, and whose dependencies are met."""
    flush, wce, unknown = 9, 11, 77
    rows = (FeatureRow(Feature.RING_PACKED, Kind.QUEUE), FeatureRow(Feature.IN_ORDER, Kind.QUEUE, needs=(flush,)))
    wants = Wants(DeviceId.BLK, 0, feature_set(flush, wce), rows)
    base = feature_set(Feature.VERSION_1)
    assert accepted(base | feature_set(flush, unknown), wants) == base | feature_set(flush)
    assert accepted(base | feature_set(wce, Feature.IN_ORDER), wants) == base | feature_set(wce)
    assert accepted(base | feature_set(flush), wants._replace(avoid=feature_set(flush))) == base
