"""Hypervisors, guests and calls that the tests of slots share."""

from __future__ import annotations

from typing import Any

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.slots import (
    DelegateCall,
    DelegateFlag,
)
from hv_node.domain import Domain
from hv_node.levels import slot_table
from hv_node.xsm import DummyXsm
from tests.hv_node.levels.lab import Host, Lab

P1, P2 = ("hv1",), ("hv2",)
APP, STORE, OTHER, FAR = (*P1, "app"), (*P1, "store"), (*P1, "other"), (*P2, "far")
STORAGE, ECHO = 0xD0000, 7
TYPE = 0x6447724D


def here() -> tuple[Host, Domain, Domain, Domain]:
    """hv1 with app (1), store (2) and other (3), and a proxy of hv2's far (0x4000)."""
    host = Host(P1)
    made = [host.guest(domid, name) for domid, name in enumerate(("app", "store", "other"), 1)]
    host.proxy(0x4000, FAR)
    return host, *made  # type: ignore[return-value]


def send(host: Host, caller: Domain, port: int, domid: int = DOMID_ANY, source_port: int = 9, kind: int = TYPE) -> Any:
    return host.slots.resolve(caller, source_port, domid, port, kind)


def call(slot: int = 0, to_slot: int = 1, **more: Any) -> DelegateCall:
    flags = DelegateFlag(0)
    for name, flag in (("ranges", DelegateFlag.PORTS), ("types", DelegateFlag.TYPES), ("rate", DelegateFlag.RATE)):
        flags |= flag if more.get(name) else DelegateFlag(0)
    if more.pop("delegable", False):
        flags |= DelegateFlag.DELEGABLE
    port, rate = more.get("port", 0), more.get("rate", 0)
    return DelegateCall(slot, to_slot, flags, port, rate, more.get("ranges", ()), more.get("types", ()))


def passing() -> tuple[Host, Domain, Domain, Domain]:
    """app holds slot 0, storage, which may be passed on, and slot 1, a way to other."""
    host, app, store, other = here()
    host.delegation.grant(1, 0, None, STORAGE, STORE, delegable=True)
    host.delegation.grant(1, 1, None, ECHO, OTHER)
    return host, app, store, other


class Nobody(DummyXsm):
    """A policy that lets nobody pass anything on, or know anybody."""

    def query(self, asker: Domain, subject: Domain) -> int:
        return -Errno.EACCES

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        return -Errno.EACCES


def two() -> tuple[Lab, Host, Host, Domain, Domain]:
    """hv1 with app and store, hv2 with far and deep; app may pass storage to far, far on to deep of hv3."""
    one, other, third = Host(P1), Host(P2), Host(("hv3",))
    app = one.guest(1, "app")
    one.guest(2, "store")
    one.proxy(0x4000, FAR)
    far = other.guest(1, "far")
    other.proxy(0x4001, APP)
    other.proxy(0x4002, STORE)
    other.proxy(0x4003, ("hv3", "deep"))
    third.guest(1, "deep")
    third.proxy(0x4002, STORE)
    third.proxy(0x4001, FAR)
    one.delegation.grant(1, 0, None, STORAGE, STORE, delegable=True)
    one.delegation.grant(1, 1, None, ECHO, FAR)
    other.delegation.grant(1, 1, None, ECHO, ("hv3", "deep"))
    return Lab(one, other, third), one, other, app, far


def shares(slot: slot_table.Slot) -> tuple[float, int, int]:
    """What was lent, what one message costs now, how many children there are."""
    assert slot.bucket is not None
    return slot.lent, slot.bucket.cost, len(slot.children)
