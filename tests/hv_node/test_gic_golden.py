"""The interrupt controller against tests/golden/gic.csv, each row executed by the table's grammar.

Both sides run: after each step guest and hypervisor exchange what the shared words hold until neither has anything to
say.  The `lr_` rows show what a virtual CPU interface does in the architecture's registers: :class:`ListRegisters` of
the hypervisor and the interface of the guest do it, and :class:`Machine` translates.  What no word of ours holds - the
HW bit, ICH_HCR's enables and count - the translation keeps, and acts on what both sides say became of an entry.
"""

from __future__ import annotations

import re
import struct

import pytest

from hmx.cpu import gic_registers
from hmx.gic import (
    GICD,
    GICH_LR,
    ICH_LR,
    LR_OFFSET,
    LR_STATE_OFFSET,
    SHARED_LR,
    SHARED_LR_STATE,
    IntidKind,
    LrState,
    decode,
    encode,
    find,
)
from hmx.shm import load64, store64
from hv_node.interrupts.its import parse
from hv_node.interrupts.listregs import Entry, Interrupt, ListRegisters
from hv_node.interrupts.v2m import MsiFrame
from tests.doubles.gic_model import CONFIG_TABLE, Rig
from tests.golden import number, rows

ROWS = rows("gic.csv")
STATES = {"invalid": 0, "pending": 1, "active": 2, "both": 3}
FIELDS = {"prio": "priority", "col": "collection"}

ONE_OF_N = ("dist_v2_spi_target_both_signals", "dist_v2_spi_one_n", "dist_v2_spi_one_n_loser")
"""Rows of an SPI with several GICv2 targets, which are the same to the distributor.

IHI 0048B 1.4.3 (the 1-N model): one of them handles the interrupt.  Which, and whether the others see it signalled
until then, the architecture leaves open.  Several copies in list registers would need the first acknowledgement to take
the others back atomically, across words that have one writer each; so one target is chosen when the SPI becomes
pending, as hypervisors do (Xen vgic_get_target_vcpu, KVM vgic_target_oracle).  The rows name the CPU that wins: they
must hold with the targets renamed so that it is the one that was chosen.
"""


def facts(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (fact.partition("=") for fact in text.split(";") if fact)]


def members(text: str) -> set[int]:
    return {number(item) for item in text.strip("{}").split(",") if item}


def cpu_of(name: str) -> int:
    found = re.search(r"\((\d+)\)$", name)
    return int(found[1]) if found else 0


