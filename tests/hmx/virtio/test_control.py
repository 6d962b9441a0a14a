"""The control state of a device: what a driver's writes do, and what it must not do (VIRTIO 1.4, 2 and 3.1)."""

from __future__ import annotations

import pytest

from hmx.virtio.control import Complaint, DeviceControl
from hmx.virtio.features import Feature, Refusal, feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.queue_state import QueueState
from hmx.virtio.status import State, Status
from tests.doubles.virtio_control import ALL, DRIVEN, LIVE, NEGOTIATED, SPLIT, FakeDevice, Recorder

V1 = feature_set(Feature.VERSION_1)
PACKED = V1 | feature_set(Feature.RING_PACKED)


@pytest.fixture
def device() -> Recorder:
    return Recorder()


# -- status ----


def test_the_whole_way(device: Recorder) -> None:
    """ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues, DRIVER_OK: each visible at once (3.1.1)."""
    control = device.control
    assert [control.write_status(value) for value in (1, 3)] == [1, 3]
    assert control.set_driver_features(1, 1)
    assert control.negotiated == 0
    assert control.write_status(11) == 11
    assert control.negotiated == control.accepted == V1
    device.queue(1, 32)
    assert control.write_status(15) == 15
    assert device.taken() == [("queue", 1, True), ("start", V1), ("run", True)]
    assert control.live and control.running and not control.complaints


def test_version_1_is_offered_whatever_the_device_says() -> None:
    """A device that is not legacy offers VERSION_1 (6.2); what no guest may see is not offered."""
    assert Recorder(features=0).control.offered == V1
    assert Recorder(features=1 << 30 | 1 << 41 | 1 << 24).control.offered == V1


def test_offers_are_closed() -> None:
    """A device must not offer what needs something that is not offered (2.2.2)."""
    with pytest.raises(ValueError, match="feature 11"):
        DeviceControl(FakeDevice(features=1 << 11))
    with pytest.raises(ValueError, match="too many"):
        DeviceControl(FakeDevice(queue_sizes=(65536,)))
    with pytest.raises(ValueError, match="too many"):
        DeviceControl(FakeDevice(queue_sizes=(1,) * 65537))
    DeviceControl(FakeDevice(queue_sizes=(32768,)))


@pytest.mark.parametrize(
    ("accepted", "refusal"),
    [
        (V1 | 1 << 3, Refusal("accepted what was not offered", 3)),
        (V1 | 1 << 100, Refusal("accepted what was not offered", 100)),
        (0, Refusal("a legacy driver", 32)),
    ],
)
def test_features_ok_is_refused(accepted: int, refusal: Refusal) -> None:
    """The bit stays clear, the driver may choose again (2.2.2, 3.1.1 step 6)."""
    device = Recorder(FakeDevice(features=1 << 9 | 1 << 11))
    control = device.control
    control.write_status(DRIVEN)
    for block in range(4):
        control.set_driver_features(block, accepted >> 32 * block & 0xFFFFFFFF)
    assert control.write_status(NEGOTIATED) == DRIVEN
    assert control.refusal == refusal and control.complaints == {Complaint.REFUSED_FEATURES: 1}
    assert control.negotiated == 0
    for block in range(4):
        assert control.set_driver_features(block, V1 >> 32 * block & 0xFFFFFFFF)
    assert control.write_status(NEGOTIATED) == NEGOTIATED
    assert control.refusal is None


def test_features_beyond_all_words(device: Recorder) -> None:
    """A bit in a word that nobody offers is not forgotten: FEATURES_OK is refused until a reset (2.2.2)."""
    control = device.control
    control.write_status(DRIVEN)
    control.set_driver_features(1, 1)
    assert control.device_features(0xFFFFFFFF) == 0
    assert control.set_driver_features(0xFFFFFFFF, 0)
    control.set_driver_features(0xFFFFFFFF, 4)
    assert control.write_status(NEGOTIATED) == DRIVEN
    assert control.refusal == Refusal("accepted what was not offered", None)
    control.reset()
    device.negotiate()


