"""What Argo promises between domains that behave: order, integrity, and wake-ups that are not lost."""

from __future__ import annotations

import random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import SpaceAnswer
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.argo.wakeups import Outcome, Wakeups
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, Window
from hv_node.argo.model import Ring
from tests.hv_node.argo.world import World

NPAGES: Final = 30
PORT: Final = 7


@settings(max_examples=500)
@given(
    st.sampled_from((48, 80, 112, 240, 4032, 8128)),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from((0, 1, 2)), st.binary(max_size=120), st.integers(0, 3)), max_size=60),
)
def test_fifo_per_ring(ring_len: int, wildcard: bool, script: list[tuple[int, bytes, int]]) -> None:
    """Messages of all senders to one ring come out in the order in which their sends succeeded, whole."""
    world = World((0, 1, 2, 3), npages=NPAGES)
    partner = DOMID_ANY if wildcard else 1
    npages = npages_for(ring_len)
    assert world.register(3, PORT, partner, ring_len, gfns=range(24, 24 + npages)) == 0
    consumer = world.consumer(3, ring_len)
    sent: list[tuple[int, int, int, bytes]] = []
    got: list[tuple[object, ...]] = []
    for domid, payload, take in script:
        ret = world.send(domid, (PORT, 3), payload, src_port=len(sent), message_type=len(payload))
        if ret >= 0:
            assert ret == len(payload)
            sent.append((len(sent), domid, len(payload), payload))
        else:
            assert ret in (
                (-Errno.EAGAIN, -Errno.EMSGSIZE) if wildcard or domid == 1 else (-Errno.ECONNREFUSED,)
            )
        if take:
            got += [tuple(message) for message in consumer.drain(take)]
    got += [tuple(message) for message in consumer.drain()]
    assert got == sent


class Traffic:
    """Senders with messages to deliver, one receiver, and a schedule in which anybody may go next.

    A sender that is told -EAGAIN sleeps until its VIRQ.  The receiver advances rx and owes a notify for it, which
    comes at some later step of its own: the pointer first, then the call, as drivers do.
    """

    def __init__(self, rng: random.Random, senders: int, wildcard: bool, in_windows: bool) -> None:
        self.rng = rng
        self.world = World(range(senders + 1), npages=NPAGES)
        self.lens: dict[int, int] = {}
        self.consumers: dict[int, Consumer] = {}
        self.owed = False
        self.in_call = False
        self.blocked: set[int] = set()
        self.queues: dict[int, list[bytes]] = {}
        self.delivered: dict[int, list[bytes]] = {}
        for domid in range(1, senders + 1):
            gfn = 24 if wildcard else 24 + domid
            if gfn not in self.consumers:
                ring_len = rng.choice((48, 64, 112, 176))
                partner = DOMID_ANY if wildcard else domid
                assert self.world.register(0, PORT, partner, ring_len, gfns=[gfn]) == 0
                self.consumers[gfn] = self.world.consumer(0, ring_len, gfn)
                self.lens[gfn] = ring_len
            biggest = self.lens[gfn] - 32
            self.queues[domid] = [rng.randbytes(rng.randint(0, biggest)) for _ in range(rng.randint(1, 12))]
            self.delivered[domid] = []
        if in_windows:
            self.world.argo.on_payload_written = self.take_in_window
            self.world.argo.on_notify_window = self.take_in_window

    def take_in_window(self, _: Ring) -> None:
        """The receiver's other vCPU reads in the middle of somebody's call."""
        if self.rng.random() < 0.5:
            self.take()

    def take(self) -> None:
        """Take some messages of some ring and publish rx; a notify is owed."""
        consumer = self.rng.choice(list(self.consumers.values()))
        for message in consumer.drain(self.rng.randint(1, 3)):
            self.delivered[message.source_domid].append(message.payload)
            self.owed = True

    def notify(self) -> None:
        """Pay what is owed; reading that happens during the call owes another."""
        self.owed = False
        assert self.world.notify(0)[0] == 0
        self.deliver_virqs()

    def send(self, domid: int) -> None:
        """Try the next message."""
        ret = self.world.send(domid, (PORT, 0), self.queues[domid][0])
        self.deliver_virqs()
        if ret >= 0:
            self.queues[domid].pop(0)
        else:
            assert ret == -Errno.EAGAIN
            self.blocked.add(domid)

    def deliver_virqs(self) -> None:
        """VIRQs reach the senders that sleep."""
        self.blocked -= set(self.world.woken())

    def runnable(self) -> list[str | int]:
        """Whoever can do something now."""
        actors: list[str | int] = [d for d, queue in self.queues.items() if queue and d not in self.blocked]
        if any(consumer.available() for consumer in self.consumers.values()):
            actors.append("take")
        if self.owed:
            actors.append("notify")
        return actors

    def run(self) -> None:
        """Until nobody can do anything any more."""
        for _ in range(5000):
            actors = self.runnable()
            if not actors:
                return
            actor = self.rng.choice(actors)
            if actor == "take":
                self.take()
            elif actor == "notify":
                self.notify()
            else:
                assert isinstance(actor, int)
                self.send(actor)
        pytest.fail("no progress")


