"""A guest as a process: one asyncio loop for its vCPUs, its program, the broker link and the attach connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from broker.client import JoinRefused, JoinTimeout, ZmqLink
from broker.frames import Lane
from guest_node.attach import Attachment, attach
from guest_node.config import GuestConfig
from guest_node.files import DirectoryFiles
from guest_node.kernel.argo import GuestMemoryView
from guest_node.life import Ending, World, live
from guest_node.platform import Platform
from guest_node.remote import RemoteEnd, request
from guest_node.remote_bells import RemoteAttachment, attachment
from guest_node.seeds import generators
from guest_node.soon import once
from guest_node.vcpu import Vcpu
from hmx import mirror
from hmx.attach import AttachError
from hmx.memory import Window
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide

HEARTBEAT_S: Final = 0.5
JOIN_S: Final = 10.0
ATTACH_S: Final = 10.0
GONE_S: Final = 1.0
"""How long a program may take to end once its hypervisor is gone."""
ASK_AGAIN_S: Final = 0.1
LEAVE_S: Final = 3.0
"""How long a guest that ends waits until the broker knows: one that is being restarted takes a moment."""
EXIT_INFRASTRUCTURE: Final = 4
NOBODY_S: Final = 10.0
"""How long the hypervisor of a guest on another host may be unknown to the broker before it is taken for dead."""


class HypervisorGone(ConnectionError):
    """The attach connection ended: the hypervisor is dead, or it killed this domain."""


class Shell:
    """Keeps the broker link moving inside the guest's loop."""

    def __init__(self, config: GuestConfig, link: ZmqLink) -> None:
        self.peers = dict(config.peers)
        self.config = replace(config, peers=self.peers)
        self.link = link
        self.loop = asyncio.get_running_loop()
        self._granted: asyncio.Future[tuple[str, bytes]] = self.loop.create_future()
        self._pump_scheduled = False
        self._asking = False
        self._answered: asyncio.Future[RemoteEnd] = self.loop.create_future()
        self._furnished = asyncio.Event()  # what the hypervisor placed in memory, its first batch, is there
        self._end: RemoteEnd | None = None  # of a guest on another host than its hypervisor
        self._nobody_s: float | None = None  # since when the broker has not known that hypervisor
        link.on_record = self._on_record
        link.member.on_welcome = self._on_welcome
        self.loop.add_reader(link.fileno(), self.pump)
        self._beat()

    def pump(self) -> None:
        """One turn of the link; another one follows while it asks for it."""
        self._pump_scheduled = False
        if self.link.pump():
            self._again()

    def _again(self) -> None:
        if not self._pump_scheduled and not self.loop.is_closed():
            self._pump_scheduled = True
            self.loop.call_soon(self.pump)

    def tell(self, record: list[Any]) -> None:
        """Say something on the control lane.  It leaves at once: a program that never awaits gives no later chance."""
        self.link.send(Lane.CONTROL, record)
        if self.link.flush():
            self._again()

    def _beat(self) -> None:
        self.link.heartbeat()
        if self._end is not None:
            self._end.tick(time.monotonic_ns())
            if self._nobody_s is not None and time.monotonic() - self._nobody_s > NOBODY_S:
                self._end.lost(f"hypervisor {self.config.hypervisor} is not in the lab any more")
        self._again()
        self.loop.call_later(HEARTBEAT_S, self._beat)

    def _on_record(self, _lane: int, record: Any, payload: Any) -> None:
        match [*record]:
            case ["told", self.config.hypervisor, ["mirror"]]:
                self._mirrored(payload)
            case ["nobody" | "busy", self.config.hypervisor, ["mirror"]]:
                if record[0] == "nobody" and self._nobody_s is None:
                    self._nobody_s = time.monotonic()
            case ["told", self.config.hypervisor, ["granted", str(path), bytes(token)]]:
                if not self._granted.done():
                    self._granted.set_result((path, token))
            case ["nobody" | "busy", self.config.hypervisor, ["attach", _]]:
                # It has not joined the broker that was restarted, or not yet.
                self.loop.call_later(ASK_AGAIN_S, self._ask)
            case ["told", "agent", ["hypervisor-gone"]] if self._end is not None:
                self._end.lost("its process ended")
            case ["told", "agent", ["peer", str(name), int(domid)]]:
                self.peers[name] = domid
            case _:
                pass

    def _on_welcome(self, _epoch: int) -> None:
        """Another broker, which does not know what the last one was asked."""
        self._ask()
        if self._end is not None:
            self._end.link_up()

    def _ask(self) -> None:
        if self._asking and not self._granted.done():
            self.tell(["attach", self.config.hypervisor])

    def abandon(self, reason: str) -> None:
        """There is nothing left to live on, and the program goes on all the same: end without it."""
        print(f"guest {self.config.name}: {reason}, and the program did not end", file=sys.stderr, flush=True)
        self.link.leave(EXIT_INFRASTRUCTURE, reason)
        os._exit(EXIT_INFRASTRUCTURE)

    # -- a hypervisor on another host ----

    def _mirrored(self, payload: Any) -> None:
        self._nobody_s = None
        if self._end is not None:
            self._end.receive(payload)
            if self._end.numbers.received:
                self._furnished.set()
        elif not self._answered.done():
            # What follows the answer may come in the same turn: from here on there is an end that takes it.
            try:
                answer = mirror.unpack(bytes(payload))
                if answer.kind in (mirror.MessageKind.ATTACHED, mirror.MessageKind.REFUSED):
                    self._end = RemoteEnd(answer, self._send_mirrored, Arch[self.config.arch.upper()])
                    self._answered.set_result(self._end)
            except mirror.MirrorError:
                pass
            except AttachError as error:
                self._answered.set_exception(error)

    def _send_mirrored(self, message: bytes) -> None:
        """Hand a message to the lane; one that finds it full is repeated in time."""
        if self.link.send(Lane.CONTROL, ["tell", self.config.hypervisor, ["mirror"]], message) and self.link.flush():
            self._again()

    async def _attach_remotely(self, token: bytes) -> RemoteAttachment:
        async with asyncio.timeout(ATTACH_S):
            while not self._answered.done():
                self._send_mirrored(request(self.config.name, token))
                await asyncio.wait((self._answered,), timeout=HEARTBEAT_S)
            end = self._answered.result()
            if self.config.firmware != "none":
                await self._furnished.wait()
        end.on_dirty = once(self.loop, end.flush)
        return attachment(end, self.loop.call_soon, self._wait)

    def _wait(self, seconds: float) -> None:
        """Take what the broker has for us, and wait for it so long.  The descriptor tells of changes only."""
        if not self.link.pump() and seconds and select.select((self.link,), (), (), seconds)[0]:
            self.link.pump()
        self._again()

    async def attach(self) -> Attachment | RemoteAttachment:
        """Ask the broker for a token, then the hypervisor for the domain."""
        self._asking = True
        self._ask()
        try:
            async with asyncio.timeout(ATTACH_S):
                path, token = await self._granted
        except TimeoutError:
            raise AttachError(f"hypervisor {self.config.hypervisor!r} granted nothing within {ATTACH_S:g} s") from None
        if not path:  # it is on another host
            try:
                return await self._attach_remotely(token)
            except TimeoutError:
                raise AttachError(f"hypervisor {self.config.hypervisor!r} did not answer in {ATTACH_S:g} s") from None
        targets = len({front.guest for front in self.config.fronts})
        return attach(path, self.config.name, token, ATTACH_S, self.loop.add_reader, targets)


