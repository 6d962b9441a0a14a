"""Who may say what: the judge by itself, and forged records through the router."""

from __future__ import annotations

from typing import Any

import pytest

from broker.binding import MAX_EPOCHS, Binding, Judge
from broker.envelope import EnvelopeKind
from broker.frames import Lane
from broker.refusals import Refusal
from tests.broker.support import CoreLab, envelope_of, handshake, hello_record

BINDING = Binding(
    hosts=(("hv0", "lab1"), ("hv1", "lab2"), ("agent", "lab1"), ("app", "lab1")),
    hypervisors=(("hv0",), ("hv0", "l1"), ("hv0", "l1", "l2"), ("hv1",)),
    guests=(
        (("hv0", "app"), "client_t"),
        (("hv0", "l1", "deep"), "deep_t"),
        (("hv0", "plain"), ""),
        (("hv1", "store"), "server_t"),
    ),
)
SEND, RESULT, WAKE = EnvelopeKind.SEND, EnvelopeKind.RESULT, EnvelopeKind.WAKE
DIED, CANCEL = EnvelopeKind.ENDPOINT_DIED, EnvelopeKind.CANCEL

# who sends, kind, the claimed source's absolute path, its label, verdict with a binding, verdict without
CLAIMS: list[tuple[str, EnvelopeKind, str, str, Refusal | None, Refusal | None]] = [
    ("hv0", SEND, "hv0/app", "client_t", None, None),
    ("hv0", SEND, "hv0/app#2", "client_t", None, None),
    ("hv0", SEND, "hv0/l1/deep", "deep_t", None, None),
    ("hv0", SEND, "hv0/plain", "", None, None),
    ("hv0", WAKE, "hv0/", "", None, None),
    ("hv0", SEND, "hv0/l1/l2/", "", None, None),
    ("hv0", SEND, "hv0/l1", "", None, None),
    ("hv0", SEND, "hv1/store", "server_t", Refusal.FORGED_SOURCE, Refusal.FORGED_SOURCE),
    ("hv0", RESULT, "hv1/store", "", Refusal.FORGED_SOURCE, Refusal.FORGED_SOURCE),
    ("hv0", RESULT, "hv0/never", "whatever", None, None),
    ("hv0", SEND, "hv0", "", Refusal.FORGED_SOURCE, Refusal.FORGED_SOURCE),
    ("hv0", SEND, "hv0/hv1/store", "server_t", Refusal.FORGED_SOURCE, None),
    ("hv0", SEND, "hv0/l1/app", "client_t", Refusal.FORGED_SOURCE, None),
    ("hv0", SEND, "hv0/stranger", "", Refusal.FORGED_SOURCE, None),
    ("hv0", WAKE, "hv0/l9/", "", Refusal.FORGED_SOURCE, None),
    ("hv0", SEND, "hv0/app", "server_t", Refusal.FORGED_LABEL, None),
    ("hv0", SEND, "hv0/app", "", Refusal.FORGED_LABEL, None),
    ("hv0", SEND, "hv0/plain", "client_t", Refusal.FORGED_LABEL, None),
    ("hv0", WAKE, "hv0/", "client_t", Refusal.FORGED_LABEL, None),
    ("hv0", DIED, "hv0/app", "client_t", None, None),
    ("hv0", DIED, "hv0/l1", "", None, None),
    ("hv0", DIED, "hv1/store", "server_t", Refusal.FORGED_DEATH, Refusal.FORGED_DEATH),
    ("hv0", DIED, "hv1", "", Refusal.FORGED_DEATH, Refusal.FORGED_DEATH),
    ("hv0", DIED, "hv0", "", Refusal.FORGED_DEATH, Refusal.FORGED_DEATH),
    ("hv0", DIED, "hv0/", "", None, None),  # it says that a hypervisor on it died
    ("hv0", DIED, "hv1/", "", Refusal.FORGED_DEATH, Refusal.FORGED_DEATH),
    ("hv0", CANCEL, "hv0/", "", None, None),
    ("hv0", CANCEL, "hv1/", "", Refusal.FORGED_SOURCE, Refusal.FORGED_SOURCE),
    ("hv0", DIED, "hv0/nobody", "", Refusal.FORGED_DEATH, None),
    ("hv0", DIED, "hv0/app", "server_t", Refusal.FORGED_LABEL, None),
]


