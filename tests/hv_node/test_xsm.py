"""Security modules: dummy and silo (Xen include/xsm/dummy.h, xsm/silo.c)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.memory import MappedMemory
from hv_node.domain import Domain, DomainTable
from hv_node.xsm import DummyXsm, SiloXsm, xsm_by_name
from tests.hv_node.argo.world import World


@pytest.mark.parametrize(
    ("caller", "other", "meet"),
    [(0, 0, True), (0, 1, True), (1, 0, True), (1, 1, True), (1, 2, False), (2, 1, False)],
)
def test_silo(caller: int, other: int, meet: bool) -> None:
    """Two domains meet when they are one or either is a control domain (domain 0 here)."""
    world = World(xsm=SiloXsm())
    assert world.register(caller, 7, other, 112) == (0 if meet else -Errno.EPERM)
    world = World(xsm=SiloXsm())
    world.argo.permissive = True  # let the ring come about whoever owns it
    world.argo.xsm = DummyXsm()
    assert world.register(other, 7, caller, 112) == 0
    world.argo.xsm, world.argo.permissive = SiloXsm(), False
    assert world.send(caller, (7, other), b"m") == (1 if meet else -Errno.EPERM)


def test_silo_grants_the_rest() -> None:
    """Using Argo, and wildcard rings once mac-permissive allows them."""
    world = World(xsm=SiloXsm())
    assert world.register(1, 7, DOMID_ANY, 112) == 0
    assert world.send(0, (7, 1), b"m") == 1
    assert world.send(2, (7, 1), b"m") == -Errno.EPERM
    assert ("event", "argo-send-denied", 2, 1) in world.sink.log


def test_dummy_grants_everything_and_says_so() -> None:
    """`permissive` lets the core skip the questions; the answers would be 0."""
    dummy, world = DummyXsm(), World()
    one, two = world.domain(1), world.domain(2)
    assert dummy.permissive
    assert not SiloXsm().permissive
    assert dummy.enable(one) == dummy.register_any_source(one) == 0
    assert dummy.register_single_source(one, two) == dummy.send(one, two) == 0


def test_by_name() -> None:
    """As the `xsm=` option and the topology name them."""
    assert [xsm_by_name(name).name for name in ("dummy", "silo")] == ["dummy", "silo"]
    with pytest.raises(ValueError, match=r"'flask'.*dummy, silo"):
        xsm_by_name("flask")


def test_domain_table() -> None:
    """Ids below 0x7FF0, one domain each; a freed id may be used again at once."""
    table = DomainTable()
    memory = MappedMemory(bytearray(4096))
    table.create(Domain(0, memory, is_control=True, name="dom0"))
    table.create(Domain(0x7FEF, memory))
    for domid in (-1, 0x7FF0, 0x7FF4, 0):
        with pytest.raises(ValueError, match="domain id"):
            table.create(Domain(domid, memory))
    assert [domain.domid for domain in table] == [0, 0x7FEF]
    assert len(table) == 2
    assert table.lookup(0x7FF0) is None
    removed = table.remove(0)
    assert removed is not None
    assert repr(removed) == "<Domain 0 'dom0' alive>"
    assert table.remove(0) is None
    table.create(Domain(0, memory))
