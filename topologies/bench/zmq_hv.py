"""The peer `zmq-hv`: this hypervisor's own Argo core behind a pyzmq ipc DEALER-ROUTER pair.

What would hypercalls cost if they travelled as messages?  The same checks and the same copy run in a process of
their own; only the way there differs: a request is a msgpack array (op and four arguments), the answer one
integer, and at most 64 are on their way.  Interrupts are eventfds, which favours this peer.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from typing import Any, Final

import msgpack
import zmq

from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hv_node.argo.core import Argo
from hv_node.argo.options import parse_options
from hv_node.domain import Domain, DomainTable
from hv_node.xsm import xsm_by_name
from topologies.bench.transports import Buffer, End, Endpoint, zmq_socket

WINDOW: Final = 64
PORT: Final = 7
SENDER: Final = 1
RECEIVER: Final = 2
_SLOT_HEAD: Final = 64
_EAGAIN: Final = -int(Errno.EAGAIN)
_ECONNREFUSED: Final = -int(Errno.ECONNREFUSED)


class _Sink:
    """Effects of the core: interrupts only."""

    def __init__(self, bells: dict[int, int]) -> None:
        self._bells = bells

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:  # noqa: ARG002
        os.eventfd_write(self._bells[domid], 1)

    def post(self, domid: int, vcpu: int, entry: int) -> None:
        pass

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None:
        pass

    def set_timer(self, key: object, deadline_ns: int) -> None:
        pass

    def complete(self, token: object, ret: int) -> None:
        pass

    def event(self, code: str, *fields: Any) -> None:
        pass


class ZmqHypervisor:
    """A hypervisor process and two guests that call it over ZeroMQ."""

    def __init__(self, directory: str, size: int, ring_len: int) -> None:
        self._path = f"ipc://{directory}/hv"
        self._size, self._ring_len = size, ring_len
        self._slot = -(-(_SLOT_HEAD + size) // PAGE_SIZE) * PAGE_SIZE
        self._ram = {
            SENDER: mmap.mmap(-1, (WINDOW + 1) * self._slot + 64 * PAGE_SIZE),
            RECEIVER: mmap.mmap(-1, (npages_for(ring_len) + 64) * PAGE_SIZE),
        }
        self._bells = {SENDER: os.eventfd(0), RECEIVER: os.eventfd(0)}
        self.helpers: tuple[Callable[[], None], ...] = (self._hypervisor,)

    def _hypervisor(self) -> None:
        router = zmq_socket(zmq.ROUTER, self._path, bind=True)
        domains = DomainTable()
        argo = Argo(domains, xsm_by_name("dummy"), _Sink(self._bells), parse_options("1")[0])
        callers = {}
        for domid, ram in self._ram.items():
            domain = callers[b"%d" % domid] = Domain(domid, MappedMemory(ram))
            domains.create(domain)
            argo.domain_init(domain)
        pack, unpack = msgpack.packb, msgpack.unpackb
        broken = dict.fromkeys(callers, False)
        while True:
            identity, request = router.recv_multipart()
            link, *call = unpack(request)
            if link and broken[identity]:
                ret = -int(Errno.ECANCELED)  # as a LINKed trap frame: nothing overtakes what found no room
            else:
                ret = argo.op(callers[identity], *call)
                broken[identity] = ret < 0
            router.send_multipart([identity, pack(ret)])

    def close(self) -> None:
        """Unmap the guests' memories, close their bells."""
        for ram in self._ram.values():
            ram.close()
        for bell in self._bells.values():
            os.close(bell)

    def _connect(self, domid: int) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        made.setsockopt(zmq.IDENTITY, b"%d" % domid)
        made.set_hwm(1000)
        made.connect(self._path)
        return made

    def sender(self) -> Endpoint:
        """Calls sendv with a window of 64."""
        return _Sender(self._connect(SENDER), self._ram[SENDER], self._slot, self._size)

    def receiver(self) -> Endpoint:
        """Drains its ring."""
        return _Receiver(self._connect(RECEIVER), self._ram[RECEIVER], self._ring_len, self._bells[RECEIVER])


