"""Interrupts from a hypervisor in one process to a guest that drains at the same time in another: none is lost.

300 interrupts, vectors and event-channel ports, share a post ring of 256 entries.  What a message is to its interrupt,
a number in shared memory is here: it is stored, then the interrupt is posted, and the handler reads it.  In the end
every handler has read its last number.  Rules: the project's vCPU area, version 1 (post ring, post_more, sleeping).
"""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

import pytest

from guest_node.attach import Bells
from guest_node.vcpu import Vcpu
from hmx.cpu.evtchn import EventChannelPage
from hmx.cpu.lapic import LocalApic
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hmx.shm import load32, store32, words32
from hmx.trap import Arch
from hmx.vcpu_area import AREA_SIZE, POST_ENTRIES, GuestSide, Post, post_entry
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name

VECTORS: Final = range(0x20, 0x100)
PORTS: Final = range(1, 77)
ENTRIES: Final = (
    *(post_entry(Post.VECTOR, vector) for vector in VECTORS),
    *(post_entry(Post.PORT, port) for port in PORTS),
)
DOMID: Final = 1
# Shared memory behind the area: what was announced, by the poster; what the handler saw, by the guest.
RAISED: Final = AREA_SIZE
SEEN: Final = RAISED + PAGE_SIZE
SIZE: Final = SEEN + PAGE_SIZE


def lives_as_guest(shared: mmap.mmap, bell_out: int, bell_in: socket.socket) -> None:
    """The guest's process: a vCPU, its local APIC, its event-channel page, a handler for each interrupt."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(shared)
        raised, seen = (words32(view[at : at + PAGE_SIZE]) for at in (RAISED, SEEN))
        vcpu = Vcpu(0, GuestSide(view[:AREA_SIZE]), Bells(bell_out, bell_in, loop.add_reader))
        vcpu.attach_apic(LocalApic(0))
        vcpu.attach_page(EventChannelPage(Window(bytearray(PAGE_SIZE), 0, PAGE_SIZE)))

        def reader(index: int) -> Callable[[], None]:
            return lambda: store32(seen, index, load32(raised, index))

        for index, entry in enumerate(ENTRIES):
            attach = vcpu.on_vector if entry >> 24 == Post.VECTOR else vcpu.on_port
            attach(entry & 0xFF_FFFF, reader(index))
        vcpu.start()
        await asyncio.Event().wait()  # all else happens when the bell rings, until this process is killed

    asyncio.run(main())


class Storm:
    """The hypervisor's process: its core, and the shell's part of ringing and being rung."""

    def __init__(self, shared: mmap.mmap, bell_in: int, bell_out: socket.socket) -> None:
        options, _ = parse_options("on")
        self.core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", options, xsm_by_name("dummy"))
        view = memoryview(shared)
        hvm = self.core.create_domain(DOMID, MappedMemory(bytearray(PAGE_SIZE)), [view[:AREA_SIZE]])
        self.vcpu = hvm.vcpus[0]
        self.raised, self.seen = (words32(view[at : at + PAGE_SIZE]) for at in (RAISED, SEEN))
        self.bells = 0
        self.full = 0
        self._out = bell_out
        self._rung = select.epoll()
        self._rung.register(bell_in, select.EPOLLIN | select.EPOLLET)

    def announce(self, index: int, number: int) -> None:
        """Something happened: what a handler will look at, then its interrupt."""
        store32(self.raised, index, number)
        self.core.post(DOMID, 0, ENTRIES[index])
        self.ring()

    def ring(self) -> None:
        """Ring the guest, if the core says so."""
        if self.core.bells:
            self.core.bells.clear()
            self.bells += 1
            try:
                self._out.send(b"\0", socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass  # it is rung already

    def serve(self, seconds: float = 0.0) -> None:
        """Answer the guest's bell: what found the ring full is posted again."""
        if self._rung.poll(seconds):
            self.full += bool(self.vcpu.area.backlog)
            self.core.run(self.vcpu)
            self.ring()

    def overflow(self, pid: int | None, numbers: list[int]) -> int:
        """Whatever the machine's pace: a post to a guest that sleeps, and all of them while it cannot run."""
        assert pid is not None
        last = time.monotonic() + 10
        while not self.vcpu.area.guest_sleeps() and time.monotonic() < last:
            time.sleep(0.001)
        os.kill(pid, signal.SIGSTOP)
        for index in range(len(ENTRIES)):
            numbers[index] += 1
            self.announce(index, numbers[index])
        os.kill(pid, signal.SIGCONT)
        return len(ENTRIES)

    def stuck(self) -> list[str]:
        """The interrupts whose handler has not seen the last that was announced."""
        return [
            f"{Post(entry >> 24).name} {entry & 0xFF_FFFF} (saw {load32(self.seen, index)} of"
            f" {load32(self.raised, index)})"
            for index, entry in enumerate(ENTRIES)
            if load32(self.seen, index) != load32(self.raised, index)
        ]

    def settle(self, deadline: float) -> None:
        """Serve until every handler has seen its last; those that have not in `deadline` seconds fail by name."""
        last = time.monotonic() + deadline
        while self.stuck() and time.monotonic() < last:
            self.serve(0.01)
        assert not self.stuck(), f"stuck: {', '.join(self.stuck())}"


def storm(posts: int, seed: int, deadline: float) -> Storm:
    """`posts` announcements in bursts, at the guest's speed or faster; then every handler has `deadline` seconds."""
    shared = mmap.mmap(-1, SIZE)
    to_hypervisor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    theirs.setblocking(False)
    run = Storm(shared, to_hypervisor, ours)
    guest = multiprocessing.get_context("fork").Process(
        target=lives_as_guest, args=(shared, to_hypervisor, theirs), daemon=True
    )
    guest.start()
    chance, numbers = random.Random(seed), [0] * len(ENTRIES)
    try:
        numbers[0] = 1
        run.announce(0, 1)
        run.settle(deadline)  # the guest is up
        done = 1 + run.overflow(guest.pid, numbers)
        while done < posts:
            # All at once, so that the ring overflows; a few, so that the guest falls asleep in between.
            burst = min(posts - done, chance.choice((1, 3, 30, 300, 3000)))
            for index in chance.choices(range(len(ENTRIES)), k=burst):
                numbers[index] += 1
                run.announce(index, numbers[index])
            run.serve()
            if burst < 30:
                time.sleep(0.0005)
            if chance.random() < 0.2:
                run.settle(deadline)  # any moment may be the last
            done += burst
            assert guest.is_alive(), "the guest died"
        run.settle(deadline)
    finally:
        guest.kill()
        guest.join()
        os.close(to_hypervisor)
        ours.close()
        theirs.close()
    return run


def test_there_are_more_interrupts_than_entries() -> None:
    """300 of them, all different, of two kinds."""
    assert len(set(ENTRIES)) == 300 > POST_ENTRIES


def test_after_the_last_post_of_each_interrupt_its_handler_ran() -> None:
    """A short storm in every run of the suite: the ring overflows and the guest sleeps in between."""
    run = storm(20_000, seed=1, deadline=30)
    assert run.bells and run.full


@pytest.mark.long
@pytest.mark.timeout(600)
def test_after_a_million_posts_every_handler_ran_after_its_last() -> None:
    """10^6 posts; the ring overflowed on the way, and the guest slept on the way."""
    run = storm(1_000_000, seed=2, deadline=120)
    assert run.full and run.bells