@settings(max_examples=500)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.booleans(), st.booleans())
def test_no_wake_up_is_lost(seed: int, senders: int, wildcard: bool, in_windows: bool) -> None:
    """While the receiver notifies after reading, nobody sleeps for ever, and every message arrives in order.

    With `in_windows` the receiver also reads while a message lies unpublished, and between the measuring of room
    and the waking of those who wait.
    """
    traffic = Traffic(random.Random(seed), senders, wildcard, in_windows)
    sent = {domid: list(queue) for domid, queue in traffic.queues.items()}
    traffic.run()
    assert traffic.queues == {domid: [] for domid in sent}, f"asleep: {traffic.blocked}"
    assert traffic.delivered == sent


def test_a_receiver_that_never_notifies_blocks_its_senders() -> None:
    """The test above can fail: without the notify the sleeper is not woken by reading alone."""
    traffic = Traffic(random.Random(1), 1, wildcard=True, in_windows=False)
    traffic.queues[1] = [b"x" * (traffic.lens[24] - 32)] * 3
    traffic.send(1)
    traffic.send(1)
    traffic.take()
    traffic.owed = False
    assert traffic.runnable() == []
    assert traffic.queues[1]


@settings(max_examples=500)
@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(1, 6))
def test_wakeups_and_notify_agree(seed: int, places: int, waiters: int) -> None:
    """The sender's own list of waiters, driven by VIRQs and notify answers, loses nobody either.

    Several waiters of one domain share rings; each sends once when told that there is room, and waits again if
    there is none after all.  The VIRQ may come before the sender has begun to wait.
    """
    rng = random.Random(seed)
    world = World((0, 1), npages=NPAGES)
    lens = [rng.choice((48, 112, 240)) for _ in range(places)]
    consumers = []
    for index, ring_len in enumerate(lens):
        assert world.register(0, index, 1, ring_len, gfns=[24 + index]) == 0
        consumers.append(Consumer(Window(world.ram[0], (24 + index) * PAGE_SIZE, PAGE_SIZE), ring_len))
    wakeups = Wakeups()
    todo: dict[int, list[tuple[int, int]]] = {}
    for waiter in range(waiters):
        ports = [rng.randrange(places) for _ in range(rng.randint(1, 5))]
        todo[waiter] = [(port, rng.randint(0, lens[port] - 32)) for port in ports]
    total = sum(map(len, todo.values()))
    ready = set(todo)
    received, owed = 0, False

    def send(waiter: int) -> None:
        ready.discard(waiter)
        port, size = todo[waiter][0]
        before = wakeups.generation
        ret = world.send(1, (port, 0), bytes(size))
        if 1 in world.woken():
            wakeups.woken()
        if ret >= 0:
            todo[waiter].pop(0)
            if todo[waiter]:
                ready.add(waiter)
        else:
            assert ret == -Errno.EAGAIN
            if rng.random() < 0.3:
                interrupt(port)
            armed = before if rng.random() < 0.5 else None
            wakeups.want(Address(port, 0), size, waiter, armed_since=armed)

    def interrupt(port: int) -> None:
        """Between the answer of sendv and the wait: the receiver reads, notifies, and the VIRQ handler runs."""
        nonlocal received
        received += len(consumers[port].drain())
        assert world.notify(0)[0] == 0
        if 1 in world.woken():
            wakeups.woken()

    def ask() -> None:
        batch = wakeups.batch()
        entries = [(query.address.port, query.address.domid, query.space_required) for query in batch]
        ret, answers = world.notify(1, *entries)
        for waiter, outcome in wakeups.absorb(ret, [SpaceAnswer(*answer) for answer in answers]):
            assert outcome is Outcome.SUFFICIENT
            assert isinstance(waiter, int)
            ready.add(waiter)

    for _ in range(3000):
        readable = [consumer for consumer in consumers if consumer.available()]
        choices = [*(["send"] if ready else []), *(["ask"] if wakeups.pending() else [])]
        choices += [*(["take"] if readable else []), *(["notify"] if owed else [])]
        if not choices:
            break
        match rng.choice(choices):
            case "send":
                send(rng.choice(sorted(ready)))
            case "ask":
                ask()
            case "take":
                received += len(rng.choice(readable).drain(rng.randint(1, 3)))
                owed = True
            case "notify":
                owed = False
                assert world.notify(0)[0] == 0
                if 1 in world.woken():
                    wakeups.woken()
    assert received == total, f"{len(wakeups)} sleep for ever"
    assert len(wakeups) == 0
