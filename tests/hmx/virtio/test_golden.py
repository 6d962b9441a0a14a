"""Control state, registers, messages and layouts against the golden tables (tests/golden/virtio.md has their columns).

Rings are held by test_queue_golden.py, what block and socket devices do by the tests of their models; here are their
features, layouts, packets and credit.
"""

from __future__ import annotations

import re
from itertools import product
from types import ModuleType

import pytest

from hmx.virtio import blk, console, features, iommu, msg, msg_payloads, net, rng, vsock
from hmx.virtio.control import Complaint, DeviceControl, Effects
from hmx.virtio.device_types import TYPES, feature_rows
from hmx.virtio.features import Feature, FeatureRow, Kind
from hmx.virtio.ids import DeviceId
from hmx.virtio.layout import LayoutError
from hmx.virtio.mmio import REGISTERS, MmioRegisters
from hmx.virtio.msg import MessageError
from hmx.virtio.msg_device import MsgBus, MsgDevice
from hmx.virtio.rings import Field
from tests.golden import number, rows

Row = dict[str, str]
MODULES: dict[str, ModuleType] = {
    "blk": blk, "net": net, "console": console, "rng": rng, "vsock": vsock, "iommu": iommu,
}  # fmt: skip
DESCRIBED = {"descriptors": 0x10000, "driver": 0x20000, "device": 0x30000}


def cases(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row["case"]) for row in rows(name)])


def steps(text: str) -> list[str]:
    return [step.strip() for step in text.split(";")]


def bits(text: str, device: str = "") -> int:
    """Names of features, or `bitN`."""
    known = {row.name: int(row.bit) for row in feature_rows(DeviceId[device.upper()] if device else 0)}
    return sum(1 << (int(name[3:]) if re.fullmatch(r"bit\d+", name) else known[name]) for name in text.split())


# -- features ----


def by_name(device: str) -> dict[str, FeatureRow]:
    return {row.name: row for row in (MODULES[device].FEATURES if device else features.FEATURES)}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["device"] + row["name"]) for row in rows("virtio_features.csv")]
)
def test_features(row: Row) -> None:
    """Number, who may see it, and for every choice of its partners whether it may stand there."""
    known = by_name(row["device"])
    ours = known[row["name"]]
    assert int(ours.bit) == int(row["bit"])
    hidden = {"legacy": {Kind.LEGACY}, "vhost": {Kind.HOST}, "pci": {Kind.PCI}}
    visible = {Kind.QUEUE, Kind.NEGOTIATION, Kind.DEVICE}
    assert ours.kind in hidden.get(row["scope"], visible)
    partners = re.findall(r"\w+", row["needs"])
    for chosen in product((False, True), repeat=len(partners)):
        has = dict(zip(partners, chosen, strict=True))
        value = 1 << ours.bit | sum(1 << known[name].bit for name in partners if has[name])
        allowed = not partners or bool(eval(row["needs"], {}, has))  # & and | of truth values
        when = row["needs_when"]
        assert (features.unmet(value, [ours], offer=True) is None) == (allowed or when not in ("both", "offer"))
        assert (features.unmet(value, [ours]) is None) == (allowed or when != "both")


def test_there_are_no_other_features() -> None:
    """Everything that we have stands in the golden table."""
    golden = {(row["device"], row["name"]) for row in rows("virtio_features.csv")}
    assert {(device, name) for device in ("", *MODULES) for name in by_name(device)} == golden
    assert len(TYPES) == len(MODULES)


# -- a device and its owner ----