class _Sender(End):
    def __init__(self, made: zmq.Socket[bytes], ram: mmap.mmap, slot: int, size: int) -> None:
        self._socket, self._size = made, size
        self._view = memoryview(ram)
        self._requests: list[tuple[bytes, bytes]] = []  # without LINK, with it
        self._at = []
        for index in range(WINDOW):
            base = PAGE_SIZE + index * slot
            at = base + _SLOT_HEAD
            abi.SEND_ADDR.pack_into(ram, base, PORT, DOMID_ANY, 0, PORT, RECEIVER, 0)
            abi.IOV.pack_into(ram, base + abi.SEND_ADDR.size, at, size, 0)
            call = (int(Op.SENDV), base, base + abi.SEND_ADDR.size, 1, 1)
            self._requests.append((msgpack.packb((0, *call)), msgpack.packb((1, *call))))
            self._at.append(at)
        self._sent = self._taken = 0

    def send(self, message: bytearray) -> None:
        """Put a message into the window."""
        slot = self._sent % WINDOW
        while self._sent - self._taken >= WINDOW:
            self._collect()
        at = self._at[slot]
        self._view[at : at + self._size] = message
        self._socket.send(self._requests[slot][self._sent > self._taken])
        self._sent += 1

    def _collect(self) -> None:
        ret = msgpack.unpackb(self._socket.recv())
        if ret == self._size:
            self._taken += 1
            return
        if ret not in (_EAGAIN, _ECONNREFUSED):
            raise OSError(-ret, "sendv")
        # What was sent after it was not executed: take the answers, give the receiver time, send all again.
        for _ in range(self._taken + 1, self._sent):
            self._socket.recv()
        time.sleep(0.0002)
        for index in range(self._taken, self._sent):
            self._socket.send(self._requests[index % WINDOW][index > self._taken])

    def flush(self) -> None:
        """Wait until the hypervisor has taken everything."""
        while self._taken < self._sent:
            self._collect()

    def receive(self) -> Buffer:
        """Nothing comes back in this peer."""
        raise NotImplementedError


class _Receiver(End):
    def __init__(self, made: zmq.Socket[bytes], ram: mmap.mmap, ring_len: int, bell: int) -> None:
        self._socket, self._bell = made, bell
        count = npages_for(ring_len)
        gfns = b"".join(abi.GFN.pack(frame) for frame in range(64, 64 + count))
        ram[PAGE_SIZE : PAGE_SIZE + len(gfns)] = gfns
        abi.REGISTER_RING.pack_into(ram, 0, PORT, SENDER, 0, ring_len)
        window = Window(ram, 64 * PAGE_SIZE, count * PAGE_SIZE)
        made.send(msgpack.packb([0, int(Op.REGISTER_RING), 0, PAGE_SIZE, count, 0]))
        ret = msgpack.unpackb(made.recv())
        if ret:
            raise OSError(-ret, "register_ring")
        self._consumer = Consumer(window, ring_len)
        self._ring_len = ring_len
        self._owed = 0
        self._batch: list[bytes] = []

    def receive(self) -> Buffer:
        """The next message; drains the ring in batches."""
        while not self._batch:
            self._batch = [message.payload for message in self._consumer.drain(64)]
            self._owed += sum(len(payload) + 32 for payload in self._batch)
            if self._owed * 4 >= self._ring_len or (self._owed and not self._batch):
                self._owed = 0
                self._socket.send(msgpack.packb([0, int(Op.NOTIFY), 0, 0, 0, 0]))
                self._socket.recv()
            elif not self._batch:
                os.eventfd_read(self._bell)
            self._batch.reverse()
        return self._batch.pop()

    def send(self, message: bytearray) -> None:
        """Nothing goes back."""
