"""The mirror protocol's shared parts: messages, sections, address sets, changes, numbering, footprints of frames.

Rules: the project's mirror protocol, version 1 (docs/remote-guests.md); contracts: data first, the pointer last.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx import mirror
from hmx.argo import abi
from hmx.doors import CONVENTIONS
from hmx.footprints import STRUCTURES, XEN_CALLS, frame_reads
from hmx.gic import LR_OFFSET, LR_STATE_OFFSET, SHARED_LR, SHARED_LR_STATE, LrState, encode, field
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.mirror import Batch, Changes, MessageFlag, MessageKind, MirrorError, Numbers, Ranges, Section
from hmx.mirror_lists import Fate, Listed, Lister
from hmx.shm import load64, store64, words32, words64
from hmx.trap import Arch, Frame, FrameFlag, Kind
from hmx.v4v import abi as v4v
from hmx.vcpu_area import AREA_SIZE

# Number, who says it, least length, unit: docs/remote-guests.md.
WRITTEN_DOWN = (
    ("WINDOW", 1, "g", 16, 16),
    ("STORE", 2, "gh", 9, 1),
    ("WORDS", 3, "gh", 12, 12),
    ("READS", 4, "g", 9, 1),
    ("FRAMES", 5, "g", 36, 8),
    ("BELL", 6, "g", 4, 8),
    ("COMPLETIONS", 7, "h", 40, 8),
    ("LISTS", 8, "h", 12, 8),
    ("POSTS", 9, "h", 4, 4),
)


def message(*sections: tuple[Section, int, bytes], count: int | None = None) -> mirror.Message:
    batch = Batch(mirror.MAX_MESSAGE)
    for section in sections:
        batch.add(*section)
    return mirror.unpack(
        mirror.pack(MessageKind.BATCH, 1, batch.body(), 1, 0, batch.count if count is None else count)
    )


@pytest.mark.parametrize(("name", "number", "senders", "least", "unit"), WRITTEN_DOWN)
def test_sections_are_as_written_down(name: str, number: int, senders: str, least: int, unit: int) -> None:
    """Each side says its own sections only, of lengths that can be."""
    section = Section[name]
    assert section == number
    for from_guest in (True, False):
        if ("g" if from_guest else "h") not in senders:
            with pytest.raises(MirrorError, match="none that"):
                mirror.parts(message((section, 3, bytes(least))), from_guest)
            continue
        for length in (least, least + unit, least + 8 * unit):
            (part,) = mirror.parts(message((section, 3, bytes(length))), from_guest)
            assert (part.section, part.vcpu, len(part.body)) == (section, 3, length)
        for length in {least - 1, least + 1 if unit > 1 else least - 1}:
            with pytest.raises(MirrorError, match=name):
                mirror.parts(message((section, 0, bytes(length))), from_guest)


def test_the_header_byte_for_byte() -> None:
    """docs/remote-guests.md, message."""
    packed = mirror.pack(MessageKind.BATCH, 0x0102030405060708, b"xy", 9, 10, 11, 1)
    assert packed == (
        b"AVMR" b"\x01\0" b"\x04\0" b"\x08\7\6\5\4\3\2\1" b"\x09" + bytes(7) + b"\x0a" + bytes(7) + b"\x0b\0" b"\x01\0"
        b"\x02\0\0\0" b"xy"
    )  # fmt: skip
    assert [int(kind) for kind in MessageKind] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("at", "value", "words"), [(0, 0, "magic"), (4, 2, "version"), (6, 0, "kind"), (6, 7, "kind"), (36, 9, "length")]
)
def test_headers_that_make_no_sense(at: int, value: int, words: str) -> None:
    data = bytearray(mirror.pack(MessageKind.ACK, 1))
    data[at] = value
    with pytest.raises(MirrorError, match=words):
        mirror.unpack(data)


def test_flags_belong_to_batches() -> None:
    """Unknown flags, and flags of other kinds, are refused."""
    for kind, flags in ((MessageKind.ACK, 2), (MessageKind.GONE, 1)):
        with pytest.raises(MirrorError, match="flags"):
            mirror.unpack(mirror.pack(kind, 1, flags=flags))
    with pytest.raises(MirrorError, match="2 announced"):
        mirror.parts(message((Section.POSTS, 0, bytes(4)), count=2), from_guest=False)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=20))
def test_ranges_are_a_set(added: list[tuple[int, int]]) -> None:
    """Against a set of addresses: what is in, how far it reaches, what touches; ranges are disjoint and apart."""
    ranges, model = Ranges(), set[int]()
    for start, n in added:
        ranges.add(start, start + n)
        model |= set(range(start, start + n))
    found = list(ranges)
    assert {at for start, end in found for at in range(start, end)} == model
    assert all(before[1] < after[0] for before, after in pairwise(found)) and len(ranges) == len(found)
    for at in range(75):
        reach = 0
        while at + reach in model:
            reach += 1
        assert ranges.reach(at) == reach
        assert ranges.touches(at, at + 3) == bool(model & {at, at + 1, at + 2})


def take(changes: Changes, memory: bytearray, room: int = 1 << 14) -> list[mirror.Part]:
    batch = Batch(room)
    changes.take(batch, memoryview(memory), words32(memory))
    return mirror.parts(mirror.unpack(mirror.pack(MessageKind.BATCH, 1, batch.body(), sections=batch.count)), True)


def test_words_leave_after_all_data() -> None:
    """As long as any byte waits for room, no word leaves; content is that of the moment of leaving."""
    memory, changes = bytearray(range(256)) * 256, Changes()
    changes.word(8)
    changes.data(1000, 30_000)
    changes.word(4)
    changes.word(8)
    first = take(changes, memory)
    assert [part.section for part in first] == [Section.STORE] and changes
    memory[4] = 99
    second = take(changes, memory)
    assert [part.section for part in second] == [Section.STORE, Section.WORDS] and not changes
    both = b"".join(bytes(part.body[8:]) for part in (first[0], second[0]))
    assert both == bytes(memory[1000:31_000])
    assert [address for address, _ in mirror.WORD.iter_unpack(second[1].body)] == [4, 8]
    assert next(mirror.WORD.iter_unpack(second[1].body))[1] == int.from_bytes(memory[4:8], "little")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=60), st.integers(0, 1 << 32))
def test_every_batch_is_applied_once_and_in_order(events: list[tuple[int, int]], seed: int) -> None:
    """Two ends with a lane that loses and repeats: in the end each has applied what the other sent, in order, once."""
    chance = random.Random(seed)
    ends, lanes = [Numbers(4), Numbers(4)], ([], [])  # type: tuple[list[Numbers], tuple[list[bytes], list[bytes]]]
    applied: tuple[list[bytes], list[bytes]] = ([], [])
    said: tuple[list[bytes], list[bytes]] = ([], [])

    def arrive(to: int) -> None:
        if lanes[to]:
            got = mirror.unpack(lanes[to].pop(0))
            if ends[to].accept(got):
                applied[to].append(bytes(got.body))
            lanes[1 - to].extend(ends[to].repeats())
            acknowledgement = ends[to].acknowledgement()
            if acknowledgement is not None:
                lanes[1 - to].append(acknowledgement)

    for event, who in events:
        if event == 0 and ends[who % 2].room() >= mirror.MIN_ROOM:
            batch = Batch(1 << 14)
            batch.add(Section.POSTS, 0, chance.randbytes(4))
            said[1 - who % 2].append(batch.body())
            lanes[1 - who % 2].append(ends[who % 2].send(batch))
        elif event == 1:
            arrive(who % 2)
        elif lanes[who % 2]:
            lanes[who % 2].pop(chance.randrange(len(lanes[who % 2])))
    for second in range(6):
        for who in (0, 1):
            if ends[who].due(second * 10**9):
                lanes[1 - who].extend(ends[who].repeats(asked=False))
        while lanes[0] or lanes[1]:
            arrive(0)
            arrive(1)
        for who in (0, 1):
            acknowledgement = ends[who].acknowledgement(at_once=True)
            lanes[1 - who].extend([acknowledgement] if acknowledgement is not None else [])
    assert applied == said
    assert [end.outstanding for end in ends] == [0, 0]


def test_a_gap_is_asked_for_once() -> None:
    """AGAIN travels with the next acknowledgement, once, and makes the other end repeat everything unchanged."""
    sender, receiver = Numbers(1), Numbers(1)
    sent = []
    for _ in range(4):
        batch = Batch(1 << 14)
        batch.add(Section.POSTS, 0, bytes(4))
        sent.append(sender.send(batch))
    asked = []
    for lost in sent[1:]:
        assert not receiver.accept(mirror.unpack(lost))
        acknowledgement = receiver.acknowledgement()
        asked += [acknowledgement] if acknowledgement is not None else []
    assert [mirror.unpack(each).flags for each in asked] == [MessageFlag.AGAIN]
    assert not sender.accept(mirror.unpack(asked[0]))
    assert list(sender.repeats()) == sent and list(sender.repeats()) == []
    assert [receiver.accept(mirror.unpack(each)) for each in sent] == [True] * 4


def test_no_room_beyond_what_may_be_under_way() -> None:
    """Bytes and batches without acknowledgement are bounded."""
    numbers = Numbers(1, most=100_000)
    while numbers.room() >= mirror.MIN_ROOM:
        batch = Batch(numbers.room())
        batch.add(Section.STORE, 0, bytes(min(30_000, batch.left())))
        numbers.send(batch)
    assert numbers.outstanding <= 100_000
    numbers = Numbers(1)
    for _ in range(mirror.MAX_BATCHES):
        assert numbers.room()
        batch = Batch(1 << 14)
        batch.add(Section.POSTS, 0, bytes(4))
        numbers.send(batch)
    assert numbers.room() == 0


# ---- footprints of frames ----

RAM = 16 * PAGE_SIZE


def frame(row: object, *values: int, **fields: int) -> Frame:
    convention = next(each for each in CONVENTIONS if each is row)
    regs = [0] * 18
    regs[convention.number] = convention.call
    for slot, value in zip(convention.arguments, values, strict=False):
        regs[slot] = value
    flags = int(FrameFlag.WIDTH32) if convention.width == 32 else 0
    address = convention.selector if convention.kind not in (Kind.HVC, Kind.SMC) else 0
    imm = convention.selector if convention.kind in (Kind.HVC, Kind.SMC) else 0
    return Frame(0, fields.get("kind", convention.kind), flags, 0, 0, imm, 18, 0, 0, address, 0, tuple(regs))


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: f"{row.door}-{row.speaks}-{row.arch.name}-{row.width}")
def test_a_send_by_every_door_ships_its_payload(row: object) -> None:
    """Addresses, iovs and payload, whatever the door; nothing for the same frame on the other architecture."""
    convention = next(each for each in CONVENTIONS if each is row)
    ram = bytearray(RAM)
    iov = abi.IOV_COMPAT if convention.width == 32 else abi.IOV
    iov.pack_into(ram, 0x1010, 0x3000, 700, 0)
    trap = frame(row, abi.Op.SENDV, 0x1000, 0x1010, 1, 7)
    reads = frame_reads(trap, convention.arch, MappedMemory(ram))
    assert {(0x1000, 16), (0x1010, iov.size), (0x3000, 700)} <= set(reads)
    if convention.kind is Kind.VMCALL:
        assert frame_reads(trap._replace(kind=Kind.VMMCALL), convention.arch, MappedMemory(ram)) == reads
    assert frame_reads(trap._replace(kind=Kind.HLT_WFI), convention.arch, MappedMemory(ram)) == []


def test_what_no_ring_takes_does_not_travel() -> None:
    """More than the largest ring in one send: refused before its payload is read, so it is not shipped."""
    ram = bytearray(RAM)
    abi.IOV_ARRAYS[2].pack_into(ram, 0x1010, 0, 0xFF_FFE0, 0, 0, 0xFF_FFE0, 0)
    reads = frame_reads(frame(CONVENTIONS[0], abi.Op.SENDV, 0x1000, 0x1010, 2, 7), Arch.X86_64, MappedMemory(ram))
    assert reads[:2] == [(0x1000, 16), (0x1010, 32)] and sum(n for _, n in reads) < 200


def test_other_calls() -> None:
    """Structures of the experimental operations and of Xen's other hypercalls: sizes as their headers have them."""
    assert [(row.op, row.size) for row in STRUCTURES] == [(0x4000_0001, 32), (0x4000_0010, 120), (0x4000_0011, 8)]
    assert [(row.number, row.size) for row in XEN_CALLS] == [(12, 24), (32, 24)]
    memory = MappedMemory(bytearray(RAM))
    for op, size in ((0x4000_0010, 120), (0x4000_0011, 8)):
        assert frame_reads(frame(CONVENTIONS[0], op, 0x2000), Arch.X86_64, memory) == [(0x2000, size)]
    register = frame(CONVENTIONS[0], 0x4000_0001, 0x2000, 0x3000, 5)
    assert frame_reads(register, Arch.X86_64, memory) == [(0x2000, 32), (0x3000, 40)]
    for number, size in ((12, 24), (32, 24)):
        regs = (number, 0, 0, 0, 0x5000, 7)
        call = frame(CONVENTIONS[0])._replace(regs=regs)
        assert frame_reads(call, Arch.X86_64, memory) == [(0x5000, size)]
        arm = Frame(0, Kind.HVC, 0, 1, 0, 0xEA1, 18, 0, 0, 0, 0, (7, 0x5000, *[0] * 14, number, 0))
        assert frame_reads(arm, Arch.AARCH64, memory) == [(0x5000, size)]


