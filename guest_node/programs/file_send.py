"""file-send: send a file to a file-receive, and wait for its verdict.

with: {to: GUEST, file: PATH, port: 5001, service: NAME, instance: 0, ring: 128KiB-ish, within: 10s, chunk: 256KiB}

The file is read in chunks while it is sent.  `within` is how long a receiver that is not there yet is
waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import BinaryIO

from guest_node.drivers.stream import StreamConnection
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.patience import give_up, reach
from guest_node.programs.transfer import (
    CHUNK,
    DEFAULT_PORT,
    VERDICT,
    TransferError,
    pack_header,
    unpack_verdict,
)


async def main(guest: Guest) -> int:
    """Exit code 0 when the receiver has the file as it was sent, else 1."""
    arguments = guest.arguments
    args.check_keys(arguments, "to", "file", "port", "service", "instance", "ring", "within", "chunk")
    to = args.destination(guest, DEFAULT_PORT)
    path = args.text(arguments, "file")
    ring = args.ring_size(arguments)
    within = args.seconds(arguments, "within", 10.0)
    chunk = args.size(arguments, "chunk", CHUNK)
    try:
        file = guest.files.open_input(path)
    except OSError as exc:
        return give_up(guest, f"cannot read {path}", exc)
    with file:
        try:
            connection = await reach(guest, lambda: guest.argo.connect(to.domid, to.port, ring=ring), within)
        except OSError as exc:
            return give_up(guest, f"cannot reach {args.told(arguments)}", exc)
        async with connection:
            try:
                return await _send(guest, connection, path, file, chunk)
            except (TransferError, asyncio.IncompleteReadError, OSError) as exc:
                guest.result(bytes=connection.bytes_sent, messages=connection.frames_sent)
                return give_up(guest, f"{path} was not delivered", exc)


async def _send(guest: Guest, connection: StreamConnection, path: str, file: BinaryIO, chunk: int) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    begin = guest.time()
    await connection.send(pack_header(path.replace("\\", "/").rsplit("/", 1)[-1], size))
    digest = await _send_file(connection, file, size, chunk)
    await connection.send(digest)
    verdict = unpack_verdict(await connection.receive_exactly(VERDICT.size))
    equal = verdict.ok and verdict.digest == digest
    guest.result(
        file=path,
        sha256=digest.hex(),
        size=size,
        bytes=connection.bytes_sent,
        messages=connection.frames_sent,
        seconds=round(guest.time() - begin, 6),
        verdict="equal" if equal else "different",
    )
    if not equal:
        guest.log(f"file-send: sent {digest.hex()}, the receiver got {verdict.digest.hex()}")
    return 0 if equal else 1


async def _send_file(connection: StreamConnection, file: BinaryIO, size: int, chunk: int) -> bytes:
    """Send `size` bytes of `file`; their SHA-256."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(chunk))
    left = size
    while left:
        count = file.readinto(buffer[: min(chunk, left)])  # type: ignore[attr-defined]
        if not count:
            raise TransferError(f"the file shrank while it was read: {left} of {size} bytes are missing")
        digest.update(buffer[:count])
        await connection.send(buffer[:count])
        left -= count
    return digest.digest()
