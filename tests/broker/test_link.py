"""Links in memory: the bare pair, and the fabric that the inline runtime uses."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.fabric import MemoryFabric
from broker.frames import Lane
from broker.link import Link, MemoryLink
from tests.broker.support import TOKEN
from tests.broker.test_envelope import values

CONTROL, REQUEST, EVENT = Lane


def test_nothing_moves_before_flush_and_nothing_arrives_before_pump() -> None:
    """So an owner decides the order of everything."""
    node, broker = MemoryLink.pair()
    got: list[Any] = []
    bells: list[str] = []
    broker.on_record = lambda lane, record, payload: got.append((lane, record, bytes(payload)))
    broker.on_readable = lambda: bells.append("broker")
    node.send(CONTROL, ["tell", "b", ["x"]], b"bulk")
    assert not bells
    node.flush()
    assert (bells, got) == (["broker"], [])
    broker.pump()
    assert got == [(CONTROL, ["tell", "b", ["x"]], b"bulk")]


def test_a_callback_may_answer() -> None:
    """What a callback sends leaves with the same pump."""
    node, broker = MemoryLink.pair()
    got: list[Any] = []
    node.on_record = lambda _lane, record, _payload: got.append(record)
    broker.on_record = lambda _lane, _record, _payload: assert_true(broker.send(CONTROL, ["told", "b", ["y"]]))
    node.send(CONTROL, ["tell", "b", ["x"]])
    node.flush()
    broker.pump()
    assert not node.pump(), "nothing more is waiting"
    assert got == [["told", "b", ["y"]]]


def assert_true(value: bool) -> None:
    assert value


def test_requests_and_results_use_their_credit() -> None:
    """256 requests under way at most; every result returns one reservation."""
    node, broker = MemoryLink.pair()
    requests: list[Any] = []
    broker.on_record = lambda _lane, record, _payload: requests.append(record)
    sent = sum(node.send(REQUEST, values(cookie=n)) for n in range(300))
    assert (sent, node.credit(REQUEST)) == (256, 0)
    node.flush()
    broker.pump()
    assert len(requests) == 256
    node.pump()
    assert node.credit(REQUEST) == 0, "acknowledged, but nothing answered"
    for request in requests[:10]:
        assert broker.send(REQUEST, values(kind=2, cookie=request.cookie))
    broker.flush()
    node.pump()
    assert node.credit(REQUEST) == 10


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([CONTROL, EVENT]), st.integers(1, 90), st.binary(max_size=9))))
def test_order_is_kept_per_lane(actions: list[tuple[bool, Lane, int, bytes]]) -> None:
    """Whatever mix of sends, flushes and pumps: each lane delivers all of its records in order, exactly once."""
    node, broker = MemoryLink.pair()
    sent: dict[Lane, list[Any]] = {CONTROL: [], EVENT: []}
    got: dict[Lane, list[Any]] = {CONTROL: [], EVENT: []}
    broker.on_record = lambda lane, record, _payload: got[lane].append(record)
    for pump, lane, count, data in actions:
        for _ in range(count):
            record = ["event", "x", len(sent[lane]), data]
            if node.send(lane, record):
                sent[lane].append(record)
        node.flush()
        if pump:
            broker.pump()
            node.pump()
    for _ in range(30):
        broker.pump()
        node.pump()
    assert got == sent


def test_closing_parts_the_ends() -> None:
    """What is sent afterwards waits."""
    node, broker = MemoryLink.pair()
    node.close()
    node.send(CONTROL, ["ready"])
    assert not node.flush()
    assert not broker.pump()


def test_all_links_have_one_shape() -> None:
    """What nodes see is the Link protocol, whatever carries it (checked by the type checker)."""
    fabric = MemoryFabric(token=TOKEN, mint=lambda: bytes(16))
    links: list[Link] = [MemoryLink.pair()[0], fabric.connect("guest", "app")]
    for link in links:
        assert link.send(CONTROL, ["ready"])


def run_once() -> tuple[list[Any], list[tuple[object, ...]]]:
    minted = iter(range(100))
    fabric = MemoryFabric(token=TOKEN, mint=lambda: next(minted).to_bytes(16, "big"))
    got: list[Any] = []
    hv = fabric.connect("hypervisor", "hv0")
    guests = [fabric.connect("guest", f"g{n}") for n in range(3)]

    def serve(_lane: Lane, record: Any, _payload: Any) -> None:
        _, _, (_, guest, token) = record
        hv.send(CONTROL, ["tell", guest, ["granted", "/a", token]])

    hv.on_record = serve
    for guest in guests:
        name = guest.member.identity.name
        guest.on_record = partial(lambda name, _lane, record, _payload: got.append((name, record)), name)
        guest.send(CONTROL, ["attach", "hv0"])
    fabric.settle(0)
    for guest in reversed(guests):
        guest.send(CONTROL, ["attach", "hv0"])
    fabric.settle(1)
    guests[0].close()
    guests[1].send(CONTROL, ["tell", "g0", ["x"]])
    fabric.settle(2)
    return got, fabric.log


def test_the_fabric_runs_the_same_twice() -> None:
    """No clock, no thread, no hash order: one input, one history; a link that closes vanishes like a killed
    process.
    """
    first, second = run_once(), run_once()
    assert first == second
    got, log = first
    granted = [(name, record[2][2][-1]) for name, record in got if record[0] == "told"]
    # The hypervisor joins and the guests say attach in one settling: none is turned away, for links run in order.
    assert granted == [("g0", 0), ("g1", 1), ("g2", 2), ("g0", 3), ("g1", 4), ("g2", 5)]
    assert ("node", "g0", "guest", "lost", "its connection is gone") in log
