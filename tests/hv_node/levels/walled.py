"""The real core with slots in front of it."""

from __future__ import annotations

from hmx.argo.abi import DOMID_ANY
from hv_node.levels.delegation import Delegation
from hv_node.levels.gate import Gate
from hv_node.levels.slots import Slots
from hv_node.xsm import DummyXsm, PortXsm
from tests.hv_node.argo.world import World
from tests.hv_node.levels.lab import Directory

STORAGE = 0xD0000


class Walled:
    """A core with three domains: 1 is confined and has a slot to 2's storage; 3 is anybody."""

    def __init__(self, base: PortXsm | None = None, path: tuple[str, ...] = ("hv1",)) -> None:
        self.world = World(domids=(1, 2, 3))
        directory = Directory(path)
        for domid in (1, 2, 3):
            directory.add(self.world.domain(domid), (*path, f"g{domid}"), f"l{domid}")
        self.slots = Slots(directory)
        self.gate = Gate(self.world.argo, self.slots, base or DummyXsm())
        self.delegation = Delegation(self.slots, self.gate)
        self.gate.install()
        self.delegation.grant(1, 0, None, STORAGE, (*path, "g2"))
        self.slots.confine(1)
        for domid, port in ((2, STORAGE), (2, 77), (3, STORAGE)):
            gfn = 16 if port == 77 else 8
            assert self.world.register(domid, port, DOMID_ANY, 112, gfns=[gfn]) == 0
