"""The hypervisor core through frames: order, linking, pending operations, interrupts, hostile guests.

Rules of the project's vCPU area (version 1) and of Xen's event channels (common/event_channel.c).
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx import xen
from hmx.argo.abi import VIRQ_ARGO, Op
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hmx.notify import REGISTER_RING_EX, NotifyOp
from hmx.shm import store32, words32
from hmx.trap import Arch, FrameFlag, Kind, Outcome, int32
from hmx.vcpu_area import AREA_SIZE, Post, Word, post_entry
from hv_node.effects import PENDING
from hv_node.interrupts.evtchn import EventChannels
from tests.doubles.machine import EEXIST, EINVAL, ENOENT, Guest, Machine
from tests.golden import rows

LINK, ASYNC, WIDTH32 = FrameFlag.LINK, FrameFlag.ASYNC, FrameFlag.WIDTH32
DONE, CANCELED, FAULT = Outcome.DONE, Outcome.CANCELED, Outcome.FAULT


def two(cmdline: str = "on,mac-permissive", xsm: str = "dummy") -> tuple[Machine, Guest, Guest]:
    machine = Machine(cmdline, xsm)
    return machine, machine.guest(1), machine.guest(2)


# -- one message through every layer ---------------------------------------------------------------------------------


def test_a_message_crosses_by_hypercall() -> None:
    """register_ring and sendv by VMCALL: the bytes lie in the receiver's ring, the result is the payload's size."""
    _, sender, receiver = two()
    assert receiver.register(0x64) == 0
    assert sender.send(2, 0x64, b"hello") == 5
    ring = receiver.ram[16 * PAGE_SIZE :]
    assert ring[4:8] == (32).to_bytes(4, "little")
    assert ring[64:85] == bytes.fromhex("15000000 07000000 0100 0000 cdab0000") + b"hello"


def test_the_same_by_32_bit_registers() -> None:
    """eax, ebx.. edi and 12-byte iovs (Xen compat argo_op); the upper halves of registers do not matter."""
    _, sender, receiver = two()
    receiver.register(0x64)
    base, data = PAGE_SIZE, 4 * PAGE_SIZE
    sender.send_regs(2, 0x64, b"compat")
    sender.ram[base + 16 : base + 28] = data.to_bytes(4, "little") + (6).to_bytes(4, "little") + bytes(4)
    regs = tuple(value | 0xDEAD_0000_0000_0000 for value in (39, 3, base, base + 16, 1, 0xABCD))
    done = sender.trap(Kind.VMCALL, regs, flags=WIDTH32)
    assert done.regs == (6,)
    assert receiver.ram[16 * PAGE_SIZE + 80 :][:6] == b"compat"


@pytest.mark.parametrize(
    ("case", "value"),
    [
        ("refused", 0x0000_0000_FFFF_FF91),
        ("unknown domain", 0xFFFF_FFFF_FFFF_FFFD),
        ("spoofed", 0xFFFF_FFFF_FFFF_FFFF),
    ],
)
def test_late_errors_of_sendv_are_zero_extended(case: str, value: int) -> None:
    """Xen's sendv keeps late errors in 32 bits: a 64-bit guest must read int32.  Seen on Xen 4.22."""
    _, sender, _receiver = two()
    regs = sender.send_regs(9 if case == "unknown domain" else 2, 0x64, b"x")
    if case == "spoofed":
        sender.ram[PAGE_SIZE + 4] = 3
        sender.ram[PAGE_SIZE + 5] = 0
    (rax,) = sender.trap(Kind.VMCALL, regs).regs
    assert rax == value


def test_ring_3_does_not_reach_argo() -> None:
    """VMCALL exits at any privilege; Xen's software check answers -EPERM and touches nothing."""
    _, sender, receiver = two()
    receiver.register(0x64)
    before = bytes(receiver.ram)
    done = sender.trap(Kind.VMCALL, sender.send_regs(2, 0x64, b"x"), privilege=3)
    assert int32(done.regs[0]) == -Errno.EPERM and receiver.ram == before


# -- order ---------------------------------------------------------------------------------------------------------


def outcomes(done: list[Any]) -> list[int]:
    return [completion.outcome for completion in done]


