"""A guest's first question: which hypervisors are there, by which doors does one reach Argo, and which is best?

The probe asks only what cannot crash it: CPUID and SMCCC ids say who is there, on Arm a device tree's node too, and
every door is tried with a command that changes nothing.  What a tree says only adds a call that is worth a knock.  What
is absent shows itself in four ways, none of which may be taken for presence: the instruction faults; it is ignored, or
reads as all ones; it yields some other value, zero above all; it answers with an error number.  Only the magic answer
counts (for Xen's own hypercall, which has none: the answer that Argo gives to an operation that it does not know).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from guest_node.kernel.frames import door_trap
from guest_node.vcpu import Trap, Vcpu
from hmx import xen
from hmx.doors import (
    CALL_INSTRUCTIONS,
    CONVENTIONS,
    COST_OF,
    DESCRIBE,
    DOOR_MAGIC,
    Convention,
    DoorFeature,
    ranked,
)
from hmx.errno import Errno
from hmx.hypervisors import (
    AX_PROBE_LEAF,
    AX_PROBE_RDX,
    BY_SIGNATURE,
    BY_UID,
    CPUID_FIRST,
    CPUID_LAST,
    CPUID_PRESENT,
    CPUID_STEP,
    SMCCC_UNKNOWN,
    SMCCC_VENDOR_UID,
    SMCCC_VERSION,
)
from hmx.trap import Arch, Completion, Kind, Outcome, int32
from hmx.vcpu_area import SQ_ENTRIES

_M32: Final = 0xFFFF_FFFF
_UNKNOWN_OP: Final = 0x3FFF_FFFF  # no operation of Argo
_HV_OS_ID: Final = 0x4000_0000
_HV_OUR_ID: Final = 0x8100 << 48 | 1  # an open-source guest (Hyper-V TLFS 2.6)
_ERRNOS: Final = frozenset(-int(errno) for errno in Errno) | {-1, -1000}


class Sign(StrEnum):
    """What knocking at a door showed."""

    PRESENT = "present"
    FAULT = "fault"
    SILENT = "ignored or all ones"
    VALUE = "a value without the magic"
    ERROR = "an error number"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A hypervisor that announced itself: its name, where (CPUID leaf, function id, path), and the ABI it speaks."""

    name: str
    where: int | str
    abi: str
    domid: int | None = None

    @property
    def at(self) -> str:
        """Where, for a person."""
        return self.where if isinstance(self.where, str) else f"{self.where:#x}"


@dataclass(frozen=True, slots=True)
class TreeFinding:
    """The hypervisor node of a device tree: its path, `compatible` (cut short), and whom that names, "" for a stranger.

    `error` says why the tree could not be read.
    """

    path: str = ""
    compatible: tuple[str, ...] = ()
    name: str = ""
    abi: str = ""
    error: str = ""

    def report(self) -> dict[str, object]:
        """For a person."""
        if self.error:
            return {"error": self.error}
        return {"node": self.path, "compatible": list(self.compatible), "hypervisor": self.name or None}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A door that was tried, and what it showed; features are those of its DESCRIBE."""

    convention: Convention
    sign: Sign
    detail: str
    features: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Everything that the probe saw, and the door it chose; None when there is none."""

    arch: Arch
    sightings: tuple[Sighting, ...]
    attempts: tuple[Attempt, ...]
    door: Convention | None
    why: str
    tree: TreeFinding | None = None

    @property
    def domid(self) -> int | None:
        """This domain's own id, where a hypervisor tells it."""
        return next((seen.domid for seen in self.sightings if seen.domid is not None), None)

    @property
    def xen(self) -> Sighting | None:
        """Xen, if it is among the hypervisors."""
        return next((seen for seen in self.sightings if seen.abi == "xen"), None)

    def own_call(self) -> Convention | None:
        """Xen's hypercall, for what is not Argo's; whether Argo is offered by it is another question."""
        return next((tried.convention for tried in self.attempts if tried.convention.speaks == "xen"), None)

    def features(self) -> int:
        """What the chosen door promises; Xen's own call promises Argo alone."""
        chosen = [tried for tried in self.attempts if tried.convention is self.door]
        return chosen[0].features if chosen else 0

    def describes(self) -> bool:
        """Whether the chosen door says what it offers; Xen's own call does not."""
        return self.door is not None and self.door.speaks != "xen"

    def report(self) -> dict[str, object]:
        """For a person: what was tried and why the choice."""
        return {
            "arch": self.arch.name.lower(),
            "hypervisors": [
                {"name": seen.name, "at": seen.at, "abi": seen.abi or "-", "domid": seen.domid}
                for seen in self.sightings
            ],
            "doors": [
                {
                    "door": tried.convention.door,
                    "speaks": tried.convention.speaks or "any",
                    "instruction": tried.convention.kind.name,
                    "selector": f"{tried.convention.selector:#x}",
                    "found": tried.sign.value,
                    "detail": tried.detail,
                    **_cost(tried.convention),
                }
                for tried in self.attempts
            ],
            "chosen": None if self.door is None else self.door.door,
            "why": self.why,
            **({} if self.tree is None else {"device_tree": self.tree.report()}),
        }


