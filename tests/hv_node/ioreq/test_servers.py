"""IOREQ servers through frames: who gets an access, the states of a slot, and what becomes of the vCPU.

Rules: Xen public/hvm/ioreq.h and dm_op.h; common/ioreq.c for selection, limits and states.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx import ioreq, xen
from hmx.errno import Errno
from hmx.ioreq import Dmop, IoreqState, IoreqType, RangeType
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, FrameFlag, Kind, Outcome
from hmx.vcpu_area import Post, post_entry
from tests.doubles.machine import Guest, Machine
from tests.hv_node.ioreq.model import SYNC, WINDOW, DeviceModel, access, pair

ONES = 0xFFFF_FFFF


def posts(guest: Guest) -> list[int]:
    """What was posted to vCPU 0."""
    return [guest.side.take_post() for _ in range(guest.side.posted())]


def test_a_load_goes_round() -> None:
    """NONE, READY, INPROCESS, RESP_READY, NONE: the vCPU waits, the emulator's port is posted, the data come back."""
    _, target, model = pair()
    model.start()
    posts(model.me)
    assert access(target, address=WINDOW + 0x10, size=4) == []
    assert posts(model.me) == [post_entry(Post.PORT, model.ports[0])]
    slot = model.slot()
    assert slot == ioreq.Ioreq(WINDOW + 0x10, 0, 4, slot.port, IoreqState.READY, True, IoreqType.COPY)
    model.set_state(IoreqState.INPROCESS)
    assert model.send(model.ports[0]) == 0
    assert target.run() == []
    assert model.answer(0x1_7472_6976) == 0
    (done,) = target.run()
    assert (done.outcome, done.regs) == (Outcome.DONE, (0x7472_6976,))
    assert model.slot().state == IoreqState.NONE
    assert target.hvm.counters.ioreqs == 1


def test_a_store_carries_its_bytes() -> None:
    """Only as many bytes as the access has; the answer brings no register."""
    _, target, model = pair()
    model.start()
    assert access(target, Kind.STORE, WINDOW + 0x50, 2, 0xAABB_CCDD) == []
    slot = model.slot()
    assert (slot.data, slot.size, slot.is_read, slot.repeat) == (0xCCDD, 2, False, 1)
    model.answer(0x99)
    (done,) = target.run()
    assert (done.outcome, done.regs) == (Outcome.DONE, ())


def test_a_narrow_load_on_x86_keeps_the_rest_of_the_register() -> None:
    """Less than 32 bits replace part of rax only (Intel SDM vol. 1 3.4.1.1)."""
    _, target, model = pair()
    model.start()
    access(target, size=1, value=0x1122_3344)
    model.answer(0xFF99)
    assert target.run()[0].regs == (0x1122_3399,)


def test_ports_are_pio() -> None:
    """IN and OUT in a range of type port."""
    _, target, model = pair()
    model.create()
    assert model.map(0x70, 0x71, RangeType.PORT) == 0
    model.acquire()
    model.enable()
    model.bind_all()
    assert access(target, Kind.OUT, 0x70, 1, 0x8F) == []
    assert (model.slot().type, model.slot().data, model.slot().is_read) == (IoreqType.PIO, 0x8F, False)
    model.answer()
    assert target.run()[0].outcome == Outcome.DONE
    assert access(target, Kind.IN, 0x71, 8)[0].regs != (), "no 8-byte port access: nobody answers, all ones"


@pytest.mark.parametrize("size", [3, 5, 16])
def test_sizes_that_no_access_has_reach_nobody(size: int) -> None:
    """1, 2, 4 and 8 bytes (ioreq.h)."""
    _, target, model = pair()
    model.start()
    assert len(access(target, size=size)) == 1


