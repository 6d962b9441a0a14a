"""The registers of a CPU interface by name: GICC (GICV is alike) and the system registers ICC (ICV).

Sources: Arm IHI 0048B 4.4 and 5.4, IHI 0069 12.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from hmx.cpu.gic import VirtualCpuInterface
from hmx.gic import GICC, find


def _set(attribute: str) -> Callable[[VirtualCpuInterface, int], None]:
    return lambda cpu, value: setattr(cpu, attribute, value)


def _enable(cpu: VirtualCpuInterface, group: int, value: int) -> None:
    cpu.enabled[group] = bool(value & 1)


class Access(NamedTuple):
    """How a register is read and written; None: it is not."""

    read: Callable[[VirtualCpuInterface], int] | None = None
    write: Callable[[VirtualCpuInterface, int], int | None] | None = None


REGISTERS: Final[dict[str, Access]] = {
    "GICC_CTLR": Access(lambda cpu: cpu.ctlr, _set("ctlr")),
    "GICC_PMR": Access(lambda cpu: cpu.pmr, _set("pmr")),
    "GICC_BPR": Access(lambda cpu: cpu.bpr(0), lambda cpu, value: cpu.set_bpr(value, 0)),
    "GICC_IAR": Access(lambda cpu: cpu.iar(0)),
    "GICC_EOIR": Access(None, VirtualCpuInterface.eoir),
    "GICC_RPR": Access(VirtualCpuInterface.rpr),
    "GICC_HPPIR": Access(lambda cpu: cpu.hppir(0)),
    "GICC_ABPR": Access(lambda cpu: cpu.bpr(1), lambda cpu, value: cpu.set_bpr(value, 1)),
    "GICC_AIAR": Access(lambda cpu: cpu.iar(1)),
    "GICC_AEOIR": Access(None, VirtualCpuInterface.eoir),
    "GICC_AHPPIR": Access(lambda cpu: cpu.hppir(1)),
    "GICC_DIR": Access(None, VirtualCpuInterface.dir_),
    "ICC_CTLR_EL1": Access(lambda cpu: cpu.icc_ctlr, _set("icc_ctlr")),
    "ICC_PMR_EL1": Access(lambda cpu: cpu.pmr, _set("pmr")),
    "ICC_BPR0_EL1": Access(lambda cpu: cpu.bpr(0), lambda cpu, value: cpu.set_bpr(value, 0)),
    "ICC_BPR1_EL1": Access(lambda cpu: cpu.bpr(1), lambda cpu, value: cpu.set_bpr(value, 1)),
    "ICC_IAR0_EL1": Access(lambda cpu: cpu.iar(0)),
    "ICC_IAR1_EL1": Access(lambda cpu: cpu.iar(1)),
    "ICC_EOIR0_EL1": Access(None, VirtualCpuInterface.eoir),
    "ICC_EOIR1_EL1": Access(None, VirtualCpuInterface.eoir),
    "ICC_HPPIR0_EL1": Access(lambda cpu: cpu.hppir(0)),
    "ICC_HPPIR1_EL1": Access(lambda cpu: cpu.hppir(1)),
    "ICC_RPR_EL1": Access(VirtualCpuInterface.rpr),
    "ICC_DIR_EL1": Access(None, VirtualCpuInterface.dir_),
    "ICC_IGRPEN0_EL1": Access(lambda cpu: int(cpu.enabled[0]), lambda cpu, value: _enable(cpu, 0, value)),
    "ICC_IGRPEN1_EL1": Access(lambda cpu: int(cpu.enabled[1]), lambda cpu, value: _enable(cpu, 1, value)),
}


def read(cpu: VirtualCpuInterface, name: str) -> int:
    """Read a register by name; zero from a write-only one.  KeyError for an unknown name."""
    access = REGISTERS[name].read
    return 0 if access is None else access(cpu)


def write(cpu: VirtualCpuInterface, name: str, value: int) -> int | None:
    """Write a register by name; a read-only one ignores it.  Returns what the hypervisor must deactivate, as
    :meth:`hmx.cpu.gic.VirtualCpuInterface.eoir` does.
    """
    access = REGISTERS[name].write
    return None if access is None else access(cpu, value)


def load(cpu: VirtualCpuInterface, offset: int) -> int:
    """Load from the GICC frame; zero in a hole."""
    row = find(GICC, offset, 2)
    return read(cpu, row.name) if row else 0


def store(cpu: VirtualCpuInterface, offset: int, value: int) -> int | None:
    """Store to the GICC frame; ignored in a hole.  Returns as :func:`write` does."""
    row = find(GICC, offset, 2)
    return write(cpu, row.name, value) if row else None
