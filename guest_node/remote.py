"""A guest's end of an attachment to a hypervisor on another host.  Experimental, not upstream.

The guest has its RAM and its vCPU areas to itself.  `RemoteEnd` stands in for the hypervisor at the areas: it ships the
frames that are submitted there with the memory that they read, lays completions, list registers and posted interrupts
there when they arrive, and applies what the hypervisor wrote to RAM before.  Kernel, drivers and programs run
unchanged: they see the areas, windows, and bells of a local attachment.  Protocol: hmx/mirror.py.

No I/O and no clock: the owner moves messages and passes in the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from guest_node.kernel.argo import GuestMemoryView
from hmx import mirror
from hmx.attach import AttachError, Reply, Request, pack_request, unpack_reply
from hmx.footprints import frame_reads
from hmx.gic import MAX_LRS
from hmx.memory import PAGE_SIZE, Buffer, MappedMemory, Window
from hmx.mirror import Batch, Changes, Message, MessageKind, MirrorError, Part, Ranges, Section
from hmx.mirror_end import MirrorEnd
from hmx.mirror_lists import Listed
from hmx.shm import fence, load32, store32, words32
from hmx.trap import FRAME_SIZE, MAX_REGS, REGS_OFFSET, Arch, unpack_frame
from hmx.vcpu_area import AREA_SIZE, CQ_ENTRIES, CQ_OFFSET, SQ_ENTRIES, SQ_OFFSET, HypervisorSide, Post, Word

_M32: Final = 0xFFFF_FFFF
_NREGS: Final = 12  # offset in completions
_SLICE: Final = 64  # a buffer is not cut to pieces smaller than this


class MirrorWindow(Window):
    """A window whose stores travel when they are published."""

    __slots__ = ("_pending", "_published")

    def __init__(self, ram: bytearray, gpa: int, size: int, published: Callable[[Changes], None]) -> None:
        super().__init__(ram, gpa, size)
        self._pending = Changes()
        self._published = published

    def store32(self, offset: int, value: int) -> None:
        """Store the u32 at `offset`."""
        super().store32(offset, value)
        self._pending.word(self.gpa + offset)

    def write(self, offset: int, data: Buffer) -> None:
        """Copy `data` to `offset`."""
        super().write(offset, data)
        self._pending.data(self.gpa + offset, len(data))

    def publish(self) -> None:
        """Let all stores so far travel, before any later one."""
        super().publish()
        if self._pending:
            self._published(self._pending)


class _Group:
    """Frames that were submitted together, and what they read that has not yet left."""

    __slots__ = ("frames", "position", "reads", "vcpu")

    def __init__(self, vcpu: int, position: int, frames: bytes, reads: Ranges) -> None:
        self.vcpu = vcpu
        self.position = position
        self.frames = frames
        self.reads = deque(reads)


class _Stand:
    """The hypervisor's stand-in at one vCPU area."""

    def __init__(self, index: int, area: memoryview, arch: Arch) -> None:
        self.index = index
        self.side = HypervisorSide(area, arch)  # which leaves hv_asleep up for good: every submission rings
        self._arch = arch
        self._listed = Listed(area)
        self.rung = False
        self.coalesced = 0  # interrupts that came while the same one was not yet taken

    def collect(self, reader: MappedMemory) -> _Group | None:
        """The frames that were submitted since the last time."""
        side, count = self.side, self.side.submitted()
        if not count:
            return None
        position, reads, pieces = side.sq_head, Ranges(), []
        for _ in range(count):
            at = SQ_OFFSET + side.sq_head % SQ_ENTRIES * FRAME_SIZE
            frame = unpack_frame(side.buffer, at)
            pieces.append(bytes(side.buffer[at : at + REGS_OFFSET + 8 * len(frame.regs)]))
            for start, n in frame_reads(frame, self._arch, reader):
                reads.add(start, min(start + n, reader.size))
            side.sq_head = (side.sq_head + 1) & _M32
        return _Group(self.index, position, b"".join(pieces), reads)

    def bell(self, batch: Batch) -> bool:
        """Say what the guest has collected and what became of listed interrupts, if there is news or it rang."""
        if batch.left() < mirror.BELL.size + MAX_LRS * mirror.FATE.size:
            return False
        fates = [
            mirror.FATE.pack(fate.n, fate.pending | fate.active << 1 | fate.answered << 2, 0, fate.serial)
            for fate in self._listed.news()
        ]
        if self.rung or fates:  # a cq_head that moved can wait for the next frame
            head = load32(self.side.words, Word.CQ_HEAD >> 2)
            batch.add(Section.BELL, self.index, mirror.BELL.pack(head), *fates)
            self.rung = False
        return True

    def completions(self, body: memoryview) -> None:
        """Lay completions into the ring and show them."""
        side = self.side
        position, sq_head = mirror.DONE.unpack_from(body)
        if position != side.cq_tail:
            raise MirrorError("COMPLETIONS", f"position {position}; {side.cq_tail} is next")
        at = mirror.DONE.size
        while at < len(body):
            size = REGS_OFFSET + 8 * min(body[at + _NREGS], MAX_REGS) if at + REGS_OFFSET <= len(body) else len(body)
            if at + size > len(body) or not side.room():
                raise MirrorError("COMPLETIONS", f"{len(body) - at} bytes, room for {side.room()}")
            slot = CQ_OFFSET + side.cq_tail % CQ_ENTRIES * FRAME_SIZE
            side.buffer[slot : slot + size] = body[at : at + size]
            side.cq_tail = (side.cq_tail + 1) & _M32
            at += size
        fence()
        store32(side.words, Word.SQ_HEAD >> 2, sq_head)
        store32(side.words, Word.CQ_TAIL >> 2, side.cq_tail)

    def lists(self, body: memoryview) -> None:
        """Lay list registers into the area."""
        mask = mirror.LISTS.unpack_from(body)[0]
        if mask >> MAX_LRS or mirror.LISTS.size + 8 * mask.bit_count() != len(body):
            raise MirrorError("LISTS", f"registers {mask:#x} in {len(body)} bytes")
        registers = [n for n in range(MAX_LRS) if mask >> n & 1]
        for at, n in zip(range(mirror.LISTS.size, len(body), 8), registers, strict=True):
            self.coalesced += not self._listed.receive(n, int.from_bytes(body[at : at + 8], "little"))

    def posts(self, body: memoryview) -> None:
        """Post interrupts: those that the guest has not yet taken coalesce here."""
        for at in range(0, len(body), mirror.POST.size):
            entry = mirror.POST.unpack_from(body, at)[0]
            fresh = self.side.post(entry)
            self.coalesced += not fresh and entry >> 24 != Post.LR  # which only says: look; `lists` has counted


