"""The firewall: golden verdicts, denials, reload, FLASK's permissions, and what it is composed with.

Sources: the issue's rules (labels, first match, default deny, FLASK-like permissions); Xen xsm/flask/hooks.c and
xsm/silo.c for who answers what.
"""

from __future__ import annotations

from typing import Any

import pytest

from hmx.argo.abi import U32_MAX
from hmx.errno import Errno
from hv_node.argo.model import DomainArgo, Ring, wait_for_space
from hv_node.config import PolicyConfig, RuleConfig
from hv_node.domain import Domain
from hv_node.levels.flows import MAX_FLOWS
from hv_node.levels.policy import (
    MAX_PAIRS,
    OPERATIONS,
    REST,
    FirewallXsm,
    Permissions,
    Permit,
    permissions_of,
    table_of,
)
from hv_node.levels.rules import FRONT_END_OF, FRONT_ENDS, MAX_RULES, Rule, Stranger, Table
from hv_node.levels.viptables import parse_viptables
from hv_node.xsm import xsm_by_name
from tests.golden import rows
from tests.hv_node.levels.lab import domain

FIREWALL, VIPTABLES = FRONT_END_OF["firewall"], FRONT_END_OF["viptables"]
GOLDEN = rows("policy.csv")


LABELS = {0: "dom0_t", 1: "client_t", 2: "server_t", 3: "other_t", 4: "-", 0x4000: "far_dom0_t"}


def label_of(domid: int) -> str:
    return LABELS[domid].strip("-")


def parties() -> dict[str, Domain]:
    """The domains that the golden rows speak of, by label; "-" has none."""
    made = [
        domain(0, "dom0", is_control=True),
        domain(1, "client"),
        domain(2, "server"),
        domain(3, "other"),
        domain(4, "unlabelled"),
        domain(0x4000, "far", is_control=True, far=("hv2", "far")),
    ]
    return {LABELS[found.domid]: found for found in made}


def firewall(
    *rules: str, base: str = "dummy", permissions: Permissions | None = None, on_event: Any = None
) -> FirewallXsm:
    """The firewall with these rules."""
    table = Table(FIREWALL, tuple(map(rule, rules)))
    return FirewallXsm(xsm_by_name(base), table, permissions, on_event, label_of=label_of)


def ranges(text: str) -> tuple[tuple[int, int], ...]:
    if text in ("", "*"):
        return ()
    ends = [part.partition("-") for part in text.split("|")]
    return tuple((int(low, 0), int(high or low, 0)) for low, _, high in ends)


def rule(text: str) -> Rule:
    """`label[:ports] > label[:ports] accept|reject [oneway]`."""
    source, _, target, verdict, *more = text.split()
    (who, _, source_ports), (whom, _, ports) = source.partition(":"), target.partition(":")
    return Rule(who, whom, ranges(ports), verdict == "accept", ranges(source_ports), reply=not more)


def module(row: dict[str, str]) -> FirewallXsm:
    """The module that a golden row describes."""
    front, _, base = row["module"].partition("+")
    texts = [text.strip() for text in row["rules"].split(";") if text.strip()]
    rules = parse_viptables("\n".join(texts)) if front == "viptables" else tuple(rule(text) for text in texts)
    permits = []
    for words in (text.split() for text in row["permissions"].split(";") if text.strip()):
        known = {operation.name for operation in OPERATIONS}
        target = "*" if words[1] in known else words[1]
        permits += [Permit(words[0], operation, target) for operation in words[1 if target == "*" else 2 :]]
    table = Table(FRONT_END_OF[front], rules)
    return FirewallXsm(xsm_by_name(base or "dummy"), table, Permissions(permits), label_of=label_of)


def end(text: str, known: dict[str, Domain]) -> tuple[Domain, int]:
    label, _, port = text.partition(":")
    return known[label], int(port, 0) if port not in ("", "?") else 0


