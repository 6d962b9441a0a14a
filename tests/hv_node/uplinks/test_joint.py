"""What a shell has of its level without any I/O: options from a plan, the fabric as an uplink, who may speak."""

from __future__ import annotations

from typing import Any

import pytest

from broker.envelope import Envelope
from broker.frames import Lane
from hmx.argo.abi import DOMID_ANY, SEND_ADDR
from hmx.errno import Errno
from hmx.memory import MappedMemory
from hmx.nested import MESSAGE_TYPE, UPLINK_PORT
from hmx.trap import Arch, Kind
from hmx.vcpu_area import AREA_SIZE
from hv_node.argo.options import ArgoOptions
from hv_node.config import DomainConfig, HypervisorConfig, OuterConfig, RemoteConfig
from hv_node.doors.personality import Intercept, NestedMsr
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.uplinks.around import is_joined, parents_of
from hv_node.uplinks.fabric import FabricUplink
from hv_node.uplinks.joint import Joint, level_options
from hv_node.uplinks.wire import Whole
from hv_node.xsm import DummyXsm
from tests.doubles.hypervisor_node import configured
from tests.hv_node.uplinks.rig import MIB, envelope


def config(**more: Any) -> HypervisorConfig:
    return configured(**{"notifications": ("virq",), "linger_ns": 5, "path": ("hv0",), **more})


# ---- plans ----


def test_a_hypervisor_by_itself_has_no_level() -> None:
    """Old labs pay nothing."""
    assert not is_joined(config(domains=(DomainConfig("app", 1, MIB, 1),)))
    assert is_joined(config(domains=(DomainConfig("hv1", 1, MIB, 1, nested=True),)))
    assert is_joined(config(parent="hv9"))
    assert is_joined(config(remotes=(RemoteConfig("app", 0x4000, ("hv2", "app")),)))


def test_options_are_those_of_the_plan() -> None:
    """Children, labels, linger, proxies, all other hypervisors; posted ones are named by their L0."""
    remotes = (
        RemoteConfig("a", 0x4000, ("hv2", "hv3", "a"), "red"),
        RemoteConfig("b", 0x4001, ("hv0", "hv1", "b")),
        RemoteConfig("c", 0x4002, ("hv4", "c")),
    )
    domains = (DomainConfig("app", 1, MIB, 1, label="blue"), DomainConfig("hv1", 2, MIB, 1, nested=True))
    others = (("hv2",), ("hv2", "hv3"), ("hv0", "hv1"), ("hv4",))
    options = level_options(config(domains=domains, remotes=remotes, posted=("hv2",), hypervisors=others), 77)
    assert (options.epoch, options.linger_ns, options.children) == (77, 5, ("hv1",))
    assert options.labels == {"app": "blue"}
    assert [(row.name, row.domid, row.path, row.label) for row in options.remotes] == [
        (row.name, row.domid, row.path, row.label) for row in remotes
    ]
    assert options.peers == others
    assert options.posted == {("hv2", "hv3")}


def test_the_tables_around_are_those_that_they_offer() -> None:
    """Their doors, those that they steal, and their rule for MSRs, the outermost first."""
    around = (OuterConfig("xen", ("msr",), ("msr",), "steal"), OuterConfig("kvm", ("pio",)))
    outermost, parent = parents_of(config(outer=around))
    doors = {row.handler: row for table in (outermost, parent) for row in table.rows if row.handler.startswith("door-")}
    assert {name: row.intercept for name, row in doors.items()} == {
        "door-msr": Intercept.STEAL,
        "door-pio": Intercept.BITMAP,
    }
    assert doors["door-pio"].instruction is Kind.IN
    assert outermost.nested_msr is NestedMsr.STEAL
    assert parent.nested_msr is PERSONALITIES["kvm", Arch.X86_64].nested_msr


# ---- the fabric ----


class Link:
    """A link with room for so many envelopes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[tuple[Lane, Any, Any]] = []
        self.on_record = lambda *_: None

    def send(self, lane: Lane, record: Any, payload: Any = b"") -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append((lane, record, payload))
        return True

    def credit(self, lane: Lane) -> int:
        return self.room if lane is Lane.REQUEST else 0

    def flush(self) -> bool:
        return False

    def pump(self) -> bool:
        return False


def test_the_fabric_refuses_and_says_when_it_has_room() -> None:
    """Envelopes travel on the request lane; after a refusal `room` is true once, when there is credit again."""
    link = Link(1)
    fabric = FabricUplink(link)
    assert not fabric.room(), "nobody was refused"
    assert fabric.send(envelope(1), b"x")
    assert link.sent == [(Lane.REQUEST, envelope(1), b"x")]
    assert not fabric.send(envelope(2), b"y")
    assert not fabric.room()
    link.room = 3
    assert fabric.room()
    assert not fabric.room()
    assert fabric.refused == 1


# ---- who speaks ----


def test_a_domain_that_is_no_child_here_has_no_way_up() -> None:
    """Nested by the plan is not enough: only who attached as that child is listened to."""
    core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", ArgoOptions(enabled=True), DummyXsm())
    planned = config(domains=(DomainConfig("hv1", 1, MIB, 1, nested=True),))
    joint = Joint(planned, core, 1, lambda: 0)
    rams = {name: bytearray(MIB) for name in ("hv1", "stranger")}
    hvms = {
        name: core.create_domain(
            domid, MappedMemory(ram), [memoryview(bytearray(AREA_SIZE))], name=name, nested=True
        )
        for domid, (name, ram) in enumerate(rams.items(), 1)
    }
    (message,) = Whole(envelope(1), b"").chunks(0, 4096)
    for ram in rams.values():
        ram[0x2000 : 0x2000 + len(message)] = message
        ram[0x1000:0x1010] = SEND_ADDR.pack(UPLINK_PORT, DOMID_ANY, 0, UPLINK_PORT, DOMID_ANY, 0)
        ram[0x1010:0x1020] = (0x2000).to_bytes(8, "little") + len(message).to_bytes(8, "little")

    def send(name: str) -> int:
        return core.argo.op(hvms[name].domain, 3, 0x1000, 0x1010, 1, MESSAGE_TYPE)

    assert send("hv1") == -Errno.ESRCH, "nobody has attached"
    joint.attached(planned.domains[0], hvms["hv1"])
    assert send("hv1") == len(message)
    assert send("stranger") == -Errno.ESRCH
    joint.dying(planned.domains[0])
    assert send("hv1") == -Errno.ESRCH


@pytest.mark.parametrize("payload", [b"", b"x" * 100])
def test_what_comes_from_above_reaches_the_level(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bytes, whatever the link handed over."""
    core = Hypervisor(PERSONALITIES["xen", Arch.X86_64], "intel", ArgoOptions(enabled=True), DummyXsm())
    joint = Joint(config(remotes=(RemoteConfig("a", 0x4000, ("hv2", "a")),)), core, 1, lambda: 0)
    seen: list[tuple[Envelope, bytes]] = []

    def take(_child: str | None, found: Envelope, data: bytes, _now: int) -> bool:
        seen.append((found, data))
        return True

    monkeypatch.setattr(joint.level, "on_envelope", take)
    joint.arrived(envelope(1), memoryview(payload))
    assert seen == [(envelope(1), payload)]
