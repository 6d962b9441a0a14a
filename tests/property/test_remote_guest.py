"""A remote guest is a guest: the same operations give the same results, memory and interrupts as for one nearby.

Random histories of two guests (register, unregister, send, notify, take), executed on a hypervisor whose guests are
near and on one whose guests are on another host, over lanes that deliver when hypothesis likes, lose what is under way
with a session, and repeat.  Rules: the project's mirror protocol (docs/remote-guests.md); Xen common/argo.c.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guest_node.remote import RemoteEnd
from hmx import xen
from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.argo.consumer import Consumer, RingCorrupt
from hmx.attach import Reply
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hmx.mirror import unpack
from hmx.trap import Arch, Kind, int32
from hmx.vcpu_area import AREA_SIZE, GuestSide
from hv_node.argo.options import parse_options
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.mirror_memory import MirrorMemory
from hv_node.remote_guest import RemoteGuest
from hv_node.xsm import xsm_by_name
from tests.doubles.remote import Lane

PAGES = 32
SIZE = PAGES * PAGE_SIZE
RING = 16 * PAGE_SIZE
ARGUMENTS, MORE, PAYLOAD = 1 * PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE
LENGTHS = (128, 4032, 8128)


class Side:
    """One guest: its RAM, windows and vCPU, near its hypervisor or far from it."""

    def __init__(self, core: Hypervisor, domid: int, remote: bool, choose: Callable[[int], int]) -> None:
        self.core = core
        self.domid = domid
        self.choose = choose
        self.consumers: dict[int, Consumer] = {}
        self.reasons: list[str] = []
        area = memoryview(bytearray(AREA_SIZE))
        self.lane: Lane | None = None
        if remote:
            self.lane = lane = Lane()
            mirrored = MirrorMemory(SIZE)
            self.vcpu = core.create_domain(domid, mirrored, [area]).vcpus[0]
            reply = Reply(False, domid, 1, Arch.X86_64, SIZE, "")
            self.far = RemoteGuest(
                5, reply, mirrored, [area], lambda _vcpu: None, lane.send_down, self.reasons.append
            )
            self.end = RemoteEnd(unpack(lane.down.popleft()), lane.send_up)
            lane.to_hypervisor, lane.to_guest = self.far.receive, self.end.receive
            self.ram, self.window, self.area = self.end.ram, self.end.window, GuestSide(self.end.areas[0])
        else:
            self.ram = bytearray(SIZE)
            self.vcpu = core.create_domain(domid, MappedMemory(self.ram), [area]).vcpus[0]
            self.window = lambda gpa, size: Window(self.ram, gpa, size)
            self.area = GuestSide(area)

    # -- the lane ----

    def move(self, cuts: bool) -> None:
        """Something happens on the lane: a message arrives, or a session ends with what was under way."""
        if self.lane is None:
            return
        match self.choose(8 if cuts else 6):
            case 0 | 1 | 2:
                self.lane.deliver(self.lane.up) or self.lane.deliver(self.lane.down)
            case 3 | 4 | 5:
                self.lane.deliver(self.lane.down) or self.lane.deliver(self.lane.up)
            case 6:  # lost on one way, and nobody is told before the timers are
                queue = self.lane.queues()[self.choose(2)]
                if queue:
                    queue.popleft()
            case _:
                self.lane.up.clear()
                self.lane.down.clear()
                self.end.link_up()
                self.far.link_up()
        self.work()

    def work(self) -> None:
        while self.core.run(self.vcpu):
            pass

    def settle(self, others: list[Side]) -> None:
        """Until nothing moves any more; what was lost is repeated in time."""
        for round_ in range(4):
            for side in others:
                if side.lane is None:
                    side.work()
                    continue
                now = (round_ + 1) * 2_000_000_000
                side.end.tick(now)
                side.far.tick(now)
                while side.lane.deliver(side.lane.up) or side.lane.deliver(side.lane.down):
                    side.work()
                    side.far.flush()

    # -- calls ----

    def call(self, number: int, cmd: int, *arguments: int) -> int:
        a = (*arguments, 0, 0, 0, 0)
        self.area.submit(Kind.VMCALL, (number, 0, 0, a[1], a[0], cmd, a[3], 0, a[2]))
        self.area.publish()
        if self.lane is not None:
            self.end.ring(0)
        for turn in range(400):
            self.work()
            if self.lane is not None:
                self.far.flush()
                self.move(cuts=turn < 60)
                if turn % 40 == 39:
                    self.end.tick(turn * 10**9)
                    self.far.tick(turn * 10**9)
            if self.area.completed():
                return int32(self.area.collect().regs[0])
        raise AssertionError(f"the vCPU stays trapped for ever: {self.reasons}")

    def argo(self, cmd: int, *arguments: int) -> int:
        return self.call(xen.Hypercall.ARGO_OP, cmd, *arguments)

    def boot(self) -> None:
        self.page = self.window(3 * PAGE_SIZE, PAGE_SIZE)
        self.page.write(0, bytes(PAGE_SIZE))
        self.page.publish()
        xen.ADD_TO_PHYSMAP.pack_into(self.ram, ARGUMENTS, xen.DOMID_SELF, 0, 0, 0, 3)
        assert self.call(xen.Hypercall.MEMORY_OP, xen.XENMEM_ADD_TO_PHYSMAP, ARGUMENTS) == 0
        xen.BIND_VIRQ.pack_into(self.ram, ARGUMENTS, abi.VIRQ_ARGO, 0, 0)
        assert self.call(xen.Hypercall.EVENT_CHANNEL_OP, xen.EvtchnOp.BIND_VIRQ, ARGUMENTS) == 0

    def register(self, index: int, partner: int, length: int) -> int:
        start = RING + index * 3 * PAGE_SIZE
        count = -(-(length + 64) // PAGE_SIZE)
        if index not in self.consumers:
            window = self.window(start, count * PAGE_SIZE)
            window.write(0, bytes(count * PAGE_SIZE))
            window.publish()
        abi.REGISTER_RING.pack_into(self.ram, ARGUMENTS, 9 + index, partner, 0, length)
        for at in range(count):
            abi.GFN.pack_into(self.ram, MORE + 8 * at, start // PAGE_SIZE + at)
        ret = self.argo(Op.REGISTER_RING, ARGUMENTS, MORE, count, 0)
        if ret == 0 and index not in self.consumers:
            self.consumers[index] = Consumer(window, length)
        return ret

    def unregister(self, index: int, partner: int) -> int:
        abi.UNREGISTER_RING.pack_into(self.ram, ARGUMENTS, 9 + index, partner, 0)
        ret = self.argo(Op.UNREGISTER_RING, ARGUMENTS, 0, 0, 0)
        if ret == 0:
            self.consumers.pop(index, None)
        return ret

    def send(self, domid: int, index: int, size: int, fill: int, lie: int) -> int:
        data = bytes((fill + at) & 0xFF for at in range(min(size, 4 * PAGE_SIZE)))
        self.ram[PAYLOAD : PAYLOAD + len(data)] = data
        abi.SEND_ADDR.pack_into(self.ram, ARGUMENTS, 7, DOMID_ANY, 0, 9 + index, domid, 0)
        half = len(data) // 2
        abi.IOV_ARRAYS[2].pack_into(
            self.ram, ARGUMENTS + 16, PAYLOAD, half, 0, (PAYLOAD + half, SIZE - 8)[lie], len(data) - half, 0
        )
        return self.argo(Op.SENDV, ARGUMENTS, ARGUMENTS + 16, 2, 77)

    def notify(self, asked: list[tuple[int, int, int]]) -> tuple[int, bytes]:
        abi.RING_DATA.pack_into(self.ram, ARGUMENTS, len(asked), 0)
        for at, (domid, index, space) in enumerate(asked):
            abi.RING_DATA_ENT.pack_into(self.ram, ARGUMENTS + 8 + 20 * at, 9 + index, domid, 0, 0, 0, space, 0)
        ret = self.argo(Op.NOTIFY, ARGUMENTS, 0, 0, 0)
        return ret, bytes(self.ram[ARGUMENTS : ARGUMENTS + 8 + 20 * len(asked)])

    def take(self, index: int) -> Any:
        consumer = self.consumers.get(index)
        if consumer is None:
            return None
        try:
            return consumer.receive()
        except RingCorrupt as error:
            return str(error)

    def posts(self) -> set[int]:
        return {self.area.take_post() for _ in range(self.area.posted())}


OPERATION = st.one_of(
    st.tuples(st.just("register"), st.integers(0, 2), st.sampled_from((1, 2, DOMID_ANY)), st.sampled_from(LENGTHS)),
    st.tuples(st.just("unregister"), st.integers(0, 2), st.sampled_from((1, 2, DOMID_ANY))),
    st.tuples(
        st.just("send"), st.sampled_from((1, 2, 2, 3)), st.sampled_from((0, 0, 0, 1, 2)),
        st.sampled_from((0, 1, 40, 1000, 5000)), st.integers(0, 255), st.sampled_from((0, 0, 0, 1)),
    ),
    st.tuples(
        st.just("notify"),
        st.lists(
            st.tuples(st.sampled_from((1, 2, 3)), st.integers(0, 2), st.sampled_from((0, 60, 3000, 99999))), max_size=3
        ),
    ),
    st.tuples(st.just("take"), st.integers(0, 2)),
)  # fmt: skip


def history(
    operations: list[tuple[int, Any]], remote: bool, choose: Callable[[int], int]
) -> tuple[list[Any], list[bytes], Any]:
    """Results, interrupts seen by each guest after each operation, and every guest's memory at the end."""
    options, _ = parse_options("on,mac-permissive")
    core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", options, xsm_by_name("dummy"))
    sides = [Side(core, domid, remote, choose) for domid in (1, 2)]
    for side in sides:
        side.boot()
    found: list[Any] = [side.register(0, DOMID_ANY, length) for side, length in zip(sides, LENGTHS[:2], strict=True)]
    for who, (name, *arguments) in operations:
        found.append(getattr(sides[who], name)(*arguments))
        sides[0].settle(sides)
        found.append([side.posts() for side in sides])
    sides[0].settle(sides)
    counters = core.counters()
    for side in sides:
        assert side.reasons == []
        if remote:
            assert bytes(side.far.memory._view[RING:]) == bytes(side.ram[RING:]), "rings are the same at both ends"
            assert not side.end.numbers.outstanding and not side.far.numbers.outstanding
    names = ("hypercalls", "argo_ops", "messages", "bytes_copied", "interrupts_raised")
    return found, [bytes(side.ram) for side in sides], {
        domain: {name: counted[name] for name in names} for domain, counted in counters.items()
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), OPERATION), min_size=4, max_size=25), st.integers(0, 1 << 32))
def test_remote_is_like_local(operations: list[tuple[int, Any]], seed: int) -> None:
    """Results, interrupts, memory and counters are equal, whatever the lane does."""
    near = history(operations, False, lambda n: 0)
    far = history(operations, True, random.Random(seed).randrange)
    assert far[0] == near[0]
    assert far[1] == near[1]
    assert far[2] == near[2]