# -- no server: as without any ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "size"),
    [(WINDOW - 1, 1), (WINDOW - 2, 4), (WINDOW + 0x1FE, 4), (WINDOW + 0x200, 4), (WINDOW + 0x1FC, 8)],
)
def test_an_access_that_is_not_wholly_inside_belongs_to_nobody(address: int, size: int) -> None:
    """Whole-access containment: reads are all ones, writes are dropped."""
    _, target, model = pair()
    model.start()
    (done,) = access(target, address=address, size=size)
    assert done.regs[0] & 0xFF == 0xFF
    assert access(target, Kind.STORE, address, size)[0].outcome == Outcome.IGNORED
    assert target.hvm.counters.ioreqs == 0


def test_a_disabled_server_is_passed_over() -> None:
    """Neither before it is enabled nor after it was disabled."""
    _, target, model = pair()
    model.create()
    model.map(WINDOW, WINDOW + 0xFF)
    model.acquire()
    assert access(target)[0].regs == (ONES,)
    model.enable()
    model.bind_all()
    assert access(target) == []
    model.answer(5)
    assert target.run()[0].regs == (5,)
    model.enable(0)
    assert access(target)[0].regs == (ONES,)


def test_a_server_without_a_page_is_passed_over() -> None:
    """Nobody could answer.  Our reading: Xen's page exists whether it was mapped or not."""
    _, target, model = pair()
    model.create()
    model.map(WINDOW, WINDOW + 0xFF)
    model.enable()
    assert access(target)[0].regs == (ONES,)


def test_what_the_hypervisor_serves_itself_stays_its_own() -> None:
    """A door of ours is not given away to a server whose range covers everything."""
    world = Machine(doors=("hypercall", "mmio"))
    target = world.guest(1)
    model = DeviceModel(world.guest(2, is_control=True), target)
    model.start(0, (1 << 64) - 1)
    from hmx.doors import DESCRIBE, DOOR_CALL, DOOR_MAGIC, DOOR_SIZE, MMIO_DOOR

    regs = (DOOR_CALL, 0, 0, 0, 0, DESCRIBE)
    done = target.trap(Kind.STORE, regs, address=MMIO_DOOR[Arch.X86_64], size=DOOR_SIZE)
    assert done.regs[0] == DOOR_MAGIC


# -- selection ---------------------------------------------------------------------------------------------------


def test_the_newest_server_wins() -> None:
    """Servers are asked from the highest id down."""
    world, target, older = pair()
    newer = DeviceModel(world.guest(3, is_control=True), target)
    older.start()
    newer.start(WINDOW + 0x100, WINDOW + 0x103)
    assert (older.ident, newer.ident) == (0, 1)
    access(target, address=WINDOW + 0x100, size=4)
    assert newer.slot().state == IoreqState.READY and older.slot().state == IoreqState.NONE
    newer.answer()
    target.run()
    access(target, address=WINDOW + 0xFE, size=4)
    assert older.slot().state == IoreqState.READY, "newer has only half of it"


def test_eight_servers_and_no_more() -> None:
    """MAX_NR_IOREQ_SERVERS; an id that became free is used again."""
    _, _, model = pair()
    assert [model.create() for _ in range(9)] == [0] * 8 + [-Errno.ENOSPC]
    model.ident = 3
    assert model.destroy() == 0
    assert model.create() == 0 and model.ident == 3


def test_ranges() -> None:
    """256 after merging; overlaps -EEXIST; taking away what is not there -ENOENT; backwards and other types -EINVAL."""
    _, _, model = pair()
    model.create()
    for index in range(256):
        assert model.map(index * 16, index * 16 + 7) == 0
    assert model.map(0x9000, 0x9000) == -Errno.ENOMEM
    assert model.map(0x8, 0xF) == 0, "closes a gap: one range less"
    assert model.map(0x9000, 0x9000) == 0
    assert model.map(0x17, 0x18) == -Errno.EEXIST
    assert model.unmap(0x9000, 0x9001) == -Errno.ENOENT
    assert model.unmap(0x4, 0x5) == -Errno.ENOMEM, "it would be 257 pieces"
    assert model.unmap(0x9000, 0x9000) == 0
    assert model.unmap(0x4, 0x5) == 0
    assert model.map(5, 4) == -Errno.EINVAL
    assert model.map(0x9000, 0x9000, kind=3) == -Errno.EINVAL
    assert model.map(0x9000, 0x9000, ident=7) == -Errno.ENOENT


