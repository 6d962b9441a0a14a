"""v4v by the instructions of its hypervisors: uXen's hypercall 39, CPUID under AX and WHPX; signalled by ISA line 7."""

from __future__ import annotations

import pytest

from hmx.argo.abi import Address
from hmx.errno import Errno
from hmx.hypervisors import AX_V4V_LEAF, WHPX_V4V_LEAF
from hmx.memory import PAGE_SIZE, Window
from hmx.notify import LINE_IRQ
from hmx.trap import Kind, Outcome, int32
from hmx.v4v import abi, layout
from hmx.v4v.consumer import V4vConsumer
from hmx.vcpu_area import Post, post_entry
from tests.doubles.machine import Guest, Machine

RING = 4032
WAYS = {
    "uxen": (Kind.VMCALL, 0),
    "ax": (Kind.CPUID, AX_V4V_LEAF),
    "whpx": (Kind.CPUID, WHPX_V4V_LEAF),
}


def v4v(guest: Guest, personality: str, op: int, *arguments: int, privilege: int = 0) -> int:
    """One v4v call: op rdi, arguments rsi rdx r10 r8 r9."""
    kind, leaf = WAYS[personality]
    a = (*arguments, 0, 0, 0, 0, 0)
    regs = (39 if kind is Kind.VMCALL else leaf, 0, 0, a[1], a[0], op, a[3], a[4], a[2])
    done = guest.trap(kind, regs, address=leaf, privilege=privilege)
    assert done.outcome == Outcome.DONE
    return int32(done.regs[0])


def register(model: Guest, personality: str, port: int) -> int:
    """The device model's ring for domain 5 at `port`, in page 16."""
    header = layout.ring_header(port, 5, RING)
    model.ram[16 * PAGE_SIZE : 16 * PAGE_SIZE + len(header)] = header
    pages = layout.pfn_list([16])
    model.ram[3 * PAGE_SIZE : 3 * PAGE_SIZE + len(pages)] = pages
    return v4v(model, personality, abi.Op.REGISTER_RING, 16 * PAGE_SIZE, 3 * PAGE_SIZE)


@pytest.mark.parametrize("personality", WAYS)
def test_a_datagram_to_the_device_model(personality: str) -> None:
    """The guest knows no domain id: it addresses the device model, whose line 7 goes up (uXen common/v4v.c)."""
    machine = Machine(personality=personality)
    model, guest = machine.guest(0, is_control=True), machine.guest(5)
    assert register(model, personality, 0xD0000) == 0
    source, destination, data = PAGE_SIZE, PAGE_SIZE + 64, 4 * PAGE_SIZE
    guest.ram[source : source + abi.ADDR.size] = abi.ADDR.pack(7, 5)
    guest.ram[destination : destination + abi.ADDR.size] = abi.ADDR.pack(0xD0000, abi.DOMID_DM)
    guest.ram[data : data + 4] = b"unit"
    assert v4v(guest, personality, abi.Op.SEND, source, destination, data, 4, 9) == 4
    message = V4vConsumer(Window(model.ram, 16 * PAGE_SIZE, PAGE_SIZE), RING).receive()
    assert message is not None and message.payload == b"unit"
    assert Address(message.source_port, message.source_domid) == Address(7, 5)
    assert [model.side.take_post() for _ in range(model.side.posted())] == [post_entry(Post.EXTINT, LINE_IRQ)]


@pytest.mark.parametrize("personality", WAYS)
def test_user_mode_does_not_reach_v4v(personality: str) -> None:
    """CPUID works in ring 3, so its handler looks at the CPL; the hypercall answers -EPERM."""
    guest = Machine(personality=personality).guest(5)
    ret = v4v(guest, personality, 99, privilege=3)
    assert ret == (-Errno.EPERM if personality == "uxen" else 0)
    assert v4v(guest, personality, 99) == -Errno.ENOSYS


def test_a_dead_domain_has_no_rings() -> None:
    """Its rings go with it; the device model goes on."""
    machine = Machine(personality="uxen")
    model, guest = machine.guest(0, is_control=True), machine.guest(5)
    machine.core.kill_domain(5)
    assert machine.core.v4v is not None and machine.core.v4v.state(guest.hvm.domain) is None
    assert v4v(model, "uxen", abi.Op.NOTIFY, 0) == 0


def test_a_storage_unit_shows_in_the_port_bitmap_of_its_guest() -> None:
    """Bit n of ports 0x330 to 0x33F: set while the device model has a ring at 0xD0000 + n for this guest (uxenstor)."""
    machine = Machine(personality="uxen")
    model, guest, other = machine.guest(0, is_control=True), machine.guest(5), machine.guest(6)

    def read(who: Guest, port: int, size: int, rax: int = 0) -> int:
        done = who.trap(Kind.IN, (rax,), address=port, size=size)
        assert done.outcome == Outcome.DONE
        return done.regs[0]

    assert read(guest, 0x330, 2) == 0
    assert register(model, "uxen", 0xD0000 + 10) == 0
    assert read(guest, 0x330, 2) == 1 << 10 and read(guest, 0x331, 1) == 1 << 2 and read(other, 0x330, 2) == 0
    assert read(guest, 0x330, 2, rax=0x1234_0000) == 0x1234_0400, "IN of 16 bits replaces 16 bits"
    assert read(guest, 0x32F, 1) == 0 and read(guest, 0x340, 1) == 0xFF
    assert register(model, "uxen", 0xD0000 + 127) == 0
    assert read(guest, 0x33C, 4) == 1 << 31
