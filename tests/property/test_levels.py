"""Levels against one hypervisor: with good links nobody can tell them apart; with bad ones nothing is doubled or lost.

The rules are those of docs/levels.md and of argo.md 15: three results, each operation executed at most once, and the
order of a sender's messages kept, whatever the links lose, repeat or delay.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    MESSAGE_HEADER,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    RING_HEADER_SIZE,
    SEND_ADDR,
    UNREGISTER_RING,
    Op,
)
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, PageType, Window
from hv_node.argo.model import Ring
from hv_node.effects import PENDING
from hv_node.levels.options import LevelOptions
from hv_node.levels.paths import Path
from tests.doubles.levels import Lab, Node, Wire, lost
from tests.hv_node.argo.world import World

ARGS: Final = 0x100
IOVS: Final = 0x200
GFNS: Final = 0x1000
DATA: Final = 0x3000
RING_GFN: Final = 24
NPAGES: Final = 48
SECOND: Final = 1_000_000_000

REFUSED: Final = -Errno.ECONNREFUSED
UNKNOWN: Final = -Errno.EIO


def random_tree(rng: random.Random) -> list[Path]:
    """One to three L0s and up to three levels below them."""
    paths: list[Path] = [(f"h{index}",) for index in range(rng.randint(1, 3))]
    for index in range(rng.randint(1, 4)):
        above = rng.choice([path for path in paths if len(path) < 4])
        paths.append((*above, f"n{index}"))
    return paths


def settle_guests(rng: random.Random, paths: Sequence[Path], count: int) -> dict[Path, int]:
    """`count` guests on random hypervisors; domid 0 is nobody's."""
    return {(*rng.choice(paths), f"g{domid}"): domid for domid in range(1, count + 1)}


# -- good links: the same as one hypervisor ----


