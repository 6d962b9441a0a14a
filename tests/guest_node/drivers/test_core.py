"""The driver core: no wake-up lost, no spinning, no waiter forgotten.

Source: the interrupt and notify passes of OpenXT's Linux Argo driver, over Xen common/argo.c (notify, pending queue).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.drivers.controls import CONTROL_LIMIT
from guest_node.drivers.core import TICK, ArgoDriver
from guest_node.drivers.dgram import datagram
from guest_node.drivers.rings import AUTO_PORT_BASE, AUTO_PORT_TOP, DriverRing, Rings
from hmx.argo.abi import DOMID_ANY, Address, NotifyFlag, Op
from hmx.argo.calls import Outgoing, SpaceAnswer, SpaceQuery
from hmx.argo.wakeups import Outcome
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate

TYPE = 0x1234


class Collector:
    """A sink that keeps what comes, up to a limit."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.got: list[bytes] = []
        self.lost_rings: list[DriverRing] = []
        self.cause: BaseException | None = None

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        if len(self.got) >= self.limit:
            return False
        self.got.append(bytes(payload))
        return True

    def lost(self, ring: DriverRing) -> None:
        self.lost_rings.append(ring)

    def broken(self, cause: BaseException) -> None:
        self.cause = cause


async def two(rig: Rig) -> tuple[ArgoDriver, ArgoDriver]:
    drivers = rig.driver(1), rig.driver(2)
    for driver in drivers:
        await driver.start()
    return drivers


def test_a_ring_that_never_becomes_empty_ends_a_pass() -> None:
    """A pass takes what was there when it came by; what the sink's own sends add is left for the next turn."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        calls = rig.guests[1]

        class Echoing(Collector):
            def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
                super().receive(source_port, source_domid, message_type, payload)
                result = calls._sendv(Outgoing(Address(5, 1), 5, (bytes(payload),), TYPE))
                assert result == len(payload)
                return True

        sink = Echoing()
        await driver.rings.bind(5, 1, 4096, sink)
        for index in range(3):
            assert await calls.sendv(Address(5, 1), 5, (bytes([index]),), TYPE) == 1
        assert driver.rings.receive_pass()
        assert sink.got == [b"\0", b"\1", b"\2"]

    simulate(main)


def test_rx_is_published_before_the_notify() -> None:
    """Xen wakes a sender by the rx_ptr that it finds: at every notify nothing that was handed over is unpublished."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        ring = await near.rings.bind(5, 2, 4096, sink)
        seen: list[int] = []

        def look(op: Op, detail: Any) -> None:
            if op is Op.NOTIFY:
                seen.append(len(sink.got))
                assert not ring.consumer.available()

        rig.guests[1].refuse = look
        for _ in range(3):
            await far.calls.sendv(Address(5, 1), 5, (b"x",), TYPE)
            await asyncio.sleep(0.01)
        assert seen == [1, 2, 3]

    simulate(main)


@pytest.mark.parametrize(("largest", "notifies"), [(0, 3), (1024, 0), (4096 - 32, 3)])
def test_a_pass_in_which_nobody_can_have_been_refused_needs_no_notify(largest: int, notifies: int) -> None:
    """Xen common/argo.c signals those that were refused; by agreement none is, while `largest` more bytes have room."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        calls: list[Op] = []
        await near.rings.bind(5, 2, 4096, Collector(), largest=largest)
        rig.guests[1].refuse = lambda op, _detail: calls.append(op)
        for _ in range(3):
            await far.calls.sendv(Address(5, 1), 5, (b"x",), TYPE)
            await asyncio.sleep(0.01)
        assert calls.count(Op.NOTIFY) == notifies

    simulate(main)


@given(sizes=st.lists(st.integers(1, 1024), min_size=1, max_size=40), held=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_who_was_refused_by_a_ring_of_bounded_messages_is_woken(sizes: list[int], held: int) -> None:
    """No wake-up is lost for it: everything arrives in less time than the slow look of a waiter takes."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(held)
        ring = await near.rings.bind(5, 2, 4096, sink, largest=1024)

        async def send() -> None:
            for size in sizes:
                while True:
                    before = far.wakeups.generation
                    result = await far.calls.sendv(Address(5, 1), 5, (bytes(size),), TYPE)
                    if result == size:
                        break
                    assert result == -Errno.EAGAIN
                    space = far.want_space(Address(5, 1), size, before)
                    try:
                        assert await space is Outcome.SUFFICIENT
                    finally:
                        far.forget(space)

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.001)
        sink.limit = 1 << 30
        near.resume(ring)
        await asyncio.wait_for(sending, TICK / 2)
        await asyncio.sleep(0.001)
        assert [len(payload) for payload in sink.got] == sizes

    simulate(main)


