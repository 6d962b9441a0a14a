"""What a personality can offer on a machine, and what it offers where the topology says nothing.

The facts are those of the hypervisors' own tables (hv_node/doors/tables.py) and of hmx/notify.py; a topology is
checked against them by :mod:`topologies.doorcheck`, and gets its defaults from here.
"""

from __future__ import annotations

from typing import Any, Final

from hmx.notify import MODES
from hmx.trap import Arch
from hv_node.doors.personality import Personality
from hv_node.doors.tables import PERSONALITIES, possible_doors

DEFAULT_PERSONALITY: Final = "xen"
DEFAULT_ARCH: Final = "x86_64"
CPUS: Final = {"x86_64": ("intel", "amd"), "aarch64": ("armv8",)}
"""The machines of each architecture; the first is the default."""
DEFAULT_DOOR: Final = {"x86_64": "hypercall", "aarch64": "hvc"}
MODE_NAMES: Final = tuple(row.name for row in MODES)
VIRQ: Final = "virq"
"""The notification that needs event channels, which are Xen's."""
DEFAULT_NOTIFICATIONS: Final = ("line", "vector-per-cpu")
"""Of a personality without event channels: the vector for guests with a local APIC, the line for those without."""


def personality_of(name: str, arch: str) -> Personality | None:
    """The table of a personality on an architecture, None where it does not exist there."""
    return PERSONALITIES.get((name, Arch[arch.upper()]))


def personalities_on(arch: str) -> tuple[str, ...]:
    """The names that exist on an architecture."""
    return tuple(name for name, on in PERSONALITIES if on is Arch[arch.upper()])


def arches_of(name: str) -> tuple[str, ...]:
    """The architectures on which a personality exists."""
    return tuple(on.name.lower() for known, on in PERSONALITIES if known == name)


def doors_at(personality: Personality) -> tuple[str, ...]:
    """The doors that it can offer, () where nothing traps."""
    return possible_doors(personality)


def notifications_at(personality: Personality) -> tuple[str, ...]:
    """The notifications that it can offer, () where nothing traps."""
    if not doors_at(personality):
        return ()
    return tuple(name for name in MODE_NAMES if name != VIRQ or personality.abi == "xen")


def defaults_of(keys: dict[str, Any]) -> dict[str, Any]:
    """What a hypervisor with these `keys` has where they say nothing: cpu, doors, notifications.

    No doors are among them where a personality has no call of its own that could be meant.
    """
    name, arch = keys.get("personality", DEFAULT_PERSONALITY), keys.get("arch", DEFAULT_ARCH)
    if not isinstance(name, str) or not isinstance(arch, str) or arch not in CPUS:
        return {}
    found: dict[str, Any] = {"cpu": CPUS[arch][0]}
    personality = personality_of(name, arch)
    if personality is None:
        return found
    possible = doors_at(personality)
    if DEFAULT_DOOR[arch] in possible or not possible:
        found["doors"] = [DEFAULT_DOOR[arch]] if possible else []
    offered = notifications_at(personality)
    found["notifications"] = [VIRQ] if VIRQ in offered else [name for name in DEFAULT_NOTIFICATIONS if name in offered]
    return found
