"""A guest on another host, at its hypervisor's end: recorded traces on mirrored memory, loss, and hostile guests.

Rules: the project's mirror protocol (docs/remote-guests.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hmx import mirror, xen
from hmx.argo import abi
from hmx.argo.footprint import footprint
from hmx.attach import AttachError, Reply, Request, pack_request, unpack_reply
from hmx.errno import Errno
from hmx.memory import FIRMWARE_BASE, PAGE_SIZE, MappedMemory
from hmx.mirror import Batch, MessageFlag, MessageKind, Ranges, Section
from hmx.trap import FRAMES, Arch, Kind, int32, unpack_completion
from hmx.vcpu_area import AREA_SIZE
from hv_node.argo.core import Argo
from hv_node.argo.options import parse_options
from hv_node.config import DomainConfig
from hv_node.conform import Runs, Subject, replay
from hv_node.domain import Domain
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.mirror_memory import MAX_SHOWN, MirrorMemory
from hv_node.remote_guest import RemoteBacking, RemoteGuest, attach_request, refusal
from hv_node.xsm import xsm_by_name
from tests.doubles.remote import SharedAreas

SIZE = 64 * PAGE_SIZE

TRACES = sorted((Path(__file__).parents[1] / "conformance/traces").glob("*.jsonl.gz"))


class MirrorSubject(Subject):
    """Every domain is remote: calls read what their footprint ships, and memory is compared at the guest's end."""

    def __init__(self, cmdline: str, xsm: str) -> None:
        super().__init__(cmdline, xsm)
        self.memories: dict[int, SharedAreas] = {}

    def create(self, domid: int, npages: int) -> None:
        super().create(domid, npages)
        memory = self.memories[domid] = SharedAreas(len(self.actual[domid]), self.actual[domid])
        self.domain(domid).memory = memory.hypervisor

    def apply(self, runs: Runs, *images: dict[int, bytearray]) -> None:
        super().apply(runs, *images)
        if self.actual in images:
            for domid, pieces in runs.items():
                for address, text in pieces:
                    data = bytes.fromhex(text)
                    # These guests scribble over tx_ptr too, which registration reads: here that passes.
                    self.memories[int(domid)].hypervisor._view[address : address + len(data)] = data

    def argo_of(self, domain: Domain) -> Argo:
        """Whoever calls ships first what the call reads."""
        caller: Any = _Caller(self)
        return caller  # type: ignore[no-any-return]

    def shipped(self, caller: Domain, cmd: int, *args: Any) -> int:
        memory = self.memories[caller.domid]
        reads = Ranges()
        for start, n in footprint(cmd & 0xFFFF_FFFF, args[:4], MappedMemory(memory.near))[0]:
            reads.add(start, min(start + n, len(memory.near)))
        memory.show(reads)
        return self.argo.op(caller, cmd, *args)

    def compare(self) -> list[str]:
        for memory in self.memories.values():
            memory.after_run()
        return super().compare()


class _Caller:
    def __init__(self, subject: MirrorSubject) -> None:
        self.op = subject.shipped
        self.soft_reset = subject.argo.soft_reset


FEW = {path for path in TRACES if path.name.startswith("directed")} | set(TRACES[5:10])
MARKED = [path if path in FEW else pytest.param(path, marks=pytest.mark.long) for path in TRACES]


@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_recorded_traces_on_mirrored_memory(path: Path) -> None:
    """Return codes, the guests' memory byte for byte, and signals are those of Xen when every guest is remote."""
    outcome = replay(path, MirrorSubject)
    assert outcome.ops
    assert outcome.mismatches[:3] == []


# ---- one guest, message by message ----


