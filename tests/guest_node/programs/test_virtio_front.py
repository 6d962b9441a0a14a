"""Front-end programs over a transport without any distance: what they do with a device, and what they say of it.

The devices are those of guest_node/virtio/models; VIRTIO 1.4, section 5.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from guest_node import devices
from guest_node.config import DeviceConfig
from guest_node.guest import Guest, Program
from guest_node.programs import load
from guest_node.programs.ethernet import BROADCAST, Kind, Message, pack, unpack
from guest_node.programs.net_echo import ANSWERS
from guest_node.virtio.model import Model
from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.console import ConsoleModel, echo_console
from guest_node.virtio.models.net import NetModel
from guest_node.virtio.models.rng import RngModel
from guest_node.virtio.models.store import MemoryStore
from guest_node.virtio.models.switch import Switch
from guest_node.virtio.models.vsock import VsockHub, VsockModel
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab
from tests.doubles.virtio_loopback import Loopback

MakeModel = Callable[[Guest], Model]


class Closing(Loopback):
    """A loopback that remembers that it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True
        await self.reset()


def run(
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    models: dict[str, Model],
    arguments: dict[str, Any] | None = None,
    inputs: dict[str, bytes] | None = None,
) -> tuple[int, Guest, Lab]:
    """Run a front end whose guest has one device of each type in `models`; its exit code, the guest, its lab."""
    lab = Lab("app")
    lab.files["app"].inputs.update(inputs or {})
    opened: list[Closing] = []

    async def opening(_guest: Guest, device: DeviceConfig) -> Any:
        opened.append(Closing(models[device.type]))
        return opened[-1]

    monkeypatch.setitem(devices.OPENERS, "virtio-argo", opening)
    target: Program = load(f"builtin:{program}")

    async def main(guest: Guest) -> int | None:
        guest.devices = tuple(DeviceConfig(kind, kind, 0, 7) for kind in models)
        return await target(guest)

    codes = simulate(lambda: lab.run(app=(main, arguments or {}, 0.0)))
    assert all(transport.closed for transport in opened)
    return codes["app"], lab.guests["app"], lab


@pytest.mark.parametrize("queues", [1, 4])
def test_a_disk_is_copied_and_written(monkeypatch: pytest.MonkeyPatch, queues: int) -> None:
    """blk-copy and blk-write with the real driver and model: every byte, and what the report says of it."""
    data = random.Random(8).randbytes(400 * 1024)
    model = BlkModel(MemoryStore(len(data), data), BlkOptions(identity=b"a disk", queues=queues))
    code, guest, lab = run(monkeypatch, "blk-copy", {"blk": model}, {"chunk": "10KiB"})
    assert (code, lab.files["app"].outputs) == (0, {"disk.img": data})
    assert (guest.results["identity"], guest.results["bytes"]) == ("a disk", len(data))
    store = MemoryStore(len(data), data)
    image = random.Random(9).randbytes(300 * 1024)
    code, guest, _ = run(monkeypatch, "blk-write", {"blk": BlkModel(store)}, {"file": "f", "offset": 512}, {"f": image})
    assert (code, guest.results["wrong"]) == (0, 0)
    assert store.pread(0, len(data)) == data[:512] + image + data[512 + len(image) :]


def test_rng_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as were asked for, kept where that was asked for."""
    model = RngModel(random.Random(5).randbytes)
    code, guest, lab = run(monkeypatch, "rng-read", {"rng": model}, {"size": "10KiB", "output": "noise.bin"})
    kept = lab.files["app"].outputs["noise.bin"]
    assert (code, len(kept), model.answered) == (0, 10240, 10240)
    assert guest.results["bytes"] == 10240
    assert guest.results["sha256"] == hashlib.sha256(kept).hexdigest()
    assert 0.48 < guest.results["ones"] < 0.52


class Station:
    """A station on the switch that answers net-pings, but for every `loses`-th frame; `lies` about the bodies."""

    MAC = bytes.fromhex("02aabbccddee")

    def __init__(self, switch: Switch, loses: int = 0, lies: bool = False) -> None:
        self.heard: list[Message] = []
        self._loses = loses
        self._lies = lies
        self._port = switch.attach("station", self._deliver)

    def _deliver(self, frame: bytes | memoryview) -> bool:
        asked = unpack(bytes(frame))
        if asked is not None and asked.kind in ANSWERS:
            self.heard.append(asked)
            if not self._loses or len(self.heard) % self._loses:
                body = bytes(len(asked.body)) if self._lies else asked.body
                answer = pack(Message(asked.source, self.MAC, ANSWERS[asked.kind], asked.number, body))
                asyncio.get_running_loop().call_soon(self._port.send, answer)
        return True


def taken(items: list[Any], item: object) -> bool:
    """Keep it, and say so."""
    items.append(item)
    return True


OURS = bytes.fromhex("026172000001")


def test_net_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a broadcast, then asked by address, each question once; then goodbye."""
    switch = Switch(lambda: 0.0)
    station = Station(switch)
    model = NetModel(switch, OURS)
    code, guest, _ = run(monkeypatch, "net-ping", {"net": model}, {"count": 20, "size": 100})
    found = guest.results
    assert (code, found["count"], found["bytes"], found["wrong"], found["repeated"]) == (0, 20, 4000, 0, 0)
    assert (found["address"], found["peer"]) == ("02:61:72:00:00:01", "02:aa:bb:cc:dd:ee")
    kinds = [(asked.to == BROADCAST, asked.kind, asked.number) for asked in station.heard]
    questions = [(False, Kind.QUESTION, index) for index in range(1, 21)]
    assert kinds == [(True, Kind.QUESTION, 0), *questions, (False, Kind.END, 0)]


