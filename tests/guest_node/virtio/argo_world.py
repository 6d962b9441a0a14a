"""Front ends and back ends of VirtIO-Argo in one loop, over the hypervisor's Argo core, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from guest_node.drivers.core import ArgoDriver
from guest_node.virtio.argo_back import ArgoBackend, Client, serve
from guest_node.virtio.argo_front import ArgoTransport, connect
from guest_node.virtio.drivers.negotiate import Negotiated, Wants, negotiate
from guest_node.virtio.frontend import Queue
from guest_node.virtio.model import Request
from guest_node.virtio.models.base import BaseModel
from hmx.argo.abi import Address
from hmx.virtio.argo import Variant
from hmx.virtio.features import Feature, feature_set
from tests.doubles.argo_rig import Rig

PORT = 0xD0000
ECHO_ID = 42  # no device type of VIRTIO's
FORMATS = (0, feature_set(Feature.RING_PACKED))  # features to avoid: packed is what a driver takes when it is offered
SPLIT_ONLY = feature_set(Feature.RING_PACKED)


def answer_to(data: bytes, room: int) -> bytes:
    """What EchoModel answers."""
    return bytes(byte ^ 0x5A for byte in (data or b"?")) * (room // max(1, len(data)) + 1)


class EchoModel(BaseModel):
    """Answers each request with its bytes, changed and repeated until they fill the room (less `short` bytes).

    `delay`: None, at once; else a coroutine that is awaited first, so that answers come in any order.
    """

    device_id = ECHO_ID

    def __init__(
        self, queues: Sequence[int] = (16,), delay: Callable[[], Awaitable[None]] | None = None, short: int = 0
    ) -> None:
        super().__init__()
        self.queue_sizes = tuple(queues)
        self.delay = delay
        self.short = short
        self.seen: list[tuple[int, bytes, int]] = []
        self.started: list[int] = []
        self.resets = 0
        self.configuration = bytearray(range(40))
        self.tasks: set[asyncio.Task[None]] = set()

    def config(self) -> bytes:
        return bytes(self.configuration)

    def write_config(self, offset: int, data: bytes) -> bool:
        self.configuration[offset : offset + len(data)] = data
        return True

    def start(self, features: int) -> None:
        self.started.append(features)

    def reset(self) -> None:
        self.resets += 1

    def request(self, request: Request) -> None:
        data = bytes(request.readable)
        self.seen.append((request.queue, data, request.writable))
        room = max(0, request.writable - self.short)
        answer = answer_to(data, room)[:room]
        if self.delay is None:
            request.complete(answer)
            return
        delay = self.delay

        async def later() -> None:
            await delay()
            request.complete(answer)

        task = asyncio.get_running_loop().create_task(later())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class KeepingModel(BaseModel):
    """Keeps every request: a device that receives, or one that is slow."""

    device_id = ECHO_ID

    def __init__(self, queues: Sequence[int] = (16,)) -> None:
        super().__init__()
        self.queue_sizes = tuple(queues)
        self.kept: list[Request] = []
        self.resets = 0

    def request(self, request: Request) -> None:
        self.kept.append(request)

    def reset(self) -> None:
        self.resets += 1
        self.kept.clear()


class World:
    """A rig with one back end in domain 2 and front ends in domains from 1 on."""

    def __init__(self, seed: int = 0, *, mac_permissive: bool = True) -> None:
        self.rig = Rig(seed, mac_permissive=mac_permissive)
        self.random = random.Random(seed)
        self.drivers: dict[int, ArgoDriver] = {}
        self.models: list[EchoModel | KeepingModel] = []
        self.trouble: list[str] = []
        self.left: list[tuple[int, str]] = []
        self.backend: ArgoBackend | None = None

    async def driver(self, domid: int) -> ArgoDriver:
        found = self.drivers.get(domid)
        if found is None:
            found = self.drivers[domid] = self.rig.driver(domid)
            await found.start()
        return found

    async def serve(
        self, make: Callable[[], EchoModel | KeepingModel] = EchoModel, domid: int = 2, **options: object
    ) -> ArgoBackend:
        def made(client: Client) -> EchoModel | KeepingModel:
            model = make()
            self.models.append(model)
            return model

        def left(client: Client, reason: str) -> None:
            self.left.append((client.domid, reason))

        def troubled(client: Client, why: str) -> None:
            self.trouble.append(why)

        driver = await self.driver(domid)
        self.backend = await serve(
            driver, PORT, made, on_left=left, on_trouble=troubled, **options  # type: ignore[arg-type]
        )
        return self.backend

    async def connect(
        self, domid: int = 1, variant: Variant | str = Variant.INLINE, **options: object
    ) -> ArgoTransport:
        driver = await self.driver(domid)
        return await connect(driver, Address(PORT, 2), variant=variant, **options)  # type: ignore[arg-type]

    async def device(
        self,
        domid: int = 1,
        variant: Variant | str = Variant.INLINE,
        *,
        avoid: int = 0,
        size: int = 16,
        **options: object,
    ) -> tuple[ArgoTransport, Negotiated]:
        transport = await self.connect(domid, variant, **options)
        return transport, await live(transport, avoid=avoid, size=size)


async def live(transport: ArgoTransport, *, avoid: int = 0, size: int = 16) -> Negotiated:
    """Bring a device to life, with every queue that it has."""

    async def setup(features: int) -> list[Queue]:
        queues: list[Queue] = []
        while most := await transport.queue_max(len(queues)):
            queues.append(await transport.setup_queue(len(queues), min(most, size)))
        return queues

    return await negotiate(transport, Wants(transport.device_id, 0, 0, (), avoid), setup)


async def ask(queue: Queue, data: bytes, room: int) -> bytes:
    """One request."""
    future = queue.submit((data,) if data else (), room)
    await queue.kick()
    return await future
