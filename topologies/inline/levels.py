"""The levels of an inline lab: each hypervisor's way up and its timers, as callbacks of the virtual loop.

A nested hypervisor is a domain of its parent's machine, with bells that are calls; an L0 has a link to the fabric in
memory.  The level, its links and their protocol are those of the processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker.fabric import FabricLink
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.config import HypervisorConfig
from hv_node.doors.tables import PERSONALITIES
from hv_node.hvm import Vcpu
from hv_node.uplinks.fabric import FabricUplink
from hv_node.uplinks.joint import Joint
from hv_node.uplinks.parent import ParentUplink
from topologies.inline.machine import InlineBells, InlineMachine, InlineMemory


class InlineLevel:
    """One hypervisor's joint in the loop.  `poke` has it take a turn soon, once however often it is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, machine: InlineMachine, joint: Joint) -> None:
        self.joint = joint
        self._loop = loop
        self._machine = machine
        self._parent: ParentUplink | None = None
        self._link: FabricLink | None = None
        self._fabric: FabricUplink | None = None
        self._scheduled = self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        machine.on_ran = self._ran

    # -- ways up ----

    def join(self, link: FabricLink) -> None:
        """Above is the fabric."""
        fabric = FabricUplink(link)

        def welcome(_epoch: int) -> None:
            self.joint.above(fabric)
            self.poke()

        def lost(_reason: str) -> None:
            self.joint.cut()
            self.poke()

        link.member.on_welcome, link.member.on_disconnected = welcome, lost
        self._link, self._fabric = link, fabric

    def move_in(
        self,
        config: HypervisorConfig,
        memory: InlineMemory,
        areas: list[memoryview],
        bells: list[InlineBells],
        on_up: Callable[[], None],
        on_event: Callable[..., None],
    ) -> None:
        """Above is a parent, in whose machine this hypervisor has been given a domain."""
        arch = Arch[config.arch.upper()]
        sides = [GuestSide(area, arch) for area in areas]
        abi = PERSONALITIES[config.outer[-1].personality, arch].abi
        parent = ParentUplink(
            memory.guest.buffer, sides, lambda vcpu: bells[vcpu].ring(), arch, config.cpu, abi
        )

        def up() -> None:
            self.joint.above(parent)
            self.joint.when_served(on_up)

        parent.on_up, parent.on_event = up, on_event
        parent.on_envelope, parent.on_room = self.joint.arrived, self.joint.room
        for bell in bells:
            bell.on_bell(self.poke)
        self._parent = parent
        self.poke()

    def end(self) -> None:
        """The hypervisor is gone."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    # -- turns ----

    def poke(self) -> None:
        """Something has happened."""
        if not self._scheduled and not self._ended:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _ran(self, vcpu: Vcpu) -> None:
        self.joint.ran(vcpu)
        self.poke()

    def _turn(self) -> None:
        self._scheduled = False
        if self._ended:
            return
        parent = self._parent
        if parent is not None:
            parent.awake()
            if parent.turn(self._now()):
                self.poke()
        self.joint.turn()
        if self._fabric is not None and self._fabric.room():
            self.joint.room()
        if self._link is not None:
            self._link.flush()
        self._machine.touched()
        if parent is not None and not self._scheduled and not parent.sleep():
            self.poke()
        self._arm()

    def _now(self) -> int:
        return round(self._loop.time() * 1e9)

    def _arm(self) -> None:
        """Take a turn when something is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = [self.joint.next_deadline(), None if self._parent is None else self._parent.next_deadline()]
        at = min((moment for moment in due if moment is not None), default=None)
        if at is not None:
            self._timer = self._loop.call_at(max(at, self._now()) / 1e9, self.poke)