def ask(policy: FirewallXsm, op: str, source: str, target: str, known: dict[str, Domain]) -> int:
    (caller, source_port), (other, port) = end(source, known), end(target, known) if target != "-" else (None, 0)
    match op:
        case "enable":
            return policy.enable(caller)
        case "register_any_source":
            return policy.register_any_source(caller)
        case _ if other is None:
            raise AssertionError(op)
        case "register_single_source":
            return policy.register_single_source(caller, other)
        case "notify":
            return policy.send_to(caller, other, port)
        case "send":
            return policy.send_to(caller, other, port, source_port)
    raise AssertionError(op)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["case"])
def test_golden(row: dict[str, str]) -> None:
    """tests/golden/policy.csv, written from the issue and the specifications before the code."""
    policy, known = module(row), parties()
    if row["before"]:
        source, _, target = row["before"].partition(">")
        ask(policy, "send", source, target, known)
    expected = 0 if row["verdict"] == "0" else -Errno[row["verdict"]]
    assert ask(policy, row["op"], row["from"], row["to"], known) == expected
    # Asked a second time, a table that remembers verdicts says the same.
    assert ask(policy, row["op"], row["from"], row["to"], known) == expected


def test_golden_has_enough_rows() -> None:
    """At least 40, each case once."""
    assert len({row["case"] for row in GOLDEN}) == len(GOLDEN) >= 40


def test_front_ends() -> None:
    """What holds without a match, how a refusal looks: firewall denies as FLASK, viptables accepts as OpenXT's."""
    assert [(row.name, row.accept, row.errno, row.stateful) for row in FRONT_ENDS] == [
        ("firewall", False, Errno.EACCES, True),
        ("viptables", True, Errno.EPERM, False),
    ]


def test_operations() -> None:
    """FLASK's four permissions of class argo, and two of our own."""
    assert [(row.name, row.targeted, row.errno) for row in OPERATIONS] == [
        ("enable", False, Errno.EACCES),
        ("register_single_source", True, Errno.EACCES),
        ("register_any_source", False, Errno.EACCES),
        ("send", True, Errno.EACCES),
        ("delegate", True, Errno.EACCES),
        ("query", True, Errno.ESRCH),
    ]


def test_permissions_are_checked_when_written() -> None:
    """No unknown operation, no target where there is none."""
    with pytest.raises(ValueError, match="no operation 'sned'"):
        Permissions([Permit("a", "sned")])
    with pytest.raises(ValueError, match="enable has no target"):
        Permissions([Permit("a", "enable", "b")])
    nothing = Permissions(named=["a"])
    assert not nothing.allows("enable", "a") and nothing.allows("enable", "b") and nothing.allows("enable", "")
    # Somebody without a label is nobody's named target.
    assert not Permissions([Permit("a", "send", "")]).allows("send", "a", "")


def events() -> tuple[list[tuple[Any, ...]], Any]:
    log: list[tuple[Any, ...]] = []
    return log, lambda *fields: log.append(fields)


def test_denials_are_logged_once_per_pair_and_counted() -> None:
    """The issue: logged once per pair, counted."""
    log, on_event = events()
    known = parties()
    policy = firewall(on_event=on_event)
    for _ in range(3):
        for port in (1, 2):
            ask(policy, "send", "client_t:9", f"server_t:{port}", known)
    ask(policy, "send", "other_t:9", "server_t:1", known)
    assert policy.denials == {("client", "server"): 6, ("other", "server"): 1}
    assert log == [
        ("policy-denied", "client", "server", "client_t", "server_t", -Errno.EACCES),
        ("policy-denied", "other", "server", "other_t", "server_t", -Errno.EACCES),
    ]
    assert policy.inspect()["denied"] == 7
    policy.reload(Table(FIREWALL))
    ask(policy, "send", "client_t:9", "server_t:1", known)
    assert len(log) == 3 and policy.denials["client", "server"] == 7


