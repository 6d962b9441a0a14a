"""Doors and interrupts with the hosts spread: the verdicts and counts of one machine; senders on the other host.

Rule: issue "levels and hosts", 5: equal `arch.*` counts of all that does not coalesce, round trips aside.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.labs import Ran, alone, library, over_ssh
from tests.hosts.network import HostsRig

EQUAL = ("messages", "bytes_copied", "interrupts_raised", "interrupts_dropped")
"""Counted once for each thing that a program does, or that is done to it."""
CALLS = "argo_ops"
"""Not equal even between two runs on one machine: a guest asks for space (notify) once for as many messages as it found
together, as interrupts coalesce, and tries again while its peer is not there yet.  What else it traps for is its probe,
its boot and its controller, and is equal.
"""


def counts(ran: Ran) -> dict[str, dict[str, int]]:
    """What does not coalesce, of each guest."""
    found = {}
    for node in ran.nodes.values():
        for guest, counted in (node["counters"].get("arch", {}) if node["kind"] == "hypervisor" else {}).items():
            sums = sum(counted[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped"))
            assert sums == counted["interrupts_raised"], guest
            assert counted[CALLS] >= counted["messages"]
            others = {f"{name}, no Argo": counted[name] - counted[CALLS] for name in ("exits", "hypercalls")}
            found[guest] = {name: counted[name] for name in EQUAL} | others
    return found


def told(ran: Ran) -> dict[str, Any]:
    """What each guest found and did."""
    kept = ("door", "instruction", "notification", "hypervisors", "messages", "bytes", "wrong", "sessions", "said")
    return {
        name: (ran.nodes[name]["exit"], {key: fields[key] for key in kept if key in fields})
        for name, fields in ran.results.items()
    }


@pytest.mark.parametrize(("name", "guests"), [("doors-x86", 63), ("doors-arm", 19), ("interrupts", 28)])
def test_the_same_on_one_machine_and_spread(world: HostsRig, name: str, guests: int) -> None:
    """Whole hypervisors on different hosts: the same doors, instructions, modes, messages, verdicts and counts."""
    data = library(name)
    one, spread = (Ran(world, each) for each in (alone(data), over_ssh(data)))
    assert len({spread.nodes[hypervisor]["host"] for hypervisor in data["hypervisors"]}) == 3
    assert one.verdicts == spread.verdicts
    assert set(one.verdicts.values()) == {True}
    assert told(one) == told(spread)
    assert len(told(one)) == len(counts(one)) == guests
    assert counts(one) == counts(spread)
    world.network.wait_for_nothing()


# ---- every notification mode, driven from the other host ----

MODES = ("virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")
COUNT = 100
HOMES = {"x86": ("x86_64", "lab1"), "arm": ("aarch64", "lab2")}


def across() -> dict[str, Any]:
    """For each mode an asker on x86 whose peer is on Arm, and one on Arm whose peer is on x86."""
    data: dict[str, Any] = {
        "name": "modes",
        "defaults": {"memory": "4MiB", "vcpus": 2, "argo": {"mac-permissive": True}},
        "hypervisors": {},
        "links": [],
        "guests": {},
        "checks": [],
    }
    for short, (arch, host) in HOMES.items():
        keys = {"arch": arch, "host": host, "notifications": list(MODES)}
        data["hypervisors"][short] = {**keys, "personality": "xen"}
        data["hypervisors"][f"{short}-kvm"] = {**keys, "personality": "kvm", "notifications": list(MODES[1:])}
    for kind in ("", "-kvm"):
        data["links"].append({"between": [f"x86{kind}", f"arm{kind}"]})
        for mode in MODES[1:] if kind else MODES:
            for asks, answers in (("x86", "arm"), ("arm", "x86")):
                asker, peer = f"{asks}{kind}-{mode}-asks", f"{answers}{kind}-{mode}-answers"
                data["guests"][peer] = {"on": f"{answers}{kind}", "notification": mode, "program": "builtin:door-peer"}
                data["guests"][asker] = {
                    "on": f"{asks}{kind}", "notification": mode, "program": "builtin:door-report",
                    "with": {"to": peer, "count": COUNT, "burst": 4, "within": "30s"},
                }  # fmt: skip
                data["checks"] += [{"guest": name, "expect": {"exit": 0}, "within": "60s"} for name in (asker, peer)]
    return data


@pytest.mark.parametrize("where", ["three hosts", "one machine"])
def test_every_mode_driven_by_a_sender_on_the_other_host(world: HostsRig, where: str) -> None:
    """x86 to Arm and Arm to x86, under every mode of both: no byte is wrong, every interrupt is accounted for."""
    ran = Ran(world, over_ssh(across()) if where == "three hosts" else alone(across()))
    seen = set()
    for name, fields in ran.results.items():
        home = next(hypervisor for hypervisor in ("x86-kvm", "arm-kvm", "x86", "arm") if name.startswith(hypervisor))
        mode = name.removeprefix(f"{home}-").rpartition("-")[0]
        assert (fields["notification"], fields["wrong"], fields["messages"]) == (mode, 0, 2 * COUNT), name
        if where == "three hosts":
            assert ran.nodes[name]["host"] == HOMES[home.partition("-")[0]][1]
        counted = ran.nodes[home]["counters"]["arch"][name]
        sums = [counted[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped")]
        # Nobody beside it sends to it: whatever was raised, the far hypervisor's messages have raised.
        assert sum(sums) == counted["interrupts_raised"] >= COUNT
        assert 0 < ran.nodes[name]["counters"]["arch"]["interrupts_delivered"] <= counted["interrupts_posted"]
        seen.add((home, mode))
    assert seen == {
        (f"{short}{kind}", mode) for short in HOMES for kind in ("", "-kvm") for mode in (MODES[1:] if kind else MODES)
    }
    world.network.wait_for_nothing()