def test_one_pass_over_many_messages_notifies_once() -> None:
    """Batching notify is legal and normal: a hundred messages cost one call, not a hundred."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        await near.rings.bind(5, 2, 65536, sink)
        for _ in range(100):
            await far.calls.sendv(Address(5, 1), 5, (b"x",), TYPE)
        await asyncio.sleep(0.1)
        assert len(sink.got) == 100
        assert rig.guests[1].counts["notify"] == 1

    simulate(main)


def test_a_held_ring_is_not_looked_at_until_resumed() -> None:
    """Back-pressure: a full ring costs nothing while its reader does not read, and loses nothing."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=1)
        ring = await near.rings.bind(5, 2, 4096, sink)
        for index in range(3):
            await far.calls.sendv(Address(5, 1), 5, (bytes([index]),), TYPE)
        await asyncio.sleep(0.1)
        turns = near.counters.turns
        await asyncio.sleep(100)
        assert near.counters.turns == turns
        sink.limit = 3
        near.resume(ring)
        await asyncio.sleep(0.1)
        assert sink.got == [b"\0", b"\1", b"\2"]

    simulate(main)


def test_nonsense_in_a_ring_does_not_spin() -> None:
    """Less than a header between rx and tx is no message; a corrupt one is dropped once (rx := tx), and reported."""

    async def main() -> None:
        rig = Rig()
        near, _ = await two(rig)
        sink = Collector()
        ring = await near.rings.bind(5, 2, 4096, sink)
        window = ring.memory.window
        window.store32(4, 8)  # tx_ptr in the middle of a slot
        near.kick()
        await asyncio.sleep(1)
        assert near.counters.turns < 10
        window.store32(4, 32)  # a header of zeros: length 0
        near.kick()
        await asyncio.sleep(1)
        assert near.counters.turns < 20
        assert sink.lost_rings == [ring]
        assert near.rings.counters.corrupt == 1
        assert sink.got == []

    simulate(main)


def test_old_messages_before_nonsense_do_not_spin() -> None:
    """A tx_ptr that is no slot's start lets recovery land on an old message, again and again: still no spinning."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        ring = await near.rings.bind(5, 2, 1024, sink)
        for _ in range(20):
            await far.calls.sendv(Address(5, 1), 5, (b"old",), TYPE)
        await asyncio.sleep(0.1)
        ring.memory.window.store32(4, 33)  # rx := 48 is inside the old messages, 33 - 48 around the ring
        near.kick()
        await asyncio.sleep(1)
        turns = near.counters.turns
        assert near.rings.counters.corrupt > 0
        await asyncio.sleep(100)
        assert near.counters.turns == turns
        await near.rings.unbind(ring)
        assert list(near.rings) == []

    simulate(main)


def test_lost_virqs_are_made_up_for() -> None:
    """VIRQs coalesce and get lost while unbound: whatever wakes the pump next makes it look at everything."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        await near.rings.bind(5, 2, 4096, sink)
        await near.rings.bind(6, 2, 4096, sink)
        await asyncio.sleep(0.1)
        rig.lose_virq = 1.0
        await far.calls.sendv(Address(5, 1), 5, (b"lost",), TYPE)
        await asyncio.sleep(1)
        assert sink.got == []
        rig.lose_virq = 0.0
        await far.calls.sendv(Address(6, 1), 5, (b"seen",), TYPE)
        await asyncio.sleep(0.1)
        assert sorted(sink.got) == [b"lost", b"seen"]

    simulate(main)


