"""A key that does not fit, over the network: one clear error, soon, and nothing is left anywhere.

Rules: issue "levels and hosts", 4: a handshake failure is one clear error, not an endless retry; contracts 8.
"""

from __future__ import annotations

import sys

import pytest

from tests.e2e.rig import ROOT, finish
from tests.hosts.network import HostsRig, topology

SOON = 50.0
"""Seconds on a loaded machine, ssh and the agents' start included; an idle one takes five."""
LAB = """hypervisors:
  hv1: {host: lab1}
  hv2: {host: lab2}
guests:
  a: {on: hv1, memory: 16MiB, program: "mine:forever"}
  c: {on: hv2, memory: 16MiB, program: "mine:forever"}
"""
BREAK = """
import dataclasses
import topologies.hosts.fabric as fabric
from broker.keys import generate
good = fabric.Key.unpack.__func__
def bad(cls, data):
    key, other = good(cls, data), generate()
    return dataclasses.replace(key, {fields})
fabric.Key.unpack = classmethod(bad)
"""
FIELDS = {
    "its own": "public=other.public, secret=other.secret",
    "its secret half": "secret=other.secret",
    "the broker's": "server=other.public",
}
WHY = {
    "its own": "this host's key is not on the broker's list",
    "its secret half": "HANDSHAKE_FAILED",
    "the broker's": "HANDSHAKE_FAILED",
}


@pytest.mark.parametrize("broken", FIELDS)
def test_a_broken_key(rig: HostsRig, broken: str) -> None:
    """On the way to lab2 a key is exchanged: the launch fails with that host's name and the reason, once."""
    there = rig.network["lab2"].base / "broken"
    there.mkdir()
    (there / "sitecustomize.py").write_text(BREAK.format(fields=FIELDS[broken]))
    python = there / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={there}:{ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    usual = f"address: lab2, python: {sys.executable}"
    text = topology(LAB, "lab1", "lab2").replace(usual, f"address: lab2, python: {python}")
    done = finish(rig.start("run", rig.topology(text)), SOON)
    assert done.returncode == 4, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("argosy: ")]
    assert len(errors) == 1, done.stderr
    assert "lab2" in errors[0] or "hv2" in errors[0], "its agent and its hypervisor find out at the same time"
    assert WHY[broken] in errors[0]
    assert "lab1" not in errors[0]
    rig.network.wait_for_nothing()
