"""The guest's process shell, attached through the broker: handshake, boot, a program's end, a hypervisor that kills it.

Rules: the project's mirror protocol (docs/remote-guests.md); an empty attach path means: through the broker.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from broker.client import ZmqLink
from broker.frames import Lane
from guest_node.config import GuestConfig
from guest_node.node import HypervisorGone, run
from guest_node.remote_bells import RemoteAttachment
from hmx.memory import PAGE_SIZE
from tests.hv_node.test_remote_fabric import TOKEN, World


class Hypervisor(World):
    """hv0 as its shell answers a remote guest; everything moves when the guest's link is pumped."""

    def at_hypervisor(self, lane: Lane, record: Any, payload: Any) -> None:
        if [*record] == ["told", "broker", ["grant", "app", TOKEN]]:
            self.hv.send(Lane.CONTROL, ["tell", "app", ["granted", "", TOKEN]])
        super().at_hypervisor(lane, record, payload)


class Link:
    """The parts of a ZmqLink that the shell uses, over the world's fabric."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ends = socket.socketpair()
        self.member = world.app.member
        self.fileno, self.send = self._ends[0].fileno, world.app.send

    def wait_joined(self, _seconds: float) -> int:
        """It has joined."""
        return 1

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "on_record":
            self._world.app.on_record = value
        else:
            object.__setattr__(self, name, value)

    def heartbeat(self) -> None:
        self.send(Lane.CONTROL, ["heartbeat", 1])

    def flush(self) -> bool:
        self._world.app.flush()
        return True

    def pump(self) -> bool:
        self._world.step()
        return False

    def close(self) -> None:
        for end in self._ends:
            end.close()


async def drive(world: World) -> None:
    while True:
        world.step()
        await asyncio.sleep(0.001)


def live(tmp_path: Path, program: str) -> tuple[World, Any, list[Any]]:
    """Run one guest; its ending or the exception, and what it held."""
    (tmp_path / "remote_program.py").write_text(program)
    world = Hypervisor()
    held: list[Any] = []
    config = GuestConfig(
        lab="lab", name="app", node_dir=str(tmp_path), broker_endpoint="", token=b"", epoch=1, hypervisor="hv0",
        domid=1, memory=64 * PAGE_SIZE, vcpus=1, arch="x86_64", door="auto", notification="auto",
        program="remote_program:main", arguments={}, peers={}, seed=1, base_dir=str(tmp_path),
        output_dir=str(tmp_path),
    )  # fmt: skip

    async def main() -> Any:
        link = Link(world)
        driving = asyncio.create_task(drive(world))
        killing = asyncio.create_task(kill(world))
        try:
            ending = await run(config, cast(ZmqLink, link), held)
            held[0].end.close("the guest ended")
            for _ in range(5):
                world.step()
            return ending
        except HypervisorGone as error:
            return error
        finally:
            driving.cancel()
            killing.cancel()
            link.close()

    return world, asyncio.run(main()), held


async def kill(world: World) -> None:
    """The hypervisor kills the domain once it sees the program wait."""
    await asyncio.sleep(1.5)
    world.backing.close()


@pytest.fixture(autouse=True)
def no_stale_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "remote_program", raising=False)


def test_a_program_runs_unchanged(tmp_path: Path) -> None:
    """Probe, boot and program over the lane; the exit code is the program's, and leaving ends the domain."""
    world, ending, held = live(tmp_path, "async def main(guest):\n    guest.result(domid=guest.domid)\n    return 7\n")
    assert ending.code == 7
    (attached,) = held
    assert isinstance(attached, RemoteAttachment)
    assert world.reasons == ["it left"]
    assert world.core.counters()["app"]["exits"] > 5


def test_a_domain_that_is_killed_ends_its_guest(tmp_path: Path) -> None:
    """GONE takes the place of the end of an attach connection: the program is told, and the reason is shown."""
    program = "import asyncio\nasync def main(guest):\n    await asyncio.sleep(60)\n"
    _, ending, _ = live(tmp_path, program)
    assert isinstance(ending, HypervisorGone)
