"""A device without a back end, and a record of what its control state does."""

from __future__ import annotations

from hmx.virtio.control import DeviceControl, Effects
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.status import Status

ALL = feature_set(
    Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.VERSION_1, Feature.RING_PACKED, Feature.IN_ORDER,
    Feature.NOTIFICATION_DATA, Feature.RING_RESET, Feature.SUSPEND,
)  # fmt: skip
DRIVEN = Status.ACKNOWLEDGE | Status.DRIVER
NEGOTIATED = DRIVEN | Status.FEATURES_OK
LIVE = NEGOTIATED | Status.DRIVER_OK
SPLIT = {"descriptors": 0x1000, "driver": 0x2000, "device": 0x3000}


class FakeDevice:
    """16 bytes of configuration, of which the first four may be written (`writable`: how many)."""

    writable = 4

    def __init__(
        self, device_id: int = DeviceId.BLK, features: int = 0, queue_sizes: tuple[int, ...] = (128, 64)
    ) -> None:
        self.device_id = device_id
        self.features = features
        self.queue_sizes = queue_sizes
        self.space = bytearray(range(16))
        self.writes: list[tuple[int, bytes]] = []

    def config(self) -> bytes:
        """As it is now."""
        return bytes(self.space)

    def write_config(self, offset: int, data: bytes) -> bool:
        """The first bytes, and those of emerg_wr."""
        if offset + len(data) > self.writable and offset != 8:
            return False
        self.writes.append((offset, data))
        self.space[offset : offset + len(data)] = data
        return True


class Recorder:
    """A control state over a FakeDevice; `log` holds its effects in order.  `busy`: something is in flight.

    `bad_ring`: the first look at the rings finds that the driver lies.
    """

    def __init__(self, device: FakeDevice | None = None, features: int = ALL) -> None:
        self.device = device or FakeDevice()
        self.log: list[tuple[object, ...]] = []
        self.busy = self.bad_ring = False
        self.control = DeviceControl(
            self.device,
            features,
            Effects(
                on_start=lambda accepted: self.log.append(("start", accepted)),
                on_run=self._run,
                on_suspend=self._suspend,
                on_reset=lambda: self.log.append(("reset",)),
                on_queue=lambda index, ready: self.log.append(("queue", index, ready)),
                on_queue_reset=lambda index: self.log.append(("queue reset", index)),
                on_kick=lambda index, data: self.log.append(("kick", index, data)),
                notify_driver=lambda queue: self.log.append(("notify", queue)),
            ),
        )

    def _run(self, running: bool) -> None:
        self.log.append(("run", running))
        if running and self.bad_ring:
            self.control.needs_reset("a bad ring")

    def _suspend(self) -> bool:
        self.log.append(("suspend",))
        return not self.busy

    def taken(self) -> list[tuple[object, ...]]:
        """The effects since the last call."""
        found, self.log[:] = list(self.log), []
        return found

    def negotiate(self, accepted: int = feature_set(Feature.VERSION_1)) -> None:
        """Up to FEATURES_OK."""
        self.control.write_status(DRIVEN)
        for block in range(4):
            self.control.set_driver_features(block, accepted >> 32 * block & 0xFFFFFFFF)
        assert self.control.write_status(NEGOTIATED) == NEGOTIATED

    def queue(self, index: int = 0, size: int = 64) -> None:
        """Make a queue ready."""
        assert self.control.configure_queue(index, size, **SPLIT)
        assert self.control.enable_queue(index) is None

    def go_live(self, accepted: int = feature_set(Feature.VERSION_1)) -> None:
        """Everything, with queue 0 ready."""
        self.negotiate(accepted)
        self.queue()
        assert self.control.write_status(LIVE) == LIVE
        self.taken()
