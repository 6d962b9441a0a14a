"""Programs of the tests of broken links: a stream whose every byte is known in advance, slowly.

with: {directory: PATH, blocks: N, pace: SECONDS, to: GUEST}.  Each writes down in `seen-NAME` how it ended, and in
`sent-NAME` how far it is, in blocks.
"""

import asyncio
import errno
import hashlib
import os

from guest_node.guest import Guest

PORT = 12
BLOCK = 4096
RING = 16 << 10


def block(index: int) -> bytes:
    """Block `index` of the stream: no other one is like it."""
    return hashlib.sha256(index.to_bytes(8, "little")).digest() * (BLOCK // 32)


class Diary:
    """What the test reads from outside."""

    def __init__(self, guest: Guest) -> None:
        directory = guest.arguments["directory"]
        self._seen = os.open(f"{directory}/seen-{guest.name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._sent = os.open(f"{directory}/sent-{guest.name}", os.O_WRONLY | os.O_CREAT, 0o600)

    def at(self, blocks: int) -> None:
        os.pwrite(self._sent, b"%8d" % blocks, 0)

    def end(self, words: str) -> None:
        os.write(self._seen, words.encode() + b"\n")


async def send(guest: Guest) -> int:
    """Send all blocks; "same" when the receiver has them all and nothing else, or the error that ended it."""
    diary, count, pace = Diary(guest), guest.arguments["blocks"], guest.arguments["pace"]
    digest = hashlib.sha256()
    connection = None
    try:
        while connection is None:
            try:
                connection = await guest.argo.connect(guest.peers[guest.arguments["to"]], PORT, ring=RING)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
        for index in range(count):
            await connection.send(block(index))
            digest.update(block(index))
            diary.at(index + 1)
            await asyncio.sleep(pace)
        theirs = await connection.receive_exactly(digest.digest_size)
        await connection.close()
        diary.end("same" if theirs == digest.digest() else "different")
    except OSError as error:
        diary.end(errno.errorcode.get(error.errno or 0, str(error)))
    except asyncio.IncompleteReadError:
        diary.end("closed")
    if connection is not None:
        await connection.close()
    await asyncio.sleep(1e6)
    return 0


async def receive(guest: Guest) -> int:
    """Receive from one after the other; a byte that is lost, doubled or out of order is "wrong at" its block."""
    diary, count = Diary(guest), guest.arguments["blocks"]
    async with await guest.argo.listen(PORT, ring=RING) as listener:
        while True:
            async with await listener.accept() as connection:
                diary.end(await take(connection, diary, count))


async def take(connection: object, diary: Diary, count: int) -> str:
    digest = hashlib.sha256()
    for index in range(count):
        try:
            data = await connection.receive_exactly(BLOCK)  # type: ignore[attr-defined]
        except asyncio.IncompleteReadError as error:
            good = block(index).startswith(error.partial)
            return "closed" if good else f"wrong at {index}"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        if data != block(index):
            return f"wrong at {index}"
        digest.update(data)
        diary.at(index + 1)
    await connection.send(digest.digest())  # type: ignore[attr-defined]
    more = await connection.receive(1)  # type: ignore[attr-defined]
    return "more" if more else "all"
