"""Runs a lab whose hypervisors reach the broker as those of other hosts do: over tcp on loopback, with CURVE.

    python fabric_lab.py LAB RUN_DIR

Each hypervisor has a key pair of its own, as each host has; the broker knows them by ZAP and holds every hypervisor to
its key.  Guests stay with their hypervisor, and everything else of the plan is as it was.  Prints what `argosy run
--format json` does.  A module of its own beside the topology, so that it runs another tree as well.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path
from typing import Any

from broker.binding import Binding
from broker.keys import ClientCurve, ServerCurve, generate
from topologies.formats import Format
from topologies.load import load
from topologies.plan import Plan, plan
from topologies.processes import ProcessRuntime
from topologies.report import print_outcome


class _Silent:
    """Nobody watches."""

    def progress(self, _record: Any) -> None:
        """Nothing is shown."""


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def beyond_hosts(planned: Plan) -> Plan:
    """The plan with every hypervisor on a host of its own, as far as the fabric can tell."""
    endpoint, broker = f"tcp://127.0.0.1:{free_port()}", generate()
    pairs = {config.name: generate() for config in planned.hypervisors}
    listed = ServerCurve(broker, tuple((pair.public, f"host-{name}") for name, pair in pairs.items()))
    homes = tuple((name, f"host-{name}") for name in pairs)
    binding = dataclasses.replace(planned.broker.binding or Binding(), hosts=homes)
    return dataclasses.replace(
        planned,
        broker=dataclasses.replace(planned.broker, endpoints=(endpoint,), curve=listed, binding=binding),
        hypervisors=tuple(
            dataclasses.replace(
                config, broker_endpoint=endpoint, curve=ClientCurve(broker.public, pairs[config.name])
            )
            for config in planned.hypervisors
        ),
    )  # fmt: skip


def main(lab: str, run_dir: str) -> int:
    """Run the lab; the exit code is the verdict."""
    with ProcessRuntime(topology=lab) as launcher:
        launcher.start()
        topology = load(lab)
        places = launcher.places(topology.name, os.fspath(Path(lab).parent), run_dir)
        outcome = launcher.run(beyond_hosts(plan(topology, places, token=os.urandom(32))), _Silent())
    print_outcome(outcome, Format.JSON)
    return int(outcome.code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
