"""The golden traces once more, with their domains spread over several hypervisors.

What Xen answered to domains on one hypervisor, levels answer to domains on two or more: the same results, memory and
virtual interrupts.  Links deliver at once here, so that each call is over before the next event of its trace; what
happens to operations whose links delay or lose is tests/property/test_levels.py.

SILO asks whether one of two domains is the control domain.  To a lab's SILO a proxy never is; what was recorded knew no
proxies.  For the seven files with SILO, each hypervisor here has a SILO that knows domain 0 wherever it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path as File
from typing import Final

import pytest

from hv_node.argo.core import Argo
from hv_node.conform import Subject, replay
from hv_node.domain import Domain
from hv_node.levels.paths import Path
from hv_node.levels.proxies import RemoteConfig
from hv_node.xsm import DummyXsm, SiloXsm
from tests.doubles.levels import Lab, Node

TRACES: Final = sorted((File(__file__).parent / "traces").glob("*.jsonl.gz"))
TWO_HOSTS: Final[tuple[Path, ...]] = (("a",), ("b",))
NESTED: Final[tuple[Path, ...]] = (("a",), ("a", "b"))
TREE: Final[tuple[Path, ...]] = (("a",), ("a", "b"), ("a", "b", "c"), ("a", "d"), ("e",), ("e", "f"))


class OneSilo(SiloXsm):
    """SILO as if all domains were on one hypervisor."""

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        return self.send(domain, partner)

    def send(self, source: Domain, destination: Domain) -> int:
        return 0 if source is destination or source.is_control or destination.is_control else -self.denied


class Spread(Subject):
    """Domain N lives on hypervisor N modulo their number."""

    def __init__(self, cmdline: str, xsm: str, paths: tuple[Path, ...]) -> None:
        super().__init__(cmdline, xsm)
        self.lab = Lab(paths, xsm=OneSilo if xsm == "silo" else DummyXsm, argo=self.options)
        self.nodes = list(self.lab.nodes.values())
        self.serial = count(1)

    def node(self, domain: Domain) -> Node:
        return self.nodes[domain.domid % len(self.nodes)]

    def argo_of(self, domain: Domain) -> Argo:
        return self.node(domain).argo

    def start(self, domain: Domain) -> None:
        domain.name = f"d{domain.domid}.{next(self.serial)}"
        self.domains.create(domain)
        home = self.node(domain)
        home.domains.create(domain)
        home.argo.domain_init(domain)
        home.level.domain_created(domain)
        for node in self.nodes:
            if node is not home:
                proxy = node.level.proxies.plan(RemoteConfig(domain.name, domain.domid, (*home.path, domain.name)))
                proxy.is_control = domain.is_control

    def kill(self, domain: Domain) -> None:
        self.node(domain).argo.domain_kill(domain)
        self.node(domain).level.domain_died(domain)

    def end(self, domain: Domain) -> None:
        self.kill(domain)
        self.domains.remove(domain.domid)
        self.node(domain).domains.remove(domain.domid)
        self.node(domain).level.domain_freed(domain.domid)

    def take_virqs(self) -> list[tuple[int, int]]:
        found = [virq for node in self.nodes for virq in node.virqs]
        for node in self.nodes:
            node.virqs.clear()
        return found


def spread(paths: tuple[Path, ...], made: list[Spread]) -> Callable[[str, str], Subject]:
    def make(cmdline: str, xsm: str) -> Subject:
        made.append(Spread(cmdline, xsm, paths))
        return made[-1]

    return make


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_two_hypervisors(path: File) -> None:
    """All 42 files: even domains on one host, odd ones on another."""
    made: list[Spread] = []
    outcome = replay(path, spread(TWO_HOSTS, made))
    assert outcome.ops
    assert outcome.mismatches == []
    executed = sum(node.level.counters.executed for subject in made for node in subject.nodes)
    # Argo is off, or nobody sends: no operation gets as far as another domain's ring
    quiet = {"directed-off.jsonl.gz", "directed-enospc.jsonl.gz"}
    assert bool(executed) == (path.name not in quiet), f"{executed} operations crossed"
    for subject in made:
        for node in subject.nodes:
            assert not len(node.level.calls), "an operation was not settled"
            assert not node.level.counters.forged


@pytest.mark.parametrize("path", TRACES[5::8], ids=lambda path: path.name.removesuffix(".jsonl.gz"))
@pytest.mark.parametrize("paths", [NESTED, TREE], ids=["nested", "tree"])
def test_other_shapes(path: File, paths: tuple[Path, ...]) -> None:
    """A hypervisor inside the other; and six of them, up to three deep, on two hosts."""
    made: list[Spread] = []
    outcome = replay(path, spread(paths, made))
    assert outcome.mismatches == []
    assert sum(node.level.counters.executed for subject in made for node in subject.nodes)
