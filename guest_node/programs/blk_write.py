"""blk-write: write to a VirtIO disk, flush it, read back what was written.

with: {device: 0, file: PATH, offset: 0, count: 64, size: 4KiB, depth: 8, within: 10s}

`device` counts the guest's blk devices.  Written are all bytes of `file`, relative to the topology's directory, or
without one `count` blocks of `size` bytes, of which each has its own content; from byte `offset` of the disk on.  A
flush follows every MiB.  A disk that fails is reset and used on, as long as it comes back within `within`: what was not
flushed is written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import BinaryIO

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.disks import CHUNK, SECTOR, Disk, Piece, pieces
from guest_node.programs.front import WITHIN
from guest_node.programs.patience import give_up
from guest_node.programs.pipeline import in_order

FLUSH_EVERY = 1 << 20
Contents = Callable[[Piece], bytes]


async def main(guest: Guest) -> int:
    """Exit code 0, or 1 when something was not written, or read back otherwise."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "file", "offset", "count", "size", "depth", "within")
    offset = args.size(arguments, "offset", 0, 0)
    depth = args.whole(arguments, "depth", 8, 1, 256)
    disk = Disk(guest, args.seconds(arguments, "within", WITHIN))
    block = args.size(arguments, "size", 4096, SECTOR)
    for key, value in (("offset", offset), ("size", block)):
        if value % SECTOR:
            raise args.ArgumentError(key, f"{value} bytes are no whole sectors of {SECTOR}")
    try:
        if "file" in arguments:
            with guest.files.open_input(args.text(arguments, "file")) as file:
                size, chunk = -(-file.seek(0, 2) // SECTOR) * SECTOR, CHUNK
                return await _write(disk, _of_file(file, offset), offset, size, chunk, depth)
        size = args.whole(arguments, "count", 64, 1) * block
        return await _write(disk, _pattern(offset, block), offset, size, block, depth)
    except OSError as exc:
        return give_up(guest, "not everything was written", exc)


def body(index: int, size: int) -> bytes:
    """The bytes of block `index` of the pattern."""
    seed = hashlib.sha256(b"block" + index.to_bytes(8, "little")).digest()
    return (seed * (size // len(seed) + 1))[:size]


def _pattern(offset: int, block: int) -> Contents:
    """Blocks that begin at `offset` of the disk."""
    return lambda piece: body((piece.offset - offset) // block, piece.size)


def _of_file(file: BinaryIO, offset: int) -> Contents:
    """Pieces of a file that begins at `offset` of the disk; the last sector is filled up with zeros."""

    def read(piece: Piece) -> bytes:
        file.seek(piece.offset - offset)
        return file.read(piece.size).ljust(piece.size, b"\0")

    return read


async def _write(disk: Disk, contents: Contents, offset: int, size: int, chunk: int, depth: int) -> int:
    await disk.open()
    guest = disk.guest
    if offset + size > disk.size:
        raise OSError(f"{size} bytes at {offset} are beyond the end of the disk: it has {disk.size}")
    begin = guest.time()
    stretch = max(chunk, FLUSH_EVERY // chunk * chunk)
    for part in pieces(offset, offset + size, stretch):
        await _until_flushed(disk, contents, part, chunk, depth)
    written = guest.time()
    wrong, digest = await _compare(disk, contents, offset, offset + size, chunk, depth)
    guest.result(
        bytes=size, wrong=wrong, sha256=digest, resets=disk.resets, seconds=round(written - begin, 6),
        seconds_read=round(guest.time() - written, 6),
    )  # fmt: skip
    return int(wrong > 0)


async def _until_flushed(disk: Disk, contents: Contents, part: Piece, chunk: int, depth: int) -> None:
    """Write a stretch of the disk and flush it, again from its start where the disk failed meanwhile."""

    async def write(piece: Piece) -> None:
        await disk.write(piece, contents(piece))

    while True:
        try:
            async with aclosing(in_order(_of_part(part, chunk), write, depth)) as done:
                async for _ in done:
                    pass
            await disk.flush()
        except OSError as exc:
            await disk.revive(exc, part.offset)
        else:
            return


def _of_part(part: Piece, chunk: int) -> Iterator[Piece]:
    return pieces(part.offset, part.offset + part.size, chunk)


async def _compare(disk: Disk, contents: Contents, start: int, end: int, chunk: int, depth: int) -> tuple[int, str]:
    """How many pieces are not as they were written; SHA-256 of what was read."""
    digest, wrong, done = hashlib.sha256(), 0, start
    while done < end:
        try:
            async with aclosing(in_order(pieces(done, end, chunk), disk.read, depth)) as read:
                async for piece, data in read:
                    digest.update(data)
                    wrong += data != contents(piece)
                    done += piece.size
        except OSError as exc:
            await disk.revive(exc, done)
    return wrong, digest.hexdigest()
