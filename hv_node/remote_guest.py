"""A guest on another host, at its hypervisor's end of the mirror protocol.  Experimental, not upstream.

The domain's memory is a mirror (hv_node/mirror_memory.py).  `RemoteGuest` stands in for the guest at the private vCPU
areas: it lays the frames there that arrive, takes completions, list registers and posted interrupts, and ships them
behind the data that they announce.  Protocol: hmx/mirror.py.

Nothing that a guest sends is believed before it is checked, and what is wrong costs the guest its domain, nobody else
anything.  No I/O and no clock: the owner moves messages and passes in the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hmx import mirror
from hmx.attach import Reply, Request, pack_reply, unpack_request
from hmx.gic import MAX_LRS
from hmx.memory import FIRMWARE_BASE, Buffer
from hmx.mirror import Batch, Message, MessageKind, MirrorError, Part, Ranges, Section
from hmx.mirror_end import MirrorEnd
from hmx.mirror_lists import Fate, Lister
from hmx.shm import fence, load32, store32, words32
from hmx.trap import FRAME_SIZE, MAX_REGS, REGS_OFFSET, Arch, FrameFlag
from hmx.vcpu_area import AREA_SIZE, CQ_ENTRIES, CQ_OFFSET, POST_ENTRIES, POSTS_OFFSET, SQ_ENTRIES, SQ_OFFSET, Word
from hv_node.config import DomainConfig
from hv_node.mirror_memory import MAX_SHOWN, MirrorMemory

_M32: Final = 0xFFFF_FFFF
_NREGS: Final = 12  # offset in frames and completions
_FLAGS: Final = 6  # offset in frames
_ASYNC: Final = int(FrameFlag.ASYNC)


class Stand:
    """The guest's stand-in at one private vCPU area."""

    def __init__(self, index: int, area: memoryview) -> None:
        self.index = index
        self._area = area
        self._words = words32(area)
        self._lister = Lister(area)
        self.submitted = 0  # frames laid into the submission ring
        self.completed = 0  # completions shipped
        self.consumed = 0  # completions that the guest has collected
        self._posts = 0
        self._groups: deque[tuple[int, bool]] = deque()  # position behind each group of frames; any of them ASYNC
        store32(self._words, Word.GUEST_ASLEEP >> 2, 1)  # always: then the core names us whenever there is anything

    def frames(self, position: int, data: memoryview) -> int:
        """Lay frames into the submission ring, the first one as number `position`.  The number behind the last."""
        if position != self.submitted & _M32:
            raise MirrorError("FRAMES", f"position {position} on vCPU {self.index}; {self.submitted & _M32} is next")
        at = count = 0
        is_async = False
        while at < len(data):
            if len(data) - at < REGS_OFFSET:
                raise MirrorError("FRAMES", f"{len(data) - at} bytes are left, less than a frame's head")
            size = REGS_OFFSET + 8 * min(data[at + _NREGS], MAX_REGS)
            if size > len(data) - at:
                raise MirrorError("FRAMES", f"a frame of {size} bytes, {len(data) - at} are left")
            if self.submitted + count - self.consumed >= SQ_ENTRIES:
                raise MirrorError("FRAMES", f"more than {SQ_ENTRIES} under way on vCPU {self.index}")
            slot = SQ_OFFSET + (self.submitted + count) % SQ_ENTRIES * FRAME_SIZE
            self._area[slot : slot + size] = data[at : at + size]
            is_async |= bool(data[at + _FLAGS] & _ASYNC)
            at += size
            count += 1
        self.submitted += count
        self._groups.append((self.submitted, is_async))
        fence()
        store32(self._words, Word.SQ_TAIL >> 2, self.submitted & _M32)
        return self.submitted

    def bell(self, cq_head: int, fates: memoryview) -> None:
        """The guest rang: what it has collected, and what became of listed interrupts."""
        step = (cq_head - self.consumed) & _M32
        if step > self.completed - self.consumed:
            raise MirrorError("BELL", f"cq_head {cq_head}; {self.completed & _M32} is where completions end")
        self.consumed += step
        store32(self._words, Word.CQ_HEAD >> 2, cq_head)
        for n, flags, zero, serial in mirror.FATE.iter_unpack(fates):
            if n >= MAX_LRS or flags & ~7 or zero:
                raise MirrorError("BELL", f"list register {n}, flags {flags:#x}, {zero:#x} instead of zero")
            self._lister.told(Fate(n, serial, bool(flags & 1), bool(flags & 2), bool(flags & 4)))

    def ship(self, batch: Batch) -> bool:
        """Move what the hypervisor wrote to the area into `batch`.  True: that was all."""
        return self._ship_completions(batch) and self._ship_lists(batch) and self._ship_posts(batch)

    def _ship_completions(self, batch: Batch) -> bool:
        count = (load32(self._words, Word.CQ_TAIL >> 2) - self.completed) & _M32
        if not count:
            return True
        pieces = []
        for number in range(self.completed, self.completed + count):
            at = CQ_OFFSET + number % CQ_ENTRIES * FRAME_SIZE
            pieces.append(bytes(self._area[at : at + REGS_OFFSET + 8 * min(self._area[at + _NREGS], MAX_REGS)]))
        if sum(map(len, pieces)) + mirror.DONE.size > batch.left():
            return False
        head = mirror.DONE.pack(self.completed & _M32, load32(self._words, Word.SQ_HEAD >> 2))
        batch.add(Section.COMPLETIONS, self.index, head, *pieces)
        self.completed += count
        return True

    def _ship_lists(self, batch: Batch) -> bool:
        changed = self._lister.changed()
        if not changed:
            return True
        if batch.left() < mirror.LISTS.size + 8 * len(changed):
            return False
        mask = mirror.LISTS.pack(sum(1 << n for n in changed))
        batch.add(Section.LISTS, self.index, mask, *(self._lister.ship(n).to_bytes(8, "little") for n in changed))
        return True

    def _ship_posts(self, batch: Batch) -> bool:
        """What is shipped is consumed here: from now on the guest's end coalesces, which knows what the guest saw."""
        count = (load32(self._words, Word.POST_TAIL >> 2) - self._posts) & _M32
        taken = min(count, batch.left() // mirror.POST.size)
        if taken > 0:
            base = POSTS_OFFSET >> 2
            entries = [load32(self._words, base + (self._posts + n) % POST_ENTRIES) for n in range(taken)]
            batch.add(Section.POSTS, self.index, *map(mirror.POST.pack, entries))
            self._posts += taken
            store32(self._words, Word.POST_HEAD >> 2, self._posts & _M32)
        return taken == count

    def backlog(self) -> bool:
        """Whether entries wait that found the ring full: the hypervisor is to look at this vCPU again."""
        return load32(self._words, Word.POST_MORE >> 2) != 0

    def finished(self) -> list[int]:
        """Groups of frames, by the position behind them, of which every completion was shipped."""
        done = []
        while self._groups and self.completed >= self._groups[0][0]:
            # Answers to ASYNC frames come out of order: then only a count of all tells.
            if any(is_async for _, is_async in self._groups) and self.completed != self.submitted:
                break
            done.append(self._groups.popleft()[0])
        return done


class RemoteGuest(MirrorEnd):
    """The hypervisor's end of one attachment.

    `wake(vcpu)`: frames of it may wait, or it rang.  `send(message)`: hand it to the ordered lane; a message that is
    not taken is repeated later.  `on_gone(reason)`: the guest left, or said what it must not say: its domain is to be
    killed.
    """

    def __init__(
        self,
        epoch: int,
        reply: Reply,
        memory: MirrorMemory,
        areas: Sequence[memoryview],
        wake: Callable[[int], None],
        send: Callable[[bytes], object],
        on_gone: Callable[[str], None],
    ) -> None:
        super().__init__(epoch, send, on_gone)
        self.memory = memory
        self.stands = [Stand(index, area) for index, area in enumerate(areas)]
        self._reply = mirror.pack(MessageKind.ATTACHED, epoch, pack_reply(reply))
        self._wake = wake
        self._coming: list[tuple[int, int]] = []  # READS of frames that have not yet come
        self._coming_set = Ranges()
        self._send(self._reply)

    def attached_again(self) -> None:
        """The guest asks once more: it did not hear the answer."""
        if self.gone is None:
            self._send(self._reply)

    def _understand(self, message: Message) -> None:
        match message.kind:
            case MessageKind.GONE:
                self._end("it left")
            case MessageKind.BATCH | MessageKind.ACK:
                if self.numbers.accept(message):
                    self._apply(mirror.parts(message, from_guest=True))
            case _:
                raise MirrorError("kind", f"{message.kind.name} is not for a guest that is attached")

    def _fill(self, batch: Batch) -> bool:
        # Never completions or interrupts before the data and pointers that they tell of.
        return self.memory.ship(batch) and all(stand.ship(batch) for stand in self.stands)

    def _sent(self) -> None:
        for stand in self.stands:
            for group in stand.finished():
                self.memory.hide((stand.index, group))
            if stand.backlog():
                self._wake(stand.index)

    # -- sections ----

    def _apply(self, found: Sequence[Part]) -> None:
        rung: dict[int, None] = {}
        stored = Ranges()
        for section, vcpu, body in found:
            match section:
                case Section.WINDOW:
                    for at in range(0, len(body), mirror.WINDOW.size):
                        self.memory.open(*mirror.WINDOW.unpack_from(body, at))
                case Section.STORE:
                    start = mirror.AT.unpack_from(body)[0]
                    _disjoint(section, stored, start, len(body) - mirror.AT.size)
                    self.memory.store(start, body[mirror.AT.size :])
                case Section.WORDS:
                    for at in range(0, len(body), mirror.WORD.size):
                        self.memory.store_word(*mirror.WORD.unpack_from(body, at))
                case Section.READS:
                    self._show(body)
                case Section.FRAMES:
                    group = self._stand(vcpu).frames(mirror.POSITION.unpack_from(body)[0], body[mirror.POSITION.size :])
                    self.memory.show((vcpu, group), self._coming)
                    self._coming, self._coming_set = [], Ranges()
                    rung[vcpu] = None
                case _:
                    self._stand(vcpu).bell(mirror.BELL.unpack_from(body)[0], body[mirror.BELL.size :])
                    rung[vcpu] = None
        for vcpu in rung:
            self._wake(vcpu)

    def _show(self, body: memoryview) -> None:
        start = mirror.AT.unpack_from(body)[0]
        if len(self._coming) >= MAX_SHOWN:
            raise MirrorError("READS", f"more than {MAX_SHOWN} before a frame")
        _disjoint(Section.READS, self._coming_set, start, len(body) - mirror.AT.size)
        self.memory.take(start, body[mirror.AT.size :])
        self._coming.append((start, start + len(body) - mirror.AT.size))

    def _stand(self, vcpu: int) -> Stand:
        if vcpu >= len(self.stands):
            raise MirrorError("vcpu", f"{vcpu}; the domain has {len(self.stands)}")
        return self.stands[vcpu]


def _disjoint(section: Section, seen: Ranges, start: int, n: int) -> None:
    if seen.touches(start, start + n):
        raise MirrorError(section.name, f"{n} bytes at {start:#x} overlap with others")
    seen.add(start, start + n)


class RemoteBacking:
    """What is behind a domain whose guest is on another host: a roster holds it where a near guest's Backing is.

    It is its own bell: ringing it ships.
    """

    def __init__(self, config: DomainConfig) -> None:
        self.config = config
        self.mirror = MirrorMemory(config.memory)
        if config.firmware:
            self.mirror.place(FIRMWARE_BASE, config.firmware)
        self.guest: RemoteGuest | None = None
        self.token = b""
        self.bells_in: list[int] = []
        self.bells_out = [self] * config.vcpus
        self._areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(config.vcpus)]

    def memory(self) -> MirrorMemory:
        """The domain's RAM as the hypervisor core uses it."""
        return self.mirror

    def area_views(self) -> list[memoryview]:
        """One view per vCPU area."""
        return self._areas

    def attach(
        self, request: Request, epoch: int, arch: Arch, wake: Callable[[int], None], send: Callable[[bytes], object],
        on_gone: Callable[[str], None],
    ) -> RemoteGuest:  # fmt: skip
        """The guest showed the right token: it is attached from now on."""
        config = self.config
        reply = Reply(False, config.domid, config.vcpus, arch, config.memory, "")
        self.token = request.token
        self.guest = RemoteGuest(epoch, reply, self.mirror, self._areas, wake, send, on_gone)
        self.guest.flush()  # what was placed in RAM
        return self.guest

    def send(self, data: bytes, flags: int = 0) -> int:  # noqa: ARG002
        """Ring: ship what there is."""
        if self.guest is not None:
            self.guest.flush()
        return len(data)

    def fileno(self) -> int:
        """There is no descriptor to wait on."""
        return -1

    def close(self) -> None:
        """The domain is gone: its guest is told."""
        if self.guest is not None:
            self.guest.close("the domain is gone")


def attach_request(data: Buffer) -> Request | None:
    """The request in an ATTACH message; None for another one.  MirrorError, AttachError: it makes no sense."""
    message = mirror.unpack(data)
    return unpack_request(bytes(message.body)) if message.kind is MessageKind.ATTACH else None


def refusal(words: str) -> bytes:
    """The message that turns somebody away who wants to attach."""
    return mirror.pack(MessageKind.REFUSED, 0, pack_reply(Reply(True, 0, 0, 0, 0, words)))
