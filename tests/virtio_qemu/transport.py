"""A front end's transport over virtio-mmio registers, stepped by the test: ours and QEMU's devices look the same to it.

The registers, the queues and the device drivers are the project's; only what lies between them is here: who moves
bytes into the board's memory, and who looks at the interrupt line.  Registers are accessed in the order in which Linux
does (drivers/virtio/virtio_mmio.c): feature word 1 before word 0; InterruptStatus is acknowledged before the queues
are looked at; the parts of a queue in the order descriptors, driver, device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from guest_node.virtio.frontend import Buffer, DeviceBroken
from hmx.virtio.chain import QueueBroken, QueueFull, Segment
from hmx.virtio.features import window
from hmx.virtio.memory import QueueMemory
from hmx.virtio.mmio import CONFIG, MAGIC, OFFSETS, VERSION, Interrupt
from hmx.virtio.queues import AnyDriverQueue, driver_queue, notification, queue_area
from hmx.virtio.status import Status

WORDS: Final = 2  # of features: Linux has read no more for ten years, and QEMU answers nonsense beyond
DEADLINE: Final = 20.0  # seconds for one step of a test
UNTOUCHED: Final = 0xEE  # what writable memory holds before a device has it
_IDLE: Final = 0.002
_T = TypeVar("_T")


class Board(Protocol):
    """One device with the memory around it."""

    @property
    def memory(self) -> QueueMemory:
        """That of the machine, as a driver sees it."""

    @property
    def usable(self) -> range:
        """Addresses of memory in which nothing lies."""

    def load(self, offset: int, size: int) -> int:
        """Read a register."""

    def store(self, offset: int, size: int, value: int) -> None:
        """Write a register."""

    def interrupt(self) -> bool:
        """The level of the device's line."""

    def wait(self, seconds: float) -> bool:
        """Let the device go on; False: it never does anything by itself."""


class Arena:
    """Memory of a board, handed out one piece behind another and taken back when all of it is free again."""

    def __init__(self, usable: range) -> None:
        self._usable = usable
        self._next = usable.start
        self._lent = 0

    def lend(self, size: int, align: int = 16) -> int:
        """The address of `size` bytes."""
        at = self._next + -self._next % align
        if at + size > self._usable.stop:
            raise MemoryError(f"{size} bytes beside {self._lent} pieces")
        self._next = at + size
        self._lent += 1
        return at

    def give_back(self, pieces: int) -> None:
        """So many pieces are of no use any more."""
        self._lent -= pieces
        if not self._lent:
            self._next = self._usable.start


class MmioQueue:
    """guest_node.virtio.frontend.Queue, and what only tests do to a queue."""

    def __init__(self, home: MmioTransport, index: int, size: int, entries: int) -> None:
        area = queue_area(size, home.features, entries=entries)
        base = home.lay_out(area.end)
        area = queue_area(size, home.features, base, entries)
        self.index = index
        self.size = size
        self.layout = area.layout
        self.ring: AnyDriverQueue = driver_queue(area.layout, home.features, home.board.memory, area.indirect)
        self.kicks = 0  # notifications that the device got
        self._home = home
        self._came_back = asyncio.Event()

    def submit(self, readable: Sequence[Buffer], writable: int) -> asyncio.Future[bytes]:
        """As of the interface: one descriptor for each readable buffer, one for all that is writable."""
        return self.submit_pieces(readable, [writable] if writable else [])

    def submit_pieces(self, readable: Sequence[Buffer], writable: Sequence[int]) -> asyncio.Future[bytes]:
        """A chain of just these descriptors."""
        return self.submit_raw(readable, writable, lambda data, written: data[:written])

    def submit_raw(
        self, readable: Sequence[Buffer], writable: Sequence[int], result: Callable[[bytes, int], _T]
    ) -> asyncio.Future[_T]:
        """The same; the future gets `result` of all writable bytes and of how many the device says it wrote."""
        home = self._home
        reads = [Segment(home.arena.lend(len(buffer)), len(buffer)) for buffer in readable]
        writes = [Segment(home.arena.lend(size), size) for size in writable]
        for segment, buffer in zip(reads, readable, strict=True):
            home.board.memory.write(segment.address, buffer)
        for segment in writes:
            home.board.memory.write(segment.address, bytes([UNTOUCHED]) * segment.size)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        try:
            self.ring.add(reads, writes, (future, reads, writes, result))
        except QueueFull:
            home.arena.give_back(len(reads) + len(writes))
            self._came_back.clear()
            raise
        return future

    async def kick(self) -> None:
        """Publish, and notify if the device asks for it."""
        if self.ring.publish():
            self.notify()
        self._home.service()

    def notify(self) -> None:
        """Notify, asked or not."""
        self.kicks += 1
        self._home.write("QueueNotify", notification(self.index, self.ring, self._home.features))

    async def room(self) -> None:
        """Wait until a chain came back."""
        await self._came_back.wait()

    def collect(self) -> None:
        """Take what was used, and ask for the next interrupt."""
        while True:
            while (used := self.ring.take()) is not None:
                self._finish(used.token, used.written)
            if not self.ring.want_interrupts(True):
                return

    def _finish(self, token: object, written: int) -> None:
        assert isinstance(token, tuple)
        future, reads, writes, result = token
        memory = self._home.board.memory
        data = b"".join(bytes(memory.read(*segment)) for segment in writes)
        self._home.arena.give_back(len(reads) + len(writes))
        self._came_back.set()
        if not future.done():
            future.set_result(result(data, written))

    def break_off(self) -> None:
        """Nothing comes back from this queue."""
        for token in self.ring.abandon():
            assert isinstance(token, tuple)
            future, reads, writes, _ = token
            self._home.arena.give_back(len(reads) + len(writes))
            if not future.done():
                future.set_exception(DeviceBroken("the device was reset, or needs to be"))
                future.exception()  # seen: nobody need await it
        self._came_back.set()


