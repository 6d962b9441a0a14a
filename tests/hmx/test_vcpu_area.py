"""The vCPU area as a protocol: rings, posts, sleeping, and peers that lie (project vCPU area, version 1)."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hmx.shm import load32, store32, words32
from hmx.trap import Arch, Kind, Outcome
from hmx.vcpu_area import (
    AREA_SIZE,
    CQ_ENTRIES,
    POST_ENTRIES,
    SQ_ENTRIES,
    AreaError,
    GuestSide,
    HypervisorSide,
    Post,
    Word,
    post_entry,
)


def pair() -> tuple[bytearray, HypervisorSide, GuestSide]:
    area = bytearray(AREA_SIZE)
    hypervisor = HypervisorSide(memoryview(area))
    return area, hypervisor, GuestSide(memoryview(area))


def test_a_frame_goes_over_and_its_completion_comes_back() -> None:
    """Submission, completion, and the words that announce them."""
    _, hypervisor, guest = pair()
    seq = guest.submit(Kind.CPUID, (1, 2), address=5)
    assert hypervisor.submitted() == 0, "not announced yet"
    assert guest.publish(), "the hypervisor starts asleep and must be rung"
    assert hypervisor.submitted() == 1
    head, regs = hypervisor.take()
    assert head[0] == seq and head[1] == Kind.CPUID and head[9] == 5 and regs == (1, 2)
    hypervisor.complete(seq, Outcome.DONE, (9,))
    assert guest.completed() == 0
    hypervisor.publish()
    assert guest.completed() == 1
    done = guest.collect()
    assert (done.seq, done.outcome, done.regs) == (seq, Outcome.DONE, (9,))
    assert guest.outstanding == 0


LAID = st.tuples(
    st.sampled_from(((1,) * 9, (2,) * 9, (3, 4), ())),
    st.sampled_from(({}, {}, {"address": 5}, {"privilege": 3}, {"context": 1 << 60}, {"imm": 9}, {"size": 4})),
    st.sampled_from((0, 1)),
)


@given(st.lists(LAID, max_size=200))
def test_a_frame_over_an_old_one_is_whole(frames: list[tuple[tuple[int, ...], dict[str, int], int]]) -> None:
    """A slot that holds the same registers already is not written twice; the hypervisor reads the same frame."""
    _, hypervisor, guest = pair()
    for regs, fields, flags in frames:
        seq = guest.submit(Kind.VMCALL, regs, flags=flags, **fields)
        guest.publish()
        head, found = hypervisor.take()
        expected = {"privilege": 0, "size": 0, "imm": 0, "address": 0, "context": 0, **fields}
        assert found == regs and head[6] == len(regs)
        assert head[:6] == (seq, Kind.VMCALL, flags, expected["privilege"], expected["size"], expected["imm"])
        assert head[7:] == (0, 0, expected["address"], expected["context"])
        hypervisor.complete(seq, Outcome.DONE, (7,))
        hypervisor.publish()
        assert guest.collect().regs == (7,)


def test_indices_run_through_2_32() -> None:
    """Heads and tails are free-running modulo 2^32."""
    area, hypervisor, guest = pair()
    near = 0xFFFF_FFFF
    guest.sq_tail = guest.cq_head = guest.seq = hypervisor.sq_head = hypervisor.cq_tail = near
    store32(words32(memoryview(area)), Word.CQ_HEAD >> 2, near)
    for value in range(3):
        guest.submit(Kind.VMCALL, (value,))
        guest.publish()
        head, regs = hypervisor.take()
        hypervisor.complete(head[0], Outcome.DONE, regs)
        hypervisor.publish()
        assert guest.collect().regs == (value,)
        assert hypervisor.room() == CQ_ENTRIES


def test_a_guest_never_submits_more_than_the_rings_hold() -> None:
    """64 frames may be outstanding; the 65th is the guest's own error."""
    _, _, guest = pair()
    for _ in range(SQ_ENTRIES):
        guest.submit(Kind.VMCALL, ())
    assert guest.room() == 0
    with pytest.raises(BufferError, match="64 frames are outstanding"):
        guest.submit(Kind.VMCALL, ())


@pytest.mark.parametrize("tail", [65, 0x8000_0000, 0xFFFF_FFFF])
def test_an_impossible_tail_counts_as_nothing(tail: int) -> None:
    """A guest that scribbles over sq_tail submits nothing until the word is sane again."""
    area, hypervisor, guest = pair()
    words = words32(memoryview(area))
    store32(words, Word.SQ_TAIL >> 2, tail)
    assert hypervisor.submitted() == 0
    guest.submit(Kind.VMCALL, ())
    guest.publish()
    assert hypervisor.submitted() == 1


@pytest.mark.parametrize("head", [1, 0x8000_0000])
def test_an_impossible_completion_head_counts_as_full(head: int) -> None:
    """A guest that scribbles over cq_head gets no completions until the word is sane again."""
    area, hypervisor, _ = pair()
    store32(words32(memoryview(area)), Word.CQ_HEAD >> 2, head)
    assert hypervisor.room() == 0


def test_a_frame_is_read_once() -> None:
    """What the guest changes after the take is not seen."""
    area, hypervisor, guest = pair()
    guest.submit(Kind.VMCALL, (1, 2, 3))
    guest.publish()
    taken = hypervisor.take()
    area[0x1000:0x1100] = b"\xff" * 256
    assert taken[1] == (1, 2, 3)


