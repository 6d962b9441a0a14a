"""The lab of a cell, as the data of a topology file: a front end, its back end, and what lies between them."""

from __future__ import annotations

from typing import Any, Final

from topologies.compare.cells import NOTIFICATIONS, Cell, Way

PROGRAMS: Final = "topologies.compare.guests"
DISK: Final = "4MiB"
MEMORY: Final = "16MiB"
FRONTS: Final = {"read": "disk", "write": "disk", "frame": "network", "peek": "watched"}
BACKS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "read": ("builtin:blk-server", {"blank": DISK}),
    "write": ("builtin:blk-server", {"blank": DISK}),
    "frame": ("builtin:net-switch", {"sessions": 2}),
    "peek": (f"{PROGRAMS}:peek", {}),
}
"""The programs of front end and back end by the kind of work."""
OUTER: Final = "hv0"


def levels(depth: int) -> list[str]:
    """The hypervisors of a lab, the outermost first; the front end is on the last."""
    return [f"hv{level}" for level in range(depth + 1)]


def topology(cell: Cell, requests: int) -> dict[str, Any]:
    """The lab in which `requests` requests are made."""
    return _over_v4v(cell, requests) if cell.way.transport == "v4v" else _virtio(cell, requests)


def _arguments(cell: Cell, requests: int) -> dict[str, Any]:
    work = cell.work
    return {"kind": work.kind, "size": work.size, "at_once": work.at_once, "requests": requests}


def _checks(guests: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"guest": name, "expect": {"exit": 0}, "within": "60s"} for name in guests]


def _over_v4v(cell: Cell, requests: int) -> dict[str, Any]:
    """As uXen has it: a storage unit whose back end is the control domain."""
    guests: dict[str, dict[str, Any]] = {
        "front": {"storage": [0], "program": f"{PROGRAMS}:units", "with": _arguments(cell, requests)},
        "back": {"control": True, "program": "builtin:v4v-store", "with": {"serves": {"front": [0]}}},
    }
    return {
        "name": "compare",
        "hypervisors": {OUTER: {"personality": "uxen"}},
        "guests": {name: {"on": OUTER, "memory": MEMORY, **guest} for name, guest in guests.items()},
        "checks": _checks(guests),
    }


def _virtio(cell: Cell, requests: int) -> dict[str, Any]:
    names = levels(cell.depth)
    is_net = cell.work.kind == "frame"
    service, kind = ("net", "net") if is_net else ("storage", "blk")
    arguments = _arguments(cell, requests)
    user = {
        "on": names[-1],
        "devices": [{"type": kind, "transport": cell.way.transport, **_moves(cell.way)}],
        "with": arguments,
    }
    front, (back, served) = FRONTS[cell.work.kind], BACKS[cell.work.kind]
    guests: dict[str, Any] = {
        "front": {**user, "program": f"{PROGRAMS}:{front}"},
        "back": {"on": OUTER, "serves": [service], "program": back, "with": served or arguments},
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
        "defaults": {"memory": MEMORY, "argo": {"mac-permissive": True}, **_asked_for(cell)},
        "hypervisors": {name: {"parent": names[at - 1]} if at else {} for at, name in enumerate(names)},
        "guests": guests,
        "destinations": lines,
        "checks": _checks(guests),
    }


def _moves(way: Way) -> dict[str, str]:
    """How data crosses, as the transport calls it."""
    return {key: value for key, value in (("variant", way.variant), ("access", way.access)) if value}


def _asked_for(cell: Cell) -> dict[str, Any]:
    """Door and notification of every guest, and of every hypervisor that has to offer them."""
    return {
        "doors": list(dict.fromkeys(("hypercall", cell.door))),
        "door": cell.door,
        "notifications": ["virq", *NOTIFICATIONS],
        "notification": cell.notification,
    }
