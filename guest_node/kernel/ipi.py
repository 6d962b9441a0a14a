"""Interprocessor interrupts between the vCPUs of one guest: from one local APIC to others, without an exit.

The vCPUs of a guest share a process, so their APICs reach each other directly, as with IPI virtualisation (Intel SDM
vol. 3C 29.1.6).  Destinations: SDM vol. 3A 10.6, 10.12.9 (hmx/cpu/apic_regs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from guest_node.vcpu import Vcpu
from hmx.cpu.apic_regs import Ipi, ipi_targets


def connect_apics(vcpus: Sequence[Vcpu]) -> None:
    """Let what one of `vcpus` writes to its ICR reach the others.  Each has a local APIC."""
    for index, vcpu in enumerate(vcpus):
        vcpu.send_ipi = partial(_send, tuple(vcpus), index)


def _send(vcpus: Sequence[Vcpu], sender: int, ipi: Ipi) -> None:
    addresses = [vcpu.apic.address for vcpu in vcpus if vcpu.apic is not None]
    for index in ipi_targets(ipi, sender, addresses):
        vcpus[index].receive_ipi(ipi)