def test_the_first_turn_is_unasked() -> None:
    """A VIRQ raised before it is bound is not replayed: a driver that starts looks into its rings first."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        sink = Collector()
        await driver.rings.bind(5, 1, 4096, sink)
        await driver.calls.sendv(Address(5, 1), 5, (b"early",), TYPE)
        await asyncio.sleep(0.01)
        await driver.start()
        await asyncio.sleep(0.01)
        assert sink.got == [b"early"]

    simulate(main)


def test_a_waiter_gets_room_when_the_reader_makes_it() -> None:
    """sendv answers -EAGAIN and arms the wake-up; the owner's notify fires it; the waiter's question is answered."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        assert await near.calls.sendv(to, 1, (bytes(16),), TYPE) == 16
        generation = near.wakeups.generation
        assert await near.calls.sendv(to, 1, (bytes(16),), TYPE) == -Errno.EAGAIN
        space = near.want_space(to, 16, generation)
        await asyncio.sleep(TICK / 2)
        assert not space.done()
        asked = rig.guests[1].counts["entries"]
        assert asked == 0  # nothing is asked before a VIRQ: the hypervisor remembers
        sink.limit = 9
        far.resume(ring)
        assert await space is Outcome.SUFFICIENT
        assert rig.guests[1].counts["entries"] == 1
        near.forget(space)

    simulate(main)


@pytest.mark.parametrize("how", ["unregistered", "killed"])
def test_a_waiter_for_a_ring_that_vanishes_is_told(how: str) -> None:
    """Nobody is signalled when a ring goes (Xen frees its waiters silently): the tick asks."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        ring = await far.rings.bind(5, 1, 48, Collector(limit=0))
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        space = near.want_space(to, 16)
        await asyncio.sleep(TICK * 3)
        assert not space.done()
        before = asyncio.get_running_loop().time()
        if how == "killed":
            rig.kill(2)
        else:
            await far.rings.unbind(ring)
        assert await space is Outcome.GONE
        assert asyncio.get_running_loop().time() - before <= TICK

    simulate(main)


def test_outcomes_too_big_and_busy() -> None:
    """A size that the ring never takes, and a full queue of waiters (32 others on a wildcard ring)."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        await far.rings.bind(5, DOMID_ANY, 48, Collector(limit=0))
        to = Address(5, 2)
        too_big = near.want_space(to, 17)
        assert await too_big is Outcome.TOO_BIG
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        for domid in range(100, 132):
            calls = rig.guest(domid, 2)
            assert await calls.sendv(to, 1, (b"x",), TYPE) == -Errno.EAGAIN
        assert await near.want_space(to, 16) is Outcome.BUSY
        assert await near.calls.sendv(to, 1, (b"x",), TYPE) == -Errno.EBUSY

    simulate(main)


