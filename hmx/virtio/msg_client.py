"""The driver's side of virtio-msg without I/O: requests as bytes, and what their answers mean.

Source: the public draft of the virtio-msg transport ("pr28", December 2025).  A `Call` is one request on its way: send
`message`, give what comes back to `result`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from hmx.virtio import msg
from hmx.virtio.features import window, with_window
from hmx.virtio.msg import BusId, Message, MessageError, MsgId, Reason, Revision

T = TypeVar("T")


class Call(Generic[T]):
    """A request; `result` unpacks its answer."""

    __slots__ = ("_checked", "_row", "_which", "message", "request")

    def __init__(self, row: msg.Row, request: Message, which: Revision, checked: Callable[[Any], T]) -> None:
        self.request = request
        self.message = msg.pack_message(request, which)
        self._row = row
        self._which = which
        self._checked = checked

    def answers(self, response: Message) -> bool:
        """Whether a message is the answer to this request: by token, device and id; ERROR names the id."""
        request = self.request
        if not response.response or response.bus != request.bus or response.dev_num != request.dev_num:
            return False
        if self._which.token and response.token != request.token:
            return False
        if response.msg_id == MsgId.ERROR and self._which.ours:
            payload = response.payload
            return len(payload) == msg.ERROR_LAYOUT.fixed and _error(payload).msg_id == request.msg_id
        return response.msg_id == request.msg_id

    def result(self, data: msg.Buffer) -> T:
        """What the answer says.  Raises Refused for ERROR, MessageError for anything that is no proper answer."""
        response = msg.unpack_message(data, self._which)
        if not self.answers(response):
            raise MessageError(Reason.MALFORMED, f"{response[:4]} is no answer to {self._row.name}")
        if response.msg_id == MsgId.ERROR:
            error = _error(response.payload)
            text = f"{self._row.name}: refused, reason {error.reason}, errno {error.errno}"
            raise msg.Refused(_reason(error.reason), text)
        assert self._row.response is not None
        return self._checked(msg.unpack_payload(self._row.response, response.payload))


def _error(payload: msg.Buffer) -> msg.ErrorData:
    error: msg.ErrorData = msg.unpack_payload(msg.ERROR_LAYOUT, payload)
    return error


def _reason(number: int) -> Reason:
    try:
        return Reason(number)
    except ValueError:
        return Reason.UNSUPPORTED


class Generation(NamedTuple):
    """What SET_CONFIG said: whether it was accepted, and the generation now."""

    accepted: bool
    generation: int


class Caller:
    """Makes requests to one device; tokens run from 1 to 65535 and begin again."""

    def __init__(self, dev_num: int = 0, which: Revision = msg.ARGO) -> None:
        self.dev_num = dev_num
        self.which = which
        self._token = 0

    def _call(self, message_id: MsgId | BusId, values: tuple[Any, ...], checked: Callable[[Any], T]) -> Call[T]:
        row = msg.row(message_id)
        self._token = self._token % 0xFFFF + 1
        kind = msg.MsgType.BUS if row.bus else 0
        dev_num = 0 if row.bus else self.dev_num
        payload = msg.pack_payload(row.request, values)
        return Call(row, Message(kind, message_id, dev_num, self._token, payload), self.which, checked)

    def info(self) -> Call[msg.DeviceInfo]:
        """GET_DEVICE_INFO."""
        return self._call(MsgId.GET_DEVICE_INFO, (), _info)

    def device_features(self, blocks: int, first: int = 0) -> Call[int]:
        """GET_DEVICE_FEATURES: the set that the blocks from `first` on hold."""
        asked = msg.BlockRange(first, blocks)

        def checked(found: msg.FeatureBlocks) -> int:
            if found[:2] != asked:
                raise MessageError(Reason.MALFORMED, f"blocks {found[:2]}, asked for {tuple(asked)}")
            features = 0
            for block, word in enumerate(found.words, first):
                if word:  # a set is as long as its highest bit, not as its last block
                    features = with_window(features, block, word)
            return features

        return self._call(MsgId.GET_DEVICE_FEATURES, asked, checked)

    def set_driver_features(self, features: int, blocks: int, first: int = 0) -> Call[None]:
        """SET_DRIVER_FEATURES."""
        words = tuple(window(features, block) for block in range(first, first + blocks))
        return self._call(MsgId.SET_DRIVER_FEATURES, msg.FeatureBlocks(first, blocks, words), _none)

    def get_config(self, offset: int, length: int) -> Call[msg.ConfigData]:
        """GET_CONFIG."""
        asked = msg.ConfigRange(offset, length)

        def checked(found: msg.ConfigData) -> msg.ConfigData:
            if found[1:3] != asked:
                raise MessageError(Reason.MALFORMED, f"configuration {found[1:3]}, asked for {tuple(asked)}")
            return found

        return self._call(MsgId.GET_CONFIG, asked, checked)

    def set_config(self, generation: int, offset: int, data: bytes) -> Call[Generation]:
        """SET_CONFIG, on condition that the generation is still this one."""

        def checked(found: msg.ConfigData) -> Generation:
            if found.offset != offset or found.length not in (0, len(data)):
                raise MessageError(Reason.MALFORMED, f"{found.length} bytes at {found.offset}, wrote {len(data)}")
            return Generation(found.length == len(data), found.generation)

        return self._call(MsgId.SET_CONFIG, msg.ConfigData(generation, offset, len(data), data), checked)

    def get_status(self) -> Call[int]:
        """GET_DEVICE_STATUS."""
        return self._call(MsgId.GET_DEVICE_STATUS, (), _status)

    def set_status(self, status: int) -> Call[int]:
        """SET_DEVICE_STATUS; the resulting status."""
        return self._call(MsgId.SET_DEVICE_STATUS, msg.StatusValue(status), _status)

    def get_queue(self, index: int) -> Call[msg.QueueInfo]:
        """GET_VQUEUE."""

        def checked(found: msg.QueueInfo) -> msg.QueueInfo:
            if found.queue != index:
                raise MessageError(Reason.MALFORMED, f"queue {found.queue}, asked for {index}")
            return found

        return self._call(MsgId.GET_VQUEUE, msg.QueueIndex(index), checked)

    def set_queue(self, index: int, size: int, descriptors: int, driver: int, device: int) -> Call[None]:
        """SET_VQUEUE.  Without ERROR only GET_VQUEUE says whether it was accepted."""
        return self._call(MsgId.SET_VQUEUE, msg.QueueSetup(index, 0, size, 0, descriptors, driver, device), _none)

    def reset_queue(self, index: int) -> Call[None]:
        """RESET_VQUEUE."""
        return self._call(MsgId.RESET_VQUEUE, msg.QueueIndex(index), _none)

    def devices(self, offset: int = 0, count: int = 256) -> Call[tuple[list[int], int]]:
        """GET_DEVICES: the numbers of devices from `offset` on, and where to go on (0: that was all)."""

        def checked(found: msg.DeviceBitmap) -> tuple[list[int], int]:
            if found.offset != offset or found.numbers > count or 0 < found.next_offset <= offset:
                raise MessageError(Reason.MALFORMED, f"{found[:3]}, asked for {count} from {offset}")
            bits = int.from_bytes(found.bitmap, "little")
            return [offset + bit for bit in range(found.numbers) if bits >> bit & 1], found.next_offset

        return self._call(BusId.GET_DEVICES, msg.DeviceRange(offset, count), checked)

    def ping(self, data: int) -> Call[int]:
        """PING."""

        def checked(found: msg.PingData) -> int:
            if found.data != data:
                raise MessageError(Reason.MALFORMED, f"a ping of {data} came back as {found.data}")
            return data

        return self._call(BusId.PING, msg.PingData(data), checked)

    def hello(self, hello: msg.HelloData) -> Call[msg.HelloData]:
        """HELLO (experimental, not upstream)."""

        def checked(found: msg.HelloData) -> msg.HelloData:
            if found.revision > hello.revision or msg.revision(found.revision) is None:
                raise MessageError(Reason.REVISION, f"revision {found.revision:#x}, offered {hello.revision:#x}")
            return found

        return self._call(BusId.HELLO, hello, checked)

    def kick(self, index: int, next_offset: int = 0) -> bytes:
        """EVENT_AVAIL.  `next_offset` as QueueNotify carries it in its upper half: 15 bits and the wrap."""
        event = msg.AvailEvent(index, next_offset & 0x7FFF | (next_offset & 0x8000) << 16)
        return msg.pack(msg.row(MsgId.EVENT_AVAIL), event, self.dev_num, which=self.which)


def _info(found: msg.DeviceInfo) -> msg.DeviceInfo:
    if found.feature_bits % 32 or found.max_virtqueues > 65536:
        raise MessageError(Reason.MALFORMED, f"{found}")
    return found


def _status(found: msg.StatusValue) -> int:
    return found.status


def _none(_: msg.Empty) -> None:
    return None
