"""The lane of guests on other hosts over an impaired link: in order, late, doubled or lost, and bounded.

Rules: issue "levels and hosts", 4: impairments for any link; docs/remote-guests.md: both ends repeat what got lost.
"""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import Any

import pytest

from broker import mirrored
from broker.binding import Binding
from broker.fabric import FabricLink, MemoryFabric
from broker.frames import Lane
from broker.impair import Impairment
from tests.broker.support import MS, TOKEN
from tests.broker.test_fabric import run

BINDING = Binding(
    hosts=(("hv0", "lab1"), ("away", "lab2"), ("here", "lab1")),
    hypervisors=(("hv0",),),
    guests=((("hv0", "away"), ""), (("hv0", "here"), "")),
)


class Lab:
    """A hypervisor on lab1 with a guest on lab2, and one beside it; what each was told, and when."""

    def __init__(self) -> None:
        minted = itertools.count(1)
        self.fabric = MemoryFabric(
            token=TOKEN, mint=lambda: next(minted).to_bytes(16, "big"), binding=BINDING, chance=random.Random(7),
            silence=False,
        )  # fmt: skip
        self.heard: dict[str, list[tuple[int, bytes]]] = {}
        self.links: dict[str, FabricLink] = {}
        for kind, name, host in (("hypervisor", "hv0", "lab1"), ("guest", "away", "lab2"), ("guest", "here", "lab1")):
            self.heard[name] = []
            self.join(kind, name, host)
        run(self.fabric, 0)

    def join(self, kind: str, name: str, host: str) -> None:
        self.links[name] = self.fabric.connect(kind, name, host=host)
        self.links[name].on_record = partial(self._on, name)

    def _on(self, name: str, _lane: Lane, record: Any, payload: Any) -> None:
        if record[0] == "told":
            self.heard[name].append((self.fabric.now_ns, bytes(payload) or record[2][0].encode()))

    def say(self, sender: str, target: str, payload: bytes, words: str = "mirror") -> None:
        assert self.links[sender].send(Lane.CONTROL, ["tell", target, [words]], payload)

    def impair(self, **faults: Any) -> None:
        self.fabric.impair("lab1", "lab2", Impairment(**faults))

    def run(self, until_ms: int) -> None:
        run(self.fabric, until_ms * MS)

    @property
    def lost(self) -> int:
        return self.fabric.core.counters["mirrored_lost"]


def test_a_sound_link_delays_nothing() -> None:
    """Nor does the fault of a link elsewhere."""
    lab = Lab()
    lab.fabric.impair("lab1", "lab9", Impairment(delay_ns=MS))
    lab.say("away", "hv0", b"x")
    lab.run(1)
    assert lab.heard["hv0"] == [(0, b"x")]


def test_delay_in_both_directions_and_nowhere_else() -> None:
    """A guest beside its hypervisor, and other words of the one away, are not concerned."""
    lab = Lab()
    lab.impair(delay_ns=20 * MS)
    lab.say("away", "hv0", b"up")
    lab.say("hv0", "away", b"down")
    lab.say("here", "hv0", b"beside")
    lab.say("away", "hv0", b"", "counters")
    lab.run(100)
    assert sorted(lab.heard["hv0"]) == [(0, b"beside"), (0, b"counters"), (20 * MS, b"up")]
    assert lab.heard["away"] == [(20 * MS, b"down")]


def test_a_link_by_the_names_of_its_ends() -> None:
    """As where all hosts are one machine in truth; it goes before what is said of the hosts."""
    lab = Lab()
    lab.impair(delay_ns=20 * MS)
    lab.fabric.impair("hv0", "away", Impairment(delay_ns=30 * MS))
    lab.say("away", "hv0", b"up")
    lab.run(100)
    assert lab.heard["hv0"] == [(30 * MS, b"up")]
    assert lab.fabric.core.switch.linkable("away") and not lab.fabric.core.switch.linkable("nobody")


@pytest.mark.parametrize("faults", [
    {"jitter_ns": 30 * MS, "delay_ns": 30 * MS}, {"loss": 0.3}, {"reorder": 0.5}, {"rate": 100_000},
], ids=str)  # fmt: skip
def test_order_is_kept(faults: dict[str, Any]) -> None:
    """Whatever is wrong: one ordered lane (contracts 3), also when the link is mended while something is under way."""
    lab = Lab()
    lab.impair(**faults)
    for number in range(20):
        lab.say("hv0", "away", bytes([number]) * 100)
    lab.run(0)
    lab.impair()
    for number in range(20, 30):
        lab.say("hv0", "away", bytes([number]) * 100)
    lab.run(60_000)
    assert [payload[0] for _, payload in lab.heard["away"]] == list(range(30))
    assert lab.heard["away"][-1][0] > 0 and lab.lost == 0


def test_a_doubled_one_comes_twice() -> None:
    """Its receiver knows it by its number."""
    lab = Lab()
    lab.impair(duplicate=1.0)
    lab.say("hv0", "away", b"x")
    lab.run(1000)
    assert [payload for _, payload in lab.heard["away"]] == [b"x", b"x"]


def test_a_partition_loses_what_is_under_way() -> None:
    """Without a word, for it is repeated; what is said after it arrives."""
    lab = Lab()
    lab.impair(delay_ns=20 * MS)
    lab.say("away", "hv0", b"before")
    lab.run(1)
    lab.impair(partition=True)
    lab.say("away", "hv0", b"in it")
    lab.run(100)
    assert (lab.heard["hv0"], lab.lost) == ([], 2)
    lab.impair()
    lab.say("away", "hv0", b"after")
    lab.run(200)
    assert [payload for _, payload in lab.heard["hv0"]] == [b"after"]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end repeats what is slow; beyond the bound it is lost, and there is room again when some has arrived."""
    monkeypatch.setattr(mirrored, "MAX_WAITING", 250)
    lab = Lab()
    lab.impair(delay_ns=20 * MS)
    for _ in range(4):
        lab.say("away", "hv0", bytes(100))
    lab.say("hv0", "away", bytes(100))
    lab.run(100)
    assert (len(lab.heard["hv0"]), len(lab.heard["away"]), lab.lost) == (2, 1, 2)
    lab.say("away", "hv0", bytes(100))
    lab.run(200)
    assert len(lab.heard["hv0"]) == 3


def test_whoever_left_is_not_told_of_his_former_life() -> None:
    """What was under way to a node that is gone goes with it."""
    lab = Lab()
    lab.impair(delay_ns=20 * MS)
    lab.say("hv0", "away", b"x")
    lab.run(1)
    lab.links["away"].send(Lane.CONTROL, ["exit", 0, ""])
    lab.run(2)
    lab.join("guest", "away", "lab2")
    lab.run(100)
    assert (lab.heard["away"], lab.fabric.next_deadline()) == ([], None)