def test_a_register_count_beyond_18_reads_18() -> None:
    """nregs is hostile input: nothing beyond the register file is read."""
    area, hypervisor, guest = pair()
    guest.submit(Kind.VMCALL, ())
    area[0x1000 + 12] = 255
    guest.publish()
    head, regs = hypervisor.take()
    assert head[6] == 255 and len(regs) == 18


def test_the_header_is_checked() -> None:
    """A foreign magic, major version or architecture is refused with the field's name."""
    area = bytearray(AREA_SIZE)
    with pytest.raises(AreaError, match="magic"):
        GuestSide(memoryview(area))
    HypervisorSide(memoryview(area), Arch.AARCH64)
    with pytest.raises(AreaError, match="architecture"):
        GuestSide(memoryview(area), Arch.X86_64)
    area[4] = 2
    with pytest.raises(AreaError, match="major"):
        GuestSide(memoryview(area), Arch.AARCH64)


def test_sleeping_sees_what_came_before_the_flag() -> None:
    """Both sides look once more after arming: work that came first keeps them awake, later work must ring."""
    area, hypervisor, guest = pair()
    words = words32(memoryview(area))
    guest.submit(Kind.VMCALL, ())
    guest.publish()
    assert not hypervisor.sleep() and not load32(words, Word.HV_ASLEEP >> 2)
    head, _ = hypervisor.take()
    assert hypervisor.sleep()
    assert guest.publish(), "now it must be rung"
    hypervisor.complete(head[0], Outcome.DONE)
    hypervisor.publish()
    assert not hypervisor.guest_sleeps()
    assert not guest.sleep() and not hypervisor.guest_sleeps()
    guest.collect()
    assert guest.sleep() and hypervisor.guest_sleeps()
    guest.awake()
    hypervisor.post(post_entry(Post.PORT, 1))
    assert not guest.sleep()


def test_the_same_interrupt_coalesces_while_unconsumed() -> None:
    """One entry per id; after the guest took it, the next event is a new entry."""
    _, hypervisor, guest = pair()
    entry = post_entry(Post.PORT, 5)
    assert hypervisor.post(entry) and not hypervisor.post(entry)
    assert guest.posted() == 1 and guest.take_post() == entry
    assert hypervisor.post(entry) and guest.posted() == 1


def test_head_moves_before_the_guest_acts() -> None:
    """An event posted between take_post and the handler's end is not swallowed by the one in service."""
    _, hypervisor, guest = pair()
    entry = post_entry(Post.VECTOR, 0x40)
    hypervisor.post(entry)
    guest.take_post()
    assert hypervisor.post(entry), "the handler has not run yet, but the entry is consumed"


def test_a_full_post_ring_keeps_the_rest_and_asks_to_be_rung() -> None:
    """300 ids in a ring of 256: none is lost, the guest is told that there is more."""
    _, hypervisor, guest = pair()
    entries = [post_entry(Post.VECTOR, n) for n in range(300)]
    for entry in entries:
        assert hypervisor.post(entry)
        assert not hypervisor.post(entry), "waiting in the private set it coalesces too"
    assert guest.more_posts()
    taken = [guest.take_post() for _ in range(POST_ENTRIES)]
    assert hypervisor.repost() and not guest.more_posts()
    taken += [guest.take_post() for _ in range(guest.posted())]
    assert taken == entries


def test_an_impossible_post_head_loses_nothing() -> None:
    """A guest that scribbles over post_head gets its interrupts once the word is sane again."""
    area, hypervisor, guest = pair()
    words = words32(memoryview(area))
    store32(words, Word.POST_HEAD >> 2, 0x7000_0000)
    hypervisor.post(post_entry(Post.PORT, 3))
    store32(words, Word.POST_HEAD >> 2, guest.post_head)
    hypervisor.repost()
    assert guest.posted() == 1 and guest.take_post() == post_entry(Post.PORT, 3)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(0, 300))
def test_random_bytes_in_the_area_never_raise(seed: int, posts: int) -> None:
    """A guest may write anything anywhere into its area; the hypervisor's side keeps its own counts."""
    noise = random.Random(seed).randbytes(AREA_SIZE)
    area, hypervisor, _ = pair()
    area[:] = noise
    for number in range(posts):
        hypervisor.post(post_entry(Post.PORT, number))
    hypervisor.repost()
    for _ in range(min(hypervisor.submitted(), hypervisor.room())):
        head, regs = hypervisor.take()
        hypervisor.complete(head[0], Outcome.DONE, regs)
    hypervisor.publish()
    hypervisor.sleep()
    hypervisor.guest_sleeps()


class Posting(RuleBasedStateMachine):
    """Posts against a simple model: a set of raised ids, emptied by the guest in order of first raise."""

    def __init__(self) -> None:
        super().__init__()
        self.area, self.hypervisor, self.guest = pair()
        self.raised: deque[int] = deque()

    @rule(numbers=st.lists(st.integers(0, 400), max_size=200))
    def post(self, numbers: list[int]) -> None:
        for number in numbers:
            fresh = self.hypervisor.post(post_entry(Post.VECTOR, number))
            assert fresh == (number not in self.raised)
            if fresh:
                self.raised.append(number)

    @precondition(lambda self: self.raised)
    @rule(count=st.integers(1, 400))
    def drain(self, count: int) -> None:
        for _ in range(min(count, self.guest.posted())):
            assert self.guest.take_post() == post_entry(Post.VECTOR, self.raised.popleft())
        if self.guest.more_posts():
            self.hypervisor.repost()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.guest.posted() == min(len(self.raised), POST_ENTRIES) or self.guest.more_posts()


TestPosting = Posting.TestCase
TestPosting.settings = settings(max_examples=40, stateful_step_count=20)