def test_denials_of_the_module_underneath_count_too() -> None:
    """A reader of the counters sees what was denied, whoever denied it."""
    log, on_event = events()
    policy = FirewallXsm(xsm_by_name("silo"), Table(VIPTABLES), None, on_event, label_of=label_of)
    known = parties()
    assert ask(policy, "send", "client_t:9", "server_t:1", known) == -Errno.EPERM
    assert ask(policy, "register_single_source", "client_t", "server_t", known) == -Errno.EPERM
    assert policy.denials == {("client", "server"): 2} and len(log) == 1
    assert policy.name == "viptables+silo" and not policy.permissive


def test_the_log_of_denials_is_bounded() -> None:
    """Beyond MAX_PAIRS pairs, one line and one counter serve the rest."""
    log, on_event = events()
    policy = firewall(on_event=on_event)
    target = Stranger("target", "t")
    for number in range(MAX_PAIRS + 5):
        policy.send_through(Stranger(f"s{number}", "s"), 1, target, 1)
    assert policy.denials[REST] == 5
    assert len(log) == MAX_PAIRS + 1


def test_reload_keeps_what_remains_allowed() -> None:
    """A connection that both policies allow goes on, replies included; one that is not is dropped and named."""
    known = parties()
    old = (rule("client_t > server_t:5001|6001 accept"), rule("other_t > server_t:5001 accept"))
    policy = FirewallXsm(xsm_by_name("dummy"), Table(FIREWALL, old), label_of=label_of)
    sent = (("client_t:9", "server_t:5001"), ("client_t:10", "server_t:6001"), ("other_t:9", "server_t:5001"))
    for source, target in sent:
        assert ask(policy, "send", source, target, known) == 0
    reloaded = policy.reload(Table(FIREWALL, (rule("client_t > server_t:5001 accept"),)))
    assert [(flow.asker.name, flow.asker_port, flow.port) for flow in reloaded.dropped] == [
        ("client", 10, 6001),
        ("other", 9, 5001),
    ]
    assert reloaded.kept == len(policy.flows) == 1
    # The answer comes before anything new was asked.
    assert ask(policy, "send", "server_t:5001", "client_t:9", known) == 0
    assert ask(policy, "send", "server_t:6001", "client_t:10", known) == -Errno.EACCES
    assert ask(policy, "send", "server_t:5001", "other_t:9", known) == -Errno.EACCES


@pytest.mark.parametrize(
    ("table", "permissions"),
    [
        ((rule("client_t > server_t:5001 accept oneway"),), None),
        ((rule("client_t > server_t:5001 accept"),), Permissions([Permit("client_t", "enable")])),
        ((rule("client_t:8 > server_t:5001 accept"),), None),
        ((rule("* > *:5001 reject"), rule("client_t > server_t:5001 accept")), None),
    ],
    ids=["answers no more", "permission gone", "other source port", "rejected before"],
)
def test_reload_drops(table: tuple[Rule, ...], permissions: Permissions | None) -> None:
    """Each way in which an open flow may stop to be allowed."""
    known = parties()
    policy = firewall("client_t > server_t:5001 accept")
    assert ask(policy, "send", "client_t:9", "server_t:5001", known) == 0
    assert len(policy.reload(Table(FIREWALL, table), permissions).dropped) == 1
    assert ask(policy, "send", "server_t:5001", "client_t:9", known) == -Errno.EACCES


def test_labels_may_change_with_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload reads them again, those of open flows included."""
    known = parties()
    policy = firewall("client_t > server_t:5001 accept")
    assert ask(policy, "send", "other_t:9", "server_t:5001", known) == -Errno.EACCES
    assert ask(policy, "send", "client_t:9", "server_t:5001", known) == 0
    monkeypatch.setitem(LABELS, 3, "client_t")
    monkeypatch.setitem(LABELS, 1, "other_t")
    assert len(policy.reload(policy.table).dropped) == 1
    assert ask(policy, "send", "other_t:9", "server_t:5001", known) == 0
    assert ask(policy, "send", "client_t:9", "server_t:5001", known) == -Errno.EACCES


def test_flows_are_bounded_by_asker() -> None:
    """10^4 source ports of one guest cost it its own oldest flows, and nobody else's."""
    known = parties()
    policy = firewall("* > server_t:5001 accept")
    assert ask(policy, "send", "other_t:9", "server_t:5001", known) == 0
    for port in range(10_000):
        policy.send_to(known["client_t"], known["server_t"], 5001, port)
    assert len(policy.flows) == MAX_FLOWS + 1
    answer = [policy.send_to(known["server_t"], known["client_t"], port, 1) for port in (10_000 - MAX_FLOWS - 1, 9_999)]
    assert answer == [-Errno.EACCES, 0]
    assert ask(policy, "send", "server_t:1", "other_t:9", known) == 0