def _cost(row: Convention) -> dict[str, object]:
    cost = COST_OF[row.door, row.arch]
    return {"closeness": cost.closeness, "exits": cost.exits, "cycles": cost.cycles}


async def probe(vcpu: Vcpu, arch: Arch, wanted: str = "auto", tree: TreeFinding | None = None) -> Probe:
    """Look around from `vcpu`.  `wanted` names the door to use instead of the best; `tree` is what firmware says."""
    if arch is Arch.X86_64:
        sightings, call = await _look_at_cpuid(vcpu)
    else:
        sightings, call = await _look_at_smccc(vcpu), Kind.HVC
        if tree is not None and tree.name:
            sightings.append(Sighting(tree.name, tree.path, tree.abi))
    attempts = [await _knock(vcpu, row) for row in _candidates(arch, sightings, call)]
    door, why = _choose(arch, attempts, wanted)
    return Probe(arch, tuple(sightings), tuple(attempts), door, why, tree)


# ---- who is there ----


async def _leaves(vcpu: Vcpu, leaves: Sequence[int]) -> list[tuple[int, ...]]:
    """CPUID of many leaves, a few exits at a time."""
    found: list[tuple[int, ...]] = []
    for start in range(0, len(leaves), SQ_ENTRIES):
        some = leaves[start : start + SQ_ENTRIES]
        traps = [Trap(Kind.CPUID, (leaf, 0, 0, 0), address=leaf) for leaf in some]
        for done in await vcpu.trap_chain(traps):
            found.append(done.regs if done.outcome == Outcome.DONE and len(done.regs) >= 4 else (0, 0, 0, 0))
    return found


async def _look_at_cpuid(vcpu: Vcpu) -> tuple[list[Sighting], Kind]:
    vendor, basic, ax = await _leaves(vcpu, (0, 1, AX_PROBE_LEAF))
    spelled = b"".join(vendor[at].to_bytes(4, "little") for at in (1, 3, 2))
    call = next((row.kind for row in CALL_INSTRUCTIONS if row.vendor == spelled), Kind.VMCALL)
    seen = []
    if ax[3] == AX_PROBE_RDX:
        seen.append(Sighting("ax", AX_PROBE_LEAF, ""))
    if not basic[2] & CPUID_PRESENT:
        return seen, call
    bases = range(CPUID_FIRST, CPUID_LAST + 1, CPUID_STEP)
    for base, leaf in zip(bases, await _leaves(vcpu, bases), strict=True):
        found = BY_SIGNATURE.get((leaf[1], leaf[2], leaf[3]))
        if found is None:
            continue
        domid = None
        if found.abi == "xen":
            (hvm,) = await _leaves(vcpu, (base + 4,))
            domid = hvm[2] if hvm[0] & xen.CPUID_HVM_DOMID_PRESENT else None
        seen.append(Sighting(found.name, base, found.abi, domid))
    return seen, call


