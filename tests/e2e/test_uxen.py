"""uXen's whole path, in processes and in simulation: probe, enumerate, connect, exchange, be interrupted by line 7."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.e2e.rig import ROOT, Rig, finish

pytestmark = pytest.mark.timeout(120)

FILE = str(ROOT / "topologies" / "library" / "uxen.yaml")
DEADLINE = 60.0
RUNTIMES = {"processes": (), "inline": ("--runtime", "inline", "--seed", "3")}
STOR = 4


@pytest.fixture(scope="module")
def ran(world: Rig) -> Any:
    """The outcome of the shipped lab under a runtime, run when it is first asked for."""

    @cache
    def run(runtime: str) -> dict[str, Any]:
        done = finish(world.start("run", *RUNTIMES[runtime], FILE, "--format", "json"), DEADLINE)
        outcome: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0, outcome["reasons"]
        assert world.leftovers() == []
        return outcome

    return run


def nodes(outcome: dict[str, Any]) -> dict[str, Any]:
    return {node["name"]: node for node in outcome["nodes"]}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_lab_that_ships(ran: Any, runtime: str) -> None:
    """Every unit of the plan is in the table, shows in the bitmap, and gives back what was written to it."""
    outcome = ran(runtime)
    assert len(outcome["checks"]) == 3 and all(check["passed"] for check in outcome["checks"])
    found = nodes(outcome)
    app, line, model = (found[name]["result"] for name in ("app", "line", "device-model"))
    assert (app["table"], app["units"]) == ([[0, STOR, 0], [1, STOR, 1]], [0, 1])
    assert (line["table"], line["units"]) == ([[0, STOR, 0]], [0])
    assert (app["bytes"], line["bytes"], app["wrong"], line["wrong"]) == (2 * 2 * 16 * 8 * 512, 2 * 32 * 2 * 512, 0, 0)
    assert model["bytes"] >= app["bytes"] + line["bytes"]
    assert (model["units"], model["failed"], model["refused"]) == (3, 3, 0)
    assert found["device-model"]["exit"] == found["app"]["exit"] == found["line"]["exit"] == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_all_of_it_by_line_7(ran: Any, runtime: str) -> None:
    """No use is made of Argo, so every interrupt is v4v's; each that was raised is accounted for."""
    found = nodes(ran(runtime))
    for name in ("app", "line", "device-model"):
        counted = found["hv0"]["counters"]["arch"][name]
        sums = [counted[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped")]
        assert sum(sums) == counted["interrupts_raised"] > 0
        assert counted["argo_ops"] <= 1, "the probe's question"
        assert counted["interrupts_dropped"] == 0
        assert counted["messages"] > 0
        assert 0 < found[name]["result"]["line"] <= counted["interrupts_posted"]
    assert found["line"]["result"]["notification"] == "line"
    assert found["app"]["result"]["notification"] != "line"
