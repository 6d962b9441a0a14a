"""What the parts of a lab on several hosts are called."""

from __future__ import annotations

from typing import Final

AGENT: Final = "agent"
PART: Final = "@"
"""In the name of a host's part of a lab, and in no other."""


def agent_name(host: str) -> str:
    """The name by which the agent of `host` joins the fabric; no node of a topology is called so."""
    return f"{AGENT}.{host}"


def part_name(lab: str, host: str) -> str:
    """What the part of `lab` on `host` is called there; no lab is."""
    return f"{lab}{PART}{host}"
