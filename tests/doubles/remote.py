"""Remote guests in one process: both ends of the mirror protocol, with a lane between them that a test disturbs."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from guest_node.kernel.argo import GuestMemoryView
from guest_node.remote import MirrorWindow, RemoteEnd
from guest_node.remote_bells import RemoteAttachment, attachment
from hmx import mirror
from hmx.attach import Reply
from hmx.footprints import frame_reads
from hmx.memory import GuestMemory, MappedMemory, Window
from hmx.mirror import Changes, MessageKind, Ranges
from hmx.shm import words32
from hmx.trap import FRAME_SIZE, Arch, unpack_frame
from hmx.vcpu_area import SQ_ENTRIES, SQ_OFFSET
from hv_node.hvm import Vcpu
from hv_node.mirror_memory import MirrorMemory
from hv_node.remote_guest import RemoteGuest
from topologies.inline.machine import InlineMachine


class Lane:
    """An ordered lane in both directions; nothing moves until somebody delivers."""

    def __init__(self) -> None:
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.to_hypervisor: Callable[[bytes], None] = lambda _message: None
        self.to_guest: Callable[[bytes], None] = lambda _message: None
        self.on_sent: Callable[[], None] = lambda: None

    def send_up(self, message: bytes) -> None:
        self.up.append(message)
        self.on_sent()

    def send_down(self, message: bytes) -> None:
        self.down.append(message)
        self.on_sent()

    def deliver(self, queue: deque[bytes]) -> bool:
        if not queue:
            return False
        message = queue.popleft()
        (self.to_hypervisor if queue is self.up else self.to_guest)(message)
        return True

    def queues(self) -> list[deque[bytes]]:
        return [self.up, self.down]

    def settle(self) -> None:
        while self.deliver(self.up) or self.deliver(self.down):
            pass


class RemoteMemory:
    """InlineMemory whose hypervisor's half belongs to a RemoteGuest."""

    def __init__(self, size: int) -> None:
        self.mirror = MirrorMemory(size)
        self.hypervisor: GuestMemory = self.mirror
        self.guest: GuestMemoryView
        self.flush: Callable[[], None] = lambda: None

    def before_run(self, vcpu: Vcpu) -> None: ...

    def after_run(self) -> None:
        self.flush()


class RemoteDomain:
    """A domain of an InlineMachine with both ends of its attachment.

    In a loop (`delays`): every message arrives after a while drawn from the generator, in order.  Without, the test
    delivers.
    """

    def __init__(
        self, machine: InlineMachine, domid: int, size: int, vcpus: int = 1, arch: Arch = Arch.X86_64,
        chance: random.Random | None = None, together: list[RemoteDomain] | None = None,
    ) -> None:  # fmt: skip
        """`together`: domains whose lanes move only all at once, as if what a call does to others came before its
        answer; this one is appended.
        """
        self.lane = Lane()
        self._together = [] if together is None else together
        self._together.append(self)
        self.reasons: list[str] = []
        memory = self.memory = RemoteMemory(size)
        areas, bells = machine.create_domain(domid, memory, vcpus, name=f"g{domid}")
        reply = Reply(False, domid, vcpus, arch, size, "")
        self.remote = RemoteGuest(
            7, reply, memory.mirror, areas, lambda vcpu: bells[vcpu].ring(), self.lane.send_down,
            self.reasons.append,
        )  # fmt: skip
        for bell in bells:
            bell.on_bell(self.remote.flush)
        memory.flush = self.remote.flush
        self.end = RemoteEnd(mirror.unpack(self.lane.down.popleft()), self.lane.send_up)
        memory.guest = self.end.memory
        self.lane.to_hypervisor, self.lane.to_guest = self.remote.receive, self.end.receive
        self._machine = machine
        self._chance = chance
        if chance is not None:
            self.lane.on_sent = self._sent
            self.end.on_dirty = self.dirty

    def attach(self) -> RemoteAttachment:
        loop = asyncio.get_running_loop()
        return attachment(self.end, lambda function: loop.call_soon(function), self._wait)

    def dirty(self) -> None:
        if len(self._together) > 1:
            self.end.flush()
        else:
            asyncio.get_running_loop().call_soon(self.end.flush)

    def _sent(self) -> None:
        assert self._chance is not None
        asyncio.get_running_loop().call_later(self._chance.random() * 0.01, self._one)

    def _one(self) -> None:
        """As many calls as messages, so that none stays; each delivers the oldest of a direction."""
        assert self._chance is not None
        if len(self._together) > 1:
            queues = [(domain.lane, queue) for domain in self._together for queue in domain.lane.queues()]
            while any(lane.deliver(queue) for lane, queue in queues):
                pass
            return
        first, second = self._chance.sample(self.lane.queues(), 2)
        if not self.lane.deliver(first):
            self.lane.deliver(second)

    def _wait(self, _seconds: float) -> None:
        if self._chance is not None and self._chance.random() < 0.3:
            self._one()
        self._machine.maybe_turn()


