"""The post ring and the sleep flags on a machine whose stores arrive late: every fence is where one is needed.

A test between two real processes does not see a missing fence: an interpreter is slower than a store buffer.  Here the
buffer is simulated (x86-TSO), the ring holds two entries, and histories are drawn.  Rules: the project's vCPU area,
version 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest

from guest_node.vcpu import Vcpu
from hmx import vcpu_area
from hmx.cpu.lapic import LocalApic
from hmx.shm import load32, words32
from hmx.vcpu_area import AREA_SIZE, GuestSide, HypervisorSide, Post, post_entry
from tests.doubles.tso import Tso

FIRST = 0x41
IDS = 3
RING = 2
POSTS = 8


class Bell:
    """The platform of a vCPU whose loop is the test's."""

    def __init__(self, tso: Tso) -> None:
        self.ring = tso.ring

    def yield_cpu(self) -> None: ...

    def wait_briefly(self) -> None: ...
    def pause(self) -> None: ...

    def on_bell(self, handler: Callable[[], None]) -> None: ...


def history(seed: int, bare: bool) -> list[int]:
    """One history: the ids of interrupts whose handler did not see what was announced last.

    `bare`: a guest that handles each entry as it takes it; else one with a local APIC, which takes all there are first.
    """
    chance = random.Random(seed)
    with mock.patch.object(vcpu_area, "POST_ENTRIES", RING):
        area = memoryview(bytearray(AREA_SIZE))
        posts, guest = HypervisorSide(area), GuestSide(area)
        raised, seen = words32(memoryview(bytearray(4 * IDS))), [0] * IDS
        ids = [chance.randrange(IDS) for _ in range(POSTS)]

        def look(ident: int) -> None:
            seen[ident] = tso.load(raised, ident)

        def serve(tso: Tso) -> None:
            if posts.backlog and posts.repost() and posts.guest_sleeps():
                tso.ring()

        def hypervisor(tso: Tso) -> None:
            for number, ident in enumerate(ids, 1):
                tso.store(raised, ident, number)
                if posts.post(post_entry(Post.VECTOR, FIRST + ident)) and posts.guest_sleeps():
                    tso.ring()
            while True:
                tso.wait()
                serve(tso)

        def handles_each(tso: Tso) -> None:
            while True:
                while guest.posted():
                    look((guest.take_post() & 0xFF_FFFF) - FIRST)
                if guest.more_posts():
                    tso.ring()
                if guest.sleep():
                    tso.wait()
                    guest.awake()

        def takes_all_first(tso: Tso) -> None:
            while True:
                if not vcpu.poll_interrupts() and guest.sleep():
                    tso.wait()
                    guest.awake()

        tso = Tso(chance)
        vcpu = Vcpu(0, guest, Bell(tso))
        vcpu.attach_apic(LocalApic(0))
        for ident in range(IDS):
            vcpu.on_vector(FIRST + ident, partial(look, ident))
        with (
            mock.patch.object(vcpu_area, "load32", tso.load),
            mock.patch.object(vcpu_area, "store32", tso.store),
            mock.patch.object(vcpu_area, "fence", tso.fence),
        ):
            tso.run(hypervisor, handles_each if bare else takes_all_first)
    return [ident for ident in range(IDS) if seen[ident] != load32(raised, ident)]


BARE = pytest.mark.parametrize("bare", [True, False], ids=["bare", "with an APIC"])


@BARE
@pytest.mark.parametrize("block", range(4))
def test_no_interrupt_is_stuck(block: int, bare: bool) -> None:
    """Whenever stores arrive, each handler sees what was announced last."""
    for seed in range(block * 500, block * 500 + 500):
        assert history(seed, bare) == [], f"seed {seed}"


@pytest.mark.long
@BARE
def test_no_interrupt_is_stuck_in_many_histories(bare: bool) -> None:
    """Fifty times as many."""
    for seed in range(2000, 100_000):
        assert history(seed, bare) == [], f"seed {seed}"
