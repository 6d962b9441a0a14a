"""What the registers say, before and besides any queue (VIRTIO 1.4, 2.1, 2.2, 4.2.2).

Where our device and QEMU's may both be right and differ, the test names what each does.
"""

from __future__ import annotations

import pytest

from hmx.virtio.features import Feature, feature_set, has
from hmx.virtio.mmio import CONFIG, OFFSETS, REGISTERS
from hmx.virtio.status import Status
from tests.virtio_qemu.conftest import SECTORS, Benches
from tests.virtio_qemu.transport import MmioTransport, run

GREETED = Status.ACKNOWLEDGE | Status.DRIVER
READY = GREETED | Status.FEATURES_OK
LIVE = READY | Status.DRIVER_OK
V1 = feature_set(Feature.VERSION_1)


def greet(transport: MmioTransport, features: int = V1) -> int:
    """As far as FEATURES_OK; the status that the device gives."""
    transport.write("Status", Status.ACKNOWLEDGE)
    transport.write("Status", GREETED)
    run(transport, transport.set_driver_features(features))
    return run(transport, transport.set_status(READY))


@pytest.mark.parametrize(("name", "device_id"), [("rng", 4), ("disk", 2), ("read-only", 2), ("queues", 2)])
def test_identity(bench: Benches, name: str, device_id: int) -> None:
    """MagicValue and Version let a driver go on, DeviceID says what it found (4.2.3.1.1)."""
    transport = bench(name).transport()
    assert transport.device_id == device_id
    assert transport.read("VendorID") != 0
    assert transport.read("Status") == 0
    assert transport.read("InterruptStatus") == 0


@pytest.mark.parametrize(
    "offset", [0x018, 0x01C, 0x028, 0x02C, 0x03C, 0x040, 0x048, 0x04C, 0x054, 0x058, 0x068, 0x088, 0x0A8, 0x0C4, 0x0F8]
)
def test_holes_read_zero_and_ignore_writes(bench: Benches, offset: int) -> None:
    """Legacy registers of version 1 among them."""
    board = bench("disk").board
    board.store(offset, 4, 0xFFFFFFFF)
    assert board.load(offset, 4) == 0
    assert board.load(OFFSETS["Status"], 4) == 0


@pytest.mark.parametrize("name", [row.name for row in REGISTERS if row.access == "W"])
def test_write_only_registers_read_zero(bench: Benches, name: str) -> None:
    """A driver does not do this (4.2.2.2); both answer 0."""
    assert bench("disk").transport().read(name) == 0


@pytest.mark.parametrize("name", ["MagicValue", "Version", "DeviceID", "VendorID", "QueueSizeMax", "InterruptStatus"])
def test_read_only_registers_ignore_writes(bench: Benches, name: str) -> None:
    """Nothing changes."""
    transport = bench("disk").transport()
    before = transport.read(name)
    transport.write(name, 0x5A5A5A5A)
    assert transport.read(name) == before


@pytest.mark.parametrize("size", [1, 2])
def test_narrow_accesses_to_control_registers(bench: Benches, size: int) -> None:
    """They read 0 and write nothing."""
    board = bench("disk").board
    assert board.load(OFFSETS["MagicValue"], size) == 0
    board.store(OFFSETS["Status"], size, 1)
    assert board.load(OFFSETS["Status"], 4) == 0


def test_feature_words(bench: Benches) -> None:
    """Bits 0 to 63 in two words; what both offer of the format of queues."""
    offer = run(transport := bench("disk").transport(), transport.device_features())
    for bit in (Feature.VERSION_1, Feature.RING_PACKED, Feature.RING_EVENT_IDX, Feature.RING_INDIRECT_DESC):
        assert has(offer, bit)
    for bit in (Feature.PROTOCOL_FEATURES, Feature.ADMIN_VQ, Feature.SR_IOV, Feature.NOTIFY_ON_EMPTY):
        assert not has(offer, bit)


def test_feature_words_beyond_the_second(bench: Benches) -> None:
    """There are none.  QEMU 7.2 takes every selector but 0 for 1, so that its bits 32 to 63 come again as 64 to 95: a
    driver that asks for more than it knows of believes in features that are not there.
    """
    found = bench("disk")
    transport = found.transport()
    words = []
    for word in (1, 2, 3):
        transport.write("DeviceFeaturesSel", word)
        words.append(transport.read("DeviceFeatures"))
    assert words[1:] == ([0, 0] if found.side == "ours" else [words[0], words[0]])


def test_driver_features_beyond_the_second_word(bench: Benches) -> None:
    """QEMU 7.2 takes a zero for word 2 as word 1 and forgets VERSION_1; then our driver's rule is: never write it."""
    found = bench("rng")
    transport = found.transport()
    transport.write("Status", Status.ACKNOWLEDGE)
    transport.write("Status", GREETED)
    features = V1 | feature_set(Feature.RING_PACKED)
    run(transport, transport.set_driver_features(features))
    transport.write("DriverFeaturesSel", 2)
    transport.write("DriverFeatures", 0)
    transport.features = features
    assert run(transport, transport.set_status(READY)) == READY
    assert run(transport, transport.setup_queue(0, 3)).size == 3  # a split queue has no such size


