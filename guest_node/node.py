"""A guest as a process: one asyncio loop for its vCPUs, its program, the broker link and the attach connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import replace
from typing import Any, Final

from broker.client import JoinRefused, JoinTimeout, ZmqLink
from broker.frames import Lane
from guest_node.attach import Attachment, attach
from guest_node.config import GuestConfig
from guest_node.files import DirectoryFiles
from guest_node.kernel.argo import GuestMemoryView
from guest_node.life import Ending, World, live
from guest_node.seeds import generators
from guest_node.vcpu import Vcpu
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
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self.loop.call_soon(self.pump)

    def tell(self, record: list[Any]) -> None:
        """Say something on the control lane.  It leaves at once: a program that never awaits gives no later chance."""
        self.link.send(Lane.CONTROL, record)
        if self.link.flush():
            self._again()

    def _beat(self) -> None:
        self.link.heartbeat()
        self._again()
        self.loop.call_later(HEARTBEAT_S, self._beat)

    def _on_record(self, _lane: int, record: Any, _payload: Any) -> None:
        match [*record]:
            case ["told", self.config.hypervisor, ["granted", str(path), bytes(token)]]:
                if not self._granted.done():
                    self._granted.set_result((path, token))
            case ["nobody" | "busy", self.config.hypervisor, ["attach", _]]:
                # It has not joined the broker that was restarted, or not yet.
                self.loop.call_later(ASK_AGAIN_S, self._ask)
            case ["told", "agent", ["peer", str(name), int(domid)]]:
                self.peers[name] = domid
            case _:
                pass

    def _on_welcome(self, _epoch: int) -> None:
        """Another broker, which does not know what the last one was asked."""
        self._ask()

    def _ask(self) -> None:
        if self._asking and not self._granted.done():
            self.tell(["attach", self.config.hypervisor])

    def abandon(self, reason: str) -> None:
        """There is nothing left to live on, and the program goes on all the same: end without it."""
        print(f"guest {self.config.name}: {reason}, and the program did not end", file=sys.stderr, flush=True)
        self.link.leave(EXIT_INFRASTRUCTURE, reason)
        os._exit(EXIT_INFRASTRUCTURE)

    async def attach(self) -> Attachment:
        """Ask the broker for a token, then the hypervisor for the domain."""
        self._asking = True
        self._ask()
        try:
            async with asyncio.timeout(ATTACH_S):
                path, token = await self._granted
        except TimeoutError:
            raise AttachError(f"hypervisor {self.config.hypervisor!r} granted nothing within {ATTACH_S:g} s") from None
        return attach(path, self.config.name, token, ATTACH_S, self.loop.add_reader)


async def run(config: GuestConfig, link: ZmqLink, held: list[Attachment]) -> Ending:
    """Attach and live.  The attachment is `held` by the caller: a guest without it is taken for dead, and killed."""
    shell = Shell(config, link)
    config = shell.config
    attachment = await shell.attach()
    held.append(attachment)
    ram = attachment.ram
    arch = Arch[config.arch.upper()]
    memory = GuestMemoryView(memoryview(ram), lambda gpa, size: Window(ram, gpa, size))
    vcpus = [
        Vcpu(index, GuestSide(attachment.area(index), arch), bells) for index, bells in enumerate(attachment.bells)
    ]
    files = DirectoryFiles(config.base_dir, config.output_dir)
    gone: asyncio.Future[BaseException] = shell.loop.create_future()
    world = World(shell.tell, lambda text: print(text, flush=True), files, *generators(config.seed), gone)
    living = shell.loop.create_task(live(config, vcpus, memory, world))

    def hypervisor_gone() -> None:
        shell.loop.remove_reader(attachment.connection.fileno())
        error = HypervisorGone(f"hypervisor {config.hypervisor} is gone")
        for vcpu in vcpus:
            vcpu.stop(error)
        gone.set_result(error)
        living.cancel()
        shell.loop.call_later(GONE_S, shell.abandon, str(error))

    # It never says anything after the handshake: readable means that it ended.
    shell.loop.add_reader(attachment.connection.fileno(), hypervisor_gone)
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
    link = ZmqLink(config.broker_endpoint, kind="guest", name=config.name, token=config.token, epoch=config.epoch)
    held: list[Attachment] = []
    try:
        link.wait_joined(JOIN_S)
        ending = asyncio.run(run(config, link, held))
    except (OSError, AttachError, JoinRefused, JoinTimeout) as error:
        print(f"guest {config.name}: {error}", file=sys.stderr, flush=True)
        ending = Ending(EXIT_INFRASTRUCTURE, str(error))
    with contextlib.suppress(OSError):
        os.fsync(1)
    link.leave(ending.code, ending.reason, LEAVE_S)
    return ending.code