@pytest.mark.parametrize(("sender", "kind", "path", "label", "bound", "free"), CLAIMS)
def test_claims(
    sender: str, kind: EnvelopeKind, path: str, label: str, bound: Refusal | None, free: Refusal | None
) -> None:
    """What a hypervisor may say of itself and of what is below it; every verdict says why."""
    claim = envelope_of(path, "hv1/store", kind=kind, label=label)
    for binding, expected in ((BINDING, bound), (None, free)):
        verdict = Judge(binding).envelope(sender, claim)
        assert (None if verdict is None else verdict[0]) == expected
        assert verdict is None or verdict[1]


@pytest.mark.parametrize("binding", [BINDING, None])
def test_epochs_do_not_go_back(binding: Binding | None) -> None:
    """Per origin hypervisor; results are named by the asker's epoch and are not judged by it."""
    judge = Judge(binding)

    def verdict(path: str, epoch: int, label: str = "client_t", **changes: Any) -> Refusal | None:
        found = judge.envelope("hv0", envelope_of(path, label=label, origin_epoch=epoch, **changes))
        return None if found is None else found[0]

    assert [verdict("hv0/app", epoch) for epoch in (3, 3, 2, 5, 3, 5)] == [
        None, None, Refusal.FORGED_EPOCH, None, Refusal.FORGED_EPOCH, None,
    ]  # fmt: skip
    assert verdict("hv0/plain", 4, "") == Refusal.FORGED_EPOCH, "the same hypervisor"
    assert verdict("hv0/l1/deep", 1, "deep_t") is None, "another hypervisor"
    for answer in (RESULT, CANCEL):
        assert verdict("hv0/app", 1, kind=answer) is None
        assert verdict("hv0/app", 77, kind=answer) is None
    assert verdict("hv0/app", 5) is None, "answers set no epoch"
    if binding is not None:
        assert verdict("hv0/app", 99, "wrong") == Refusal.FORGED_LABEL
        assert verdict("hv0/app", 5) is None, "what was not believed sets no epoch"


def test_epochs_remembered_are_bounded() -> None:
    """Without a binding a sender invents hypervisors; that costs bounded memory."""
    judge = Judge(None)
    for n in range(2 * MAX_EPOCHS + 10):
        assert judge.envelope("hv0", envelope_of(f"hv0/l{n}/x")) is None
    assert len(judge._epochs) <= MAX_EPOCHS


def test_hosts() -> None:
    """A name is joined from its host; an unknown host, or no binding, is not judged."""
    judge = Judge(BINDING)
    assert judge.hello("hv0", "lab1") is None
    assert judge.hello("hv0", "") is None
    assert judge.hello("hv0", "lab2") == (Refusal.WRONG_HOST, "'hv0' runs on lab1; this connection is from lab2")
    assert judge.hello("x", "lab2") == (Refusal.WRONG_HOST, "'x' is not in the plan; this connection is from lab2")
    assert Judge(None).hello("x", "lab2") is None
    assert [judge.planned(name) for name in ("hv0", "hv1", "lab1", "app", "l1", "x")] == [True] * 4 + [False] * 2
    assert [judge.joined_by_fabric(name, "hypervisor") for name in ("hv0", "l1", "x")] == [True, False, False]
    assert not judge.joined_by_fabric("hv0", "guest")
    assert Judge(None).joined_by_fabric("x", "hypervisor")


def test_a_forger_keeps_its_session_and_its_room() -> None:
    """Dropped, answered by a refusal that returns the room, counted, and shown to subscribers; what follows passes."""
    lab = CoreLab(binding=BINDING)
    a, b = lab.hypervisors("hv0", "hv1")
    agent = lab.agent()
    for _ in range(300):
        b.ask(envelope_of("hv0/app", "hv0/plain", label="client_t"))
        lanes = [(lane, record[:2]) for lane, record, _ in b.received()]
        assert lanes == [(Lane.REQUEST, [1, 2]), (Lane.CONTROL, ["refused", "forged-source"])]
        agent.heard()
    assert a.heard() == []
    b.ask(envelope_of("hv1/store", "hv0/app", label="client_t"))
    (event,) = agent.heard()
    assert event[:5] == ["event", "broker", "refused", "forged-label", "hv1"]
    assert ("refused", "forged-label", "hv1") in [tuple(seen[:3]) for seen in lab.sink.events]
    b.heard()
    b.ask(envelope_of("hv1/store", "hv0/app", label="server_t"))
    assert len(a.envelopes()) == 1
    assert (lab.core.counters["refused.forged-source"], lab.shown("hv1")) == (300, "joined")


