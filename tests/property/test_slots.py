"""Slots and firewall against simple models: what a confined guest reaches, what a revocation ends, who is first."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.argo.abi import DOMID_ANY, U32_MAX
from hmx.errno import Errno
from hmx.slots import DelegateCall, DelegateFlag
from hv_node.domain import Domain
from hv_node.levels.flows import Flow
from hv_node.levels.narrowing import Narrowing, common, holds, normal, without
from hv_node.levels.policy import FirewallXsm, Permissions, Permit
from hv_node.levels.rules import FRONT_END_OF, FRONT_ENDS, FrontEnd, Rule, Stranger, Table
from hv_node.levels.slot_table import SlotId
from hv_node.levels.slots import Hit
from hv_node.xsm import DummyXsm
from tests.hv_node.levels.lab import Host, Lab
from tests.hv_node.levels.walled import STORAGE, Walled

SEED: Final = 5


# -- a confined guest -------------------------------------------------------------------------------------------------


def busy_host() -> tuple[Host, Domain]:
    """A hypervisor full of others: neighbours, proxies, their slots and rights; and `jail`, which has one slot."""
    host = Host(("hv1",))
    jail = host.guest(1, "jail")
    for domid in range(2, 20):
        host.guest(domid, f"g{domid}")
        host.delegation.grant(domid, 0, None, domid, ("hv1", "g2"), delegable=True)
        host.delegation.grant(domid, 1, 99, None, ("hv1", "jail"))
    for domid in range(0x4000, 0x4020):
        host.proxy(domid, ("hv2", f"p{domid}"))
    host.slots.confine(3)
    host.slots.delivered(SlotId(("hv2", "p16384"), 0), 3, 0x4000, 9)
    host.delegation.grant(1, 0, None, 0xD0000, ("hv1", "g2"))
    host.slots.confine(1)
    return host, jail


def test_a_confined_guest_reaches_nothing() -> None:
    """Every domain id, 10^5 random ports: one answer for all, by sendv and by notify.  Only its slot leads anywhere."""
    host, jail = busy_host()
    dice = random.Random(SEED)
    resolve, ask = host.slots.resolve, host.slots.resolve_query
    domids = [domid for domid in range(0x1_0000) if domid != DOMID_ANY]
    answers = {resolve(jail, dice.getrandbits(32), domid, 0xD0000, 0) for domid in domids}
    answers |= {ask(jail, domid, 0xD0000) for domid in domids}
    known = [domid for domid in range(0x7FF0) if host.directory.domain(domid) is not None]
    for _ in range(100_000):
        domid, port = dice.choice(known), dice.choice((dice.getrandbits(32), dice.getrandbits(8), 0xD0000))
        answers.add(resolve(jail, dice.getrandbits(32), domid, port, dice.getrandbits(32)))
    for _ in range(100_000):
        port = dice.choice((dice.getrandbits(32), dice.getrandbits(8), 0xD0001))
        answers.add(resolve(jail, dice.choice((99, dice.getrandbits(32))), DOMID_ANY, port, 0))
        answers.add(ask(jail, DOMID_ANY, port))
    assert answers == {-Errno.ESRCH}
    assert resolve(jail, 1, DOMID_ANY, 0xD0000, 0) == Hit(2, 0xD0000, SlotId(("hv1", "jail"), 0), False)
    assert [domid for domid in range(0x1_0000) if host.slots.may_name(1, domid)] == []


def test_a_confined_guest_reaches_nothing_through_the_core() -> None:
    """The same by hypercall: no message, no signal, one errno; the others have wildcard rings for everybody."""
    walled = Walled()
    world, dice = walled.world, random.Random(SEED)
    answers = {world.send(1, (STORAGE, domid), b"x") for domid in range(0x1_0000) if domid != DOMID_ANY}
    for _ in range(100_000):
        port = dice.choice((dice.getrandbits(32), 77, STORAGE))
        answers.add(world.send(1, (port, dice.choice((1, 2, 3))), b"x", src_port=dice.getrandbits(32)))
    assert answers == {-Errno.ESRCH}
    assert world.woken() == []
    assert [world.pointers(domid, gfn) for domid, gfn in ((2, 8), (2, 16), (3, 8))] == [(0, 0)] * 3
    assert world.send(1, (STORAGE, DOMID_ANY), b"x") == 1


# -- delegation trees -------------------------------------------------------------------------------------------------

GUESTS: Final = [(host, name) for host in range(3) for name in ("a", "b")]


def three_hosts() -> tuple[Lab, list[Host]]:
    """Three hypervisors with two guests each; every guest has a way (slot n + 1) to each other guest n."""
    hosts = [Host((f"hv{number}",)) for number in range(3)]
    for index, (home, name) in enumerate(GUESTS):
        for number, host in enumerate(hosts):
            if number == home:
                host.guest(index + 1, name)
            else:
                host.proxy(0x4000 + index, (f"hv{home}", name))
    for index, (home, _) in enumerate(GUESTS):
        for to, (far, name) in enumerate(GUESTS):
            hosts[home].delegation.grant(index + 1, to + 1, None, 0xF0000 + to, (f"hv{far}", name))
    return Lab(*hosts), hosts


def held(hosts: list[Host]) -> set[tuple[SlotId, ...]]:
    """Every slot that came from slot 0 of the first guest, as the chain that ends with it."""
    root = SlotId(("hv0", "a"), 0)
    return {(*slot.chain, slot.id) for host in hosts for slot in host.slots if (*slot.chain, slot.id)[0] == root}


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_revoking_a_parent_revokes_its_children(data: st.DataObject) -> None:
    """Random trees over three hypervisors: what goes is the revoked slot and all that was made from it, nothing else;
    when the ticket is done, it is gone everywhere, whatever is still on its way.
    """
    lab, hosts = three_hosts()
    hosts[0].delegation.grant(1, 0, None, 1, ("hv2", "b"), delegable=True)
    for port in range(2, 2 + data.draw(st.integers(0, 14))):
        chain = data.draw(st.sampled_from(sorted(held(hosts))))
        peer = data.draw(st.integers(0, len(GUESTS) - 1))
        home, domid = place(chain[-1])
        caller = hosts[home].directory.domain(domid)
        assert caller is not None
        asked = DelegateCall(chain[-1].number, peer + 1, DelegateFlag.DELEGABLE, port, 0, (), ())
        before = held(hosts)
        ticket = lab.start(hosts[home], hosts[home].delegation.delegate(caller, asked))
        lab.settle()
        added = held(hosts) - before
        assert ticket.done and len(added) == (ticket.ret == 0)
        assert all(new[:-1] == chain for new in added)
    before = held(hosts)
    victim = data.draw(st.sampled_from(sorted(before)))
    others = {slot.id for host in hosts for slot in host.slots} - {chain[-1] for chain in before}
    home, domid = place(victim[-1])
    ticket = lab.start(hosts[home], hosts[home].delegation.revoke(domid, victim[-1].number))
    while not ticket.done:
        # Messages between different pairs of hypervisors overtake each other; those of one pair do not.
        ready = [n for n, (origin, tell) in enumerate(lab.flight)
                 if not any((o, t.to) == (origin, tell.to) for o, t in lab.flight[:n])]  # fmt: skip
        lab.flight.insert(0, lab.flight.pop(data.draw(st.sampled_from(ready))))
        assert lab.deliver()
    assert held(hosts) == {chain for chain in before if chain[: len(victim)] != victim}
    assert {slot.id for host in hosts for slot in host.slots} >= others
    lab.settle()
    # The books balance: every child that a slot knows of exists, and every guest's count is that of its children.
    for host in hosts:
        for holder in host.slots.holders.values():
            assert holder.delegated == sum(len(slot.children) for slot in holder.slots.values())


def place(slot: SlotId) -> tuple[int, int]:
    """Hypervisor and domain id of a slot's holder."""
    index = GUESTS.index((int(slot.holder[0][2:]), slot.holder[1]))
    return GUESTS[index][0], index + 1


