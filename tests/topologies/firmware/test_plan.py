"""What the planner puts into a guest's firmware of the patch panel: the services that were connected at the start."""

from __future__ import annotations

import pytest

from hmx import acpi, fdt
from hmx.firmware import Offer, argo_from_acpi, argo_from_tree
from hmx.memory import FIRMWARE_BASE
from topologies import levels
from topologies.load import loads
from topologies.plan import Places, plan

LAB = """
name: x
hypervisors: {{hv0: {{{keys}}}, far: {{}}}}
guests:
  app: {{on: hv0, program: 'm:f', memory: 16MiB}}
  plain: {{on: hv0, program: 'm:f', memory: 16MiB}}
  store: {{on: far, program: 'm:f', memory: 16MiB}}
destinations:
  - {{from: app, service: storage, instance: 3, to: store}}
  - {{from: app, service: echo, to: store}}
  - {{from: app, service: storage, instance: 0, to: plain}}
  - {{from: app, service: storage, instance: 1, to: store}}
  - {{from: app, source-port: 77, to: store}}
"""
CONNECTED = (("echo", 7, 1), ("storage", 0xD0000, 2), ("storage", 0xD0003, 1))


def test_the_services_of_a_guest() -> None:
    """Each once, instances that follow each other together; a slot by source port is no service."""
    topology = loads(LAB.format(keys=""))
    assert levels.offers(topology, "app") == CONNECTED
    assert levels.offers(topology, "plain") == levels.offers(topology, "store") == ()


@pytest.mark.parametrize(("kind", "keys"), [
    ("acpi", "firmware: acpi"), ("devicetree", "arch: aarch64, firmware: devicetree"),
])  # fmt: skip
def test_the_firmware_names_them(kind: str, keys: str) -> None:
    """Both kinds say the same; a guest without destinations is told of none."""
    made = plan(loads(LAB.format(keys=keys)), Places("/topo", "/run/x", "/run/s"), seed=1)
    domains = {domain.name: domain.firmware for config in made.hypervisors for domain in config.domains}
    found = {}
    for name in ("app", "plain"):
        blob = domains[name]

        def read(address: int, size: int, blob: bytes = blob) -> bytes | None:
            at = address - FIRMWARE_BASE
            return blob[at : at + size] if 0 <= at <= len(blob) - size else None

        if kind == "acpi":
            device = argo_from_acpi(acpi.devices(acpi.tables(read, acpi.find_rsdp(read))))
        else:
            device = argo_from_tree(fdt.parse(blob))
        assert device is not None
        found[name] = device.services
    assert found == {"app": tuple(Offer(*row) for row in CONNECTED), "plain": ()}