class Owner:
    """A device, and the least that an owner does: it pops what is available and completes it unless it is `slow`."""

    def __init__(self, device: str, offered: int, config: bytes, sizes: tuple[int, ...], writable: range) -> None:
        self.device_id = int(DeviceId[device.upper()])
        self.features = offered
        self.queue_sizes = sizes
        self.space = bytearray(config)
        self.writable = writable
        self.available = self.inflight = self.looks = 0
        self.slow = False
        self.kicks: list[tuple[int, int]] = []
        self.notices: list[str] = []
        self.log: list[str] = []
        self.ready: set[int] = set()
        self.control = DeviceControl(
            self, 0,
            Effects(
                on_run=self.on_run, on_reset=self.reset, on_kick=self.kicked,
                on_queue=self.on_queue, on_queue_reset=lambda index: self.ready.discard(index),
                on_suspend=lambda: not self.inflight,
                notify_driver=lambda queue: self.notices.append("config" if queue is None else "used"),
            ),
            0x554D4551,
        )  # fmt: skip

    def config(self) -> bytes:
        return bytes(self.space)

    def write_config(self, offset: int, data: bytes) -> bool:
        if not set(range(offset, offset + len(data))) <= set(self.writable):
            return False
        self.space[offset : offset + len(data)] = data
        return True

    def on_run(self, running: bool) -> None:
        if running:
            self.look()

    def on_queue(self, index: int, ready: bool) -> None:
        (self.ready.add if ready else self.ready.discard)(index)
        if ready and self.control.running:
            self.look()

    def reset(self) -> None:
        self.log.append("reset")
        self.inflight = 0
        self.ready.clear()

    def kicked(self, index: int, data: int) -> None:
        self.kicks.append((index, data))
        self.look()

    def look(self) -> None:
        self.looks += 1
        while self.available and 0 in self.ready:
            self.available -= 1
            self.inflight += 1
            if not self.slow:
                self.used()

    def used(self) -> None:
        self.inflight -= 1
        self.control.used(0)
        if not self.inflight:
            self.control.drained()

    def do(self, what: str) -> None:
        """`needs_reset`, `config_change`, `used`."""
        match what.split()[0]:
            case "needs_reset":
                self.control.needs_reset("the test")
            case "config_change":
                self.space[0] ^= 0xFF
                self.control.config_changed()
            case "used":
                self.control.used(0)
            case other:
                raise AssertionError(other)

    def accept(self, accepted: int) -> None:
        for block in range(5):
            self.control.set_driver_features(block, features.window(accepted, block))

    def bring_to(self, status: int, accepted: int, queue: dict[str, int] | None = None) -> None:
        """The ordinary sequence up to a status."""
        control = self.control
        for value in (0x1, 0x3, 0xB):
            if value & status & ~0xC0 == value:
                if value == 0xB:
                    self.accept(accepted)
                control.write_status(value)
        if status & 0xB == 0x3:
            self.accept(accepted)
        if status & 8:
            size = min(8, control.queues[0].max_size)
            if queue is not None:
                control.configure_queue(0, **{"size": size, **DESCRIBED, **queue})
                assert control.enable_queue(0) is None
        if status & 4 or status & 16:
            control.write_status(0xF)
        if status & 16:
            control.write_status(0x1F)
        if status & 64:
            control.needs_reset("the test")
        if status & 128:
            control.write_status(status)
        assert control.status == status
        self.notices.clear()
        self.log.clear()
        self.looks = 0


# -- status ----


def status_owner(row: Row) -> Owner:
    """The device of a row in the state that its `before` describes."""
    owner = Owner(row["device"], bits(row["offered"], row["device"]), bytes(96), (8,), range(0))
    accepted = bits(row["accepted"], row["device"])
    status, _, more = row["before"].partition(" ")
    said = dict(item.split("=") for item in more.split() if "=" in item)
    owner.slow = "inflight" in said
    target = int(status, 0)
    if target & 16 and owner.slow:  # suspended while something was in flight
        owner.bring_to(0xF, accepted, {})
        owner.available = int(said["inflight"])
        owner.look()
        owner.control.write_status(target)
        assert owner.control.status == target
    elif more == "after a refused 0xb":
        owner.control.write_status(3)
        owner.accept(1 << 200)
        assert owner.control.write_status(0xB) == 3
        owner.accept(accepted)
    elif more.startswith("after reset of "):
        owner.bring_to(0xF, accepted, {})
        owner.control.write_status(0)
        owner.bring_to(target, accepted)
    elif more.startswith("after clearing "):
        owner.bring_to(0xF, accepted, {})
        owner.control.write_status(target)
    else:
        owner.bring_to(target, accepted, {})
        if owner.slow:
            owner.available = int(said["inflight"])
            owner.look()
    owner.available = int(said.get("avail", "0"))
    if said.get("held") == "config":
        owner.control.config_changed()
    owner.notices.clear()
    owner.control.complaints.clear()
    owner.looks = 0
    return owner


