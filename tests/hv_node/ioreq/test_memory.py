"""Foreign maps, grants, the DMA operation and a device model's interrupts, through frames.

Rules: Xen public/memory.h, grant_table.h, dm_op.h; common/grant_table.c; arch/x86/hvm/irq.c; arch/arm/dm.c.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx import grants, ioreq, xen
from hmx.errno import Errno
from hmx.grants import CopyFlag, GrantFlag, GrantOp, GrantStatus, MapFlag
from hmx.ioreq import DMA_MAX, DmaFlag, Dmop, MapSpace, Memop
from hmx.memory import PAGE_SIZE, PageType
from hmx.trap import Arch, Kind
from hmx.vcpu_area import Post, post_entry
from tests.doubles.machine import Guest, Machine
from tests.hv_node.ioreq.model import ARGS, LISTS, DeviceModel, pair

EXT = ioreq.EXTENDED_BASE // PAGE_SIZE
FRAME, STATUS = 24, 25  # pages of the target that hold its grant table


def batch(model: DeviceModel, pages: list[tuple[int, int]], target: int | None = None, space: int = 4) -> object:
    """add_to_physmap_batch of (our frame, their frame) pairs: the errors, or the call's own."""
    ram, count = model.me.ram, len(pages)
    idx, gpfn, err = LISTS, LISTS + 8 * count, LISTS + 16 * count
    for at, (ours, theirs) in enumerate(pages):
        ram[idx + 8 * at : idx + 8 * at + 8] = theirs.to_bytes(8, "little")
        ram[gpfn + 8 * at : gpfn + 8 * at + 8] = ours.to_bytes(8, "little")
    domid = model.target.domid if target is None else target
    data = ioreq.ADD_TO_PHYSMAP_BATCH.pack(xen.DOMID_SELF, space, count, domid, idx, gpfn, err)
    ret = model.memory(Memop.ADD_TO_PHYSMAP_BATCH, data)
    if ret:
        return ret
    return [int.from_bytes(ram[err + 4 * at : err + 4 * at + 4], "little", signed=True) for at in range(count)]


def remove(model: DeviceModel, frame: int) -> int:
    return model.memory(Memop.REMOVE_FROM_PHYSMAP, ioreq.REMOVE_FROM_PHYSMAP.pack(xen.DOMID_SELF, frame))


# -- foreign maps -------------------------------------------------------------------------------------------------


def test_foreign_pages_are_checked_and_counted_one_by_one() -> None:
    """Each page has an error of its own; counters count those that were mapped, and unmapped."""
    _, target, model = pair()
    assert batch(model, [(EXT, 3), (EXT + 1, 63), (EXT + 2, 64), (5, 4), (EXT, 4)]) == [
        0, 0, -Errno.EINVAL, -Errno.EINVAL, -Errno.EBUSY,
    ]  # fmt: skip
    counters = model.me.hvm.counters
    assert (counters.pages_mapped, counters.pages_unmapped) == (2, 0)
    assert target.hvm.counters.pages_mapped == 0
    assert [remove(model, EXT), remove(model, EXT), remove(model, EXT + 9)] == [0, -Errno.ENOENT, -Errno.ENOENT]
    assert batch(model, [(EXT, 4)]) == [0]
    assert (counters.pages_mapped, counters.pages_unmapped) == (3, 1)


def test_foreign_maps_need_the_right() -> None:
    """-EPERM without dm privilege and for oneself, -ESRCH for nobody; no other space in a batch."""
    world, target, model = pair()
    stranger = DeviceModel(world.guest(7), target)
    assert batch(stranger, [(EXT, 3)]) == -Errno.EPERM
    assert batch(model, [(EXT, 3)], target=model.me.domid) == -Errno.EPERM
    assert batch(model, [(EXT, 3)], target=77) == -Errno.ESRCH
    assert batch(model, [(EXT, 3)], space=MapSpace.GRANT_TABLE) == -Errno.EINVAL
    data = ioreq.ADD_TO_PHYSMAP_BATCH.pack(5, 4, 0, 1, 0, 0, 0)
    assert model.memory(Memop.ADD_TO_PHYSMAP_BATCH, data) == -Errno.EPERM, "somebody else's address space"
    data = ioreq.ADD_TO_PHYSMAP_BATCH.pack(xen.DOMID_SELF, 4, 0xFFFF, 1, 0, 0, 0)
    assert model.memory(Memop.ADD_TO_PHYSMAP_BATCH, data) == -Errno.EINVAL, "more than one call may have"
    data = ioreq.ADD_TO_PHYSMAP_BATCH.pack(xen.DOMID_SELF, 4, 1, 1, 1 << 40, 0, 0)
    assert model.memory(Memop.ADD_TO_PHYSMAP_BATCH, data) == -Errno.EFAULT


