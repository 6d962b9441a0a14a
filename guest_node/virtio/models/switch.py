"""A learning Ethernet switch between the net devices of one back end, without clock and cable.

Source: IEEE 802.1D-2004, 7.7 (forwarding), 7.8 (learning), 7.9 (ageing of the filtering database, 300 s) and 7.12.6
(group addresses that no bridge forwards).  A port is anything that takes frames: a net device, or a TAP of the host
that a shell has opened.  Nothing is queued: a port that cannot take a frame drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

Frame = bytes | memoryview

AGEING: Final = 300.0  # seconds
TABLE_SIZE: Final = 1024  # addresses
FRAME_MIN: Final = 14  # destination, source, type; what a cable pads to 60 bytes comes short from a guest
FRAME_MAX: Final = 1518  # ... and a VLAN tag and 1500 bytes, without the checksum
ADDRESS_SIZE: Final = 6
_RESERVED: Final = bytes.fromhex("0180c20000")  # 01-80-C2-00-00-00 to 0F: for bridges themselves


@dataclass(slots=True)
class PortCounters:
    """What went through one port; `in` is into the switch."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    flooded: int = 0  # frames from this port that went to all others
    filtered: int = 0  # ... that had no other port to go to
    refused: int = 0  # ... too short, too long, or from an address that is no station's
    dropped: int = 0  # frames for this port that its owner could not take


class Port:
    """One port: `send` frames into the switch; what comes out goes to `deliver`, which says whether it was taken."""

    def __init__(self, switch: Switch, name: str, deliver: Callable[[Frame], bool]) -> None:
        self.name = name
        self.counters = PortCounters()
        self.deliver = deliver
        self._switch = switch

    def send(self, frame: Frame) -> None:
        """A frame from its destination address on, without checksum.  The switch keeps no reference to it."""
        self._switch.forward(self, frame)

    def flush(self) -> None:
        """The link is gone: forget which addresses were behind this port."""
        self._switch.forget(self)

    def close(self) -> None:
        """Leave the switch."""
        self._switch.detach(self)


class Switch:
    """Ports and the table of the addresses behind them.  `clock` gives seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        table_size: int = TABLE_SIZE,
        ageing: float = AGEING,
        frame_max: int = FRAME_MAX,
    ) -> None:
        self._clock = clock
        self._table_size = table_size
        self._ageing = ageing
        self._frame_max = frame_max
        self._ports: list[Port] = []
        self._table: dict[bytes, tuple[Port, float]] = {}  # the address that was silent longest comes first

    def attach(self, name: str, deliver: Callable[[Frame], bool]) -> Port:
        """A new port."""
        port = Port(self, name, deliver)
        self._ports.append(port)
        return port

    def detach(self, port: Port) -> None:
        """Remove a port and what was learned from it.  A second time, nothing."""
        if port in self._ports:
            self._ports.remove(port)
            self.forget(port)

    def forget(self, port: Port) -> None:
        """Drop the addresses behind `port`."""
        self._table = {address: entry for address, entry in self._table.items() if entry[0] is not port}

    @property
    def ports(self) -> tuple[Port, ...]:
        """In the order in which they came."""
        return tuple(self._ports)

    def addresses(self) -> Iterator[tuple[bytes, Port]]:
        """The table, as far as it is not too old."""
        oldest = self._clock() - self._ageing
        for address, (port, seen) in self._table.items():
            if seen >= oldest:
                yield address, port

    def forward(self, source: Port, frame: Frame) -> None:
        """Learn where a frame came from and send it where it goes."""
        counters = source.counters
        destination, sender = bytes(frame[:ADDRESS_SIZE]), bytes(frame[ADDRESS_SIZE : 2 * ADDRESS_SIZE])
        if not FRAME_MIN <= len(frame) <= self._frame_max or sender[0] & 1 or not any(sender):
            counters.refused += 1
            return
        counters.frames_in += 1
        counters.bytes_in += len(frame)
        now = self._clock()
        self._learn(sender, source, now)
        if destination[:5] == _RESERVED and destination[5] < 0x10:
            counters.filtered += 1
            return
        known = None if destination[0] & 1 else self._table.get(destination)
        if known is not None and known[1] >= now - self._ageing:
            if known[0] is source:
                counters.filtered += 1
            else:
                _deliver(known[0], frame)
            return
        counters.flooded += 1
        for port in tuple(self._ports):
            if port is not source:
                _deliver(port, frame)

    def _learn(self, address: bytes, port: Port, now: float) -> None:
        # Taken out and put in again, so that the table stays in the order in which addresses were heard last.
        self._table.pop(address, None)
        if len(self._table) >= self._table_size:
            del self._table[next(iter(self._table))]
        self._table[address] = (port, now)


def _deliver(port: Port, frame: Frame) -> None:
    if port.deliver(frame):
        port.counters.frames_out += 1
        port.counters.bytes_out += len(frame)
    else:
        port.counters.dropped += 1