class Machine:
    """The state that a row's facts and steps speak of."""

    def __init__(self, before: str) -> None:
        known = dict(facts(before))
        self.is_lr = "lr" in known
        self.version = 2 if known.get("gic") == "v2" else 3
        self.rig = Rig(int(known.get("cpus", "1")), self.version)
        self.result: int | None = None
        self.frame = MsiFrame(0x0800_0000, int(known.get("v2m-base", "0")), int(known.get("v2m-num", "0")))
        self.decoded: dict[str, int] = {}
        self.hcr = 0
        self.physical: dict[int, int] = {}  # list register with HW set -> INTID of the physical interrupt behind it
        self.deactivated: int | None = None
        self.layout = GICH_LR if self.version == 2 else ICH_LR
        dist = self.rig.dist
        for irq in (*dist.spis, *(irq for bank in dist.banked for irq in bank)):
            dist.set_enabled(irq, True)
            dist.set_group(irq, 1)
            dist.set_priority(irq, 0xA0)
        dist.set_ctlr(3)
        for vcpu, cpu in enumerate(self.rig.cpus):
            cpu.pmr = 0xFF
            cpu.enabled = [True, True]
            cpu.ack_ctl = True
            self.rig.gicrs[vcpu].write(0x70, CONFIG_TABLE | 15, 8)
            self.rig.lpis.enable(vcpu, known.get("enable-lpis") != "0")
        self.rig.its.enabled = True
        for name, value in facts(before):
            self.given(name, value)

    def irqs(self, vcpu: int) -> list[int]:
        return [*range(32), *(irq.intid for irq in self.rig.dist.spis), *self.rig.dist.lpis]

    def given(self, name: str, value: str) -> None:
        dist, cpu = self.rig.dist, self.rig.cpus[0]
        plain = name.split("(")[0]
        match plain:
            case "edge":
                for intid in members(value):
                    for vcpu in range(len(self.rig.cpus)):
                        dist.set_edge(dist.interrupt(intid, vcpu), True)  # type: ignore[arg-type]
            case "enabled":
                for intid in self.irqs(0):
                    irq = dist.interrupt(intid, cpu_of(name))
                    assert irq is not None
                    dist.set_enabled(irq, intid in members(value))
            case "prio" if "(" in name:
                intid, vcpu = self.named(name)
                dist.set_priority(dist.interrupt(intid, vcpu), number(value))  # type: ignore[arg-type]
            case "target":
                dist.set_mask(dist.interrupt(cpu_of(name)), number(value))  # type: ignore[arg-type]
            case "route":
                dist.set_route(dist.interrupt(cpu_of(name)), self.route(value))  # type: ignore[arg-type]
            case "pmr":
                cpu.pmr = number(value)
            case "bpr":
                cpu.set_bpr(number(value), 1)
            case "eoimode":
                cpu.eoi_mode = number(value)
            case "lpi-config":
                self.rig.config[cpu_of(name)] = number(value)
            case "lr" | "lr1":
                self.list_register(0 if name == "lr" else 1, number(value))
            case "hcr":
                self.hcr = number(value)
            case "running" if number(value) != 0xFF:
                cpu.apr[1] = 1 << (number(value) >> 3)

    @staticmethod
    def named(name: str) -> tuple[int, int]:
        """prio(27)@1: the INTID and the vCPU."""
        found = re.fullmatch(r"prio\((\d+)\)(?:@(\d+))?", name)
        assert found is not None
        return int(found[1]), int(found[2] or 0)

    @staticmethod
    def route(text: str) -> int:
        if text == "any":
            return 1 << 31
        aff3, aff2, aff1, aff0 = (int(part, 16) for part in text.removeprefix("0x").split("."))
        return aff3 << 32 | aff2 << 16 | aff1 << 8 | aff0

    # -- list registers of an lr_ row: an entry that no distributor stands behind ----

    def list_register(self, n: int, word: int) -> None:
        """Have both sides hold what the architecture's word says."""
        entry = decode(self.layout, word)
        state = entry["state"]
        if not state:
            return
        if entry["hw"]:
            self.physical[n] = entry["pintid"]
        vintid = entry["vintid"] | entry.get("cpuid", 0) << 10
        priority = entry["priority"] << 3 if self.version == 2 else entry["priority"]
        shared = encode(
            SHARED_LR, vintid=vintid, generation=1, phase=state & 1, eoi=entry.get("eoi", 0), priority=priority,
            group=entry["group"], state=LrState.PENDING,
        )  # fmt: skip
        words, bank = self.rig.areas[0], self.bank
        store64(words, (LR_OFFSET >> 3) + n, shared)
        mine = encode(SHARED_LR_STATE, generation=state >> 1, active=state >> 1)
        store64(words, (LR_STATE_OFFSET >> 3) + n, mine)
        self.rig.cpus[0]._mine[n] = mine
        irq = Interrupt(entry["vintid"], IntidKind.SPI, entry["group"], 0)
        irq.edge = True
        bank.entries[n] = irq.at = Entry(bank, n, irq)
        bank._lr[bank._index(n)] = shared

    @property
    def bank(self) -> ListRegisters:
        return self.rig.dist.lists[0]

    def states(self) -> list[int]:
        """Pending (1) and active (2) of every register: the hypervisor's view, which is that of the guest."""
        views = [None if entry is None else self.bank.look(entry) for entry in self.bank.entries]
        states = [0 if view is None else view.pending | view.active << 1 for view in views]
        assert states == [self.rig.cpus[0].state(n) for n in range(len(states))]
        return states

    def seen(self, n: int) -> dict[str, int]:
        """The list register as the architecture would show it."""
        word = load64(self.rig.areas[0], (LR_OFFSET >> 3) + n)
        return {**decode(SHARED_LR, word), "state": self.states()[n]}

    def as_lr(self, n: int) -> int:
        entry = self.seen(n)
        if not load64(self.rig.areas[0], (LR_OFFSET >> 3) + n):
            return 0
        common = {name: entry[name] for name in ("group", "state")}
        if n in self.physical:
            common |= {"hw": 1, "pintid": self.physical[n]}
        else:
            common["eoi"] = entry["eoi"]
        if self.version == 2:
            source = {} if n in self.physical else {"cpuid": entry["vintid"] >> 10}
            return encode(
                GICH_LR, vintid=entry["vintid"] & 0x3FF, priority=entry["priority"] >> 3, **source, **common
            )
        return encode(ICH_LR, vintid=entry["vintid"], priority=entry["priority"], **common)

    def look(self, before: list[int]) -> None:
        """The hypervisor looks after a step: the end of an entry with HW ends the physical interrupt behind it."""
        after = self.states()
        for n, intid in self.physical.items():
            if before[n] & 2 and not after[n]:
                assert self.deactivated is None
                self.deactivated = intid
        self.rig.dist.fold(0)
        assert all(bool(state) == (entry is not None) for state, entry in zip(after, self.bank.entries, strict=True))

    def misr(self) -> int:
        """The maintenance interrupts that HCR asks for (IHI 0048B 5.3.3, IHI 0069 ICH_MISR_EL2)."""
        states, enabled = self.states(), self.hcr & 1
        seen = self.seen(0)
        eoi = bool(seen["eoi"]) and not seen["state"]
        underflow = bool(self.hcr >> 1 & 1) and sum(map(bool, states)) <= 1
        not_present = bool(self.hcr >> 2 & 1) and self.hcr >> 27 != 0
        none_pending = bool(self.hcr >> 3 & 1) and not any(state & 1 for state in states)
        return enabled * (eoi | underflow << 1 | not_present << 2 | none_pending << 3)

    # -- steps ----

    def step(self, text: str) -> None:
        words = text.split()
        verb, vcpu = words[0].split("(")[0], cpu_of(words[0])
        before = self.states() if self.is_lr else []
        rig, dist, cpu = self.rig, self.rig.dist, self.rig.cpus[cpu_of(words[0])]
        match verb:
            case "raise" | "lower":
                dist.raise_line(int(words[1]), verb == "raise", vcpu)
            case "edge":
                dist.raise_line(int(words[1]), True, vcpu)
                rig.pump()
                dist.raise_line(int(words[1]), False, vcpu)
            case "iar":
                self.result = cpu.iar(1)
            case "eoir":
                rest = cpu.eoir(number(words[1]))
                if self.is_lr and rest is not None:
                    self.hcr += 1 << 27  # EOICount: the end of an interrupt that no register holds, here a trap
                else:
                    rig.end(vcpu, rest)
            case "dir":
                rig.end(vcpu, cpu.dir_(number(words[1])))
            case "sgi":
                intid, targets = int(words[1]), number(words[2].split("=")[1])
                if self.version == 2:
                    dist.sgi_v2(vcpu, targets << 16 | intid)
                else:
                    dist.sgi_v3(vcpu, intid << 24 | targets)
            case "read":
                self.result = self.register(words[1], vcpu)
            case "write":
                self.store(words[1], vcpu, number(words[2]))
            case "lpi-config":
                intid_text, _, value = words[1].partition("=")
                rig.config[int(intid_text)] = number(value)
            case "msi":
                given = dict(word.split("=") for word in words[1:])
                rig.its.write(0x10040, number(given["event"]), 4, number(given["device"]))
            case "decode" if len(words) > 1:
                parsed = parse(struct.pack("<4Q", *map(number, words[1:])))
                assert parsed is not None
                self.decoded = dict(parsed[1])
                self.command = parsed[0].name.lower()
            case "nop" | "encode" | "decode":
                pass
            case _:
                rig.its.execute(self.command_bytes(verb, words[1:]))
        if self.is_lr:
            self.look(before)
        rig.pump()

    @staticmethod
    def command_bytes(verb: str, args: list[str]) -> bytes:
        """A command of the queue, packed by the layout of IHI 0069 5.3 written out once more."""
        plain = [number(arg) for arg in args if "=" not in arg]
        named = {name: number(value) for name, value in (arg.split("=") for arg in args if "=" in arg)}
        valid = named.get("valid", 1) << 63
        match verb:
            case "mapd":
                quads = (8 | plain[0] << 32, named.get("bits", 1) - 1, valid | 0x4000_0000, 0)
            case "mapc":
                quads = (9, 0, valid | named.get("cpu", 0) << 16 | plain[0], 0)
            case "mapti":
                quads = (10 | plain[0] << 32, plain[2] << 32 | plain[1], named["col"], 0)
            case "mapi" | "movi":
                quads = ((11 if verb == "mapi" else 1) | plain[0] << 32, plain[1], named["col"], 0)
            case "int" | "clear" | "discard" | "inv":
                code = {"int": 3, "clear": 4, "discard": 15, "inv": 12}[verb]
                quads = (code | plain[0] << 32, plain[1], 0, 0)
            case "invall":
                quads = (13, 0, plain[0], 0)
            case "movall":
                quads = (14, 0, plain[0] << 16, plain[1] << 16)
            case _:
                raise AssertionError(verb)
        return struct.pack("<4Q", *quads)

    def place(self, name: str) -> tuple[str, int]:
        found = re.fullmatch(r"(\w+?)(?:\((\w+)\))?", name)
        assert found is not None
        offset = number(found[2]) if found[2] else 0
        if found[1].startswith("GICD_") and "RESERVED" not in found[1] and (row := find(GICD, offset, self.version)):
            assert found[1].startswith(row.name), f"{row.name} lies at {offset:#x}"
        return found[1], offset

    def register(self, text: str, vcpu: int) -> int:
        name, offset = self.place(text)
        wide = 8 if name in ("GICR_TYPER",) or name.startswith("GICD_IROUTER") else 4
        match name.split("_")[0]:
            case "GICD":
                return self.rig.gicd.read(vcpu, offset, wide)
            case "GICR":
                return self.rig.gicrs[vcpu].read(offset, wide)
            case "GICC" | "GICV":
                return gic_registers.load(self.rig.cpus[vcpu], offset)
            case "V2M":
                return self.frame.read(offset)
            case "ICH" | "GICH":
                return self.vmcr_as_seen(name)
        return gic_registers.read(self.rig.cpus[vcpu], name.replace("ICV_", "ICC_"))

    def vmcr_as_seen(self, name: str) -> int:
        assert name in ("ICH_VMCR_EL2", "GICH_VMCR")
        return self.rig.cpus[0].vmcr

    def store(self, text: str, vcpu: int, value: int) -> None:
        name, offset = self.place(text)
        wide = 8 if name.startswith("GICD_IROUTER") else 4
        match name.split("_")[0]:
            case "GICD":
                self.rig.gicd.write(vcpu, offset, value, wide)
            case "GICR":
                self.rig.gicrs[vcpu].write(offset, value, wide)
            case "GITS":
                self.rig.its.write(offset, value, 4)
            case "GICC" | "GICV":
                self.rig.end(vcpu, gic_registers.store(self.rig.cpus[vcpu], offset, value))
            case "V2M":
                spi = self.frame.decode(self.frame.base + offset, value)
                if spi is not None:
                    self.rig.dist.pulse(spi)
            case _ if "SGI1R" in name:
                self.rig.dist.sgi_v3(vcpu, value)
            case _:
                gic_registers.write(self.rig.cpus[vcpu], name.replace("ICV_", "ICC_"), value)

    # -- what came of it ----

    def signalled(self, vcpu: int) -> int | None:
        """The INTID that an acknowledge would give now."""
        cpu = self.rig.cpus[vcpu]
        return cpu.hppir(1) if cpu.signalled() else None

    def found(self, name: str) -> object:
        rig, dist, cpu = self.rig, self.rig.dist, self.rig.cpus[0]
        vcpu = cpu_of(name)
        plain = name.split("(")[0]
        match plain:
            case "result":
                return self.result
            case "pending" | "active":
                ask = dist.pending if plain == "pending" else dist.active
                held = {
                    intid for intid in self.irqs(vcpu)
                    if intid < 8192 and ask(dist.interrupt(intid, vcpu))  # type: ignore[arg-type]
                }  # fmt: skip
                return held | {irq.intid for irq in dist.lpis.values() if irq.target == vcpu and ask(irq)}
            case "enabled":
                return {n for n in self.irqs(vcpu) if n < 8192 and dist.interrupt(n, vcpu).enabled}  # type: ignore[union-attr]
            case "edge":
                return {irq.intid for irq in dist.spis if irq.edge}
            case "level-line":
                return {irq.intid for irq in (*dist.banked[0], *dist.spis) if irq.line}
            case "signalled":
                if name == "signalled(any)":
                    return next((n for n in map(self.signalled, range(len(rig.cpus))) if n is not None), None)
                return self.signalled(vcpu)
            case "running":
                return cpu.rpr()
            case "pmr":
                return cpu.pmr
            case "bpr":
                return cpu.bpr(1)
            case "eoimode":
                return cpu.eoi_mode
            case "prio":
                intid, vcpu = self.named(name)
                return dist.interrupt(intid, vcpu).priority  # type: ignore[union-attr]
            case "target":
                return dist.interrupt(vcpu).mask  # type: ignore[union-attr]
            case "route":
                return dist.interrupt(vcpu).route  # type: ignore[union-attr]
            case "lr" | "lr1":
                return self.as_lr(0 if name == "lr" else 1)
            case "state":
                return self.seen(0)["state"]
            case "deactivated":
                return self.deactivated
            case "hcr":
                return self.hcr
            case "misr":
                return self.misr()
            case "cmd":
                return self.command
            case "eisr":  # an entry with the EOI bit that has ended
                return int(bool(self.seen(0)["eoi"]) and self.seen(0)["state"] == 0)
            case "elrsr":
                return int(self.seen(0)["state"] == 0 and not self.seen(0)["eoi"])
        return self.decoded[FIELDS.get(name, name)]

    def expected(self, name: str, text: str) -> object:
        plain = name.split("(")[0]
        if plain in ("pending", "active", "enabled", "edge", "level-line"):
            return members(text)
        if plain == "route":
            return self.route(text)
        if plain == "state":
            return STATES[text]
        if plain == "cmd":
            return text
        return None if text == "none" else number(text)