def test_features_are_locked(device: Recorder) -> None:
    """After FEATURES_OK nothing is accepted any more but by a reset (3.1.1)."""
    device.negotiate()
    control = device.control
    assert not control.set_driver_features(1, 0xFF)
    assert control.accepted == V1 and control.complaints == {Complaint.FEATURES: 1}
    control.write_status(DRIVEN)  # clears FEATURES_OK, which a driver must not
    assert not control.set_driver_features(1, 0xFF)
    assert control.write_status(NEGOTIATED) == NEGOTIATED


def test_more_than_64_features() -> None:
    """A network device offers and negotiates bits beyond 63 (5.1.3)."""
    device = Recorder(FakeDevice(DeviceId.NET, 1 << 70 | 1 << 69), features=0)
    control = device.control
    assert control.feature_blocks == 3
    assert [control.device_features(block) for block in range(5)] == [0, 1, 1 << 6 | 1 << 5, 0, 0]
    device.negotiate(V1 | 1 << 70)
    assert control.negotiated == V1 | 1 << 70
    assert Recorder().control.feature_blocks == 2


def test_the_same_features_after_a_reset(device: Recorder) -> None:
    """What was negotiated once is accepted again: one driver hands over to the next (2.2.2)."""
    for accepted in (V1, PACKED, V1):
        device.negotiate(accepted)
        device.control.write_status(0)


@pytest.mark.parametrize("status", [4, 7, 5, 6])
def test_no_driver_ok_without_features_ok(device: Recorder, status: int) -> None:
    """Nobody knows what the queues look like: the bit stays clear and nothing starts (3.1.1)."""
    assert device.control.write_status(status) == status & ~4
    assert device.taken() == [] and not device.control.running
    assert device.control.complaints == {Complaint.STATUS: 1}


def test_everything_in_one_write(device: Recorder) -> None:
    """Bits that rise together are taken in their order."""
    device.control.set_driver_features(1, 1)
    assert device.control.write_status(15) == 15
    assert device.taken() == [("start", V1), ("run", True)]


def test_everything_in_one_write_refused(device: Recorder) -> None:
    """... so that DRIVER_OK falls with FEATURES_OK."""
    assert device.control.write_status(15) == 3
    assert device.taken() == []


@pytest.mark.parametrize(("written", "stored"), [(3, 3), (9, 9), (2, 2), (0x100 | 11, 11)])
def test_clearing_bits(device: Recorder, written: int, stored: int) -> None:
    """A driver must not clear bits; what it wrote is stored all the same, and counted (2.1.1)."""
    device.go_live()
    assert device.control.write_status(written) == stored
    assert device.control.complaints == {Complaint.CLEARED_STATUS: 1}
    assert device.taken() == [("run", False)]


def test_driver_ok_again(device: Recorder) -> None:
    """A driver that cleared DRIVER_OK and sets it again goes on; the device is not started a second time."""
    device.go_live()
    device.control.write_status(NEGOTIATED)
    device.control.write_status(LIVE)
    assert device.taken() == [("run", False), ("run", True)]


def test_bits_that_do_not_exist(device: Recorder) -> None:
    """0x20 is reserved: not stored."""
    assert device.control.write_status(0x21) == 1


def test_failed(device: Recorder) -> None:
    """The driver gave up: nothing is consumed, nothing can be started but by a reset (2.1.1)."""
    device.go_live()
    control = device.control
    assert control.write_status(LIVE | Status.FAILED) == LIVE | Status.FAILED
    assert device.taken() == [("run", False)] and control.state is State.FAILED
    control.used(0)
    control.kick(0)
    assert device.taken() == []
    control.write_status(0)
    assert control.write_status(1 | Status.FAILED) == 1 | Status.FAILED
    control.set_driver_features(1, 1)
    assert control.write_status(LIVE | Status.FAILED) == DRIVEN | Status.FAILED
    assert control.write_status(LIVE) == LIVE, "stored as it was given: FEATURES_OK and DRIVER_OK after FAILED fell"


