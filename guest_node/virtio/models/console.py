"""A console with one port, between a driver's queues and two callables.

Source: VIRTIO 1.4, 5.3.  Data are bare bytes.  Neither direction loses any: output that the host cannot take now stays
with the driver, input that the driver has no buffers for waits here, up to a bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from hmx.virtio.console import EMERG_WR_OFFSET, ConsoleConfig, ConsoleFeature
from hmx.virtio.features import feature_set, has
from hmx.virtio.ids import DeviceId

QUEUE_SIZE: Final = 64
INPUT_MAX: Final = 1 << 16  # bytes that wait for the driver
RX, TX = 0, 1
_EMERG_SIZE: Final = 4


class ConsoleModel(BaseModel):
    """Port 0.  `output` gets what the driver writes and says whether it took it; if not, call `resume` later.

    `on_room` is called when input that was refused would be taken again.
    """

    device_id: int = DeviceId.CONSOLE

    def __init__(
        self, output: Callable[[bytes], bool], cols: int = 80, rows: int = 25, *, input_max: int = INPUT_MAX
    ) -> None:
        super().__init__()
        self.features = feature_set(ConsoleFeature.SIZE, ConsoleFeature.EMERG_WRITE)
        self.queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)
        self.on_room: Callable[[], None] = _nothing
        self.refused = 0  # chains that can be of no use: no room where the device writes
        self.bytes_in = 0  # to the driver
        self.bytes_out = 0  # from it
        self._output = output
        self._size = cols, rows
        self._negotiated = 0
        self._live = False
        self._input_max = input_max
        self._input = bytearray()
        self._was_full = False
        self._buffers: deque[Request] = deque()
        self._held: deque[Request] = deque()  # output that was not taken, the oldest first

    def config(self) -> bytes:
        """All 12 bytes; cols and rows say something with SIZE only."""
        cols, rows = self._size
        return ConsoleConfig(cols, rows, max_nr_ports=1).pack()

    def write_config(self, offset: int, data: bytes) -> bool:
        """emerg_wr prints the low byte, negotiated or not (5.3.5)."""
        if offset != EMERG_WR_OFFSET or len(data) != _EMERG_SIZE:
            return False
        return self._output(data[:1])

    def resize(self, cols: int, rows: int) -> None:
        """The host's window has another size; the driver is told if it took SIZE."""
        self._size = cols, rows
        if has(self._negotiated, ConsoleFeature.SIZE):
            self.on_config()

    def feed(self, data: bytes) -> bool:
        """Input for the driver.  False: as much is waiting as may, nothing was taken; `on_room` says when to go on."""
        if len(self._input) >= self._input_max:
            self._was_full = True
            return False
        self._input += data
        self._pass_on()
        return True

    def resume(self) -> None:
        """The host takes output again."""
        while self._held:
            if not self._write(self._held[0]):
                return
            self._held.popleft().complete()

    def start(self, features: int) -> None:
        """The driver is live."""
        self._negotiated = features
        self._live = True

    def request(self, request: Request) -> None:
        """A buffer for input, or output."""
        if request.queue == TX:
            if self._held or not self._write(request):
                self._held.append(request)
            else:
                request.complete()
        elif request.queue == RX and request.writable:
            self._buffers.append(request)
            self._pass_on()
        else:
            self.refused += 1
            request.complete()

    def reset(self) -> None:
        """The driver is gone, and what was typed for it; what is typed before the first driver came waits for it."""
        self._negotiated = 0
        self._buffers.clear()
        self._held.clear()
        if self._live:
            self._input.clear()
        self._live = False
        self._tell_room()

    def _write(self, request: Request) -> bool:
        data = bytes(request.readable)
        if data and not self._output(data):
            return False
        self.bytes_out += len(data)
        return True

    def _pass_on(self) -> None:
        while self._input and self._buffers:
            buffer = self._buffers.popleft()
            data = bytes(self._input[: buffer.writable])
            del self._input[: len(data)]
            self.bytes_in += len(data)
            buffer.complete(data)
        self._tell_room()

    def _tell_room(self) -> None:
        if self._was_full and len(self._input) <= self._input_max // 2:
            self._was_full = False
            self.on_room()


def echo_console(cols: int = 80, rows: int = 25, *, input_max: int = INPUT_MAX) -> ConsoleModel:
    """A console that gives back what is written to it."""
    model = ConsoleModel(lambda data: model.feed(data), cols, rows, input_max=input_max)
    model.on_room = model.resume
    return model


def _nothing() -> None:
    """Nobody waits."""