# -- rights ------------------------------------------------------------------------------------------------------


def test_the_right_over_a_target() -> None:
    """XSM dm privilege: a control domain over all, another one over those that it was given, nobody over itself."""
    world = Machine()
    world.core.ioreqs._rights = frozenset({("d2", "d1")})  # type: ignore[union-attr]
    target, friend, stranger = world.guest(1), world.guest(2), world.guest(3)
    assert DeviceModel(friend, target).create() == 0
    assert DeviceModel(stranger, target).create() == -Errno.EPERM
    assert DeviceModel(friend, stranger).create() == -Errno.EPERM
    assert DeviceModel(friend, friend).create() == -Errno.EPERM
    assert DeviceModel(friend, target).dm(Dmop.NR_VCPUS, 0, target=9) == -Errno.ESRCH
    assert DeviceModel(friend, target).dm(Dmop.NR_VCPUS, 0, target=xen.DOMID_SELF) == -Errno.ESRCH


def test_another_emulators_server_is_not_mine() -> None:
    """-EPERM for every operation on it, and for its page."""
    world, target, model = pair()
    model.create()
    other = DeviceModel(world.guest(3, is_control=True), target)
    other.ident = model.ident
    assert [other.map(0, 1), other.enable(), other.destroy(), other.acquire()] == [-Errno.EPERM] * 4


def test_dm_op_in_xens_order() -> None:
    """Buffers, domain, right, operation, structure, pad (common/dm.c)."""
    _, _, model = pair()
    me = model.me

    def call(*arguments: int) -> int:
        return me.call(xen.Hypercall.DM_OP, *arguments)

    assert call(9, 3, 0) == -Errno.E2BIG
    assert call(9, 1, len(me.ram)) == -Errno.EFAULT
    assert call(9, 0, 0) == -Errno.ESRCH
    assert call(1, 0, 0) == -Errno.EFAULT
    bufs = 2 * PAGE_SIZE
    me.ram[bufs : bufs + 16] = ioreq.DMOP_BUF.pack(PAGE_SIZE, 8)
    me.ram[PAGE_SIZE : PAGE_SIZE + 8] = ioreq.DMOP_HEAD.pack(99, 1)
    assert call(1, 1, bufs) == -Errno.EOPNOTSUPP
    me.ram[PAGE_SIZE : PAGE_SIZE + 8] = ioreq.DMOP_HEAD.pack(Dmop.NR_VCPUS, 1)
    assert call(1, 1, bufs) == -Errno.EFAULT, "shorter than the structure"
    me.ram[bufs : bufs + 16] = ioreq.DMOP_BUF.pack(PAGE_SIZE, 12)
    assert call(1, 1, bufs) == -Errno.EINVAL
    for op in (Dmop.TRACK_DIRTY_VRAM, Dmop.INJECT_EVENT, Dmop.SET_IRQ_LEVEL):
        me.ram[PAGE_SIZE : PAGE_SIZE + 8] = ioreq.DMOP_HEAD.pack(op, 0)
        assert call(1, 1, bufs) == -Errno.EOPNOTSUPP
    assert model.dm(Dmop.NR_VCPUS, 0) == 0 and model.out(Dmop.NR_VCPUS) == (1,)


@pytest.mark.parametrize("personality", ["kvm", "hyperv", "uxen", "acrn"])
def test_dm_op_is_xens(personality: str) -> None:
    """Another hypervisor has no IOREQ servers."""
    world = Machine(personality=personality)
    assert world.core.ioreqs is None


# -- event channels ------------------------------------------------------------------------------------------------


