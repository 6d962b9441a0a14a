"""Rows of the golden table of the stream driver, brought about on a real Argo core.

Source: tests/golden/stream.csv, written from the specification of the Linux Argo driver without sight of the
code.  What is compared is the state, the frames that went out, the effects that can be seen, and the error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from guest_node.drivers.connector import connect
from guest_node.drivers.listener import listen
from guest_node.drivers.rings import DriverRing
from guest_node.drivers.stream import StreamConnection
from guest_node.drivers.stream_table import HEADER, MESSAGE_TYPE_STREAM, Flag
from hmx.argo.abi import Address, Op
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate
from tests.guest_node.drivers.golden_stream import Answer, GoldenRow, expected

PORT = 80
NEAR, FAR = 1, 2

REFUSALS = (
    ("no ring at destination", Errno.ECONNREFUSED),
    ("peer domain missing", Errno.ESRCH),
    ("(SILO)", Errno.EPERM),
    ("(FLASK)", Errno.EACCES),
    ("wake-up queue", Errno.EBUSY),
    ("own domain without", Errno.ENODEV),
)
"""What the hypervisor answers a send, by the words of the table's conditions."""


def _refused(errno: Errno, op: Op, _: object) -> int | None:
    return -errno if op is Op.SENDV else None


class Scene:
    """Two guests with drivers, ours and the peer's; `mark()` begins to record what we send."""

    def __init__(self, **options: Any) -> None:
        self.rig = Rig(**options)
        self.near = self.rig.driver(NEAR)
        self.far = self.rig.driver(FAR)
        self.calls: RigCalls = self.rig.guests[NEAR]
        self.far_calls: RigCalls = self.rig.guests[FAR]

    async def start(self) -> None:
        await self.near.start()
        await self.far.start()

    async def stop(self) -> None:
        for driver in (self.near, self.far):
            calls = driver.calls
            assert isinstance(calls, RigCalls)
            if not calls.dead:
                await driver.close()

    def mark(self) -> None:
        self.calls.sent = []

    def sent(self) -> str:
        names = []
        for _, _, data, message_type in self.calls.sent or []:
            if message_type == MESSAGE_TYPE_STREAM:
                flags, _ = HEADER.unpack_from(data)
                names.append(str(Flag(flags).name) if flags else "DATA")
            else:
                names.append("DATA")
        return "+".join(names) or "-"

    def near_rings(self) -> int:
        argo = self.calls.domain.argo
        return len(argo.rings) if argo is not None else 0

    async def pair(
        self, state: str, *, near_ring: int = 65536, far_ring: int = 65536
    ) -> tuple[StreamConnection, StreamConnection]:
        """A connection; our end is the connector's or the accepted one."""
        if state == "ACCEPTED":
            server, client, lens = self.near, self.far, (near_ring, far_ring)
        else:
            server, client, lens = self.far, self.near, (far_ring, near_ring)
        domid = NEAR if state == "ACCEPTED" else FAR
        other = FAR if state == "ACCEPTED" else NEAR
        self.listener = await listen(server, PORT, partner=other, ring_len=lens[0])
        accepting = asyncio.create_task(self.listener.accept())
        connected = await connect(client, Address(PORT, domid), ring_len=lens[1])
        accepted = await accepting
        return (accepted, connected) if state == "ACCEPTED" else (connected, accepted)

    def refuse_sends(self, condition: str) -> None:
        """From now on the hypervisor answers our sends as a row's condition says, if it does."""
        for words, errno in REFUSALS:
            if words in condition:
                self.calls.refuse = partial(_refused, errno)

    def freeze_far(self) -> None:
        """The peer no longer reacts: its rings fill."""
        self.far_calls.handlers.clear()

    def wake_far(self) -> None:
        self.far_calls.handlers.append(self.far._virq)
        self.far._virq()


def state_of(socket: StreamConnection) -> str:
    return socket._core.state.name


def core_of(socket: StreamConnection) -> Any:
    return socket._core


def play(row: GoldenRow, observe: Callable[[Scene, GoldenRow], Awaitable[Answer]], **options: Any) -> None:
    """Bring `row` about and compare."""

    async def main() -> None:
        scene = Scene(**options)
        await scene.start()
        answer = await observe(scene, row)
        assert answer == expected(row)
        await scene.stop()

    simulate(main, limit=60)


def answer(state: str, sends: str, *effects: str, error: int = 0) -> Answer:
    return Answer(state, sends, frozenset(effects), Errno(error).name if error else "-")


async def error_of(call: Awaitable[Any]) -> int:
    try:
        await call
    except OSError as exc:
        return exc.errno or -1
    return 0


def blocked(task: asyncio.Task[Any]) -> bool:
    return not task.done()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Deaf:
    """A sink that takes what comes and does nothing; or takes nothing."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.frames: list[tuple[int, int, bytes]] = []

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        if self.takes:
            self.frames.append((source_port, source_domid, bytes(payload)))
        return self.takes

    def lost(self, ring: DriverRing) -> None:
        pass

    def broken(self, cause: BaseException) -> None:
        pass
