"""What a hostile or careless domain can reach: its own memory, and what a call announces.

Whatever the arguments and whatever stands in guest memory, a call never raises, answers an int32, and changes only
these bytes: what `footprint` announces of the caller's memory, the free part of the ring that a message goes to with
that ring's tx_ptr, and the tx_ptr of a ring being registered.  Stores that guests make in the middle of a call (the
two race windows of argo.md) do not change that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    SEND_ADDR,
    UNREGISTER_RING,
    Op,
)
from hmx.argo.footprint import footprint
from hmx.argo.ring import sanitise_rx
from hmx.memory import PAGE_SIZE, PageType
from hv_node.argo.model import Ring
from tests.hv_node.argo.world import World

NPAGES: Final = 12
END: Final = NPAGES * PAGE_SIZE
DOMIDS: Final = (1, 2, 3)
PORTS: Final = (1, 2)
STRUCT, IOVS, GFNS, BUFFERS = 0x100, 0x200, 0x400, 0x1000

Call = tuple[int, int, tuple[int, int, int, int]]  # domid, cmd, args
Step = Callable[[World], Call | None]

# -- steps: each lays something out in a domain's memory and says what to call ----------------------------------------

domids = st.sampled_from(DOMIDS)
partners = st.sampled_from((*DOMIDS, DOMID_ANY))
ports = st.sampled_from(PORTS)
ring_lens = st.sampled_from((48, 64, 112, 1024, 4032, 4096, 8128))
sizes = st.one_of(st.sampled_from((0, 1, 15, 16, 17, 80, 992, 4000, 4096)), st.integers(0, 200))
addresses = st.one_of(
    st.sampled_from((0, STRUCT, BUFFERS, END - 8, END, PAGE_SIZE - 4, 1 << 47, (1 << 64) - 8)),
    st.integers(0, END - 1),
    st.integers(0, (1 << 64) - 1),
)
u32 = st.one_of(st.sampled_from((0, 1, 2, 8, 9, 256, 4096, 0xFFFFFFFF, 1 << 32)), st.integers(0, (1 << 64) - 1))


@st.composite
def registering(draw: st.DrawFn) -> Step:
    domid, port, partner, ring_len = draw(domids), draw(ports), draw(partners), draw(ring_lens)
    npages = (ring_len + 64 + 4095) // 4096
    gfns = draw(st.lists(st.integers(4, NPAGES), min_size=npages, max_size=npages))
    pointers = draw(st.tuples(sizes, sizes))

    def step(world: World) -> Call:
        ram = world.ram[domid]
        REGISTER_RING.pack_into(ram, STRUCT, port, partner, 0, ring_len)
        for index, gfn in enumerate(gfns):
            ram[GFNS + 8 * index : GFNS + 8 * index + 8] = gfn.to_bytes(8, "little")
        if gfns[0] < NPAGES:
            world.set_rx(domid, pointers[0], gfns[0])
            world.set_tx(domid, pointers[1], gfns[0])
        return domid, Op.REGISTER_RING, (STRUCT, GFNS, npages, 0)

    return step


@st.composite
def sending(draw: st.DrawFn) -> Step:
    domid, target, port = draw(domids), draw(domids), draw(ports)
    iovs = draw(st.lists(st.tuples(st.integers(0, END - 1), sizes), max_size=8))

    def step(world: World) -> Call:
        ram = world.ram[domid]
        SEND_ADDR.pack_into(ram, STRUCT, 5, domid, 0, port, target, 0)
        for index, (va, size) in enumerate(iovs):
            IOV.pack_into(ram, IOVS + 16 * index, va, size, 0)
        return domid, Op.SENDV, (STRUCT, IOVS, len(iovs), 7)

    return step


@st.composite
def notifying(draw: st.DrawFn) -> Step:
    domid = draw(domids)
    va = draw(st.sampled_from((0, STRUCT, PAGE_SIZE - 22, END - 40)))
    entries = draw(st.lists(st.tuples(ports, domids, sizes), max_size=3))

    def step(world: World) -> Call:
        ram = world.ram[domid]
        if va:
            RING_DATA.pack_into(ram, va, len(entries), 0)
            for index, (port, target, size) in enumerate(entries):
                at = va + 8 + 20 * index
                if at + 20 <= END:
                    RING_DATA_ENT.pack_into(ram, at, port, target, 0, 0, 0, size, 0)
        return domid, Op.NOTIFY, (va, 0, 0, 0)

    return step


@st.composite
def unregistering(draw: st.DrawFn) -> Step:
    domid, port, partner = draw(domids), draw(ports), draw(partners)

    def step(world: World) -> Call:
        UNREGISTER_RING.pack_into(world.ram[domid], STRUCT, port, partner, 0)
        return domid, Op.UNREGISTER_RING, (STRUCT, 0, 0, 0)

    return step


@st.composite
def calling_at_random(draw: st.DrawFn) -> Step:
    domid, cmd = draw(domids), draw(st.integers(0, 6))
    args = draw(st.tuples(addresses, addresses, u32, u32))
    return lambda world: (domid, cmd, args)


@st.composite
def scribbling(draw: st.DrawFn) -> Step:
    """A guest's own stores: over its arguments, or over a page that may hold a ring."""
    domid = draw(domids)
    at = draw(st.one_of(st.sampled_from((STRUCT, IOVS, GFNS)), st.integers(4, NPAGES - 1).map(PAGE_SIZE.__mul__)))
    data = draw(st.binary(min_size=1, max_size=24))

    def step(world: World) -> None:
        world.ram[domid][at : at + len(data)] = data

    return step


