"""Both ends of both formats against every row of tests/golden/virtio_split.csv and virtio_packed.csv.

`before` is what lies in memory and how far the end under test has come; `operation` a list of steps; `expect` what they
give: first the result of a step that has one, then what must stand in memory after it.  `push` and `add` publish at
once, unless the row says `notify once`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

import pytest

from hmx.virtio.chain import Chain, QueueBroken, QueueFull, Segment
from hmx.virtio.features import Feature
from hmx.virtio.packed import off_wrap, position_of
from hmx.virtio.packed_device import PackedDevice
from hmx.virtio.packed_driver import PackedDriver
from hmx.virtio.queues import AnyDeviceQueue, AnyDriverQueue, gather, notification
from hmx.virtio.rings import need_event
from hmx.virtio.split_device import SplitDevice
from hmx.virtio.split_driver import SplitDriver
from tests.golden import number, rows
from tests.hmx.virtio.queue_rig import DESCRIPTORS, DEVICE, DRIVER, IND, PACKED, A, N, Rig, U, W

SPLIT_ROWS: Final = rows("virtio_split.csv")
PACKED_ROWS: Final = rows("virtio_packed.csv")
EVENTS: Final = {"ENABLE": 0, "DISABLE": 1, "DESC": 2}
LETTERS: Final = {"N": N, "W": W, "I": IND, "A": A, "U": U}


def items(text: str, separator: str = ";") -> list[str]:
    """The parts of a cell."""
    return [part.strip() for part in text.split(separator)] if text.strip() else []


def flags_of(text: str) -> int:
    """`WN`, `-` or a number."""
    if text.startswith("0x"):
        return number(text)
    return sum(LETTERS[letter] for letter in text if letter != "-")


class Bench:
    """One row's queue and what was done with it."""

    def __init__(self, row: dict[str, str], packed: bool) -> None:
        self.packed = packed
        features = sum(1 << Feature[name] for name in row["features"].split()) | (PACKED if packed else 0)
        self.rig = Rig(number(row["n"]), features)
        self.names: dict[str, int] = {}  # %a and its like
        self.chains: dict[int, Chain] = {}
        self.heads: list[int] = []  # by token
        self.driver: AnyDriverQueue | None = None
        self.device: AnyDeviceQueue | None = None
        self.notified: bool | None = None
        self.last: Chain | None = None
        self.once = "notify once" in row["operation"]
        before = items(row["before"])
        self.said = {item.partition("=")[0] for item in before}
        if row["side"] == "driver":
            self.make_driver(before)
        for item in before:
            self.set(item)
        if row["side"] == "device":
            self.make_device()
        self.rig.memory.writes.clear()

    # -- the state that a row starts from ----

    def make_device(self) -> None:
        """The device's end, from where the row says that it stands."""
        position = None
        if self.packed and "avail_pos" in self.names:
            position = self.names["avail_pos"] | self.names.get("used_pos", 0x8000) << 16
        elif "last_avail" in self.names:
            position = self.names["last_avail"]
            if "used.idx" not in self.said:
                self.rig.used_idx = position  # nothing is in flight
        self.device = self.rig.device(position)

    def make_driver(self, before: list[str]) -> None:
        """The driver's end: buffers come and go until it stands where the row says; then those of the row."""
        start = 0
        values = dict(item.split("=", 1) for item in before if "=" in item)
        if self.packed and "avail_pos" in values:
            assert values["avail_pos"] == values["used_pos"]
            slot, wrap = map(number, values["used_pos"].split("/"))
            start = slot + (0 if wrap else self.rig.size)
        elif "last_used" in values:
            start = number(values["last_used"])
        elif any(item.startswith("after 3 single") for item in before):
            start = 3
        walked = self.packed or ("outstanding" not in values and start < self.rig.size)
        driver = self.driver = self.rig.driver(0 if walked else start)
        if walked:
            self.come_and_go(driver, start)
        assert driver._next == start
        outstanding, _, words = values.get("outstanding", "").partition(" ")
        for part in items(outstanding, ","):
            name, size = part.split(":")
            room = [Segment(0x11000, number(size))]
            head = driver.add([Segment(0x10000, 16)] if "2 descriptors" in words else [], room, len(self.heads))
            self.heads.append(head)
            if name.startswith("%"):
                self.names[name] = head
            else:
                assert head == number(name)
        driver.publish()

    def come_and_go(self, driver: AnyDriverQueue, times: int) -> None:
        """Single buffers through a device's end."""
        device = self.rig.device()
        for _ in range(times):
            driver.add([Segment(0x10000, 1)], [], None)
            driver.publish()
            chain = device.pop()
            assert chain is not None
            device.push(chain, 0)
            device.publish()
            assert driver.take() is not None

    def set(self, item: str) -> None:
        """`name=value`, in memory; what is not in memory is remembered."""
        rig = self.rig
        name, _, value = item.partition("=")
        if match := re.fullmatch(r"d(\d+)|t@(\w+)\[(\d+)\]", name):
            index, table = int(match[1] or match[3]), number(match[2]) if match[2] else DESCRIPTORS
            address, size, third, fourth = value.split("/")
            if self.packed:
                identity = self.names[third] if third in self.names else number(third)
                where, length = (number(each.replace("*", "0")) for each in (address, size))
                rig.describe(index, where, length, identity, flags_of(fourth), table)
            else:
                rig.describe(index, number(address), number(size), flags_of(third), number(fourth), table)
        elif match := re.fullmatch(r"(avail|used)\[(\d+)\]", name):
            slot = int(match[2])
            if match[1] == "avail":
                rig.put16(DRIVER + 4 + 2 * slot, number(value))
            else:
                struct.pack_into("<II", rig.bytes, DEVICE + 4 + 8 * slot, *map(number, value.split("/")))
        elif name in ("driver_event", "device_event"):
            offset, wrap, kind = value.split("/")
            setattr(rig, name, (number(offset), number(wrap), EVENTS[kind]))
        elif name in ("avail_pos", "used_pos"):
            where, wrap_counter = map(number, value.split("/"))
            self.names[name] = where | wrap_counter << 15
        elif name in ("last_avail", "last_used"):
            self.names[name] = number(value)
        elif not name.startswith(("outstanding", "after ")):
            assert hasattr(rig, name.replace(".", "_")), item
            setattr(rig, name.replace(".", "_"), number(value))

    # -- steps ----

    def step(self, text: str) -> str:
        """Do one step; the result in the words of the table."""
        operation, *arguments = text.split()
        try:
            return getattr(self, operation)(*arguments) or ""
        except QueueBroken:
            return "broken"
        except QueueFull:
            return "full"

    def pop(self) -> str:
        assert self.device is not None
        chain = self.device.pop()
        if chain is None:
            return "empty"
        self.chains[chain.head] = self.last = chain
        return f"chain={chain.head:#x} r[{worded(chain.readable)}] w[{worded(chain.writable)}]"

    def read(self) -> None:
        assert self.last is not None or self.device is not None
        if self.last is None:
            raise QueueBroken("popped nothing")
        gather(self.rig.memory, self.last.readable)

    def push(self, identity: str, written: str) -> None:
        assert self.device is not None
        self.device.push(self.chains[number(identity)], number(written))
        if not self.once:
            self.notified = self.device.publish()

    def push_batch(self, last: str, written: str, count: str) -> None:
        assert self.device is not None
        batch = list(self.chains.values())[: number(count)]
        assert batch[-1].head == number(last)
        for chain in batch:
            self.device.push(chain, number(written))
        self.notified = self.device.publish()

    def add(self, readable: str, writable: str) -> None:
        assert self.driver is not None
        self.driver.add(unworded(readable), unworded(writable), None)
        if not self.once:
            self.notified = self.driver.publish()

    def notify(self, once: str) -> None:
        assert once == "once"
        end = self.driver or self.device
        assert end is not None
        self.notified = end.publish()

    def reap(self) -> str:
        assert self.driver is not None
        used = self.driver.take()
        if used is None:
            return "empty"
        assert isinstance(used.token, int)
        return f"used={self.heads[used.token]} len={used.written}"

    def enable_kicks(self) -> None:
        assert self.device is not None
        self.device.want_notifications(True)

    def disable_kicks(self) -> None:
        assert self.device is not None
        self.device.want_notifications(False)

    def enable_interrupts(self) -> None:
        assert self.driver is not None
        self.driver.want_interrupts(True)

    def disable_interrupts(self) -> None:
        assert self.driver is not None
        self.driver.want_interrupts(False)

    def state(self) -> None:
        """Nothing: the row says what must hold now."""

    def reset(self) -> None:
        self.device = self.rig.device()

    # -- what must hold ----

    def holds(self, item: str) -> bool:
        """Whether one item about memory or notifications holds now."""
        rig = self.rig
        if match := re.fullmatch(r"(%\w)!=(%\w)", item):
            return self.names[match[1]] != self.names[match[2]]
        name, _, value = item.partition("=")
        if name == "notify":
            return self.notified is (value == "yes")
        if name == "last_write":
            return rig.memory.writes[-1:] == [(self.place(value), 2)]
        if name in ("avail_pos", "used_pos"):
            return self.position(name) == tuple(map(number, value.split("/")))
        if match := re.fullmatch(r"d(\d+)|(%\w)", name):
            index = (
                int(match[1]) if match[1] else self.names.setdefault(match[2], rig.head((rig.avail_idx - 1) % rig.size))
            )
            return all(
                map(
                    self.same,
                    rig.descriptor(index),
                    value.split("/"),
                    ("", "", "n", "f") if self.packed else ("", "", "f", "n"),
                )
            )
        if match := re.fullmatch(r"used\[(\d+)\]", name):
            return all(map(self.same, rig.used(int(match[1])), value.split("/")))
        if match := re.fullmatch(r"avail\[(\d+)\]", name):
            return self.same(rig.head(int(match[1])), value)
        if name in ("driver_event", "device_event"):
            return all(map(self.same, getattr(rig, name), value.split("/")))
        return self.same(getattr(rig, name.replace(".", "_")), value)

    def same(self, found: int, text: str, kind: str = "") -> bool:
        if text == "*":
            return True
        if text.startswith("%"):
            return self.names.setdefault(text, found) == found
        if kind == "f":
            return found == flags_of(text)
        return found == EVENTS.get(text, -1) if text in EVENTS else found == number(text)

    def place(self, name: str) -> int:
        """Where a field lies."""
        if name == "avail.idx":
            return DRIVER + 2
        assert name == "d0.flags"
        return DESCRIPTORS + 14

    def position(self, name: str) -> tuple[int, int]:
        end = self.driver or self.device
        assert isinstance(end, PackedDriver | PackedDevice)
        made = (name == "avail_pos") is (end is self.driver)
        value = off_wrap(end._made if made else end._next, end.size)
        return value & 0x7FFF, value >> 15


