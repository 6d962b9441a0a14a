"""Property: whatever a guest writes into its RAM and its vCPU area, `Hypervisor.run` raises nothing, takes no more than
a turn's frames, and ends; a bystander's RAM changes only within the data of its ring, which its consumer reads to the
end; its vCPU area only where interrupts are posted; and it still exchanges messages with itself.

Input: a script of stores, frames, Argo calls and turns of the hypervisor.  Counted are the frames that it executed.
"""

from __future__ import annotations

from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY
from hmx.argo.consumer import Consumer
from hmx.memory import PAGE_SIZE, Window
from hmx.trap import FRAME_HEAD, Kind
from hmx.vcpu_area import POSTS_OFFSET, SQ_OFFSET, Word
from hv_node.hvm import TURN
from tests.doubles.machine import Guest, Machine
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
PAGES = 24
RING_LEN = 1024
_RING = 16 * PAGE_SIZE
_WORDS = tuple(Word)
_OFFSETS = (0, 64, 0x400, 0x1000, 0x1100, 0x5000, 0x5FF0, 0x9FF0)
_ADDRESSES = (
    PAGE_SIZE, PAGE_SIZE + 16, 3 * PAGE_SIZE, 4 * PAGE_SIZE, 0, 1, PAGES * PAGE_SIZE - 8, PAGES * PAGE_SIZE, 1 << 32,
    (1 << 64) - 1, (1 << 64) - 16, 16 * PAGE_SIZE, 15,
)  # fmt: skip
_KINDS = (*Kind, 0, 13, 255, 65535)
_SELECTORS = (0, 1, 0x40000000, 0x40000001, 0x40000002, 0x40000004, 0x40010000, 0x174, 0xE9, 0xFFFF, (1 << 64) - 1)
_TOP = (1 << 64) - 1


def one_input(data: bytes) -> None:
    """Run one script."""
    machine = Machine()
    hostile = machine.guest(1, pages=PAGES)
    bystander = machine.guest(2, pages=PAGES)
    bystander.bind_virq()
    assert bystander.register(1, ring_len=RING_LEN, gfn=16) == 0
    bystander.ram[4 * PAGE_SIZE : 5 * PAGE_SIZE] = b"\x5a" * PAGE_SIZE
    ram, area = bytes(bystander.ram), bytes(bystander.side.buffer)
    _script(Choices(data), hostile)
    _spare(bystander, ram, area)


def _script(choices: Choices, hostile: Guest) -> None:
    area, ram = hostile.side.buffer, hostile.ram
    while choices:
        step = choices.u8()
        match step & 7:
            case 0:
                at = choices.one_of(_ADDRESSES) + choices.u8()
                piece = choices.take(choices.u8() & 63)
                if at + len(piece) <= len(ram):
                    ram[at : at + len(piece)] = piece
            case 1:
                at = choices.one_of(_OFFSETS)
                piece = choices.take(16)
                area[at : at + len(piece)] = piece
            case 2:
                word = _WORDS[(step >> 3) % len(_WORDS)]
                area[word : word + 4] = choices.take(4).ljust(4, b"\0")
            case 3 | 4:
                _frames(choices, area, hostile, 1 + (step >> 3 & 3))
            case 5:
                _argument(choices, ram)
            case 6:
                noise = choices.take(64) or b"\0"
                for at in range(SQ_OFFSET, SQ_OFFSET + 0x4000, len(noise)):
                    piece = noise[: SQ_OFFSET + 0x4000 - at]
                    area[at : at + len(piece)] = piece
                _announce(area, hostile, 64)
                _turn(hostile)
            case _:
                _turn(hostile)
    _turn(hostile)