def check(row: dict[str, str], after: str) -> None:
    machine = Machine(row["before"])
    machine.rig.pump()
    for step in row["event"].split(", "):
        machine.step(step)
    for name, text in facts(after):
        name, _, mask = name.partition("&")
        found, expected = machine.found(name), machine.expected(name, text)
        if mask:
            assert isinstance(found, int)
            found &= number(mask)
        assert found == expected, f"{name}: {found!r}, not {text}"


WORDS = [row for row in ROWS if re.match(r"lr_v\d_(en|de)code", row["case"])]
STEPS = [row for row in ROWS if row not in WORDS]


@pytest.mark.parametrize("row", [row for row in STEPS if row["case"] not in ONE_OF_N], ids=lambda row: row["case"])
def test_row(row: dict[str, str]) -> None:
    """Distributor, redistributors, CPU interfaces, ITS and v2m frame: the row's state after its steps."""
    check(row, row["after"])


def swapped(text: str) -> str:
    """The same with CPU 0 and CPU 1 renamed to each other."""
    return re.sub(r"(?<=[a-z]\()[01](?=\))", lambda cpu: "10"[int(cpu[0])], text)


@pytest.mark.parametrize("row", [row for row in ROWS if row["case"] in ONE_OF_N], ids=lambda row: row["case"])
def test_one_of_several_targets(row: dict[str, str]) -> None:
    """IHI 0048B 1.4.3: exactly one target handles the SPI, each of the others reads 1023.  See ONE_OF_N."""
    machine = Machine(row["before"])
    machine.step("edge 34")
    (chosen,) = [vcpu for vcpu in (0, 1) if machine.signalled(vcpu) == 34]
    other = 1 - chosen
    machine.step(f"iar({other})")
    assert machine.result == 1023 and machine.found("active") == set(), "whoever looks first"
    machine.step(f"iar({chosen})")
    assert machine.result == 34 and machine.found("active") == {34} and machine.found("pending") == set()
    machine.step(f"iar({other})")
    assert machine.result == 1023 and machine.signalled(other) is None
    machine.step(f"eoir({chosen}) 34")
    assert machine.found("active") == set() and machine.signalled(0) is machine.signalled(1) is None, "once"
    if row["case"] != "dist_v2_spi_target_both_signals":  # that several are signalled is not asked of anybody
        winner = cpu_of(row["event"].split(", ")[1])
        rename = swapped if winner != chosen else str
        check({**row, "event": rename(row["event"])}, rename(row["after"]))