port_numbers = st.one_of(st.integers(0, 12), st.sampled_from((U32_MAX - 1, U32_MAX)))
port_ranges = st.lists(
    st.tuples(port_numbers, port_numbers).map(lambda ends: (min(ends), max(ends))), min_size=1, max_size=3
).map(tuple)
types = st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True).map(tuple))
PORTS: Final = (*range(14), U32_MAX - 1, U32_MAX)


@given(st.lists(st.tuples(port_ranges, types, st.integers(0, 13)), min_size=1, max_size=6), port_ranges, types)
def test_a_chain_never_lets_more_pass(
    steps: list[tuple[tuple[tuple[int, int], ...], tuple[int, ...] | None, int]],
    first_ports: tuple[tuple[int, int], ...],
    first_types: tuple[int, ...] | None,
) -> None:
    """What the last of a chain reaches (which port of the endpoint, which type), each before it allows too."""
    host = Host(("hv1",))
    guests = [host.guest(index + 1, f"g{index}") for index in range(len(steps) + 1)]
    store = host.guest(99, "store")
    host.delegation.grant(1, 0, 500, None, ("hv1", "store"), None, Narrowing(first_ports, first_types), delegable=True)
    allowed = {(port, kind) for port in PORTS for kind in range(4)
               if holds(first_ports, port) and (first_types is None or kind in first_types)}  # fmt: skip
    number = 0
    for index, (ranges, kinds, rename) in enumerate(steps):
        host.delegation.grant(index + 1, 1, None, 0xF0000, ("hv1", f"g{index + 1}"))
        flags = DelegateFlag.PORTS | DelegateFlag.DELEGABLE | (DelegateFlag.TYPES if kinds else DelegateFlag(0))
        asked = DelegateCall(number, 1, flags, rename, 0, ranges, kinds or ())
        if host.delegation.delegate(guests[index], asked).ret:
            break
        slot = next(slot for slot in host.slots if slot.id.holder == ("hv1", f"g{index + 1}"))
        number = slot.id.number
        tried = [reach(host, guests[index + 1], port, kind) for port in PORTS for kind in range(4)]
        reached = {found for found in tried if found is not None}
        assert reached <= allowed
        assert {port for port, _ in reached} <= {port for port in PORTS if holds(ranges, port)}
        assert kinds is None or {kind for _, kind in reached} <= set(kinds)
        allowed = reached
    assert store.domid == 99