def test_the_ports_are_the_targets_and_bound_by_the_emulator() -> None:
    """vp_eport is a port of the target's; the emulator binds it; the target itself may not touch it."""
    _, target, model = pair(vcpus=2)
    model.start()
    ports = [model.slot(index).port for index in range(2)]
    assert len(set(ports)) == 2
    for port in ports:
        assert target.evtchn(xen.EvtchnOp.CLOSE, port) == -Errno.EINVAL
        assert target.evtchn(xen.EvtchnOp.SEND, port) == -Errno.EINVAL
        target.ram[PAGE_SIZE : PAGE_SIZE + 24] = xen.STATUS.pack(xen.DOMID_SELF, 0, port, 0, 0, 0)
        assert target.evtchn(xen.EvtchnOp.STATUS) == -Errno.EACCES
    mine = model.ports[0]
    model.me.ram[PAGE_SIZE : PAGE_SIZE + 24] = xen.STATUS.pack(xen.DOMID_SELF, 0, mine, 0, 0, 0)
    assert model.me.evtchn(xen.EvtchnOp.STATUS) == 0
    _, _, _, state, _, union = xen.STATUS.unpack_from(model.me.ram, PAGE_SIZE)
    assert (state, union) == (xen.EvtchnState.INTERDOMAIN, target.domid | ports[0] << 32)


def test_binding_is_for_the_emulator_once() -> None:
    """Another domain, a second time, a port that does not wait: -EINVAL; nobody there: -ESRCH.  Binding marks the
    local end pending once.
    """
    world, target, model = pair()
    assert model.create() == 0 and model.acquire() == 0 and model.enable() == 0
    port = model.slot().port
    stranger = DeviceModel(world.guest(3), target)
    assert stranger.bind(port) == -Errno.EINVAL
    assert model.bind(port, domid=9) == -Errno.ESRCH
    posts(model.me)
    local = model.bind(port)
    assert posts(model.me) == [post_entry(Post.PORT, local)]
    assert model.bind(port) == -Errno.EINVAL
    assert model.me.evtchn(xen.EvtchnOp.CLOSE, local) == 0
    assert model.bind(port) > 0, "closed: it waits again"


def test_a_request_that_was_made_before_the_emulator_bound_is_not_lost() -> None:
    """The slot is READY; binding makes the port pending, so the emulator looks."""
    _, target, model = pair()
    model.create()
    model.map(WINDOW, WINDOW + 0xFF)
    model.acquire()
    model.enable()
    assert access(target) == []
    model.bind_all()
    model.answer(7)
    assert target.run()[0].regs == (7,)


# -- order and waiting --------------------------------------------------------------------------------------------


def test_only_the_vcpu_that_waits_waits() -> None:
    """Frames behind it are held back; another vCPU goes on, and may have a request of its own under way."""
    world, target, model = pair(vcpus=2)
    model.start()
    target.submit(Kind.LOAD, (0,), address=WINDOW, size=4)
    target.submit(Kind.CPUID, (0,), address=0)
    assert target.run() == []
    other = target.sides[1]
    other.submit(Kind.CPUID, (0,))
    other.submit(Kind.LOAD, (0,), 0, 0, 4, 0, WINDOW + 4)
    other.publish()
    while world.core.run(target.hvm.vcpus[1]):
        pass
    assert other.completed() == 1
    assert [model.slot(index).address for index in range(2)] == [WINDOW, WINDOW + 4]
    model.answer(2, vcpu=1)
    assert other.completed() == 2 and target.side.completed() == 0
    model.answer(1)
    done = target.run()
    assert [each.outcome for each in done] == [Outcome.DONE, Outcome.DONE] and done[0].regs == (1,)


def test_a_linked_frame_follows_an_answered_access() -> None:
    """A served access is a success; one that overtook it by ASYNC finds the slot taken and is canceled."""
    _, target, model = pair()
    model.start()
    target.submit(Kind.STORE, (1,), address=WINDOW, size=4)
    target.submit(Kind.CPUID, (0,), flags=FrameFlag.LINK)
    assert target.run() == []
    model.answer()
    assert [each.outcome for each in target.run()] == [Outcome.DONE, Outcome.DONE]