def worded(pieces: tuple[Segment, ...]) -> str:
    return ",".join(f"{address:#x}+{size}" for address, size in pieces)


def unworded(text: str) -> list[Segment]:
    """`r[0x10000+16,0x12000+512]` as segments."""
    pieces = re.findall(r"(0x[0-9a-f]+)\+(\w+)", text)
    return [Segment(number(address), number(size)) for address, size in pieces]


def alternatives(text: str) -> list[str]:
    """`notify=no|yes` and `a=1|a=2` as a list of whole items."""
    name = text.partition("=")[0]
    return [each if "=" in each else f"{name}={each}" for each in text.split("|")]


RESULT: Final = re.compile(r"(chain=|used=\S+ len=|empty|broken|full|\*).*|")
HAS_RESULT: Final = ("pop", "reap", "read", "set", "reset")


def matches(result: str, pattern: str, names: dict[str, int]) -> bool:
    """A step's result against one alternative of the table's."""
    if pattern == "*":
        return True
    pattern = re.sub(r"chain=(\w+)", lambda match: f"chain={number(match[1]):#x}", pattern)
    pattern = re.sub(r"%\w", lambda match: str(names[match[0]]), pattern)
    return re.fullmatch(re.escape(pattern).replace(r"len=\*", r"len=\d+"), result) is not None