def test_a_page_that_is_no_ram_is_not_mapped() -> None:
    """Paged out, device memory, read-only: -EINVAL."""
    _, target, model = pair()
    target.hvm.domain.memory.set_page(9, PageType.MMIO_DIRECT)  # type: ignore[attr-defined]
    target.hvm.domain.memory.set_page(10, PageType.RAM_RO)  # type: ignore[attr-defined]
    assert batch(model, [(EXT, 9), (EXT + 1, 10)]) == [-Errno.EINVAL] * 2


def test_the_mappers_death_unmaps() -> None:
    """What a domain had mapped is counted as unmapped when it is gone."""
    world, _, model = pair()
    batch(model, [(EXT, 3), (EXT + 1, 4)])
    world.core.kill_domain(model.me.domid)
    assert model.me.hvm.counters.pages_unmapped == 2


# -- grants ------------------------------------------------------------------------------------------------------


class Granting:
    """A target with a grant table, and who uses its grants."""

    def __init__(self) -> None:
        self.world, self.target, self.model = pair()
        self.me = self.model.me
        for index, gfn in ((0, FRAME), (ioreq.GRANT_STATUS_INDEX, STATUS)):
            assert self.place(index, gfn) == 0

    def place(self, index: int, gfn: int, domid: int = xen.DOMID_SELF) -> int:
        data = xen.ADD_TO_PHYSMAP.pack(domid, 0, MapSpace.GRANT_TABLE, index, gfn)
        self.target.ram[ARGS : ARGS + len(data)] = data
        return self.target.call(xen.Hypercall.MEMORY_OP, Memop.ADD_TO_PHYSMAP, ARGS)

    def entry(self, gref: int, flags: int, domid: int, frame: int) -> None:
        at = FRAME * PAGE_SIZE + gref * grants.ENTRY.size
        self.target.ram[at : at + grants.ENTRY.size] = grants.ENTRY.pack(flags, domid, frame)

    def status(self, gref: int) -> int:
        at = STATUS * PAGE_SIZE + gref * 2
        return int.from_bytes(self.target.ram[at : at + 2], "little")

    def op(self, op: GrantOp, *elements: tuple[int, ...], by: Guest | None = None) -> list[tuple[int, ...]] | int:
        who, layout = by or self.me, grants.LAYOUT_OF[op]
        data = b"".join(layout.pack(*each) for each in elements)
        who.ram[LISTS : LISTS + len(data)] = data
        ret = who.call(xen.Hypercall.GRANT_TABLE_OP, op, LISTS, len(elements))
        return ret or list(layout.iter_unpack(bytes(who.ram[LISTS : LISTS + len(data)])))

    def map(self, gref: int, frame: int = EXT, flags: int = MapFlag.HOST_MAP, domid: int = 1) -> tuple[int, int, int]:
        """(status, handle, machine address)."""
        found = self.op(GrantOp.MAP_GRANT_REF, (frame * PAGE_SIZE, flags, gref, domid, 0, 0, 0))
        assert isinstance(found, list)
        return found[0][4], found[0][5], found[0][6]

    def unmap(self, handle: int, frame: int = EXT) -> int:
        found = self.op(GrantOp.UNMAP_GRANT_REF, (frame * PAGE_SIZE, 0, handle, 0))
        assert isinstance(found, list)
        return found[0][3]

    def copy(
        self, source: tuple[int, int, int], dest: tuple[int, int, int], size: int, flags: int
    ) -> int:
        found = self.op(GrantOp.COPY, (*source, *dest, size, flags, 0))
        assert isinstance(found, list)
        return found[0][-1]


GREF = 12


