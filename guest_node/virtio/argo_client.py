"""One front end of a VirtIO-Argo back end: its devices, and what goes to it.

Made by HELLO, ended by BYE, by a new HELLO from the same address, or when the front end turns out to be gone; then its
models are reset and its state is dropped.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from guest_node.drivers.core import ArgoDriver
from guest_node.virtio.argo_device import ArgoDevice, gathered
from guest_node.virtio.argo_device_queue import DeviceSide
from guest_node.virtio.argo_outbox import Outbox, Traffic
from guest_node.virtio.argo_pack import pack
from guest_node.virtio.model import Model
from hmx.argo.abi import Address
from hmx.errno import Errno
from hmx.virtio.argo import Malformed, Variant, decode, flow_of, is_data
from hmx.virtio.memory import Buffer
from hmx.virtio.msg import (
    ARGO,
    ERROR_LAYOUT,
    BusId,
    DeviceState,
    ErrorData,
    Message,
    MessageError,
    MsgId,
    MsgType,
    Reason,
    pack_error,
    pack_message,
    pack_payload,
    unpack_message,
)
from hmx.virtio.msg_device import MsgBus

MAX_CONTROL: Final = 264  # bytes of an answer; the draft's usual upper limit


class Client:
    """A front end, at `port` of domain `domid`.

    `makers`: what makes the model of each device; `left(client, reason)`: this front end is to be forgotten.
    """

    def __init__(
        self,
        driver: ArgoDriver,
        our_port: int,
        address: Address,
        variant: Variant,
        window: int,
        max_message: int,
        features: int,
        makers: Mapping[int, Callable[[Client], Model]],
        left: Callable[[Client, str], None],
        fault: Callable[[BaseException], None],
        trouble: Callable[[Client, str], None],
        traffic: Traffic,
    ) -> None:
        self.domid = address.domid
        self.port = address.port
        self.address = address
        self.variant = variant
        self.window = window
        self.devices: dict[int, ArgoDevice] = {}
        self.nonsense = 0  # messages that were none
        self.ended = ""
        self._features = features
        self._makers = makers
        self._left = left
        self._fault = fault
        self._trouble = trouble
        self._flow = flow_of(variant)
        self._max = min(max_message, MAX_CONTROL)
        self._speaking: list[DeviceSide] = []
        self._outbox = Outbox(driver, our_port, address, self._gather, self._lost, traffic)
        self._outbox.sized(max_message)
        self._bus = MsgBus(makers, self.post, max_message=self._max)

    def post(self, message: bytes) -> None:
        """Send a control message.  Who does not take them away is forgotten: nothing is queued without bound."""
        if self._outbox.post(message):
            self._outbox.wake()
        else:
            self._left(self, "refused")

    def receive(self, payload: memoryview) -> None:
        """One Argo message."""
        try:
            if is_data(payload):
                self._data(payload)
                return
            message = unpack_message(payload)
        except MessageError:
            self.nonsense += 1  # without a header that can be believed nobody can be answered
            return
        answer = self._bus.handle(message) if message.bus else self._device_message(message)
        if answer is not None:
            self.post(answer)

    def _data(self, payload: memoryview) -> None:
        try:
            updates = decode(payload)
        except Malformed as why:
            self.nonsense += 1  # it might have been for any queue: all of them have lost their places
            for device in list(self.devices.values()):
                device.broke(str(why))
            return
        for update in updates:
            device_or_none = self.devices.get(update.dev_num)
            if device_or_none is not None:
                device_or_none.receive(update)

    def _device_message(self, message: Message) -> bytes | None:
        device = self.devices.get(message.dev_num)
        if device is None:
            if message.response or message.event:
                return None
            maker = self._makers.get(message.dev_num)
            if maker is None:
                return pack_error(message, Reason.NO_DEVICE, ARGO)
            try:
                device = self._make(message.dev_num, maker)
            except OSError as refused:
                return pack_refusal(message, refused.errno or int(Errno.EIO))
        return device.handle(message)

    def _make(self, number: int, maker: Callable[[Client], Model]) -> ArgoDevice:
        model = maker(self)
        device = ArgoDevice(
            number,
            model,
            self._flow,
            self.window,
            self._features,
            self.post,
            self._speak,
            self._fault,
            lambda why: self._trouble(self, why),
        )
        device.sized(self._max)
        self.devices[number] = device
        return device

    # -- what goes out ----

    def _speak(self, queue: DeviceSide) -> None:
        self._speaking.append(queue)
        self._outbox.wake()

    def _gather(self, limit: int) -> list[list[Buffer]]:
        if not self._speaking:
            return []
        speaking, self._speaking = self._speaking, []
        flow = self._flow
        return pack(gathered(speaking), flow.device, flow.joined, limit)

    def _lost(self, cause: BaseException) -> None:
        del cause
        self._left(self, "gone")

    # -- coming and going ----

    def came(self, number: int) -> None:
        """Device `number` was plugged in."""
        self._bus.announce(number, DeviceState.READY)

    def went(self, number: int) -> None:
        """Device `number` was unplugged."""
        device = self.devices.pop(number, None)
        if device is not None:
            device.end()
        self._bus.announce(number, DeviceState.REMOVED)

    def end(self, reason: str) -> None:
        """Reset the models and forget everything."""
        self.ended = reason
        self._outbox.close()
        devices, self.devices = self.devices, {}
        for device in devices.values():
            device.end()


def pack_refusal(message: Message, errno: int) -> bytes:
    """ERROR with an errno of its own.  ENOTCONN means that there is no connection."""
    payload = pack_payload(ERROR_LAYOUT, ErrorData(message.msg_id, Reason.STATE, errno))
    kind = message.type | MsgType.RESPONSE
    return pack_message(message._replace(type=kind, msg_id=(BusId if message.bus else MsgId).ERROR, payload=payload))
