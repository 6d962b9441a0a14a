"""The driver core: no wake-up lost, no spinning, no waiter forgotten.

Source: the interrupt and notify passes of OpenXT's Linux Argo driver, over Xen common/argo.c (notify, pending queue).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.drivers.core import TICK
from guest_node.drivers.dgram import datagram
from hmx.argo.abi import DOMID_ANY, Address, NotifyFlag, Op
from hmx.argo.calls import Outgoing, SpaceAnswer, SpaceQuery
from hmx.argo.wakeups import Outcome
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, simulate
from tests.doubles.drivers import TYPE, Collector, two


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
