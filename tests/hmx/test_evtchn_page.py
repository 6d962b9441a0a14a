"""The event-channel page against tests/golden/evtchn.csv: every combination of pending, mask, selector and upcall."""

from __future__ import annotations

import re

import pytest

from hmx.cpu.evtchn import UNMASK_FLAG, EventChannelPage
from hmx.memory import PAGE_SIZE, Window
from tests.golden import rows

ROWS = rows("evtchn.csv")
BITS = ("pending", "mask", "sel", "upcall")
PORT, VCPU = 70, 1


def state(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"\b(pending|mask|sel|upcall)=(\d)", text)}


def offsets(port: int, vcpu: int) -> dict[str, tuple[int, int]]:
    """Byte and bit of each flag, computed from the golden layout rows."""
    layout = {row["case"]: row["after"] for row in ROWS if row["case"].startswith("layout_")}
    info = vcpu * int(layout["layout_vcpu_info_size"])
    pending = int(layout["layout_shared_info.evtchn_pending_offset"], 0)
    mask = int(layout["layout_shared_info.evtchn_mask_offset"], 0)
    selector = int(layout["layout_vcpu_info.evtchn_pending_sel_offset"])
    upcall = int(layout["layout_vcpu_info.evtchn_upcall_pending_offset"])
    return {
        "pending": (pending + port // 8, port % 8),
        "mask": (mask + port // 8, port % 8),
        "sel": (info + selector + port // 64 // 8, port // 64 % 8),
        "upcall": (info + upcall, 0),
    }


class Page:
    """A page whose flags are set and read by the golden layout, not by the code under test."""

    def __init__(self, before: dict[str, int], port: int = PORT, vcpu: int = VCPU) -> None:
        self.memory = bytearray(PAGE_SIZE)
        self.at = offsets(port, vcpu)
        for name, value in before.items():
            byte, bit = self.at[name]
            self.memory[byte] |= value << bit
        self.model = EventChannelPage(Window(self.memory, 0, PAGE_SIZE))

    def state(self) -> dict[str, int]:
        return {name: self.memory[byte] >> bit & 1 for name, (byte, bit) in self.at.items()}


EVENTS = {
    "send": (PORT,),
    "unmask": (PORT | UNMASK_FLAG,),
    "send; send": (PORT, PORT),
    "send; unmask": (PORT, PORT | UNMASK_FLAG),
}
TRANSITIONS = [row for row in ROWS if row["event"] in EVENTS and set(state(row["before"])) == set(BITS)]


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row["case"])
def test_transition(row: dict[str, str]) -> None:
    """What one posted port, or a request to unmask it, does to the four bits (Xen common/event_2l.c)."""
    page = Page(state(row["before"]))
    for entry in EVENTS[row["event"]]:
        page.model.merge(entry, VCPU)
    assert page.state() == state(row["after"])


def test_all_combinations_are_covered() -> None:
    """The golden table has all sixteen states for both events."""
    for event in ("send", "unmask"):
        seen = {tuple(state(row["before"]).values()) for row in TRANSITIONS if row["event"] == event}
        assert len(seen) == 16


@pytest.mark.parametrize("port", [1, 11, 63, 64, 65, 4095])
def test_port_has_the_golden_place(port: int) -> None:
    """Word, bit and selector bit of a port; no other byte of the page changes."""
    page = Page({}, port)
    page.model.merge(port, VCPU)
    expected = bytearray(PAGE_SIZE)
    for name in ("pending", "sel", "upcall"):
        byte, bit = page.at[name]
        expected[byte] |= 1 << bit
    assert page.memory == expected


@pytest.mark.parametrize("entry", [0, 4096, 0x7F_FFFF, UNMASK_FLAG, UNMASK_FLAG | 5000])
def test_impossible_ports_change_nothing(entry: int) -> None:
    """Port 0 is reserved; a number beyond the 2-level ABI names no bit."""
    page = Page({})
    page.model.merge(entry, VCPU)
    assert page.memory == bytes(PAGE_SIZE)


def test_upcall_yields_pending_ports_once_lowest_first() -> None:
    """The guest's loop consumes upcall, selector and pending bits; a second upcall finds nothing."""
    page = Page({})
    for port in (4095, 64, 1, 65, 33):
        page.model.merge(port, VCPU)
    assert list(page.model.upcall(VCPU)) == [1, 33, 64, 65, 4095]
    assert page.memory == bytes(PAGE_SIZE)
    assert list(page.model.upcall(VCPU)) == []


def test_upcall_passes_masked_ports_by() -> None:
    """A port masked after it became pending stays pending and is raised again when unmasked."""
    page = Page({})
    page.model.merge(PORT, VCPU)
    page.model.mask(PORT)
    assert list(page.model.upcall(VCPU)) == []
    assert page.model.pending(PORT)
    page.model.merge(PORT | UNMASK_FLAG, VCPU)
    assert list(page.model.upcall(VCPU)) == [PORT]


def test_an_event_during_its_handler_runs_the_handler_again() -> None:
    """The pending bit is cleared before the handler runs, so nothing that arrives meanwhile is lost."""
    page = Page({})
    page.model.merge(PORT, VCPU)
    upcall = page.model.upcall(VCPU)
    assert next(upcall) == PORT
    page.model.merge(PORT, VCPU)
    rest = list(upcall)
    assert rest == [] and page.model.upcall_pending(VCPU)
    assert list(page.model.upcall(VCPU)) == [PORT]