def test_a_grant_is_mapped_and_unmapped() -> None:
    """Status word while it is in use; the handle once; pages counted at the mapper."""
    lab = Granting()
    lab.entry(GREF, GrantFlag.PERMIT_ACCESS, 2, 30)
    status, handle, machine = lab.map(GREF)
    assert (status, machine) == (GrantStatus.OKAY, 30 * PAGE_SIZE)
    assert lab.status(GREF) == GrantFlag.READING | GrantFlag.WRITING
    assert lab.map(GREF)[0] == GrantStatus.BAD_VIRT_ADDR, "the frame is taken"
    assert lab.map(GREF, EXT + 1, MapFlag.HOST_MAP | MapFlag.READONLY)[0] == GrantStatus.OKAY
    assert lab.unmap(handle, EXT + 5) == GrantStatus.BAD_VIRT_ADDR
    assert lab.unmap(handle) == GrantStatus.OKAY
    assert lab.status(GREF) == GrantFlag.READING
    assert lab.unmap(handle) == GrantStatus.BAD_HANDLE
    assert remove(lab.model, EXT + 1) == -Errno.ENOENT, "a granted page goes by its own operation"
    assert lab.unmap(handle + 1, EXT + 1) == GrantStatus.OKAY and lab.status(GREF) == 0
    counters = lab.me.hvm.counters
    assert (counters.pages_mapped, counters.pages_unmapped) == (2, 2)


@pytest.mark.parametrize(
    ("entry", "flags", "status"),
    [
        ((GrantFlag.INVALID, 2, 30), MapFlag.HOST_MAP, GrantStatus.GENERAL_ERROR),
        ((GrantFlag.ACCEPT_TRANSFER, 2, 30), MapFlag.HOST_MAP, GrantStatus.GENERAL_ERROR),
        ((GrantFlag.PERMIT_ACCESS, 3, 30), MapFlag.HOST_MAP, GrantStatus.GENERAL_ERROR),
        ((GrantFlag.PERMIT_ACCESS | GrantFlag.READONLY, 2, 30), MapFlag.HOST_MAP, GrantStatus.GENERAL_ERROR),
        ((GrantFlag.PERMIT_ACCESS | GrantFlag.READONLY, 2, 30), MapFlag.HOST_MAP | MapFlag.READONLY, GrantStatus.OKAY),
        ((GrantFlag.PERMIT_ACCESS, 2, 64), MapFlag.HOST_MAP, GrantStatus.BAD_PAGE),
        ((GrantFlag.PERMIT_ACCESS, 2, 0xFFFF_FFFF), MapFlag.HOST_MAP, GrantStatus.BAD_PAGE),
        ((GrantFlag.PERMIT_ACCESS, 2, 30), MapFlag.DEVICE_MAP, GrantStatus.GENERAL_ERROR),
    ],
)
def test_what_an_entry_permits(entry: tuple[int, int, int], flags: int, status: int) -> None:
    """Type, domain, read-only, a frame that is there; a host mapping only.  A refusal leaves no use behind."""
    lab = Granting()
    lab.entry(GREF, *entry)
    assert lab.map(GREF, flags=flags)[0] == status
    assert bool(lab.status(GREF)) == (status == GrantStatus.OKAY)


def test_references_and_domains_that_are_not_there() -> None:
    """Reserved entries, frames that were not placed, no domain; a mapping belongs above all RAM."""
    lab = Granting()
    for gref in (0, 7, 512, 0xFFFF_FFFF):
        assert lab.map(gref)[0] == GrantStatus.BAD_GNTREF
    assert lab.map(GREF, domid=50)[0] == GrantStatus.BAD_DOMAIN
    lab.entry(GREF, GrantFlag.PERMIT_ACCESS, 2, 30)
    assert lab.map(GREF, frame=5)[0] == GrantStatus.BAD_VIRT_ADDR
    assert lab.place(0, 64) == -Errno.EINVAL
    assert lab.place(grants.MAX_FRAMES, 5) == -Errno.EINVAL
    assert lab.place(0, 5, domid=9) == -Errno.EPERM