def test_an_answer_gives_no_right_to_go_on_asking() -> None:
    """What passes as an answer makes no flow of its own: else two hops would open everything."""
    known = parties()
    policy = firewall("client_t > server_t:5001 accept")
    ask(policy, "send", "client_t:9", "server_t:5001", known)
    ask(policy, "send", "server_t:77", "client_t:9", known)
    assert len(policy.flows) == 1
    assert ask(policy, "send", "client_t:9", "server_t:77", known) == -Errno.EACCES


def test_a_look_opens_nothing() -> None:
    """notify asks; only a send opens the way back."""
    known = parties()
    policy = firewall("client_t > server_t:5001 accept")
    assert policy.send_to(known["client_t"], known["server_t"], 5001) == 0
    assert len(policy.flows) == 0


def test_death_ends_flows() -> None:
    """A domain that reuses the id is another object, and the old one's flows are gone."""
    known = parties()
    policy = firewall("* > server_t:5001 accept")
    for label in ("client_t", "other_t"):
        ask(policy, "send", f"{label}:9", "server_t:5001", known)
    policy.forget(known["client_t"])
    assert len(policy.flows) == 1
    policy.forget(known["server_t"])
    assert len(policy.flows) == 0


def test_every_level_judges_strangers_alike() -> None:
    """A hypervisor on the way has labels only; what it allowed may be answered through it."""
    client, server = Stranger("hv0/app", "client_t"), Stranger("hv2/store", "server_t")
    policy = firewall("client_t > server_t:5001 accept", base="silo")
    assert policy.send_through(server, 5001, client, 9) == -Errno.EACCES
    assert policy.send_through(client, 9, server, 5001) == 0
    assert policy.send_through(Stranger("hv2/store", "server_t"), 5001, Stranger("hv0/app", "client_t"), 9) == 0
    # A rule by domain id speaks of this hypervisor's domains only.
    by_id = FirewallXsm(xsm_by_name("dummy"), Table(FIREWALL, (Rule(1, 2),)), label_of=label_of)
    assert by_id.send_through(client, 9, server, 5001) == -Errno.EACCES


def test_stale_waits() -> None:
    """After a reload, waiters that may not send any more are named; nothing is counted as a denial."""
    known = parties()
    client, other, server = known["client_t"], known["other_t"], known["server_t"]
    for party in (client, other, server):
        party.argo = DomainArgo()
    ring = Ring(server, 5001, 0x7FF4, 112, 1)
    assert server.argo is not None
    server.argo.insert(ring)
    for waiter in (client, other):
        assert wait_for_space(ring, waiter, 8, None) is True
    by_domid = {party.domid: party for party in known.values()}
    policy = firewall("* > server_t:5001 accept")
    assert policy.stale_waits([ring], by_domid.get) == []
    policy.reload(Table(FIREWALL, (rule("client_t:9 > server_t:5001 accept"),)))
    assert policy.stale_waits([ring], by_domid.get) == [(ring, other.domid)]
    assert not policy.denials
    silo = FirewallXsm(xsm_by_name("silo"), policy.table, label_of=label_of)
    assert silo.stale_waits([ring], by_domid.get) == [(ring, client.domid), (ring, other.domid)]
    del by_domid[client.domid]
    assert policy.stale_waits([ring], by_domid.get) == [(ring, client.domid), (ring, other.domid)]