def test_labels_may_change() -> None:
    """By rounds, which may come in parts.  The former label is believed, and not passed on; one before that is not."""
    judge = Judge(BINDING)

    def judged(label: str, path: str = "hv0/app#2") -> Refusal | str:
        claim = envelope_of(path, label=label)
        found = judge.envelope("hv0", claim)
        return judge.corrected(claim).label if found is None else found[0]

    judge.relabel(1, {"app": "new_t"})
    judge.relabel(1, {"deep": "low_t", "stranger": "x"})
    assert (judged("new_t"), judged("client_t"), judged("server_t")) == ("new_t", "new_t", Refusal.FORGED_LABEL)
    assert (judged("low_t", "hv0/l1/deep"), judged("deep_t", "hv0/l1/deep")) == ("low_t", "low_t")
    assert (judged("", "hv0/plain"), judged("x", "hv0/plain")) == ("", Refusal.FORGED_LABEL)
    assert (judged("", "hv0/"), judged("client_t", "hv0/")) == ("", Refusal.FORGED_LABEL)
    judge.relabel(0, {"app": "old_t"})
    assert judged("new_t") == "new_t"
    judge.relabel(2, {})
    assert (judged(""), judged("new_t"), judged("client_t")) == ("", "", Refusal.FORGED_LABEL)
    assert judge.corrected(envelope_of("hv0/never", kind=RESULT, label="x")).label == "x"


def test_what_is_forwarded_has_the_present_label() -> None:
    """The agent says it; words that are no labels change nothing, and nobody else may say any."""
    lab = CoreLab(binding=BINDING)
    a, b = lab.hypervisors("hv0", "hv1")
    agent = lab.agent()
    for words in (["labels", "app"], ["x", "app", "y"], ["labels", "app", 1]):
        agent.say(["relabel", 1, words])
        assert agent.heard()[-1][:2] == ["refused", "MALFORMED_RECORD"]
    agent.say(["relabel", 1, ["labels", "app", "new_t", "store", "server_t"]])
    assert agent.heard()[-1] == ["relabelled", 1]
    for seq, label in ((1, "client_t"), (2, "new_t")):
        a.ask(envelope_of(seq=seq, label=label))
        ((got, _),) = b.envelopes()
        assert got.label == "new_t"
    a.say(["relabel", 2, ["labels"]])
    assert a.heard()[-1][:2] == ["refused", "NOT_ALLOWED"]


def test_the_label_of_a_result_is_the_plans() -> None:
    """Whatever the answering hypervisor wrote there."""
    lab = CoreLab(binding=BINDING)
    a, b = lab.hypervisors("hv0", "hv1")
    a.ask(envelope_of(label="client_t"))
    ((got, _),) = b.envelopes()
    b.answer(got._replace(label="client_t"))
    ((answer, _),) = a.envelopes()
    assert answer.label == "server_t"


def test_a_nested_hypervisors_process_is_not_joined_by_the_fabric() -> None:
    """It may join for its control records; its envelopes go through its parent, and it hears no news of links."""
    lab = CoreLab(binding=BINDING)
    lab.hypervisors("hv0", "hv1")
    nested = lab.node("hypervisor", "l1")
    assert nested.heard() == []
    nested.ask(envelope_of("l1/x", "hv1/store"))
    assert Refusal.NOT_ALLOWED in [record[1] for record in nested.heard()]
    nested.say(["tell", "hv0", ["x"]])


def test_hello_from_another_host() -> None:
    """Through the core: the transport says which host speaks."""
    lab = CoreLab(binding=BINDING)
    peer = lab.peer()
    lab.core.on_frame(peer.routing_id, handshake(hello_record("hypervisor", "hv0")), lab.now_ns, "lab2")
    (frame,) = peer.frames()
    assert frame.records[0][:2] == ["refused", Refusal.WRONG_HOST]
    lab.core.on_frame(peer.routing_id, handshake(hello_record("hypervisor", "hv1")), lab.now_ns, "lab2")
    assert peer.frames()[0].records[0][0] == "welcome"
