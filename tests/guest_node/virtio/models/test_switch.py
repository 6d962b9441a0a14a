"""The learning switch (IEEE 802.1D-2004, 7.7 to 7.9)."""

from __future__ import annotations

import pytest

from guest_node.virtio.models.switch import AGEING, FRAME_MAX, FRAME_MIN, TABLE_SIZE, Frame, Port, Switch

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    """A local unicast address."""
    return b"\x02\0\0" + number.to_bytes(3, "big")


def frame(destination: bytes, source: bytes, payload: bytes = b"payload") -> bytes:
    return destination + source + b"\x08\x00" + payload


class Net:
    """A switch with `count` ports that keep what they get."""

    def __init__(self, count: int = 3, **options: int) -> None:
        self.now = 0.0
        self.switch = Switch(lambda: self.now, **options)
        self.got: list[list[bytes]] = [[] for _ in range(count)]
        self.takes = [True] * count
        self.ports: list[Port] = [self.switch.attach(f"p{number}", self._taker(number)) for number in range(count)]

    def _taker(self, number: int):  # type: ignore[no-untyped-def]
        def take(frame: Frame) -> bool:
            if self.takes[number]:
                self.got[number].append(bytes(frame))
            return self.takes[number]

        return take

    def send(self, port: int, data: bytes) -> list[int]:
        """The ports that got it."""
        before = [len(got) for got in self.got]
        self.ports[port].send(data)
        return [number for number, got in enumerate(self.got) if len(got) > before[number]]


def test_unknown_addresses_are_flooded_and_known_ones_forwarded() -> None:
    """7.7, 7.8: a frame teaches where its source is."""
    net = Net()
    assert net.send(0, frame(mac(2), mac(1))) == [1, 2]
    assert net.send(1, frame(mac(1), mac(2))) == [0]
    assert net.send(0, frame(mac(2), mac(1))) == [1]
    assert net.got[1][-1] == frame(mac(2), mac(1))
    assert dict(net.switch.addresses()) == {mac(1): net.ports[0], mac(2): net.ports[1]}


@pytest.mark.parametrize("destination", [BROADCAST, bytes.fromhex("333300000001"), bytes.fromhex("01005e000001")])
def test_groups_go_everywhere_else(destination: bytes) -> None:
    """7.7: group addresses are flooded, never learned."""
    net = Net()
    assert net.send(2, frame(destination, mac(3))) == [0, 1]
    assert net.ports[2].counters.flooded == 1


@pytest.mark.parametrize(("last", "ports"), [(0x00, []), (0x0F, []), (0x10, [1, 2])])
def test_addresses_of_bridges_go_nowhere(last: int, ports: list[int]) -> None:
    """7.12.6: 01-80-C2-00-00-00 to 0F are not forwarded; the next one is."""
    net = Net()
    assert net.send(0, frame(bytes.fromhex("0180c20000") + bytes([last]), mac(1))) == ports


def test_a_station_that_moves() -> None:
    """7.8: the newest port counts."""
    net = Net()
    net.send(0, frame(BROADCAST, mac(1)))
    net.send(1, frame(BROADCAST, mac(1)))
    assert net.send(2, frame(mac(1), mac(3))) == [1]


def test_a_frame_for_the_port_it_came_from_is_filtered() -> None:
    """7.7.1: not back."""
    net = Net()
    net.send(0, frame(BROADCAST, mac(1)))
    assert net.send(0, frame(mac(1), mac(4))) == []
    assert net.ports[0].counters.filtered == 1


def test_ageing() -> None:
    """7.9.2: after 300 s of silence an address is unknown again; each frame renews it."""
    assert AGEING == 300
    net = Net()
    net.send(1, frame(BROADCAST, mac(2)))
    net.now = 200.0
    net.send(1, frame(BROADCAST, mac(2)))
    net.now = 500.0
    assert net.send(0, frame(mac(2), mac(1))) == [1]
    net.now = 500.5
    assert net.send(0, frame(mac(2), mac(1))) == [1, 2]
    assert [address for address, _ in net.switch.addresses()] == [mac(1)]


def test_the_table_is_bounded() -> None:
    """A port that invents addresses pushes out the one that was silent longest, and costs no memory."""
    assert TABLE_SIZE == 1024
    net = Net(table_size=4)
    for number in (1, 2, 3, 1, 4, 5):
        net.send(0, frame(BROADCAST, mac(number)))
    assert [address for address, _ in net.switch.addresses()] == [mac(3), mac(1), mac(4), mac(5)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" * 5,
        frame(mac(1), mac(2), b"")[: FRAME_MIN - 1],
        frame(mac(1), mac(2), bytes(FRAME_MAX)),
        frame(mac(1), BROADCAST),
        frame(mac(1), bytes.fromhex("01005e000001")),
        frame(mac(1), bytes(6)),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """Too short, too long, or from a group: counted, neither learned nor forwarded."""
    net = Net()
    assert net.send(0, data) == []
    assert net.ports[0].counters.refused == 1
    assert net.ports[0].counters.frames_in == 0
    assert not list(net.switch.addresses())


@pytest.mark.parametrize("size", [FRAME_MIN, FRAME_MAX])
def test_the_smallest_and_the_largest(size: int) -> None:
    """14 bytes of header, to 1500 bytes of payload with a VLAN tag."""
    assert (FRAME_MIN, FRAME_MAX) == (14, 1518)
    net = Net()
    assert net.send(0, frame(BROADCAST, mac(1), bytes(size - 14))) == [1, 2]


def test_counters() -> None:
    """Each port's own; a frame that nobody takes is the receiving port's loss."""
    net = Net()
    net.takes[2] = False
    net.send(0, frame(BROADCAST, mac(1)))
    size = len(frame(BROADCAST, mac(1)))
    sender, taker, busy = (port.counters for port in net.ports)
    assert (sender.frames_in, sender.bytes_in, sender.flooded) == (1, size, 1)
    assert (taker.frames_out, taker.bytes_out, taker.dropped) == (1, size, 0)
    assert (busy.frames_out, busy.dropped) == (0, 1)


def test_leaving() -> None:
    """A port that is gone gets nothing, and its addresses are unknown again."""
    net = Net()
    net.send(1, frame(BROADCAST, mac(2)))
    net.ports[1].close()
    net.ports[1].close()
    assert net.send(0, frame(mac(2), mac(1))) == [2]
    assert net.switch.ports == (net.ports[0], net.ports[2])
    net.ports[0].flush()
    assert not list(net.switch.addresses())
