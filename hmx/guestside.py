"""The plain machinery of a domain that calls its hypervisor, whoever lives in it: a guest's kernel or a hypervisor.

Frames for calls through doors (hmx/doors.py), the question whether a door is there, and `Caller`, which submits
frames of one vCPU in order and says what became of each.  No task, no clock, no bell: the owner rings and decides when
to look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hmx.doors import CALL_INSTRUCTIONS, CONVENTIONS, DESCRIBE, DOOR_MAGIC, DOOR_SIZE, Convention, ranked
from hmx.errno import Errno
from hmx.trap import Arch, Completion, Kind, Outcome, completion, int32
from hmx.vcpu_area import GuestSide

UNKNOWN_OP: Final = 0x3FFF_FFFF  # no operation of Argo
HYPERV_OS_ID: Final = 0x4000_0000
HYPERV_OUR_ID: Final = 0x8100 << 48 | 1  # an open-source guest (Hyper-V TLFS 2.6)
_M32: Final = 0xFFFF_FFFF


class Instruction(NamedTuple):
    """An instruction to trap with: a frame without sequence number and flags."""

    kind: int
    regs: tuple[int, ...]
    address: int = 0
    size: int = 0
    privilege: int = 0
    imm: int = 0


def door_call(row: Convention, *values: int, call: int | None = None) -> Instruction:
    """One call through `row`: only as many registers as it names; `call` replaces Argo's number."""
    regs = [0] * (max(row.number, row.result, *row.arguments) + 1)
    regs[row.number] = row.call if call is None else call
    for slot, value in zip(row.arguments, values, strict=False):
        regs[slot] = value
    immediate = row.selector if row.kind in (Kind.HVC, Kind.SMC) else 0
    return Instruction(
        row.kind,
        tuple(regs),
        address=0 if immediate else row.selector,
        size=DOOR_SIZE if row.kind in (Kind.IN, Kind.STORE) else 0,
        privilege=1 if row.arch is Arch.AARCH64 else 0,
        imm=immediate,
    )


def candidates(arch: Arch, cpu: str, abi: str) -> list[Convention]:
    """The conventions by which a hypervisor with ABI `abi` on machine `cpu` may be called, the best door first."""
    call = next((row.kind for row in CALL_INSTRUCTIONS if row.cpu == cpu), Kind.VMCALL)
    order = {door: rank for rank, door in enumerate(ranked(arch))}
    rows = [row for row in CONVENTIONS if row.arch is arch and row.width == 64 and row.speaks in ("", abi)]
    rows.sort(key=lambda row: (order[row.door], not row.speaks))
    return [row._replace(kind=call) if row.kind is Kind.VMCALL else row for row in rows]


def knock(row: Convention) -> Sequence[Instruction]:
    """What to execute to learn whether `row` leads to Argo: the last one's completion goes to `is_there`."""
    if row.speaks == "xen":
        return (door_call(row, UNKNOWN_OP),)
    if row.speaks == "hyperv":  # which takes no calls from a guest without a name
        name = Instruction(Kind.WRMSR, (HYPERV_OUR_ID & _M32, 0, 0, HYPERV_OUR_ID >> 32), address=HYPERV_OS_ID)
        return (name, door_call(row, DESCRIBE))
    return (door_call(row, DESCRIBE),)


def is_there(row: Convention, done: Completion) -> bool:
    """Whether the answer to a knock is Argo's."""
    if done.outcome != Outcome.DONE or len(done.regs) <= row.result:
        return False
    value = done.regs[row.result]
    return int32(value) == -Errno.EOPNOTSUPP if row.speaks == "xen" else value == DOOR_MAGIC


class Caller:
    """Submits frames of one vCPU and collects what became of them.  `ring()` wakes the hypervisor."""

    def __init__(self, area: GuestSide, ring: Callable[[], None]) -> None:
        self.area = area
        self._ring = ring
        self._laid = False

    def room(self) -> int:
        """Frames that may be submitted now."""
        return self.area.room()

    def submit(self, instruction: Instruction, flags: int = 0) -> int:
        """Lay one frame; its sequence number.  Seen by the hypervisor after `flush`.  BufferError without room."""
        kind, regs, address, size, privilege, imm = instruction
        self._laid = True
        return self.area.submit(kind, regs, flags, privilege, size, imm, address)

    def flush(self) -> None:
        """Show the hypervisor what was laid since the last time, and wake it if it sleeps."""
        if self._laid:
            self._laid = False
            if self.area.publish():
                self._ring()

    def collect(self) -> list[Completion]:
        """The completions that have come, in the order of their frames."""
        count = self.area.completed()
        return [completion(raw) for raw in self.area.collect_raw(count)] if count else []