def test_failed_comes_first(device: Recorder) -> None:
    """In one write with DRIVER_OK: nothing starts."""
    device.negotiate()
    device.control.write_status(LIVE | Status.FAILED)
    assert device.taken() == []


def test_reset_forgets_everything(device: Recorder) -> None:
    """Status 0: features, queues, held notifications; not the generation of the configuration (2.4)."""
    device.go_live(PACKED)
    control = device.control
    device.device.space[5] = 99
    assert control.config_generation() == 1
    assert control.write_status(0) == 0
    assert device.taken() == [("reset",)]
    assert control.accepted == control.negotiated == 0 and not control.running and not control.live
    assert control.queues[0] == QueueState(128)
    assert control.config_generation() == 1
    control.used(0)
    control.kick(0)
    control.needs_reset("late")
    assert control.status == 0 and device.taken() == []


def test_reset_is_idempotent(device: Recorder) -> None:
    """Each write of 0 resets."""
    device.control.write_status(0)
    device.control.write_status(0)
    assert device.taken() == [("reset",)] * 2


# -- NEEDS_RESET ----


def test_needs_reset(device: Recorder) -> None:
    """With DRIVER_OK a configuration notification goes with it; only a reset clears it (2.1.2)."""
    device.go_live()
    control = device.control
    control.needs_reset("a loop in queue 0")
    assert control.status == LIVE | Status.DEVICE_NEEDS_RESET
    assert device.taken() == [("run", False), ("notify", None)]
    assert control.reason == "a loop in queue 0"
    control.needs_reset("again")
    control.used(0)
    control.kick(0)
    assert device.taken() == [] and control.reason == "a loop in queue 0"
    assert control.write_status(LIVE) == LIVE | Status.DEVICE_NEEDS_RESET
    assert control.write_status(0) == 0 and control.reason == ""


def test_needs_reset_before_driver_ok(device: Recorder) -> None:
    """No notification then, and with DRIVER_OK nothing starts (2.1.2)."""
    device.negotiate()
    device.control.needs_reset("x")
    assert device.taken() == []
    assert device.control.write_status(LIVE) == LIVE | Status.DEVICE_NEEDS_RESET
    assert device.taken() == []


def test_the_driver_cannot_set_needs_reset(device: Recorder) -> None:
    """It is the device's bit (2.1)."""
    assert device.control.write_status(0x41) == 1
    assert device.control.complaints == {Complaint.STATUS: 1}


# -- SUSPEND ----


SUSPENDABLE = V1 | feature_set(Feature.SUSPEND)


def test_suspend_and_resume(device: Recorder) -> None:
    """SUSPEND set and DRIVER_OK clear once drained; DRIVER_OK resumes and clears SUSPEND (VIRTIO 1.4, 2.1, 3.4)."""
    device.go_live(SUSPENDABLE)
    control = device.control
    assert control.write_status(LIVE | Status.SUSPEND) == NEGOTIATED | Status.SUSPEND
    assert device.taken() == [("run", False), ("suspend",)]
    control.config_changed()
    control.kick(0)
    control.used(0)
    assert device.taken() == [], "configuration notifications are held, there are no others"
    assert control.write_status(LIVE | Status.SUSPEND) == LIVE
    assert device.taken() == [("run", True), ("notify", None)]
    assert not control.complaints


