"""The peers' endpoints: one class per transport, made before the fork, opened after it.

ZeroMQ peers use ipc and a high-water mark of 1000 at every socket.  An endpoint sends a buffer and receives one;
what it returns is valid until the next receive.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import zmq

HWM: Final = 1000
_SOCKET_BUFFER: Final = 8 << 20
_SO_SNDBUFFORCE: Final = 32  # Linux asm-generic/socket.h
_SO_RCVBUFFORCE: Final = 33

Buffer = bytes | bytearray | memoryview
FORK: Final = multiprocessing.get_context("fork")


class Unavailable(Exception):
    """This peer cannot run here; the message says why."""


class Endpoint(Protocol):
    """One end of a transport, in its own process."""

    def send(self, message: bytearray) -> None:
        """Send one message; may block for room."""

    def receive(self) -> Buffer:
        """The next message."""

    def flush(self) -> None:
        """Return when everything sent is on its way without this end's help."""


class End:
    """An end that never holds anything back."""

    def flush(self) -> None:
        """Nothing is held back."""


class Transport(Protocol):
    """A peer: `sender` and `receiver` make their ends, each in its process; `helpers` run beside them."""

    helpers: tuple[Callable[[], None], ...]

    def sender(self) -> Endpoint:
        """The end that talks first."""

    def receiver(self) -> Endpoint:
        """The end that answers."""

    def close(self) -> None:
        """Give back what was made before the fork."""


class _Bare:
    """A transport without helpers that made nothing before the fork."""

    helpers: tuple[Callable[[], None], ...] = ()

    def close(self) -> None:
        """There is nothing to give back."""


# ---- ZeroMQ -----------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A key pair in Z85, and for who connects the public key of the other end."""

    public: bytes
    secret: bytes
    server: bytes = b""


def zmq_socket(kind: int, path: str, *, bind: bool, curve: Curve | None = None) -> zmq.Socket[bytes]:
    """A socket with our high-water mark, in a context of its own process."""
    made: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    made.set_hwm(HWM)
    if curve is not None:
        made.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
        if bind:
            made.setsockopt(zmq.CURVE_SERVER, 1)
        else:
            made.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
            made.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
    made.setsockopt(zmq.LINGER, 1000)
    if bind:
        made.bind(path)
    else:
        made.connect(path)
    return made


class _Plain(End):
    def __init__(self, made: zmq.Socket[bytes]) -> None:
        self._socket = made

    def send(self, message: bytearray) -> None:
        self._socket.send(message)

    def receive(self) -> Buffer:
        return self._socket.recv()


class _Addressed(End):
    """An end behind a ROUTER: whoever spoke last is answered."""

    def __init__(self, made: zmq.Socket[bytes]) -> None:
        self._socket = made
        self._to = b""

    def send(self, message: bytearray) -> None:
        self._socket.send_multipart([self._to, message])

    def receive(self) -> Buffer:
        self._to, message = self._socket.recv_multipart()
        return message


class ZmqDirect(_Bare):
    """PAIR to PAIR, or DEALER to ROUTER, without anything between."""

    def __init__(self, directory: str, left: int, right: int) -> None:
        self._path = f"ipc://{directory}/direct"
        self._left, self._right = left, right

    def sender(self) -> Endpoint:
        """The connecting end."""
        return _Plain(zmq_socket(self._left, self._path, bind=False))

    def receiver(self) -> Endpoint:
        """The bound end."""
        made = zmq_socket(self._right, self._path, bind=True)
        return _Addressed(made) if self._right == zmq.ROUTER else _Plain(made)


class ZmqProxied(_Bare):
    """Two DEALERs with a zmq.proxy between them, whose front is a ROUTER (it addresses its peer) or a DEALER."""

    def __init__(self, directory: str, front: int) -> None:
        self._front, self._front_path, self._back_path = front, f"ipc://{directory}/front", f"ipc://{directory}/back"
        self._server: Curve | None = None
        self._client: Curve | None = None
        self.helpers = (self._proxy,)

    @classmethod
    def secured(cls, front: int) -> ZmqProxied:
        """The same over tcp on loopback with CURVE on both sides, as it would stand between machines."""
        made = cls("", front)
        server, client = zmq.curve_keypair(), zmq.curve_keypair()
        made._server, made._client = Curve(*server), Curve(*client, server[0])
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            made._front_path, made._back_path = (f"tcp://127.0.0.1:{end.getsockname()[1]}" for end in (one, other))
        return made

    def _proxy(self) -> None:
        front = zmq_socket(self._front, self._front_path, bind=True, curve=self._server)
        back = zmq_socket(zmq.DEALER, self._back_path, bind=True, curve=self._server)
        zmq.proxy(front, back)

    def sender(self) -> Endpoint:
        """At the front."""
        return _Plain(zmq_socket(zmq.DEALER, self._front_path, bind=False, curve=self._client))

    def receiver(self) -> Endpoint:
        """At the back."""
        made = zmq_socket(zmq.DEALER, self._back_path, bind=False, curve=self._client)
        return _Addressed(made) if self._front == zmq.ROUTER else _Plain(made)


# ---- without ZeroMQ ---------------------------------------------------------------------------------------


class _Packets(End):
    def __init__(self, end: socket.socket, size: int) -> None:
        self._socket = end
        self._kept = memoryview(bytearray(size + 64))

    def send(self, message: bytearray) -> None:
        self._socket.send(message)

    def receive(self) -> Buffer:
        return self._kept[: self._socket.recv_into(self._kept)]