class Twin:
    """The same guests on one hypervisor and on a tree of them; every call is made on both."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        count = rng.randint(2, 6)
        self.lab = Lab(paths := random_tree(rng), guests=settle_guests(rng, paths, count))
        self.world = World(self.lab.guests.values(), npages=NPAGES)
        self.domids = list(self.lab.guests.values())
        self.dead: set[int] = set()

    def step(self) -> None:
        alive = [domid for domid in self.domids if domid not in self.dead]
        domid = self.rng.choice(alive)
        weights = {"register": 3, "unregister": 1, "send": 8, "notify": 4, "consume": 3, "reset": 1, "page": 1}
        if len(alive) > 1:
            weights["kill"] = 1
        action = self.rng.choices(list(weights), list(weights.values()))[0]
        getattr(self, action)(domid)
        self.compare(action)

    def compare(self, action: str) -> None:
        for domid in self.domids:
            assert self.lab.node(domid).ram[domid] == self.world.ram[domid], (action, domid)
        found = Counter(virq for node in self.lab.nodes.values() for virq in node.virqs)
        for node in self.lab.nodes.values():
            node.virqs.clear()
        assert found == Counter(self.world.sink.take_virqs()), action
        for node in self.lab.nodes.values():
            assert not len(node.level.calls), action

    def both(self, domid: int) -> list[bytearray]:
        return [self.world.ram[domid], self.lab.node(domid).ram[domid]]

    def op(self, domid: int, cmd: int, *args: int) -> int:
        a1, a2, a3, a4 = (*args, 0, 0, 0, 0)[:4]
        expected = self.world.op(domid, cmd, a1, a2, a3, a4)
        node = self.lab.node(domid)
        domain = node.domains.lookup(domid)
        assert domain is not None
        assert node.argo.op(domain, cmd, a1, a2, a3, a4, object()) == expected
        return expected

    def any_domid(self) -> int:
        return self.rng.choice([*self.domids, *self.domids, 99])

    def register(self, domid: int) -> None:
        partner = self.rng.choice([DOMID_ANY, self.any_domid()])
        ring_len, port = self.rng.choice([48, 112, 240, 4032, 4048]), self.rng.randint(1, 3)
        count = npages_for(ring_len)
        first = RING_GFN + 4 * self.rng.randrange(5)
        for ram in self.both(domid):
            REGISTER_RING.pack_into(ram, ARGS, port, partner, 0, ring_len)
            struct.pack_into(f"<{count}Q", ram, GFNS, *range(first, first + count))
        self.op(domid, Op.REGISTER_RING, ARGS, GFNS, count, self.rng.randrange(2))

    def unregister(self, domid: int) -> None:
        partner, port = self.rng.choice([DOMID_ANY, self.any_domid()]), self.rng.randint(1, 3)
        for ram in self.both(domid):
            UNREGISTER_RING.pack_into(ram, ARGS, port, partner, 0)
        self.op(domid, Op.UNREGISTER_RING, ARGS)

    def send(self, domid: int) -> None:
        rng = self.rng
        target, port, niov = self.any_domid(), rng.randint(1, 3), rng.randint(0, 3)
        fill = rng.randbytes(16)
        iovs = []
        for _ in range(niov):
            size = rng.choice([0, 1, 16, 50, 5000, 0x01000000, 0xFFFFE0])
            va = rng.choice([DATA, DATA + 100, NPAGES * PAGE_SIZE - 20, 46 * PAGE_SIZE - 10, 1 << 40])
            iovs.append((va, size, int(rng.random() < 0.05)))
        for ram in self.both(domid):
            SEND_ADDR.pack_into(ram, ARGS, rng.getrandbits(0) + 5, DOMID_ANY, 0, port, target, 0)
            ram[DATA : DATA + 16] = fill
            for index, iov in enumerate(iovs):
                IOV.pack_into(ram, IOVS + index * IOV.size, *iov)
        self.op(domid, Op.SENDV, ARGS, IOVS, niov, rng.randrange(3))

    def notify(self, domid: int) -> None:
        rng = self.rng
        entries = [
            (rng.randint(1, 3), self.any_domid(), 0, 0xFFFF, 0, rng.choice([0, 1, 60, 208, 4000, 9999]), 0xAAAA)
            for _ in range(rng.randint(0, 6))
        ]
        at = rng.choice([ARGS, 46 * PAGE_SIZE - 30])  # page 46 may not be writable, or not readable
        for ram in self.both(domid):
            RING_DATA.pack_into(ram, at, len(entries), 0)
            for index, entry in enumerate(entries):
                RING_DATA_ENT.pack_into(ram, at + RING_DATA.size + index * RING_DATA_ENT.size, *entry)
        self.op(domid, Op.NOTIFY, at)

    def consume(self, domid: int) -> None:
        argo = self.world.domain(domid).argo
        rings = [] if argo is None else [ring for ring in argo.in_order if ring.pages is not None]
        if not rings:
            return
        ring = self.rng.choice(rings)
        assert ring.pages is not None
        address = ring.pages.extents[0][0]
        rx = self.rng.choice([ring.tx, self.rng.randrange(ring.len + 16)])
        for ram in self.both(domid):
            struct.pack_into("<I", ram, address, rx)
        self.op(domid, Op.NOTIFY, 0)

    def page(self, domid: int) -> None:
        kind = self.rng.choice([PageType.RAM_RW, PageType.RAM_RO, PageType.PAGED])
        self.world.memory(domid).set_page(46, kind)
        domain = self.lab.node(domid).domains.lookup(domid)
        assert domain is not None
        domain.memory.set_page(46, kind)  # type: ignore[attr-defined]

    def reset(self, domid: int) -> None:
        self.world.argo.soft_reset(self.world.domain(domid))
        node = self.lab.node(domid)
        domain = node.domains.lookup(domid)
        assert domain is not None
        node.argo.soft_reset(domain)

    def kill(self, domid: int) -> None:
        self.dead.add(domid)
        self.world.kill(domid)
        self.lab.node(domid).kill(domid)
        if self.rng.random() < 0.5:
            ram = self.world.ram[domid]
            self.world.free(domid)
            self.world.ram[domid] = ram
            self.lab.node(domid).free(domid)


@settings(max_examples=150)
@given(st.integers(0, 1 << 32))
def test_good_links_make_no_difference(seed: int) -> None:
    """Results, memory of all guests and interrupts of a tree are those of one hypervisor, call by call."""
    twin = Twin(random.Random(seed))
    for _ in range(60):
        twin.step()


# -- bad links ----


class Guest:
    """A guest with one vCPU: while a call is pending it makes no other."""

    def __init__(self, storm: Storm, domid: int) -> None:
        self.storm = storm
        self.domid = domid
        self.node = storm.lab.node(domid)
        self.alive = True
        self.pending: tuple[str, object, int] | None = None  # (what, token, message number)
        self.blocked: int | None = None  # whose ring it waits for
        self.ring = 0  # length of its wildcard ring, 0: none
        self.rings = 0  # how many it has had
        self.woken = False  # since its latest call began: a driver that is told -EAGAIN after that does not wait
        self.asked_of = 0  # which ring of its target the latest call found

    @property
    def ram(self) -> bytearray:
        return self.node.ram[self.domid]

    def op(self, cmd: int, *args: int, what: str = "", number: int = 0) -> int:
        domain = self.node.domains.lookup(self.domid)
        assert domain is not None
        token = object()
        a1, a2, a3, a4 = (*args, 0, 0, 0, 0)[:4]
        ret = self.node.argo.op(domain, cmd, a1, a2, a3, a4, token)
        if ret is PENDING:
            self.pending = what, token, number
        return ret

    def poll(self) -> None:
        """See whether the pending call has ended."""
        if self.pending is None or self.pending[1] not in self.node.completed:
            return
        what, token, number = self.pending
        ret = self.node.completed.pop(token)
        self.pending = None
        if what == "send":
            self.storm.sent(self, number, ret)
        else:
            assert ret in (0, REFUSED, UNKNOWN), ret


PORT: Final = 7


class Storm:
    """A tree whose links lose, delay and repeat, and guests that do what they like.

    The model: what was executed is seen in the rings at the moment in which it is written.  A message is in
    `delivered` once for each time it was written; `results` is what its sender was told.
    """

    def __init__(self, rng: random.Random, posted: bool = False) -> None:
        self.rng = rng
        paths = random_tree(rng)

        def options(found: LevelOptions) -> LevelOptions:
            return replace(found, posted=frozenset(paths), posted_credit=4) if posted else found

        self.lab = Lab(paths, guests=settle_guests(rng, paths, rng.randint(2, 5)), held=True, options=options)
        self.links = [path for path in paths if len(path) > 1 or len([p for p in paths if len(p) == 1]) > 1]
        self.down: set[Path] = set()
        self.guests = {domid: Guest(self, domid) for domid in self.lab.guests.values()}
        for (start, _), wire in self.lab.wires.items():
            wire.room = rng.choice([None, None, 2, 4]) if start else None  # the fabric refuses nothing
        self.actions = [
            self.send, self.consume, self.notify, self.register, self.unregister, self.reset, self.kill,
        ]  # fmt: skip
        self.weights = [30, 8, 4, 4, 1, 0.5, 0.3]
        self.results: dict[int, int] = {}
        self.delivered: Counter[int] = Counter()
        self.order: dict[tuple[int, int], list[int]] = {}
        self.target: dict[int, int] = {}
        self.next_number = 1
        self.past: list[tuple[Wire, Envelope, bytes]] = []  # delivered on a last hop
        for node in self.lab.nodes.values():
            node.argo.on_payload_written = self.written
        for guest in self.guests.values():
            self.register(guest)

    # -- what guests do ----

    def register(self, guest: Guest) -> None:
        if guest.ring:
            return
        ring_len = self.rng.choice([112, 240])
        REGISTER_RING.pack_into(guest.ram, ARGS, PORT, DOMID_ANY, 0, ring_len)
        struct.pack_into("<Q", guest.ram, GFNS, RING_GFN)
        struct.pack_into("<II", guest.ram, RING_GFN * PAGE_SIZE, 0, 0)
        assert guest.op(Op.REGISTER_RING, ARGS, GFNS, 1, 0) == 0
        guest.ring = ring_len
        guest.rings += 1

    def unregister(self, guest: Guest) -> None:
        if guest.ring:
            UNREGISTER_RING.pack_into(guest.ram, ARGS, PORT, DOMID_ANY, 0)
            assert guest.op(Op.UNREGISTER_RING, ARGS) == 0
            self.ring_gone(guest)

    def ring_gone(self, guest: Guest) -> None:
        guest.ring = 0
        for other in self.guests.values():
            if other.blocked == guest.domid:
                other.blocked = None

    def send(self, guest: Guest) -> None:
        target = self.rng.choice([domid for domid in self.guests if domid != guest.domid])
        number, self.next_number = self.next_number, self.next_number + 1
        payload = struct.pack("<Q", number) + bytes(self.rng.choice([0, 20, 60]))
        SEND_ADDR.pack_into(guest.ram, ARGS, 1, DOMID_ANY, 0, PORT, target, 0)
        IOV.pack_into(guest.ram, IOVS, DATA, len(payload), 0)
        guest.ram[DATA : DATA + len(payload)] = payload
        self.target[number] = target
        guest.woken, guest.asked_of = False, self.guests[target].rings
        ret = guest.op(Op.SENDV, ARGS, IOVS, 1, 0, what="send", number=number)
        if ret is not PENDING:
            self.sent(guest, number, ret)

    def sent(self, guest: Guest, number: int, ret: int) -> None:
        """The sender has its result."""
        assert number not in self.results
        self.results[number] = ret
        assert ret >= 0 or ret in (-Errno.EAGAIN, -Errno.EMSGSIZE, -Errno.ESRCH, REFUSED, UNKNOWN), ret
        target = self.guests[self.target[number]]
        if ret == -Errno.EAGAIN and target.ring and target.rings == guest.asked_of and not guest.woken:
            guest.blocked = target.domid

    def notify(self, guest: Guest) -> None:
        others = [domid for domid in self.guests if domid != guest.domid]
        entries = [(PORT, self.rng.choice(others), 0, 0, 0, 0, 0) for _ in range(self.rng.randint(0, 4))]
        RING_DATA.pack_into(guest.ram, ARGS, len(entries), 0)
        for index, entry in enumerate(entries):
            RING_DATA_ENT.pack_into(guest.ram, ARGS + RING_DATA.size + index * RING_DATA_ENT.size, *entry)
        # space 0 disarms, where it is heard: the wake-up is then nobody's to expect
        guest.blocked = None
        guest.op(Op.NOTIFY, ARGS, what="notify")

    def consume(self, guest: Guest) -> None:
        """Read all and say so, as drivers do."""
        if guest.ring:
            Consumer(Window(guest.ram, RING_GFN * PAGE_SIZE, PAGE_SIZE), guest.ring).drain()
        assert guest.op(Op.NOTIFY, 0) == 0

    def kill(self, guest: Guest) -> None:
        if sum(other.alive for other in self.guests.values()) > 2:
            guest.alive, guest.blocked, guest.pending = False, None, None
            self.ring_gone(guest)
            guest.node.kill(guest.domid)

    def reset(self, guest: Guest) -> None:
        domain = guest.node.domains.lookup(guest.domid)
        assert domain is not None
        guest.node.argo.soft_reset(domain)
        guest.blocked = None
        self.ring_gone(guest)

    # -- what is seen ----

    def written(self, ring: Ring) -> None:
        """A message lies in a ring and is about to be published."""
        data = self.guests[ring.owner.domid].ram[RING_GFN * PAGE_SIZE + RING_HEADER_SIZE :]
        size, _, source, _, _ = MESSAGE_HEADER.unpack_from(data, ring.tx)
        at = (ring.tx + MESSAGE_HEADER.size) % ring.len
        payload = (bytes(data[at : ring.len]) + bytes(data[:at]))[: size - MESSAGE_HEADER.size]
        (number,) = struct.unpack_from("<Q", payload)
        self.delivered[number] += 1
        self.order.setdefault((source, ring.owner.domid), []).append(number)

    def look(self) -> None:
        """Completions and interrupts."""
        for node in self.lab.nodes.values():
            for domid, _ in node.virqs:
                self.guests[domid].blocked, self.guests[domid].woken = None, True
            node.virqs.clear()
        for guest in self.guests.values():
            guest.poll()

    # -- what links do ----

    def deliver(self) -> None:
        busy = self.lab.busy()
        if busy:
            wire = self.rng.choice(busy)
            envelope, payload = wire.queue[0]
            if wire.deliver is not lost:  # an epoch is known to whoever was met once
                self.past.append((wire, envelope, payload))
            self.lab.deliver(wire)

    def lose(self) -> None:
        path = self.rng.choice(self.links)
        if path not in self.down:
            self.down.add(path)
            self.lab.cut(path)

    def heal(self) -> None:
        if self.down:
            path = self.rng.choice(sorted(self.down))
            self.down.discard(path)
            self.lab.heal(path)

    def repeat(self) -> None:
        """What was delivered comes once more where it arrived, perhaps as of an older incarnation."""
        last = [(w, e, p) for w, e, p in self.past if self.arrives(w, e)]
        if not last:
            return
        wire, envelope, payload = self.rng.choice(last[-20:])
        if self.rng.random() < 0.3:
            envelope = envelope._replace(origin_epoch=0)
        wire.deliver(envelope, payload)

    def arrives(self, wire: Wire, envelope: Envelope) -> bool:
        """Whether that wire ends where the envelope is for."""
        end = next(b for (_, b), known in self.lab.wires.items() if known is wire)
        notice = envelope.kind == EnvelopeKind.RESULT and not envelope.op
        return bool(end) and not notice and end in (envelope.dst, envelope.dst[:-1])

    # -- the run ----

    def run(self, steps: int) -> None:
        rng = self.rng
        for _ in range(steps):
            if rng.random() < 0.45:
                idle = [guest for guest in self.guests.values() if guest.alive and guest.pending is None]
                if idle:
                    rng.choices(self.actions, self.weights)[0](rng.choice(idle))
            else:
                links = [self.deliver, self.lose, self.heal, self.repeat]
                rng.choices(links, [30, 1, 1.5, 2])[0]()
                if rng.random() < 0.1:
                    self.time(rng.choice([SECOND // 10, SECOND, 6 * SECOND]))
            self.look()
        self.finish()

    def time(self, ns: int) -> None:
        """Time passes; nothing is delivered meanwhile."""
        self.lab.now += ns
        for node in self.lab.nodes.values():
            node.level.on_timer(self.lab.now)

    def finish(self) -> None:
        """All links come back; everything that can end does."""
        while self.down:
            self.heal()
        for _ in range(60):
            self.lab.settle()
            self.look()
            self.time(SECOND // 4)
        for _ in range(60):
            self.look()
            waiting = [guest for guest in self.guests.values() if guest.blocked is not None or guest.pending]
            if not waiting and not any(map(self.open, self.lab.nodes.values())):
                break
            for guest in self.guests.values():
                if guest.alive and guest.pending is None:
                    self.consume(guest)
            self.lab.settle()
            self.time(SECOND)
            self.lab.settle()
            self.look()
        assert [guest.domid for guest in self.guests.values() if guest.pending] == [], "trapped for ever"
        for node in self.lab.nodes.values():
            assert not len(node.level.calls), [op.envelope for op in node.level.calls]

    def open(self, node: Node) -> int:
        return len(node.level.calls)

    def judge(self) -> None:
        """What was promised."""
        for number, times in self.delivered.items():
            assert times == 1, f"message {number} was delivered {times} times"
        for number, ret in self.results.items():
            if ret >= 0:
                assert self.delivered[number], f"message {number} was not delivered, its sender was told {ret}"
            elif ret != UNKNOWN:
                assert not self.delivered[number], f"message {number} was delivered, its sender was told {ret}"
        for numbers in self.order.values():
            assert numbers == sorted(numbers), "a message overtook another of the same sender"
        self.no_sleepers()

    def judge_posted(self) -> None:
        """What is left of it where nobody waits for an answer: what is lost is counted."""
        for number, times in self.delivered.items():
            assert times == 1, f"message {number} was delivered {times} times"
        for number, ret in self.results.items():
            if ret < 0 and ret != UNKNOWN:
                assert not self.delivered[number], f"message {number} was delivered, its sender was told {ret}"
        lost = [number for number, ret in self.results.items() if ret >= 0 and not self.delivered[number]]
        counted = sum(node.level.counters.posted_lost for node in self.lab.nodes.values())
        assert len(lost) == counted, f"{lost} were lost, {counted} counted"
        for numbers in self.order.values():
            assert numbers == sorted(numbers), "a message overtook another of the same sender"
        assert not any(node.level.far.held for node in self.lab.nodes.values())
        self.no_sleepers()

    def no_sleepers(self) -> None:
        asleep = [guest.domid for guest in self.guests.values() if guest.alive and guest.blocked is not None]
        assert asleep == [], "a wake-up was lost"


@settings(max_examples=250)
@given(st.integers(0, 1 << 32))
def test_bad_links(seed: int) -> None:
    """Never twice; what was confirmed arrived; what was refused did not; in order; no wake-up is lost."""
    storm = Storm(random.Random(seed))
    storm.run(300)
    storm.judge()


@settings(max_examples=250)
@given(st.integers(0, 1 << 32))
def test_bad_links_with_resets(seed: int) -> None:
    """The same with guests that are reset often: what they do afterwards never arrives before the reset."""
    storm = Storm(random.Random(seed))
    storm.weights[5] = 6
    storm.run(300)
    storm.judge()


@settings(max_examples=250)
@given(st.integers(0, 1 << 32))
def test_bad_posted_links(seed: int) -> None:
    """Posted messages are held while a ring is full, come in order and never twice; those that are lost are counted."""
    storm = Storm(random.Random(seed), posted=True)
    storm.run(300)
    storm.judge_posted()