def test_suspend_drains_first(device: Recorder) -> None:
    """While something is in flight DRIVER_OK stays set, and used buffers are still notified."""
    device.go_live(SUSPENDABLE)
    device.busy = True
    control = device.control
    assert control.write_status(LIVE | Status.SUSPEND) == LIVE | Status.SUSPEND
    assert not control.running and control.live
    device.taken()
    control.used(0)
    control.kick(0)
    assert device.taken() == [("notify", 0)]
    control.drained()
    assert control.status == NEGOTIATED | Status.SUSPEND
    control.drained()
    assert control.write_status(LIVE) == LIVE and not control.complaints


def test_suspend_without_the_feature(device: Recorder) -> None:
    """The bit is not there (VIRTIO 1.4, 2.1)."""
    device.go_live()
    assert device.control.write_status(LIVE | Status.SUSPEND) == LIVE
    assert device.taken() == [] and device.control.complaints == {Complaint.STATUS: 1}
    device.control.drained()
    assert device.control.status == LIVE


def test_suspended_devices_can_break_and_be_reset(device: Recorder) -> None:
    """A device may answer with NEEDS_RESET; drained then means nothing."""
    device.go_live(SUSPENDABLE)
    device.busy = True
    device.control.write_status(LIVE | Status.SUSPEND)
    device.taken()
    device.control.needs_reset("the disk is gone")
    assert device.taken() == [("notify", None)]
    device.control.drained()
    assert device.control.status == LIVE | Status.SUSPEND | Status.DEVICE_NEEDS_RESET
    assert device.control.write_status(0) == 0


# -- queues ----


@pytest.mark.parametrize(
    ("accepted", "changes", "problem"),
    [
        (V1, {}, None),
        (V1, {"size": 128}, None),
        (V1, {"size": 1}, None),
        (V1, {"size": 0}, "1 to 128"),
        (V1, {"size": 129}, "1 to 128"),
        (V1, {"size": 256}, "1 to 128"),
        (V1, {"size": 48}, "power of two"),
        (PACKED, {"size": 48}, None),
        (V1, {"descriptors": 0x1008}, "16"),
        (V1, {"driver": 0x2001}, "2"),
        (V1, {"driver": 0x2002}, None),
        (PACKED, {"driver": 0x2002}, "4"),
        (V1, {"device": 0x3002}, "4"),
        (PACKED, {"device": 0x3002}, "4"),
        (V1, {"descriptors": (1 << 64) - 1024}, None),
        (V1, {"descriptors": (1 << 64) - 1008}, "end of all addresses"),
        (V1, {"driver": (1 << 64) - 134}, None),
        (V1, {"driver": (1 << 64) - 132}, "end of all addresses"),
        (V1, {"device": (1 << 64) - 516}, "end of all addresses"),
        (V1, {"device": (1 << 64) - 520}, None),
        (PACKED, {"device": (1 << 64) - 4}, None),
    ],
)
def test_size_and_alignment(device: Recorder, accepted: int, changes: dict[str, int], problem: str | None) -> None:
    """Split: a power of two, parts at 16, 2, 4; packed: any size, parts at 16, 4, 4 (2.6, 2.7, 2.8)."""
    device.negotiate(accepted)
    assert device.control.configure_queue(0, **{"size": 64, **SPLIT, **changes})
    found = device.control.enable_queue(0)
    assert (found is None) == (problem is None) == device.control.queues[0].ready
    assert problem is None or problem in str(found)
    assert device.taken() == ([("queue", 0, True)] if problem is None else [])
    assert device.control.complaints == ({} if problem is None else {Complaint.QUEUE: 1})


def test_queues_come_after_features(device: Recorder) -> None:
    """Before FEATURES_OK nobody knows their format (3.1.1)."""
    device.control.write_status(DRIVEN)
    device.control.configure_queue(0, 64, **SPLIT)
    assert device.control.enable_queue(0) == "FEATURES_OK comes before queues"
    assert not device.control.queues[0].ready