class Seqpacket(_Bare):
    """An AF_UNIX SEQPACKET pair, received into a kept buffer."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self._pair:
            for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
                with contextlib.suppress(PermissionError):
                    end.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER)
        if self._pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < size + 1024:
            self.close()
            raise Unavailable(f"net.core.wmem_max does not allow packets of {size} bytes")

    def sender(self) -> Endpoint:
        """The first socket."""
        return _Packets(self._pair[0], self._size)

    def receiver(self) -> Endpoint:
        """The second socket."""
        return _Packets(self._pair[1], self._size)

    def close(self) -> None:
        """Close both sockets."""
        for end in self._pair:
            end.close()


class _Queues(End):
    def __init__(self, out: Any, into: Any) -> None:
        self._out = out
        self.receive: Callable[[], Buffer] = into.get

    def send(self, message: bytearray) -> None:
        self._out.put(bytes(message))


class MpQueue(_Bare):
    """A multiprocessing.Queue each way."""

    def __init__(self) -> None:
        self._there, self._back = FORK.Queue(HWM), FORK.Queue(HWM)

    def sender(self) -> Endpoint:
        """Puts there, gets back."""
        return _Queues(self._there, self._back)

    def receiver(self) -> Endpoint:
        """The other way round."""
        return _Queues(self._back, self._there)

    def close(self) -> None:
        """Close both queues."""
        for queue in (self._there, self._back):
            queue.close()


class _Bells(End):
    def __init__(self, out: int, into: int) -> None:
        self._out, self._into = out, into

    def send(self, message: bytearray) -> None:  # noqa: ARG002  (nothing travels but the signal)
        os.eventfd_write(self._out, 1)

    def receive(self) -> Buffer:
        os.eventfd_read(self._into)
        return b""


class Eventfds(_Bare):
    """Two eventfds and nothing else: what waking a process costs."""

    def __init__(self) -> None:
        self._there, self._back = os.eventfd(0), os.eventfd(0)

    def sender(self) -> Endpoint:
        """Writes there, reads back."""
        return _Bells(self._there, self._back)

    def receiver(self) -> Endpoint:
        """The other way round."""
        return _Bells(self._back, self._there)

    def close(self) -> None:
        """Close both."""
        for fd in (self._there, self._back):
            os.close(fd)


class _Ice(End):
    """iceoryx2 publish-subscribe with an event beside it, slices of bytes."""

    def __init__(self, iox2: Any, name: str, out: str, into: str, size: int) -> None:
        import ctypes

        self._ctypes = ctypes
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        self._keep = [node]
        kind = iox2.Slice[ctypes.c_uint8]

        def service(which: str) -> tuple[Any, Any]:
            data = (
                node.service_builder(iox2.ServiceName.new(f"{name}/{which}")).publish_subscribe(kind)
                .subscriber_max_buffer_size(64).enable_safe_overflow(False).max_publishers(1).max_subscribers(1)
                .open_or_create()
            )  # fmt: skip
            event = node.service_builder(iox2.ServiceName.new(f"{name}/{which}")).event().open_or_create()
            self._keep += [data, event]
            return data, event

        data, event = service(out)
        block = iox2.BackpressureStrategy.RetryUntilDelivered
        builder = data.publisher_builder().initial_max_slice_len(size)
        self._publisher = builder.backpressure_strategy(block).create()
        self._notifier = event.notifier_builder().create()
        data, event = service(into)
        self._subscriber = data.subscriber_builder().buffer_size(64).create()
        self._listener = event.listener_builder().create()
        self._service = self._keep[1]  # what we publish to
        self._met = False

    def send(self, message: bytearray) -> None:
        while not self._met:  # what is published before the peer subscribes is lost
            self._met = bool(self._service.dynamic_config.number_of_subscribers)
            time.sleep(0.001)
        sample = self._publisher.loan_slice_uninit(len(message))
        source = (self._ctypes.c_uint8 * len(message)).from_buffer(message)
        self._ctypes.memmove(sample.payload_ptr, source, len(message))
        sample.assume_init().send()
        self._notifier.notify()

    def receive(self) -> Buffer:
        while (sample := self._subscriber.receive()) is None:
            self._listener.blocking_wait()
        payload = sample.payload()
        return bytes(self._ctypes.string_at(sample.payload_ptr, payload.len()))


class Iceoryx2(_Bare):
    """iceoryx2, where its Python package is installed."""

    def __init__(self, directory: str, size: int) -> None:
        try:
            self._module: Any = importlib.import_module("iceoryx2")
        except ImportError:
            raise Unavailable("the package iceoryx2 is not installed") from None
        if not hasattr(self._module, "BackpressureStrategy"):
            raise Unavailable("the iceoryx2 that is installed has another interface than 0.10")
        self._name, self._size = f"argosy{directory}", size

    def sender(self) -> Endpoint:
        """Publishes there, subscribes back."""
        return _Ice(self._module, self._name, "there", "back", self._size)

    def receiver(self) -> Endpoint:
        """The other way round."""
        return _Ice(self._module, self._name, "back", "there", self._size)


def copy_buffers(size: int) -> tuple[memoryview, memoryview]:
    """Two touched shared mappings, for the limit that memcpy sets."""
    views = []
    for _ in range(2):
        view = memoryview(mmap.mmap(-1, max(size, mmap.PAGESIZE)))[:size]
        view[:] = bytes(size)
        views.append(view)
    return views[0], views[1]