def reach(host: Host, guest: Domain, port: int, kind: int) -> tuple[int, int] | None:
    """What a send to `port` becomes."""
    hit = host.slots.resolve(guest, 500, DOMID_ANY, port, kind)
    return (hit.port, kind) if isinstance(hit, Hit) else None


# -- ports as sets ----------------------------------------------------------------------------------------------------


@given(port_ranges, port_ranges)
def test_ranges_are_sets(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> None:
    """normal, common and without, against sets; normal forms are ascending and do not touch."""
    first, second = normal(one), normal(other)
    for port in PORTS:
        inside = any(low <= port <= high for low, high in one), any(low <= port <= high for low, high in other)
        assert holds(first, port) == inside[0]
        assert holds(common(first, second), port) == all(inside)
        assert holds(without(first, second), port) == (inside[0] and not inside[1])
    for found in (first, common(first, second)):
        assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


# -- the firewall -----------------------------------------------------------------------------------------------------

LABELS: Final = ("a", "b", "")
labels = st.sampled_from(("a", "b", "*", 1, 2))
maybe_ports = st.one_of(st.just(()), port_ranges)
rules = st.lists(
    st.builds(Rule, labels, labels, maybe_ports, st.booleans(), maybe_ports, st.booleans()), max_size=7
).map(tuple)
parties = st.builds(Stranger, st.just("x"), st.sampled_from(LABELS), st.sampled_from((None, 1, 2, 3)))


def simply(
    front: FrontEnd, table: tuple[Rule, ...], source: Stranger, source_port: int, target: Stranger, port: int
) -> bool:
    """The first rule that fits, said as plainly as can be."""
    for rule in table:
        who = rule.source == "*" or rule.source in (source.label or None, source.domid)
        whom = rule.target == "*" or rule.target in (target.label or None, target.domid)
        from_there = not rule.source_ports or any(low <= source_port <= high for low, high in rule.source_ports)
        to_there = not rule.ports or any(low <= port <= high for low, high in rule.ports)
        if who and whom and from_there and to_there:
            return rule.allow
    return front.accept


@settings(max_examples=300)
@given(st.sampled_from(FRONT_ENDS), rules, parties, parties, st.sampled_from(PORTS), st.sampled_from(PORTS))
def test_first_match(
    front: FrontEnd, table: tuple[Rule, ...], source: Stranger, target: Stranger, source_port: int, port: int
) -> None:
    """The table answers as the model, asked once or twice; without a source port, if any source port would do."""
    judge = Table(front, table).judge
    for _ in range(2):
        expected = simply(front, table, source, source_port, target, port)
        assert judge(source, source_port, target, port).accept == expected
    anywhere = any(simply(front, table, source, other, target, port) for other in (*PORTS, 77))
    assert judge(source, None, target, port).accept == anywhere


@settings(max_examples=100)
@given(rules, rules, st.lists(st.tuples(st.sampled_from((0, 1)), st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_reload_keeps_what_both_allow(
    old: tuple[Rule, ...], new: tuple[Rule, ...], sent: list[tuple[int, int, int]]
) -> None:
    """What may be answered after a reload: what was sent, allowed with its answer before, and is so now."""
    front = FRONT_END_OF["firewall"]
    ends = (Stranger("one", "a", 1), Stranger("two", "b", 2))
    policy = FirewallXsm(DummyXsm(), Table(front, old), label_of=str)
    expected = set()
    for asker, port, target_port in sent:
        source, target = ends[asker], ends[1 - asker]
        if policy.send_through(source, port, target, target_port) == 0:
            flow = Flow(source, port, target, target_port)
            verdicts = [Table(front, table).judge(*flow) for table in (old, new)]
            if verdicts[0].accept and verdicts[0].reply:
                expected.add((flow, verdicts[1].accept and verdicts[1].reply))
    reloaded = policy.reload(Table(front, new))
    assert set(reloaded.dropped) == {flow for flow, kept in expected if not kept}
    assert reloaded.kept == sum(kept for _, kept in expected)
    for flow, kept in expected:
        verdict = Table(front, new).judge(flow.replier, 3, flow.asker, flow.asker_port)
        if verdict.rule >= 0:
            continue  # a row of its own decides
        others = any(one[:3] == flow[:3] and still for one, still in expected)
        assert (policy.send_through(flow.replier, 3, flow.asker, flow.asker_port) == 0) == (kept or others)


@given(st.lists(st.builds(Permit, st.sampled_from("abc"), st.sampled_from(("send", "query")), st.sampled_from("abc*"))))
def test_permissions(permits: list[Permit]) -> None:
    """A label that is named has what is granted; one that is not has everything."""
    permissions = Permissions(permits)
    for label in "abc":
        rows = [permit for permit in permits if permit.label == label]
        for target in "abc":
            granted = any(row.operation == "send" and row.target in ("*", target) for row in rows)
            assert permissions.allows("send", label, target) == (granted or not rows)
