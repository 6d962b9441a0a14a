"""Trap frames: which instruction a guest executed, and what became of it.

A guest process cannot execute VMCALL or HVC. It writes down the instruction, its operands and the register
file in a 256-byte frame of its vCPU's submission ring, and the hypervisor answers with a 256-byte
completion. No frame kind knows Argo: an Argo call is a VMCALL or HVC whose registers follow Xen's
hypercall convention.

Byte layout (little-endian), experimental, not upstream:

    submission   seq u32 @0, kind u16 @4, flags u16 @6, privilege u8 @8, size u8 @9, imm u16 @10, nregs u8 @12,
                 level u8 @13, zero u16 @14, address u64 @16, context u64 @24, regs[18] u64 @32
    completion   seq u32 @0, outcome u16 @4, vector u16 @6, error u32 @8, nregs u8 @12, fault address u64 @16,
                 regs[18] u64 @32

Only `nregs` registers are carried; those beyond read as zero.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

FRAME_SIZE: Final = 256
REGS_OFFSET: Final = 32
MAX_REGS: Final = 18


class Arch(IntEnum):
    """Instruction set of a vCPU, as the vCPU area's header states it."""

    X86_64 = 1
    AARCH64 = 2


class Kind(IntEnum):
    """The trapped instruction."""

    VMCALL = 1
    VMMCALL = 2
    CPUID = 3
    RDMSR = 4
    WRMSR = 5
    IN = 6
    OUT = 7
    LOAD = 8
    STORE = 9
    HVC = 10
    SMC = 11
    HLT_WFI = 12


class FrameFlag(IntFlag):
    """How a frame is ordered against its neighbours, and how wide its registers are."""

    LINK = 1
    ASYNC = 2
    WIDTH32 = 4


KNOWN_FLAGS: Final = 7


class Outcome(IntEnum):
    """What became of a frame."""

    DONE = 1
    FAULT = 2
    IGNORED = 3
    CANCELED = 4


class Vector(IntEnum):
    """x86 exception vectors that a trap can end in (Intel SDM vol. 3A, table 6-1)."""

    UD = 6
    GP = 13


class X86Reg(IntEnum):
    """Slots of the general registers in `regs` for x86; slots 14 to 17 are zero."""

    RAX = 0
    RBX = 1
    RCX = 2
    RDX = 3
    RSI = 4
    RDI = 5
    R8 = 6
    R9 = 7
    R10 = 8
    R11 = 9
    R12 = 10
    R13 = 11
    R14 = 12
    R15 = 13


FRAME_HEAD: Final = struct.Struct("<IHHBBHBBHQQ")
COMPLETION_HEAD: Final = struct.Struct("<IHHIB3xQ8x")
# One layout per register count, so that the hot path packs a frame with a single call and no padding.
FRAMES: Final = tuple(struct.Struct(f"<IHHBBHBBHQQ{n}Q") for n in range(MAX_REGS + 1))
COMPLETIONS: Final = tuple(struct.Struct(f"<IHHIB3xQ8x{n}Q") for n in range(MAX_REGS + 1))
# The two shapes of the hot path: a frame of nine registers, its head in two words (kind to imm, nregs to zero), and
# the completion with one result.
CALL: Final = struct.Struct("<IQIQQ9Q")
RESULT: Final = COMPLETIONS[1]
REGS: Final = tuple(struct.Struct(f"<{n}Q") for n in range(MAX_REGS + 1))


class Frame(NamedTuple):
    """One trapped instruction, decoded.  `address` is a port, MSR, CPUID leaf or guest physical address."""

    seq: int
    kind: int
    flags: int
    privilege: int
    size: int
    imm: int
    nregs: int
    level: int
    zero: int
    address: int
    context: int
    regs: tuple[int, ...]

    def reg(self, slot: int) -> int:
        """Register `slot`, zero when the guest did not carry it."""
        return self.regs[slot] if slot < len(self.regs) else 0


class Completion(NamedTuple):
    """The answer to a frame.  `vector`, `error` and `fault_address` matter for FAULT only."""

    seq: int
    outcome: int
    vector: int
    error: int
    nregs: int
    fault_address: int
    regs: tuple[int, ...]


def int32(value: int) -> int:
    """The low 32 bits of a register as a signed number: how a guest must read an Argo result."""
    value &= 0xFFFFFFFF
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


def unpack_frame(buffer: memoryview, offset: int) -> Frame:
    """Decode the frame at `offset`.  A register count above 18 reads 18 registers; the caller judges `nregs` itself."""
    head = FRAME_HEAD.unpack_from(buffer, offset)
    count = min(head[6], MAX_REGS)
    return Frame._make((*head, REGS[count].unpack_from(buffer, offset + REGS_OFFSET)))


def completion(raw: tuple[int, ...]) -> Completion:
    """The completion whose head fields and registers lie flat in `raw`."""
    return Completion._make((*raw[:6], raw[6:]))


def unpack_completion(buffer: memoryview, offset: int) -> Completion:
    """Decode the completion at `offset`.  A register count above 18 reads 18 registers."""
    count = min(COMPLETION_HEAD.unpack_from(buffer, offset)[4], MAX_REGS)
    return completion(COMPLETIONS[count].unpack_from(buffer, offset))
