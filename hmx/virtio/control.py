"""One device's control state, whatever the transport: status, features, queues, configuration.

`DeviceControl` does no I/O.  A transport's view of it (hmx/virtio/mmio.py, msg_device.py) turns registers or messages
into calls; what follows from them goes out through `Effects`.  Nothing that a driver does raises: what it may not do is
left undone, counted in `complaints`, and visible to the driver where the specification says so.
Source: VIRTIO 1.4, 2.1 (status), 2.2 (features), 2.4 (reset), 2.5 (configuration), 2.6.1 (queue reset), 3.1.

A reset is complete when the call returns, so that a driver that does not poll (Linux, virtio-mmio) sees it done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from hmx.virtio.device_types import feature_rows
from hmx.virtio.features import Feature, Refusal, has, offerable, refusal, unmet, window, windows, with_window
from hmx.virtio.ids import VENDOR_ID, early_config
from hmx.virtio.queue_state import MAX_QUEUE_SIZE, MAX_QUEUES, QueueState
from hmx.virtio.status import ALL_BITS, ORDER, State, Status, Then, move, state_of

_DRIVER_OK: Final = int(Status.DRIVER_OK)  # plain ints, since flags are slow
_SUSPEND: Final = int(Status.SUSPEND)
_NEEDS_RESET: Final = int(Status.DEVICE_NEEDS_RESET)
MAX_BLOCKS: Final = 64  # feature words kept of a driver; a bit beyond them is not offered by anyone


class Complaint(Enum):
    """What a driver must not do and did."""

    CLEARED_STATUS = "cleared bits of the status without a reset"
    STATUS = "raised a bit of the status that cannot be raised now"
    FEATURES = "wrote features after FEATURES_OK"
    REFUSED_FEATURES = "accepted features that cannot be accepted"
    NO_QUEUE = "spoke of a queue that is not there"
    QUEUE_BUSY = "changed a queue that is in use"
    QUEUE = "made a queue ready whose size or addresses are wrong, or before FEATURES_OK"
    NO_RING_RESET = "reset a queue without RING_RESET"
    KICK = "kicked a queue that is not ready"
    CONFIG = "wrote configuration that it may not write"


class Controlled(Protocol):
    """The device itself; guest_node.virtio.model.Model is one.  `config` always gives the same number of bytes."""

    device_id: int
    features: int
    queue_sizes: tuple[int, ...]

    def config(self) -> bytes:
        """The configuration space as it is now."""

    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver wrote configuration; False: it may not."""


def _nothing(*_: object) -> None:
    pass


def _drained() -> bool:
    return True


@dataclass(slots=True)
class Effects:
    """What the owner of a DeviceControl does.  None of these may raise."""

    on_start: Callable[[int], object] = _nothing
    """DRIVER_OK for the first time since a reset, with the negotiated features; `on_run(True)` follows."""
    on_run: Callable[[bool], object] = _nothing
    """True: consume buffers from now on, and look at every ready queue at once, nobody will kick for what is there.
    False: consume no more.  A reset says only on_reset.
    """
    on_suspend: Callable[[], bool] = _drained
    """After on_run(False): whether nothing is in flight.  If not, call `DeviceControl.drained` when it is so."""
    on_reset: Callable[[], object] = _nothing
    """Forget every request and queue."""
    on_queue: Callable[[int, bool], object] = _nothing
    """Queue `index` became ready (again, from its beginning), or was taken away."""
    on_queue_reset: Callable[[int], object] = _nothing
    """Forget queue `index` and its requests."""
    on_kick: Callable[[int, int], object] = _nothing
    """Queue `index` was notified, with the upper 16 bits of notification data (0 without NOTIFICATION_DATA)."""
    notify_driver: Callable[[int | None], object] = _nothing
    """Tell the driver of used buffers in this queue, or (None) of its configuration.  A view of the registers or
    messages puts itself in this place.
    """