def test_a_ready_queue_stays_as_it_is(device: Recorder) -> None:
    """Values of a queue in use are not changed; ready twice is ready once (4.2.2.2)."""
    device.negotiate()
    device.queue()
    device.taken()
    assert not device.control.configure_queue(0, size=32)
    assert device.control.queues[0].size == 64 and device.control.complaints == {Complaint.QUEUE_BUSY: 1}
    assert device.control.enable_queue(0) is None
    assert device.taken() == []
    device.control.disable_queue(0)
    device.control.disable_queue(0)
    assert device.taken() == [("queue", 0, False)]
    assert device.control.configure_queue(0, size=32)
    assert device.control.enable_queue(0) is None and device.control.queues[0].layout() == (32, 0x1000, 0x2000, 0x3000)


def test_queues_that_are_not_there(device: Recorder) -> None:
    """Nothing happens, nothing raises."""
    control = device.control
    device.negotiate(V1 | feature_set(Feature.RING_RESET))
    assert control.queue(2) is None and control.queue(0xFFFFFFFF) is None
    assert not control.configure_queue(2, 1)
    assert control.enable_queue(2) == control.reset_queue(2) == "there is no queue 2"
    control.disable_queue(2)
    control.kick(2)
    assert control.complaints == {Complaint.NO_QUEUE: 3, Complaint.KICK: 1} and device.taken() == []


def test_queue_reset(device: Recorder) -> None:
    """One queue, which may come back elsewhere and smaller while the device runs (2.6.1)."""
    device.go_live(V1 | feature_set(Feature.RING_RESET))
    assert device.control.reset_queue(0) is None
    assert device.taken() == [("queue reset", 0)] and device.control.queues[0] == QueueState(128)
    device.queue(0, 16)
    assert device.taken() == [("queue", 0, True)] and device.control.running


def test_queue_reset_without_the_feature(device: Recorder) -> None:
    """Refused (2.6.1)."""
    device.go_live()
    assert device.control.reset_queue(0) == "RING_RESET was not negotiated"
    assert device.control.queues[0].ready and device.taken() == []
    assert device.control.complaints == {Complaint.NO_RING_RESET: 1}


# -- notifications ----


def test_kicks(device: Recorder) -> None:
    """Before DRIVER_OK a kick is nothing: every queue is looked at then (2.1.2)."""
    device.negotiate()
    device.queue()
    device.taken()
    device.control.kick(0, 5)
    device.control.used(0)
    assert device.taken() == []
    device.control.write_status(LIVE)
    assert device.taken() == [("start", V1), ("run", True)]
    device.control.kick(0, 5)
    device.control.used(0)
    device.control.used(1)
    assert device.taken() == [("kick", 0, 5), ("notify", 0), ("notify", 1)]
    device.control.kick(1)
    assert device.taken() == [] and device.control.complaints == {Complaint.KICK: 1}


def test_configuration_notifications(device: Recorder) -> None:
    """Held until DRIVER_OK, none where there is no driver that could have read (2.5, 2.1.2)."""
    control = device.control
    control.config_changed()
    device.negotiate()
    control.write_status(LIVE)
    assert ("notify", None) not in device.taken()
    control.config_changed()
    assert device.taken() == [("notify", None)]
    control.write_status(0)
    device.taken()
    control.write_status(1)
    control.config_changed()
    control.config_changed()
    assert device.taken() == []
    control.set_driver_features(1, 1)
    control.write_status(LIVE)
    assert device.taken() == [("start", V1), ("run", True), ("notify", None)]


def test_a_reset_forgets_what_is_held(device: Recorder) -> None:
    """The next driver reads for itself (2.4)."""
    device.control.write_status(1)
    device.control.config_changed()
    device.control.write_status(0)
    device.go_live()
    device.control.write_status(0)
    device.negotiate()
    device.taken()
    device.control.write_status(LIVE)
    assert device.taken() == [("start", V1), ("run", True)]