def test_a_waiter_that_is_cancelled_lets_the_next_one_in() -> None:
    """Waiters of one ring are asked about one at a time; who gives up must not leave the others behind."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 4096, sink)
        to = Address(5, 2)
        while await near.calls.sendv(to, 1, (bytes(1000),), TYPE) > 0:
            pass
        first, second = near.want_space(to, 4000), near.want_space(to, 100)
        await asyncio.sleep(0.01)
        first.cancel()
        near.forget(first)
        sink.limit = 1  # room for 100 bytes, not for 4000
        far.resume(ring)
        assert await second is Outcome.SUFFICIENT
        assert len(near.wakeups) == 0

    simulate(main)


def test_a_question_does_not_lose_the_wake_up_of_a_send_that_is_not_yet_booked() -> None:
    """A send is refused, which arms the wake-up; before its task runs again, the answer to an older waiter's question
    disarms it.  Then no signal will come for the send: it must ask.
    """

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 512, sink)
        to = Address(5, 2)
        while await near.calls.sendv(to, 1, (bytes(100),), TYPE) > 0:
            pass
        generation = near.wakeups.generation
        assert await near.calls.sendv(to, 1, (bytes(300),), TYPE) == -Errno.EAGAIN  # refused, armed, not yet booked
        older = near.want_space(to, 10)
        await asyncio.sleep(0.01)
        rig.lose_virq = 1.0  # the signal that would announce the room is not what is tested here
        sink.limit = 1 << 30
        far.resume(ring)
        await asyncio.sleep(0.01)
        near.forget(older)
        await near.rings.bind(77, 2, 48, Collector())  # any turn of the pump asks for the older waiter, or disarms
        await asyncio.sleep(0.01)
        space = near.want_space(to, 300, generation)
        near._timer.cancel()  # type: ignore[union-attr]
        assert await asyncio.wait_for(space, TICK / 2) is Outcome.SUFFICIENT

    simulate(main)


def test_disarming_does_not_lose_the_wake_up_of_a_newer_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter gave up, so the driver disarms its ring by a question about 0 bytes; while that call is on its way, a
    send is refused and armed there.  It is asked about again, since nobody will signal it.
    """

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        calls = rig.guests[1]
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 512, sink)
        to = Address(5, 2)
        while await near.calls.sendv(to, 1, (bytes(100),), TYPE) > 0:
            pass
        gate, real = asyncio.Event(), calls.notify

        async def late(entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
            await gate.wait()
            return await real(entries)

        monkeypatch.setattr(calls, "notify", late)
        generation = near.wakeups.generation
        assert await near.calls.sendv(to, 1, (bytes(300),), TYPE) == -Errno.EAGAIN
        near.forget(near.want_space(to, 300, generation))
        await asyncio.sleep(0.01)  # the question about 0 bytes waits at the gate
        generation = near.wakeups.generation
        assert await near.calls.sendv(to, 1, (bytes(200),), TYPE) == -Errno.EAGAIN
        newer = near.want_space(to, 200, generation)
        near._timer.cancel()  # type: ignore[union-attr]
        gate.set()
        await asyncio.sleep(0.01)
        assert not newer.done()
        sink.limit = 1 << 30
        far.resume(ring)
        assert await asyncio.wait_for(newer, TICK / 2) is Outcome.SUFFICIENT

    simulate(main)


def test_the_next_in_line_is_asked_about_when_the_first_gives_up() -> None:
    """It may fit already: then no signal would ever come for it."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        await far.rings.bind(5, 1, 4096, Collector(limit=0))
        to = Address(5, 2)
        assert await near.calls.sendv(to, 1, (bytes(1000),), TYPE) == 1000
        first, second = near.want_space(to, 4000), near.want_space(to, 100)
        await asyncio.sleep(0.01)
        assert not second.done()  # one question a ring at a time, in order of arrival
        first.cancel()
        near.forget(first)
        near._timer.cancel()  # type: ignore[union-attr]
        assert await asyncio.wait_for(second, TICK / 2) is Outcome.SUFFICIENT

    simulate(main)


def test_a_pump_with_endless_work_lets_others_run() -> None:
    """Hypercalls that are answered at once never suspend: the pump yields between its turns all the same."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        calls = rig.guests[1]

        class Perpetual(Collector):
            def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
                self.got.append(b"")
                if len(self.got) < 5000:
                    calls._sendv(Outgoing(Address(5, 1), 5, (b"again",), TYPE))
                return True

        sink = Perpetual()
        await driver.rings.bind(5, 1, 4096, sink)
        await calls.sendv(Address(5, 1), 5, (b"begin",), TYPE)
        await driver.start()
        for _ in range(50):
            await asyncio.sleep(0)
        assert 10 < len(sink.got) < 1000
        await driver.close()

    simulate(main)


# -- ports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "port"),
    [
        (0, AUTO_PORT_BASE),
        (0x12345678, 0x92345678),
        (0xF0000000, 0xF0000000),
        (0xF0000001, 0xE0000001),
        (0xFFFFFFFF, 0xEFFFFFFF),
        (0x7FFFFFFF, 0xEFFFFFFF),
    ],
)
def test_automatic_ports(bits: int, port: int) -> None:
    """Random, bit 31 set, folded back when above 0xF0000000 (the Linux driver's rule)."""

    class Fixed:
        def getrandbits(self, k: int, /) -> int:
            assert k == 32
            return bits

    rings = Rings(RigCalls(Rig(), 1, 4 << 20), Fixed(), lambda: None)
    assert rings.auto_port() == port


