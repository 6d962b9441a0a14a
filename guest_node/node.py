"""A guest as a process: one asyncio loop for its vCPUs, its program, the broker link and the attach connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
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
from hmx.vcpu_area import GuestSide

HEARTBEAT_S: Final = 0.5
JOIN_S: Final = 10.0
ATTACH_S: Final = 10.0
EXIT_INFRASTRUCTURE: Final = 4


class HypervisorGone(ConnectionError):
    """The attach connection ended: the hypervisor is dead, or it killed this domain."""


class Shell:
    """Keeps the broker link moving inside the guest's loop."""

    def __init__(self, config: GuestConfig, link: ZmqLink) -> None:
        self.config = config
        self.link = link
        self.loop = asyncio.get_running_loop()
        self._granted: asyncio.Future[tuple[str, bytes]] = self.loop.create_future()
        self._pump_scheduled = False
        link.on_record = self._on_record
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
        """Say something on the control lane; it leaves in the loop's next turn."""
        self.link.send(Lane.CONTROL, record)
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
            case ["nobody", str(name), _] if name == self.config.hypervisor and not self._granted.done():
                self._granted.set_exception(AttachError(f"there is no hypervisor {name!r} in this lab"))
            case _:
                pass

    async def attach(self) -> Attachment:
        """Ask the broker for a token, then the hypervisor for the domain."""
        self.tell(["attach", self.config.hypervisor])
        try:
            async with asyncio.timeout(ATTACH_S):
                path, token = await self._granted
        except TimeoutError:
            raise AttachError(f"hypervisor {self.config.hypervisor!r} granted nothing within {ATTACH_S:g} s") from None
        return attach(path, self.config.name, token, ATTACH_S, self.loop.add_reader)


async def run(config: GuestConfig, link: ZmqLink) -> Ending:
    """Attach and live."""
    shell = Shell(config, link)
    attachment = await shell.attach()
    ram = attachment.ram
    memory = GuestMemoryView(memoryview(ram), lambda gpa, size: Window(ram, gpa, size))
    vcpus = [Vcpu(index, GuestSide(attachment.area(index)), bells) for index, bells in enumerate(attachment.bells)]
    files = DirectoryFiles(config.base_dir, config.output_dir)
    world = World(shell.tell, lambda text: print(text, flush=True), files, *generators(config.seed))
    living = shell.loop.create_task(live(config, vcpus, memory, world))

    def hypervisor_gone() -> None:
        shell.loop.remove_reader(attachment.connection.fileno())
        for vcpu in vcpus:
            vcpu.stop(HypervisorGone(f"hypervisor {config.hypervisor} is gone"))
        living.cancel()

    # It never says anything after the handshake: readable means that it ended.
    shell.loop.add_reader(attachment.connection.fileno(), hypervisor_gone)
    try:
        return await living
    except asyncio.CancelledError:
        raise HypervisorGone(f"hypervisor {config.hypervisor} is gone") from None


def main(config: GuestConfig) -> int:
    """Run one guest to its program's end: the program's exit code, or 4 when it cannot join or attach."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to act on
    link = ZmqLink(config.broker_endpoint, kind="guest", name=config.name, token=config.token, epoch=config.epoch)
    try:
        link.wait_joined(JOIN_S)
        ending = asyncio.run(run(config, link))
    except (OSError, AttachError, JoinRefused, JoinTimeout) as error:
        print(f"guest {config.name}: {error}", file=sys.stderr, flush=True)
        ending = Ending(EXIT_INFRASTRUCTURE, str(error))
    with contextlib.suppress(OSError):
        os.fsync(1)
    link.leave(ending.code, ending.reason)
    return ending.code
