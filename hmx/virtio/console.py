"""The console device on the wire: features, configuration, control messages, numbers of queues.

Source: VIRTIO 1.4, 5.3.  Data are bare bytes; only the control queues carry messages.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, Self

from hmx.virtio.features import FeatureRow, Kind
from hmx.virtio.layout import Buffer, LayoutError, at_least, exactly, padded, record
from hmx.virtio.rings import Field

CONFIG_SIZE: Final = 12
CONTROL_RX: Final = 2
CONTROL_TX: Final = 3


class ConsoleFeature(IntEnum):
    """Feature bits (5.3.3)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(ConsoleFeature.SIZE, Kind.DEVICE, note="cols and rows"),
    FeatureRow(ConsoleFeature.MULTIPORT, Kind.DEVICE, note="max_nr_ports ports, and control queues"),
    FeatureRow(ConsoleFeature.EMERG_WRITE, Kind.DEVICE, note="emerg_wr prints a character, even before negotiation"),
)

CONFIG_FIELDS: Final = (
    Field("cols", 0, 2),
    Field("rows", 2, 2),
    Field("max_nr_ports", 4, 4),
    Field("emerg_wr", 8, 4),
)


class ConsoleConfig(NamedTuple):
    """The configuration space (5.3.4)."""

    cols: int = 0
    rows: int = 0
    max_nr_ports: int = 0
    emerg_wr: int = 0

    def pack(self) -> bytes:
        """All 12 bytes."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """From as many bytes as the device has, perhaps none."""
        return cls(*_CONFIG.unpack(padded("a console's configuration", data, 0, CONFIG_SIZE)))


_CONFIG: Final = record(CONFIG_FIELDS, CONFIG_SIZE, ConsoleConfig._fields)
EMERG_WR_OFFSET: Final = next(field.offset for field in CONFIG_FIELDS if field.name == "emerg_wr")


class ConsoleEvent(IntEnum):
    """What a control message says (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class Control(NamedTuple):
    """A control message: port, event (known or not), value, and what follows: a name, or columns and rows."""

    id: int
    event: int
    value: int
    rest: bytes = b""

    def pack(self) -> bytes:
        """The message."""
        return _CONTROL.pack(self.id, self.event, self.value) + self.rest

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Raises LayoutError for less than a header, or a RESIZE without a size."""
        port, event, value = _CONTROL.unpack_from(at_least("a control message", data, _CONTROL.size))
        message = cls(port, event, value, bytes(data[_CONTROL.size :]))
        if message.event == ConsoleEvent.RESIZE:
            exactly("the size in RESIZE", message.rest, _SIZE.size)
        return message

    def size(self) -> tuple[int, int]:
        """Columns and rows of a RESIZE.  Raises LayoutError for another message."""
        if self.event != ConsoleEvent.RESIZE:
            raise LayoutError(f"control message {self.event} has no size")
        cols, rows = _SIZE.unpack(exactly("the size in RESIZE", self.rest, _SIZE.size))
        return cols, rows


CONTROL_FIELDS: Final = (Field("id", 0, 4), Field("event", 4, 2), Field("value", 6, 2))
_CONTROL: Final = record(CONTROL_FIELDS, 8, Control._fields[:3])
SIZE_FIELDS: Final = (Field("cols", 0, 2), Field("rows", 2, 2))
_SIZE: Final = record(SIZE_FIELDS, 4, ("cols", "rows"))


def resize(port: int, cols: int, rows: int) -> Control:
    """The message that says how big a console is."""
    return Control(port, ConsoleEvent.RESIZE, 0, _SIZE.pack(cols, rows))


def rx_queue(port: int) -> int:
    """The queue of a port's input; queues 2 and 3 are the control queues, so port 1 begins at 4 (5.3.2)."""
    return 2 * port + 2 if port else 0


def tx_queue(port: int) -> int:
    """The queue of a port's output."""
    return rx_queue(port) + 1


def port_of(queue: int) -> tuple[int, bool] | None:
    """The port that a queue belongs to, and whether it is its output; None for the control queues."""
    if queue in (CONTROL_RX, CONTROL_TX):
        return None
    return (0 if queue < CONTROL_RX else queue // 2 - 1), bool(queue & 1)