@st.composite
def retyping(draw: st.DrawFn) -> Step:
    domid, gfn = draw(domids), draw(st.integers(0, NPAGES - 1))
    page_type = draw(st.sampled_from(PageType))
    return lambda world: world.memory(domid).set_page(gfn, page_type)


steps = st.one_of(
    registering(), registering(), sending(), sending(), sending(), notifying(), unregistering(),
    calling_at_random(), scribbling(), retyping(),
)  # fmt: skip



def furnished() -> World:
    """Three domains that can reach each other from the start: a wildcard ring each, and a small one for the next."""
    world = World(DOMIDS, npages=NPAGES)
    for domid in DOMIDS:
        assert world.register(domid, 1, DOMID_ANY, 240, gfns=[9]) == 0
        assert world.register(domid, 2, domid % 3 + 1, 4096, gfns=[11, 10]) == 0
    return world


# -- what a call may change --------------------------------------------------------------------------------------------

Regions = dict[int, set[int]]


def logical(gfns: tuple[tuple[int, int], ...]) -> list[int]:
    """The addresses of a ring's bytes, pages laid end to end, the header included."""
    return [address + offset for address, n in gfns for offset in range(n)]


def announced(world: World, call: Call) -> Regions:
    """Addresses by domain that the call may change, from the state before it."""
    domid, cmd, args = call
    allowed: Regions = {each: set() for each in DOMIDS}
    _, writes = footprint(cmd, args, world.memory(domid))
    for va, n in writes:
        allowed[domid].update(range(va, va + n))
    if cmd == Op.REGISTER_RING:
        gfn = int.from_bytes(world.ram[domid][args[1] : args[1] + 8], "little") if args[1] < END - 8 else END
        allowed[domid].update(range(gfn * PAGE_SIZE + 4, gfn * PAGE_SIZE + 8))
    if cmd == Op.SENDV:
        fields = world.memory(domid).unpack(SEND_ADDR, 0, args[0])
        target = world.domains.lookup(fields[4]) if fields else None
        if fields and target is not None and target.argo is not None:
            rings = target.argo.rings
            ring = rings.get((fields[3], domid)) or rings.get((fields[3], DOMID_ANY))
            if ring is not None:
                allowed[target.domid].update(free_part(ring))
    return allowed