class World:
    """A hypervisor with a near guest (2) and a remote one (1), whose messages the test writes itself."""

    def __init__(self) -> None:
        options, _ = parse_options("on,mac-permissive")
        self.core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", options, xsm_by_name("dummy"))
        self.sent: list[mirror.Message] = []
        self.reasons: list[str] = []
        self.memory = MirrorMemory(SIZE)
        areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(2)]
        self.hvm = self.core.create_domain(1, self.memory, areas, name="far")
        self.core.create_domain(2, MappedMemory(bytearray(SIZE)), [memoryview(bytearray(AREA_SIZE))], name="near")
        reply = Reply(False, 1, 2, Arch.X86_64, SIZE, "")
        self.remote = RemoteGuest(9, reply, self.memory, areas, lambda _vcpu: None, self.hear, self.on_gone)
        self.seq = 0
        self.sq = 0
        assert self.sent.pop().kind is MessageKind.ATTACHED

    def hear(self, message: bytes) -> None:
        self.sent.append(mirror.unpack(message))

    def on_gone(self, reason: str) -> None:
        self.reasons.append(reason)
        self.core.free_domain(1)

    def say(self, *sections: tuple[Section, int, bytes], seq: int | None = None, epoch: int = 9, ack: int = 0) -> None:
        batch = Batch(mirror.MAX_MESSAGE)
        for section in sections:
            batch.add(*section)
        self.seq += 1
        message = mirror.pack(
            MessageKind.BATCH, epoch, batch.body(), self.seq if seq is None else seq, ack, batch.count
        )
        self.remote.receive(message)
        self.last = message

    def run(self) -> None:
        for vcpu in self.hvm.vcpus:
            while self.core.run(vcpu):
                pass
        self.remote.flush()

    def frames(self, *calls: tuple[int, ...], position: int | None = None) -> tuple[Section, int, bytes]:
        """A FRAMES section of argo_op calls on vCPU 0."""
        body = mirror.POSITION.pack(self.sq if position is None else position)
        for number, (cmd, *arguments) in enumerate(calls):
            a = (*arguments, 0, 0, 0, 0)
            regs = (xen.Hypercall.ARGO_OP, 0, 0, a[1], a[0], cmd, a[3], 0, a[2])
            body += FRAMES[9].pack(self.sq + number, Kind.VMCALL, 0, 0, 0, 0, 9, 0, 0, 0, 0, *regs)
        if position is None:
            self.sq += len(calls)
        return Section.FRAMES, 0, body

    def answers(self) -> list[int]:
        """Results of the completions that were sent since the last time."""
        found = []
        for message in self.sent:
            if message.kind is MessageKind.BATCH:
                for part in mirror.parts(message, from_guest=False):
                    if part.section is Section.COMPLETIONS:
                        at = mirror.DONE.size
                        while at < len(part.body):
                            done = unpack_completion(part.body, at)
                            found.append(int32(done.regs[0]))
                            at += 32 + 8 * done.nregs
        return found

    def register(self, ring_len: int = 4032) -> None:
        """A ring at page 4 as (9, anybody)."""
        self.say(
            (Section.WINDOW, 0, mirror.WINDOW.pack(4 * PAGE_SIZE, PAGE_SIZE)),
            (Section.STORE, 0, mirror.AT.pack(4 * PAGE_SIZE) + bytes(PAGE_SIZE)),
            read(PAGE_SIZE, abi.REGISTER_RING.pack(9, abi.DOMID_ANY, 0, ring_len)),
            read(2 * PAGE_SIZE, abi.GFN.pack(4)),
            self.frames((abi.Op.REGISTER_RING, PAGE_SIZE, 2 * PAGE_SIZE, 1)),
        )
        self.run()
        assert self.answers() == [0]
        self.sent.clear()


def read(at: int, data: bytes) -> tuple[Section, int, bytes]:
    return Section.READS, 0, mirror.AT.pack(at) + data


def send_arguments(payload: bytes, at: int = PAGE_SIZE) -> bytes:
    """A sendv to our own ring, laid out from `at` on: addresses, one iov, payload."""
    where = at + 32
    return abi.SEND_ADDR.pack(5, abi.DOMID_ANY, 0, 9, 1, 0) + abi.IOV.pack(where, len(payload), 0) + payload


SEND = (abi.Op.SENDV, PAGE_SIZE, PAGE_SIZE + 16, 1, 77)