@cases("virtio_status.csv")
def test_status(row: Row) -> None:
    """Each event in each state: the status then, what the driver gets, what else holds."""
    owner = status_owner(row)
    control = owner.control
    registers = MmioRegisters(control, lambda _: None)
    if "isr=1" in row["before"]:
        registers.interrupt_status = 1
    control.notify_driver = lambda queue: owner.notices.append("config" if queue is None else "used")
    generation, waiting, flying = control.config_generation(), owner.available, owner.inflight
    what, _, argument = row["event"].partition(" ")
    match what:
        case "write":
            control.write_status(int(argument, 0))
        case "accept":
            owner.accept(bits(argument, row["device"]))
        case "kick":
            control.kick(0)
        case "device":
            owner.used() if argument == "used" else owner.do(argument)
        case _:
            assert what == "read"
    assert control.status in [int(value, 0) for value in row["after"].split("|")]
    wanted = [[] if value == "none" else [value] for value in row["notify"].split("|")]
    assert owner.notices in wanted
    for effect in row["effect"].split():
        name, _, value = effect.partition("=")
        match name:
            case "features":
                expected = {"kept": bits(row["accepted"], row["device"]), "forgotten": 0}
                assert control.negotiated == expected.get(value, bits(value, row["device"]) if value.isupper() else 0)
                if value == "forgotten":
                    assert control.accepted == 0
            case "queues":
                assert not any(queue.ready for queue in control.queues)
            case "isr":
                assert registers.interrupt_status == 0
            case "no_used":
                control.used(0)
                assert owner.notices == []
            case "inflight":
                assert owner.inflight == int(value)
            case "look":
                assert owner.looks == 1
            case "consume":
                assert waiting and not owner.available
            case "no_consume":
                control.kick(0)
                assert (owner.available, owner.inflight) == (waiting, flying)
            case "log":
                assert control.complaints[Complaint.CLEARED_STATUS] == 1
            case "generation":
                assert control.config_generation() != generation
            case "held" if value == "config":
                assert control.write_status(0x1F) == 0xF and owner.notices == ["config"]
            case "held":
                owner.bring_to(0xF, bits(row["accepted"], row["device"]), {})
                assert owner.notices == []
            case "rings":
                assert not owner.ready and owner.log == ["reset"]
            case "config.writeback":
                pass  # the model's: tests/guest_node/virtio/models
            case _:
                raise AssertionError(effect)


# -- virtio-mmio ----


class Mmio:
    """The device of virtio_mmio.csv."""

    def __init__(self, placeholder: bool) -> None:
        offered = sum(1 << bit for bit in (9, 11, 28, 32, 40, 70))
        self.owner = Owner("none" if placeholder else "blk", offered, bytes(range(96)), (256, 64), range(32, 33))
        self.levels = [False]
        self.registers = MmioRegisters(self.owner.control, self.levels.append)

    def step(self, text: str, offset: int) -> int | None:
        """One step; what it reads."""
        if text.startswith("device"):
            self.owner.do(text.removeprefix("device "))
            return None
        at = re.fullmatch(r"(0x[0-9a-f]+)\s*=\s*(\w+)", text)
        if at:
            self.registers.store(int(at[1], 0), 4, int(at[2], 0))
            return None
        words = text.split()
        if words[0].startswith("0x"):
            offset = int(words.pop(0), 0)
        match words:
            case ["irq"]:
                return int(self.levels[-1])
            case ["read", size]:
                return self.registers.load(offset, int(size))
            case ["write", size, value]:
                self.registers.store(offset, int(size), int(value, 0))
                return None
        raise AssertionError(text)


def good(found: int | None, expected: str, mmio: Mmio) -> bool:
    """Whether one step's cell is met."""
    for each in expected.split("|"):
        match each.strip():
            case "" | "tolerated" | "memory untouched":
                return True
            case "status&0x40":
                if mmio.owner.control.status & 0x40:
                    return True
            case value:
                if found == int(value, 0):
                    return True
    return False


@cases("virtio_mmio.csv")
def test_mmio(row: Row) -> None:
    """The map, and what accesses do."""
    mmio = Mmio(row["setup"] == "placeholder")
    offset = int(row["offset"], 0)
    if not row["access"]:
        (ours,) = (each for each in REGISTERS if each.offset == offset)
        assert (ours.name, ours.access) == (row["name"], row["direction"])
        assert max(size for size in ours.sizes if size <= 4) == int(row["width"].split("/")[-1])
        if row["reset"].startswith("window"):
            assert mmio.registers.load(offset, 4) == features.window(mmio.owner.control.offered, 0)
        elif row["reset"] not in ("", "any"):
            assert mmio.registers.load(offset, 4) == int(row["reset"], 0)
        return
    if row["setup"] not in ("", "placeholder"):
        for step in steps(row["setup"]):
            mmio.step(step, offset)
    found = [mmio.step(step, offset) for step in steps(row["access"])]
    if row["expect"] in ("same", "different"):
        first, second = (value for value in found if value is not None)
        assert (first == second) == (row["expect"] == "same")
        return
    expected = steps(row["expect"])
    if len(expected) < len(found):  # some rows leave out the cells of writes
        found = [value for value in found if value is not None]
    for value, cell in zip(found, expected, strict=False):
        assert value is None or good(value, cell, mmio), (found, expected)