def test_an_automatic_port_in_use_gives_the_one_after_the_highest() -> None:
    """max(used, 0x80000000) + 1; 0xFFFFFFFF is none."""

    class Fixed:
        def getrandbits(self, k: int, /) -> int:
            return 0x80000005

    async def main() -> None:
        rings = Rings(RigCalls(Rig(), 1, 4 << 20), Fixed(), lambda: None)
        await rings.bind(0x80000005, 1, 48, Collector())
        assert rings.auto_port() == 0x80000006
        await rings.bind(0xE0000000, 1, 48, Collector())
        assert rings.auto_port() == 0xE0000001
        await rings.bind(0xFFFFFFFE, 1, 48, Collector())
        with pytest.raises(OSError, match="ENOSPC"):
            rings.auto_port()

    simulate(main)


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_automatic_ports_stay_in_their_range(seed: int) -> None:
    """Every draw lands in [0x80000000, 0xF0000000]."""
    rings = Rings(RigCalls(Rig(), 1, 2 << 20), random.Random(seed), lambda: None)
    assert AUTO_PORT_BASE <= rings.auto_port() <= AUTO_PORT_TOP


# -- binding ---------------------------------------------------------------------------------------------------


def test_a_refused_ring_gives_its_pages_back() -> None:
    """Whatever the hypervisor answers, a failed bind leaves neither pages nor the port behind."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        calls = rig.guests[1]
        before = calls.pages.free_pages()
        for partner, ring_len, errno in ((99, 4096, Errno.ESRCH), (1, 40, Errno.EINVAL), (1, 1 << 30, Errno.ENOMEM)):
            with pytest.raises(OSError) as caught:
                await driver.rings.bind(5, partner, ring_len, Collector())
            assert caught.value.errno == errno
        assert calls.pages.free_pages() == before
        ring = await driver.rings.bind(5, 1, 4096, Collector())
        await driver.rings.unbind(ring)
        await driver.rings.unbind(ring)
        assert calls.pages.free_pages() == before
        assert calls.counts["unregister_ring"] == 1

    simulate(main)


def test_a_cancelled_bind_leaves_nothing() -> None:
    """The hypercall ends, and the ring that nobody wants any more is unregistered again."""

    async def main() -> None:
        rig = Rig(3)
        rig.suspend = 0.9
        driver = rig.driver(1)
        before = rig.guests[1].pages.free_pages()
        for delay in (0.0, 0.0001, 0.001):
            task = asyncio.create_task(driver.rings.bind(5, 1, 4096, Collector()))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        rig.suspend = 0.0
        assert list(driver.rings) == []
        assert rig.guests[1].pages.free_pages() == before
        argo = rig.guests[1].domain.argo
        assert argo is not None
        assert argo.rings == {}

    simulate(main)


def test_what_lies_in_a_ring_at_the_end_is_handed_over() -> None:
    """Unread messages remain readable after unregistering (Xen leaves guest memory alone): none is lost."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        sink = Collector()
        ring = await driver.rings.bind(5, 1, 4096, sink)
        for index in range(5):
            await driver.calls.sendv(Address(5, 1), 5, (bytes([index]),), TYPE)
        await driver.rings.unbind(ring)
        assert sink.got == [bytes([index]) for index in range(5)]

    simulate(main)


def test_a_ring_whose_partner_died_can_be_unbound() -> None:
    """Xen deletes a single-partner ring with its partner, so unregister answers -ENOENT: the pages come back anyway."""

    async def main() -> None:
        rig = Rig()
        near, _ = await two(rig)
        before = rig.guests[1].pages.free_pages()
        ring = await near.rings.bind(5, 2, 4096, Collector())
        rig.kill(2)
        await near.rings.unbind(ring)
        assert rig.guests[1].pages.free_pages() == before

    simulate(main)


# -- control frames --------------------------------------------------------------------------------------------