def _soon(loop: asyncio.AbstractEventLoop, action: Callable[[str], None], words: str) -> None:
    loop.call_soon(action, words)


def _memory(attached: Attachment | RemoteAttachment) -> GuestMemoryView:
    if isinstance(attached, RemoteAttachment):
        return attached.memory
    ram, foreign = attached.ram, {domid: memoryview(memory) for domid, memory in attached.foreign.items()}
    memory = GuestMemoryView(memoryview(ram), lambda gpa, size: Window(ram, gpa, size))
    memory.foreign = foreign.get
    return memory


async def run(config: GuestConfig, link: ZmqLink, held: list[Attachment | RemoteAttachment]) -> Ending:
    """Join, attach, live.  The attachment is `held` by the caller: a guest without it is taken for dead, and killed."""
    shell = Shell(config, link)  # before it joins: from then on it is told things
    link.wait_joined(JOIN_S)
    config = shell.config
    attached = await shell.attach()
    held.append(attached)
    arch = Arch[config.arch.upper()]
    memory = _memory(attached)
    bells: Sequence[Platform] = attached.bells
    vcpus = [Vcpu(index, GuestSide(attached.area(index), arch), each) for index, each in enumerate(bells)]
    files = DirectoryFiles(config.base_dir, config.output_dir)
    gone: asyncio.Future[BaseException] = shell.loop.create_future()
    coalesced = attached.coalesced if isinstance(attached, RemoteAttachment) else int
    log: Callable[[str], None] = partial(print, flush=True)
    world = World(shell.tell, log, files, *generators(config.seed), gone, coalesced)
    living = shell.loop.create_task(live(config, vcpus, memory, world))

    def hypervisor_gone(words: str = "") -> None:
        if isinstance(attached, Attachment):
            shell.loop.remove_reader(attached.connection.fileno())
        error = HypervisorGone(f"hypervisor {config.hypervisor} is gone{': ' * bool(words)}{words}")
        for vcpu in vcpus:
            vcpu.stop(error)
        gone.set_result(error)
        living.cancel()
        shell.loop.call_later(GONE_S, shell.abandon, str(error))

    if isinstance(attached, RemoteAttachment):
        attached.end.on_gone = partial(_soon, shell.loop, hypervisor_gone)
    else:  # It never says anything after the handshake: readable means that it ended.
        shell.loop.add_reader(attached.connection.fileno(), hypervisor_gone)
    try:
        ending = await living
    except asyncio.CancelledError:
        raise HypervisorGone(f"hypervisor {config.hypervisor} is gone") from None
    if ending.code and gone.done():  # the program was told, and failed for it: that is not its failure
        raise gone.result()
    return ending


def main(config: GuestConfig) -> int:
    """Run one guest to its program's end: the program's exit code, or 4 when it cannot join or attach."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to act on
    link = ZmqLink(
        config.broker_endpoint, kind="guest", name=config.name, token=config.token, epoch=config.epoch,
        curve=config.curve,
    )  # fmt: skip
    held: list[Attachment | RemoteAttachment] = []
    try:
        ending = asyncio.run(run(config, link, held))
    except (OSError, AttachError, JoinRefused, JoinTimeout) as error:
        print(f"guest {config.name}: {error}", file=sys.stderr, flush=True)
        ending = Ending(EXIT_INFRASTRUCTURE, str(error))
    with contextlib.suppress(OSError):
        os.fsync(1)
    for attached in held:
        if isinstance(attached, RemoteAttachment):
            attached.end.close("the guest ended")
    link.leave(ending.code, ending.reason, LEAVE_S)
    return ending.code