def test_frames_execute_in_order() -> None:
    """Ten sends submitted at once arrive in order and complete in order."""
    _, sender, receiver = two()
    receiver.register(0x64)
    seqs = [sender.submit(Kind.VMCALL, sender.send_regs(2, 0x64, bytes([65 + n]), slot=n)) for n in range(10)]
    done = sender.run()
    assert [completion.seq for completion in done] == seqs
    assert bytes(receiver.ram[16 * PAGE_SIZE + 80 :: 32][:10]) == b"ABCDEFGHIJ"


def test_a_linked_frame_runs_only_after_a_success() -> None:
    """A negative int32 cancels every further linked frame, untouched; a frame without LINK starts anew."""
    _, sender, receiver = two()
    receiver.register(0x64)
    good = sender.send_regs(2, 0x64, b"a", slot=0)
    bad = sender.send_regs(2, 0x65, b"b", slot=1)
    for regs, flags in (
        (good, 0),
        (good, LINK),
        (bad, LINK),
        (good, LINK),
        (good, LINK),
        (good, 0),
        (good, LINK),
    ):
        sender.submit(Kind.VMCALL, regs, flags=flags)
    done = sender.run()
    assert outcomes(done) == [DONE, DONE, DONE, CANCELED, CANCELED, DONE, DONE]
    assert int32(done[2].regs[0]) == -Errno.ECONNREFUSED
    assert receiver.ram[16 * PAGE_SIZE + 4] == 4 * 32, "four messages, not six"


def test_a_fault_breaks_the_chain_too() -> None:
    """Only outcome DONE counts as a success; an ignored OUT is one as well."""
    guest = Machine().guest(1)
    guest.submit(Kind.RDMSR, address=0x1234_5678)
    guest.submit(Kind.CPUID, flags=LINK)
    guest.submit(Kind.OUT, address=1, size=1)
    guest.submit(Kind.CPUID, flags=LINK)
    assert outcomes(guest.run()) == [FAULT, CANCELED, Outcome.IGNORED, DONE]


def test_a_linked_frame_may_be_submitted_later() -> None:
    """LINK looks at the frame before it, whenever that was executed."""
    guest = Machine().guest(1)
    guest.trap(Kind.RDMSR, address=0x1234_5678)
    assert guest.trap(Kind.CPUID, flags=LINK).outcome == CANCELED


class Pending:
    """Makes the Argo core answer PENDING for sendv, as an operation does that waits for another host."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[object] = []
        real = type(machine.core.argo).op

        def op(
            core: Any,
            caller: Any,
            cmd: int,
            a1: int,
            a2: int,
            a3: int,
            a4: int,
            token: object = None,
            ctx: int = 0,
        ) -> int:
            if cmd == Op.SENDV:
                self.tokens.append(token)
                return PENDING
            return real(core, caller, cmd, a1, a2, a3, a4, token, ctx)

        monkeypatch.setattr(type(machine.core.argo), "op", op)


def test_a_pending_frame_holds_back_its_vcpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later frame of that vCPU waits; another vCPU and another guest go on."""
    machine, sender, other = two()
    pending = Pending(machine, monkeypatch)
    sender.submit(Kind.VMCALL, sender.send_regs(2, 1, b"x"))
    sender.submit(Kind.CPUID, address=1)
    assert sender.run() == []
    assert other.trap(Kind.CPUID, address=1).outcome == DONE
    machine.core.complete(pending.tokens[0], 42)
    assert sender.run() != []
    machine.core.complete(pending.tokens[0], 43)
    assert sender.run() == [], "a second answer to the same operation is nothing"


def test_who_waits_for_what_is_pending_is_rung_by_the_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that went to sleep has nothing to look at before; what was answered beside it rings it."""
    machine, sender, _ = two()
    pending = Pending(machine, monkeypatch)
    store32(words32(sender.vcpu.area.buffer), Word.GUEST_ASLEEP >> 2, 1)
    sender.submit(Kind.VMCALL, sender.send_regs(2, 1, b"x"))
    sender.side.publish()
    assert machine.core.run(sender.vcpu) == 1
    assert sender.vcpu not in machine.core.bells
    machine.core.complete(pending.tokens[0], 42)
    assert sender.vcpu in machine.core.bells
    machine.core.bells.clear()
    sender.submit(Kind.CPUID, address=1)
    sender.submit(Kind.VMCALL, sender.send_regs(2, 1, b"x"))
    sender.side.publish()
    assert machine.core.run(sender.vcpu) == 2
    assert sender.vcpu in machine.core.bells


def test_what_waited_runs_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer completes the frame, then the rest runs in order; a refused one cancels its linked followers."""
    machine, sender, _ = two()
    pending = Pending(machine, monkeypatch)
    for flags, kind in ((0, Kind.VMCALL), (LINK, Kind.CPUID), (0, Kind.CPUID)):
        sender.submit(kind, sender.send_regs(2, 1, b"x"), flags=flags, address=1)
    assert sender.run() == []
    machine.core.complete(pending.tokens[0], -Errno.ECONNREFUSED)
    done = sender.run()
    assert outcomes(done) == [DONE, CANCELED, DONE]
    assert int32(done[0].regs[0]) == -Errno.ECONNREFUSED


