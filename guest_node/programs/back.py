"""What back-end programs share: a device model for each front end that comes, until enough of them have left.

A front end that says goodbye ends a session.  One that died does not: it may be started again, and goes on where the
device is parked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

from guest_node.drivers.sockets import ANY
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.patience import give_up
from guest_node.virtio.argo_back import Client, serve
from guest_node.virtio.model import Model

ARGUMENTS: Final = ("service", "instance", "sessions", "ring", "from")
RING: Final = 1 << 20
GOODBYE: Final = "bye"


class Front(Protocol):
    """A front end: what tells it from others."""

    @property
    def domid(self) -> int:
        """Its guest."""

    @property
    def port(self) -> int:
        """Its own port over Argo; over virtio-mmio that of the service."""


async def serve_until_left(
    guest: Guest,
    service: str,
    make_model: Callable[[Front], Model],
    *,
    leave: Callable[[Front], None] = lambda _front: None,
    settle: Callable[[], None] = lambda: None,
) -> int:
    """Serve the devices of `service` (or that of the arguments) until `sessions` front ends have said goodbye.

    Exit code 0, or 1 where the port cannot be served.  `leave` runs when a front end has gone for good, `settle` at the
    end: it adds to the report.
    """
    arguments = {"service": service, **guest.arguments}
    port = args.service_port(arguments)
    sessions = args.whole(arguments, "sessions", 1)
    ring = args.ring_size(arguments, default=RING)
    source = args.peer(guest, "from", optional=True)
    counted = {"sessions": 0, "lost": 0, "trouble": 0}
    enough = asyncio.Event()

    def left(front: Front, reason: str) -> None:
        guest.log(f"front end of domain {front.domid} left: {reason}")
        counted["sessions" if reason == GOODBYE else "lost"] += 1
        guest.result(**counted)
        if sessions and counted["sessions"] >= sessions:
            enough.set()

    def gone(client: Client, reason: str) -> None:
        leave(client)
        left(client, reason)

    def trouble(client: Client, why: str) -> None:
        guest.log(f"front end of domain {client.domid}: {why}")
        counted["trouble"] += 1

    async with contextlib.AsyncExitStack() as stack:
        try:
            fronts = await _windows(guest, port, make_model, left, leave, stack)
            backend = None
            if not fronts or not sessions or sessions > fronts:
                partner = ANY if source is None else source
                backend = await serve(
                    guest.driver, port, make_model, partner=partner, ring_len=ring, on_left=gone, on_trouble=trouble
                )
                stack.push_async_callback(backend.close)
        except OSError as exc:
            return give_up(guest, f"cannot serve at port {port:#x}", exc)
        guest.log(f"serving {arguments['service']} at port {port:#x}")
        await enough.wait()
    settle()
    if backend is not None:
        traffic = backend.traffic
        guest.result(
            messages=traffic.sent + traffic.received, bytes_sent=traffic.bytes_sent,
            bytes_received=traffic.bytes_received, sendv=traffic.sendv,
        )  # fmt: skip
    guest.result(**counted)
    return 0


async def _windows(
    guest: Guest,
    port: int,
    make_model: Callable[[Front], Model],
    left: Callable[[Front, str], None],
    leave: Callable[[Front], None],
    stack: contextlib.AsyncExitStack,
) -> int:
    """Serve those whose device model this guest is; how many devices that are."""
    if not any(front.port == port for front in guest.fronts):
        return 0
    from guest_node.programs.back_mmio import Windows  # for device models alone

    windows = Windows(guest, port)

    async def close() -> None:
        guest.result(**windows.report())
        await windows.close()
        for front in windows.served:
            leave(front)

    stack.push_async_callback(close)
    await windows.open(make_model, left)
    return len(windows.fronts)
