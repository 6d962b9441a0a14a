"""The device's side of virtio-msg: a device's control state, and a bus of devices, seen through messages.

Source: the public draft of the virtio-msg transport ("pr28", December 2025).  Requests come as `Message`, answers and
events go out as bytes.  Nothing that a driver sends raises.  A request that is refused is answered with ERROR in a
revision that has it (experimental, not upstream), otherwise not at all, or with what the draft provides: an empty
answer, of which GET_VQUEUE then shows that nothing came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hmx.virtio import msg
from hmx.virtio.control import DeviceControl
from hmx.virtio.features import WINDOW_BITS, Feature, has, window
from hmx.virtio.msg import BusId, Message, MessageError, MsgId, Reason, Revision

_WORD: Final = 4  # bytes of a feature block


class MsgDevice:
    """A view of `control`, whose notifications it takes over: `send` gets the bytes of each event.

    `max_message`: bytes of the longest message that the bus carries; an answer that would be longer is refused.
    `which`: the revision, which a bus may set once it has been agreed on.
    """

    def __init__(
        self,
        control: DeviceControl,
        dev_num: int,
        send: Callable[[bytes], object],
        which: Revision = msg.ARGO,
        max_message: int = msg.MAX_MESSAGE,
    ) -> None:
        self.dev_num = dev_num
        self.which = which
        self.max_message = max_message
        self.control = control
        self._send = send
        self._acknowledged: set[int] = set()  # feature blocks that the driver has written
        control.notify_driver = self._notify
        control.after_reset = self._acknowledged.clear

    def handle(self, request: Message) -> bytes | None:
        """The answer to a request; None for an event, for an answer, and where there must be none."""
        try:
            row = msg.row_of(request)
            if request.bus or request.response or row.sender is not msg.Sender.DRIVER:
                raise MessageError(Reason.UNSUPPORTED, f"{row.name} is nothing for a device")
            if self.which.header_size + len(request.payload) > self.max_message:
                raise MessageError(Reason.RANGE, f"{len(request.payload)} bytes of payload")
            values = msg.unpack_payload(row.request, request.payload)
            answer = self._answers[row.id](self, values)
        except MessageError as error:
            return msg.pack_error(request, error.reason, self.which)
        return None if row.response is None else msg.pack_response(request, answer, self.which)

    def _fits(self, layout: msg.Layout, tail: int) -> None:
        size = self.which.header_size + layout.fixed + tail
        if size > self.max_message:
            raise MessageError(Reason.RANGE, f"an answer of {size} bytes, {self.max_message} can be carried")

    def _refused(self, reason: Reason, why: str | None) -> tuple[()]:
        """An empty answer where the draft has nothing better, an ERROR where we have it."""
        if why is not None and self.which.ours:
            raise MessageError(reason, why)
        return ()

    def _info(self, _: msg.Empty) -> msg.DeviceInfo:
        control = self.control
        return msg.DeviceInfo(
            control.device_id, control.vendor_id, control.feature_blocks * WINDOW_BITS, control.config_size,
            len(control.queues),
        )  # fmt: skip

    def _get_features(self, asked: msg.BlockRange) -> msg.FeatureBlocks:
        """What is offered; of blocks that the driver has written, what it accepted of that."""
        self._fits(_FEATURES, asked.blocks * _WORD)
        control, words = self.control, []
        for block in range(asked.block, asked.block + asked.blocks):
            word = control.device_features(block)
            words.append(word & window(control.accepted, block) if block in self._acknowledged else word)
        return msg.FeatureBlocks(asked.block, asked.blocks, tuple(words))

    def _set_features(self, given: msg.FeatureBlocks) -> tuple[()]:
        for block, word in enumerate(given.words, given.block):
            if not self.control.set_driver_features(block, word):
                return self._refused(Reason.STATE, "features after FEATURES_OK")
            if block < self.control.feature_blocks:
                self._acknowledged.add(block)
        return ()

    def _get_config(self, asked: msg.ConfigRange) -> msg.ConfigData:
        control = self.control
        if asked.offset + asked.length > control.config_size:
            raise MessageError(Reason.RANGE, f"{asked} in a space of {control.config_size}")
        self._fits(_CONFIG, asked.length)
        data = control.read_config(asked.offset, asked.length)
        return msg.ConfigData(control.generation, asked.offset, asked.length, data)

    def _set_config(self, given: msg.ConfigData) -> msg.ConfigData:
        """Refused, with length 0, when the driver did not know the current generation."""
        good = self.control.write_config(given.offset, given.data, given.generation)
        generation = self.control.config_generation()
        if not good:
            return msg.ConfigData(generation, given.offset, 0)
        return given._replace(generation=generation)

    def _get_status(self, _: msg.Empty) -> msg.StatusValue:
        return msg.StatusValue(self.control.status)

    def _set_status(self, given: msg.StatusValue) -> msg.StatusValue:
        return msg.StatusValue(self.control.write_status(given.status))

    def _get_queue(self, asked: msg.QueueIndex) -> msg.QueueInfo:
        queue = self.control.queue(asked.queue)
        if queue is None:
            return msg.QueueInfo(asked.queue, 0, 0, 0, 0, 0, 0)
        if not queue.ready:
            return msg.QueueInfo(asked.queue, queue.max_size, 0, 0, 0, 0, 0)
        return msg.QueueInfo(asked.queue, queue.max_size, queue.size, 0, queue.descriptors, queue.driver, queue.device)

    def _set_queue(self, given: msg.QueueSetup) -> tuple[()]:
        """A queue that cannot be as it was asked for does not become ready: unconfigured, for GET_VQUEUE."""
        control, index = self.control, given.queue
        if control.queue(index) is None:
            return self._refused(Reason.NO_QUEUE, f"there is no queue {index}")
        if not control.configure_queue(index, given.size, given.descriptors, given.driver, given.device):
            return self._refused(Reason.STATE, f"queue {index} is in use")
        problem = control.enable_queue(index)
        return self._refused(Reason.INVALID if control.negotiated else Reason.STATE, problem)

    def _reset_queue(self, asked: msg.QueueIndex) -> tuple[()]:
        problem = self.control.reset_queue(asked.queue)
        reason = Reason.STATE if self.control.queue(asked.queue) else Reason.NO_QUEUE
        return self._refused(reason, problem)

    def _get_shm(self, asked: msg.QueueIndex) -> msg.ShmInfo:
        return msg.ShmInfo(asked.queue, 0, 0)

    def _avail(self, event: msg.AvailEvent) -> tuple[()]:
        data = 0
        if has(self.control.negotiated, Feature.NOTIFICATION_DATA):
            # As a register carries it: 15 bits and next_wrap.  For split queues some send all 16 bits of the index.
            data = event.next_offset & 0xFFFF | event.next_offset >> 31 << 15
        self.control.kick(event.queue, data)
        return ()

    _answers: Final[Mapping[Any, Callable[[MsgDevice, Any], tuple[Any, ...]]]] = {
        MsgId.GET_DEVICE_INFO: _info,
        MsgId.GET_DEVICE_FEATURES: _get_features,
        MsgId.SET_DRIVER_FEATURES: _set_features,
        MsgId.GET_CONFIG: _get_config,
        MsgId.SET_CONFIG: _set_config,
        MsgId.GET_DEVICE_STATUS: _get_status,
        MsgId.SET_DEVICE_STATUS: _set_status,
        MsgId.GET_VQUEUE: _get_queue,
        MsgId.SET_VQUEUE: _set_queue,
        MsgId.RESET_VQUEUE: _reset_queue,
        MsgId.GET_SHM: _get_shm,
        MsgId.EVENT_AVAIL: _avail,
    }

    def _notify(self, queue: int | None) -> None:
        if queue is not None:
            self._send(msg.pack(msg.row(MsgId.EVENT_USED), msg.QueueIndex(queue), self.dev_num, which=self.which))
            return
        event = msg.ConfigEvent(self.control.status, self.control.config_generation())
        self._send(msg.pack(msg.row(MsgId.EVENT_CONFIG), event, self.dev_num, which=self.which))


_FEATURES: Final = msg.Layout(msg.FeatureBlocks, "<II", msg.Tail.WORDS, 1)
_CONFIG: Final = msg.Layout(msg.ConfigData, "<III", msg.Tail.BYTES, 2)


class MsgBus:
    """The bus's own messages, for the devices of `devices` (by number; the mapping may change: hot plug)."""

    def __init__(
        self,
        devices: Mapping[int, object],
        send: Callable[[bytes], object],
        which: Revision = msg.ARGO,
        max_message: int = msg.MAX_MESSAGE,
    ) -> None:
        self.which = which
        self.max_message = max_message
        self._devices = devices
        self._send = send

    def handle(self, request: Message) -> bytes | None:
        """The answer to GET_DEVICES or PING; None for what has none.  HELLO is the transport's."""
        try:
            row = msg.row_of(request)
            if not request.bus or request.response or row.id not in (BusId.GET_DEVICES, BusId.PING):
                raise MessageError(Reason.UNSUPPORTED, f"{row.name} is nothing for this bus")
            values = msg.unpack_payload(row.request, request.payload)
            answer = values if row.id is BusId.PING else self._bitmap(values)
        except MessageError as error:
            return msg.pack_error(request, error.reason, self.which)
        return msg.pack_response(request, answer, self.which)

    def _bitmap(self, asked: msg.DeviceRange) -> msg.DeviceBitmap:
        """Which of the numbers asked for are there, as many as one message carries; where to go on."""
        if asked.offset % 8 or asked.numbers % 8:
            raise MessageError(Reason.INVALID, f"{asked.offset} and {asked.numbers} are not multiples of 8")
        layout = msg.row(BusId.GET_DEVICES).response
        assert layout is not None
        room = 8 * max(0, self.max_message - self.which.header_size - layout.fixed)
        count = min(asked.numbers, room, (1 << 16) - asked.offset)
        end = asked.offset + count
        bits = sum(1 << number - asked.offset for number in self._devices if asked.offset <= number < end)
        more = any(number >= end for number in self._devices)
        return msg.DeviceBitmap(asked.offset, count, end if more else 0, bits.to_bytes(count // 8, "little"))

    def announce(self, dev_num: int, state: msg.DeviceState) -> None:
        """Send EVENT_DEVICE: a device came or went."""
        self._send(msg.pack(msg.row(BusId.EVENT_DEVICE), msg.DeviceEvent(dev_num, state), which=self.which))