def test_control_frames_keep_their_order_and_have_a_limit() -> None:
    """Queued frames go out in order when room appears; equal ones once; answers beyond the limit are dropped."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        failures: list[tuple[int, bool]] = []

        def post(number: int, own: bool = False) -> None:
            frame = number.to_bytes(8, "little")
            near.controls.post(Outgoing(to, 9, (frame,), TYPE), (lambda e, w: failures.append((e, w))) if own else None)

        for number in range(CONTROL_LIMIT + 50):
            post(number)
            post(number)
        post(1000, own=True)
        assert len(near.controls) == CONTROL_LIMIT + 1
        assert near.controls.dropped == CONTROL_LIMIT + 100
        await asyncio.sleep(TICK / 2)
        sink.limit = 1 << 30
        far.resume(ring)
        pending = near.controls.pending(to)
        assert pending is not None
        await pending
        await asyncio.sleep(0.1)
        assert [int.from_bytes(data, "little") for data in sink.got[1:]] == [*range(CONTROL_LIMIT), 1000]
        assert near.controls.pending(to) is None
        assert failures == []

    simulate(main)


@pytest.mark.parametrize("waited", [False, True])
def test_who_queued_a_frame_learns_that_its_ring_is_gone(waited: bool) -> None:
    """At the first try, or after a wait for room; frames behind it share its fate."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        to = Address(5, 2)
        if waited:
            ring = await far.rings.bind(5, 1, 48, Collector(limit=0))
            await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        failures: list[tuple[int, bool]] = []
        for number in range(2):
            frame = bytes([number] * 8)
            near.controls.post(Outgoing(to, 9, (frame,), TYPE), lambda e, w: failures.append((e, w)))
        await asyncio.sleep(0.1)
        if waited:
            await far.rings.unbind(ring)
            await asyncio.sleep(2 * TICK)
        assert failures == [(Errno.ECONNREFUSED, waited)] * 2
        assert near.controls.pending(to) is None

    simulate(main)


def test_ebusy_is_polled() -> None:
    """-EBUSY from sendv means that no wake-up will come: the frame is tried again, at growing intervals."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        await far.rings.bind(5, 1, 4096, sink)
        tries: list[float] = []

        def busy(op: Op, detail: Any) -> int | None:
            if op is not Op.SENDV or len(tries) >= 10:
                return None
            tries.append(asyncio.get_running_loop().time())
            return -Errno.EBUSY

        rig.guests[1].refuse = busy
        near.controls.post(Outgoing(Address(5, 2), 9, (bytes(8),), TYPE))
        await asyncio.sleep(5)
        assert sink.got == [bytes(8)]
        gaps = [round((b - a) * 1000) for a, b in itertools.pairwise(tries)]
        assert gaps == [1, 2, 4, 8, 16, 32, 64, 100, 100]

    simulate(main)


def test_a_signal_during_a_refused_control_frame_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room may be signalled between the refusal of a frame and the booking of its wait: then it is asked about."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        calls = rig.guests[1]
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        real = calls.sendv_linked

        async def slow(messages: Sequence[Outgoing]) -> list[int]:
            results = await real(messages)
            if results[0] == -Errno.EAGAIN:
                sink.limit = 1 << 30
                far.resume(ring)
                await asyncio.sleep(0.01)  # the signal comes and goes, and the pump sleeps again
            return results

        monkeypatch.setattr(calls, "sendv_linked", slow)
        near.controls.post(Outgoing(to, 9, (b"RST_____",), TYPE))
        near._kicked = False  # the frame is flushed by its own task, not by the pump
        await near.controls.flush(to)
        await asyncio.sleep(TICK / 2)
        assert sink.got[1:] == [b"RST_____"]

    simulate(main)


def test_close_sends_what_is_queued_but_not_for_ever() -> None:
    """`close` waits for room for queued frames, at most `linger` seconds."""

    async def main(room: bool) -> float:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        await near.calls.sendv(Address(5, 2), 1, (bytes(16),), TYPE)
        near.controls.post(Outgoing(Address(5, 2), 9, (b"RST_____",), TYPE))
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        if room:
            sink.limit = 5
            loop.call_later(1, far.resume, ring)
        before = loop.time()
        await near.close(linger=3)
        took = loop.time() - before
        await asyncio.sleep(0.1)
        assert (b"RST_____" in sink.got) == room
        return took

    assert simulate(main, True) == pytest.approx(1.0, abs=0.1)
    assert simulate(main, False) == pytest.approx(3.0, abs=0.1)


# -- watching ----------------------------------------------------------------------------------------------------


def test_watching_does_not_disarm_those_who_wait() -> None:
    """Asking about 0 bytes cancels the wake-up that is armed on that ring: whoever waits there is asked about again."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        space = near.want_space(to, 16)
        gone: list[int] = []
        near.watch("me", to, lambda: gone.append(1))
        await asyncio.sleep(TICK * 4.5)
        answer = await near.probe(to)
        assert answer == SpaceAnswer(NotifyFlag.EXISTS | NotifyFlag.SUFFICIENT, 16)
        await asyncio.sleep(0.01)
        assert not space.done()
        sink.limit = 1
        far.resume(ring)
        await asyncio.sleep(TICK / 4)  # before the next tick: the wake-up itself must have come
        assert space.done()
        assert gone == []
        await far.rings.unbind(ring)
        await asyncio.sleep(TICK * 2)
        assert gone
        near.unwatch("me")

    simulate(main)