def test_data_before_the_pointer_before_the_completion() -> None:
    """contracts: what a call wrote comes before the word that publishes it, before the completion and the interrupt."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"hello")), world.frames(SEND))
    world.run()
    (message,) = [each for each in world.sent if each.kind is MessageKind.BATCH]
    found = mirror.parts(message, from_guest=False)
    assert [part.section for part in found] == [Section.STORE, Section.WORDS, Section.COMPLETIONS]
    message_header = abi.MESSAGE_HEADER.pack(21, 5, 1, 0, 77)
    assert bytes(found[0].body) == mirror.AT.pack(4 * PAGE_SIZE + 64) + message_header + b"hello"
    assert bytes(found[1].body) == mirror.WORD.pack(4 * PAGE_SIZE + 4, 32)
    assert world.answers() == [5]


def test_what_was_not_shipped_faults() -> None:
    """A payload that does not travel with its frame is EFAULT, and what was shipped is readable until it is done."""
    world = World()
    world.register()
    arguments = send_arguments(b"hello")
    world.say(read(PAGE_SIZE, arguments[:32]), world.frames(SEND))
    world.run()
    assert world.answers() == [-Errno.EFAULT]
    world.sent.clear()
    world.say(read(PAGE_SIZE, arguments), world.frames(SEND))
    assert world.memory.read(0, PAGE_SIZE, 37) is not None
    world.run()
    assert world.answers() == [5]
    assert world.memory.read(0, PAGE_SIZE, 1) is None


def test_a_repeat_is_executed_once() -> None:
    """(epoch, seq) names a batch for ever: its repeat changes nothing, whatever it holds, and is acknowledged."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"hello")), world.frames(SEND))
    for _ in range(3):
        world.remote.receive(world.last)
        world.run()
    assert world.answers() == [5] and world.core.counters()["far"]["messages"] == 1
    assert world.remote.numbers.counters["repeats"] == 3
    assert world.sent[-1].kind is MessageKind.ACK and world.sent[-1].ack == 2


def test_a_gap_waits_for_its_repeat() -> None:
    """A batch behind one that was lost is not applied: the other end is asked once, and repeats unchanged."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"second")), world.frames(SEND), seq=3)
    world.say(read(PAGE_SIZE, send_arguments(b"third")), world.frames(SEND), seq=4)
    world.run()
    assert world.answers() == [] and world.remote.numbers.counters["gaps"] == 2
    assert [each.flags for each in world.sent] == [MessageFlag.AGAIN]
    assert world.reasons == []


def test_a_stale_epoch_is_fenced() -> None:
    """What an earlier attachment said does nothing."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"hello")), world.frames(SEND), epoch=8)
    world.run()
    assert world.answers() == [] and world.reasons == [] and world.remote.numbers.counters["stale"] == 1