def test_the_emulators_death_releases_who_waits() -> None:
    """Unhandled: all ones.  The range answers nobody any more."""
    world, target, model = pair()
    model.start()
    assert access(target) == []
    world.core.kill_domain(model.me.domid)
    assert target.run()[0].regs == (ONES,)
    assert access(target)[0].regs == (ONES,)


def test_destroying_a_server_releases_who_waits() -> None:
    """The same, while the emulator lives; a write is dropped."""
    _, target, model = pair()
    model.start()
    assert access(target, Kind.STORE) == []
    assert model.destroy() == 0
    assert target.run()[0].outcome == Outcome.IGNORED
    assert model.send(model.ports[0]) == 0, "the port has no other end any more: dropped"
    assert model.destroy() == -Errno.ENOENT


def test_the_targets_death_ends_its_servers() -> None:
    """Nothing is written to a dead domain; a late answer is nobody's; its id may be used again."""
    world, target, model = pair()
    model.start()
    assert access(target) == []
    world.core.free_domain(target.domid)
    model.answer(1)
    assert target.side.completed() == 0
    assert model.create() == -Errno.ESRCH
    model.target = world.guest(target.domid)
    model.start()


# -- states -------------------------------------------------------------------------------------------------------


def test_none_while_it_waits_means_unhandled() -> None:
    """As when an emulator dies in the race: Xen reads all ones (wait_for_io)."""
    _, target, model = pair()
    model.start()
    access(target)
    model.set_state(IoreqState.NONE)
    model.send(model.ports[0])
    assert target.run()[0].regs == (ONES,)


@pytest.mark.parametrize("state", [4, 5, 15])
def test_a_state_that_is_none_crashes_the_target(state: int) -> None:
    """Weird ioreq state: domain_crash.  The event says so, the domain is dying, the hypervisor goes on."""
    world, target, model = pair()
    model.start()
    access(target)
    model.set_state(state)
    model.send(model.ports[0])
    crashed = [event for event in world.events if event[0] == "domain-crashed"]
    assert crashed and crashed[0][1:3] == ("d1", 1) and f"-> {state}" in crashed[0][3]
    assert world.core.hvm(1) is None
    target.submit(Kind.CPUID)
    assert target.run() == [], "it executes nothing more"


def test_going_backwards_crashes_the_target() -> None:
    """INPROCESS, then READY."""
    world, target, model = pair()
    model.start()
    access(target)
    for state in (IoreqState.INPROCESS, IoreqState.READY):
        model.set_state(state)
        model.send(model.ports[0])
    assert world.core.hvm(1) is None


def test_a_slot_that_is_not_free_crashes_the_target() -> None:
    """Device model set bad I/O state, or another event channel into the slot."""
    for spoil_state in (True, False):
        world, target, model = pair()
        model.start()
        if spoil_state:
            model.set_state(IoreqState.RESP_READY)
        else:
            model.me.ram[model.at() + 24 : model.at() + 28] = b"\xff\0\0\0"
        assert access(target) == []
        assert any(event[0] == "domain-crashed" for event in world.events)


def test_the_shell_may_end_a_crashed_guest_itself() -> None:
    """`on_crash`: until then the domain exists and executes nothing."""
    world, target, model = pair(vcpus=2)
    ended: list[int] = []
    world.core.on_crash = lambda domain: ended.append(domain.domid)
    model.start()
    access(target)
    model.set_state(9)
    model.send(model.ports[0])
    assert ended == [1] and world.core.hvm(1) is not None
    target.submit(Kind.CPUID)
    assert target.run() == []
    other = target.sides[1]
    other.submit(Kind.CPUID, (0,))
    other.publish()
    assert world.core.run(target.hvm.vcpus[1]) == 0