def free_part(ring: Ring) -> set[int]:
    """tx_ptr, and the data area from tx up to the slot before rx."""
    assert ring.pages is not None
    at = logical(ring.pages.extents)
    rx = sanitise_rx(ring.pages.load_rx(), ring.len)
    free = ring.len if rx == ring.tx else (rx - ring.tx) % ring.len
    data = {at[64 + (ring.tx + offset) % ring.len] for offset in range(free - 16)}
    return data | {at[offset] for offset in range(4, 8)}


def changed(before: bytes, after: bytearray) -> list[int]:
    """Addresses whose byte differs."""
    found: list[int] = []
    for page in range(0, len(before), PAGE_SIZE):
        if before[page : page + PAGE_SIZE] != after[page : page + PAGE_SIZE]:
            found += [at for at in range(page, page + PAGE_SIZE) if before[at] != after[at]]
    return found


@settings(max_examples=200)
@given(st.lists(steps, max_size=30))
def test_only_announced_bytes_change(script: list[Step]) -> None:
    """After every call: an int32, and no byte outside the announced regions."""
    world = furnished()
    for step in script:
        call = step(world)
        if call is None:
            continue
        domid, cmd, args = call
        allowed = announced(world, call)
        before = {each: bytes(world.ram[each]) for each in DOMIDS}
        ret = world.op(domid, cmd, *args)
        assert -(1 << 31) <= ret < 1 << 31
        for each in DOMIDS:
            stray = set(changed(before[each], world.ram[each])) - allowed[each]
            assert not stray, f"domain {each} at {min(stray):#x} after {call}"


