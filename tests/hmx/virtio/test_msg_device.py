"""Devices and buses behind virtio-msg, driven by the driver's side of it (transport-msg.tex, "pr28")."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from hmx.virtio import msg
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.msg import ARGO, PR28, BusId, DeviceState, Message, MessageError, MsgId, Reason, Refused, Revision
from hmx.virtio.msg_client import Call, Caller
from hmx.virtio.msg_device import MsgBus, MsgDevice
from hmx.virtio.status import Status
from tests.doubles.virtio_control import DRIVEN, LIVE, NEGOTIATED, FakeDevice, Recorder

T = TypeVar("T")
V1 = feature_set(Feature.VERSION_1)


class Rig:
    """A device 5, its driver's side, and what it sent of itself."""

    def __init__(self, which: Revision = ARGO, max_message: int = 264, device: FakeDevice | None = None) -> None:
        self.device = Recorder(device)
        self.events: list[bytes] = []
        self.server = MsgDevice(self.device.control, 5, self.events.append, which, max_message)
        self.caller = Caller(5, which)
        self.which = which

    def answer(self, call: Call[Any]) -> bytes | None:
        return self.server.handle(msg.unpack_message(call.message, self.which))

    def __call__(self, call: Call[T]) -> T:
        answer = self.answer(call)
        assert answer is not None
        return call.result(answer)

    def refused(self, call: Call[Any]) -> Reason:
        with pytest.raises(Refused) as error:
            self(call)
        return error.value.reason

    def negotiate(self, accepted: int = V1) -> None:
        self(self.caller.set_status(DRIVEN))
        self(self.caller.set_driver_features(accepted, 2))
        assert self(self.caller.set_status(NEGOTIATED)) == NEGOTIATED


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_whole_way(rig: Rig) -> None:
    """From GET_DEVICE_INFO to a kick and its answer."""
    call = rig.caller
    info = rig(call.info())
    assert info == (2, 0x4F475241, 64, 16, 2, 0, 0)
    offered = rig(call.device_features(info.feature_bits // 32))
    assert offered == rig.device.control.offered
    rig.negotiate()
    assert rig(call.get_queue(0)) == (0, 128, 0, 0, 0, 0, 0)
    rig(call.set_queue(0, 64, 1 << 40, 0x2000, 0x3000))
    assert rig(call.get_queue(0)) == (0, 128, 64, 0, 1 << 40, 0x2000, 0x3000)
    assert rig(call.set_status(LIVE)) == LIVE == rig(call.get_status())
    rig.device.taken()
    assert rig.server.handle(msg.unpack_message(call.kick(0))) is None
    assert rig.device.taken() == [("kick", 0, 0)]
    rig.device.control.used(1)
    assert [msg.unpack_message(event) for event in rig.events] == [(0, 0x42, 5, 0, b"\1\0\0\0")]
    assert rig(call.set_status(0)) == 0
    assert rig.device.taken() == [("reset",)]


def test_a_refused_feature_is_seen_in_the_answer(rig: Rig) -> None:
    """SET_DEVICE_STATUS answers with the status that came of it."""
    rig(rig.caller.set_status(DRIVEN))
    rig(rig.caller.set_driver_features(V1 | 1, 2))
    assert rig(rig.caller.set_status(NEGOTIATED)) == DRIVEN


def test_features_after_they_were_acknowledged(rig: Rig) -> None:
    """GET_DEVICE_FEATURES then says what was; other blocks, and everything after a reset, what is offered."""
    offered = rig.device.control.offered
    rig(rig.caller.set_driver_features(V1, 1, first=1))
    assert rig(rig.caller.device_features(2)) == offered & 0xFFFFFFFF | V1
    rig(rig.caller.set_driver_features(1, 1))
    assert rig(rig.caller.device_features(2)) == V1, "bit 0 was not offered"
    rig(rig.caller.set_status(0))
    assert rig(rig.caller.device_features(2)) == offered


def test_feature_blocks_out_of_range(rig: Rig) -> None:
    """Zero on the way out; a bit in one of them refuses FEATURES_OK."""
    assert rig(rig.caller.device_features(3, first=1)) == rig.device.control.offered & ~0xFFFFFFFF
    assert rig(rig.caller.device_features(1, first=0xFFFFFFFE)) == 0
    rig(rig.caller.set_driver_features(V1, 2))
    rig(rig.caller.set_driver_features(1 << 32 * 1000, 1, first=1000))
    assert rig(rig.caller.set_status(NEGOTIATED)) == DRIVEN


def test_features_too_late(rig: Rig) -> None:
    """After FEATURES_OK."""
    rig.negotiate()
    assert rig.refused(rig.caller.set_driver_features(0, 2)) is Reason.STATE
    assert rig.device.control.accepted == V1


def test_configuration(rig: Rig) -> None:
    """Every answer has the generation; a write of an older one is rejected with length 0 (SET_CONFIG)."""
    call = rig.caller
    assert rig(call.get_config(2, 3)) == (0, 2, 3, b"\2\3\4")
    assert rig(call.get_config(16, 0)) == (0, 16, 0, b"")
    rig.negotiate()
    rig.device.device.space[9] = 0
    assert rig(call.set_config(0, 0, b"ab")) == (False, 1)
    assert rig(call.set_config(1, 0, b"ab")) == (True, 2)
    assert rig(call.get_config(0, 3)) == (2, 0, 3, b"ab\2")
    assert rig(call.set_config(2, 3, b"ab")) == (False, 2), "the device refuses it"
    assert rig(call.set_config(2, 16, b"a")) == (False, 2)
    answer = rig.answer(call.set_config(0, 0, b"ab"))
    assert answer is not None and len(answer) == 8 + 12, "no data in a rejection"


def test_configuration_out_of_range(rig: Rig) -> None:
    """Beyond the end, or longer than an answer can be."""
    assert rig.refused(rig.caller.get_config(14, 3)) is Reason.RANGE
    assert rig.refused(rig.caller.get_config(0xFFFFFFFF, 1)) is Reason.RANGE
    small = Rig(max_message=8 + 12 + 4)
    assert small(small.caller.get_config(0, 4)).data == b"\0\1\2\3"
    assert small.refused(small.caller.get_config(0, 5)) is Reason.RANGE
    assert small(small.caller.device_features(2)) and small.refused(small.caller.device_features(3)) is Reason.RANGE
    assert small.refused(small.caller.device_features(0xFFFFFFFF)) is Reason.RANGE


@pytest.mark.parametrize(
    ("queue", "values", "reason"),
    [
        (2, (1, 0, 0, 0), Reason.NO_QUEUE),
        (0xFFFFFFFF, (1, 0, 0, 0), Reason.NO_QUEUE),
        (0, (0, 0, 0, 0), Reason.INVALID),
        (0, (129, 0, 0, 0), Reason.INVALID),
        (0, (3, 0, 0, 0), Reason.INVALID),
        (0, (4, 8, 0, 0), Reason.INVALID),
        (0, (4, 0, 1, 0), Reason.INVALID),
        (0, (4, 0, 0, 2), Reason.INVALID),
    ],
)
@pytest.mark.parametrize("which", [ARGO, PR28], ids=["argo", "pr28"])
def test_queues_that_cannot_be(queue: int, values: tuple[int, ...], reason: Reason, which: Revision) -> None:
    """The draft answers with nothing, and GET_VQUEUE then says 0; we say why."""
    rig = Rig(which)
    rig.negotiate()
    call = rig.caller.set_queue(queue, *values)
    if which is ARGO:
        assert rig.refused(call) is reason
    else:
        rig(call)
    info = rig(rig.caller.get_queue(queue))
    assert info[2:] == (0, 0, 0, 0, 0) and info.max_size == (128 if queue == 0 else 0)
    rig(rig.caller.set_queue(0, 4, 0, 0, 0))
    assert rig(rig.caller.get_queue(0)).size == 4


def test_queues_in_the_wrong_state(rig: Rig) -> None:
    """Before FEATURES_OK, and while in use."""
    assert rig.refused(rig.caller.set_queue(0, 4, 0, 0, 0)) is Reason.STATE
    rig.negotiate()
    rig(rig.caller.set_queue(0, 4, 0, 0, 0))
    assert rig.refused(rig.caller.set_queue(0, 8, 0, 0, 0)) is Reason.STATE
    assert rig(rig.caller.get_queue(0)).size == 4


def test_queue_reset(rig: Rig) -> None:
    """With RING_RESET; the queue is then unconfigured."""
    rig.negotiate()
    assert rig.refused(rig.caller.reset_queue(0)) is Reason.STATE
    assert rig.refused(rig.caller.reset_queue(9)) is Reason.NO_QUEUE
    rig(rig.caller.set_status(0))
    rig.negotiate(V1 | feature_set(Feature.RING_RESET))
    rig(rig.caller.set_queue(0, 4, 0, 0, 0))
    rig(rig.caller.reset_queue(0))
    assert rig(rig.caller.get_queue(0)).size == 0


def test_no_shared_memory(rig: Rig) -> None:
    """Length 0: no such region."""
    request = Message(0, MsgId.GET_SHM, 5, 0, b"\7\0\0\0")
    answer = rig.server.handle(request)
    assert answer is not None and msg.unpack_message(answer).payload == b"\7\0\0\0" + bytes(8)


@pytest.mark.parametrize(
    ("accepted", "sent", "kick"),
    [
        (0, 0x8005, ("kick", 0, 0)),
        (feature_set(Feature.NOTIFICATION_DATA), 0x8005, ("kick", 0, 0x8005)),
        (feature_set(Feature.NOTIFICATION_DATA), 0x7FFF, ("kick", 0, 0x7FFF)),
    ],
)
def test_kicks_with_data(rig: Rig, accepted: int, sent: int, kick: tuple[object, ...]) -> None:
    """next_off in bits 30:0, next_wrap in bit 31, and nothing without NOTIFICATION_DATA."""
    rig.negotiate(V1 | accepted)
    rig(rig.caller.set_queue(0, 4, 0, 0, 0))
    rig(rig.caller.set_status(LIVE))
    rig.device.taken()
    rig.server.handle(msg.unpack_message(rig.caller.kick(0, sent)))
    assert rig.device.taken() == [kick]
    assert rig.caller.kick(0, 0x8005)[-4:] == (0x80000005).to_bytes(4, "little")


def test_a_kick_is_never_answered(rig: Rig) -> None:
    """Events have no response, not even an error."""
    for payload in (b"", bytes(8), b"\xff" * 8):
        assert rig.server.handle(Message(0, MsgId.EVENT_AVAIL, 5, 0, payload)) is None


def test_config_events(rig: Rig) -> None:
    """With the status, so that NEEDS_RESET is seen at once; without data."""
    rig.negotiate()
    rig(rig.caller.set_status(LIVE))
    rig.device.device.space[0] = 9
    rig.device.control.config_changed()
    rig.device.control.needs_reset("x")
    layout = msg.row(MsgId.EVENT_CONFIG).request
    assert [msg.unpack_payload(layout, msg.unpack_message(event).payload) for event in rig.events] == [
        (LIVE, 1, 0, 0, b""), (LIVE | Status.DEVICE_NEEDS_RESET, 1, 0, 0, b""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "request_",
    [
        Message(0, 0x0D, 5, 7, b""), Message(2, BusId.PING, 0, 7, bytes(4)), Message(0, MsgId.ERROR, 5, 7, bytes(8)),
        Message(0, 0x80, 5, 7, b""),
    ],
)  # fmt: skip
def test_unsupported(rig: Rig, request_: Message) -> None:
    """Discarded in the draft, refused by us."""
    answer = rig.server.handle(request_)
    assert answer is not None
    error = msg.unpack_message(answer)
    assert error[:4] == (request_.type | 1, MsgId.ERROR, request_.dev_num, 7)
    assert msg.unpack_payload(msg.ERROR_LAYOUT, error.payload) == (request_.msg_id, Reason.UNSUPPORTED, 38)
    assert Rig(PR28).server.handle(request_) is None


@pytest.mark.parametrize("number", [*range(0x100)])
def test_every_id(number: int) -> None:
    """Whatever the id and the payload: an answer to what is a request, none to an event or a response; no exception."""
    for which in (ARGO, PR28):
        rig = Rig(which)
        for payload in (b"", bytes(4), bytes(8), b"\xff" * 8, bytes(40), b"\xff" * 12):
            answer = rig.server.handle(Message(0, number, 5, 0, payload))
            if number & 0x40:
                assert answer is None
            elif which is ARGO:
                assert answer is not None
            assert rig.server.handle(Message(1, number, 5, 0, payload)) is None


# -- the bus ----


class BusRig:
    """A bus with devices of these numbers."""

    def __init__(self, *numbers: int, max_message: int = 264) -> None:
        self.devices = dict.fromkeys(numbers)
        self.events: list[bytes] = []
        self.bus = MsgBus(self.devices, self.events.append, max_message=max_message)
        self.caller = Caller()

    def __call__(self, call: Call[T]) -> T:
        answer = self.bus.handle(msg.unpack_message(call.message))
        assert answer is not None
        return call.result(answer)


def test_enumeration() -> None:
    """A bitmap, least significant bit first, and where to go on; 0 at the end (GET_DEVICES)."""
    rig = BusRig(0, 3, 17, 256, 65535)
    assert rig(rig.caller.devices(0, 256)) == ([0, 3, 17], 256)
    assert rig(rig.caller.devices(256, 256)) == ([256], 512)
    assert rig(rig.caller.devices(65528, 8)) == ([65535], 0)
    assert rig(rig.caller.devices(65528, 64)) == ([65535], 0)
    call = rig.caller.devices(0, 24)
    answer = rig.bus.handle(msg.unpack_message(call.message))
    assert answer is not None and answer[8:] == bytes.fromhex("0000 1800 1800 09 00 02")
    assert BusRig()(rig.caller.devices()) == ([], 0)


def test_enumeration_in_small_messages() -> None:
    """As many as fit, at least eight where there is room for a byte."""
    rig = BusRig(*range(0, 100, 9), max_message=16)
    found, offset = [], 0
    while True:
        some, offset = rig(rig.caller.devices(offset))
        found += some
        if not offset:
            break
    assert found == list(range(0, 100, 9))


def test_what_a_bus_refuses() -> None:
    """Counts that are no multiples of 8, messages that it does not know."""
    rig = BusRig(1)
    for offset, count in ((1, 8), (0, 7)):
        with pytest.raises(Refused) as error:
            rig(rig.caller.devices(offset, count))
        assert error.value.reason is Reason.INVALID
    for request in (Message(0, 2, 0, 0, b""), Message(2, 9, 0, 0, b""), Message(2, BusId.HELLO, 0, 0, bytes(24))):
        answer = rig.bus.handle(request)
        assert answer is not None and msg.unpack_message(answer).msg_id == BusId.ERROR
    assert rig.bus.handle(Message(3, BusId.PING, 0, 0, bytes(4))) is None
    assert rig.bus.handle(Message(2, BusId.EVENT_DEVICE, 0, 0, bytes(4))) is None


def test_ping_and_hot_plug() -> None:
    """PING comes back as it went; EVENT_DEVICE is a bus message."""
    rig = BusRig()
    assert rig(rig.caller.ping(0xDEADBEEF)) == 0xDEADBEEF
    rig.bus.announce(7, DeviceState.READY)
    rig.bus.announce(7, DeviceState.REMOVED)
    assert rig.events == [
        bytes.fromhex("0240 0000 0000 0c00 0700 0100"),
        bytes.fromhex("0240 0000 0000 0c00 0700 0200"),
    ]


# -- the driver's side against a device that lies ----


def test_answers_of_somebody_else(rig: Rig) -> None:
    """Another device, token or id is no answer; nor is a request."""
    call = rig.caller.get_status()
    good = msg.unpack_message(rig.answer(call) or b"")
    assert call.answers(good)
    for wrong in (
        good._replace(dev_num=6), good._replace(token=0), good._replace(msg_id=8), good._replace(type=0),
        good._replace(type=3),
    ):  # fmt: skip
        assert not call.answers(wrong)
        with pytest.raises(MessageError):
            call.result(msg.pack_message(wrong))
    other = msg.pack_error(rig.caller.info().request, Reason.STATE)
    assert other is not None and not call.answers(msg.unpack_message(other))


def test_tokens_run() -> None:
    """1 to 65535, so that 0 is nobody's."""
    caller = Caller()
    tokens = [caller.info().request.token for _ in range(65536)]
    assert tokens[:2] == [1, 2] and tokens[-2:] == [65535, 1]


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (Caller().info(), (2, 0, 33, 0, 0, 0, 0)),
        (Caller().info(), (2, 0, 64, 0, 65537, 0, 0)),
        (Caller().device_features(2), (1, 2, (0, 0))),
        (Caller().device_features(2), (0, 1, (0,))),
        (Caller().get_config(0, 4), (0, 0, 2, b"ab")),
        (Caller().get_config(0, 4), (0, 1, 4, b"abcd")),
        (Caller().set_config(0, 0, b"abcd"), (0, 0, 2, b"ab")),
        (Caller().set_config(0, 0, b"abcd"), (0, 1, 4, b"abcd")),
        (Caller().get_queue(1), (2, 0, 0, 0, 0, 0, 0)),
        (Caller().devices(8, 8), (0, 8, 0, b"\0")),
        (Caller().devices(8, 8), (8, 16, 0, b"\0\0")),
        (Caller().devices(8, 8), (8, 8, 8, b"\0")),
        (Caller().ping(1), (2,)),
        (Caller().hello(msg.HelloData(1, 0, 0, 0, 0)), (1 << 31 | 1, 0, 0, 0, 0)),
    ],
)
def test_answers_that_contradict(call: Call[Any], answer: tuple[Any, ...]) -> None:
    """What was not asked for, more than was asked for, a revision that was not offered."""
    with pytest.raises(MessageError):
        call.result(msg.pack_response(call.request, answer))


def test_hello() -> None:
    """The answer has the revision to use."""
    call = Caller().hello(msg.HelloData(1 << 31 | 1, 4096, 3, 65536, 0x1122334455667788))
    assert call.message[8:] == bytes.fromhex("01000080 00100000 03000000 00000100 8877665544332211")
    assert call.result(msg.pack_response(call.request, (1, 264, 0, 0, 0))) == (1, 264, 0, 0, 0)


def test_unknown_reasons() -> None:
    """An ERROR of a later revision is an ERROR all the same."""
    call = Caller().info()
    error = call.request._replace(type=1, msg_id=MsgId.ERROR, payload=msg.pack_payload(msg.ERROR_LAYOUT, (2, 99, 5)))
    with pytest.raises(Refused, match="errno 5"):
        call.result(msg.pack_message(error))
