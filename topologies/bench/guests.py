"""The programs that the measured guests run.

A lab under measurement gets a copy of these modules beside its topology, as any user's would lie there, so that the
same programs measure another tree.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_node.kernel.window import SendWindow
from hmx.argo.abi import Address, NotifyFlag
from topologies.bench.inbox import (
    MESSAGE_TYPE,
    PAUSES,
    PORT,
    Inbox,
    Meter,
    await_peer,
    copy_out,
    identity,
    spread,
)
from topologies.bench.ledger import DIRECT, DISTINCT, STAMP, Ledger, bodies, body, stamp

if TYPE_CHECKING:
    from guest_node.guest import Guest
    from guest_node.kernel.argo import Argo

EAGAIN = -11

# ---- one way ----------------------------------------------------------------------------------------------


async def receive_windowed(guest: Guest) -> None:
    """Drain `count` messages of `size` bytes; with `inplace` the ledger reads them in the ring."""
    size, count, warm = guest.arguments["size"], guest.arguments["count"], guest.arguments["warm"]
    inplace = guest.arguments.get("inplace", False)
    inbox = await Inbox.open(guest, guest.arguments["ring"], guest.peers["sender"])
    ledger = Ledger(size)
    meter = Meter(identity(guest))
    timed = False
    consumer, slot = inbox.consumer, (size + 31) & ~15
    scratch = bytearray(size)
    started_at = 0
    while ledger.count < count:
        unread = consumer.available()
        if size <= DIRECT:
            batch = consumer.drain(64)
            ledger.take_all([message.payload for message in batch])
            taken = len(batch)
        else:
            taken = _take_large(inbox, ledger, scratch, inplace)
        if taken:
            await inbox.freed(taken * slot, unread)
        else:
            await inbox.wait(PAUSES)
        if not timed and ledger.count >= warm:
            timed, started_at = True, ledger.count
            meter.begin()
    guest.result(**meter.read(), timed=ledger.count - started_at, dequeued=ledger.count, checksum=ledger.checksum)
    await inbox.tell()


def _take_large(inbox: Inbox, ledger: Ledger, scratch: bytearray, inplace: bool) -> int:
    consumer = inbox.consumer
    found = consumer.view()
    if found is None:
        return 0
    if len(found.first) == ledger.size:
        if inplace:
            ledger.take(found.first)
        else:
            ledger.take_copy(found.first, memoryview(scratch))
        consumer.consume()
        return 1
    n = copy_out(inbox, scratch)
    if not n:
        return 0
    consumer.consume()
    ledger.take(scratch if n == len(scratch) else scratch[:n])
    return 1


async def send_windowed(guest: Guest) -> None:
    """Send `count` messages with `window` of them in flight."""
    count, warm = guest.arguments["count"], guest.arguments["warm"]
    to = await await_peer(guest, "receiver")
    driver, size, depth = guest.driver, guest.arguments["size"], guest.arguments["window"]
    calls: Argo = driver.calls  # type: ignore[assignment]

    async def room() -> None:
        future = driver.want_space(to, size)
        try:
            await future
        finally:
            driver.forget(future)

    window = SendWindow(calls, to, PORT, size, depth, MESSAGE_TYPE, room)
    for index, place in enumerate(window.places()):
        place[STAMP.size :] = body(size, index)
    assert depth % DISTINCT == 0, "a place of the window has one body"
    meter = Meter(identity(guest))
    await window.send(0, warm, STAMP.pack_into)
    meter.begin()
    await window.send(warm, count - warm, STAMP.pack_into)
    guest.result(**meter.read(), timed=count - warm, eagain=window.eagain, frames=window.frames)
    # What is posted and waits for room dies with its sender: stay until the receiver has gone.
    while guest.arguments["posted"] and (await driver.probe(to)).flags & NotifyFlag.EXISTS:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def send_sync(guest: Guest) -> None:
    """Time the sendv hypercall alone, `count` times."""
    size, count, warm = guest.arguments["size"], guest.arguments["count"], guest.arguments["warm"]
    to = await await_peer(guest, "receiver")
    meter = Meter(identity(guest))
    calls, clock = guest.driver.calls, time.perf_counter_ns
    samples, eagain = [], 0
    messages = bodies(size)
    for index in range(count):
        if index == warm:
            meter.begin()
        message = messages[index % DISTINCT]
        stamp(message, index)
        while True:
            began = clock()
            ret = await calls.sendv(to, PORT, (message,), MESSAGE_TYPE)
            ended = clock()
            if ret == size:
                break
            if ret != EAGAIN:
                raise OSError(-ret, "sendv")
            eagain += 1
            await asyncio.sleep(0.001)
        if index >= warm:
            samples.append(ended - began)
    told = spread(samples)
    guest.result(**meter.read(), timed=count - warm, eagain=eagain, frames=count + eagain, samples_ns=told)


async def _send(inbox: Inbox, to: Address, message: bytes | bytearray) -> int:
    """Send one message; how often it found no room."""
    eagain = 0
    while True:
        ret = await inbox.calls.sendv(to, PORT, (message,), MESSAGE_TYPE)
        if ret == len(message):
            return eagain
        if ret != EAGAIN:
            raise OSError(-ret, "sendv")
        eagain += 1
        await asyncio.sleep(0.001)


async def _round_trips(guest: Guest, measure: Callable[[int, int, bytes], int]) -> None:
    """Send a message, wait for its answer, `count` times; `measure(began, ended, answer)` gives the sample."""
    size, count, warm = guest.arguments["size"], guest.arguments["count"], guest.arguments["warm"]
    inbox = await Inbox.open(guest, guest.arguments["ring"], guest.peers["receiver"])
    to = await await_peer(guest, "receiver")
    meter = Meter(identity(guest))
    samples, eagain = [], 0
    messages = bodies(size)
    for index in range(count):
        if index == warm:
            meter.begin()
        message = messages[index % DISTINCT]
        stamp(message, index)
        began = time.monotonic_ns()
        eagain += await _send(inbox, to, message)
        while (answer := inbox.consumer.receive()) is None:
            await inbox.wait()
        ended = time.monotonic_ns()
        await inbox.freed(len(answer.payload) + 32, 0)
        if index >= warm:
            samples.append(measure(began, ended, answer.payload))
    told = spread(samples)
    guest.result(**meter.read(), timed=count - warm, eagain=eagain, frames=count + eagain, samples_ns=told)


async def send_and_ask(guest: Guest) -> None:
    """One message at a time, timed from send to dequeue: the answer carries the moment of the dequeue."""
    await _round_trips(guest, lambda began, _ended, answer: STAMP.unpack_from(answer)[0] - began)


async def send_and_echo(guest: Guest) -> None:
    """Round trips."""
    await _round_trips(guest, lambda began, ended, _answer: ended - began)


async def _answer(guest: Guest, compose: Callable[[int], bytes | None]) -> None:
    """Dequeue `count` messages and answer each; `compose(now)` gives the answer, None the message itself."""
    size, count = guest.arguments["size"], guest.arguments["count"]
    sender = guest.peers["sender"]
    inbox = await Inbox.open(guest, guest.arguments["ring"], sender)
    to = await await_peer(guest, "sender")
    identity(guest)
    ledger, scratch = Ledger(size), bytearray(size)
    while ledger.count < count:
        n = copy_out(inbox, scratch)
        if not n:
            await inbox.wait()
            continue
        inbox.consumer.consume()
        answer = compose(time.monotonic_ns())
        ledger.take(scratch if n == size else scratch[:n])
        await _send(inbox, to, answer or scratch)
        await inbox.freed(size + 32, 0)
    guest.result(dequeued=ledger.count, checksum=ledger.checksum)
    await inbox.tell()


async def receive_and_tell(guest: Guest) -> None:
    """Answer each message with the moment at which it was dequeued."""
    await _answer(guest, STAMP.pack)


async def receive_and_echo(guest: Guest) -> None:
    """Answer each message with itself."""
    await _answer(guest, lambda _now: None)


# ---- streams ----------------------------------------------------------------------------------------------


async def send_stream(guest: Guest) -> None:
    """Send `count` chunks of `size` bytes over a stream."""
    size, count, warm = guest.arguments["size"], guest.arguments["count"], guest.arguments["warm"]
    meter = Meter(identity(guest))
    while True:
        try:
            connection = await guest.argo.connect(guest.peers["receiver"], PORT)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.005)
    messages = bodies(size)
    async with connection:
        for index in range(count):
            if index == warm:
                meter.begin()
            message = messages[index % DISTINCT]
            stamp(message, index)
            await connection.send(message)
    guest.result(**meter.read(), timed=count - warm, frames=connection.frames_sent, eagain=0)


async def receive_stream(guest: Guest) -> None:
    """Receive `count` chunks."""
    size, count, warm = guest.arguments["size"], guest.arguments["count"], guest.arguments["warm"]
    ledger, chunk = Ledger(size), bytearray(size)
    view = memoryview(chunk)
    meter = Meter(identity(guest))
    ring = guest.arguments["ring"]
    async with await guest.argo.listen(PORT, partner=guest.peers["sender"], ring=ring) as listener:
        connection = await listener.accept()
        async with connection:
            filled = 0
            while step := await connection.receive_into(view[filled:]):
                filled += step
                if filled == size:
                    filled = 0
                    ledger.take(chunk)
                    if ledger.count == warm:
                        meter.begin()
                    elif ledger.count == count:
                        break
            guest.result(**meter.read(), timed=count - warm, dequeued=ledger.count, checksum=ledger.checksum)
            guest.result(frames=connection.frames_received)


# ---- startup ----------------------------------------------------------------------------------------------


async def startup_echo(guest: Guest) -> None:
    """Answer every client once; when the file `go` appears beside the topology, tell them all to leave."""
    clients: list[Address] = []
    identity(guest)
    async with await guest.argo.datagram(PORT, ring=guest.arguments["ring"]) as sock:
        while len(clients) < guest.arguments["clients"]:
            message = await sock.receive()
            clients.append(message.source)
            await sock.send_to(message.payload, message.source)
        output = guest.files.create_output("answered")
        output.write(b"%d" % len(clients))
        output.commit()
        while not _exists(guest, "go"):  # noqa: ASYNC110  (what appears there is a file)
            await asyncio.sleep(0.02)
        for client in clients:
            await sock.send_to(b"", client)


def _exists(guest: Guest, path: str) -> bool:
    try:
        guest.files.open_input(path).close()
    except OSError:
        return False
    return True


async def startup_client(guest: Guest) -> None:
    """Register a ring, have one message answered, and stay until told to leave."""
    echo = guest.peers["echo"]
    async with await guest.argo.datagram(PORT, partner=echo, ring=guest.arguments["ring"]) as sock:
        message = b"hello from %d" % guest.domid
        while True:
            try:
                await sock.send_to(message, Address(PORT, echo))
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.005)
        answer = await sock.receive()
        guest.result(answered_ns=time.monotonic_ns(), intact=answer.payload == message, pid=os.getpid())
        await sock.receive()