class RemoteEnd(MirrorEnd):
    """One attachment at the guest's end, made from the hypervisor's ATTACHED message.

    `send(message)`: hand it to the ordered lane; a message that is not taken is repeated later.  `on_rung(vcpu)`: the
    guest's loop is to look at a vCPU; call its bell from a turn of the loop, never from in here.  `on_dirty()`: there
    is something to ship that no bell announces: call :meth:`flush` soon.  `on_gone(reason)`: the domain is dead.
    """

    def __init__(self, answer: Message, send: Callable[[bytes], object], expected_arch: Arch | None = None) -> None:
        """AttachError: the answer is a refusal or makes no sense."""
        self.reply = _accepted(answer)
        self.arch = Arch(self.reply.arch) if self.reply.arch in set(Arch) else None
        if self.arch is None or (expected_arch is not None and self.arch is not expected_arch):
            raise AttachError(f"attached to a machine of architecture {self.reply.arch}")
        super().__init__(answer.epoch, send, lambda _reason: None)
        self.ram = bytearray(self.reply.memory)
        self.areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(self.reply.vcpus)]
        self.memory = GuestMemoryView(memoryview(self.ram), self.window)
        self.on_rung: Callable[[int], None] = lambda _vcpu: None
        self.on_dirty: Callable[[], None] = lambda: None
        self._view = memoryview(self.ram)
        self._words = words32(self.ram)
        self._reader = MappedMemory(self.ram)
        self._stands = [_Stand(index, area, self.arch) for index, area in enumerate(self.areas)]
        self._windows: deque[tuple[int, int]] = deque()
        self._changes = Changes()
        self._groups: deque[_Group] = deque()

    # -- what the guest does ----

    def window(self, gpa: int, size: int) -> Window:
        """A window on pages that the hypervisor uses too."""
        window = MirrorWindow(self.ram, gpa, size, self._published)
        self._windows.append((gpa, size))
        return window

    def _published(self, changes: Changes) -> None:
        self._changes.absorb(changes)
        self.on_dirty()

    def ring(self, vcpu: int) -> None:
        """The guest rings: ship what it submitted."""
        stand = self._stands[vcpu]
        stand.rung = True
        stand.side.repost()  # it has drained the ring of posted interrupts, if that is why
        self.flush()

    def settle(self) -> None:
        """The guest may have served listed interrupts, which no bell tells of."""
        if self.arch is Arch.AARCH64:
            self.flush()

    def flush(self) -> None:
        """Ship everything that is there, as far as what is under way allows."""
        if self.gone is None:
            for stand in self._stands:
                group = stand.collect(self._reader)
                if group is not None:
                    stand.rung = True
                    self._groups.append(group)
            super().flush()

    def _fill(self, batch: Batch) -> bool:
        """Move what there is into `batch`, published stores before frames.  True: that was all."""
        while self._windows:
            if batch.left() < mirror.WINDOW.size:
                return False
            batch.add(Section.WINDOW, 0, mirror.WINDOW.pack(*self._windows.popleft()))
        if not self._changes.take(batch, self._view, self._words):
            return False
        if not all(stand.bell(batch) for stand in self._stands):
            return False
        while self._groups:
            group = self._groups[0]
            if not self._fill_reads(batch, group) or batch.left() < mirror.POSITION.size + len(group.frames):
                return False
            batch.add(Section.FRAMES, group.vcpu, mirror.POSITION.pack(group.position), group.frames)
            self._groups.popleft()
        return True

    def _fill_reads(self, batch: Batch, group: _Group) -> bool:
        while group.reads:
            start, end = group.reads[0]
            n = min(end - start, batch.left() - mirror.AT.size)
            if n < min(end - start, _SLICE):
                return False
            batch.add(Section.READS, 0, mirror.AT.pack(start), self._view[start : start + n])
            if start + n < end:
                group.reads[0] = (start + n, end)
            else:
                group.reads.popleft()
        return True

    def coalesced(self, vcpu: int) -> int:
        """Interrupts that came while the same one was not yet taken: what a hypervisor nearby would have counted."""
        return self._stands[vcpu].coalesced

    # -- what the hypervisor says ----

    def _understand(self, message: Message) -> None:
        match message.kind:
            case MessageKind.ATTACHED | MessageKind.REFUSED:  # once more
                self.numbers.counters["stale"] += 1
            case MessageKind.GONE:
                self._end(bytes(message.body).decode(errors="replace"))
            case MessageKind.ATTACH:
                raise MirrorError("kind", "ATTACH from a hypervisor")
            case _ if self.numbers.accept(message):
                self._apply(mirror.parts(message, from_guest=False))

    def _apply(self, found: list[Part]) -> None:
        rung: dict[int, None] = {}
        for section, vcpu, body in found:
            match section:
                case Section.STORE:
                    start = mirror.AT.unpack_from(body)[0]
                    self._inside(start, len(body) - mirror.AT.size)
                    self._view[start : start + len(body) - mirror.AT.size] = body[mirror.AT.size :]
                case Section.WORDS:
                    fence()
                    for at in range(0, len(body), mirror.WORD.size):
                        address, value = mirror.WORD.unpack_from(body, at)
                        self._inside(address, 4)
                        if address % 4:
                            raise MirrorError("WORDS", f"{address:#x} is not the address of a word")
                        store32(self._words, address >> 2, value)
                case _:
                    self._to_area(section, self._stand(vcpu), body)
                    rung[vcpu] = None
        for vcpu in rung:
            if self._stands[vcpu].side.guest_sleeps():
                self.on_rung(vcpu)

    @staticmethod
    def _to_area(section: Section, stand: _Stand, body: memoryview) -> None:
        match section:
            case Section.COMPLETIONS:
                stand.completions(body)
            case Section.LISTS:
                stand.lists(body)
            case _:
                stand.posts(body)

    def _stand(self, vcpu: int) -> _Stand:
        if vcpu >= len(self._stands):
            raise MirrorError("vcpu", f"{vcpu}; the domain has {len(self._stands)}")
        return self._stands[vcpu]

    def _inside(self, start: int, n: int) -> None:
        if start + n > len(self.ram):
            raise MirrorError("STORE", f"{n} bytes at {start:#x}; the domain has {len(self.ram):#x}")

    # -- the link ----

    def lost(self, reason: str) -> None:
        """The owner knows that there is no hypervisor any more."""
        if self.gone is None:
            self._end(reason)


def request(name: str, token: bytes) -> bytes:
    """The message by which guest `name` asks to be attached; to be repeated until it is answered."""
    return mirror.pack(MessageKind.ATTACH, 0, pack_request(Request(name, token)))


def _accepted(answer: Message) -> Reply:
    if answer.kind not in (MessageKind.ATTACHED, MessageKind.REFUSED):
        raise AttachError(f"a message of kind {answer.kind.name} instead of an answer")
    reply = unpack_reply(bytes(answer.body))
    if reply.refused or answer.kind is MessageKind.REFUSED:
        raise AttachError(f"the hypervisor refused to attach: {reply.text}")
    if not reply.vcpus or reply.memory < 2 * PAGE_SIZE or reply.memory % PAGE_SIZE:
        raise AttachError(f"attached with {reply.vcpus} vCPUs and {reply.memory} bytes of memory")
    return reply