def test_the_distributor_chooses_among_the_targets() -> None:
    """Never a CPU that GICD_ITARGETSR does not name; after a change of targets one of the new ones."""
    for mask in range(1, 16):
        machine = Machine(f"gic=v2;cpus=4;edge={{34}};target(34)={mask:#x}")
        machine.step("edge 34")
        (chosen,) = [vcpu for vcpu in range(4) if machine.signalled(vcpu) == 34]
        assert mask >> chosen & 1
        machine.step(f"write GICD_ITARGETSR8(0x822) {15 ^ 1 << chosen:#x}")
        (then,) = [vcpu for vcpu in range(4) if machine.signalled(vcpu) == 34]
        assert then != chosen


@pytest.mark.parametrize("row", WORDS, ids=lambda row: row["case"])
def test_list_register_word(row: dict[str, str]) -> None:
    """GICH_LR and ICH_LR words: IHI 0048B 5.3.5, IHI 0069 ICH_LR<n>_EL2."""
    version = 2 if row["before"].startswith("gic=v2") else 3
    layout = GICH_LR if version == 2 else ICH_LR
    known, word_facts = (row["before"], row["after"]) if row["event"] == "encode" else (row["after"], row["before"])
    word = number(dict(facts(word_facts))["lr"])
    fields = {}
    for name, text in facts(known):
        if name == "gic":
            continue
        value = STATES[text] if name == "state" else number(text)
        fields[FIELDS.get(name, name)] = value >> 3 if name == "prio" and version == 2 else value
    if row["event"] == "encode":
        assert encode(layout, **fields) == word
    else:
        assert decode(layout, word) == fields


def test_every_row_is_put() -> None:
    """None is left out: words, the rows of several targets, and all the others, of which many are list registers'."""
    cases = {row["case"] for row in ROWS}
    assert len(cases) == len(ROWS) and set(ONE_OF_N) <= cases
    assert len(WORDS) + len(STEPS) == len(ROWS)
    assert sum(row["case"].startswith("lr_") for row in STEPS) == 68
