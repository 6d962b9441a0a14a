"""Property: bytes are virtio-msg messages, or MessageError; a device and a bus answer each request once, with its token
and device, and nothing else; what a client takes for an answer is one.

Input: how (revision, how far the device is), then messages one behind another.
"""

from __future__ import annotations

from hmx.virtio import msg
from hmx.virtio.control import DeviceControl
from hmx.virtio.msg import MessageError, MsgId
from hmx.virtio.msg_client import Caller
from hmx.virtio.msg_device import MsgBus, MsgDevice
from tests.doubles.virtio_control import ALL, FakeDevice
from tests.fuzz.targets import Tally

TALLY = Tally()
_STATUS = (0, 3, 0xB, 0xF)
_LIMIT = 300


def one_input(data: bytes) -> None:
    """Give a device messages."""
    how, rest = data[0] if data else 0, memoryview(data)[1:]
    which = msg.REVISIONS[how % len(msg.REVISIONS)]
    events: list[bytes] = []
    control = DeviceControl(FakeDevice(features=1 << 9 | 1 << 70), ALL)
    device = MsgDevice(control, 5, events.append, which, _LIMIT)
    bus = MsgBus({5: None, 300: None}, events.append, which, _LIMIT)
    control.set_driver_features(1, 1)
    control.write_status(_STATUS[how >> 2 & 3])
    try:
        for message in msg.unpack_messages(rest, which):
            TALLY.count += 1
            again = msg.pack_message(message, which)
            assert msg.unpack_message(again, which) == message
            answer = (bus if message.bus else device).handle(message)
            _judge(message, answer, which)
    except MessageError as error:
        assert len(str(error)) < 200
    for event in events:
        found = msg.unpack_message(event, which)
        assert found.event and not found.response
        msg.unpack_payload(msg.row_of(found).request, found.payload)
    _as_an_answer(bytes(rest), which)


def _judge(request: msg.Message, answer: bytes | None, which: msg.Revision) -> None:
    """One answer."""
    if request.response or request.event:
        assert answer is None
        return
    if answer is None:
        assert not which.ours
        return
    assert len(answer) <= _LIMIT
    found = msg.unpack_message(answer, which)
    assert (found.type, found.dev_num, found.token) == (request.type | 1, request.dev_num, request.token)
    if found.msg_id == MsgId.ERROR:
        error = msg.unpack_payload(msg.ERROR_LAYOUT, found.payload)
        assert which.ours and error.msg_id == request.msg_id
        return
    assert found.msg_id == request.msg_id
    layout = msg.row_of(request).response
    assert layout is not None
    msg.unpack_payload(layout, found.payload)


def _as_an_answer(data: bytes, which: msg.Revision) -> None:
    """The same bytes come back from a device that lies."""
    caller = Caller(5, which)
    for call in (caller.info(), caller.device_features(2), caller.get_config(0, 4), caller.set_config(0, 0, b"ab"),
                 caller.get_queue(0), caller.get_status(), caller.devices(0, 16), caller.ping(7)):  # fmt: skip
        try:
            call.result(data)
        except MessageError as error:
            assert len(str(error)) < 400