def test_v4v_calls() -> None:
    """uXen's structures: the ring's header and page list, addresses, buffers, entries."""
    ram = bytearray(RAM)
    memory = MappedMemory(ram)

    def reads(op: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0) -> set[tuple[int, int]]:
        regs = (v4v.HYPERCALL_V4V, 0, 0, a2, a1, op, a4, 0, a3)
        return set(frame_reads(frame(CONVENTIONS[0])._replace(regs=regs), Arch.X86_64, memory))

    v4v.PFN_LIST.pack_into(ram, 0x2000, v4v.PFN_LIST_MAGIC, 3, 0)
    v4v.RING_DATA.pack_into(ram, 0x3000, v4v.RING_DATA_MAGIC, 2, 0)
    v4v.IOV.pack_into(ram, 0x4000, 0x5000, 99)
    assert {(0x1000, 64), (0x2000, 40), (0x2028, 24)} <= reads(v4v.Op.REGISTER_RING, 0x1000, 0x2000)
    assert (0x1000, 64) in reads(v4v.Op.UNREGISTER_RING, 0x1000)
    assert {(0x100, 6), (0x110, 6), (0x5000, 50)} <= reads(v4v.Op.SEND, 0x100, 0x110, 0x5000, 50)
    assert {(0x100, 6), (0x4000, 16), (0x5000, 99)} <= reads(v4v.Op.SENDV, 0x100, 0x110, 0x4000, 1)
    assert (0x3000, 48 + 32) in reads(v4v.Op.NOTIFY, 0x3000)