def test_a_device_that_breaks_at_once(device: Recorder) -> None:
    """The first look at the rings ends it: one notification, that of NEEDS_RESET, whatever was held (2.1.2)."""
    device.bad_ring = True
    device.negotiate()
    device.control.config_changed()
    assert device.control.write_status(LIVE) == LIVE | Status.DEVICE_NEEDS_RESET
    assert device.taken() == [("start", V1), ("run", True), ("run", False), ("notify", None)]


# -- configuration ----


def test_the_generation(device: Recorder) -> None:
    """It changes when the configuration did, however the device lets us know; u32 (2.5.1, 4.2.2)."""
    control = device.control
    assert control.config_generation() == 0 == control.config_generation()
    device.device.space[3] = 77
    assert control.read_config(3, 1) == b"M" and control.generation == 1
    control.config_changed()
    assert control.generation == 1
    device.device.space[3] = 0
    control.config_changed()
    device.device.space[3] = 77
    control.config_changed()
    assert control.generation == 3
    control.generation = 0xFFFFFFFF
    device.device.space[3] = 78
    assert control.config_generation() == 0


def test_reading(device: Recorder) -> None:
    """In every state; what is outside is not there (2.5.2)."""
    assert device.control.config_size == 16
    assert device.control.read_config(14, 4) == b"\x0e\x0f"
    assert device.control.read_config(1 << 32, 4) == b""
    assert device.control.read_config(0, 2) == b"\0\1"


@pytest.mark.parametrize(
    ("offset", "data", "good"),
    [
        (0, b"abcd", True), (2, b"ab", True), (3, b"ab", False), (15, b"ab", False), (16, b"a", False),
        (1 << 32, b"a", False),
    ],
)  # fmt: skip
def test_writing(device: Recorder, offset: int, data: bytes, good: bool) -> None:
    """What lies inside, as far as the device takes it; a write changes the generation if it changes something."""
    device.negotiate()
    assert device.control.write_config(offset, data) == good
    assert device.device.writes == ([(offset, data)] if good else [])
    assert device.control.generation == int(good)
    assert device.control.complaints == ({} if good else {Complaint.CONFIG: 1})
    if good:
        assert device.control.write_config(offset, data) and device.control.generation == 1


def test_no_writing_before_features_ok(device: Recorder) -> None:
    """Reading yes, writing no (3.1.1 step 4)."""
    device.control.write_status(DRIVEN)
    assert not device.control.write_config(0, b"a") and device.device.writes == []
    device.control.set_driver_features(1, 1)
    device.control.write_status(NEGOTIATED)
    assert device.control.write_config(0, b"a")


def test_no_writing_beyond_the_end(device: Recorder) -> None:
    """Whatever the device would take."""
    device.device.writable = 100
    device.negotiate()
    assert device.control.write_config(14, b"ab")
    for offset, data in ((14, b"abc"), (16, b"a"), (1 << 40, b"a")):
        assert not device.control.write_config(offset, data)
    assert device.device.writes == [(14, b"ab")]


def test_emergency_write() -> None:
    """A console's emerg_wr, and no byte beside it (5.3.4)."""
    device = Recorder(FakeDevice(DeviceId.CONSOLE))
    assert device.control.write_config(8, b"!")
    assert device.control.write_config(8, b"!\0\0\0")
    assert not device.control.write_config(8, b"!\0\0\0\0")
    assert not device.control.write_config(0, b"!")
    assert device.device.writes == [(8, b"!"), (8, b"!\0\0\0")]


def test_writing_on_condition(device: Recorder) -> None:
    """With a generation that is no longer the current one nothing is written (virtio-msg, SET_CONFIG)."""
    device.negotiate()
    device.device.space[9] = 1
    assert not device.control.write_config(0, b"a", generation=0)
    assert device.device.writes == [] and not device.control.complaints
    assert device.control.write_config(0, b"a", generation=1)
    assert device.control.generation == 2


def test_all_that_rings_can_do_is_offered() -> None:
    """What the transport adds is what the driver sees."""
    assert Recorder().control.offered == ALL