def nothing() -> None:
    """What happens at a change of the configuration unless a test says otherwise."""


class MmioTransport:
    """guest_node.virtio.frontend.Transport.  `entries`: descriptors of each indirect table, 0 for none."""

    def __init__(self, board: Board, entries: int = 16) -> None:
        if board.load(OFFSETS["MagicValue"], 4) != MAGIC or board.load(OFFSETS["Version"], 4) != VERSION:
            raise DeviceBroken("no virtio-mmio device of version 2")
        self.board = board
        self.device_id = board.load(OFFSETS["DeviceID"], 4)
        self.on_config: Callable[[], None] = nothing
        self.features = 0
        self.queues: dict[int, MmioQueue] = {}
        self.interrupts = 0  # that were served
        self._entries = entries
        half = (board.usable.start + board.usable.stop) // 2
        self.arena = Arena(range(half, board.usable.stop))
        self._rings = Arena(range(board.usable.start, half))

    # -- registers ----

    def read(self, name: str) -> int:
        """A control register."""
        return self.board.load(OFFSETS[name], 4)

    def write(self, name: str, value: int) -> None:
        """Write a control register."""
        self.board.store(OFFSETS[name], 4, value)

    def lay_out(self, size: int) -> int:
        """Where a queue of so many bytes lies."""
        return self._rings.lend(size, 4096)

    # -- the interface ----

    async def reset(self) -> None:
        """Status 0; what was outstanding is lost."""
        self.write("Status", 0)
        while self.read("Status"):
            self.board.wait(_IDLE)
        for queue in self.queues.values():
            queue.break_off()
        self._rings.give_back(len(self.queues))
        self.queues.clear()
        self.features = 0

    async def status(self) -> int:
        """The status register."""
        return self.read("Status")

    async def set_status(self, status: int) -> int:
        """Write it, and read it back."""
        self.write("Status", status)
        self.service()
        return self.read("Status")

    async def device_features(self) -> int:
        """The first two words."""
        offer = 0
        for word in reversed(range(WORDS)):
            self.write("DeviceFeaturesSel", word)
            offer |= self.read("DeviceFeatures") << 32 * word
        return offer

    async def set_driver_features(self, features: int) -> None:
        """Accept a subset of 64 bits."""
        for word in reversed(range(WORDS)):
            self.write("DriverFeaturesSel", word)
            self.write("DriverFeatures", window(features, word))
        self.features = features

    async def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of one generation."""
        while True:
            generation = self.read("ConfigGeneration")
            data = bytes(self.board.load(CONFIG + offset + at, 1) for at in range(size))
            if self.read("ConfigGeneration") == generation:
                return data

    async def write_config(self, offset: int, data: Buffer) -> bool:
        """Byte by byte."""
        for at, byte in enumerate(bytes(data)):
            self.board.store(CONFIG + offset + at, 1, byte)
        return True

    async def queue_max(self, index: int) -> int:
        """QueueSizeMax."""
        self.write("QueueSel", index)
        return self.read("QueueSizeMax")

    async def setup_queue(self, index: int, size: int) -> MmioQueue:
        """Make a queue of `size` descriptors ready."""
        queue = MmioQueue(self, index, size, self._entries)
        self.write("QueueSel", index)
        if self.read("QueueReady"):
            raise DeviceBroken(f"queue {index} is ready before anyone said so")
        self.write("QueueSize", size)
        for part, address in zip(("Desc", "Driver", "Device"), queue.layout[1:], strict=True):
            self.write(f"Queue{part}Low", address & 0xFFFFFFFF)
            self.write(f"Queue{part}High", address >> 32)
        self.write("QueueReady", 1)
        if self.read("QueueReady") != 1:
            raise DeviceBroken(f"queue {index} of {size} descriptors does not become ready")
        self.queues[index] = queue
        return queue

    async def reset_queue(self, index: int) -> None:
        """QueueReset, until it reads 0."""
        self.write("QueueSel", index)
        self.write("QueueReset", 1)
        while self.read("QueueReset"):
            self.board.wait(_IDLE)
        self.queues.pop(index).break_off()
        self._rings.give_back(1)

    # -- interrupts ----

    def service(self) -> bool:
        """What the interrupt handler does, if the line is high; whether it was."""
        if not self.board.interrupt():
            return False
        self.interrupts += 1
        cause = self.read("InterruptStatus")
        self.write("InterruptACK", cause)
        try:
            if cause & Interrupt.USED:
                for queue in self.queues.values():
                    queue.collect()
        except QueueBroken as broken:
            raise DeviceBroken(str(broken)) from broken
        if cause & Interrupt.CONFIG:
            if self.read("Status") & Status.DEVICE_NEEDS_RESET:
                for queue in self.queues.values():
                    queue.break_off()
            self.on_config()
        return True


def run(transport: MmioTransport, work: Coroutine[Any, Any, _T], seconds: float = DEADLINE) -> _T:
    """Let a driver and the device take turns until the driver's work is done.  TimeoutError after `seconds`."""

    async def turns() -> _T:
        task = asyncio.ensure_future(work)
        deadline = time.monotonic() + seconds
        idle = 0
        try:
            while not task.done():
                await asyncio.sleep(0)
                if transport.service():
                    idle = 0
                    continue
                idle += 1
                if idle > 10 and not transport.board.wait(_IDLE) and idle > 100:
                    raise TimeoutError("the device has nothing to do, and the driver waits for it")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nothing for {seconds:g} seconds")
            return task.result()
        finally:
            if not task.done():
                task.cancel()

    return asyncio.run(turns())