def test_copies_stay_within_pages_and_are_counted() -> None:
    """GNTTABOP_copy from and to a grant, by whom it was granted to; -10 where it would leave a page."""
    lab = Granting()
    lab.entry(GREF, GrantFlag.PERMIT_ACCESS, 2, 30)
    lab.entry(GREF + 1, GrantFlag.PERMIT_ACCESS | GrantFlag.READONLY, 2, 31)
    lab.target.ram[30 * PAGE_SIZE + 100 : 30 * PAGE_SIZE + 105] = b"hello"
    theirs, mine = (GREF, 1, 100), (40, xen.DOMID_SELF, 8)
    assert lab.copy(theirs, mine, 5, CopyFlag.SOURCE_GREF) == GrantStatus.OKAY
    assert bytes(lab.me.ram[40 * PAGE_SIZE + 8 :][:5]) == b"hello"
    assert lab.copy(mine, (GREF, 1, 0), 5, CopyFlag.DEST_GREF) == GrantStatus.OKAY
    assert bytes(lab.target.ram[30 * PAGE_SIZE :][:5]) == b"hello"
    assert lab.me.hvm.counters.bytes_copied == 10
    assert lab.copy(mine, (GREF + 1, 1, 0), 5, CopyFlag.DEST_GREF) == GrantStatus.GENERAL_ERROR
    assert lab.copy((GREF, 1, 4092), mine, 5, CopyFlag.SOURCE_GREF) == GrantStatus.BAD_COPY_ARG
    assert lab.copy(theirs, (40, xen.DOMID_SELF, 4092), 5, CopyFlag.SOURCE_GREF) == GrantStatus.BAD_COPY_ARG
    assert lab.copy(theirs, (64, xen.DOMID_SELF, 0), 5, CopyFlag.SOURCE_GREF) == GrantStatus.BAD_PAGE
    assert lab.copy((30, 1, 0), mine, 5, 0) == GrantStatus.PERMISSION_DENIED, "a frame of another's by number"
    assert lab.copy((GREF, 60, 0), mine, 5, CopyFlag.SOURCE_GREF) == GrantStatus.BAD_DOMAIN
    assert lab.status(GREF) == lab.status(GREF + 1) == 0
    assert lab.me.hvm.counters.bytes_copied == 10


def test_queries() -> None:
    """Sizes, version, and where placed frames lie; of oneself only."""
    lab = Granting()
    target = lab.target
    assert lab.op(GrantOp.QUERY_SIZE, (xen.DOMID_SELF, 0, 0, 0), by=target) == [(xen.DOMID_SELF, 1, 64, 0)]
    assert lab.op(GrantOp.QUERY_SIZE, (1, 0, 0, 0)) == [(1, 0, 64, GrantStatus.PERMISSION_DENIED)]
    assert lab.op(GrantOp.SET_VERSION, (1,)) == [(1,)]
    assert lab.op(GrantOp.SET_VERSION, (2,)) == -Errno.EINVAL
    assert lab.op(GrantOp.GET_VERSION, (xen.DOMID_SELF, 0, 9)) == [(xen.DOMID_SELF, 0, 1)]
    assert lab.op(GrantOp.GET_VERSION, (1, 0, 9)) == -Errno.EPERM
    assert lab.op(GrantOp.SETUP_TABLE, (xen.DOMID_SELF, 0, 2, 9, 4 * PAGE_SIZE), by=target) == [
        (xen.DOMID_SELF, 0, 2, 0, 4 * PAGE_SIZE)
    ]
    assert int.from_bytes(target.ram[4 * PAGE_SIZE :][:8], "little") == FRAME
    assert target.ram[4 * PAGE_SIZE + 8 :][:8] == b"\xff" * 8
    assert lab.op(GrantOp.SETUP_TABLE, (1, 0, 2, 0, 0)) == [(1, 0, 2, GrantStatus.PERMISSION_DENIED, 0)]
    assert lab.op(GrantOp.SETUP_TABLE, (xen.DOMID_SELF, 0, 65, 0, 0), by=target) == [
        (xen.DOMID_SELF, 0, 65, GrantStatus.GENERAL_ERROR, 0)
    ]
    assert lab.me.call(xen.Hypercall.GRANT_TABLE_OP, GrantOp.TRANSFER, LISTS, 1) == -Errno.ENOSYS
    assert lab.me.call(xen.Hypercall.GRANT_TABLE_OP, GrantOp.COPY, LISTS, grants.MAX_OPS + 1) == -Errno.EINVAL
    assert lab.me.call(xen.Hypercall.GRANT_TABLE_OP, GrantOp.COPY, 1 << 40, 1) == -Errno.EFAULT