# ---- list registers ----


def test_news_of_an_older_word_says_nothing_about_a_newer_one() -> None:
    """An interrupt that is raised while the end of the one before is under way is neither lost nor ended with it."""
    near, far = memoryview(bytearray(AREA_SIZE)), memoryview(bytearray(AREA_SIZE))
    lister, listed = Lister(far), Listed(near)
    lr, state = LR_OFFSET // 8 + 2, LR_STATE_OFFSET // 8 + 2
    at_hypervisor, at_guest = words64(far), words64(near)

    def raised(generation: int, phase: int) -> int:
        word = encode(SHARED_LR, vintid=40, generation=generation, phase=phase, state=LrState.PENDING)
        store64(at_hypervisor, lr, word)
        assert lister.changed() == [2]
        return lister.ship(2)

    def guest(active: bool) -> None:
        phase = field(SHARED_LR, "phase").get(load64(at_guest, lr))
        store64(at_guest, state, encode(SHARED_LR_STATE, generation=1, taken=phase, active=int(active)))

    def told() -> tuple[int, int]:
        word = load64(at_hypervisor, state)
        return field(SHARED_LR_STATE, "taken").get(word), field(SHARED_LR_STATE, "active").get(word)

    first = raised(1, 1)
    assert told() == (1, 1) and lister.changed() == [], "shipped is taken, and in service"
    assert listed.receive(2, first)
    assert list(listed.news()) == [Fate(2, 1, True, False, False)]
    guest(active=True)
    guest(active=False)
    (ended,) = listed.news()
    assert ended == Fate(2, 1, False, False, True) and list(listed.news()) == []
    again = raised(1, 0)
    lister.told(ended)
    assert told() == (0, 1), "it ended before the second one arrived"
    assert listed.receive(2, again)
    (waiting,) = listed.news()
    lister.told(waiting)
    assert waiting == Fate(2, 2, True, False, True) and told() == (0, 1)
    assert not listed.receive(2, raised(1, 1)), "a third coalesces with the second, which was not taken"
    guest(active=False)
    (ended,) = listed.news()
    lister.told(ended)
    assert told() == (1, 0)


def test_a_recall_is_answered_with_the_truth() -> None:
    """What was pending at the guest when it was asked back is pending again at the hypervisor."""
    near, far = memoryview(bytearray(AREA_SIZE)), memoryview(bytearray(AREA_SIZE))
    lister, listed = Lister(far), Listed(near)
    lr, state = LR_OFFSET // 8, LR_STATE_OFFSET // 8
    pending = encode(SHARED_LR, vintid=40, generation=1, phase=1, state=LrState.PENDING)
    for word in (pending, encode(SHARED_LR, generation=2, phase=1)):
        store64(words64(far), lr, word)
        listed.receive(0, lister.ship(0))
    (unanswered,) = listed.news()
    lister.told(unanswered)
    assert not unanswered.answered
    assert load64(words64(far), state) == encode(SHARED_LR_STATE, generation=1, taken=1, active=1)
    store64(words64(near), state, encode(SHARED_LR_STATE, generation=2, taken=0, active=0))
    (answered,) = listed.news()
    lister.told(answered)
    assert load64(words64(far), state) == encode(SHARED_LR_STATE, generation=2, taken=0, active=0)
