"""A hypervisor as a process: one thread, one epoll set, the core behind it.

Sources are the guests' bells (eventfds, edge-triggered and never read), the attach socket and its connections, and the
broker link.  Each has a bounded turn.  While any vCPU is awake the loop polls its submission ring between turns and
yields the CPU; a vCPU that stays empty is put to sleep one by one, and when none is awake the process waits in epoll.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from broker.client import JoinRefused, JoinTimeout, ZmqLink
from broker.frames import Lane
from hmx.attach import AttachError
from hmx.trap import Arch
from hv_node import attach
from hv_node.argo.options import parse_options
from hv_node.config import HypervisorConfig
from hv_node.doors.tables import CPUS, PERSONALITIES
from hv_node.hvm import Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.xsm import xsm_by_name

HEARTBEAT_S: Final = 0.5
YIELDS: Final = 4  # empty turns before a vCPU is put to sleep
POLL_EVERY: Final = 8  # busy turns between two looks at the descriptors
ACCEPTS: Final = 16  # connections taken in one turn
HANDSHAKE_S: Final = 5.0  # a connection that says nothing for this long is closed
JOIN_S: Final = 10.0
EXIT_INFRASTRUCTURE: Final = 4


@dataclass(slots=True)
class HostCounters:
    """What the host paid: `host.*`."""

    turns: int = 0
    frames: int = 0
    wakeups: int = 0
    doorbells: int = 0


class Node:
    """The process shell of one hypervisor."""

    def __init__(self, config: HypervisorConfig, link: ZmqLink) -> None:
        options, ret = parse_options(config.argo_cmdline)
        if ret:
            print(f"argo={config.argo_cmdline}: error {ret}; what was understood of it is kept", flush=True)
        self.config = config
        self.link = link
        self.host = HostCounters()
        self.core = Hypervisor(
            PERSONALITIES[config.personality, Arch[config.arch.upper()]],
            CPUS[config.cpu],
            options,
            xsm_by_name(config.xsm),
            self._report,
        )
        self._epoll = select.epoll()
        self._handlers: dict[int, Any] = {}
        self._backings: dict[str, attach.Backing] = {}
        self._bells: dict[Vcpu, socket.socket] = {}
        self._active: dict[Vcpu, None] = {}
        self._tokens: dict[str, bytes] = {}
        self._attached: dict[str, socket.socket] = {}
        self._strangers: dict[socket.socket, float] = {}
        self._freeing: dict[str, float] = {}  # dying domain -> when its id may go
        self._exited: set[str] = set()
        self._departed: dict[str, dict[str, int]] = {}  # counters of domains that are gone
        self._stopping = False
        self._link_busy = False
        link.on_record = self._on_record

    # -- start ----

    def start(self) -> None:
        """Create the domains and listen for their guests."""
        for config in self.config.domains:
            backing = self._backings[config.name] = attach.create_backing(config)
            hvm = self.core.create_domain(
                config.domid,
                backing.memory(),
                backing.area_views(),
                name=config.name,
                is_control=config.is_control,
            )
            for vcpu, bell_in, bell_out in zip(hvm.vcpus, backing.bells_in, backing.bells_out, strict=True):
                self._bells[vcpu] = bell_out
                self._watch(bell_in, select.EPOLLIN | select.EPOLLET, lambda vcpu=vcpu: self._wake(vcpu))
        self._listener = attach.listen(self.config.attach_path)
        self._watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        self._watch(self.link.fileno(), select.EPOLLIN, self._pump)

    def _watch(self, fd: int, events: int, handler: Any) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    # -- the loop ----

    def run(self) -> None:
        """Serve until told to stop."""
        next_beat = 0.0
        empty = busy = 0
        while not self._stopping:
            if self._turn():
                empty = 0
                busy += 1
                if busy % POLL_EVERY:
                    continue
                timeout = 0.0
            elif self._active and empty < YIELDS:
                empty += 1
                os.sched_yield()
                continue
            elif self._active and not self._sleep():
                empty = 0
                timeout = 0.0
            else:
                timeout = 0.0 if self._link_busy else max(0.0, next_beat - time.monotonic())
            self._poll(timeout)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                self._tick(now)

    def _turn(self) -> int:
        """One bounded turn for every vCPU that is awake, then the bells that came of it."""
        run = self.core.run
        done = 0
        for vcpu in tuple(self._active):
            done += run(vcpu)
        if self.core.bells:
            self._ring()
        if done:
            self.host.turns += 1
            self.host.frames += done
        return done

    def _ring(self) -> None:
        for vcpu in self.core.bells:
            self.host.doorbells += 1
            # An error means that it is rung already, or that the guest closed its end, which is its own loss.
            with contextlib.suppress(OSError):
                self._bells[vcpu].send(b"\0", socket.MSG_DONTWAIT)
        self.core.bells.clear()

    def _sleep(self) -> bool:
        """Put every idle vCPU to sleep; False when one had work after all."""
        for vcpu in tuple(self._active):
            if vcpu.area.sleep():
                del self._active[vcpu]
        return not self._active

    def _wake(self, vcpu: Vcpu) -> None:
        if vcpu.hvm.domain.name in self._attached:
            vcpu.area.awake()
            self._active[vcpu] = None

    def _poll(self, timeout: float) -> None:
        events = self._epoll.poll(timeout)
        if events and timeout:
            self.host.wakeups += 1
        for fd, _ in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        # ZMQ_FD is edge-triggered: look at the link before every sleep, not only when it seems readable.
        self._link_busy = self.link.pump()

    def _pump(self) -> None:
        """The link's descriptor moved; the look that follows every poll does the work."""

    def _tick(self, now: float) -> None:
        self.link.heartbeat()
        self._link_busy = self.link.flush()
        for connection, deadline in tuple(self._strangers.items()):
            if now >= deadline:
                self._drop_stranger(connection)
                attach.refuse(connection, f"nothing was said for {HANDSHAKE_S:g} s")
        for name, due in tuple(self._freeing.items()):
            if now >= due and name in self._exited:
                self._free(name)

    # -- attaching ----

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setblocking(False)
            if attach.peer_uid(connection) != os.geteuid():
                attach.refuse(connection, "only the user who runs the lab may attach")
                continue
            self._strangers[connection] = time.monotonic() + HANDSHAKE_S
            self._watch(connection.fileno(), select.EPOLLIN, lambda c=connection: self._introduce(c))

    def _drop_stranger(self, connection: socket.socket) -> None:
        self._strangers.pop(connection, None)
        self._unwatch(connection.fileno())

    def _introduce(self, connection: socket.socket) -> None:
        """A stranger spoke, or left."""
        self._drop_stranger(connection)
        try:
            request = attach.read_request(connection)
            if request is None:
                connection.close()
                return
            attach.check_token(self._tokens.pop(request.name, None), request)
            if request.name in self._attached:
                raise AttachError(f"guest {request.name!r} is attached already")
            if request.name not in self._backings:
                raise AttachError(f"hypervisor {self.config.name!r} has no domain for a guest {request.name!r}")
            attach.hand_over(connection, self._backings[request.name])
        except (AttachError, OSError) as error:
            self._report("attach-refused", str(error))
            attach.refuse(connection, str(error))
            return
        self._attached[request.name] = connection
        self._watch(connection.fileno(), select.EPOLLIN, lambda n=request.name: self._gone(n))
        self._report("attached", request.name)

    def _gone(self, name: str) -> None:
        """The attach connection of a guest ended, or said something it has no business to say: kill the domain."""
        connection = self._attached.pop(name, None)
        if connection is None:
            return
        self._unwatch(connection.fileno())
        connection.close()
        config = self._backings[name].config
        hvm = self.core.hvm(config.domid)
        if hvm is not None:
            self._departed[name] = asdict(hvm.counters)
            for vcpu in hvm.vcpus:
                self._active.pop(vcpu, None)
        self.core.kill_domain(config.domid)
        self._report("domain-dying", name)
        self._freeing[name] = time.monotonic() + self.config.linger_ns / 1e9

    def _free(self, name: str) -> None:
        del self._freeing[name]
        self._exited.discard(name)
        backing = self._backings.pop(name)
        self.core.free_domain(backing.config.domid)
        for bell in backing.bells_in:
            self._unwatch(bell)
        backing.close()
        self._report("domain-freed", name)

    # -- the broker ----

    def _report(self, code: str, *fields: Any) -> None:
        self.link.send(Lane.CONTROL, ["event", code, *fields])

    def _on_record(self, _lane: Lane, record: Sequence[Any], _payload: Any) -> None:
        match [*record]:
            case ["told", "broker", ["grant", str(guest), bytes(token)]]:
                self._tokens[guest] = token
                self.link.send(Lane.CONTROL, ["tell", guest, ["granted", self.config.attach_path, token]])
            case ["told", str(sender), ["counters?"]]:
                self.link.send(Lane.CONTROL, ["tell", sender, ["counters", json.dumps(self.counters())]])
            case ["told", "agent", ["exited", str(guest)]]:
                self._exited.add(guest)
                self._gone(guest)
            case ["shutdown"] | ["told", "agent", ["shutdown"]]:
                self._stopping = True
            case _:
                pass  # news for others: node states, answers nobody asked for

    def counters(self) -> dict[str, Any]:
        """`arch.*` by domain, those of dead ones included, and this process's `host.*`."""
        return {"arch": {**self._departed, **self.core.counters()}, "host": asdict(self.host)}

    def stop(self, *_: Any) -> None:
        """Leave the loop at its next turn."""
        self._stopping = True

    def close(self) -> None:
        """Give everything back: guests see the end of their attach connection."""
        for connection in (*self._attached.values(), *self._strangers):
            connection.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self.config.attach_path)
        for backing in self._backings.values():
            backing.close()
        self._epoll.close()


def main(config: HypervisorConfig) -> int:
    """Run one hypervisor until it is told to stop.  0, or 4 when it cannot join the lab or open its sockets."""
    link = ZmqLink(config.broker_endpoint, kind="hypervisor", name=config.name, token=config.token, epoch=config.epoch)
    node = Node(config, link)
    signal.signal(signal.SIGTERM, node.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to act on
    try:
        node.start()
        link.wait_joined(JOIN_S)
    except (OSError, JoinRefused, JoinTimeout) as error:
        print(f"hypervisor {config.name}: {error}", file=sys.stderr, flush=True)
        return EXIT_INFRASTRUCTURE
    link.send(Lane.CONTROL, ["ready"])
    try:
        node.run()
    finally:
        link.leave(0, "told to stop")
        node.close()
    return 0
