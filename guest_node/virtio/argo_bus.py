"""A front end's connection to one VirtIO-Argo back end: a virtio-msg bus at an Argo port.

One ring of ours takes everything that comes from it.  HELLO agrees on revision, variant and sizes; requests of the
control plane are matched with their answers by token; what the queues of all devices have to say goes out together.
A back end that is gone or silent ends the connection: every device on it is broken until it was reset, which says
HELLO anew.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from errno import EPROTO
from typing import Any, Final, TypeVar

from guest_node.drivers.core import ArgoDriver
from guest_node.drivers.rings import DriverRing
from guest_node.virtio.argo_outbox import Outbox, Traffic
from guest_node.virtio.argo_pack import SMALLEST_MESSAGE, largest_in, pack
from guest_node.virtio.argo_pulse import Pulse
from guest_node.virtio.argo_requests import NoAnswer, RequestRefused, Requests, broken_by
from guest_node.virtio.argo_transport import ArgoTransport
from guest_node.virtio.frontend import DeviceBroken
from hmx.argo.abi import DOMID_ANY, Address
from hmx.argo.ring import max_message_size
from hmx.errno import Errno
from hmx.virtio.argo import (
    BYE,
    MESSAGE_TYPE_VIRTIO,
    Malformed,
    Variant,
    decode,
    flow_of,
    is_data,
    misplaced,
    pack_bye,
    parse_bye,
)
from hmx.virtio.memory import Buffer
from hmx.virtio.msg import (
    ARGO,
    BusId,
    DeviceState,
    HelloData,
    Message,
    MessageError,
    MsgId,
    MsgType,
    pack_message,
    row,
    unpack_message,
    unpack_payload,
)
from hmx.virtio.msg_client import Call, Caller

MAX_DEVICES: Final = 256  # of one bus that we look at

T = TypeVar("T")


def _nothing(*_: object) -> None:
    pass


class ArgoBus:
    """A connection; made by `discover` and `connect` of argo_front.

    `devices`: every device that there is, by number; `refused`: those that the back end does not let us have.
    `on_device(number, present)` runs when one came or went.
    """

    def __init__(
        self,
        driver: ArgoDriver,
        address: Address,
        *,
        variant: Variant | str,
        ring_len: int,
        timeout: float,
        window: int,
        ping_after: float,
    ) -> None:
        self.address = address
        self.variant = Variant.named(variant) if isinstance(variant, str) else variant
        self.ring_len = ring_len
        self.window = 0  # granted
        self.timeout = timeout
        self.traffic = Traffic()
        self.devices: dict[int, ArgoTransport] = {}
        self.refused: dict[int, RequestRefused] = {}
        self.on_device: Callable[[int, bool], None] = _nothing
        self.port = 0
        self.connected = False
        self.sessions = 0  # times that HELLO was answered
        self._driver = driver
        self._flow = flow_of(self.variant)
        self._wanted = window
        self._instance = driver.randomness.getrandbits(64)
        self._peer: tuple[int, int] | None = None  # (port, domid) that the answers come from
        self._ring: DriverRing | None = None
        self._outbox: Outbox | None = None
        self._caller = Caller()
        self._requests = Requests(f"port {address.port:#x} of domain {address.domid}", timeout)
        self._opening: asyncio.Lock = asyncio.Lock()
        self._pulse = Pulse(ping_after, self._concerned, lambda: self.traffic.received, self._ping)
        self._together = False  # several answers came at once: several tasks are about to speak
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._closing = False  # nothing is sent or received any more
        self._cause: BaseException | None = None  # the driver ended

    # -- opening ----

    async def open(self) -> None:
        """Register our ring and say HELLO; for `discover`.

        Raises OSError: ECONNREFUSED or ESRCH where nobody serves, ETIMEDOUT, EOPNOTSUPP for a variant or a revision
        that the back end does not have, EPROTO for answers that make no sense.
        """
        self.port = self._driver.rings.auto_port()
        self._driver.open_sockets[self] = None
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise

    async def connect(self) -> None:
        """Say HELLO, and see which devices there are, unless that is so already."""
        async with self._opening:
            if self.connected:
                return
            if self._ending:
                raise OSError(int(Errno.EBADF), "this connection is closed")
            if self._outbox is not None:
                self._outbox.close()
            await self._bind()
            self._outbox = Outbox(self._driver, self.port, self.address, self._gather, self.fail, self.traffic)
            try:
                await self._hello()
                self.connected = True
                self.sessions += 1
                await self._enumerate()
            except DeviceBroken as broken:
                self.connected = False
                raise OSError(broken.errno, broken.strerror) from broken

    async def _bind(self) -> None:
        """Register our ring, anew if it was: the hypervisor has taken it away if it was for a domain that died."""
        ring, self._ring, self._peer = self._ring, None, None
        if ring is not None:
            await self._driver.rings.unbind(ring)
        ring_len, rings = self.ring_len, self._driver.rings
        self._ring = await rings.bind(self.port, self.address.domid, ring_len, self, largest=largest_in(ring_len))

    async def _hello(self) -> None:
        ours = max_message_size(self.ring_len)
        asked = HelloData(ARGO.number, ours, 1 << self.variant, self._wanted, self._instance)
        theirs = await self.call(self._caller.hello(asked))
        if theirs.revision != ARGO.number or theirs.features != 1 << self.variant:
            other = f"the back end would speak revision {theirs.revision:#x}, variants {theirs.features:#x}"
            raise DeviceBroken(int(Errno.EOPNOTSUPP), f"{other}: not what it was asked for")
        if theirs.max_message < SMALLEST_MESSAGE:
            raise DeviceBroken(EPROTO, f"the back end takes messages of {theirs.max_message} bytes only")
        self.window = min(theirs.window, self._wanted)
        assert self._outbox is not None
        self._outbox.sized(theirs.max_message)

    async def _enumerate(self) -> None:
        """GET_DEVICES until the end; devices that are no more are broken, new ones are added."""
        found: list[int] = []
        offset = 0
        while len(found) < MAX_DEVICES:
            numbers, offset = await self.call(self._caller.devices(offset))
            found += numbers
            if not offset:
                break
        del found[MAX_DEVICES:]
        for number in [number for number in self.devices if number not in found]:
            self._removed(number)
        self.refused.clear()
        for number in [number for number in found if number not in self.devices]:
            try:
                await self._add(number)
            except RequestRefused as refused:
                self.refused[number] = refused

    async def _add(self, number: int) -> None:
        transport = ArgoTransport(self, number)
        await transport.identify()
        self.devices[number] = transport

    # -- requests ----

    async def call(self, call: Call[T]) -> T:
        """Send a request and return what its answer says.

        Raises RequestRefused (a DeviceBroken; the connection stays) with the errno that the back end gave, DeviceBroken
        when the back end is gone or silent.
        """
        outbox = self._outbox
        if outbox is None or self._closing:
            raise DeviceBroken(int(Errno.EBADF), "the connection is closed")
        try:
            return await self._requests.call(outbox, call)
        except NoAnswer as silent:
            broken = DeviceBroken(int(Errno.ETIMEDOUT), str(silent))
            self.fail(broken)
            raise broken from None
        except RequestRefused as refused:
            if refused.errno == Errno.ENOTCONN:
                self.fail(refused)
            raise

    async def flush(self, lonely: bool) -> None:
        """Send what the queues have to say.

        When other chains are under way, or several answers came at once, other tasks are likely to submit in this very
        turn of the loop: their chains share the message.
        """
        outbox = self._outbox
        if outbox is None:
            return
        self._pulse.start()
        if lonely and not self._together:
            await outbox.flush()
        else:
            outbox.wake()
            await outbox.idle()

    def wake(self) -> None:
        """Send what the queues have to say, soon."""
        if self._outbox is not None:
            self._outbox.wake()

    def _gather(self, limit: int) -> list[list[Buffer]]:
        self._together = False
        batches = [batch for transport in self.devices.values() for batch in transport.gather()]
        return pack(batches, self._flow.driver, self._flow.joined, limit) if batches else []

    # -- the back end's life ----

    def _concerned(self) -> bool:
        return self.connected and any(transport.under_way for transport in self.devices.values())

    async def _ping(self) -> None:
        if self._outbox is not None and not self._outbox.busy:  # else its ring is full, and a PING would wait like all
            await self.call(self._caller.ping(self.traffic.received & 0xFFFFFFFF))

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def fail(self, cause: BaseException) -> None:
        """The connection ended: everything under way is lost, and every device is broken."""
        self.connected = False
        if self._outbox is not None:
            self._outbox.close()
        broken = broken_by(cause)
        self._requests.fail(broken)
        for transport in list(self.devices.values()):
            transport.lost(broken)

    # -- RingSink ----

    def receive(self, source_port: int, source_domid: int, message_type: int, payload: memoryview) -> bool:
        """One message; what is not the back end's is dropped."""
        if message_type != MESSAGE_TYPE_VIRTIO or self._closing:
            return True
        peer = self._peer
        if peer is None:
            if not self._may_begin(source_port, source_domid, payload):
                return True
        elif peer != (source_port, source_domid):
            self._stranger(payload)
            return True
        traffic = self.traffic
        traffic.received += 1
        traffic.bytes_received += len(payload)
        try:
            if is_data(payload):
                self._data(payload)
            else:
                self._control(unpack_message(payload), payload)
        except (Malformed, MessageError) as nonsense:
            self.fail(OSError(EPROTO, f"the back end sent what is no message: {nonsense}"))
        return True

    def _may_begin(self, port: int, domid: int, payload: memoryview) -> bool:
        """Whether this is the answer to our HELLO: then its sender is our back end.

        An implicit destination names nobody, so the token has to do.
        """
        if self.address.domid not in (DOMID_ANY, domid):
            return False
        try:
            if not self._requests.greets(unpack_message(payload)):
                return False
        except MessageError:
            return False
        self._peer = (port, domid)
        return True

    def _stranger(self, payload: memoryview) -> None:
        """Somebody else than our back end.  An implicit destination may lead to another one by now, which says that it
        does not know us.  Anybody might say so, thus it has to answer a request.
        """
        if self.address.domid != DOMID_ANY:
            return
        try:
            message = unpack_message(payload)
            if self._requests.disowns(message):
                self.fail(OSError(int(Errno.ENOTCONN), "another back end is there now, which does not know us"))
            elif message.bus and message.msg_id == BYE:
                self._pulse.ask()
        except MessageError:
            pass

    def _data(self, payload: memoryview) -> None:
        woken = 0
        for update in decode(payload):
            wrong = misplaced(update, self._flow, self._flow.device)
            if wrong is not None:
                raise Malformed(wrong)
            transport = self.devices.get(update.dev_num)
            if transport is not None:
                woken += transport.receive(update)
        if woken > 1:
            self._together = True

    def _control(self, message: Message, payload: memoryview) -> None:
        if message.response:
            self._requests.answered(message, payload)
        elif message.bus and message.msg_id == BusId.EVENT_DEVICE:
            event = unpack_payload(row(BusId.EVENT_DEVICE).request, message.payload)
            if event.state == DeviceState.REMOVED:
                self._removed(event.dev_num)
            elif event.state == DeviceState.READY and len(self._tasks) + len(self.devices) < MAX_DEVICES:
                self._background(self._plugged(event.dev_num))
        elif message.bus and message.msg_id == BYE:
            reason = parse_bye(message.payload)
            self.fail(OSError(reason or int(Errno.ECONNREFUSED), "the back end ended the connection"))
        elif message.bus and message.msg_id == BusId.PING and self._outbox is not None:
            self._outbox.post(pack_message(message._replace(type=message.type | MsgType.RESPONSE)))
            self._outbox.wake()
        elif not message.bus and message.msg_id == MsgId.EVENT_CONFIG:
            transport = self.devices.get(message.dev_num)
            if transport is not None:
                transport.config_event(unpack_payload(row(MsgId.EVENT_CONFIG).request, message.payload))

    async def _plugged(self, number: int) -> None:
        try:
            async with self._opening:
                if number in self.devices or not self.connected:
                    return
                await self._add(number)
        except DeviceBroken:
            return  # it is gone again, or the back end is
        self.on_device(number, True)

    def _removed(self, number: int) -> None:
        transport = self.devices.pop(number, None)
        if transport is not None:
            transport.removed()
            self.on_device(number, False)

    def lost(self, ring: DriverRing) -> None:  # noqa: ARG002
        """Our ring held nonsense."""
        self.fail(OSError(int(Errno.EIO), "the ring held what no hypervisor wrote; messages are lost"))

    def broken(self, cause: BaseException) -> None:
        """The driver ended."""
        self._cause = cause
        self.fail(cause)

    # -- closing ----

    async def close(self) -> None:
        """Say BYE and unregister our ring.  Whoever waits gets DeviceBroken.  Idempotent."""
        if self._ending:
            return
        self._ending = True
        self._driver.open_sockets.pop(self, None)
        outbox, ring = self._outbox, self._ring
        if self.connected and outbox is not None:
            outbox.post(pack_message(Message(MsgType.BUS, BYE, 0, 0, pack_bye())))
            try:
                async with asyncio.timeout(self.timeout):
                    await outbox.flush()
            except TimeoutError:
                pass  # its ring stays full: it will find ours gone
        self._closing = True
        self.fail(DeviceBroken(int(Errno.EBADF), "the connection was closed"))
        self._pulse.stop()
        for task in self._tasks:
            task.cancel()
        if ring is not None and self._cause is None:
            await self._driver.rings.unbind(ring)