def test_async_holds_back_its_linked_followers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASYNC (experimental): later unlinked frames overtake; the linked ones run when the answer is there."""
    machine, sender, _ = two()
    pending = Pending(machine, monkeypatch)
    frames = (
        (ASYNC, Kind.VMCALL),
        (LINK, Kind.CPUID),
        (LINK, Kind.CPUID),
        (0, Kind.RDMSR),
        (LINK, Kind.CPUID),
    )
    seqs = [
        sender.submit(kind, sender.send_regs(2, 1, b"x"), flags=flags, address=1 if kind == Kind.CPUID else 0x1234)
        for flags, kind in frames
    ]
    done = sender.run()
    assert [(c.seq, c.outcome) for c in done] == [(seqs[3], FAULT), (seqs[4], CANCELED)]
    machine.core.complete(pending.tokens[0], 7)
    done = sender.run()
    assert [(c.seq, c.outcome) for c in done] == [(seqs[0], DONE), (seqs[1], DONE), (seqs[2], DONE)]
    assert sender.vcpu.deferred == 0


def test_an_async_refusal_cancels_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The followers of a failed ASYNC frame complete CANCELED, whatever ran in between."""
    machine, sender, _ = two()
    pending = Pending(machine, monkeypatch)
    sender.submit(Kind.VMCALL, sender.send_regs(2, 1, b"x"), flags=ASYNC)
    sender.submit(Kind.CPUID, flags=LINK, address=1)
    sender.submit(Kind.CPUID, address=1)
    sender.run()
    machine.core.complete(pending.tokens[0], -1)
    assert outcomes(sender.run()) == [DONE, CANCELED]


FRAMES_OF_ALL_KINDS = st.lists(
    st.tuples(
        st.sampled_from(("sendv", "sendv", "sendv", "full", "refused", "notify", "enosys", "cpuid", "big", "short")),
        st.sampled_from((0, 0, LINK, LINK, ASYNC, LINK | ASYNC, WIDTH32, 8)),
        st.sampled_from((0, 0, 0, 3)),
    ),
    max_size=60,
)


@given(FRAMES_OF_ALL_KINDS, st.sampled_from((1, 3, 64)))
@settings(max_examples=80, deadline=None)
def test_the_loop_for_plain_calls_does_what_every_frame_gets(
    frames: list[tuple[str, int, int]], budget: int
) -> None:
    """The loop for Argo calls and the general path agree on answers, counters, memory and links, frame by frame."""

    def play(quick: bool) -> tuple[Any, ...]:
        _, sender, receiver = two()
        receiver.register(0x64, ring_len=1024)
        receiver.bind_virq()
        if not quick:
            sender.machine.core._run_calls = lambda *_: 0  # type: ignore[method-assign]
        shapes = {
            "sendv": sender.send_regs(2, 0x64, b"thirty-two bytes of some payload", slot=0),
            "full": sender.send_regs(2, 0x64, bytes(200), slot=1),
            "refused": sender.send_regs(2, 0x65, b"nobody", slot=2),
            "notify": Guest.regs(39, Op.NOTIFY),
            "enosys": Guest.regs(77, 1, 2),
            "cpuid": (0x4000_0000,),
            "big": Guest.regs(39, Op.SENDV, 0, 0, 1 << 40),
            "short": sender.send_regs(2, 0x64, b"", slot=3)[:5],
        }
        seen = []
        for name, flags, privilege in frames:
            kind = Kind.CPUID if name == "cpuid" else Kind.VMCALL
            sender.submit(kind, shapes[name], flags=flags, privilege=privilege)
        sender.side.publish()
        while sender.machine.core.run(sender.vcpu, budget):
            seen += [sender.side.collect() for _ in range(sender.side.completed())]
        return seen, sender.hvm.counters, receiver.hvm.counters, receiver.ram, sender.vcpu.chain

    assert play(True) == play(False)