def test_death_of_either_side() -> None:
    """The mapper's ends its uses; the granter's leaves handles that can still be given back."""
    lab = Granting()
    lab.entry(GREF, GrantFlag.PERMIT_ACCESS, 2, 30)
    assert lab.map(GREF)[0] == GrantStatus.OKAY
    lab.world.core.kill_domain(2)
    assert lab.status(GREF) == 0
    lab = Granting()
    lab.entry(GREF, GrantFlag.PERMIT_ACCESS, 2, 30)
    _, handle, _ = lab.map(GREF)
    lab.world.core.free_domain(1)
    assert lab.unmap(handle) == GrantStatus.OKAY
    assert lab.map(GREF)[0] == GrantStatus.BAD_DOMAIN


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hostile_grants(data: st.DataObject) -> None:
    """Any table, any operation, any numbers: no exception, uses never go below none, pages never leak."""
    lab = Granting()
    numbers = st.sampled_from([0, 1, 2, 3, 8, 12, 30, 63, 64, 511, 512, 4095, 4096, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1])
    for _ in range(10):
        op = data.draw(st.sampled_from(list(grants.LAYOUT_OF)))
        layout = grants.LAYOUT_OF[op]
        for who in (lab.me, lab.target):
            raw = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
            who.ram[LISTS : LISTS + layout.size] = raw
        lab.entry(GREF, data.draw(st.integers(0, 7)), data.draw(st.integers(0, 3)), data.draw(st.integers(0, 70)))
        who = data.draw(st.sampled_from([lab.me, lab.target]))
        who.call(xen.Hypercall.GRANT_TABLE_OP, op, data.draw(st.sampled_from([LISTS, 1 << 40])), data.draw(numbers))
        lab.map(GREF, EXT + data.draw(st.integers(0, 3)), data.draw(st.integers(0, 7)))
        lab.unmap(data.draw(st.integers(0, 3)), EXT + data.draw(st.integers(0, 3)))
    lab.world.core.kill_domain(2)
    assert lab.me.hvm.counters.pages_mapped == lab.me.hvm.counters.pages_unmapped
    assert lab.status(GREF) == 0
    assert lab.target.trap(Kind.CPUID).outcome


# -- the DMA operation (experimental) ------------------------------------------------------------------------------


def dma(model: DeviceModel, address: int, size: int, flags: int = 0, buffer: tuple[int, int] | None = None) -> int:
    return model.dm(Dmop.DMA, address, size, flags, 0, second=buffer or (40 * PAGE_SIZE, DMA_MAX))


def test_bytes_are_fetched_and_stored_in_one_call() -> None:
    """A five-byte look is one hypercall, and nothing is mapped."""
    _, target, model = pair()
    target.ram[5 * PAGE_SIZE - 2 : 5 * PAGE_SIZE + 3] = b"hello"
    before = model.me.hvm.counters.hypercalls
    assert dma(model, 5 * PAGE_SIZE - 2, 5) == 0
    counters = model.me.hvm.counters
    assert counters.hypercalls - before == 1 and counters.pages_mapped == 0 and counters.bytes_copied == 5
    assert bytes(model.me.ram[40 * PAGE_SIZE :][:5]) == b"hello"
    model.me.ram[40 * PAGE_SIZE : 40 * PAGE_SIZE + 3] = b"bye"
    assert dma(model, 100, 3, DmaFlag.STORE) == 0
    assert bytes(target.ram[100:104]) == b"bye\0"


def test_what_the_dma_operation_refuses() -> None:
    """Sizes, flags, buffers, addresses, rights; nothing is copied then."""
    world, target, model = pair()
    ram = 64 * PAGE_SIZE
    assert dma(model, 0, 0) == -Errno.EINVAL
    assert dma(model, 0, DMA_MAX + 1) == -Errno.EINVAL
    assert dma(model, 0, 9, buffer=(40 * PAGE_SIZE, 8)) == -Errno.EINVAL
    assert dma(model, 0, 8, flags=2) == -Errno.EINVAL
    assert model.dm(Dmop.DMA, 0, 8, 0, 0) == -Errno.EINVAL, "one buffer only"
    for address in (ram - 7, ram, (1 << 64) - 1):
        assert dma(model, address, 8) == -Errno.EFAULT
        assert dma(model, address, 8, DmaFlag.STORE) == -Errno.EFAULT
    assert dma(model, 0, 8, buffer=(ram - 4, 8)) == -Errno.EFAULT
    stranger = DeviceModel(world.guest(7), target)
    assert dma(stranger, 0, 8) == -Errno.EPERM
    assert model.me.hvm.counters.bytes_copied == 0
    assert bytes(target.ram[ram - 8 :]) == bytes(8)


# -- interrupts --------------------------------------------------------------------------------------------------


def posted(guest: Guest) -> list[int]:
    return [guest.side.take_post() for _ in range(guest.side.posted())]


