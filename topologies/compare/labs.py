"""The lab of a cell, as the data of a topology file: a front end, its back end, and what lies between them."""

from __future__ import annotations

from typing import Any, Final

from topologies.compare.cells import NOTIFICATIONS, Cell

PROGRAMS: Final = "topologies.compare.guests"
DISK: Final = "4MiB"
OUTER: Final = "hv0"


def levels(depth: int) -> list[str]:
    """The hypervisors of a lab, the outermost first; the front end is on the last."""
    return [f"hv{level}" for level in range(depth + 1)]


def topology(cell: Cell, requests: int) -> dict[str, Any]:
    """The lab in which `requests` requests are made."""
    names = levels(cell.depth)
    is_net = cell.work.kind == "frame"
    service, kind = ("net", "net") if is_net else ("storage", "blk")
    arguments = {
        "kind": cell.work.kind, "size": cell.work.size, "at_once": cell.work.at_once, "requests": requests,
    }  # fmt: skip
    user = {
        "on": names[-1],
        "devices": [{"type": kind, "transport": cell.way.transport, "variant": cell.way.variant}],
        "with": arguments,
    }
    guests: dict[str, Any] = {
        "front": {**user, "program": f"{PROGRAMS}:{'network' if is_net else 'disk'}"},
        "back": {
            "on": OUTER,
            "serves": [service],
            "program": "builtin:net-switch" if is_net else "builtin:blk-server",
            "with": {"sessions": 2} if is_net else {"blank": DISK},
        },
    }
    if is_net:
        guests["far"] = {**user, "on": OUTER, "program": f"{PROGRAMS}:far"}
    holders = ["front", *reversed(names[1:])]
    lines = [{"from": holder, "service": service, "to": "up"} for holder in holders[:-1]]
    lines.append({"from": holders[-1], "service": service, "to": "back"})
    if is_net:
        lines.append({"from": "far", "service": service, "to": "back"})
    return {
        "name": "compare",
        "defaults": {"memory": "16MiB", "argo": {"mac-permissive": True}, **_asked_for(cell)},
        "hypervisors": {name: {"parent": names[at - 1]} if at else {} for at, name in enumerate(names)},
        "guests": guests,
        "destinations": lines,
        "checks": [{"guest": name, "expect": {"exit": 0}, "within": "60s"} for name in guests],
    }


def _asked_for(cell: Cell) -> dict[str, Any]:
    """Door and notification of every guest, and of every hypervisor that has to offer them."""
    return {
        "doors": list(dict.fromkeys(("hypercall", cell.door))),
        "door": cell.door,
        "notifications": ["virq", *NOTIFICATIONS],
        "notification": cell.notification,
    }
