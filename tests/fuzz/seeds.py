"""The committed corpus: small inputs made from valid messages, so that a mutation starts next to what is accepted.

`python -m tests.fuzz all --corpus` adds what is missing; inputs that a defect was found with are added by hand and
stay.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from broker import codec, envelope, frames
from broker.envelope import EnvelopeKind
from broker.frames import FrameKind, Lane
from guest_node.drivers.stream_table import Flag
from hmx import acpi, fdt
from hmx.argo import abi
from hmx.attach import Reply, Request, pack_reply, pack_request
from hmx.firmware import ArgoDevice, Door, Interrupt, Offer, VectorPolicy
from hmx.memory import FIRMWARE_BASE
from hmx.trap import Arch
from hmx.virtio.chain import Segment
from tests.broker.support import hello_record
from tests.doubles.scribbled_queues import Scribbled
from tests.doubles.virtqueues import FEATURE_SETS
from tests.fuzz import virtio_argo_seeds, virtio_seeds
from tests.fuzz.engine import CORPUS, ROOT, file_name
from topologies.firmware import acpi as acpi_builder
from topologies.firmware import aml, devicetree
from topologies.firmware.machine import Gic, Machine, Range, Uxen, Xen

TOKEN: Final = bytes(range(16))
ENVELOPE: Final[list[Any]] = [1, 1, 5, 7, 9, ["hv0", 1], ["hv1", 2], 8, "", 3, 7, 1, 0xABCD, 0, 0, 0]

TO_BROKER: Final[tuple[list[Any], ...]] = (
    hello_record(), hello_record("hypervisor", "b", epoch_seen=7), ["ready"], ["exit", 0, "done"], ["heartbeat", 3],
    ["subscribe"], ["tell", "b", ["x", 1]], ["tell", "b", ["x"], 0, 3], ["tell", "h", ["me", [1, [2, b"z"]]]],
    ["tell", "broker", ["counters?"]], ["event", "result", "x", "{}"], ["attach", "b"], ["gone", "x", 1, "why", 0],
    ["relabel", 1, ["labels", "app", "t"]], ["tell", "broker", ["shutdown"]], ["tell", "nobody", ["x"]],
)  # fmt: skip
TO_NODE: Final[tuple[list[Any], ...]] = (
    ["welcome", 7, "app"], ["refused", "HELLO_FIRST", "words"], ["told", "b", ["x", 1]], ["told", "b", ["x"], 0, 3],
    ["nobody", "b", ["x"]], ["busy", "b", ["x"]], ["node", "b", "guest", "ready", ""],
    ["event", "b", "result", "x", "{}"], ["shutdown"],
)  # fmt: skip


def _message(kind: FrameKind, lane: Lane, records: Sequence[Sequence[Any]], payload: bytes = b"") -> bytes:
    """A message as `parts_of` reads it behind a header of its own making."""
    body = codec.pack(list(records))
    how = 1 | (lane - 1) << 1 | (kind - 1) << 3
    return bytes((how, len(body))) + body + bytes((len(payload),)) + payload


def _messages(records: Sequence[Sequence[Any]]) -> list[bytes]:
    found = []
    for record in records:
        shaken = record[0] in ("hello", "welcome", "refused")
        kind = FrameKind.HANDSHAKE if shaken else FrameKind.RECORDS
        lane = Lane.EVENT if record[0] == "event" else Lane.CONTROL
        payload = b"abc" if record[0] in ("tell", "told") and record[-1] == 3 else b""
        found.append(_message(kind, lane, [record], payload))
    found.append(_message(FrameKind.RECORDS, Lane.REQUEST, [ENVELOPE, [*ENVELOPE[:13], 0, 3, 0]], b"abc"))
    found.append(_message(FrameKind.ACK, Lane.CONTROL, []))
    return found


def _frame() -> Iterator[bytes]:
    yield from _messages([*TO_BROKER, *TO_NODE])
    for records in ([["ready"]], [["ready"]] * 3):
        header, body, payload = frames.pack_frame(FrameKind.RECORDS, Lane.CONTROL, 7, 0, 0, records)
        yield b"\x82" + header + struct.pack("<H", len(body)) + body + bytes((len(payload),)) + payload
        yield b"\x00\x03" + b"".join(bytes((len(part),)) + part for part in (header, body, payload))


def _router() -> Iterator[bytes]:
    messages = _messages(TO_BROKER)
    yield from (b"\x00" + message for message in messages)
    yield b"".join(b"\x00" + message for message in messages[2:12])
    yield b"\x1b\x00\x04\x00" + b"\x03" + messages[6]
    yield b"\x00" + messages[2] + b"\xfc" * 3 + b"\x00" + messages[4]
    yield b"".join(bytes((step,)) + messages[6] for step in (0x00, 0x20, 0x40, 0xA0, 0xE0, 0x10))


def _member() -> Iterator[bytes]:
    messages = _messages(TO_NODE)
    yield from (bytes((start, 8)) + message for message in messages for start in (0, 1))
    yield b"\x01" + b"".join(b"\x08" + message for message in messages)
    yield b"\x01" + b"".join(b"\x68" + message for message in messages)


def _envelope() -> Iterator[bytes]:
    for kind in EnvelopeKind:
        yield codec.pack([1, kind, *ENVELOPE[2:]])
    for at, value in ((3, (1 << 64) - 1), (5, ["a"] * 8), (6, []), (7, 255), (8, "label"), (14, 1 << 24), (15, -11)):
        yield codec.pack([*ENVELOPE[:at], value, *ENVELOPE[at + 1 :]])
    yield codec.pack(list(envelope.validate(ENVELOPE)))


def _attach() -> Iterator[bytes]:
    for name in ("a", "app", "a guest", "größer", "x" * 255):
        yield pack_request(Request(name, TOKEN))
    yield pack_reply(Reply(False, 1, 2, Arch.X86_64, 1 << 24, ""))
    yield pack_reply(Reply(True, 0, 0, 0, 0, "nobody announced a guest 'app' here"))


def _hypervisor() -> Iterator[bytes]:
    register = b"\x05\x00\x0d\x02\x00\x00\x00" + b"\x05\x02\x00\x04" + bytes((16, 1, 2, 3))
    call = b"\x03\x01" + b"\x00" + b"\x00\x02\x01\x00"
    send = b"\x05\x00\x05\x00\x01\x03\x10\x00" + b"\x03\x01" + bytes((16,)) + b"\x00\x01\x01\x04"
    notify = b"\x05\x00\x05\x03\x03" + b"\x10\x00" * 3 + b"\x03\x01" + bytes((24,)) + b"\x00\x00\x00\x00"
    yield from (register + call, send, notify, register + call + send * 4 + notify, send * 8)
    yield b"".join(b"\x0b\x00" + bytes((kind, 0, 9, 0, 4, 0, 0, kind)) + bytes(range(5)) for kind in range(12))
    yield b"\x13\x04\x00\x01\x00\x01\x00\x00" * 5
    yield b"\x06" + bytes(range(64)) + b"\x06" + b"\xff" * 64 + b"\x07"
    yield b"".join(bytes((2 | word << 3,)) + b"\xff\xff\xff\xff\x07" for word in range(9))
    yield b"\x01\x01" + b"\xff" * 16 + b"\x00\x00\x10\x20" + bytes(32) + b"\x01\x03" + b"\x01" * 16 + b"\x07"


def _ring() -> Iterator[bytes]:
    message = abi.MESSAGE_HEADER.pack(21, 7, 2, 0, 0xABCD) + b"hello".ljust(16, b"\0")
    for length in range(8):
        calls = bytes((0, 6, 1, 3, 2 | 5 << 3, 4, 5, 7, 0, 4 | 1 << 3))
        for rx, tx in ((0, 32), (0, 96), (16, 0), (48, 16)):
            yield bytes((length, 0)) + struct.pack("<HHB", rx, tx, len(calls)) + calls + message * 4
    yield bytes((3, 3)) + struct.pack("<HHB", 7, 65535, 2) + b"\x00\x04" + b"\xff" * 112


def _stream() -> Iterator[bytes]:
    def frame(flags: int, payload: bytes = b"") -> bytes:
        return bytes((flags, len(payload))) + payload

    opened = b"\x00\x01\x02\x03" + frame(Flag.SYN) + b"\x0d"
    yield opened
    yield opened + b"\x00\x01\x02\x03" + frame(0, b"data") + b"\x0f" + b"\x00\x01\x02\x03" + frame(Flag.RST)
    yield b"".join(b"\x00\x01\x02" + bytes((conid,)) + frame(Flag.SYN) for conid in range(6)) + b"\x05" * 5 + b"\x0e"
    yield b"\x1b" + frame(Flag.ACK) + b"\x1b" + frame(0, b"data") * 3 + b"\x1b" + frame(Flag.RST)
    yield b"\x03\x01\x01\x07" + frame(Flag.SYN) + b"\x13\x50\x03" + frame(Flag.ACK)
    for flags in range(16):
        yield opened + b"\x00\x01\x02\x03" + frame(flags, b"x")


def _described(kind: str) -> Iterator[bytes]:
    """Small machines as the planner describes them: PCs and Arm, with a line, a range, and suggested vectors."""
    for argo in (
        ArgoDevice(doors=(Door("msr", 0x4000_00E0),), policy=VectorPolicy.SUGGESTED, vectors=(0xD1, 0xC1)),
        ArgoDevice(policy=VectorPolicy.GUEST, vectors=(0x40, 0x7F), services=(Offer("v4vvsock", 5000, 2),)),
        ArgoDevice(policy=VectorPolicy.LINE, interrupt=Interrupt(39), mmio=0x0A2F_0000, notifications=("virq", "line")),
    ):  # fmt: skip
        for arch in (Arch.AARCH64, Arch.X86_64)[: 2 if kind == "acpi" else 1]:
            arm = arch is Arch.AARCH64
            machine = Machine(
                arch, (0,), (Range(0, 2 << 20),), personality="xen" if arm else "uxen", argo=argo,
                gic=Gic(3, 0x0800_0000, redistributors=(Range(0x080A_0000, 0x2_0000),)) if arm else None,
                psci="hvc" if arm else "", xen=Xen() if arm else None, uxen=None if arm else Uxen(),
            )  # fmt: skip
            yield devicetree.build(machine) if kind == "tree" else acpi_builder.build(machine, FIRMWARE_BASE).data


def _acpi() -> Iterator[bytes]:
    for blob in _described("acpi"):
        yield b"\x01" + blob
    yield b"\x00" + blob
    madt = bytes(36) + bytes(8)
    for row in acpi.MADT_ENTRIES:
        madt += bytes((row.type, struct.calcsize(row.layout))) + bytes(struct.calcsize(row.layout) - 2)
    yield b"\x02" + madt
    yield b"\x02" + bytes(276)


def _aml() -> Iterator[bytes]:
    for blob in _described("acpi"):
        for table in (b"DSDT", b"SSDT"):
            at = blob.find(table)
            if at >= 0:
                yield b"\x00" + blob[at + 36 : at + int.from_bytes(blob[at + 4 : at + 8], "little")]
    device = aml.device("ARGO", aml.named("_HID", "ARGO0001"), aml.method("_STA", aml.returns(aml.constant(15))))
    scope = aml.scope("\\_SB", device)
    yield b"\x02" + struct.pack("<H", len(scope)) + scope + aml.scope("\\_SB.ARGO", aml.named("_UID", 1))
    for value in (0, 1, 0xFF, 0x1234, 1 << 40, "text", b"bytes", (1, ("a", 2), b"")):
        yield b"\x00" + aml.scope("\\_SB", aml.device("D", aml.named("X", value)))
    yield b"\x00\x5b\x82\x03\x5c\x00\x08\x5c\x00\x00"  # a device and a constant named as the root
    yield b"\x00" + aml.io_region("R", 0x330, 8) + aml.byte_field("R", ("A", "B"))
    for descriptor in (
        aml.irq(7), aml.interrupt(Interrupt(39)), aml.interrupt(Interrupt(1, True), Interrupt(2, True)),
        aml.memory32(0x0A2F_0000, 4096), aml.io(0x330, 8),
    ):  # fmt: skip
        yield b"\x01" + descriptor + b"\x79\x00"


def _fdt() -> Iterator[bytes]:
    for blob in _described("tree"):
        yield b"\x00" + blob
        yield b"\x03" + blob
    yield b"\x01" + _small_tree(b"hypervisor", b"xen,xen\0")
    yield b"\x01" + _small_tree(b"hypervisor@1", b"x" * 90 + b"\0" + b"linux,kvm\0")
    yield b"\x01" + _small_tree(b"argo", b"argosy,argo\0")
    yield b"\x01" + _tree_of(struct.pack(">II", 1, 0) * 70, b"")


def _small_tree(name: bytes, compatible: bytes) -> bytes:
    """A root with one child that has one property."""
    padded = compatible + bytes(-len(compatible) % 4)
    child = struct.pack(">I", 1) + name + bytes(4 - len(name) % 4)
    structure = struct.pack(">II", 1, 0) + child + struct.pack(">III", 3, len(compatible), 0) + padded
    return _tree_of(structure + struct.pack(">III", 2, 2, 9), b"compatible\0")


def _tree_of(structure: bytes, strings: bytes) -> bytes:
    at = fdt.HEADER.size + fdt.RESERVATION.size
    sizes = len(strings), len(structure)
    head = fdt.HEADER.pack(fdt.MAGIC, at + sum(sizes), at, at + sizes[1], 40, fdt.VERSION, 16, 0, *sizes)
    return head + bytes(fdt.RESERVATION.size) + structure + strings


def _firmware() -> Iterator[bytes]:
    for blob in _described("acpi"):
        yield b"\x01" + blob
    for blob in _described("tree"):
        yield b"\x07" + blob
    yield from (bytes((how,)) + blob for how in (4, 5) for blob in (_small_tree(b"hypervisor", b"xen,xen\0"), b""))


def _topology() -> Iterator[bytes]:
    for path in sorted((ROOT / "tests" / "golden" / "topology-errors").glob("*.yaml")):
        yield path.read_bytes()[:600]
    head = "name: a\nhypervisors: {h: {}}\n"
    for text in (
        "guests: {g: {on: h, program: 'builtin:echo'}}", "defaults: &a {memory: 1MiB}\ngroups: {x: *a}",
        "guests: {g: {on: h, <<: {memory: 4KiB}}}", "checks:\n- {name: c, guest: g, expect: {exit: 0}, within: 1s}",
        "hosts: {l: {provider: local}}", "guests: {g: {on: h, with: {a: 0x10, b: [1.5, .inf, ~], c: 1:30}}}",
    ):  # fmt: skip
        yield (head + text + "\n").encode()
    for fragment in (
        "a: !!int x", "? [a]\n: b", "%YAML 1.2\n---\n{}", "a: |\n  b\n c", '"\\U00110000"', "- *x", "&a [*a]",
        "{a: 1, a: 2}", "x: 'y", "\ta: b", "[" * 60, "[" * 900, "- " * 900,
        "a: &a [1, 1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijkl")),
    ):  # fmt: skip
        yield fragment.encode()


def _queue_device() -> Iterator[bytes]:
    """A queue of four with three chains in it; the device returns them."""
    pieces = [Segment(0x40 * index, 16 << index) for index in range(3)]
    for index, features in enumerate(FEATURE_SETS):
        lab = Scribbled(features, 4)
        for border in (1, 0):
            lab.driver.add(pieces[:border], pieces[border : border + 1], border)
        lab.driver.publish()
        content = bytes(lab.content).rstrip(b"\0")
        yield (
            bytes((index, 2))
            + struct.pack("<H", len(content))
            + content
            + bytes((4, 0, 0, 0, 1, 2, 1, 2, 4, 12, 6, 3, 1, 0))
        )


def _queue_driver() -> Iterator[bytes]:
    """Chains come and go; then one comes back that was not there."""
    for index in range(len(FEATURE_SETS)):
        cycle = bytes((0x10, 0x18, 2, 5, 5, 0x0D, 0x15, 0x0D, 0x15, 1, 1, 4))
        for start in range(2):
            yield bytes((index, 2, start)) + cycle * 3 + bytes((0x10, 2, 0x1E, 0, 7, 0, 1, 0x1E, 0, 1, 0, 1))


def _trace() -> Iterator[bytes]:
    register, send = "100000000100000070000000", "05000000010000001000000002000000"
    message = "1500000005000000010000000700000068656c6c6f"
    lines: list[dict[str, Any]] = [
        {"ev": "boot", "cmdline": "on", "xsm": "dummy", "ret": 0},
        {"ev": "domain", "dom": 1, "npages": 4},
        {"ev": "domain", "dom": 2, "npages": 4},
        {"ev": "page", "dom": 1, "gfn": 2, "type": "paged", "nowrite": False},
        {"ev": "op", "dom": 2, "cmd": 1, "args": [256, 512, 1, 0], "ret": 0,
         "pre": {"2": [[256, register], [512, "02"]]}, "post": {}, "sigs": []},
        {"ev": "op", "dom": 1, "cmd": 3, "args": [256, 512, 1, 7], "ret": 5,
         "pre": {"1": [[256, send], [512, "003000000000000005"], [0x3000, "68656c6c6f"]]},
         "post": {"2": [[0x2004, "20"], [0x2040, message]]}, "sigs": [[2, 11]]},
        {"ev": "soft_reset", "dom": 1, "pre": {}, "ret": 0, "post": {}, "sigs": []},
        {"ev": "kill", "dom": 2, "pre": {}, "ret": 0, "post": {}, "sigs": []},
        {"ev": "free", "dom": 2},
    ]  # fmt: skip
    text = [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]
    for end in range(1, len(text) + 1):
        yield b"".join(text[:end])
    yield gzip.compress(b"".join(text), mtime=0)
    yield from (text[0] + line for line in text[1:])


MAKERS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "frame": _frame, "router": _router, "member": _member, "envelope": _envelope, "attach": _attach,
    "hypervisor": _hypervisor, "ring": _ring, "stream": _stream, "acpi": _acpi,
    "aml": _aml, "fdt": _fdt, "firmware": _firmware, "topology": _topology, "trace": _trace,
    "queue_device": _queue_device, "queue_driver": _queue_driver,
    "virtio_argo": virtio_argo_seeds.updates, "virtio_msg": virtio_seeds.messages,
    "virtio_layouts": virtio_seeds.layouts,
}  # fmt: skip


def made(name: str) -> dict[str, bytes]:
    """The seeds of a target by file name: equal ones are one."""
    return {file_name(data): data for data in MAKERS[name]()}


def write(name: str) -> int:
    """Add what is missing to the committed corpus; the number of inputs that it then has."""
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, data in made(name).items():
        (directory / file).write_bytes(data)
    return len(list(directory.iterdir()))
