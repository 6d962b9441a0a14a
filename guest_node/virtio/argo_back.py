"""A VirtIO-Argo back end: a virtio-msg bus at one Argo port, any number of front ends, each with models of its own.

First contact comes into the ring that takes from anybody.  Who says HELLO gets a ring for its domain, so that no front
end's flood holds up another; messages are consumed as they come, whatever becomes of the answers.  The driver core's
pump serves all of it: there is no task of its own while nobody says HELLO.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.hypercall import error
from guest_node.virtio.argo_channel import Channel
from guest_node.virtio.argo_client import Client, pack_refusal
from guest_node.virtio.argo_device import OFFERED
from guest_node.virtio.argo_outbox import Traffic
from guest_node.virtio.argo_pack import SMALLEST_MESSAGE, largest_in
from guest_node.virtio.model import Model
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.calls import Outgoing
from hmx.argo.ring import max_message_size
from hmx.errno import Errno
from hmx.virtio.argo import BYE, MESSAGE_TYPE_VIRTIO, Variant, is_data, pack_bye
from hmx.virtio.msg import (
    ARGO,
    BusId,
    HelloData,
    Message,
    MessageError,
    MsgType,
    Reason,
    pack_error,
    pack_message,
    pack_response,
    row,
    unpack_message,
    unpack_payload,
)

__all__ = ["ArgoBackend", "Client", "Limits", "serve"]

DEFAULT_RING_LEN: Final = 1 << 20
LISTEN_RING_LEN: Final = 1 << 16
FAULTS_KEPT: Final = 16


class Limits(NamedTuple):
    """What a back end bears: front ends in all and of one domain, and bytes under way for each queue and direction."""

    clients: int = 64
    of_a_domain: int = 16
    window: int = 2 << 20


class ArgoBackend:
    """Devices at `port`.  `await start()` after `add_device`, or `serve` for both; at last `await close()`.

    `partner`: the one domain that is served, DOMID_ANY: whoever comes.  `on_left(client, reason)` is called when a
    front end went: "bye", "gone", "replaced" (it said HELLO again), "refused" (it takes no answers), "fault", "closed".
    `on_trouble(client, why)`: one of its devices needs a reset; `faults` has what models raised, the last few.
    """

    def __init__(
        self,
        driver: ArgoDriver,
        port: int,
        *,
        partner: int = DOMID_ANY,
        ring_len: int = DEFAULT_RING_LEN,
        variants: tuple[Variant, ...] = tuple(Variant),
        features: int = OFFERED,
        limits: Limits | None = None,
        on_left: Callable[[Client, str], None] | None = None,
        on_trouble: Callable[[Client, str], None] | None = None,
    ) -> None:
        self.port = port
        self.traffic = Traffic()
        self.faults: deque[BaseException] = deque(maxlen=FAULTS_KEPT)  # what models raised
        self.shared = 0  # front ends for whom there was no ring of their own
        self._driver = driver
        self._partner = partner
        self._ring_len = ring_len
        self._variants = variants
        self._features = features
        self._limits = limits or Limits()
        self._on_left = on_left
        self._on_trouble = on_trouble
        self._makers: dict[int, Callable[[Client], Model]] = {}
        self._clients: dict[Address, Client] = {}
        self._channels: dict[int, Channel] = {}  # by domain
        self._through: dict[Address, Channel] = {}
        self._listening: Channel | None = None
        self._greeting: dict[Address, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()  # for the table of channels
        self._leaving: set[asyncio.Task[None]] = set()
        self._instance = driver.randomness.getrandbits(64)
        self._closed = False

    @property
    def clients(self) -> tuple[Client, ...]:
        """The front ends, in the order of their HELLO."""
        return tuple(self._clients.values())

    # -- devices ----

    def add_device(self, number: int, make_model: Callable[[Client], Model]) -> None:
        """Plug in device `number` (0 to 65535): every front end is told, and gets a model when it asks for it.

        `make_model` may raise OSError: that front end is refused the device, with that errno.  ValueError when there is
        such a device.
        """
        if number in self._makers or not 0 <= number <= 0xFFFF:
            raise ValueError(f"device {number} is there already, or no device's number")
        self._makers[number] = make_model
        for client in self.clients:
            client.came(number)

    def remove_device(self, number: int) -> None:
        """Unplug device `number`; its models are reset.  KeyError when there is none."""
        del self._makers[number]
        for client in self.clients:
            client.went(number)

    # -- life ----

    async def start(self) -> None:
        """Register the ring.  Raises OSError: EADDRINUSE, EPERM (to serve anybody, mac-permissive is needed)."""
        channel = Channel(self, self._partner)
        ring_len = LISTEN_RING_LEN if self._partner == DOMID_ANY else self._ring_len
        channel.ring = await self._driver.rings.bind(
            self.port, self._partner, ring_len, channel, largest=largest_in(ring_len)
        )
        self._listening = channel
        self._driver.open_sockets[self] = None

    async def close(self) -> None:
        """Say BYE to every front end, reset the models, unregister the rings.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._driver.open_sockets.pop(self, None)
        for task in [*self._greeting.values()]:
            task.cancel()
        for client in self.clients:
            self._forget(client, "closed")
            self._stranger(client.address, pack_message(Message(MsgType.BUS, BYE, 0, 0, pack_bye())))
        await self._driver.controls.flush_all()
        async with self._lock:
            channels, self._channels = [*self._channels.values()], {}
            if self._listening is not None:
                channels.append(self._listening)
            for channel in channels:
                if channel.ring is not None and self._driver.failure is None:
                    await self._driver.rings.unbind(channel.ring)

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        del cause
        self._closed = True
        for client in self.clients:
            self._forget(client, "closed")

    def lost(self, channel: Channel) -> None:
        """Messages were lost: the queues of whoever came through this ring are worth nothing."""
        for address, client in list(self._clients.items()):
            if self._through.get(address) is channel:
                for device in list(client.devices.values()):
                    device.broke("messages were lost")

    # -- messages ----

    def receive(self, channel: Channel, source: Address, payload: memoryview) -> None:
        """One message.  Nothing that it holds raises."""
        traffic = self.traffic
        traffic.received += 1
        traffic.bytes_received += len(payload)
        if self._closed:
            return
        client = self._clients.get(source)
        try:
            if not is_data(payload):
                self._control(channel, source, client, payload)
            elif client is not None:
                client.receive(payload)
            else:
                self._unknown(source)
        except Exception as defect:  # of a model: nobody else is to suffer
            self._fault(defect)
            if client is not None and not client.ended:
                self._forget(client, "fault")

    def _control(self, channel: Channel, source: Address, client: Client | None, payload: memoryview) -> None:
        hello = bye = False
        message = None
        try:
            message = unpack_message(payload)
            hello = message.bus and not message.response and message.msg_id == BusId.HELLO
            bye = message.bus and message.msg_id == BYE
        except MessageError:
            pass
        if message is not None and hello:
            self._hello(channel, source, message._replace(payload=bytes(message.payload)))
        elif client is None:
            if message is not None and not message.response and not bye:
                self._unknown(source, message)
        elif bye:
            self._forget(client, "bye")
        else:
            client.receive(payload)

    def _unknown(self, source: Address, message: Message | None = None) -> None:
        """Somebody who did not say HELLO, or said it to whoever served here before: there is no connection.

        A request is answered, so that its token proves who answers; anything else gets BYE.
        """
        if message is None or message.event:
            message = Message(MsgType.BUS, BYE, 0, 0, pack_bye(Errno.ENOTCONN))
            self._stranger(source, pack_message(message))
        else:
            self._stranger(source, pack_refusal(message, Errno.ENOTCONN))

    def _stranger(self, to: Address, message: bytes) -> None:
        """Send to somebody for whom nothing is kept; dropped when too much waits for him."""
        self._driver.controls.post(Outgoing(to, self.port, (message,), MESSAGE_TYPE_VIRTIO))

    # -- HELLO ----

    def _hello(self, channel: Channel, source: Address, message: Message) -> None:
        if source in self._greeting:
            return  # the answer to the first is on its way
        try:
            asked: HelloData = unpack_payload(row(BusId.HELLO).request, message.payload)
            variant = self._judge(source, asked)
        except MessageError as refused:
            answer = pack_error(message, refused.reason, ARGO)
            if answer is not None:
                self._stranger(source, answer)
            return
        # Who has a ring of his own, and yet comes through the common one, has been born anew: that ring is gone.
        stale = channel is self._listening and source.domid in self._channels
        task = asyncio.get_running_loop().create_task(self._greet(source, message, asked, variant, stale))
        self._greeting[source] = task
        task.add_done_callback(lambda _: self._greeting.pop(source, None))

    def _judge(self, source: Address, asked: HelloData) -> Variant:
        """The variant to use.  Raises MessageError."""
        if asked.revision < ARGO.number:
            raise MessageError(Reason.REVISION, f"revision {asked.revision:#x}")
        variant = next((variant for variant in self._variants if asked.features >> variant & 1), None)
        if variant is None:
            raise MessageError(Reason.REVISION, f"variants {asked.features:#x}")
        if asked.max_message < SMALLEST_MESSAGE or not asked.window:
            raise MessageError(Reason.INVALID, f"messages of {asked.max_message} bytes, a window of {asked.window}")
        others = [*self._clients, *self._greeting]
        here = sum(address.domid == source.domid for address in others)
        if source not in self._clients and (len(others) >= self._limits.clients or here >= self._limits.of_a_domain):
            raise MessageError(Reason.STATE, "too many front ends")
        return variant

    async def _greet(self, source: Address, message: Message, asked: HelloData, variant: Variant, stale: bool) -> None:
        before = self._clients.get(source)
        if before is not None:
            self._forget(before, "replaced")
        channel = await self._channel(source.domid, stale)
        if self._closed or channel.ring is None:
            return
        channel.users += 1
        self._through[source] = channel
        window = min(asked.window, self._limits.window)
        client = Client(
            self._driver,
            self.port,
            source,
            variant,
            window,
            asked.max_message,
            self._features,
            self._makers,
            self._forget,
            self._fault,
            self._troubled,
            self.traffic,
        )
        self._clients[source] = client
        self._driver.watch(client, source, lambda: self._forget(client, "gone"))
        largest = max_message_size(channel.ring.memory.ring_len)
        client.post(pack_response(message, HelloData(ARGO.number, largest, 1 << variant, window, self._instance)))

    async def _channel(self, domid: int, stale: bool) -> Channel:
        """The ring that messages of this domain come through; the common one where there can be no other."""
        assert self._listening is not None
        if self._partner != DOMID_ANY:
            return self._listening
        async with self._lock:
            channel = self._channels.get(domid)
            if channel is not None and stale:
                del self._channels[domid]
                if channel.ring is not None:
                    await self._driver.rings.unbind(channel.ring)
                channel = None
            if channel is None:
                channel = Channel(self, domid)
                try:
                    largest = largest_in(self._ring_len)
                    channel.ring = await self._driver.rings.bind(
                        self.port, domid, self._ring_len, channel, peer_only=True, largest=largest
                    )
                except OSError:
                    self.shared += 1
                    return self._listening
                self._channels[domid] = channel
            return channel

    # -- leaving ----

    def _forget(self, client: Client, reason: str) -> None:
        if self._clients.get(client.address) is not client:
            return
        del self._clients[client.address]
        self._driver.unwatch(client)
        channel = self._through.pop(client.address, None)
        try:
            client.end(reason)
        except Exception as defect:
            self._fault(defect)
        if channel is not None:
            channel.users -= 1
            if not channel.users and channel is not self._listening and not self._closed:
                task = asyncio.get_running_loop().create_task(self._release(channel))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        if self._on_left is not None:
            self._on_left(client, reason)

    async def _release(self, channel: Channel) -> None:
        async with self._lock:
            if channel.users or self._channels.get(channel.partner) is not channel or channel.ring is None:
                return
            if self._greeting or self._closed:
                return  # whoever says HELLO now may be about to use it; the next to leave looks again
            del self._channels[channel.partner]
            await self._driver.rings.unbind(channel.ring)

    def _fault(self, defect: BaseException) -> None:
        self.faults.append(defect)

    def _troubled(self, client: Client, why: str) -> None:
        if self._on_trouble is not None:
            self._on_trouble(client, why)


async def serve(
    driver: ArgoDriver,
    port: int,
    make_model: Callable[[Client], Model],
    *,
    device: int = 0,
    partner: int = DOMID_ANY,
    ring_len: int = DEFAULT_RING_LEN,
    variants: tuple[Variant, ...] = tuple(Variant),
    features: int = OFFERED,
    limits: Limits | None = None,
    on_left: Callable[[Client, str], None] | None = None,
    on_trouble: Callable[[Client, str], None] | None = None,
) -> ArgoBackend:
    """A back end at `port` with one device.  `make_model(client)` makes the model of each front end; see ArgoBackend.

    Raises OSError: EADDRINUSE, EPERM, or what else the hypervisor answers.
    """
    if not variants:
        raise error(Errno.EINVAL, "a back end speaks one variant at least")
    backend = ArgoBackend(
        driver,
        port,
        partner=partner,
        ring_len=ring_len,
        variants=variants,
        features=features,
        limits=limits,
        on_left=on_left,
        on_trouble=on_trouble,
    )
    backend.add_device(device, make_model)
    await backend.start()
    return backend