def test_a_turn_is_bounded() -> None:
    """No vCPU takes more than its budget of frames at once."""
    machine = Machine()
    guest = machine.guest(1)
    for _ in range(20):
        guest.submit(Kind.CPUID)
    guest.side.publish()
    assert machine.core.run(guest.vcpu, 8) == 8
    assert guest.side.completed() == 8


# -- interrupts -----------------------------------------------------------------------------------------------------


def take_posts(guest: Guest, vcpu: int = 0) -> list[int]:
    side = guest.sides[vcpu]
    return [side.take_post() for _ in range(side.posted())]


SIGNALS = {row["case"]: row for row in rows("evtchn.csv") if row["case"].startswith("signal_")}


@pytest.mark.parametrize(
    "case",
    [
        "signal_sendv_ok",
        "signal_sendv_zero",
        "signal_self_send",
        "signal_sendv_failed",
        "signal_register",
        "signal_unregister",
    ],
)
def test_when_virq_argo_is_raised(case: str) -> None:
    """Each successful sendv raises it at the destination; nothing else of these does (Xen common/argo.c)."""
    _, sender, receiver = two()
    port = receiver.bind_virq()
    receiver.register(0x64)
    take_posts(receiver)
    match case:
        case "signal_sendv_ok":
            assert sender.send(2, 0x64, b"x") == 1
        case "signal_sendv_zero":
            assert sender.send(2, 0x64, b"") == 0
        case "signal_self_send":
            assert receiver.send(2, 0x64, b"x") == 1
        case "signal_sendv_failed":
            assert sender.send(2, 0x65, b"x") < 0
        case "signal_register":
            assert receiver.register(0x70, gfn=20) == 0
        case "signal_unregister":
            receiver.ram[PAGE_SIZE : PAGE_SIZE + 8] = (0x64).to_bytes(4, "little") + b"\xf4\x7f\0\0"
            assert receiver.argo(Op.UNREGISTER_RING, PAGE_SIZE) == 0
    golden = SIGNALS[case]["after"]
    expected = [] if golden == "no VIRQ" else [post_entry(Post.PORT, port)]
    assert take_posts(receiver) == expected


def test_a_virq_is_lost_while_unbound_and_not_replayed() -> None:
    """Port 0 means unbound: dropped, counted, and binding later brings nothing back."""
    _, sender, receiver = two()
    receiver.register(0x64)
    sender.send(2, 0x64, b"x")
    counters = receiver.hvm.counters
    assert (counters.interrupts_raised, counters.interrupts_dropped) == (1, 1)
    assert receiver.bind_virq() > 0
    assert take_posts(receiver) == []


def test_virqs_coalesce_until_the_guest_takes_them() -> None:
    """Two sends, one post; the counters add up: raised = posted + coalesced + dropped."""
    _, sender, receiver = two()
    receiver.bind_virq()
    receiver.register(0x64)
    sender.send(2, 0x64, b"x")
    sender.send(2, 0x64, b"y")
    assert len(take_posts(receiver)) == 1
    sender.send(2, 0x64, b"z")
    assert len(take_posts(receiver)) == 1
    counters = receiver.hvm.counters
    assert (counters.interrupts_raised, counters.interrupts_posted, counters.interrupts_coalesced) == (
        3,
        2,
        1,
    )


def test_the_bell_rings_sleepers_only() -> None:
    """A guest that is awake is not rung; one that masked the port is not woken for it."""
    machine, sender, receiver = two()
    port = receiver.bind_virq()
    receiver.register(0x64)
    xen.ADD_TO_PHYSMAP.pack_into(receiver.ram, PAGE_SIZE, xen.DOMID_SELF, 0, 0, 0, 8)
    assert receiver.call(xen.Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, PAGE_SIZE) == 0

    def rung() -> bool:
        machine.core.bells.clear()
        take_posts(receiver)
        sender.send(2, 0x64, b"x")
        return receiver.vcpu in machine.core.bells

    assert not rung()
    receiver.side.take_post()
    words = words32(receiver.vcpu.area.buffer)
    store32(words, Word.GUEST_ASLEEP >> 2, 1)
    assert rung()
    receiver.ram[8 * PAGE_SIZE + xen.EVTCHN_MASK_OFFSET] = 1 << port
    assert not rung()


