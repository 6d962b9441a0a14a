"""A front end that does to its disk whatever may be done, and writes down what it asks for and what is answered.

Also back ends with a cache that is small, or breaks its word in a way of its own.
"""

import asyncio
import json
import os
import random
import struct
import time
from collections.abc import Awaitable, Callable
from functools import partial

from guest_node.guest import Guest
from guest_node.programs import blk_server
from guest_node.programs.disks import Disk
from guest_node.virtio.models.cache import WriteBackCache
from guest_node.virtio.models.store import Buffer, Store

SECTOR = 512
LENGTHS = (1, 1, 2, 3, 8, 9, 64)
ACTS, WEIGHTS = ("write", "read", "flush", "zero", "discard", "reset"), (48, 32, 12, 5, 2, 1)
REVIVE = 0.02


class Journal:
    """A line for each request before it is submitted, and one for each answer that was got.  Outlives its writer."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        before = os.pread(self._file, os.fstat(self._file).st_size, 0)
        self._torn = before[-1:] not in (b"", b"\n")
        self.life = before.count(b'"life"') + 1
        self._number = self.life * 10_000_000

    def add(self, what: str, *words: object) -> None:
        line = json.dumps([round(time.monotonic(), 6), what, *words]) + "\n"
        os.write(self._file, (b"\n" if self._torn else b"") + line.encode())
        self._torn = False

    def number(self) -> int:
        """One that no request of any life has had."""
        self._number += 1
        return self._number


def contents(number: int, sector: int) -> bytes:
    """What write `number` puts into a sector."""
    return struct.pack("<QQ", number, sector) * (SECTOR // 16)


def number_of(data: bytes, sector: int) -> int:
    """The write that a sector's bytes are of, 0 for zeros, -1 where they are of none, or not whole."""
    if not any(data):
        return 0
    found = int.from_bytes(data[:8], "little")
    return found if data == contents(found, sector) else -1


class Torturer:
    """Workers on one disk; one of them may reset it under the others."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.arguments = guest.arguments
        self.journal = Journal(self.arguments["journal"])
        self.disk = Disk(guest, 60.0)
        self.span = 0
        self._reviving = asyncio.Lock()
        self._starts = 0

    async def run(self) -> None:
        journal = self.journal
        journal.add("life")
        journal.add("start")
        await self.disk.open()
        journal.add("started")
        self.span = min(int(self.arguments["span"]), self.disk.size // SECTOR)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.arguments["depth"]):
                group.create_task(self._work())
        # A disk that is started again and left alone has everything that was written: the check of the image is exact.
        await self._safely(self._flush)
        for sector in range(0, self.span, 64):
            await self._safely(partial(self._read, sector, min(64, self.span - sector)))
        journal.add("done")

    async def _work(self) -> None:
        stop = self.arguments["stop"]
        chance = random.Random(self.guest.random.getrandbits(64) + self.journal.life)  # another course in each life
        while not os.access(stop, os.F_OK):
            kind, count = chance.choices(ACTS, WEIGHTS)[0], chance.choice(LENGTHS)
            place = chance.randrange(self.span - count + 1), count
            if kind == "reset":
                await self._revive(self._starts)
            else:
                await self._safely(partial(getattr(self, f"_{kind}"), *(() if kind == "flush" else place)), once=True)
            if chance.random() < 0.05:
                await asyncio.sleep(chance.random() * 0.02)

    async def _safely(self, act: Callable[[], Awaitable[None]], *, once: bool = False) -> None:
        """Do it; a disk that fails is revived, and it is done again unless `once`."""
        while True:
            starts = self._starts
            try:
                await act()
            except OSError as problem:
                self.journal.add("failed", str(problem))
                await self._revive(starts)
                if not once:
                    continue
            return

    async def _revive(self, starts: int) -> None:
        """Reset the disk and start it, if nobody else has done so since it had been started `starts` times."""
        async with self._reviving:
            if self._starts != starts:
                return
            deadline = self.guest.time() + 60
            self.journal.add("start")
            while True:
                try:
                    await self.disk.device.start()
                except OSError as problem:
                    if self.guest.time() > deadline:
                        raise
                    self.journal.add("failed", str(problem))
                    await asyncio.sleep(REVIVE)
                else:
                    break
            self._starts += 1
            self.journal.add("started")

    async def _flush(self) -> None:
        number = self.journal.number()
        self.journal.add("flush", number)
        await self.disk.device.flush()
        self.journal.add("flushed", number)

    async def _write(self, sector: int, count: int) -> None:
        number = self.journal.number()
        data = b"".join(contents(number, at) for at in range(sector, sector + count))
        self.journal.add("write", number, sector, count, number)
        await self.disk.device.write(sector, data)
        self.journal.add("written", number)

    async def _zero(self, sector: int, count: int) -> None:
        number = self.journal.number()
        self.journal.add("write", number, sector, count, 0)
        await self.disk.device.write_zeroes(sector, count)
        self.journal.add("written", number)

    async def _discard(self, sector: int, count: int) -> None:
        number = self.journal.number()
        self.journal.add("discard", number, sector, count, 0)
        await self.disk.device.discard(sector, count)
        self.journal.add("written", number)

    async def _read(self, sector: int, count: int) -> None:
        number = self.journal.number()
        self.journal.add("read", number, sector, count)
        data = await self.disk.device.read(sector, count)
        found = [number_of(data[at * SECTOR : (at + 1) * SECTOR], sector + at) for at in range(count)]
        self.journal.add("got", number, found)


async def main(guest: Guest) -> int:
    """The front end.  with: {journal: PATH, stop: PATH, span: SECTORS, depth: 4}; it ends when `stop` is there."""
    torturer = Torturer(guest)
    await torturer.run()
    guest.result(lives=torturer.journal.life)
    return 0


# ---- back ends with another cache ----


async def small_cache(guest: Guest) -> int:
    """builtin:blk-server with room for eight blocks: most of what is written comes to the image before a flush."""
    return await served(guest, partial(WriteBackCache, size=8 * 4096))


class NeverDrains(WriteBackCache):
    """Answers FLUSH without draining; what lies here dies with the process."""

    def flush(self) -> None:
        return None


BREAKS = 8
"""Every so many writes goes wrong: of a few hundred, so many that some are seen before they are written over."""


class DropsAWrite(WriteBackCache):
    """Now and then."""

    count = 0

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.count += 1
        if self.count % BREAKS:
            super().pwrite(offset, data)


class WritesASectorWrong(WriteBackCache):
    """Now and then one byte."""

    count = 0

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.count += 1
        wrong = bytearray(data)
        wrong[-1] ^= self.count % BREAKS == 0
        super().pwrite(offset, wrong)


async def served(guest: Guest, kind: Callable[[Store], WriteBackCache]) -> int:
    """builtin:blk-server with another cache."""
    blk_server.WriteBackCache = kind  # type: ignore[attr-defined, assignment]
    return await blk_server.main(guest)


async def never_drains(guest: Guest) -> int:
    return await served(guest, NeverDrains)


async def drops_a_write(guest: Guest) -> int:
    return await served(guest, DropsAWrite)


async def writes_a_sector_wrong(guest: Guest) -> int:
    return await served(guest, WritesASectorWrong)
