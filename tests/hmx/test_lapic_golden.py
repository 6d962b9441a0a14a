"""The local APIC and the MSI decoder against every row of tests/golden/lapic.csv.

A row's `before` is a state (an enabled APIC where nothing is said), reached here through the APIC's own interface;
`event` a list of steps; `after` what must hold then.  `msi` rows go through hv_node/interrupts/msi.py.
"""

from __future__ import annotations

import re
from typing import Final

import pytest

from hmx.cpu.apic_regs import FLAT, X2APIC, ApicAddress, ApicFault, EoiBroadcast, logical_x2apic_id
from hmx.cpu.lapic import LocalApic
from hmx.errno import Errno
from hv_node.interrupts import msi
from tests.golden import number, rows

ROWS: Final = rows("lapic.csv")
ENABLED: Final = "0x1ff"
EVENT: Final = re.compile(
    r"(?P<accept>accept (?P<vector>\d+) (?P<trigger>edge|level))|(?P<ack>ack)|(?P<eoi>eoi)"
    r"|self-ipi (?P<self>\d+)|read (?P<read>0x[0-9A-Fa-f]+)|write (?P<write>0x[0-9A-Fa-f]+) (?P<value>0x[0-9A-Fa-f]+)"
    r"|(?P<register>tpr|cr8|svr)=(?P<to>\w+)"
)
MODES: Final = {"fixed": 0, "lowest": 1}
APIC_ROWS: Final = [row for row in ROWS if not row["event"].startswith("msi ")]
MSI_ROWS: Final = [row for row in ROWS if row["event"].startswith("msi ")]


def pairs(text: str) -> dict[str, str]:
    """`a=1;b={2,3}` as a mapping."""
    return dict(part.split("=", 1) for part in text.split(";") if part)


def vectors(text: str) -> set[int]:
    """`{1,2}` as a set."""
    assert text.startswith("{") and text.endswith("}"), text
    return {int(item) for item in text[1:-1].split(",") if item}


def in_state(before: dict[str, str]) -> LocalApic:
    """An APIC in the state that a row starts from, reached by accepts, acknowledges and register writes."""
    assert not before.keys() - {"irr", "isr", "tmr", "tpr", "svr", "id"}, before
    apic = LocalApic(number(before.get("id", "0")))
    apic.svr = number(ENABLED)
    requested, serving, level = (vectors(before.get(name, "{}")) for name in ("irr", "isr", "tmr"))
    for vector in sorted(level - serving - requested):
        apic.accept(vector, level=True)
        assert apic.acknowledge() == vector
        apic.eoi()
    for vector in sorted(serving):
        apic.accept(vector, vector in level)
        assert apic.acknowledge() == vector
    for vector in requested:
        apic.accept(vector, vector in level)
    apic.tpr = number(before.get("tpr", "0"))
    apic.svr = number(before.get("svr", ENABLED))
    assert (apic.irr, apic.isr, apic.tmr) == tuple(sum(1 << v for v in group) for group in (requested, serving, level))
    return apic


class Run:
    """A row's steps on one APIC, with what the last one answered."""

    def __init__(self, apic: LocalApic) -> None:
        self.apic = apic
        self.result: int | None = None
        self.broadcast: int | None = None
        self.error = "none"

    def step(self, text: str) -> None:
        found = EVENT.fullmatch(text)
        assert found, f"no such event: {text!r}"
        self.result = self.broadcast = None
        self.error = "none"
        try:
            self._do(found.groupdict())
        except ApicFault:
            self.error = "#GP"

    def _do(self, event: dict[str, str | None]) -> None:
        apic = self.apic
        if event["accept"]:
            apic.accept(number(event["vector"] or ""), event["trigger"] == "level")
        elif event["ack"]:
            self.result = apic.acknowledge()
        elif event["eoi"]:
            self.broadcast = apic.eoi()
        elif event["self"]:
            apic.self_ipi(number(event["self"]))
        elif event["read"]:
            self.result = apic.read(number(event["read"]))
        elif event["write"]:
            sent = apic.write(number(event["write"]), number(event["value"] or ""))
            self.broadcast = sent.vector if isinstance(sent, EoiBroadcast) else None
        else:
            setattr(apic, event["register"] or "", number(event["to"] or ""))

    def check(self, name: str, expected: str) -> None:
        apic = self.apic
        name, _, mask = name.partition("&")
        match name:
            case "irr" | "isr" | "tmr":
                assert getattr(apic, name) == sum(1 << vector for vector in vectors(expected))
            case "deliver":
                assert apic.pending() == (None if expected == "none" else number(expected))
            case "result" | "broadcast":
                value = getattr(self, name)
                assert (value if value is None or not mask else value & number(mask)) == (
                    None if expected == "none" else number(expected)
                )
            case "error":
                assert self.error == expected
            case "ppr" | "tpr" | "svr" | "enabled" | "esr":
                value = getattr(apic, name)
                assert (value & number(mask) if mask else value) == number(expected)
            case _:
                pytest.fail(f"no such observation: {name}")


@pytest.mark.parametrize("row", APIC_ROWS, ids=lambda row: row["case"])
def test_apic_row(row: dict[str, str]) -> None:
    """The row's source column names the rule."""
    run = Run(in_state(pairs(row["before"])))
    for text in row["event"].split(", "):
        run.step(text)
    expected = pairs(row["after"])
    assert expected
    if "error" not in expected:
        assert run.error == "none"
    for name, value in expected.items():
        run.check(name, value)


def address(index: int, apic_id: int, logical: str) -> ApicAddress:
    """vCPU `index`: in flat logical mode member bit `index`, else an x2APIC."""
    if logical == "flat":
        return ApicAddress(apic_id, 1 << index, FLAT)
    return ApicAddress(apic_id, logical_x2apic_id(apic_id), X2APIC)


@pytest.mark.parametrize("row", MSI_ROWS, ids=lambda row: row["case"])
def test_msi_row(row: dict[str, str]) -> None:
    """The row's source column names the rule."""
    before, expected = pairs(row["before"]), pairs(row["after"])
    found = re.fullmatch(r"msi addr=(\w+) data=(\w+)", row["event"])
    assert found
    assert not before.keys() - {"ids", "logical", "ext"}
    ids = [number(text) for text in before["ids"].split(",")]
    apics = [address(index, apic_id, before.get("logical", "")) for index, apic_id in enumerate(ids)]
    message = msi.decode(number(found[1]), number(found[2]), extended=before.get("ext") == "1")
    answer = message if isinstance(message, int) else msi.inject(message, apics)
    if "error" in expected:
        assert answer == -Errno[expected["error"]]
        return
    assert isinstance(message, msi.Msi)
    assert isinstance(answer, tuple)
    assert message.vector == number(expected["vector"])
    assert message.mode == MODES[expected["mode"]]
    assert message.level == {"edge": False, "level": True}[expected["trigger"]]
    assert message.destination == number(expected["dest"])
    assert message.logical == {"physical": False, "logical": True}[expected["dm"]]
    assert message.redirection_hint == bool(number(expected["rh"]))
    one, _, allowed = expected["targets"].rpartition(":")
    meant = () if allowed == "none" else tuple(number(text) for text in allowed.split(","))
    if one:
        assert one == "one"
        assert len(answer) == 1 and answer[0] in meant
    else:
        assert answer == meant


def test_every_row_ran() -> None:
    """No case twice, and both kinds present."""
    assert len({row["case"] for row in ROWS}) == len(ROWS) == len(APIC_ROWS) + len(MSI_ROWS)
    assert len(APIC_ROWS) > 150
    assert len(MSI_ROWS) > 40