def test_retargeting_moves_the_interrupt() -> None:
    """EVTCHNOP_bind_vcpu: the next raise is posted to the other vCPU."""
    machine = Machine()
    sender, receiver = machine.guest(1), machine.guest(2, vcpus=2)
    port = receiver.bind_virq()
    receiver.register(0x64)
    assert receiver.evtchn(xen.EvtchnOp.BIND_VCPU, port, 1) == 0
    sender.send(2, 0x64, b"x")
    assert take_posts(receiver, 0) == [] and take_posts(receiver, 1) == [post_entry(Post.PORT, port)]


def test_event_channel_operations() -> None:
    """bind, status, unmask, send, close and what each refuses (Xen common/event_channel.c)."""
    guest = Machine().guest(1, vcpus=2)
    assert guest.bind_virq(24) == EINVAL and guest.bind_virq(0xFFFF_FFFF) == EINVAL
    assert guest.bind_virq(VIRQ_ARGO, 1) == EINVAL, "a per-domain VIRQ is bound on vCPU 0"
    assert guest.bind_virq(0, 2) == ENOENT, "there is no vCPU 2"
    port = guest.bind_virq()
    assert port > 0 and guest.bind_virq() == EEXIST
    xen.STATUS.pack_into(guest.ram, PAGE_SIZE, xen.DOMID_SELF, 0, port, 0, 0, 0)
    assert guest.evtchn(xen.EvtchnOp.STATUS) == 0
    assert xen.STATUS.unpack_from(guest.ram, PAGE_SIZE)[3:] == (xen.EvtchnState.VIRQ, 0, VIRQ_ARGO)
    assert guest.evtchn(xen.EvtchnOp.SEND, port) == EINVAL
    assert guest.evtchn(xen.EvtchnOp.UNMASK, port) == 0 and guest.evtchn(xen.EvtchnOp.UNMASK, port + 1) == EINVAL
    assert guest.evtchn(xen.EvtchnOp.BIND_VCPU, port, 5) == ENOENT
    assert guest.evtchn(xen.EvtchnOp.CLOSE, port) == 0 and guest.evtchn(xen.EvtchnOp.CLOSE, port) == EINVAL
    assert guest.evtchn(13) == -Errno.ENOSYS
    assert guest.bind_virq() == port


def test_event_channel_operations_on_unreachable_memory() -> None:
    """A structure outside the domain's memory is -EFAULT for each operation."""
    guest = Machine().guest(1)
    for op in (
        xen.EvtchnOp.BIND_VIRQ,
        xen.EvtchnOp.CLOSE,
        xen.EvtchnOp.SEND,
        xen.EvtchnOp.STATUS,
        xen.EvtchnOp.BIND_VCPU,
        xen.EvtchnOp.UNMASK,
    ):
        assert guest.call(xen.Hypercall.EVENT_CHANNEL_OP, op, 1 << 40) == -Errno.EFAULT
    assert guest.call(xen.Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, 1 << 40) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("fields", "result"),
    [((xen.DOMID_SELF, 0, 0, 0, 8), 0), ((1, 0, 0, 0, 8), 0), ((2, 0, 0, 0, 8), -Errno.EPERM),
     ((xen.DOMID_SELF, 0, 2, 0, 8), EINVAL), ((xen.DOMID_SELF, 0, 0, 1, 8), EINVAL), ((xen.DOMID_SELF, 0, 0, 0, 64),
     EINVAL)],
)  # fmt: skip
def test_shared_info_is_placed_in_own_memory_only(fields: tuple[int, ...], result: int) -> None:
    """XENMEM_add_to_physmap of shared_info (Xen public/memory.h)."""
    guest = Machine().guest(1)
    xen.ADD_TO_PHYSMAP.pack_into(guest.ram, PAGE_SIZE, *fields)
    assert guest.call(xen.Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, PAGE_SIZE) == result


def test_every_port_can_be_taken_once() -> None:
    """Ports are handed out from 1; the 2-level ABI has 4095 of them, and per-vCPU VIRQs one per vCPU."""
    channels = EventChannels(64)
    ports = [channels.bind_virq(0, vcpu) for vcpu in range(64)]
    assert ports == list(range(1, 65))
    assert channels.status(0) == EINVAL and channels.status(4096) == EINVAL
    assert channels.status(4095) == (xen.EvtchnState.CLOSED, 0, 0)


# -- death and malice ------------------------------------------------------------------------------------------------


