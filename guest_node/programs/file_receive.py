"""file-receive: take one file from a file-send, check it, keep it in the output directory.

with: {port: 5001, service: NAME, instance: 0, output: NAME, ring: 128KiB-ish, from: GUEST}

The file gets the sender's name for it, made harmless, or `output`.  It appears there only when size and
SHA-256 are right.  `from` restricts it to one guest, which needs no mac-permissive.
"""

from __future__ import annotations

import asyncio
import hashlib

from guest_node.drivers.sockets import ANY
from guest_node.drivers.stream import StreamConnection
from guest_node.files import Output, safe_name
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.patience import give_up
from guest_node.programs.transfer import (
    CHUNK,
    DEFAULT_PORT,
    DIGEST_SIZE,
    HEADER,
    TransferError,
    Verdict,
    pack_verdict,
    unpack_header,
)


async def main(guest: Guest) -> int:
    """Exit code 0 when a file came as it was sent, else 1."""
    arguments = guest.arguments
    args.check_keys(arguments, "port", "service", "instance", "output", "ring", "from")
    port = args.own_port(guest, DEFAULT_PORT)
    given = args.text(arguments, "output", "-")
    if given != "-" and safe_name(given) != given:
        raise args.ArgumentError("output", f"{given!r} is no plain file name; try {safe_name(given)!r}")
    ring = args.ring_size(arguments)
    source = args.peer(guest, "from", optional=True)
    try:
        listener = await guest.argo.listen(port, partner=ANY if source is None else source, ring=ring)
    except OSError as exc:
        return give_up(guest, f"cannot listen at port {port}", exc)
    async with listener:
        guest.log(f"file-receive: waiting at port {port}")
        connection = await listener.accept()
    async with connection:
        begin = guest.time()
        try:
            ok = await _receive(guest, connection, "" if given == "-" else given)
        except (TransferError, asyncio.IncompleteReadError, OSError) as exc:
            guest.result(bytes=connection.bytes_received)
            return give_up(guest, "no file was received", exc)
        guest.result(
            bytes=connection.bytes_received,
            messages=connection.frames_received,
            seconds=round(guest.time() - begin, 6),
        )
        await connection.receive(1)  # the sender has read the verdict when it closes
    return 0 if ok else 1


async def _receive(guest: Guest, connection: StreamConnection, given: str) -> bool:
    name_length, size = unpack_header(await connection.receive_exactly(HEADER.size))
    sent_name = (await connection.receive_exactly(name_length)).decode(errors="replace")
    name = given or safe_name(sent_name)
    output = guest.files.create_output(name)
    try:
        digest = await _receive_file(connection, output, size)
        claimed = await connection.receive_exactly(DIGEST_SIZE)
        ok = claimed == digest
        if ok:
            output.commit()
        else:
            guest.log(f"file-receive: got {digest.hex()}, the sender sent {claimed.hex()}")
    finally:
        output.discard()
    guest.result(file=name, size=size, sha256=digest.hex(), verdict="equal" if ok else "different")
    await connection.send(pack_verdict(Verdict(ok, digest)))
    return ok


async def _receive_file(connection: StreamConnection, output: Output, size: int) -> bytes:
    """Write `size` bytes to `output`; their SHA-256."""
    digest = hashlib.sha256()
    left = size
    while left:
        data = await connection.receive(min(left, CHUNK))
        if not data:
            raise TransferError(f"the sender stopped {left} bytes before the end of {size}")
        digest.update(data)
        output.write(data)
        left -= len(data)
    return digest.digest()