# -- virtio-msg ----


class Bus:
    """Device M of virtio_msg.csv, and its bus."""

    def __init__(self, row: Row) -> None:
        self.sent: list[bytes] = []
        config = bytearray(96)
        config[:2], config[32] = b"\x34\x12", 1
        offered = bits("FLUSH VERSION_1", "blk")
        extra = 0
        if row["case"] in NEEDS_RING_RESET:
            extra = 1 << Feature.RING_RESET
        if "NOTIFICATION_DATA" in row["state"]:
            extra |= 1 << Feature.NOTIFICATION_DATA
        self.owner = Owner("blk", offered | extra, bytes(config), (256,), range(32, 33))
        self.control = self.owner.control
        self.device = MsgDevice(self.control, 5, self.sent.append, max_message=264)
        numbers = [5]
        state = row["state"]
        if state.startswith("bus"):
            listed = re.search(r"devices=([\d,]*)", state)
            numbers = [5] if listed is None else [int(each) for each in listed[1].split(",") if each]
        else:
            self.set_up(state, extra)
        self.bus = MsgBus(dict.fromkeys(numbers), self.sent.append, max_message=264)
        self.sent.clear()

    def set_up(self, state: str, extra: int) -> None:
        said = re.search(r"accepted=([A-Z_0-9a-z ]*)", state)
        accepted = bits(said[1], "blk") if said else bits("FLUSH VERSION_1", "blk") | extra
        queue = None
        described = re.search(r"vqueue 0 size=8( desc=(\w+) driver=(\w+) device=(\w+))?", state)
        if described:
            queue = dict(DESCRIBED)
            if described[1]:
                names = ("descriptors", "driver", "device")
                queue = {name: int(described[at], 0) for at, name in enumerate(names, 2)}
        if "after reset" in state:
            self.owner.bring_to(0xF, accepted, queue)
            self.control.write_status(0)
        elif not state.startswith("0x3 accepted"):
            self.owner.bring_to(int(state.split()[0], 0), accepted if not state.startswith("0x3") else 0, queue)
        else:
            self.owner.bring_to(3, accepted)
        if not self.control.negotiated and not said:
            self.owner.accept(0)
        self.control.config_generation()
        self.control.generation = 3

    def answer(self, data: bytes) -> bytes | None:
        """What a bus with this device says to these bytes."""
        try:
            message = msg.unpack_message(data)
        except MessageError:
            return None
        if message.bus:
            return self.bus.handle(message)
        if message.dev_num != 5:
            return msg.pack_error(message, msg.Reason.NO_DEVICE)
        return self.device.handle(message)


# RESET_VQUEUE is for those who negotiated RING_RESET (VIRTIO 1.4, 2.6.1; the later draft says so of the message too):
# the golden row's device does not offer it.
NEEDS_RING_RESET = {"reset_vqueue"}


def matches(found: bytes | None, expected: str) -> bool:
    """Whether an answer is one of those that a row has."""
    for each in expected.split("|"):
        if each == "none":
            if found is None:
                return True
        elif each == "error":
            if found is None or found[1] == msg.MsgId.ERROR:
                return True
        elif found is not None and re.fullmatch(each.replace(" ", "").replace("?", "."), found.hex()):
            return True
    return False


@cases("virtio_msg.csv")
def test_msg(row: Row) -> None:
    """Each message in each state: the answer, and what then holds."""
    bus = Bus(row)
    owner, control = bus.owner, bus.control
    before = control.accepted
    request = row["request"]
    if request.startswith("device "):
        owner.do(request.removeprefix("device "))
        (found,) = bus.sent
    elif request.startswith(("plug", "unplug")):
        verb, dev_num = request.split()
        bus.bus.announce(int(dev_num), msg.DeviceState.READY if verb == "plug" else msg.DeviceState.REMOVED)
        (found,) = bus.sent
    else:
        found = bus.answer(bytes.fromhex(request))  # type: ignore[assignment]
    assert matches(found, row["response"]), found and found.hex(" ", 4)
    check_msg_effect(row["effect"], bus, before)