def test_dying_answers_connection_refused_then_no_such_domain() -> None:
    """The id of a dying domain resolves; freed, it does not, and may be used again."""
    machine, sender, receiver = two()
    receiver.register(0x64)
    machine.core.kill_domain(2)
    assert sender.send(2, 0x64, b"x") == -Errno.ECONNREFUSED
    machine.core.kill_domain(2)
    machine.core.free_domain(2)
    assert sender.send(2, 0x64, b"x") == -Errno.ESRCH
    machine.guest(2)
    assert sender.send(2, 0x64, b"x") == -Errno.ECONNREFUSED, "a new domain has no rings"


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_a_guest_full_of_noise_harms_only_itself(seed: int, frames: int) -> None:
    """Random bytes over RAM and vCPU area: nothing raises, and two bystanders exchange messages all the while."""
    machine, sender, receiver = two()
    noisy = machine.guest(3, vcpus=2)
    receiver.register(0x64)
    generator = random.Random(seed)
    noisy.ram[:] = generator.randbytes(len(noisy.ram))
    for round_number in range(4):
        for vcpu in noisy.hvm.vcpus:
            area = vcpu.area.buffer
            area[:] = generator.randbytes(AREA_SIZE)
            words = words32(area)
            store32(words, Word.SQ_TAIL >> 2, vcpu.area.sq_head + min(frames, 64))
            store32(words, Word.CQ_HEAD >> 2, vcpu.area.cq_tail)
            for slot in range(64):
                # Half of the frames are calls that a guest could really make, with arguments from its noise.
                if generator.random() < 0.5:
                    area[0x1000 + 256 * slot + 4 : 0x1000 + 256 * slot + 16] = bytes(
                        [generator.randrange(1, 13), 0, generator.randrange(8), 0, 0, 4, 0, 0, 18, 0, 0, 0]
                    )
                    area[0x1000 + 256 * slot + 32 : 0x1000 + 256 * slot + 40] = generator.choice((12, 32, 39)).to_bytes(
                        8, "little"
                    )
                    area[0x1000 + 256 * slot + 72 : 0x1000 + 256 * slot + 80] = generator.randrange(8).to_bytes(
                        8, "little"
                    )
                    for register in (48, 56, 64, 80, 96):
                        at = 0x1000 + 256 * slot + register
                        area[at : at + 8] = generator.choice((0, 1, 8, 4096, generator.randrange(1 << 20))).to_bytes(
                            8, "little"
                        )
            machine.core.run(vcpu)
        message = bytes([round_number])
        assert sender.send(2, 0x64, message) == 1
        assert receiver.ram[16 * PAGE_SIZE + 80 + 32 * round_number] == round_number


def test_a_call_that_answers_an_error_breaks_the_chain_whoever_answers_it() -> None:
    """HVC of an unknown function yields -1: what is LINKed to it is cancelled (project trap frame, order)."""
    guest = Machine(personality="smccc", arch=Arch.AARCH64, cpu="armv8", doors=()).guest(1)
    guest.submit(Kind.HVC, (0x8600_BEEF,), privilege=1)
    guest.submit(Kind.HLT_WFI, (), privilege=1, flags=LINK)
    first, second = guest.run()
    assert (first.outcome, int32(first.regs[0]), second.outcome) == (DONE, -1, CANCELED)


def test_notification_operations_are_argos_and_off_with_it() -> None:
    """argo=no: -EOPNOTSUPP for every operation, the experimental ones too."""
    guest = Machine("no", notifications=("line",)).guest(1)
    assert guest.argo(0x4000_0002, 1, 0, 7) == guest.argo(0x4000_0001, 0, 0, 0) == -Errno.EOPNOTSUPP


def test_a_ring_loses_its_own_interrupt_by_a_32_bit_call_too() -> None:
    """unregister_ring by ebx ecx ...: what the ring was to raise is forgotten with it (project notification)."""
    guest = Machine(notifications=("vector-per-ring",)).guest(1)
    guest.register(0x64)
    REGISTER_RING_EX.pack_into(guest.ram, PAGE_SIZE, 0x64, 0x7FF4, 0, 4032, 0, 0xFEE0_0000, 0x41, 0)
    assert guest.argo(NotifyOp.REGISTER_RING_EX, PAGE_SIZE, 3 * PAGE_SIZE, 1, 0) == 0
    assert guest.hvm.notification.of_ring
    done = guest.trap(Kind.VMCALL, (39, Op.UNREGISTER_RING, PAGE_SIZE, 0, 0, 0), flags=WIDTH32)
    assert int32(done.regs[0]) == 0 and not guest.hvm.notification.of_ring
