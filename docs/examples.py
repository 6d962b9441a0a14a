"""Worked examples: calls that are made, when the documents are written, of a hypervisor in this process."""

from __future__ import annotations

from collections.abc import Mapping

from docs.render import cell, number, register, table
from guest_node.kernel.frames import door_trap
from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.doors import CONVENTIONS, DESCRIBE, Convention, convention
from hmx.memory import PAGE_SIZE, MappedMemory
from hmx.trap import Arch, Completion, Kind, Outcome
from hmx.vcpu_area import AREA_SIZE, GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.silicon import CPUS
from hv_node.doors.tables import NAMED, PERSONALITIES
from hv_node.hvm import Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name

_CPU = {Arch.X86_64: "intel", Arch.AARCH64: "armv8"}
_DOOR = {Arch.X86_64: "msr", Arch.AARCH64: "hvc"}
_FAULTS = {0: "UNDEF", 6: "#UD", 13: "#GP"}
_MODES = ("line", "vector-per-ring")
_GFNS, _RING, _ARGUMENTS, _PAYLOAD = 3, 16, PAGE_SIZE, 4 * PAGE_SIZE
_TEXT = b"hello"


class _Guest:
    """A domain of one vCPU whose frames are executed at once."""

    def __init__(self, core: Hypervisor, arch: Arch, domid: int) -> None:
        self.ram = bytearray(32 * PAGE_SIZE)
        area = memoryview(bytearray(AREA_SIZE))
        self._core = core
        self._vcpu: Vcpu = core.create_domain(domid, MappedMemory(self.ram), [area]).vcpus[0]
        self._side = GuestSide(area, arch)

    def call(self, row: Convention, *values: int) -> tuple[tuple[int, ...], Completion]:
        """Registers before a call through `row`, and its completion."""
        trap = door_trap(row, *values)
        self._side.submit(
            trap.kind, trap.regs, address=trap.address, imm=trap.imm, size=trap.size, privilege=trap.privilege
        )
        self._side.publish()
        self._core.run(self._vcpu)
        return trap.regs, self._side.collect()


def _core(personality: str, arch: Arch, cpu: str, *doors: str) -> Hypervisor:
    options, _ = parse_options("on,mac-permissive")
    table = PERSONALITIES[personality, arch]
    return Hypervisor(table, cpu, options, xsm_by_name("dummy"), doors=doors, notifications=_MODES)


def _registers(arch: Arch, regs: tuple[int, ...], named: Mapping[int, str]) -> str:
    words = [f"{register(arch, slot)} = {number(value)}" for slot, value in enumerate(regs) if slot in named or value]
    return ", ".join(words)


def _example(row: Convention, before: tuple[int, ...], done: Completion) -> str:
    used = dict.fromkeys((row.number, *row.arguments), "")
    after = dict.fromkeys(range(len(done.regs)), "")
    where = f"{row.kind.name} {number(row.selector)}"
    return table(
        ("", "registers"),
        (
            (f"before {where}", _registers(row.arch, before, used)),
            (f"after: {cell(Outcome(done.outcome))}", _registers(row.arch, done.regs, after)),
        ),
    )


def describe(arch: Arch) -> str:
    """DESCRIBE by the first door of ours on `arch`, of a hypervisor that offers two notification modes."""
    core = _core("kvm", arch, _CPU[arch], _DOOR[arch])
    row = convention(_DOOR[arch], arch, speaks="")
    return _example(row, *_Guest(core, arch, 1).call(row, DESCRIBE))


def sendv(arch: Arch) -> str:
    """Five bytes from domain 1 to port 9 of domain 2, and a second message to a port that nobody has registered."""
    core = _core("kvm", arch, _CPU[arch], _DOOR[arch])
    row = convention(_DOOR[arch], arch, speaks="")
    sender, receiver = _Guest(core, arch, 1), _Guest(core, arch, 2)
    abi.REGISTER_RING.pack_into(receiver.ram, _ARGUMENTS, 9, DOMID_ANY, 0, 4032)
    abi.GFN.pack_into(receiver.ram, _GFNS * PAGE_SIZE, _RING)
    receiver.call(row, Op.REGISTER_RING, _ARGUMENTS, _GFNS * PAGE_SIZE, 1, 0)
    parts = []
    for port in (9, 10):
        abi.SEND_ADDR.pack_into(sender.ram, _ARGUMENTS, 5, DOMID_ANY, 0, port, 2, 0)
        abi.IOV.pack_into(sender.ram, _ARGUMENTS + abi.SEND_ADDR.size, _PAYLOAD, len(_TEXT), 0)
        sender.ram[_PAYLOAD : _PAYLOAD + len(_TEXT)] = _TEXT
        call = sender.call(row, Op.SENDV, _ARGUMENTS, _ARGUMENTS + abi.SEND_ADDR.size, 1, 7)
        parts.append(_example(row, *call))
    return "\n\n".join(parts)


def _shown(row: Convention, done: Completion) -> str:
    """What a completion looks like to a guest."""
    if done.outcome == Outcome.FAULT:
        return _FAULTS[done.vector]
    if done.outcome != Outcome.DONE or not done.regs:
        return "ignored"
    ones = (1 << 32) - 1
    value = done.regs[row.result]
    if row.kind in (Kind.IN, Kind.LOAD) and value == ones:
        return "all ones"
    if value >> 63:
        return f"{value - (1 << 64)}"
    if value == row.call and row.number == row.result:
        return "unchanged"
    return number(value) or ""


def absent_doors(arch: Arch) -> str:
    """What DESCRIBE at each door of ours shows where it is not offered, by personality and machine."""
    rows = [row for row in CONVENTIONS if row.arch is arch and not row.speaks]
    lines = []
    for personality in (row.name for row in NAMED if row.arch is arch):
        for cpu in CPUS:
            if (cpu == "armv8") is not (arch is Arch.AARCH64):
                continue
            guest = _Guest(_core(personality, arch, cpu), arch, 1)
            lines.append((personality, cpu, *(_shown(row, guest.call(row, DESCRIBE)[1]) for row in rows)))
    return table(("personality", "cpu", *(row.door for row in rows)), lines)
