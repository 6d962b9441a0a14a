"""SMCCC as the guests of each Arm personality see it: which function ids are answered, and with what.

Sources: Arm DEN 0028 (SMCCC); Xen arch/arm/vsmc.c; Linux arch/arm64/kvm/hypercalls.c; openvmm hvdef.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.hypervisors import (
    SMCCC_UNKNOWN,
    SMCCC_VENDOR_COUNT,
    SMCCC_VENDOR_REVISION,
    SMCCC_VENDOR_UID,
    SMCCC_VERSION,
    UID_OF,
)

_ANY: Final = ("xen", "kvm", "smccc", "hyperv", "jailhouse", "firmware")
_VERSION_1_2: Final = 1 << 16 | 2
_VERSION_1_1: Final = 1 << 16 | 1


class Function(NamedTuple):
    """One function id of a personality and what x0 to x3 are afterwards."""

    personality: str
    function: int
    x0: int
    x1: int
    x2: int
    x3: int
    source: str


def _uid(name: str) -> Function:
    row = UID_OF[name]
    return Function(name, SMCCC_VENDOR_UID, row.w0, row.w1, row.w2, row.w3, row.source)


FUNCTIONS: Final = (
    *(
        Function(name, SMCCC_VERSION, version, 0, 0, 0, "Arm DEN 0028 7.2")
        for name, version in zip(
            _ANY, (_VERSION_1_2, _VERSION_1_1, _VERSION_1_1, _VERSION_1_2, _VERSION_1_1, _VERSION_1_2), strict=True
        )
    ),
    *(_uid(name) for name in ("xen", "kvm", "hyperv", "smccc")),
    Function("xen", SMCCC_VENDOR_COUNT, 3, 0, 0, 0, "Xen public/arch-arm/smccc.h"),
    Function("xen", SMCCC_VENDOR_REVISION, 0, 1, 0, 0, "Xen public/arch-arm/smccc.h"),
    Function("kvm", 0x8600_0000, 1, 0, 0, 0, "Linux include/linux/arm-smccc.h: features"),
)
_TABLE: Final = {(row.personality, row.function): row[2:6] for row in FUNCTIONS}


def call(personality: str, function: int) -> tuple[int, ...]:
    """x0 to x3 after `function` (w0); x0 alone, -1, for one that nobody serves."""
    return _TABLE.get((personality, function), (SMCCC_UNKNOWN,))