def check_msg_effect(effect: str, bus: Bus, before: int) -> None:
    """The cell `effect`."""
    control, owner = bus.control, bus.owner
    if not effect:
        return
    if found := re.fullmatch(r"accepted=(.*)", effect):
        assert control.accepted == (before if found[1] == "unchanged" else bits(found[1], "blk"))
    elif found := re.fullmatch(r"config\[(\d+)\]=(\w+)", effect):
        assert owner.space[int(found[1])] == int(found[2], 16)
    elif found := re.fullmatch(r"status=(\w+)", effect):
        assert control.status == int(found[1], 0)
    elif found := re.fullmatch(r"vqueue (\d) size=0", effect):
        queue = control.queue(int(found[1]))
        assert queue is None or not queue.ready
    elif found := re.fullmatch(r"vqueue 0 size=8 desc=(\w+) driver=(\w+) device=(\w+)", effect):
        assert control.queues[0].ready
        assert control.queues[0].layout() == (8, *(int(value, 0) for value in found.groups()))
    elif found := re.fullmatch(r"kick (\d)(?: next=(\d+)/(\d))?", effect):
        data = int(found[2]) | int(found[3]) << 15 if found[2] else 0
        assert owner.kicks == [(int(found[1]), data)]
    elif effect == "no_consume":
        assert owner.kicks == []
    else:
        assert effect == "reset" and owner.log == ["reset"]


# -- layouts ----


def of_struct(format_: str, names: tuple[str, ...], base: int = 0) -> tuple[Field, ...]:
    """The fields of a message's layout."""
    sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
    found, at = [], base
    for name, code in zip(names, format_.lstrip("<"), strict=False):
        found.append(Field(name, at, sizes[code]))
        at += sizes[code]
    return tuple(found)


def body(kind: iommu.IommuType) -> tuple[tuple[Field, ...], int]:
    """A request of an IOMMU, counted from its first byte."""
    (row,) = (row for row in iommu.REQUESTS if row.type is kind)
    head = Field("head", 0, iommu.HEAD_SIZE)
    return (head, *(field._replace(offset=field.offset + head.size) for field in row.fields)), head.size + row.size


HEADER = of_struct(msg.PR28.header, ("type", "msg_id", "dev_num", "token", "msg_size"))
INFO = msg.row(msg.MsgId.GET_DEVICE_INFO).response
SETUP = msg.row(msg.MsgId.SET_VQUEUE).request
assert INFO is not None
STRUCTURES: dict[str, tuple[tuple[Field, ...], int]] = {
    "blk_config": (blk.CONFIG_FIELDS, len(blk.BlkConfig(1).pack())),
    "blk_request_header": (blk.HEADER_FIELDS, blk.REQUEST_HEADER.size),
    "blk_segment": (blk.SEGMENT_FIELDS, blk.SEGMENT.size),
    "blk_lifetime": (blk.LIFETIME_FIELDS, blk.LIFETIME.size),
    "blk_id": ((), blk.ID_SIZE),
    "net_config": (net.CONFIG_FIELDS, len(net.NetConfig(bytes(6)).pack())),
    "net_header": (net.HEADER_FIELDS, len(net.NetHeader().pack())),
    "net_header_hash": ((), net.header_size(1 << net.NetFeature.HASH_REPORT)),
    "net_header_tunnel": ((), net.header_size(1 << net.NetFeature.HOST_UDP_TUNNEL_GSO)),
    "net_ctrl": ((Field("class", 0, 1), Field("cmd", 1, 1)), len(net.NetControl(1, 2).pack())),
    "net_rx_buffer_minimum": ((), net.rx_least(0)),
    "net_rx_buffer_minimum_tso": ((), net.rx_least(1 << net.NetFeature.GUEST_TSO4)),
    "console_config": (console.CONFIG_FIELDS, len(console.ConsoleConfig().pack())),
    "console_control": (console.CONTROL_FIELDS, len(console.Control(0, 0, 0).pack())),
    "console_resize": (console.SIZE_FIELDS, len(console.resize(0, 1, 1).rest)),
    "vsock_config": (vsock.CONFIG_FIELDS, len(vsock.VsockConfig(3).pack())),
    "vsock_event": (vsock.EVENT_FIELDS, vsock.EVENT.size),
    "vsock_header": (vsock.HEADER_FIELDS, vsock.HEADER.size),
    "iommu_config": (iommu.CONFIG_FIELDS, len(iommu.IommuConfig(1).pack())),
    "iommu_head": (iommu.HEAD_FIELDS, iommu.HEAD_SIZE),
    "iommu_tail": (iommu.TAIL_FIELDS, len(iommu.pack_tail(iommu.IommuStatus.OK))),
    "iommu_attach": body(iommu.IommuType.ATTACH),
    "iommu_detach": body(iommu.IommuType.DETACH),
    "iommu_map": body(iommu.IommuType.MAP),
    "iommu_unmap": body(iommu.IommuType.UNMAP),
    "iommu_probe": body(iommu.IommuType.PROBE),
    "iommu_fault": (iommu.FAULT_FIELDS, len(iommu.Fault(0, 0, 0, 0).pack())),
    "msg_header": (HEADER, msg.PR28.header_size),
    "msg_device_info": (of_struct(INFO.format, msg_payloads.DeviceInfo._fields, 8), 8 + INFO.fixed),
    "msg_vqueue": (of_struct(SETUP.format, msg_payloads.QueueSetup._fields, 8), 8 + SETUP.fixed),
}
RENAMED = {
    "feature_bits": "num_feature_bits", "admin_start": "admin_vq_start", "admin_count": "admin_vq_count",
    "queue": "index", "reserved": "max_size", "reserved2": "reserved", "descriptors": "desc",
    "input_start": "input_range.start", "input_end": "input_range.end", "domain_start": "domain_range.start",
    "domain_end": "domain_range.end",
}  # fmt: skip
RENAMED_IN = ("msg_device_info", "msg_vqueue", "iommu_config")
# What no device here offers, and so has no code: the fields that HASH_REPORT and the tunnels add to a packet's header.
NOT_OURS = {"net_header_hash", "net_header_tunnel"}
QUEUES = ("split_", "packed_", "notification_data")


