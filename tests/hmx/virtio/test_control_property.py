"""A driver that does anything, through registers and through messages: what must hold whatever it does.

Both views of the same device do the same (4.2 and virtio-msg are two ways to say one thing), no step raises, and after
each of them the device's state is one that the specification knows.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hmx.virtio import features, msg
from hmx.virtio.control import DeviceControl
from hmx.virtio.device_types import feature_rows
from hmx.virtio.features import Feature, has
from hmx.virtio.mmio import OFFSETS, REGISTERS, MmioRegisters
from hmx.virtio.msg import MsgId
from hmx.virtio.msg_device import MsgDevice
from hmx.virtio.status import State, Status
from tests.doubles.virtio_control import ALL, SPLIT, FakeDevice, Recorder

FEATURES = 1 << 9 | 1 << 11 | 1 << 70
WORDS = st.sampled_from([0, 1, 3, 8, 0xB, 0xF, 0x1B, 0x1F, 0x40, 0x4F, 0x80, 0x8F, 0xFFFFFFFF, 0x1000, 0x2000, 64, 128])
STATUS = st.sampled_from([0, 1, 3, 0xB, 0xB, 0xF, 0xF, 0x1F, 0x4F, 0x8F, 7, 0x10, 2]) | st.integers(0, 255)
VALUE = WORDS | st.integers(0, 0xFFFFFFFF)
REGISTER = st.sampled_from([row.offset for row in REGISTERS]) | st.integers(0, 0x120)
KNOWN = st.sampled_from([row.name for row in REGISTERS if "W" in row.access and row.name != "Config"])
GOOD = features.feature_set(Feature.VERSION_1)


class AnyDriver(RuleBasedStateMachine):
    """Random registers, random messages, on one device whose own life goes on too."""

    @initialize(features=st.sampled_from([ALL, ALL | FEATURES, 0]))
    def begin(self, features: int) -> None:
        self.device = Recorder(FakeDevice(features=FEATURES), features)
        self.control: DeviceControl = self.device.control
        self.levels: list[bool] = [False]
        self.registers = MmioRegisters(self.control, self.levels.append)
        notify, reset = self.control.notify_driver, self.control.after_reset
        self.events: list[bytes] = []
        self.messages = MsgDevice(self.control, 1, self.events.append)
        by_message, forget = self.control.notify_driver, self.control.after_reset

        def both(queue: int | None) -> None:
            notify(queue)
            by_message(queue)

        def all_forget() -> None:
            reset()
            forget()

        self.control.notify_driver, self.control.after_reset = both, all_forget
        self.started = self.running = False
        self.generation = (0, self.control.read_config(0, 16))

    # -- what a driver does ----

    @rule(offset=REGISTER, size=st.sampled_from([1, 2, 4, 8]), value=VALUE)
    def store(self, offset: int, size: int, value: int) -> None:
        self.registers.store(offset, size, value)

    @rule(name=KNOWN, value=VALUE)
    def store_known(self, name: str, value: int) -> None:
        self.registers.store(OFFSETS[name], 4, value)

    @rule(offset=REGISTER, size=st.sampled_from([1, 2, 4, 8]))
    def load(self, offset: int, size: int) -> None:
        before = (self.control.status, self.control.accepted, self.registers.interrupt_status)
        assert 0 <= self.registers.load(offset, size) < 1 << 8 * size
        assert (self.control.status, self.control.accepted, self.registers.interrupt_status) == before

    @rule(value=STATUS)
    def status(self, value: int) -> None:
        self.registers.store(OFFSETS["Status"], 4, value)

    @rule(
        packed=st.booleans(), more=st.sampled_from([0, 1 << Feature.RING_RESET, 1 << Feature.SUSPEND, 1 << 70, 1 << 3])
    )
    def accept(self, packed: bool, more: int) -> None:
        accepted = GOOD | more | (1 << Feature.RING_PACKED if packed else 0)
        for block in range(3):
            self.registers.store(OFFSETS["DriverFeaturesSel"], 4, block)
            self.registers.store(OFFSETS["DriverFeatures"], 4, features.window(accepted, block))

    @rule(
        index=st.integers(0, 3), size=st.sampled_from([0, 1, 48, 64, 128, 256]), odd=st.sampled_from([0, 2, 8, 1 << 63])
    )
    def queue(self, index: int, size: int, odd: int) -> None:
        values = (index, 0, size, 0, *(address + odd for address in SPLIT.values()))
        self.send(MsgId.SET_VQUEUE, values)

    @rule(queue=st.integers(0, 3), data=st.integers(0, 0xFFFFFFFF))
    def kick(self, queue: int, data: int) -> None:
        self.send(MsgId.EVENT_AVAIL, (queue, data))

    @rule(status=STATUS)
    def status_by_message(self, status: int) -> None:
        answer = self.send(MsgId.SET_DEVICE_STATUS, (status,))
        assert answer == (self.control.status,)

    @rule(message=st.sampled_from([*MsgId]), payload=st.binary(max_size=48), kind=st.integers(0, 255))
    def any_message(self, message: int, payload: bytes, kind: int) -> None:
        request = msg.unpack_message(msg.pack_message(msg.Message(kind, message, 1, 7, payload)))
        answer = self.messages.handle(request)
        if answer is None:
            assert request.event or request.response
        else:
            assert msg.unpack_message(answer)[2:4] == (1, 7)

    def send(self, message: MsgId, values: tuple[Any, ...]) -> Any:
        request = msg.unpack_message(msg.pack(msg.row(message), values, 1, 9))
        answer = self.messages.handle(request)
        if answer is None:
            return None
        found = msg.unpack_message(answer)
        if found.msg_id == MsgId.ERROR:
            return None
        response = msg.row(message).response
        assert response is not None
        return msg.unpack_payload(response, found.payload)

    # -- what a device does ----

    @rule()
    def break_down(self) -> None:
        self.control.needs_reset("the test")

    @rule(at=st.integers(0, 15), value=st.integers(0, 255), say=st.booleans())
    def change(self, at: int, value: int, say: bool) -> None:
        self.device.device.space[at] = value
        if say:
            self.control.config_changed()

    @rule(index=st.integers(0, 3))
    def use(self, index: int) -> None:
        self.control.used(index)

    @rule(busy=st.booleans())
    def drain(self, busy: bool) -> None:
        self.device.busy = busy
        if not busy:
            self.control.drained()

    # -- what holds ----

    @invariant()
    def the_state_is_known(self) -> None:
        control, status = self.control, Status(self.control.status)
        assert not status & ~(1 | 2 | 4 | 8 | 16 | 64 | 128)
        assert control.running == (control.state is State.LIVE and not status & Status.SUSPEND)
        if status & Status.SUSPEND:
            assert has(control.negotiated, Feature.SUSPEND)
        if control.negotiated:
            assert features.refusal(control.offered, control.negotiated, feature_rows(2)) is None
        if control.running:
            assert control.negotiated

    @invariant()
    def queues_are_possible(self) -> None:
        for queue in self.control.queues:
            if queue.ready:
                assert queue.problem(self.control.negotiated) is None and self.control.negotiated
        if not self.control.status:
            assert not any(queue.ready for queue in self.control.queues) and not self.control.negotiated

    @invariant()
    def effects_make_sense(self) -> None:
        """Start once, run and stop in turns, kicks only while running, none after a reset."""
        for effect, *values in self.device.taken():
            match effect:
                case "start":
                    assert not self.started and values == [self.control.negotiated]
                    self.started = True
                case "run":
                    assert self.started and values == [not self.running]
                    self.running = not self.running
                case "suspend":
                    assert not self.running
                case "kick":
                    assert self.running and self.control.queues[int(str(values[0]))].ready
                case "reset":
                    self.started = self.running = False
        assert self.running == self.control.running

    @invariant()
    def the_line_follows_the_status(self) -> None:
        assert self.levels[-1] == bool(self.registers.interrupt_status)
        assert len(self.events) < 1000

    @invariant()
    def both_views_agree(self) -> None:
        assert self.registers.load(OFFSETS["Status"], 4) == self.control.status
        assert self.send(MsgId.GET_DEVICE_STATUS, ()) == (self.control.status,)
        config = self.send(MsgId.GET_CONFIG, (0, 16))
        assert config.generation == self.registers.load(OFFSETS["ConfigGeneration"], 4)
        words = (self.registers.load(0x100 + at, 4).to_bytes(4, "little") for at in range(0, 16, 4))
        assert config.data == b"".join(words)
        seen = (config.generation, config.data)
        assert seen == self.generation or seen[0] != self.generation[0], "changed without a new generation"
        self.generation = seen


AnyDriver.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAnyDriver = AnyDriver.TestCase