class DeviceControl:
    """The control state of `device`.  `features`: what the transport and its queues can do beyond the device's own.

    ValueError for a device whose queues or features no device may have.
    """

    def __init__(
        self, device: Controlled, features: int = 0, effects: Effects | None = None, vendor_id: int = VENDOR_ID
    ) -> None:
        self.device_id = device.device_id
        self.vendor_id = vendor_id
        self.offered = offerable(device.features | features | 1 << Feature.VERSION_1)
        self.queues = [QueueState(size) for size in device.queue_sizes]
        self.generation = 0
        self.complaints: Counter[Complaint] = Counter()
        self.refusal: Refusal | None = None  # of FEATURES_OK, the last
        self.reason = ""  # of NEEDS_RESET
        self.notify_driver: Callable[[int | None], object]
        self.after_reset: Callable[[], object] = _nothing  # for the view
        self._device = device
        self._effects = effects or Effects()
        self.notify_driver = self._effects.notify_driver
        self._rows = feature_rows(device.device_id)
        self._early = early_config(device.device_id)
        self._config = bytes(device.config())
        self._status = 0
        self._accepted = 0
        self._excess = False  # a bit beyond MAX_BLOCKS was accepted
        self._locked = False  # FEATURES_OK was granted
        self._started = False
        self._live = self._running = False
        self._config_held = False
        if len(self.queues) > MAX_QUEUES or any(queue.max_size > MAX_QUEUE_SIZE for queue in self.queues):
            raise ValueError(f"{len(self.queues)} queues of {device.queue_sizes} descriptors: too many")
        lacking = unmet(self.offered, self._rows, offer=True)
        if lacking is not None:
            raise ValueError(f"feature {lacking} is offered without what it needs")

    # -- status ----

    @property
    def status(self) -> int:
        """The status byte."""
        return self._status

    @property
    def state(self) -> State:
        """What the status says."""
        return state_of(self._status)

    @property
    def running(self) -> bool:
        """Whether buffers may be consumed."""
        return self._running

    @property
    def live(self) -> bool:
        """Whether used-buffer notifications may be sent: also while a suspending device drains."""
        return self._live

    def write_status(self, value: int) -> int:
        """The driver wrote the status; the resulting one.  Bits above the eighth are not there."""
        value &= 0xFF
        if not value:
            self.reset()
            return 0
        current = self._status
        sticky = _NEEDS_RESET | _SUSPEND  # only the device clears these
        if current & ~value & ~sticky:
            self.complaints[Complaint.CLEARED_STATUS] += 1
        self._status = current & (value | sticky)
        self._run()
        rising = value & ~current & ALL_BITS
        for bit in ORDER:
            if rising & bit:
                self._raise(bit)
        return self._status

    def _raise(self, bit: Status) -> None:
        then = move(state_of(self._status), bit)
        if then is Then.NEGOTIATE:
            self.refusal = self._refusal()
            if self.refusal is not None:
                self.complaints[Complaint.REFUSED_FEATURES] += 1
                return
            self._locked = True
        elif then is Then.IGNORE or (then is Then.SUSPEND and not has(self._accepted, Feature.SUSPEND)):
            self.complaints[Complaint.STATUS] += 1
            return
        elif then is Then.RESUME:
            self._status &= ~_SUSPEND
        self._status |= int(bit)
        self._run()
        if then is Then.SUSPEND and self._effects.on_suspend():
            self.drained()

    def _refusal(self) -> Refusal | None:
        if self._excess:
            return Refusal("accepted what was not offered", None)
        return refusal(self.offered, self._accepted, self._rows)

    def _run(self) -> None:
        """Start or stop as the status now says."""
        self._live = state_of(self._status) is State.LIVE
        running = self._live and not self._status & _SUSPEND
        if running == self._running:
            return
        self._running = running
        if running and not self._started:
            self._started = True
            self._effects.on_start(self._accepted)
        self._effects.on_run(running)
        if self._running and self._config_held:
            self._config_held = False
            self.notify_driver(None)

    def drained(self) -> None:
        """Nothing is in flight any more: a suspending device is suspended.  Otherwise this means nothing."""
        if self._live and self._status & _SUSPEND:
            self._status &= ~_DRIVER_OK
            self._run()

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on, for this reason; only a reset helps.  In status 0 there is nothing to reset."""
        if not self._status or self._status & _NEEDS_RESET:
            return
        self.reason = reason
        driver_ok = self._status & _DRIVER_OK
        self._status |= _NEEDS_RESET
        self._run()
        if driver_ok:
            self.notify_driver(None)

    def reset(self) -> None:
        """Status 0: everything that the driver said is forgotten, the generation of the configuration is not."""
        self._status = self._accepted = 0
        self._excess = self._locked = self._started = False
        self._live = self._running = self._config_held = False
        self.refusal, self.reason = None, ""
        for queue in self.queues:
            queue.forget()
        self._effects.on_reset()
        self.after_reset()

    # -- features ----

    @property
    def feature_blocks(self) -> int:
        """How many 32-bit words of features there are."""
        return windows(self.offered)

    @property
    def accepted(self) -> int:
        """What the driver has written so far."""
        return self._accepted

    @property
    def negotiated(self) -> int:
        """What was agreed on; 0 before FEATURES_OK."""
        return self._accepted if self._locked else 0

    def device_features(self, block: int) -> int:
        """Word `block` of what is offered."""
        return window(self.offered, block) if block < MAX_BLOCKS else 0

    def set_driver_features(self, block: int, word: int) -> bool:
        """The driver accepts these of word `block`.  False: too late, nothing was changed."""
        if self._locked:
            self.complaints[Complaint.FEATURES] += 1
            return False
        if block < MAX_BLOCKS:
            self._accepted = with_window(self._accepted, block, word)
        elif word:
            self._excess = True
        return True

    # -- queues ----

    def queue(self, index: int) -> QueueState | None:
        """Queue `index`, or None: there is none."""
        return self.queues[index] if index < len(self.queues) else None

    def configure_queue(
        self,
        index: int,
        size: int | None = None,
        descriptors: int | None = None,
        driver: int | None = None,
        device: int | None = None,
    ) -> bool:
        """Set what is given of a queue that is not ready.  Values are judged when it becomes ready."""
        queue = self.queue(index)
        if queue is None:
            self.complaints[Complaint.NO_QUEUE] += 1
            return False
        if queue.ready:
            self.complaints[Complaint.QUEUE_BUSY] += 1
            return False
        queue.size = queue.size if size is None else size
        queue.descriptors = queue.descriptors if descriptors is None else descriptors
        queue.driver = queue.driver if driver is None else driver
        queue.device = queue.device if device is None else device
        return True

    def enable_queue(self, index: int) -> str | None:
        """Make a queue ready; None, or why it cannot be.  A queue that is ready stays as it is."""
        queue = self.queue(index)
        if queue is None:
            self.complaints[Complaint.NO_QUEUE] += 1
            return f"there is no queue {index}"
        if queue.ready:
            return None
        problem = queue.problem(self._accepted) if self._locked else "FEATURES_OK comes before queues"
        if problem is not None:
            self.complaints[Complaint.QUEUE] += 1
            return problem
        queue.ready = True
        self._effects.on_queue(index, True)
        return None

    def disable_queue(self, index: int) -> None:
        """Take a queue away from the device."""
        queue = self.queue(index)
        if queue is not None and queue.ready:
            queue.ready = False
            self._effects.on_queue(index, False)

    def reset_queue(self, index: int) -> str | None:
        """Reset one queue (feature RING_RESET); None, or why not.  It is done when this returns."""
        queue = self.queue(index)
        if queue is None:
            self.complaints[Complaint.NO_QUEUE] += 1
            return f"there is no queue {index}"
        if not has(self.negotiated, Feature.RING_RESET):
            self.complaints[Complaint.NO_RING_RESET] += 1
            return "RING_RESET was not negotiated"
        queue.forget()
        self._effects.on_queue_reset(index)
        return None

    def kick(self, index: int, data: int = 0) -> None:
        """The driver made buffers available.  Before DRIVER_OK nothing comes of it: the queues are looked at then."""
        queue = self.queue(index)
        if queue is None or not queue.ready:
            self.complaints[Complaint.KICK] += 1
        elif self._running:
            self._effects.on_kick(index, data)

    def used(self, index: int) -> None:
        """Buffers of queue `index` were used: notify, if that may be (not before DRIVER_OK)."""
        if self._live:
            self.notify_driver(index)

    # -- configuration ----

    @property
    def config_size(self) -> int:
        """Bytes of the configuration space."""
        return len(self._config)

    def config_changed(self) -> None:
        """The device changed its configuration: a new generation, and a notification as soon as one may be sent."""
        self._refresh()
        if self._running:
            self.notify_driver(None)
        elif self._status:
            self._config_held = True

    def config_generation(self) -> int:
        """A u32 that differs whenever two accesses may have seen different configurations."""
        self._refresh()
        return self.generation

    def read_config(self, offset: int, size: int) -> bytes:
        """Configuration bytes; fewer, or none, where the space ends.  Possible in every state."""
        self._refresh()
        return self._config[offset : offset + size]

    def write_config(self, offset: int, data: bytes, generation: int | None = None) -> bool:
        """Write configuration; False: refused, nothing was changed.

        Refused are ranges that are not wholly inside, writes before FEATURES_OK but of what the device type allows, a
        generation that is no longer the current one (where the driver gave one), and what the device refuses.
        """
        self._refresh()
        end = offset + len(data)
        if generation is not None and generation != self.generation:
            return False  # no defect: the driver could not know
        allowed = self._locked or (offset in self._early and end <= self._early.stop)
        if end > len(self._config) or not allowed or not self._device.write_config(offset, data):
            self.complaints[Complaint.CONFIG] += 1
            return False
        self._refresh()
        return True

    def _refresh(self) -> None:
        now = bytes(self._device.config())
        if now != self._config:
            self._config = now
            self.generation = self.generation + 1 & 0xFFFFFFFF
