"""What a plan says about a hypervisor's surroundings: whether there are any, and whose traps come first.

Light, since every hypervisor asks; the levels themselves are for those that have some.
"""

from __future__ import annotations

from hmx.trap import Arch
from hv_node.config import HypervisorConfig
from hv_node.doors.personality import Personality
from hv_node.doors.tables import PERSONALITIES, with_doors, with_nested_msr


def is_joined(config: HypervisorConfig) -> bool:
    """Whether anything of this hypervisor reaches beyond it, or is led or judged by more than Xen would."""
    furnished = config.slots or config.policy or any(domain.implicit_only for domain in config.domains)
    return bool(config.parent or config.remotes or furnished or any(domain.nested for domain in config.domains))


def parents_of(config: HypervisorConfig) -> tuple[Personality, ...]:
    """The tables of the hypervisors around a nested one, the outermost first: who else may see its guests' traps."""
    arch = Arch[config.arch.upper()]
    return tuple(
        with_nested_msr(with_doors(PERSONALITIES[row.personality, arch], row.doors, row.stolen), row.nested_msr)
        for row in config.outer
    )