window_stores = st.lists(
    st.tuples(domids, st.integers(4, NPAGES - 1), st.sampled_from((0, 4, 64, 80)), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=120)
@given(st.lists(st.tuples(steps, window_stores), max_size=20))
def test_stores_in_the_race_windows(script: list[tuple[Step, list[tuple[int, int, int, bytes]]]]) -> None:
    """Guests store to their rings while a message lies there unpublished, and between the halves of job A.

    Such a store stays where the guest made it; beside it the call changes what it would have changed anyway.
    """
    world = furnished()
    stores: list[tuple[int, int, int, bytes]] = []
    touched: Regions = {each: set() for each in DOMIDS}

    def race(_: Ring) -> None:
        for domid, gfn, offset, data in stores:
            at = gfn * PAGE_SIZE + offset
            world.ram[domid][at : at + len(data)] = data
            touched[domid].update(range(at, at + len(data)))

    world.argo.on_payload_written = world.argo.on_notify_window = race
    for step, now in script:
        stores[:] = now
        call = step(world)
        if call is None:
            continue
        for addresses_touched in touched.values():
            addresses_touched.clear()
        allowed = announced(world, call)
        before = {each: bytes(world.ram[each]) for each in DOMIDS}
        domid, cmd, args = call
        ret = world.op(domid, cmd, *args)
        assert -(1 << 31) <= ret < 1 << 31
        for each in DOMIDS:
            stray = set(changed(before[each], world.ram[each])) - allowed[each] - touched[each]
            assert not stray, f"domain {each} at {min(stray):#x} after {call}"
    world.argo.on_payload_written = world.argo.on_notify_window = None


# -- harm stays at home ------------------------------------------------------------------------------------------------

ATTACKER = 1

attacks = st.lists(
    st.one_of(
        st.tuples(st.just("bytes"), st.integers(0, END - 64), st.binary(min_size=1, max_size=64)),
        st.tuples(st.just("ring"), st.integers(4, NPAGES - 1), st.binary(min_size=8, max_size=96)),
        st.tuples(st.just("call"), st.integers(0, 6), st.tuples(addresses, addresses, u32, u32)),
        st.tuples(st.just("register"), partners, st.tuples(ring_lens, st.integers(4, NPAGES - 3))),
        st.tuples(st.just("send"), domids, sizes),
        st.tuples(st.just("end"), st.sampled_from(("soft_reset", "kill")), st.none()),
    ),
    max_size=6,
)
traffic = st.tuples(st.sampled_from((2, 3)), sizes, st.booleans())
RING_LEN: Final = 1024


def attack(world: World, moves: list[tuple[str, object, object]]) -> None:
    """What the hostile domain does between two calls of the others."""
    for kind, first, second in moves:
        ram = world.ram[ATTACKER]
        match kind, first, second:
            case "bytes", int(at), bytes(data):
                ram[at : at + len(data)] = data
            case "ring", int(gfn), bytes(data):
                ram[gfn * PAGE_SIZE : gfn * PAGE_SIZE + len(data)] = data
            case "call", int(cmd), (int(a1), int(a2), int(a3), int(a4)):
                world.op(ATTACKER, cmd, a1, a2, a3, a4)
            case "register", int(partner), (int(ring_len), int(gfn)):
                REGISTER_RING.pack_into(ram, STRUCT, 1, partner, 0, ring_len)
                npages = (ring_len + 64 + 4095) // 4096
                for index in range(npages):
                    ram[GFNS + 8 * index : GFNS + 8 * index + 8] = (gfn + index).to_bytes(8, "little")
                world.op(ATTACKER, Op.REGISTER_RING, STRUCT, GFNS, npages, 0)
            case "send", int(target), int(size):
                SEND_ADDR.pack_into(ram, STRUCT, 5, ATTACKER, 0, 1, target, 0)
                IOV.pack_into(ram, IOVS, BUFFERS, size, 0)
                world.op(ATTACKER, Op.SENDV, STRUCT, IOVS, 1, 0)
            case "end", "soft_reset", _:
                world.argo.soft_reset(world.domain(ATTACKER))
            case "end", "kill", _:
                world.kill(ATTACKER)
            case _:
                pytest.fail(f"no such move: {kind}")


def peers_alone(script: list[tuple[list[tuple[str, object, object]], tuple[int, int, bool]]], hostile: bool) -> object:
    """Domains 2 and 3 exchange messages; everything that they can see of it."""
    world = World(DOMIDS, npages=NPAGES)
    results = [world.register(2, 1, 3, RING_LEN, gfns=[9]), world.register(3, 1, 2, RING_LEN, gfns=[9])]
    consumers = {domid: world.consumer(domid, RING_LEN, 9) for domid in (2, 3)}
    seen = []
    for moves, (sender, size, drain) in script:
        if hostile:
            attack(world, moves)
        receiver = 5 - sender
        results.append(world.send(sender, (1, receiver), bytes([size & 0xFF]) * size))
        if drain:
            seen.append([message.payload for message in consumers[receiver].drain()])
            results.append(world.op(receiver, Op.NOTIFY))
    signals = [virq for virq in world.sink.virqs if virq[0] != ATTACKER]
    return results, seen, signals, bytes(world.ram[2]), bytes(world.ram[3])


@settings(max_examples=200)
@given(st.lists(st.tuples(attacks, traffic), max_size=12))
def test_a_hostile_domain_harms_only_itself(
    script: list[tuple[list[tuple[str, object, object]], tuple[int, int, bool]]],
) -> None:
    """Random bytes over its memory and rings, random and plausible calls, its own death: nobody else notices.

    Results, messages, signals and memory of two others, who talk over rings for each other alone, are what they
    are without it; and nothing raises.
    """
    assert peers_alone(script, hostile=True) == peers_alone(script, hostile=False)


def test_a_message_fits_what_was_announced() -> None:
    """The check above would see a byte too many: the announced region ends a slot before rx."""
    world = World(DOMIDS, npages=NPAGES)
    assert world.register(2, 1, DOMID_ANY, 112, gfns=[5]) == 0
    ring = world.ring(2, 1, DOMID_ANY)
    assert len(free_part(ring)) == 4 + 112 - 16
    assert world.send(1, (1, 2), b"x" * 80) == 80
    assert len(free_part(ring)) == 4
    world.set_rx(2, 48, 5)
    assert len(free_part(ring)) == 4 + (48 - 96 + 112) - 16
