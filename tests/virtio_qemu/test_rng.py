"""The entropy driver, in both formats of the ring (VIRTIO 1.4, 2.7, 2.8, 5.4)."""

from __future__ import annotations

import pytest

from guest_node.virtio.drivers.rng import WANTS, RngDevice
from hmx.virtio.features import Feature, feature_set, has
from hmx.virtio.status import Status
from tests.virtio_qemu.conftest import Benches
from tests.virtio_qemu.transport import run

PACKED = feature_set(Feature.RING_PACKED)
EVENT = feature_set(Feature.RING_EVENT_IDX)
AVOID = {"packed": 0, "split": PACKED, "packed, flags": EVENT, "split, flags": PACKED | EVENT}


@pytest.mark.parametrize("rings", AVOID)
def test_random_bytes(bench: Benches, rings: str) -> None:
    """Every size arrives in full, and no two answers are alike."""
    transport = bench("rng").transport()
    device = RngDevice(transport, WANTS._replace(avoid=AVOID[rings]))
    run(transport, device.start())
    assert has(device.features, Feature.RING_PACKED) == rings.startswith("packed")
    assert transport.read("Status") == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
    found = [run(transport, device.read(size)) for size in (1, 2, 511, 4096, 9000, 64, 64, 64)]
    assert [len(part) for part in found] == [1, 2, 511, 4096, 9000, 64, 64, 64]
    assert len(set(found[3:])) == 5


@pytest.mark.parametrize("rings", AVOID)
def test_many_small_requests(bench: Benches, rings: str) -> None:
    """The ring of 16 goes round many times, the wrap counters of a packed one with it (VIRTIO 2.8.1)."""
    transport = bench("rng").transport()
    device = RngDevice(transport, WANTS._replace(avoid=AVOID[rings]))
    run(transport, device.start())

    async def many() -> int:
        return len({await device.read(16) for _ in range(100)})

    assert run(transport, many()) == 100


def test_start_again_with_the_other_format(bench: Benches) -> None:
    """A reset forgets positions and features: the next driver may choose otherwise (VIRTIO 2.4)."""
    transport = bench("rng").transport()
    for avoid in (0, PACKED, 0, EVENT):
        device = RngDevice(transport, WANTS._replace(avoid=avoid))
        run(transport, device.start())
        assert len(run(transport, device.read(100))) == 100
        assert has(device.features, Feature.RING_PACKED) == (not avoid & PACKED)
