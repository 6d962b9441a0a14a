"""One device of a VirtIO-Argo back end, as one front end has it: control state, queues, and the model behind them.

Nothing that the front end sends raises here.  What breaks a rule ends in DEVICE_NEEDS_RESET of this device for this
front end, and so does a defect of the model.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from guest_node.virtio.argo_device_queue import DeviceSide
from guest_node.virtio.argo_image import plan_image
from guest_node.virtio.argo_pack import Batch
from guest_node.virtio.model import Model, Request
from hmx.virtio.argo import Flow, Update, misplaced
from hmx.virtio.chain import QueueBroken
from hmx.virtio.control import DeviceControl, Effects
from hmx.virtio.features import Feature, feature_set
from hmx.virtio.msg import (
    ARGO,
    Message,
    MessageError,
    MsgId,
    QueueSetup,
    Reason,
    pack_error,
    row,
    unpack_payload,
)
from hmx.virtio.msg_device import MsgDevice
from hmx.virtio.status import Status

OFFERED: Final = feature_set(
    Feature.VERSION_1,
    Feature.ACCESS_PLATFORM,  # addresses are handles
    Feature.RING_EVENT_IDX,
    Feature.RING_PACKED,
    Feature.RING_RESET,
)
"""Features of the transport and its queues.  Not offered: tables of indirect descriptors, which would have to travel,
and notification data, since the message that makes buffers available is the notification.  A back end whose models
complete in order may add IN_ORDER.
"""


class ArgoDevice:
    """Device `number` for one front end.

    `post` sends a control message; `speak(queue)` is called when a queue has something to say; `fault` is told what
    a model raised, `trouble` why the device needs a reset.
    """

    def __init__(
        self,
        number: int,
        model: Model,
        flow: Flow,
        window: int,
        features: int,
        post: Callable[[bytes], object],
        speak: Callable[[DeviceSide], None],
        fault: Callable[[BaseException], None],
        trouble: Callable[[str], None],
    ) -> None:
        self.number = number
        self.model = model
        self.queues: dict[int, DeviceSide] = {}
        self._flow = flow
        self._window = window
        self._post = post
        self._speak = speak
        self._fault = fault
        self._trouble = trouble
        effects = Effects(
            on_start=self._start,
            on_run=self._run,
            on_reset=self._reset,
            on_queue=self._queue,
            on_queue_reset=self._queue_reset,
        )
        self.control = DeviceControl(model, features, effects)
        self._view = MsgDevice(self.control, number, self._send)
        model.on_config = self.control.config_changed

    def sized(self, max_message: int) -> None:
        """Bytes of the longest message that the front end takes."""
        self._view.max_message = min(self._view.max_message, max_message)

    # -- control plane ----

    def handle(self, message: Message) -> bytes | None:
        """The answer to a request, if there is to be one."""
        if message.msg_id == MsgId.SET_VQUEUE and not message.bus and not self._laid_out(message):
            return pack_error(message, Reason.INVALID, ARGO)
        return self._view.handle(message)

    def _laid_out(self, message: Message) -> bool:
        """Whether SET_VQUEUE names the one layout that there is; what is wrong otherwise, others find."""
        try:
            setup: QueueSetup = unpack_payload(row(MsgId.SET_VQUEUE).request, message.payload)
            layout = plan_image(setup.size, self.control.negotiated).layout
        except (MessageError, ValueError):
            return True
        return layout == (setup.size, setup.descriptors, setup.driver, setup.device)

    def _send(self, event: bytes) -> None:
        self._post(event)

    # -- data plane ----

    def receive(self, update: Update) -> None:
        """Apply an update of a queue, and serve what it made available."""
        queue = self.queues.get(update.queue)
        if queue is None:
            return  # it was reset, or never was: nobody waits for an answer
        wrong = misplaced(update, self._flow, self._flow.driver)
        if wrong is not None:
            self.broke(wrong)
            return
        try:
            if queue.receive(update):
                queue.run(self._running)
        except QueueBroken as why:
            self.broke(f"queue {update.queue}: {why}")

    def _running(self) -> bool:
        return self.control.running

    def broke(self, why: str) -> None:
        """The driver broke a rule."""
        if self.control.status and not self.control.status & Status.DEVICE_NEEDS_RESET:
            self._trouble(f"device {self.number}: {why}")
        self.control.needs_reset(why)

    # -- Host of the queues ----

    def serve(self, request: Request) -> None:
        """Give a request to the model."""
        try:
            self.model.request(request)
        except Exception as defect:
            self._fault(defect)
            self.broke(f"the device failed: {defect!r}")

    def answered(self, queue: DeviceSide) -> None:
        """A queue has something to say."""
        self._speak(queue)

    # -- Effects of DeviceControl ----

    def _start(self, features: int) -> None:
        self.model.start(features)

    def _run(self, running: bool) -> None:
        """Consume buffers from now on: nobody will say again what is there already."""
        if not running:
            return
        for index, queue in list(self.queues.items()):
            try:
                queue.run(self._running)
            except QueueBroken as why:
                self.broke(f"queue {index}: {why}")

    def _reset(self) -> None:
        for queue in self.queues.values():
            queue.end()
        self.queues.clear()
        self.model.reset()

    def _queue(self, index: int, ready: bool) -> None:
        self._queue_reset(index)
        if ready:
            size, features = self.control.queues[index].size, self.control.negotiated
            self.queues[index] = DeviceSide(self, self.number, index, size, features, self._window)

    def _queue_reset(self, index: int) -> None:
        queue = self.queues.pop(index, None)
        if queue is not None:
            queue.end()

    def end(self) -> None:
        """The front end is gone, or the device is: everything is forgotten."""
        self.model.on_config = _nothing
        self.control.reset()


def _nothing() -> None:
    pass


def gathered(queues: list[DeviceSide]) -> list[Batch]:
    """What these queues have to say."""
    found = []
    for queue in queues:
        batch = queue.gather()
        if batch is not None:
            found.append(batch)
    return found
