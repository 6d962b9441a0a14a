"""The fabric within one process, in virtual time: envelopes, impaired links, hosts, restarts; one seed, one history."""

from __future__ import annotations

import itertools
import random
from typing import Any

from broker.binding import Binding
from broker.envelope import Envelope, EnvelopeKind, result_of
from broker.fabric import FabricLink, MemoryFabric
from broker.frames import Lane
from broker.impair import Impairment
from tests.broker.support import MS, TOKEN, envelope_of

BINDING = Binding(
    hosts=(("hv0", "lab1"), ("hv1", "lab2")),
    hypervisors=(("hv0",), ("hv1",)),
    guests=((("hv0", "app"), ""), (("hv1", "store"), "")),
)


def fabric(seed: int = 1, **changes: Any) -> MemoryFabric:
    minted = itertools.count(1)
    options: dict[str, Any] = {"chance": random.Random(seed), "silence": False, "binding": BINDING, **changes}
    return MemoryFabric(token=TOKEN, mint=lambda: next(minted).to_bytes(16, "big"), **options)


class End:
    """A hypervisor that answers every request with its seq and keeps what it hears."""

    def __init__(self, lab: MemoryFabric, name: str, host: str) -> None:
        self.link: FabricLink = lab.connect("hypervisor", name, host=host)
        self.link.on_record = self.on_record
        self.lab = lab
        self.heard: list[tuple[int, Any]] = []
        self.pending: dict[int, Envelope] = {}

    def ask(self, request: Envelope) -> None:
        self.pending[request.origin_seq] = request
        self.link.send(Lane.REQUEST, request)

    def on_record(self, lane: Lane, record: Any, _payload: object) -> None:
        if lane is not Lane.REQUEST:
            self.heard.append((self.lab.now_ns, list(record)))
            if record[0] == "peer" and record[2] == "up":
                for request in self.pending.values():
                    self.link.send(Lane.REQUEST, request)
        elif record.kind == EnvelopeKind.RESULT:
            if self.pending.pop(record.origin_seq, None) is not None:
                self.heard.append((self.lab.now_ns, record.ret))
        else:
            self.link.send(Lane.REQUEST, result_of(record, record.origin_seq))


def run(lab: MemoryFabric, until_ns: int) -> None:
    """Virtual time: from one deadline to the next."""
    lab.settle(lab.now_ns)
    while (deadline := lab.next_deadline()) is not None and deadline <= until_ns:
        lab.settle(deadline)
    lab.settle(until_ns)


def pair(lab: MemoryFabric) -> tuple[End, End]:
    ends = End(lab, "hv0", "lab1"), End(lab, "hv1", "lab2")
    run(lab, 0)
    return ends


def results(end: End) -> list[tuple[int, int]]:
    return [(at, what) for at, what in end.heard if isinstance(what, int)]


def test_delay_in_virtual_time() -> None:
    """There and back at the deadline, to the nanosecond; nobody is called silent."""
    lab = fabric()
    a, _ = pair(lab)
    lab.impair("lab1", "lab2", Impairment(delay_ns=20 * MS))
    a.ask(envelope_of(seq=3))
    run(lab, 10_000 * MS)
    assert results(a) == [(40 * MS, 3)]
    assert lab.core.nodes["hv1"].record[3] == "joined"


def test_a_partition_that_heals() -> None:
    """The operation is said again when the link is up, and answered once."""
    lab = fabric()
    a, _ = pair(lab)
    lab.impair("hv0", "hv1", Impairment(partition=True))
    a.ask(envelope_of(seq=3))
    run(lab, 1000 * MS)
    assert results(a) == []
    lab.impair("hv0", "hv1", Impairment())
    run(lab, 2000 * MS)
    assert [ret for _, ret in results(a)] == [3]
    news = [record[2] for _, record in a.heard if isinstance(record, list) and record[0] == "peer"]
    assert news[-2:] == ["down", "up"]


def test_a_restart_keeps_impairments_and_the_operation() -> None:
    """A new broker, a new epoch: nodes join again, hear of each other, and the operation ends with the true result."""
    lab = fabric()
    a, b = pair(lab)
    lab.impair("hv0", "hv1", Impairment(delay_ns=MS))
    a.ask(envelope_of(seq=3))
    lab.settle(0)
    lab.restart(epoch=2)
    for at in range(0, 3000, 100):
        for end in (a, b):
            end.link.send(Lane.CONTROL, ["heartbeat", at])
        run(lab, at * MS)
    assert [ret for _, ret in results(a)] == [3]
    assert ["peer", "hv1", "up", 2, 0] in [record for _, record in a.heard]


def test_one_seed_one_history() -> None:
    """Everything that chance decides comes from the generator that was given."""

    def history(seed: int) -> list[Any]:
        lab = fabric(seed)
        a, b = pair(lab)
        lab.impair("hv0", "hv1", Impairment(5 * MS, 4 * MS, 0.2, 10**6, 0.3, 0.3))
        for seq in range(1, 40):
            a.ask(envelope_of(seq=seq))
            run(lab, lab.now_ns + MS)
        run(lab, 60_000 * MS)
        assert sorted(ret for _, ret in results(a)) == list(range(1, 40))
        return [a.heard, b.heard, lab.log, dict(lab.core.counters)]

    assert history(7) == history(7)
    assert history(7) != history(8)


def test_hosts_are_judged() -> None:
    """A link says from which host it is, as ZAP would."""
    lab = fabric()
    liar = lab.connect("hypervisor", "hv0", host="lab2")
    lab.settle(0)
    assert liar.member.refusal is not None
    assert liar.member.refusal[0] == "WRONG_HOST"


def test_without_silence_nobody_is_unresponsive() -> None:
    """And with it a member that says nothing is, as before."""
    for silence, shown in ((False, "joined"), (True, "unresponsive")):
        lab = fabric(silence=silence)
        pair(lab)
        for at in range(0, 5000, 100):
            lab.settle(at * MS)
        assert lab.core.nodes["hv1"].record[3] == shown
