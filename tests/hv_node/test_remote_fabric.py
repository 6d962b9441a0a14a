"""A remote guest over the broker: attach, calls, and a broker that is restarted under them.

Rules: contracts 3 and 8: the guest's vCPU stays trapped, frames are repeated unchanged and executed once.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from broker.fabric import FabricLink, MemoryFabric
from broker.frames import Lane
from guest_node.remote import RemoteEnd, request
from hmx import mirror, xen
from hmx.argo import abi
from hmx.argo.consumer import Consumer
from hmx.attach import AttachError, Reply
from hmx.memory import PAGE_SIZE
from hmx.trap import Arch, Kind, int32
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.config import DomainConfig
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.remote_guest import RemoteBacking, attach_request, refusal
from hv_node.xsm import xsm_by_name

TOKEN = b"r" * 16
SECOND = 1_000_000_000


class World:
    """hv0 and its guest app, joined by a broker in memory."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0
        self.chance = random.Random(seed)
        self.epoch = 1
        self.fabric = MemoryFabric(token=b"t" * 32, mint=lambda: TOKEN, silence=False)
        options, _ = parse_options("on,mac-permissive")
        self.core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", options, xsm_by_name("dummy"))
        self.backing = RemoteBacking(DomainConfig("app", 1, 64 * PAGE_SIZE, 1))
        self.hvm = self.core.create_domain(1, self.backing.memory(), self.backing.area_views(), name="app")
        self.reasons: list[str] = []
        self.hv = self.fabric.connect("hypervisor", "hv0")
        self.app = self.fabric.connect("guest", "app")
        self.hv.on_record, self.app.on_record = self.at_hypervisor, self.at_guest
        self.end: RemoteEnd | None = None
        self.refused = ""
        self.welcomes()

    def welcomes(self) -> None:
        def of_hypervisor(_epoch: int) -> None:
            if self.backing.guest is not None:
                self.backing.guest.link_up()

        def of_guest(_epoch: int) -> None:
            if self.end is not None:
                self.end.link_up()

        self.hv.member.on_welcome, self.app.member.on_welcome = of_hypervisor, of_guest

    def tell(self, link: FabricLink, to: str, message: bytes) -> None:
        link.send(Lane.CONTROL, ["tell", to, ["mirror"]], message)

    def at_hypervisor(self, _lane: Lane, record: Any, payload: Any) -> None:
        """What a shell does with the records of the handshake and of the lane."""
        match [*record]:
            case ["told", "app", ["mirror"]]:
                asked = attach_request(payload)
                guest = self.backing.guest
                if asked is None:
                    if guest is not None:
                        guest.receive(payload)
                elif asked.token != TOKEN:
                    self.tell(self.hv, "app", refusal("wrong attach token"))
                elif guest is not None:
                    guest.attached_again()
                else:
                    self.backing.attach(
                        asked, 5, Arch.X86_64, lambda _vcpu: None, lambda m: self.tell(self.hv, "app", m),
                        self.reasons.append,
                    )  # fmt: skip

    def at_guest(self, _lane: Lane, record: Any, payload: Any) -> None:
        match [*record]:
            case ["told", "hv0", ["mirror"]] if self.end is not None:
                self.end.receive(payload)
            case ["told", "hv0", ["mirror"]]:
                try:
                    self.end = RemoteEnd(mirror.unpack(payload), lambda m: self.tell(self.app, "hv0", m), Arch.X86_64)
                except AttachError as error:
                    self.refused = str(error)

    def step(self) -> None:
        """A little of everything."""
        self.now += SECOND // 10
        for link in self.chance.sample([self.hv, self.app], 2):
            link.send(Lane.CONTROL, ["heartbeat", self.now])  # by which a node notices that its broker is another one
            link.pump()
        self.fabric.run(self.now)
        for vcpu in self.hvm.vcpus:
            self.core.run(vcpu)
        if self.backing.guest is not None:
            self.backing.send(b"\0")
            self.backing.guest.tick(self.now)
        if self.end is not None:
            self.end.tick(self.now)

    def attach(self, token: bytes = TOKEN) -> None:
        for _ in range(40):
            if self.end or self.refused:
                break
            self.tell(self.app, "hv0", request("app", token))
            for _ in range(5):
                self.step()
        if self.end is not None:
            self.area = GuestSide(self.end.areas[0])

    def call(self, cmd: int, *arguments: int, restart: bool = False) -> int:
        assert self.end is not None
        a = (*arguments, 0, 0, 0, 0)
        regs = (xen.Hypercall.ARGO_OP, 0, 0, a[1], a[0], cmd, a[3], 0, a[2])
        self.area.submit(Kind.VMCALL, regs)
        self.area.publish()
        self.end.ring(0)
        lose_at = self.chance.randrange(6) if restart else -1
        for at in range(200):
            if at == lose_at:
                self.epoch += 1
                self.fabric.restart(self.epoch)
            self.step()
            if self.area.completed():
                return int32(self.area.collect().regs[0])
        raise AssertionError("trapped for ever")


def test_attach_is_answered_again_and_refused() -> None:
    """A request that is repeated has one domain; a wrong token is refused in words."""
    world = World()
    world.attach(b"x" * 16)
    assert "wrong attach token" in world.refused and not world.backing.token
    world.refused = ""
    world.attach()
    assert getattr(world.end, "reply", None) == Reply(False, 1, 1, Arch.X86_64, 64 * PAGE_SIZE, "")
    guest = world.backing.guest
    world.tell(world.app, "hv0", request("app", TOKEN))
    for _ in range(10):
        world.step()
    assert guest is world.backing.guest
    assert world.reasons == []


@pytest.mark.parametrize("seed", range(20))
def test_every_send_is_executed_once_whatever_the_broker_does(seed: int) -> None:
    """The broker is restarted somewhere within every other call: all are answered, and each message is there once."""
    world = World(seed)
    world.attach()
    end = world.end
    assert end is not None
    window = end.window(8 * PAGE_SIZE, PAGE_SIZE)
    window.write(0, bytes(PAGE_SIZE))
    window.publish()
    abi.REGISTER_RING.pack_into(end.ram, PAGE_SIZE, 9, abi.DOMID_ANY, 0, 4032)
    abi.GFN.pack_into(end.ram, 2 * PAGE_SIZE, 8)
    assert world.call(abi.Op.REGISTER_RING, PAGE_SIZE, 2 * PAGE_SIZE, 1, 0, restart=seed % 2 == 0) == 0
    consumer = Consumer(window, 4032)
    for number in range(12):
        end.ram[3 * PAGE_SIZE] = number
        abi.SEND_ADDR.pack_into(end.ram, PAGE_SIZE, 7, abi.DOMID_ANY, 0, 9, 1, 0)
        abi.IOV.pack_into(end.ram, PAGE_SIZE + 16, 3 * PAGE_SIZE, 1, 0)
        restart = bool((number + seed) % 2)
        assert world.call(abi.Op.SENDV, PAGE_SIZE, PAGE_SIZE + 16, 1, 0, restart=restart) == 1
    assert [message.payload for message in consumer.drain()] == [bytes([number]) for number in range(12)]
    assert world.core.counters()["app"]["messages"] == 12
    assert world.epoch > 1 and world.reasons == []