def test_sending_without_a_request_means_nothing() -> None:
    """A spurious notification; so is a second answer."""
    _, target, model = pair()
    model.start()
    assert model.answer(3) == 0
    model.set_state(IoreqState.NONE)
    access(target)
    model.answer(4)
    assert model.answer(5) == 0
    assert target.run()[0].regs == (4,)


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_the_emulators_own_and_cleared() -> None:
    """acquire_resource with a frame list (public/memory.h): -EINVAL for frames that it does not have."""
    _, _, model = pair()
    model.create()
    model.me.ram[SYNC * PAGE_SIZE : SYNC * PAGE_SIZE + PAGE_SIZE] = b"\xee" * PAGE_SIZE
    assert model.acquire(gfn=64) == -Errno.EINVAL
    assert model.acquire(gfn=1 << 60) == -Errno.EINVAL
    assert model.acquire(count=0) == -Errno.EINVAL
    assert model.acquire(frame=2) == -Errno.EINVAL
    assert model.acquire(frame=0) == -Errno.ENOENT, "buffered requests are off"
    assert model.acquire() == 0
    assert bytes(model.me.ram[SYNC * PAGE_SIZE : (SYNC + 1) * PAGE_SIZE]) == bytes(PAGE_SIZE)
    model.enable()
    assert model.slot().port > 0


def test_the_page_is_not_moved_under_a_request() -> None:
    """-EBUSY (ours: Xen's page is never anywhere else)."""
    _, target, model = pair()
    model.start()
    access(target)
    assert model.acquire(gfn=21) == -Errno.EBUSY
    model.answer(1)
    assert target.run()[0].regs == (1,)


def test_info_and_buffering() -> None:
    """No reserved frames: NO_GFNS or nothing.  x86 takes buffered modes, for which no access is eligible here."""
    _, _, model = pair()
    assert model.create(3) == -Errno.EINVAL
    assert model.create(ioreq.BufIoreq.ATOMIC) == 0
    assert model.dm(Dmop.GET_IOREQ_SERVER_INFO, model.ident, 0, 0, 0, 0) == -Errno.ENOMEM
    assert model.dm(Dmop.GET_IOREQ_SERVER_INFO, model.ident, 2, 0, 0, 0) == -Errno.EINVAL
    assert model.dm(Dmop.GET_IOREQ_SERVER_INFO, model.ident, 1, 0, 0, 0) == 0
    assert model.out(Dmop.GET_IOREQ_SERVER_INFO)[2] > 0
    assert model.acquire(frame=0) == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_slots_never_harm_the_hypervisor(data: st.DataObject) -> None:
    """Any bytes in the sync page at any time, any operation with any numbers: no exception, and other domains live."""
    world, target, model = pair(vcpus=2)
    bystander = world.guest(5)
    model.start()
    numbers = st.sampled_from([0, 1, 2, 7, 8, 63, 64, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1])
    for _ in range(12):
        if world.core.hvm(1) is None:
            break
        match data.draw(st.integers(0, 4)):
            case 0:
                at = SYNC * PAGE_SIZE + data.draw(st.integers(0, 64))
                model.me.ram[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
            case 1:
                model.send(data.draw(st.sampled_from([0, 1, 2, 3, 4095, 4096, 1 << 31])))
            case 2:
                target.submit(data.draw(st.sampled_from([Kind.LOAD, Kind.STORE])), (5,), address=WINDOW, size=4)
                target.run()
            case 3:
                op = data.draw(st.sampled_from(list(ioreq.LAYOUT_OF)))
                raw = data.draw(st.binary(min_size=ioreq.LAYOUT_OF[op].size, max_size=ioreq.LAYOUT_OF[op].size))
                model.dm(op, *ioreq.LAYOUT_OF[op].unpack(raw), second=(data.draw(numbers), data.draw(numbers)))
            case 4:
                raw = data.draw(st.binary(min_size=40, max_size=40))
                model.memory(data.draw(st.sampled_from([7, 15, 23, 28])), raw)
    assert bystander.trap(Kind.CPUID, (0,)).outcome == Outcome.DONE