def _argument(choices: Choices, ram: bytearray) -> None:
    """A structure of the Argo interface that is right in most of its fields."""
    at = choices.one_of(_ADDRESSES[:4])
    small = choices.u8()
    port, domid = small & 3, (1, 2, 3, DOMID_ANY)[small >> 2 & 3]
    match choices.u8() % 5:
        case 0:
            length = (choices.u16(), 64, 1024, 4032, 1 << 24)[choices.u8() % 5]
            abi.REGISTER_RING.pack_into(ram, at, port, domid, choices.u8() & 1, length)
        case 1:
            abi.SEND_ADDR.pack_into(ram, at, port, DOMID_ANY, 0, 1 + (port & 1), domid, 0)
            abi.IOV.pack_into(ram, at + 16, choices.one_of(_ADDRESSES), choices.u16(), 0)
        case 2:
            abi.UNREGISTER_RING.pack_into(ram, at, port, domid, 0)
        case 3:
            count = choices.u8() & 7
            abi.RING_DATA.pack_into(ram, at, count, 0)
            for n in range(count):
                entry = at + abi.RING_DATA.size + n * abi.RING_DATA_ENT.size
                abi.RING_DATA_ENT.pack_into(ram, entry, port, domid, 0, 0, 0, choices.u16(), 0)
        case _:
            for n in range(4):
                abi.GFN.pack_into(ram, at + 8 * n, (choices.u8() % (PAGES + 2)) or _TOP)


def _frames(choices: Choices, area: memoryview, hostile: Guest, count: int) -> None:
    """Frames that are right in most of their fields."""
    tail = int.from_bytes(area[Word.SQ_TAIL : Word.SQ_TAIL + 4], "little")
    for n in range(count):
        slot = SQ_OFFSET + (tail + n) % 64 * 256
        head = choices.u8()
        kind, flags, nregs, rest = Kind.VMCALL, choices.u8() & 1, 9, (0, 0, 0, 0)
        if head & 3 == 0:
            kind, flags, nregs = choices.one_of(_KINDS), choices.u8() & 15, choices.u8() % 20
            rest = (choices.u8() & 3, choices.u8(), choices.u8() & 1, choices.u8() & 1)
        privilege, size, level, zero = rest
        address = choices.one_of(_SELECTORS) if head & 3 == 0 else 0
        FRAME_HEAD.pack_into(area, slot, n, kind, flags, privilege, size, 0, nregs, level, zero, address, 0)
        if head & 4:
            number, cmd = (17, 12, 32, 39, 40)[choices.u8() % 5], choices.u8() & 15
        else:
            number, cmd = 39, 1 + (head >> 3) % 4
        a1, a2, a3 = choices.one_of(_ADDRESSES), choices.one_of(_ADDRESSES), choices.u8() & 15
        a4 = choices.one_of((0, 0, 1, 2, 0xABCD, 1 << 32, _TOP))
        for at, value in enumerate((number, 0, 0, a2, a1, cmd, a4, 0, a3)):
            area[slot + 32 + 8 * at : slot + 40 + 8 * at] = value.to_bytes(8, "little")
    _announce(area, hostile, count)
    _turn(hostile)


def _announce(area: memoryview, hostile: Guest, count: int) -> None:
    """A tail that makes the hypervisor look at `count` frames more, and a head that gives it room."""
    vcpu = hostile.vcpu
    area[Word.SQ_TAIL : Word.SQ_TAIL + 4] = (vcpu.area.sq_head + count & 0xFFFFFFFF).to_bytes(4, "little")
    area[Word.CQ_HEAD : Word.CQ_HEAD + 4] = vcpu.area.cq_tail.to_bytes(4, "little")


def _turn(hostile: Guest) -> None:
    core = hostile.machine.core
    for _ in range(2):
        taken = core.run(hostile.vcpu)
        TALLY.count += taken
        assert 0 <= taken <= TURN
    core.bells.clear()


def _spare(bystander: Guest, ram: bytes, area: bytes) -> None:
    """Nothing that is the bystander's own has changed, and it is served."""
    data = _RING + abi.RING_HEADER_SIZE
    assert bystander.ram[:_RING] == ram[:_RING]
    assert bystander.ram[data + RING_LEN :] == ram[data + RING_LEN :]
    now = bystander.side.buffer
    assert now[: Word.POST_TAIL] == area[: Word.POST_TAIL], "words that no interrupt moves"
    assert now[POSTS_OFFSET + 0x400 :] == area[POSTS_OFFSET + 0x400 :], "frames and completions"
    consumer = Consumer(Window(bystander.ram, _RING, PAGE_SIZE), RING_LEN)
    assert all(message.source_domid == 1 for message in consumer.drain())
    assert bystander.send(2, 1, b"still here") == 10
    message = consumer.receive()
    assert message is not None and (message.source_domid, message.payload) == (2, b"still here")