class SharedAreas:
    """InlineMemory by the real memories and messages, while the vCPU areas stay shared, for who makes his own."""

    def __init__(self, size: int, near: bytearray | None = None) -> None:
        self.near = bytearray(size) if near is None else near
        self.guest = GuestMemoryView(memoryview(self.near), self._window)
        self.hypervisor = MirrorMemory(size)
        self._reader = MappedMemory(self.near)
        self._changes = Changes()
        self.shipped_bytes = 0

    def _window(self, gpa: int, size: int) -> Window:
        self.hypervisor.open(gpa, size)
        return MirrorWindow(self.near, gpa, size, self.published)

    def published(self, changes: Changes) -> None:
        self._changes.absorb(changes)
        for part in _over_the_lane(self._changes, self.near, from_guest=True):
            if part.section is mirror.Section.STORE:
                self.hypervisor.store(mirror.AT.unpack_from(part.body)[0], part.body[mirror.AT.size :])
            else:
                for address, value in mirror.WORD.iter_unpack(part.body):
                    self.hypervisor.store_word(address, value)

    def before_run(self, vcpu: Vcpu) -> None:
        area = vcpu.area
        reads = Ranges()
        for waiting in range(area.submitted()):
            at = SQ_OFFSET + (area.sq_head + waiting) % SQ_ENTRIES * FRAME_SIZE
            for start, n in frame_reads(unpack_frame(area.buffer, at), Arch.X86_64, self._reader):
                reads.add(start, min(start + n, len(self.near)))
        self.show(reads)

    def show(self, reads: Ranges) -> None:
        self.hypervisor.hide("frames")
        for start, end in reads:
            self.hypervisor.take(start, self.near[start:end])
            self.shipped_bytes += end - start
        self.hypervisor.show("frames", reads)

    def after_run(self) -> None:
        for part in _over_the_lane(self.hypervisor.changes, self.hypervisor._view, from_guest=False):
            if part.section is mirror.Section.STORE:
                at = mirror.AT.unpack_from(part.body)[0]
                self.near[at : at + len(part.body) - 8] = part.body[mirror.AT.size :]
            else:
                for address, value in mirror.WORD.iter_unpack(part.body):
                    self.near[address : address + 4] = value.to_bytes(4, "little")


def _over_the_lane(changes: Changes, memory: bytearray | memoryview, from_guest: bool) -> list[mirror.Part]:
    """Changes as the messages that carry them say them."""
    found: list[mirror.Part] = []
    done = not changes
    while not done:
        batch = mirror.Batch(mirror.MAX_MESSAGE)
        done = changes.take(batch, memoryview(memory), words32(memory))
        message = mirror.pack(MessageKind.BATCH, 1, batch.body(), sections=batch.count)
        found += mirror.parts(mirror.unpack(message), from_guest)
    return found


__all__ = ["Lane", "RemoteDomain", "RemoteMemory", "SharedAreas"]
