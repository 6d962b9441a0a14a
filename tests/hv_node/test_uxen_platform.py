"""uXen's platform PCI device as a guest meets it: configuration space, BARs, device table (uXen platform interface)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.trap import Kind, Outcome
from hmx.uxen_enum import Device, DeviceType, EnumerationError, decode_slot, decode_table
from hmx.uxen_platform import (
    BARS,
    CONFIG_LAST,
    FIRST_ADDRESS,
    LAST_ADDRESS,
    SLOT,
    SLOTS,
    Register,
    config_address,
)
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.doors.uxen_platform import PlatformDevice, storage_table
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name
from tests.doubles.machine import Guest, Machine

CONTROL, STATE, TABLE = 0xFEDFA000, 0xFEDFB000, 0xFEDFC000


def machine(personality: str = "uxen", **storage: list[int]) -> Machine:
    """A machine whose guests are named after their domain ids."""
    made = Machine(personality=personality)
    made.core = Hypervisor(
        PERSONALITIES[personality, made.arch], "intel", parse_options("on")[0], xsm_by_name("dummy"), storage=storage
    )
    return made


class Named(Guest):
    """A guest that has a name."""

    def __init__(self, made: Machine, domid: int, name: str, is_control: bool = False) -> None:
        create = made.core.create_domain
        made.core.create_domain = lambda *a, **k: create(*a, **{**k, "name": name})  # type: ignore[method-assign]
        super().__init__(made, domid, 32, 1, is_control)
        made.core.create_domain = create  # type: ignore[method-assign]

    def access(self, kind: Kind, address: int, size: int = 4, value: int = 0) -> int:
        done = self.trap(kind, (value,), address=address, size=size)
        if kind in (Kind.OUT, Kind.STORE):
            return int(done.outcome)
        assert done.outcome == Outcome.DONE
        return done.regs[0]

    def config(self, register: int, slot: int = SLOT) -> int:
        self.access(Kind.OUT, 0xCF8, 4, config_address(slot, register))
        return self.access(Kind.IN, 0xCFC)

    def write_config(self, register: int, value: int) -> None:
        self.access(Kind.OUT, 0xCF8, 4, config_address(SLOT, register))
        self.access(Kind.OUT, 0xCFC, 4, value)


def app(personality: str = "uxen", **more: Any) -> Named:
    return Named(machine(personality, app=[0, 3]), 5, "app", **more)


def test_where_everything_is() -> None:
    """Vendor 0x5853, device 0x5173 behind ports 0xCF8 and 0xCFC; three BARs, side by side."""
    guest = app()
    assert guest.config(0) == 0x5173_5853
    assert [guest.config(at) for at in (0x04, 0x08, 0x0C)] == [2, 0xFF80_0001, 0]
    assert [guest.config(at) for at in (0x10, 0x14, 0x18, 0x1C)] == [CONTROL, STATE, TABLE, 0]
    assert [(row.register, row.address, row.size) for row in BARS] == [
        (Register.BAR0, CONTROL, 0x1000), (Register.BAR1, STATE, 0x1000), (Register.BAR2, TABLE, 0x4000),
    ]  # fmt: skip
    assert (FIRST_ADDRESS, LAST_ADDRESS, config_address(2, 0x18)) == (CONTROL, 0xFEDFFFFF, 0x8000_1018)
    assert (CONFIG_LAST, SLOTS, SLOT) == (0xCFF, 32, 2)


def test_nobody_else_is_on_the_bus() -> None:
    """Other slots, functions and buses, and an address without its enable bit, read as ones."""
    guest = app()
    assert {guest.config(0, slot) for slot in range(32) if slot != SLOT} == {0xFFFF_FFFF}
    for address in (config_address(SLOT, 0) | 1 << 8, config_address(SLOT, 0) | 1 << 16, SLOT << 11):
        guest.access(Kind.OUT, 0xCF8, 4, address)
        assert guest.access(Kind.IN, 0xCFC) == 0xFFFF_FFFF
        assert guest.access(Kind.IN, 0xCF8) == address


def test_narrow_accesses_of_configuration_space() -> None:
    """PCI Local Bus 3.0, 3.2.2.3.2: bytes and words of the dword behind 0xCFC; CONFIG_ADDRESS takes dwords only."""
    guest = app()
    guest.config(0)
    assert guest.access(Kind.IN, 0xCFC, 2) == 0x5853 and guest.access(Kind.IN, 0xCFE, 2) == 0x5173
    assert guest.access(Kind.IN, 0xCFF, 1) == 0x51
    assert guest.access(Kind.IN, 0xCFE, 2, value=0xABCD_0000) == 0xABCD_5173, "IN of 16 bits replaces 16 bits"
    assert guest.access(Kind.IN, 0xCFE, 4) == 0xFFFF_FFFF
    guest.access(Kind.OUT, 0xCF8, 2, 0)
    assert guest.access(Kind.IN, 0xCF8, 2) == 0xFFFF and guest.access(Kind.IN, 0xCFC) == 0x5173_5853


def test_a_bar_is_sized_and_stays() -> None:
    """PCI Local Bus 3.0, 6.2.5.1: all ones read back as the size mask; another address is not taken."""
    guest = app()
    for row in BARS:
        guest.write_config(row.register, 0xFFFF_FFFF)
        assert guest.config(row.register) == 0x1_0000_0000 - row.size
        guest.write_config(row.register, 0x1234_0000)
        assert guest.config(row.register) == row.address


def test_without_memory_decode_the_bars_are_silent() -> None:
    """Command register, bit 1; no other bit is kept."""
    guest = app()
    guest.write_config(4, 0)
    assert guest.access(Kind.LOAD, STATE) == 0xFFFF_FFFF and guest.config(4) == 0
    guest.write_config(4, 0xFFFF)
    assert guest.access(Kind.LOAD, STATE) == 0x4753_1628 and guest.config(4) == 2


def test_the_state_page() -> None:
    """{magic 0x47531628, v4v_running}: 1 while the guest has v4v."""
    guest = app()
    assert guest.access(Kind.LOAD, STATE, 8) == 1 << 32 | 0x4753_1628
    assert guest.access(Kind.LOAD, STATE + 8, 8) == 0
    assert guest.machine.core.v4v is not None
    guest.machine.core.v4v.domain_kill(guest.hvm.domain)
    assert guest.access(Kind.LOAD, STATE + 4) == 0


def test_control_registers() -> None:
    """events_enabled keeps what is written; nothing else does, and no event comes."""
    guest = app()
    for register in range(0, 0x1C, 4):
        assert guest.access(Kind.STORE, CONTROL + register, 4, 0x1234_5678) == Outcome.DONE
    assert [guest.access(Kind.LOAD, CONTROL + at) for at in range(0, 0x1C, 4)] == [0x1234_5678, 0, 0, 0, 0, 0, 0]
    guest.access(Kind.STORE, STATE, 4, 0)
    guest.access(Kind.STORE, TABLE, 4, 0)
    assert guest.access(Kind.LOAD, STATE) == 0x4753_1628 and guest.access(Kind.LOAD, TABLE) & 0xFF == DeviceType.STOR


def test_the_device_table() -> None:
    """64 slots of 256 bytes: a STOR device for each unit of the plan, in its order; the rest are empty."""
    guest = app()
    table = b"".join(guest.access(Kind.LOAD, TABLE + at, 8).to_bytes(8, "little") for at in range(0, 0x4000, 8))
    assert decode_table(table) == ((0, Device(DeviceType.STOR, 0)), (1, Device(DeviceType.STOR, 3)))
    assert table == storage_table([0, 3]) and table[:4] == b"\x04\x00\xff\x00"
    with pytest.raises(EnumerationError):
        storage_table(range(65))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_accesses_of_every_size(size: int) -> None:
    """What lies there, little-endian; a store of another size than a dword is no write of events_enabled."""
    guest = app()
    shown = (0x0000_0001_4753_1628).to_bytes(8, "little")
    for at in range(0, 8, size):
        assert guest.access(Kind.LOAD, STATE + at, size) == int.from_bytes(shown[at : at + size], "little")
    guest.access(Kind.STORE, CONTROL, size, 5)
    assert guest.access(Kind.LOAD, CONTROL) == (5 if size == 4 else 0)


@pytest.mark.parametrize(("personality", "control"), [("xen", False), ("ax", False), ("uxen", True)])
def test_where_there_is_no_such_device(personality: str, control: bool) -> None:
    """Under other hypervisors, and for the domain that runs the device models: all ones, and stores have no effect."""
    guest = app(personality, is_control=control)
    assert guest.config(0) == 0xFFFF_FFFF and guest.access(Kind.LOAD, STATE) == 0xFFFF_FFFF
    assert guest.access(Kind.STORE, CONTROL, 4, 5) == Outcome.IGNORED == guest.access(Kind.OUT, 0xCF8, 4, 0)


def test_each_guest_has_its_own() -> None:
    """Names decide, so that a guest that is started again in another domain finds its devices."""
    made = machine(app=[7], other=[1, 2])
    tables = {}
    for domid, name in enumerate(("app", "other", "bare"), start=1):
        guest = Named(made, domid, name)
        first = guest.access(Kind.LOAD, TABLE)
        tables[name] = decode_slot(first.to_bytes(4, "little").ljust(256, b"\0")) if first & 0xFF != 0xFF else None
    assert tables == {"app": Device(4, 7), "other": Device(4, 1), "bare": None}
    made.core.free_domain(1)
    assert Named(made, 9, "app").access(Kind.LOAD, TABLE) >> 8 & 0xFF == 7


@given(st.lists(st.tuples(
    st.sampled_from(["read", "write", "load", "store"]),
    st.one_of(st.integers(0xCF0, 0xD08), st.integers(FIRST_ADDRESS - 16, LAST_ADDRESS + 16)),
    st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1),
)))  # fmt: skip
def test_anything_may_be_asked(accesses: list[tuple[str, int, int, int]]) -> None:
    """Every access has an answer of its size, and the table stays as it was planned."""
    device = PlatformDevice(storage_table([1]), lambda: True)
    for what, at, size, value in accesses:
        if what == "read":
            assert 0 <= device.read_port(at, size) < 1 << 8 * size
        elif what == "write":
            device.write_port(at, size, value)
        elif what == "load":
            assert 0 <= device.load(at, size) < 1 << 8 * size
        else:
            device.store(at, size, value)
    device.write_port(0xCF8, 4, config_address(SLOT, 4))
    device.write_port(0xCFC, 4, 2)
    assert device.load(TABLE, 2) == 0x0104
