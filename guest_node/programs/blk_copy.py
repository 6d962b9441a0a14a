"""blk-copy: read every block of a VirtIO disk into a file.

with: {device: 0, output: disk.img, chunk: 64KiB, depth: 8, within: 10s}

`device` counts the guest's blk devices.  The file appears in the guest's directory of the run when all has been
read.  `depth` requests of `chunk` bytes are under way at once.  A disk that fails is reset and used on, as long as it
comes back within `within`.
"""

from __future__ import annotations

import hashlib
from contextlib import aclosing

from guest_node.files import Output
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.disks import CHUNK, SECTOR, Disk, pieces
from guest_node.programs.front import WITHIN
from guest_node.programs.patience import give_up
from guest_node.programs.pipeline import in_order

OUTPUT = "disk.img"


async def main(guest: Guest) -> int:
    """Exit code 0 when every block was read, else 1."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "output", "chunk", "depth", "within")
    name = args.output_name(arguments, "output", OUTPUT)
    chunk = args.size(arguments, "chunk", CHUNK, SECTOR) // SECTOR * SECTOR
    depth = args.whole(arguments, "depth", 8, 1, 256)
    disk = Disk(guest, args.seconds(arguments, "within", WITHIN))
    output: Output | None = None
    try:
        await disk.open()
        begin = guest.time()
        output = guest.files.create_output(name)
        digest = await _copy(disk, output, chunk, depth)
        output.commit()
    except OSError as exc:
        return give_up(guest, "not every block was read", exc)
    finally:
        if output is not None:
            output.discard()
    guest.result(
        file=name, bytes=disk.size, sha256=digest, identity=disk.identity, resets=disk.resets,
        seconds=round(guest.time() - begin, 6),
    )  # fmt: skip
    return 0


async def _copy(disk: Disk, output: Output, chunk: int, depth: int) -> str:
    """Write the whole disk to `output`; its SHA-256."""
    digest = hashlib.sha256()
    done = 0
    while done < disk.size:
        try:
            async with aclosing(in_order(pieces(done, disk.size, chunk), disk.read, depth)) as read:
                async for _, data in read:
                    digest.update(data)
                    output.write(data)
                    done += len(data)
        except OSError as exc:
            await disk.revive(exc, done)
    return digest.hexdigest()
