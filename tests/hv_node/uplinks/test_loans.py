"""Memory that a nested hypervisor lends its parent: checked before it is mapped (contracts 2), refused with words."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hmx.attach import LOAN_MAGIC, AttachError, Loan, pack_loan, unpack_loan
from hv_node import attach
from hv_node.config import OuterConfig, WardConfig
from tests.hv_node.uplinks.test_ascent import MIB, World, said

PAGE = 4096
SHRINK = fcntl.F_SEAL_SHRINK


def memory(size: int = PAGE, seals: int = SHRINK) -> int:
    fd = os.memfd_create("loan", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_a_loan_is_packed_as_it_is() -> None:
    """Round trip; each field that is wrong is named."""
    loan = Loan("app#2", 7, 1 << 33)
    packed = pack_loan(loan)
    assert unpack_loan(packed, 1) == loan
    wrong = [
        (b"", 1, "loan of 0 bytes"),
        (packed[:-1], 1, "a name of 5 bytes and carries 4"),
        (packed, 0, "with 0 descriptors"),
        (packed, 2, "with 2 descriptors"),
        (b"\0" + packed[1:], 1, "magic is"),
        (packed[:4] + b"\x09" + packed[5:], 1, "version is 9"),
        (packed[:10] + b"\x01" + packed[11:], 1, "announces a name"),
        (packed[:12] + b"\x01" + packed[13:], 1, "announces a name"),
        (packed[:-1] + b"\xff", 1, "not UTF-8"),
        (struct.pack("<IHHHHIQ", LOAN_MAGIC, 1, 0, 7, 0, 0, PAGE), 1, "a name of 0 bytes"),
    ]
    for data, descriptors, words in wrong:
        with pytest.raises(AttachError, match=words):
            unpack_loan(data, descriptors)


@pytest.mark.parametrize(
    ("size", "seals", "announced", "words"),
    [
        (PAGE, SHRINK, 2 * PAGE, "memory of 8192 bytes is announced, and the file has 4096"),
        (2 * PAGE, SHRINK, PAGE, "memory of 4096 bytes is announced, and the file has 8192"),
        (0, SHRINK, 0, "the file has 0"),
        (PAGE + 1, SHRINK, PAGE + 1, "the file has 4097"),
        (PAGE, fcntl.F_SEAL_GROW, PAGE, "not sealed against shrinking"),
    ],
)
def test_memory_is_checked_before_it_is_mapped(size: int, seals: int, announced: int, words: str) -> None:
    """What could shrink would be SIGBUS one day."""
    fd = memory(size, seals)
    with pytest.raises(AttachError, match=words):
        attach.borrow(fd, announced)
    os.close(fd)


def test_a_file_that_knows_no_seals_is_refused(tmp_path: Path) -> None:
    """A file on disk may be truncated by anybody."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(PAGE))
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(AttachError, match="not sealed"):
        attach.borrow(fd, PAGE)
    os.close(fd)


def test_a_loan_is_read_with_its_memory() -> None:
    """Mapped, shared, and no descriptor left open, whatever came."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = memory()
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [pack_loan(Loan("app", 1, PAGE))], [fd])
    found = attach.read_loan(ours)
    assert found is not None
    loan, ram = found
    assert loan == Loan("app", 1, PAGE)
    os.pwrite(fd, b"seen", 100)
    assert ram[100:104] == b"seen"
    ram.close()
    for fds in ((), (fd, fd), (fd,) * 9):
        socket.send_fds(theirs, [pack_loan(Loan("app", 1, PAGE))], fds)
        with pytest.raises(AttachError, match="descriptors"):
            attach.read_loan(ours)
    theirs.close()
    assert attach.read_loan(ours) is None
    ours.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    os.close(fd)


# ---- as processes have it ----


@pytest.fixture(params=["forward", "steal"])
def world(request: pytest.FixtureRequest, short_tmp_path: Path) -> Iterator[World]:
    """hv1 does not serve its guest `inner` itself."""
    mode = request.param
    made = World(short_tmp_path)
    made.nodes.pop("hv0").close()
    outer, inner = made.configs["hv0"], made.configs["hv1"]
    wards = (WardConfig("inner", 2 if mode == "forward" else 0x4001),)
    domains = (outer.domains[0], replace(outer.domains[1], mode=mode, wards=wards))
    made.configs["hv0"] = replace(outer, domains=domains, doors=("hypercall", "msr"), remotes=())
    around = OuterConfig("xen", ("hypercall", "msr"), ("hypercall", "msr") if mode == "steal" else ())
    made.configs["hv1"] = replace(inner, mode=mode, outer=(around,), remotes=(), hypervisors=(("hv0",),))
    made.start("hv0")
    yield made
    made.close()


def test_it_is_ready_once_its_guests_are_served(world: World) -> None:
    """The parent has their memory, and what it writes there they see."""
    node = world.start("hv1")
    world.grant()
    world.turn()
    assert said(world, "hv1", "ready") == [["ready"]]
    parent = world.nodes["hv0"].joint
    assert parent is not None
    ward = parent.level.wards._wards["hv1", "inner"]
    assert ward.memory.size == MIB
    assert ward.memory.write(0, 5000, b"through both stages")
    backing = node.roster.backings["inner"]
    assert isinstance(backing, attach.Backing)
    assert backing.ram[5000:5019] == b"through both stages"


def test_what_may_not_be_lent_ends_it_with_words(world: World) -> None:
    """The domain is dead for the parent, and the child knows why."""
    node = world.start("hv1")
    world.grant()
    world.turn()
    assert node.ascent is not None
    fd = memory()
    node.ascent.lend(Loan("inner", 1, PAGE), fd)
    world.turn()
    words = "guest 'inner' of 'hv1' has memory here already"
    assert node.failure == f"hypervisor hv0 refused what it was lent: {words}"
    assert world.links["hv0"].events("loan-refused") == [["hv1", words]]
    assert world.links["hv0"].events("domain-dying") == [["hv1", 2]]
    os.close(fd)


def test_a_hypervisor_that_serves_its_guests_lends_nothing(short_tmp_path: Path) -> None:
    """Whatever it says on the attach connection is its end, as for any guest."""
    world = World(short_tmp_path)
    node = world.start("hv1")
    world.grant()
    world.turn()
    assert node.ascent is not None
    fd = memory()
    node.ascent.lend(Loan("inner", 1, PAGE), fd)
    world.turn()
    assert node.failure == "hypervisor hv0 is gone"
    assert world.links["hv0"].events("domain-dying") == [["hv1", 2]]
    os.close(fd)
    world.close()