@pytest.mark.parametrize("name", sorted({row["struct"] for row in rows("virtio_layouts.csv")}))
def test_layouts(name: str) -> None:
    """Every field of every structure, and its size; only padding is not named here."""
    if name.startswith(QUEUES):
        return
    golden = [row for row in rows("virtio_layouts.csv") if row["struct"] == name]
    fields, size = STRUCTURES[name]
    ours = {(RENAMED.get(f.name, f.name) if name in RENAMED_IN else f.name): (f.offset, f.size) for f in fields}
    for row in golden:
        place = (number(row["offset"]), number(row["size"]))
        if row["field"] == "(size)":
            assert size == place[1]
        elif not row["field"].startswith(("unused", "reserved")) or row["field"] in ours:
            assert name in NOT_OURS or ours.pop(row["field"]) == place, row["field"]
    assert not ours


# -- sockets ----


def packet(text: str) -> vsock.VsockHeader:
    """A packet in words."""
    said = dict(item.split("=") for item in text.split())
    source, destination = (
        said.get(name, default).split(":") for name, default in (("src", "42:1000"), ("dst", "2:1234"))
    )
    return vsock.VsockHeader(
        int(source[0]), int(destination[0]), int(source[1]), int(destination[1]), int(said.get("len", "0"), 0),
        int(said.get("type", "1"), 0), int(vsock.Op[said["op"]]), int(said.get("flags", "0"), 0),
        int(said.get("buf_alloc", "0"), 0), int(said.get("fwd_cnt", "0"), 0),
    )  # fmt: skip


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["case"]) for row in rows("virtio_vsock.csv") if row["kind"] != "sequence"]
)
def test_vsock(row: Row) -> None:
    """Packets and events as bytes, credit, CIDs that a guest may have."""
    said = dict(item.split("=") for item in (row["state"] or row["input"]).split())
    match row["kind"]:
        case "header" if row["input"].startswith("event"):
            assert vsock.EVENT.pack(vsock.VsockEvent[said["event"]]).hex() == row["output"]
        case "header":
            header = packet(row["input"])
            assert header.pack().hex() == row["output"]
            assert vsock.VsockHeader.unpack(bytes.fromhex(row["output"])) == header
        case "credit":
            free = vsock.peer_free(*(int(said[name], 0) for name in ("buf_alloc", "fwd_cnt", "tx_cnt")))
            assert str(free) in row["output"].split("|")
        case _:
            assert row["kind"] == "config"
            try:
                found = "accepted" if vsock.VsockConfig(int(said["guest_cid"], 0)).pack() else ""
            except ValueError:
                found = "refused"
            assert found == row["output"]
            data = int(said["guest_cid"], 0).to_bytes(8, "little")
            if found == "refused":
                with pytest.raises(LayoutError):
                    vsock.VsockConfig.unpack(data)
            else:
                assert vsock.VsockConfig.unpack(data).pack() == data
