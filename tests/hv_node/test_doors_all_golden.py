"""Every personality against tests/golden/doors.csv, which was written from the manuals alone: one instruction a row."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hmx.doors import DESCRIBE, convention
from hmx.errno import Errno
from hmx.hypervisors import AX_V4V_LEAF
from hmx.trap import Arch, Completion, Kind, Outcome, Vector, int32
from tests.doubles.machine import Guest, Machine
from tests.golden import rows

ROWS = rows("doors.csv")
X86 = {"ax": 0, "bx": 1, "cx": 2, "dx": 3}
_DOOR_KINDS = {
    Kind.WRMSR: "msr", Kind.CPUID: "cpuid", Kind.IN: "pio", Kind.STORE: "mmio", Kind.HVC: "hvc", Kind.SMC: "smc",
}  # fmt: skip
PAGE = 32 * 4096
#: Rows with which the project disagrees, and why.
DEPARTURES: dict[tuple[str, ...], str] = {}


def departure(row: dict[str, str]) -> str | None:
    """Why the project does otherwise on purpose."""
    key = (row["personality"], row["arch"], row["instruction"], row["selector"], row["privilege"], row["number"])
    return DEPARTURES.get(key)


def names() -> Iterator[str]:
    for index, row in enumerate(ROWS):
        columns = ("personality", "cpu", "doors", "instruction", "selector", "privilege", "number")
        yield f"{index + 2}-" + "-".join(row[name] for name in columns)


def execute(guest: Guest, row: dict[str, str], arch: Arch) -> Completion:
    """Execute the instruction of a row."""
    kind = Kind[row["instruction"]]
    selector, _, size = row["selector"].partition("/")
    where = 0 if selector == "-" else int(selector, 0)
    regs = [0] * 18
    number = row["number"]
    if number == "describe":
        door = convention(_DOOR_KINDS[kind], arch, speaks="")
        regs[door.number], regs[door.arguments[0]] = door.call, DESCRIBE
    elif number == "unknown-op":
        regs[5] = 0x3FFF
    elif "=" in number:
        for word in number.split(";"):
            name, _, value = word.partition("=")
            regs[X86[name[1:]]] = int(value, 0)
    elif number != "-":
        regs[number_slot(row, kind, arch)] = int(number, 0)
    if kind is Kind.WRMSR and number == "-":
        regs[0] = PAGE
    immediate = where if kind in (Kind.HVC, Kind.SMC) else 0
    return guest.trap(
        kind, tuple(regs), address=0 if immediate else where, imm=immediate, size=int(size or 0),
        privilege=int(row["privilege"]),
    )  # fmt: skip


def number_slot(row: dict[str, str], kind: Kind, arch: Arch) -> int:
    """The register that the column `number` stands for."""
    if arch is Arch.AARCH64:
        return 16 if kind is Kind.HVC and row["selector"].lower() == "0xea1" else 0
    return {"acrn": 6, "hyperv": 2}.get(row["personality"], 0) if kind in (Kind.VMCALL, Kind.VMMCALL) else 0


@pytest.mark.parametrize("row", ROWS, ids=names())
def test_door(row: dict[str, str]) -> None:
    """What the guest sees of one instruction."""
    arch = Arch[row["arch"].upper()]
    doors = () if row["doors"] == "-" else (row["doors"],)
    if row["personality"] in ("xen", "xen-viridian"):
        doors = (*doors, "hypercall", "hvc")  # Xen's own call is always there
    machine = Machine(personality=row["personality"], arch=arch, cpu=row["cpu"], doors=doors)
    guest = machine.guest(5)
    if "PRECONDITION" in row["source"] and arch is Arch.X86_64:
        guest.trap(Kind.WRMSR, (1, 0, 0, 0x8100), address=0x4000_0000)
    done = execute(guest, row, arch)
    why = departure(row)
    if why is not None:
        assert not agrees(row, done, arch), "this departure is none any more"
        return
    assert agrees(row, done, arch), (done, row)


def agrees(row: dict[str, str], done: Completion, arch: Arch) -> bool:
    """Whether the completion is what the row says."""
    outcome = row["outcome"]
    if outcome.startswith("FAULT"):
        wanted = {"UNDEF": 0, "#UD": Vector.UD, "#GP": Vector.GP}[outcome.split()[1]]
        return done.outcome == Outcome.FAULT and done.vector == wanted
    if outcome == "IGNORED":
        return done.outcome == Outcome.IGNORED
    if done.outcome != Outcome.DONE:
        return False
    return all(holds(fact, row, done, arch) for fact in row["result"].split(";") if fact != "-")


def holds(fact: str, row: dict[str, str], done: Completion, arch: Arch) -> bool:
    """Whether one fact about the registers is true."""
    regs = (*done.regs, *(0,) * (18 - len(done.regs)))
    if fact == "ones":
        size = int(row["selector"].partition("/")[2])
        return regs[0] & (1 << 8 * size) - 1 == (1 << 8 * size) - 1
    if fact == "notmagic":
        return regs[0] & 0xFFFF_FFFF != 0x6F67_7241
    if fact == "zero":
        return not any(regs)
    name, _, value = fact.partition("=")
    if name == "ret":
        wanted = -Errno[value[1:]] if value.startswith("-E") else int(value)
        return int32(regs[0]) == wanted
    bit = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    register = bit[1] if bit else name
    found = regs[int(register[1:])] if arch is Arch.AARCH64 else regs[X86[register[1:]]]
    if bit:
        return found >> int(bit[2]) & 1 == int(value)
    return found == int(value, 0)


def test_the_reference_covers_every_personality() -> None:
    """At least 150 rows, all personalities, all doors, user mode too."""
    assert len(ROWS) >= 150
    assert len({(row["personality"], row["arch"]) for row in ROWS}) == 20
    assert {row["doors"] for row in ROWS} >= {"msr", "cpuid", "pio", "mmio", "hvc", "smc"}
    assert any(int(row["selector"], 0) == AX_V4V_LEAF for row in ROWS if row["instruction"] == "CPUID")