def test_an_isa_line_posts_when_it_rises() -> None:
    """Up, up, down, up: two posts.  -EINVAL for a line or level that is none."""
    _, target, model = pair()
    for level in (1, 1, 0, 1):
        assert model.dm(Dmop.SET_ISA_IRQ_LEVEL, 5, level) == 0
    counters = target.hvm.counters
    assert (counters.interrupts_raised, counters.interrupts_posted, counters.interrupts_coalesced) == (2, 1, 1)
    assert posted(target) == [post_entry(Post.EXTINT, 5)]
    assert model.dm(Dmop.SET_ISA_IRQ_LEVEL, 16, 1) == -Errno.EINVAL
    assert model.dm(Dmop.SET_ISA_IRQ_LEVEL, 5, 2) == -Errno.EINVAL


def test_an_msi_reaches_whom_it_names() -> None:
    """hv_node/interrupts/msi.py decides; what it refuses is refused."""
    _, target, model = pair(vcpus=2)
    assert model.dm(Dmop.INJECT_MSI, 0x41, 0, 0xFEE0_1000) == 0
    assert target.sides[1].take_post() == post_entry(Post.VECTOR, 0x41)
    assert model.dm(Dmop.INJECT_MSI, 0x41, 1, 0xFEE0_1000) == -Errno.EINVAL, "pad"
    assert model.dm(Dmop.INJECT_MSI, 5, 0, 0xFEE0_0000) == -Errno.EINVAL, "a vector that is none"
    assert model.dm(Dmop.INJECT_MSI, 0x141, 0, 0xFEE0_9000) == -Errno.ESRCH, "lowest priority, nobody there"
    assert target.hvm.counters.interrupts_raised == 1


def arm() -> tuple[Machine, Guest, DeviceModel]:
    return pair(arch=Arch.AARCH64, cpu="armv8")




def hvc(guest: Guest, number: int, *arguments: int) -> int:
    regs = [0] * 17
    regs[: len(arguments)] = arguments
    regs[16] = number
    done = guest.trap(Kind.HVC, tuple(regs), imm=0xEA1, privilege=1)
    value = done.regs[0] & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def test_spis_on_arm() -> None:
    """set_irq_level: SPIs only (a device model cannot raise a PPI); ISA lines and MSIs are x86's; MMIO ranges only."""
    _, target, model = arm()

    def dm(op: Dmop, *fields: int) -> int:
        data = ioreq.DMOP_HEAD.pack(op, 0) + ioreq.LAYOUT_OF[op].pack(*fields)
        model.me.ram[ARGS : ARGS + len(data)] = data
        model.me.ram[LISTS : LISTS + 16] = ioreq.DMOP_BUF.pack(ARGS, len(data))
        return hvc(model.me, xen.Hypercall.DM_OP, 1, 1, LISTS)

    gic = target.hvm.gic
    assert gic is not None
    irq = gic.distributor.interrupt(33)
    assert irq is not None
    levels = []
    for level in (1, 0):
        assert dm(Dmop.SET_IRQ_LEVEL, 33, level, 0, 0) == 0
        levels.append(irq.line)
    assert levels == [True, False]
    for wrong in (0, 27, 31, 128, 5000):
        assert dm(Dmop.SET_IRQ_LEVEL, wrong, 1, 0, 0) == -Errno.EINVAL
    assert dm(Dmop.SET_IRQ_LEVEL, 33, 2, 0, 0) == -Errno.EINVAL
    assert dm(Dmop.SET_IRQ_LEVEL, 33, 1, 1, 0) == -Errno.EINVAL, "pad"
    assert dm(Dmop.SET_ISA_IRQ_LEVEL, 5, 1) == -Errno.EOPNOTSUPP
    assert dm(Dmop.INJECT_MSI, 0x41, 0, 0xFEE0_0000) == -Errno.EOPNOTSUPP
    assert dm(Dmop.CREATE_IOREQ_SERVER, 2, 0, 0, 0) == -Errno.EINVAL, "no buffered requests on Arm"
    assert dm(Dmop.CREATE_IOREQ_SERVER, 0, 0, 0, 0) == 0
    assert dm(Dmop.MAP_IO_RANGE, 0, 0, ioreq.RangeType.PORT, 0, 1) == -Errno.EINVAL
    assert dm(Dmop.MAP_IO_RANGE, 0, 0, ioreq.RangeType.MEMORY, 0x0200_0000, 0x0200_01FF) == 0
