"""A hypervisor dies and is started again: its guests and those of others find each other, by name and by slot.

Rules: issue "levels and hosts", 2 and 4: far death kills the proxies, whose ids are never given again; nodes join
again with an epoch; an entry of the patch panel leads to whoever the topology has at its end, in whichever life.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import PEERS, Rig, wait_until

pytestmark = pytest.mark.timeout(120)

PROGRAMS = Path(__file__).parent / "programs"
WITHIN = 15.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""

LAB = """
name: reunion
defaults: {{argo: {{mac-permissive: true, linger: 300ms}}}}
hypervisors:
  hv0: {{restart: on-failure}}
  hv1: {{{parent}restart: on-failure}}
{links}
destinations: [{{from: asks, service: echo, to: hears}}]
guests:
  asks: {{on: {here}, memory: 16MiB, implicit-only: true, program: 'panel:asks', with: {given}}}
  counts: {{on: {here}, memory: 16MiB, program: 'peers:counts', with: {to}}}
  hears: {{on: {there}, memory: 16MiB, restart: on-failure, program: 'panel:hears', with: {given}}}
  takes: {{on: {there}, memory: 16MiB, restart: on-failure, program: 'peers:takes'}}
"""
BESIDE = {"parent": "", "links": "links: [{between: [hv0, hv1]}]", "here": "hv0", "there": "hv1"}
INSIDE = {"parent": "parent: hv0, ", "links": "", "here": "hv0", "there": "hv1"}
PLACES = {"beside": BESIDE, "inside": INSIDE}


def up(rig: Rig, place: str) -> None:
    """Guests of hv0 that send to guests of hv1: one knows a service only, the other one a name."""
    rig.program(PEERS, "peers.py")
    shutil.copy(PROGRAMS / "panel.py", rig.topologies / "panel.py")
    given: dict[str, Any] = {"directory": str(rig.runtime)}
    to = json.dumps({**given, "to": "takes"})
    done = rig.run("up", "-d", rig.topology(LAB.format(given=json.dumps(given), to=to, **PLACES[place])))
    assert done.returncode == 0, done.stderr
    both_reach(rig)


def both_reach(rig: Rig) -> None:
    """Messages of both arrive; a receiver counts from 0 in each life."""
    for name in ("counts", "hears"):
        for _ in range(3):
            before = rig.sent(name)
            wait_until(lambda name=name, before=before: rig.sent(name) != before, WITHIN)  # type: ignore[misc]


def kill(rig: Rig, name: str) -> None:
    """Kill a node, and wait until it is there again, with all others."""
    lives = rig.node(name)["restarts"]
    os.kill(rig.node(name)["pid"], signal.SIGKILL)
    wait_until(lambda: (rig.node(name)["restarts"], rig.node(name)["state"]) == (lives + 1, "ready"), WITHIN)
    wait_until(lambda: {node["state"] for node in rig.nodes().values()} == {"ready"}, WITHIN)


def ids(rig: Rig) -> list[int]:
    """The ids by which `counts` knew its peer, one after the other."""
    found = [int(line.split()[0]) for line in rig.seen("counts") if line.endswith(" ok")]
    return list(dict.fromkeys(found))


def down(rig: Rig) -> None:
    assert rig.run("down", "reunion").returncode == 0
    rig.wait_for_nothing()


@pytest.mark.parametrize("place", PLACES)
def test_those_who_are_sent_to_come_again(rig: Rig, place: str) -> None:
    """Twice, with their hypervisor: each time they have an id here that nobody had, though they never speak."""
    up(rig, place)
    for life in (2, 3):
        kill(rig, "hv1")
        both_reach(rig)
        assert len(ids(rig)) == life
    assert rig.seen("asks")[-1] == "ok"
    down(rig)


@pytest.mark.parametrize("place", PLACES)
def test_those_who_send_come_again(rig: Rig, place: str) -> None:
    """Their hypervisor's plan does not know that those they send to live their second life: it is told."""
    up(rig, place)
    for name in ("takes", "hears"):
        kill(rig, name)
    both_reach(rig)
    kill(rig, "hv0")
    both_reach(rig)
    found = ids(rig)
    assert len(found) == 3
    kill(rig, "takes")
    both_reach(rig)
    assert len(ids(rig)) == len(found) + 1
    down(rig)
