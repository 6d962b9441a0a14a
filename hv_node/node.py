"""A hypervisor as a process: one thread, one epoll set, the core behind it.

Sources are the guests' bells (eventfds, edge-triggered and never read), the attach socket and its connections, and the
broker link.  Each has a bounded turn.  While any vCPU is awake the loop polls its submission ring between turns and
yields the CPU; a vCPU that stays empty is put to sleep one by one, and when none is awake the process waits in epoll.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from broker.client import JoinRefused, JoinTimeout, ZmqLink
from broker.frames import Lane
from hmx.attach import AttachError, Request
from hmx.trap import Arch
from hv_node import attach
from hv_node.argo.options import parse_options
from hv_node.config import DomainConfig, HypervisorConfig
from hv_node.doors.tables import PERSONALITIES
from hv_node.hvm import TURN, Vcpu
from hv_node.hypervisor import Hypervisor
from hv_node.lobby import Lobby
from hv_node.xsm import xsm_by_name

HEARTBEAT_S: Final = 0.5
YIELDS: Final = 4  # empty turns before a vCPU is put to sleep
POLL_EVERY: Final = 8  # busy turns between two looks at the descriptors, fewer when they are long
SLICE_NS: Final = 500_000  # what a vCPU's turn should not exceed: whose frames are costly has fewer of them in it
TOKENS: Final = 4  # grants that a guest may hold: it asks again when the broker was restarted before it had the answer
JOIN_S: Final = 10.0
EXIT_INFRASTRUCTURE: Final = 4


@dataclass(slots=True)
class Dying:
    """A domain whose guest is gone: what is behind it, and when its id may be freed at the earliest."""

    backing: attach.Backing
    due: float


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
            config.cpu,
            options,
            xsm_by_name(config.xsm),
            self._report,
            doors=config.doors,
            notifications=config.notifications,
        )
        self._epoll = select.epoll()
        self._handlers: dict[int, Any] = {}
        self._backings: dict[str, attach.Backing] = {}
        self._bells: dict[Vcpu, socket.socket] = {}
        self._active: dict[Vcpu, None] = {}
        self._tokens: dict[str, list[bytes]] = {}
        self._attached: dict[str, socket.socket] = {}
        self._deaf_ns = 0  # spent on frames since the descriptors were looked at: who rings meanwhile is not heard
        self._freeing: dict[int, Dying] = {}
        self._exited: set[int] = set()  # domains whose process the agent has seen the end of
        self._freed: set[int] = set()
        self._departed: dict[str, Counter[str]] = {}  # counters of domains that are gone, by guest
        self._stopping = False
        self._link_busy = False
        link.on_record = self._on_record

    # -- start ----

    def start(self) -> None:
        """Create the domains and listen for their guests."""
        for config in self.config.domains:
            self._create(config)
        try:
            self._lobby = Lobby(self.config.attach_path, self._introduce, self._report)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.config.attach_path) from error
        self._watch(self._lobby.fileno(), select.EPOLLIN, self._lobby.turn)
        self._watch(self.link.fileno(), select.EPOLLIN, self._pump)

    def _create(self, config: DomainConfig) -> None:
        """Make a domain and what is behind it.  OSError and ValueError leave nothing behind."""
        backing = attach.create_backing(config)
        try:
            hvm = self.core.create_domain(
                config.domid,
                backing.memory(),
                backing.area_views(),
                name=config.name,
                is_control=config.is_control,
            )
        except BaseException:
            backing.close()
            raise
        self._backings[config.name] = backing
        for vcpu, bell_in, bell_out in zip(hvm.vcpus, backing.bells_in, backing.bells_out, strict=True):
            self._bells[vcpu] = bell_out
            self._watch(bell_in, select.EPOLLIN | select.EPOLLET, lambda vcpu=vcpu: self._wake(vcpu))

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
                if busy % POLL_EVERY and self._deaf_ns < SLICE_NS:
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
                timeout = 0.0 if self._link_busy else max(0.0, min(next_beat, self._next_free()) - time.monotonic())
            self._poll(timeout)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                self._tick(now)
            if self._freeing:
                self._free_due(now)

    def _turn(self) -> int:
        """One bounded turn for every vCPU that is awake, then the bells that came of it."""
        run, clock = self.core.run, time.monotonic_ns
        done = 0
        for vcpu in tuple(self._active):
            begin, taken = clock(), run(vcpu, vcpu.budget)
            if not taken:
                continue
            done += taken
            took = clock() - begin
            self._deaf_ns += took
            if took > SLICE_NS:
                vcpu.budget = max(1, taken * SLICE_NS // took)
            elif vcpu.budget < TURN:
                vcpu.budget = min(TURN, vcpu.budget * 2)
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
        self._deaf_ns = 0
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
        self._lobby.tick(now)

    # -- attaching ----

    def _introduce(self, connection: socket.socket, request: Request) -> None:
        """A stranger said who it is: attach it, or raise AttachError with what it is told."""
        granted = self._tokens.get(request.name, [])
        shown = [token for token in granted if hmac.compare_digest(token, request.token)]
        attach.check_token(shown[0] if shown else granted[0] if granted else None, request)
        del self._tokens[request.name]  # only whom it was granted to uses it up
        if request.name in self._attached:
            raise AttachError(f"guest {request.name!r} is attached already")
        if request.name not in self._backings:
            raise AttachError(f"hypervisor {self.config.name!r} has no domain for a guest {request.name!r}")
        attach.hand_over(connection, self._backings[request.name], self.core.personality.arch)
        self._attached[request.name] = connection
        self._watch(connection.fileno(), select.EPOLLIN, lambda n=request.name: self._gone(n))
        self._report("attached", request.name, self._backings[request.name].config.domid)

    def _gone(self, name: str) -> None:
        """The attach connection of a guest ended, or said something it has no business to say: kill the domain."""
        connection = self._attached.pop(name, None)
        if connection is not None:
            self._unwatch(connection.fileno())
            connection.close()
            self._die(name)

    def _die(self, name: str) -> None:
        """The domain of a guest that will not use it any more: from here on peers see ECONNREFUSED."""
        backing = self._backings.pop(name)
        domid = backing.config.domid
        hvm = self.core.hvm(domid)
        if hvm is not None:
            self._departed.setdefault(name, Counter()).update(asdict(hvm.counters))
            for vcpu in hvm.vcpus:
                self._active.pop(vcpu, None)
                self._bells.pop(vcpu, None)
        self.core.kill_domain(domid)
        self._freeing[domid] = Dying(backing, time.monotonic() + self.config.linger_ns / 1e9)
        self._report("domain-dying", name, domid)

    def _next_free(self) -> float:
        """When the next domain may be freed whose process is gone."""
        return min((dying.due for domid, dying in self._freeing.items() if domid in self._exited), default=math.inf)

    def _free_due(self, now: float) -> None:
        for domid, dying in tuple(self._freeing.items()):
            if now >= dying.due and domid in self._exited:
                self._free(domid)

    def _free(self, domid: int) -> None:
        """From here on peers see ESRCH."""
        self._exited.discard(domid)
        self._freed.add(domid)
        backing = self._freeing.pop(domid).backing
        self.core.free_domain(domid)
        for bell in backing.bells_in:
            self._unwatch(bell)
        backing.close()
        self._report("domain-freed", backing.config.name, domid)

    # -- the toolstack's orders, which it repeats until they are answered ----

    def _on_exited(self, name: str, domid: int) -> None:
        """The process of guest `name` is gone, whether it had attached or not."""
        if domid in self._freed:
            self._report("domain-freed", name, domid)
            return
        self._exited.add(domid)
        backing = self._backings.get(name)
        if backing is not None and backing.config.domid == domid:
            self._gone(name)
            if name in self._backings:
                self._die(name)

    def _on_create(self, config: DomainConfig) -> None:
        """A fresh domain for a guest that is started again."""
        present = self._backings.get(config.name)
        if present is None:
            try:
                self._create(config)
            except (OSError, ValueError) as error:
                self._report("domain-refused", config.name, config.domid, str(error))
                return
            self._freed.discard(config.domid)
        elif present.config.domid != config.domid:
            words = f"guest {config.name!r} still has domain {present.config.domid}"
            self._report("domain-refused", config.name, config.domid, words)
            return
        self._report("domain-created", config.name, config.domid)

    # -- the broker ----

    def _report(self, code: str, *fields: Any) -> None:
        self.link.send(Lane.CONTROL, ["event", code, *fields])

    def _on_record(self, _lane: Lane, record: Sequence[Any], _payload: Any) -> None:
        match [*record]:
            case ["told", "broker", ["grant", str(guest), bytes(token)]]:
                self._tokens[guest] = [*self._tokens.get(guest, [])[1 - TOKENS :], token]
                self.link.send(Lane.CONTROL, ["tell", guest, ["granted", self.config.attach_path, token]])
            case ["told", str(sender), ["counters?"]]:
                self.link.send(Lane.CONTROL, ["tell", sender, ["counters", json.dumps(self.counters())]])
            case ["told", "agent", ["exited", str(guest), int(domid)]]:
                self._on_exited(guest, domid)
            case ["told", "agent", ["create", str(guest), int(domid), int(memory), int(vcpus)]]:
                firmware = next((known.firmware for known in self.config.domains if known.name == guest), b"")
                self._on_create(DomainConfig(guest, domid, memory, vcpus, firmware=firmware))
            case ["shutdown"] | ["told", "agent", ["shutdown"]]:
                self._stopping = True
            case _:
                pass  # news for others: node states, answers nobody asked for

    def counters(self) -> dict[str, Any]:
        """`arch.*` by domain, those of dead ones included, and this process's `host.*`."""
        arch = {name: Counter(counted) for name, counted in self._departed.items()}
        for name, counted in self.core.counters().items():
            arch.setdefault(name, Counter()).update(counted)
        return {"arch": {name: dict(counted) for name, counted in arch.items()}, "host": asdict(self.host)}

    def stop(self, *_: Any) -> None:
        """Leave the loop at its next turn."""
        self._stopping = True

    def stop_on(self, number: int) -> None:
        """Have signal `number` stop this node, even while it waits: epoll would go on waiting by itself."""
        wake, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(number, self.stop)
        self._watch(wake, select.EPOLLIN | select.EPOLLET, self.stop)

    def close(self) -> None:
        """Give everything back: guests see the end of their attach connection."""
        for connection in self._attached.values():
            connection.close()
        for backing in (*self._backings.values(), *(dying.backing for dying in self._freeing.values())):
            backing.close()
        self._lobby.close()
        self._epoll.close()


def main(config: HypervisorConfig) -> int:
    """Run one hypervisor until it is told to stop.  0, or 4 when it cannot join the lab or open its sockets."""
    link = ZmqLink(config.broker_endpoint, kind="hypervisor", name=config.name, token=config.token, epoch=config.epoch)
    node = Node(config, link)
    node.stop_on(signal.SIGTERM)
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