def test_net_ping_over_a_bad_cable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is sent again; an answer that is another is counted; nobody at all is given up."""
    switch = Switch(lambda: 0.0)
    Station(switch, loses=3)
    code, guest, _ = run(monkeypatch, "net-ping", {"net": NetModel(switch, OURS)}, {"count": 20})
    assert (code, guest.results["wrong"]) == (0, 0) and guest.results["repeated"] == pytest.approx(10, abs=2)
    switch = Switch(lambda: 0.0)
    Station(switch, lies=True)
    code, guest, _ = run(monkeypatch, "net-ping", {"net": NetModel(switch, OURS)}, {"count": 20})
    assert (code, guest.results["wrong"]) == (1, 20)
    model = NetModel(Switch(lambda: 0.0), OURS)
    code, guest, _ = run(monkeypatch, "net-ping", {"net": model}, {"within": "3s"})
    assert code == 1 and "nobody answered frame 0 within 3 s" in guest.results["error"]


def test_net_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question gets its answer, other frames none; as many ends as there are sessions, repeated ones once."""
    switch = Switch(lambda: 0.0)
    back: list[Message | None] = []
    port = switch.attach("asker", lambda frame: taken(back, unpack(bytes(frame))))

    def ask() -> None:
        for asker in (1, 2):
            source = Station.MAC[:5] + bytes((asker,))
            port.send(pack(Message(BROADCAST, source, Kind.QUESTION, 7, b"x" * asker)))
            port.send(BROADCAST + source + b"\x08\x06" + bytes(46))
            for _ in range(2 if asker == 1 else 1):
                port.send(pack(Message(OURS, source, Kind.END)))

    class Live(NetModel):
        def start(self, features: int) -> None:
            super().start(features)
            asyncio.get_running_loop().call_later(1, ask)

    code, guest, _ = run(monkeypatch, "net-echo", {"net": Live(switch, OURS)}, {"sessions": 2})
    found = [(each.source, each.kind, each.number, each.body) for each in back if each is not None]
    assert code == 0 and found == [
        (OURS, Kind.ANSWER, 7, b"x"), (OURS, Kind.ENDED, 0, b""), (OURS, Kind.ENDED, 0, b""),
        (OURS, Kind.ANSWER, 7, b"xx"), (OURS, Kind.ENDED, 0, b""),
    ]  # fmt: skip
    assert (guest.results["frames"], guest.results["others"], guest.results["sessions"]) == (5, 2, 2)


def test_console_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the size that was asked for, each back before the next; silence and nonsense are told apart."""
    heard: list[bytes] = []
    code, guest, _ = run(monkeypatch, "console-talk", {"console": echo_console()}, {"count": 5, "size": 100})
    assert (code, guest.results["lines"], guest.results["bytes"], guest.results["wrong"]) == (0, 5, 1000, 0)
    silent = ConsoleModel(lambda data: taken(heard, data))
    code, guest, _ = run(monkeypatch, "console-talk", {"console": silent}, {"size": 20, "within": "2s"})
    assert code == 1 and heard == [b"line 0 of many; lin\n"]
    assert "no talk with a console" in guest.results["error"]
    wrong = ConsoleModel(lambda data: wrong.feed(data.upper()))
    code, guest, _ = run(monkeypatch, "console-talk", {"console": wrong}, {"count": 3})
    assert (code, guest.results["wrong"]) == (1, 3)


def test_vsock_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round trips with the host's echo; a port where nobody listens is tried again, then given up."""
    hub = VsockHub()
    reads: list[bytes] = []

    async def serve() -> None:
        stream = await listener.accept()
        while data := await stream.receive():
            reads.append(data)
            await stream.send(data)
        await stream.close()

    class Served(VsockModel):
        def start(self, features: int) -> None:
            super().start(features)
            tasks.append(asyncio.get_running_loop().create_task(serve()))

    tasks: list[asyncio.Task[None]] = []
    listener = hub.host.listen(7)
    model = hub.models[9] = Served(hub, 9)
    code, guest, _ = run(monkeypatch, "vsock-ping", {"vsock": model}, {"count": 10, "size": "5KiB"})
    found = guest.results
    assert (code, found["cid"], found["peer"], found["wrong"], found["bytes"]) == (0, 9, 2, 0, 102400)
    assert sum(map(len, reads)) == 51200
    code, guest, _ = run(monkeypatch, "vsock-ping", {"vsock": VsockHub().endpoint(9)}, {"port": 9, "within": "1s"})
    assert code == 1 and "no round trips with port 9 of context 2" in guest.results["error"]


def test_vsock_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of its connections brings goes back; it ends with the last of them."""
    hub = VsockHub()
    heard: list[bytes] = []

    async def call() -> None:
        for text in (b"one", b"two"):
            stream = await hub.host.connect(9, 1234)
            await stream.send(text)
            heard.append(await stream.receive())
            await stream.close()

    class Called(VsockModel):
        def start(self, features: int) -> None:
            super().start(features)
            loop = asyncio.get_running_loop()
            loop.call_later(1, lambda: tasks.append(loop.create_task(call())))

    tasks: list[asyncio.Task[None]] = []
    model = hub.models[9] = Called(hub, 9)
    code, guest, _ = run(monkeypatch, "vsock-echo", {"vsock": model}, {"port": 1234, "sessions": 2})
    assert (code, heard) == (0, [b"one", b"two"])
    assert (guest.results["sessions"], guest.results["bytes"], guest.results["cid"]) == (2, 6, 9)
