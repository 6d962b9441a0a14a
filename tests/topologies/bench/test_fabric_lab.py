"""Labs whose hypervisors stand on hosts of their own: what the rows between hosts are measured in."""

from __future__ import annotations

import json

from topologies.bench import labs
from topologies.bench.fabric_lab import beyond_hosts
from topologies.bench.rows import ROW_OF
from topologies.load import loads
from topologies.plan import Places, plan


def test_every_hypervisor_reaches_the_broker_over_tcp_with_a_key_of_its_own() -> None:
    """Both sides CURVE, the broker's list has exactly their keys, and holds each to the hypervisor it is for."""
    lab = labs.topology(ROW_OF["remote-posted-64B"], "lab", 10, 1)
    planned = plan(loads(json.dumps(lab)), Places("/tmp", "/tmp/run", "/tmp/s"), token=bytes(32))
    made = beyond_hosts(planned)
    endpoints = {config.broker_endpoint for config in made.hypervisors}
    assert endpoints == set(made.broker.endpoints)
    assert all(endpoint.startswith("tcp://127.0.0.1:") for endpoint in endpoints)
    assert made.broker.curve is not None
    listed = dict(made.broker.curve.allowed)
    homes = dict(made.broker.binding.hosts) if made.broker.binding is not None else {}
    assert len(listed) == len(made.hypervisors) == 2
    for config in made.hypervisors:
        assert config.curve is not None
        assert config.curve.server == made.broker.curve.pair.public
        assert homes[config.name] == listed[config.curve.pair.public]
    assert [config.posted for config in made.hypervisors] == [("hv1",), ("hv0",)]
    assert made.guests == planned.guests


def test_exact_rows_are_not_posted_and_the_nested_one_has_a_parent() -> None:
    exact = labs.topology(ROW_OF["remote-rtt-64B"], "lab", 10, 1)
    assert exact["links"] == [{"between": ["hv0", "hv1"], "posted": False}]
    nested = labs.topology(ROW_OF["nested-rtt-64B"], "lab", 10, 1)
    assert nested["hypervisors"]["hv1"]["parent"] == "hv0"
    assert (nested["guests"]["sender"]["on"], nested["guests"]["receiver"]["on"]) == ("hv1", "hv0")
    assert "links" not in nested