async def _look_at_smccc(vcpu: Vcpu) -> list[Sighting]:
    """The vendor's id by HVC, then by SMC: whichever conduit answers the version call."""
    for kind in (Kind.HVC, Kind.SMC):
        version = await vcpu.trap(Trap(kind, (SMCCC_VERSION, 0, 0, 0), privilege=1))
        if version.outcome != Outcome.DONE or version.regs[0] & _M32 == SMCCC_UNKNOWN & _M32:
            continue
        done = await vcpu.trap(Trap(kind, (SMCCC_VENDOR_UID, 0, 0, 0), privilege=1))
        regs = tuple(reg & _M32 for reg in done.regs[:4])
        found = BY_UID.get(regs) if done.outcome == Outcome.DONE and len(regs) == 4 else None
        if found is not None:
            return [Sighting(found.name, SMCCC_VENDOR_UID, found.abi)]
    return []


# ---- doors ----


def _candidates(arch: Arch, sightings: Sequence[Sighting], call: Kind) -> list[Convention]:
    """Every convention worth trying: those of the hypervisors that were seen, and those that anyone may offer."""
    abis = {seen.abi for seen in sightings}
    rows = [row for row in CONVENTIONS if row.arch is arch and row.width == 64 and row.speaks in ("", *abis)]
    return [row._replace(kind=call) if row.kind is Kind.VMCALL else row for row in rows]


async def _knock(vcpu: Vcpu, row: Convention) -> Attempt:
    if row.speaks == "hyperv" and row.arch is Arch.X86_64:
        name = Trap(Kind.WRMSR, (_HV_OUR_ID & _M32, 0, 0, _HV_OUR_ID >> 32), address=_HV_OS_ID)
        await vcpu.trap(name)  # Hyper-V takes no calls from a guest without a name
    plain = row.speaks == "xen"
    done = await vcpu.trap(door_trap(row, _UNKNOWN_OP if plain else DESCRIBE))
    return _judge(row, done, plain)


def _judge(row: Convention, done: Completion, plain: bool) -> Attempt:
    if done.outcome == Outcome.FAULT:
        return Attempt(row, Sign.FAULT, f"vector {done.vector}")
    if done.outcome != Outcome.DONE or not done.regs:
        return Attempt(row, Sign.SILENT, "ignored")
    value = done.regs[row.result]
    if plain:
        ret = int32(value)
        if ret == -Errno.EOPNOTSUPP:
            return Attempt(row, Sign.PRESENT, "argo_op refuses an unknown operation", int(DoorFeature.ARGO))
        return Attempt(row, Sign.ERROR if ret < 0 else Sign.VALUE, f"{ret}")
    if value == DOOR_MAGIC and len(done.regs) > 1:
        at = 2 if row.arch is Arch.AARCH64 else 4
        features = done.regs[at] if len(done.regs) > at else int(DoorFeature.ARGO)
        return Attempt(row, Sign.PRESENT, f"revision {done.regs[1]}", features)
    if value in (_M32, (1 << 64) - 1) and row.kind in (Kind.IN, Kind.STORE):
        return Attempt(row, Sign.SILENT, "all ones")
    if int32(value) in _ERRNOS:
        return Attempt(row, Sign.ERROR, f"{int32(value)}")
    return Attempt(row, Sign.VALUE, f"{value:#x}")


def _choose(arch: Arch, attempts: Sequence[Attempt], wanted: str) -> tuple[Convention | None, str]:
    """The best of the doors that are there, or the one that is wanted; and the reason in words."""
    present: dict[str, Convention] = {}
    for tried in attempts:
        if tried.sign is Sign.PRESENT:
            present.setdefault(tried.convention.door, tried.convention)  # a hypervisor's own call stands first
    if wanted != "auto":
        if wanted in present:
            return present[wanted], f"{wanted} was asked for and is there"
        return None, f"{wanted} was asked for and is not there; found: {', '.join(present) or 'none'}"
    for door in ranked(arch):
        if door in present:
            rivals = [other for other in ranked(arch) if other in present]
            words = f"closest to the architecture and cheapest of {', '.join(rivals)}"
            return present[door], f"{door}: {words if len(rivals) > 1 else 'the only one'}"
    return None, "no door to Argo was found"