def test_an_answer_that_was_lost_is_repeated_unchanged() -> None:
    """The session breaks with the completion: the vCPU stays trapped until the same bytes come again."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"hello")), world.frames(SEND), ack=1)
    world.run()
    lost = [message for message in world.sent if message.kind is MessageKind.BATCH]
    world.sent.clear()
    world.remote.link_up()
    assert [bytes(message.body) for message in world.sent] == [bytes(message.body) for message in lost]
    world.sent.clear()
    for seconds in range(4):
        world.remote.tick(seconds * 10**9)
    assert [message.seq for message in world.sent if message.kind is MessageKind.BATCH] == [2, 2, 2]


def test_what_is_under_way_is_bounded() -> None:
    """A guest that never acknowledges costs so many bytes and no more; what it misses waits in its own mirror."""
    world = World()
    world.register()
    pages = SIZE // PAGE_SIZE
    for number in range(3 * mirror.MAX_OUTSTANDING // (SIZE // 2)):
        world.memory.write(0, SIZE // 2, bytes([number % 256]) * (SIZE // 2 // PAGE_SIZE * PAGE_SIZE))
        world.remote.flush()
    assert pages and world.remote.numbers.outstanding <= mirror.MAX_OUTSTANDING
    assert sum(len(message.body) for message in world.sent) <= mirror.MAX_OUTSTANDING


HUGE = 0xFFFF_FFFF_FFFF_F000


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([(Section.WINDOW, 0, mirror.WINDOW.pack(SIZE - 4, 8))], "the domain has"),
        ([(Section.WINDOW, 0, mirror.WINDOW.pack(HUGE, 1 << 40))], "the domain has"),
        ([(Section.WINDOW, 0, mirror.WINDOW.pack(2, 8))], "no whole words"),
        ([(Section.STORE, 0, mirror.AT.pack(SIZE - 4) + bytes(8))], "the domain has"),
        ([(Section.STORE, 0, mirror.AT.pack(HUGE) + bytes(8))], "the domain has"),
        ([(Section.STORE, 0, mirror.AT.pack(8 * PAGE_SIZE) + bytes(8))], "no window covers"),
        ([(Section.STORE, 0, mirror.AT.pack(4 * PAGE_SIZE + 64) + b"x")], "changes what its hypervisor writes"),
        ([(Section.STORE, 0, mirror.AT.pack(4 * PAGE_SIZE) + b"12345")], "changes what its hypervisor writes"),
        ([(Section.STORE, 0, mirror.AT.pack(4 * PAGE_SIZE + 8) + bytes(4))] * 2, "overlap"),
        ([(Section.WORDS, 0, mirror.WORD.pack(4 * PAGE_SIZE + 4, 16))], "changes what its hypervisor writes"),
        ([(Section.WORDS, 0, mirror.WORD.pack(4 * PAGE_SIZE + 1, 16))], "not the address of a word"),
        ([(Section.WORDS, 0, mirror.WORD.pack(9 * PAGE_SIZE, 16))], "no window covers"),
        ([(Section.WORDS, 0, mirror.WORD.pack(SIZE, 16))], "the domain has"),
        ([read(SIZE - 4, bytes(8))], "the domain has"),
        ([read(HUGE, bytes(8))], "the domain has"),
        ([read(0, bytes(8)), read(7, bytes(8))], "overlap"),
        ([(Section.FRAMES, 2, bytes(36))], "the domain has 2"),
        ([(Section.FRAMES, 0, mirror.POSITION.pack(5) + bytes(32))], "position 5"),
        ([(Section.FRAMES, 0, mirror.POSITION.pack(1) + bytes(32 * 65))], "more than 64"),
        ([(Section.FRAMES, 0, mirror.POSITION.pack(1) + bytes(12) + b"\x12" + bytes(27))], "a frame of 176 bytes"),
        ([(Section.FRAMES, 0, mirror.POSITION.pack(1) + bytes(40))], "less than a frame's head"),
        ([(Section.BELL, 0, mirror.BELL.pack(5))], "cq_head 5"),
        ([(Section.BELL, 0, mirror.BELL.pack(0) + mirror.FATE.pack(16, 0, 0, 0))], "list register 16"),
        ([(Section.COMPLETIONS, 0, mirror.DONE.pack(0, 0) + bytes(32))], "none that a guest sends"),
        ([(Section.POSTS, 0, bytes(4))], "none that a guest sends"),
    ],
)  # fmt: skip
def test_a_hostile_guest_loses_its_own_domain_only(
    sections: list[tuple[Section, int, bytes]], words: str
) -> None:
    """Every lie is refused in clear words that the guest is told; its domain dies, the others do not notice."""
    world = World()
    world.register()
    world.say(*sections)
    assert len(world.reasons) == 1 and words in world.reasons[0]
    assert world.sent[-1].kind is MessageKind.GONE and words in bytes(world.sent[-1].body).decode()
    assert world.core.hvm(1) is None and world.core.hvm(2) is not None
    count = len(world.sent)
    world.say(read(PAGE_SIZE, bytes(8)))
    world.remote.tick(10**12)
    world.remote.flush()
    assert len(world.sent) == count and len(world.reasons) == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "0 bytes"),
        (bytes(40), "magic"),
        (mirror.pack(MessageKind.ATTACHED, 9), "not for a guest that is attached"),
        (mirror.pack(MessageKind.BATCH, 9, seq=2 + mirror.MAX_BATCHES), "may be under way"),
        (mirror.pack(MessageKind.ACK, 9, ack=1), "0 were sent"),
        (mirror.pack(MessageKind.BATCH, 9, b"", 1, sections=1), "1 announced, 0 there"),
        (mirror.pack(MessageKind.BATCH, 9, bytes(7), 1), "less than a section's head"),
        (mirror.pack(MessageKind.BATCH, 9, mirror.SECTION.pack(2, 0, 0xFFFF_FFFF), 1), "announced, 0 there"),
        (mirror.pack(MessageKind.BATCH, 9, mirror.SECTION.pack(99, 0, 0), 1), "none that a guest sends"),
    ],
)
def test_messages_that_make_no_sense(message: bytes, words: str) -> None:
    """The same for what is wrong before any section is looked at."""
    world = World()
    world.remote.receive(message)
    assert len(world.reasons) == 1 and words in world.reasons[0] and world.core.hvm(1) is None


def test_a_flood_of_ranges_is_refused() -> None:
    """Ranges for frames that never come, and windows far apart, are bounded."""
    for section in (Section.READS, Section.WINDOW):
        world = World()
        for start in range(0, MAX_SHOWN + 64, 64):
            if section is Section.READS:
                world.say(*(read(8 * at, b"x") for at in range(start, start + 64)))
            else:
                world.say(*((section, 0, mirror.WINDOW.pack(8 * at, 4)) for at in range(start, start + 64)))
        assert len(world.reasons) == 1 and f"more than {MAX_SHOWN}" in world.reasons[0]


def test_what_the_hypervisor_writes_is_never_read_from_the_guest() -> None:
    """A frame may read from ring memory; the mirror keeps its own bytes there, and nobody is killed for it."""
    world = World()
    world.register()
    world.say(read(PAGE_SIZE, send_arguments(b"hello")), world.frames(SEND))
    world.run()
    before = bytes(world.memory._view[4 * PAGE_SIZE + 64 : 5 * PAGE_SIZE])
    world.say(read(4 * PAGE_SIZE, b"\x10\0\0\0" + b"\xff" * (PAGE_SIZE - 4)), world.frames((abi.Op.NOTIFY, 0)))
    assert bytes(world.memory._view[4 * PAGE_SIZE + 64 : 5 * PAGE_SIZE]) == before
    assert bytes(world.memory._view[4 * PAGE_SIZE : 4 * PAGE_SIZE + 12]) == b"\x10\0\0\0\x20\0\0\0\xff\xff\xff\xff"
    assert world.reasons == []


def test_a_guest_that_leaves() -> None:
    """GONE is the end of the domain, as the end of an attach connection is."""
    world = World()
    world.remote.receive(mirror.pack(MessageKind.GONE, 8, b"of an earlier life"))
    assert world.reasons == []
    world.remote.receive(mirror.pack(MessageKind.GONE, 9, b"done"))
    assert world.reasons == ["it left"] and world.sent == []


def test_firmware_follows_the_answer() -> None:
    """What the hypervisor placed in RAM is the first batch; a domain that is closed says so to its guest."""
    backing = RemoteBacking(DomainConfig("app", 3, 1 << 20, 2, firmware=b"tables"))
    sent: list[bytes] = []
    backing.attach(Request("app", bytes(16)), 4, Arch.AARCH64, lambda _: None, sent.append, lambda _: None)
    answer, batch = map(mirror.unpack, sent)
    assert unpack_reply(bytes(answer.body)) == Reply(False, 3, 2, Arch.AARCH64, 1 << 20, "") and answer.epoch == 4
    (part,) = mirror.parts(batch, from_guest=False)
    assert bytes(part.body) == mirror.AT.pack(FIRMWARE_BASE) + b"tables"
    backing.close()
    assert mirror.unpack(sent[-1]).kind is MessageKind.GONE


def test_who_wants_to_attach() -> None:
    """An ATTACH holds the request of a local attach; everything else is none; a refusal holds its words."""
    asked = mirror.pack(MessageKind.ATTACH, 0, pack_request(Request("app", b"t" * 16)))
    assert attach_request(asked) == Request("app", b"t" * 16)
    assert attach_request(mirror.pack(MessageKind.ACK, 1)) is None
    with pytest.raises(AttachError):
        attach_request(mirror.pack(MessageKind.ATTACH, 0, b"nonsense"))
    told = mirror.unpack(refusal("no"))
    assert told.kind is MessageKind.REFUSED and unpack_reply(bytes(told.body)).text == "no"