def run(row: dict[str, str], packed: bool) -> None:
    """All steps of a row, with what must hold after each."""
    bench = Bench(row, packed)
    expected = items(row["expect"])
    for step in items(row["operation"]):
        if step.startswith("set "):
            bench.set(step.removeprefix("set "))
            result = ""
        else:
            result = bench.step(step)
        if expected and RESULT.fullmatch(expected[0]) and "=*" not in expected[0].split(" ")[0]:
            expectation = expected.pop(0)
            assert any(matches(result, each, bench.names) for each in expectation.split("|")), (step, result)
        else:
            assert not step.startswith(HAS_RESULT), step
            assert result == "", (step, result)
        while expected and not RESULT.fullmatch(expected[0]):
            if not any(map(bench.holds, alternatives(expected[0]))):
                break  # it may speak of the next step
            expected.pop(0)
    assert not expected


def rule(row: dict[str, str], packed: bool) -> None:
    """Rows about a formula or a layout, without a queue."""
    values = dict(item.split("=", 1) for item in items(row["before"]))
    match row["operation"]:
        case "need_event":
            event, new, old = (number(values[name]) for name in ("event", "new", "old"))
            assert need_event(event, new, old) is (row["expect"] == "yes")
        case "notification_data":
            rig = Rig(32768 if packed else 4, (PACKED if packed else 0) | 1 << Feature.NOTIFICATION_DATA)
            queue = rig.driver()
            if packed:
                slot, wrap = map(number, values["next"].split("/"))
                queue._shown = slot + (0 if wrap else 32768)
            else:
                queue._shown = number(values["avail.idx"])
            index = number(values["queue"])
            assert notification(index, queue, rig.features) == number(row["expect"])
            assert notification(index, queue, rig.features & ~(1 << Feature.NOTIFICATION_DATA)) == index
        case "vring_base":
            rig = Rig(8, PACKED)
            base = number(row["expect"])
            device = rig.device()
            assert isinstance(device, PackedDevice)
            for name, attribute in (("avail_pos", "_next"), ("used_pos", "_shown")):
                slot, wrap = map(number, values[name].split("/"))
                setattr(device, attribute, slot + (0 if wrap else 8))
            assert device.position == base
            assert [position_of(half, 8) for half in (base & 0xFFFF, base >> 16)] == [device._next, device._shown]
        case "bytes":
            offset, counter, kind = values["event"].split("/")
            size = 32768
            rig = Rig(size, PACKED | 1 << Feature.RING_EVENT_IDX)
            rig.layout = rig.layout._replace(driver=0x90000, device=0x90004)
            device = rig.device()
            if kind == "DESC":
                device._next = number(offset) + (0 if number(counter) else size)
                device.want_notifications(True)
            else:
                device._event_idx = False
                device.want_notifications(False)
                if kind == "ENABLE":
                    device.want_notifications(True)
            assert rig.bytes[0x90004:0x90008].hex() == row["expect"]
        case _:
            pytest.fail(f"what is {row['operation']}?")


RUNNERS: Final[dict[str, Callable[[dict[str, str], bool], None]]] = {"device": run, "driver": run, "rule": rule}


@pytest.mark.parametrize("row", SPLIT_ROWS, ids=lambda row: row["case"])
def test_split(row: dict[str, str]) -> None:
    """A row of virtio_split.csv (VIRTIO 2.7)."""
    RUNNERS[row["side"]](row, False)


@pytest.mark.parametrize("row", PACKED_ROWS, ids=lambda row: row["case"])
def test_packed(row: dict[str, str]) -> None:
    """A row of virtio_packed.csv (VIRTIO 2.8)."""
    RUNNERS[row["side"]](row, True)


def test_the_tables_speak_of_both_ends() -> None:
    """Neither file lost a side."""
    for table in (SPLIT_ROWS, PACKED_ROWS):
        assert {row["side"] for row in table} == {"device", "driver", "rule"}
        assert len(table) > 100
    assert isinstance(Rig().driver(), SplitDriver) and isinstance(Rig().device(), SplitDevice)