def test_features_that_were_not_offered(bench: Benches) -> None:
    """A device must refuse them (2.2.2).  QEMU masks them silently and grants FEATURES_OK."""
    found = bench("rng")
    status = greet(found.transport(), V1 | 1 << 44)
    assert status == (GREETED if found.side == "ours" else READY)


def test_a_driver_without_version_1(bench: Benches) -> None:
    """A device may refuse it; QEMU takes it for a legacy driver."""
    found = bench("rng")
    status = greet(found.transport(), 0)
    assert status == (GREETED if found.side == "ours" else READY)


def test_features_are_closed_after_features_ok(bench: Benches) -> None:
    """What is written later changes nothing (3.1.1 step 5): the queue stays split."""
    found = bench("rng")
    transport = found.transport()
    assert greet(transport) == READY
    run(transport, transport.set_driver_features(V1 | feature_set(Feature.RING_PACKED)))
    transport.features = V1
    queue = run(transport, transport.setup_queue(0, 4))
    run(transport, transport.set_status(LIVE))

    async def once() -> bytes:
        answer = queue.submit((), 32)
        await queue.kick()
        return await answer

    assert len(run(transport, once())) == 32


def test_status_is_stored_as_given(bench: Benches) -> None:
    """Each step reads back; clearing a bit is a driver's fault that both let pass; 0 resets."""
    transport = bench("rng").transport()
    for value in (Status.ACKNOWLEDGE, GREETED, Status.DRIVER, GREETED | Status.FAILED):
        transport.write("Status", value)
        assert transport.read("Status") == value
    transport.write("Status", 0)
    assert transport.read("Status") == 0


def test_a_driver_cannot_ask_for_a_reset_by_itself(bench: Benches) -> None:
    """DEVICE_NEEDS_RESET belongs to the device; QEMU stores what it is given."""
    found = bench("rng")
    transport = found.transport()
    transport.write("Status", GREETED | Status.DEVICE_NEEDS_RESET)
    stored = GREETED | (0 if found.side == "ours" else Status.DEVICE_NEEDS_RESET)
    assert transport.read("Status") == stored


def test_queues_that_are_there(bench: Benches) -> None:
    """QueueSizeMax is 0 for a queue that is not; so is QueueReady."""
    transport = bench("queues").transport()
    sizes = [run(transport, transport.queue_max(index)) for index in range(3)]
    assert min(sizes) >= 64
    for index in (3, 1000, 65535):
        assert run(transport, transport.queue_max(index)) == 0
        assert transport.read("QueueReady") == 0


def test_queue_ready_is_per_queue_and_ends_with_a_reset(bench: Benches) -> None:
    """QueueReady reads back (4.2.2.2)."""
    transport = bench("queues").transport()
    assert greet(transport) == READY
    for index in (0, 2):
        run(transport, transport.setup_queue(index, 8))
    ready = []
    for index in range(3):
        transport.write("QueueSel", index)
        ready.append(transport.read("QueueReady"))
    assert ready == [1, 0, 1]
    run(transport, transport.reset())
    for index in range(3):
        transport.write("QueueSel", index)
        assert transport.read("QueueReady") == 0


def test_shared_memory_regions(bench: Benches) -> None:
    """There are none: the length is all ones, and so is the base (4.2.2).  QEMU's base is 0."""
    found = bench("disk")
    transport = found.transport()
    transport.write("SHMSel", 1)
    assert [transport.read(f"SHMLen{half}") for half in ("Low", "High")] == [0xFFFFFFFF] * 2
    base = 0xFFFFFFFF if found.side == "ours" else 0
    assert [transport.read(f"SHMBase{half}") for half in ("Low", "High")] == [base] * 2


def test_configuration_in_every_width(bench: Benches) -> None:
    """Bytes, halves and words of one space, before any status bit is set (2.5.2)."""
    board = bench("disk").board
    assert board.load(CONFIG, 4) == SECTORS
    assert board.load(CONFIG + 4, 4) == 0
    assert board.load(CONFIG, 2) == SECTORS
    assert board.load(CONFIG, 1) == SECTORS
    assert board.load(CONFIG + 0x14, 4) == 512  # blk_size
    assert [board.load(CONFIG + 0x14 + at, 1) for at in range(4)] == [0, 2, 0, 0]
    assert board.load(CONFIG + 0x16, 2) == 0


def test_the_capacity_cannot_be_written(bench: Benches) -> None:
    """It is the device's."""
    transport = bench("disk").transport()
    greet(transport)
    transport.board.store(CONFIG, 4, 1)
    assert transport.board.load(CONFIG, 4) == SECTORS


def test_configuration_beyond_its_end(bench: Benches) -> None:
    """Not ruled: our device reads 0 there, QEMU all ones; neither minds."""
    found = bench("disk")
    beyond = 0 if found.side == "ours" else 0xFFFFFFFF
    assert found.board.load(CONFIG + 0x60, 4) == beyond
    found.board.store(CONFIG + 0x60, 4, 1)
    assert found.board.load(CONFIG, 4) == SECTORS
