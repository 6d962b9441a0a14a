"""The keys of a uXen lab: who is the control domain, who has which v4v storage units, and what they cannot be."""

from __future__ import annotations

import pytest

from hv_node.config import HypervisorConfig
from topologies.codec import decode, encode
from topologies.diagnose import TopologyError
from topologies.load import loads
from topologies.plan import Places, Plan, plan

PLACES = Places("/labs", "/run/lab", "/run/s/1")


def planned(text: str) -> Plan:
    return plan(loads(f"name: lab\n{text}"), PLACES)


def refused(text: str) -> list[str]:
    """What is said of a topology, without file, line and column."""
    with pytest.raises(TopologyError) as raised:
        loads(f"name: lab\n{text}", "f")
    return [line.partition(" ")[2] for line in str(raised.value).splitlines() if line.startswith("f:")]


def test_the_control_domain_is_domain_0() -> None:
    """Xen: domain 0 is the privileged one.  The others count from 1, whatever stands where in the file."""
    made = planned("""
hypervisors: {hv0: {personality: uxen}, hv1: {}}
guests:
  a: {on: hv0, program: "m:f", storage: [3, 0]}
  model: {on: hv0, program: "m:f", control: true}
  b: {on: hv0, program: "m:f"}
  dom0: {on: hv1, program: "m:f", control: true}
""")
    assert [(guest.name, guest.domid, guest.peers) for guest in made.guests] == [
        ("a", 1, {"model": 0, "b": 2}), ("model", 0, {"a": 1, "b": 2}), ("b", 2, {"a": 1, "model": 0}), ("dom0", 0, {}),
    ]  # fmt: skip
    domains = [[(each.domid, each.is_control, each.storage) for each in hv.domains] for hv in made.hypervisors]
    assert sorted(domains[0]) == [(0, True, ()), (1, False, (3, 0)), (2, False, ())]
    assert domains[1] == [(0, True, ())]
    assert (made.hypervisors[0].storage, made.hypervisors[1].storage) == ({"a": (3, 0)}, {})
    assert decode(HypervisorConfig, encode(made.hypervisors[0])) == made.hypervisors[0]
    assert Plan.from_json(made.to_json()) == made


UXEN = "hypervisors: {hv0: {personality: uxen}}\nguests:\n"
REFUSED = (
    ("hypervisors: {hv0: {}}\nguests:\n  g: {on: hv0, program: 'm:f', storage: [0]}\n",
     ["guests.g.storage: xen has no v4v storage"]),
    ("hypervisors: {hv0: {personality: ax, doors: [msr]}}\nguests:\n  g: {on: hv0, program: 'm:f', storage: [0]}\n",
     ["guests.g.storage: ax has no v4v storage"]),
    (UXEN + "  g: {on: hv0, program: 'm:f', control: true, storage: [0]}\n",
     ["guests.g.storage: the control domain has no storage units of its own"]),
    (UXEN + "  g: {on: hv0, program: 'm:f', storage: [0, 5, 0]}\n",
     ["guests.g.storage[2]: storage unit 0 is there twice"]),
    (UXEN + "  g: {on: hv0, program: 'm:f', control: true}\n  h: {on: hv0, program: 'm:f', control: true}\n",
     ["guests.h.control: hypervisor 'hv0' has a control domain already: 'g'"]),
    (UXEN + "  g: {on: hv0, program: 'm:f', control: true, restart: on-failure}\n",
     ["guests.g.control: a control domain is not started again, and 'g' has restart: on-failure"]),
    ("hypervisors: {h.0: {restart: on-failure}}\nguests:\n  g: {on: h.0, program: 'm:f', control: true}\n",
     ["guests.g.control: a control domain is not started again, and 'h.0' has restart: on-failure"]),
)  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_cannot_be(text: str, said: list[str]) -> None:
    """Each mistake at its place, once."""
    assert refused(text) == said


@pytest.mark.parametrize("units", ["[128]", "[-1]", "[a]", "[true]", "0"])
def test_what_is_no_unit(units: str) -> None:
    """The bitmap has 128 bits: units 0 to 127 (uXen dm/uxen_stor.c)."""
    (said,) = refused(UXEN + f"  g: {{on: hv0, program: 'm:f', storage: {units}}}\n")
    assert said.startswith("guests.g.storage")


def test_what_may_be() -> None:
    """No unit, the last one, a control domain on each hypervisor, a restart beside one."""
    planned(UXEN + "  g: {on: hv0, program: 'm:f', storage: [], control: true}\n")
    planned(UXEN + "  g: {on: hv0, program: 'm:f', storage: [127]}\n")
    others = "  g: {on: hv0, program: 'm:f', restart: on-failure}\n"
    planned(UXEN + others + "  h: {on: hv0, program: 'm:f', control: true}\n")