def test_query() -> None:
    """Whoever may meet may know; others see nobody, whatever the module underneath would say."""
    known = parties()
    client, server, other = known["client_t"], known["server_t"], known["other_t"]
    policy = firewall("client_t > server_t:5001 accept")
    assert policy.query(client, server) == policy.query(server, client) == 0
    assert policy.query(other, server) == policy.query(server, other) == -Errno.ESRCH
    silo = FirewallXsm(xsm_by_name("silo"), policy.table, label_of=label_of)
    assert silo.query(client, server) == -Errno.ESRCH
    denied = firewall("client_t > server_t:5001 accept", permissions=Permissions([Permit("client_t", "send")]))
    assert denied.query(client, server) == -Errno.ESRCH
    assert denied.query(server, client) == 0


def test_delegate() -> None:
    """Passing a slot on: the permission, the way to the peer, and what the peer may reach."""
    known = parties()
    client, server, other = known["client_t"], known["server_t"], known["other_t"]
    rules = (rule("client_t > other_t:1 accept"), rule("other_t > server_t:5001 accept"))
    policy = FirewallXsm(xsm_by_name("dummy"), Table(FIREWALL, rules), label_of=label_of)
    assert policy.delegate(client, other, server) == policy.delegate(client, other, None) == 0
    assert policy.delegate(server, other, None) == -Errno.EACCES  # no way to the peer
    assert policy.delegate(client, other, client) == -Errno.EACCES  # the peer may not reach the endpoint
    for permit in (Permit("client_t", "send"), Permit("other_t", "enable")):
        policy.permissions = Permissions([permit])
        assert policy.delegate(client, other, server) == -Errno.EACCES
    silo = FirewallXsm(xsm_by_name("silo"), policy.table, label_of=label_of)
    assert silo.delegate(client, other, server) == -Errno.EPERM


def test_send_without_a_port() -> None:
    """Xen's own hook: whether anything at all may pass."""
    known = parties()
    client, server, other = known["client_t"], known["server_t"], known["other_t"]
    policy = firewall("client_t > server_t:5001 accept")
    assert policy.send(client, server) == 0
    assert policy.send(server, client) == policy.send(other, server) == -Errno.EACCES
    policy.send_to(client, server, 5001, 9)
    assert policy.send(server, client) == 0


def test_from_config() -> None:
    """As a hypervisor is told: rules in order, refusals as (label, operation)."""
    rules = (RuleConfig("a", "b", ((5, 9), (1, 4)), True), RuleConfig("*", "*", (), False))
    config = PolicyConfig("firewall", rules, (("a", "register_any_source"),))
    table = table_of(config)
    assert table.front_end is FIREWALL
    assert table.rules == (Rule("a", "b", ((1, 9),)), Rule("*", "*", (), False))
    permissions = permissions_of(config)
    assert not permissions.allows("register_any_source", "a")
    assert [row.name for row in OPERATIONS if not permissions.allows(row.name, "a", "b")] == ["register_any_source"]
    assert all(permissions.allows(row.name, "b", "a") for row in OPERATIONS)
    with pytest.raises(ValueError, match="no policy module 'chroot'"):
        table_of(PolicyConfig("chroot", ()))


def test_a_table_is_bounded() -> None:
    """More rules than anybody writes by hand are refused, and 10^5 ports do not fill the memory of verdicts."""
    with pytest.raises(ValueError, match="at most"):
        Table(FIREWALL, (Rule("a", "b"),) * (MAX_RULES + 1))
    table = Table(FIREWALL, (Rule("a", "b", ((7, 7),)),))
    one, other = Stranger("a", "a"), Stranger("b", "b")
    passed = [port for port in range(100_000) if table.judge(one, port, other, port).accept]
    assert passed == [7]
    assert table.judge(one, 1, other, U32_MAX).rule == -1
    assert len(table._known) <= 4096


def test_a_rule_without_a_name_matches_nobody() -> None:
    """Not even those who have no label."""
    table = Table(FIREWALL, (Rule("", "*"), Rule("*", "")))
    assert not table.judge(Stranger("x", ""), 1, Stranger("y", ""), 1).accept