def test_nobody_waiting_means_no_ticking() -> None:
    """An idle driver costs nothing: no turns, no calls, no timers."""

    async def main() -> None:
        rig = Rig()
        near, _ = await two(rig)
        await near.rings.bind(5, 2, 4096, Collector())
        near.watch("me", Address(5, 2), lambda: None)
        await asyncio.sleep(10)
        near.unwatch("me")
        await asyncio.sleep(TICK * 2)
        turns, notifies = near.counters.turns, rig.guests[1].counts["notify"]
        await asyncio.sleep(1000)
        assert (near.counters.turns, rig.guests[1].counts["notify"]) == (turns, notifies)

    simulate(main)


def test_many_watched_addresses_are_asked_in_parts() -> None:
    """Xen answers more than 256 entries with -EACCES."""

    async def main() -> None:
        rig = Rig()
        near, _ = await two(rig)
        gone: set[int] = set()
        for port in range(600):
            near.watch(port, Address(port, 2), lambda port=port: gone.add(port))  # type: ignore[misc]
        await asyncio.sleep(TICK * 1.5)
        assert len(gone) == 600

    simulate(main)


# -- schedules ---------------------------------------------------------------------------------------------------


schedules = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "resume", "virq", "sleep", "cancel", "probe"]),
        st.integers(min_value=0, max_value=3),
        st.integers(min_value=0, max_value=200),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(schedule=schedules, seed=st.integers(min_value=0, max_value=2**16))
def test_no_wake_up_is_lost_in_any_schedule(schedule: list[tuple[str, int, int]], seed: int) -> None:
    """Senders that wait, are cancelled, and probe; a reader that stops and goes on; hypercalls that suspend and
    VIRQs that are late: once the reader reads on, every sender that still waits gets through, before the tick could
    have helped.
    """

    async def main() -> None:
        rig = Rig(seed)
        near, far = await two(rig)
        rig.suspend, rig.late_virq = 0.3, 0.3
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 512, sink)
        to = Address(5, 2)
        sockets = [await datagram(near, 100 + n, partner=2, ring_len=1024) for n in range(4)]
        tasks: list[asyncio.Task[int]] = []
        cancelled = 0
        for action, index, amount in schedule:
            if action == "send":
                tasks.append(asyncio.create_task(sockets[index].send_to(bytes([index] * (amount + 1)), to)))
            elif action == "resume":
                sink.limit = len(sink.got) + index
                far.resume(ring)
            elif action == "virq":
                rig.raise_virq(1 + index % 2)
            elif action == "cancel" and tasks:
                cancelled += tasks[amount % len(tasks)].cancel()
            elif action == "probe":
                await near.probe(to)
            await asyncio.sleep(amount / 100_000 if action == "sleep" else 0)
        sink.limit = 1 << 30
        far.resume(ring)
        if near._timer is not None:
            near._timer.cancel()  # no tick: a lost wake-up would show
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TICK * 0.9)
        await asyncio.sleep(0.05)
        sent = [task.result() for task in tasks if not task.cancelled()]
        # A cancelled send either went out whole or not at all.
        assert len(sent) <= len(sink.got) <= len(tasks)
        assert len(near.wakeups) == 0

    simulate(main, limit=1000)


def test_failing_notify_of_one_address_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry that the security module denies aborts the whole notify: the others are asked about singly."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        await far.rings.bind(5, 1, 4096, sink)
        calls = rig.guests[1]
        real = calls.notify

        async def denying(entries: Sequence[SpaceQuery]) -> tuple[int, list[SpaceAnswer]]:
            if any(query.address.port == 6 for query in entries):
                return -Errno.EPERM, [SpaceAnswer(0, 0)] * len(entries)
            return await real(entries)

        monkeypatch.setattr(calls, "notify", denying)
        denied, allowed = near.want_space(Address(6, 2), 10), near.want_space(Address(5, 2), 10)
        assert await allowed is Outcome.SUFFICIENT
        assert await denied is Outcome.GONE

    simulate(main)
