"""The tables of docs/interrupts.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from docs.render import bits, layout, named, number, table
from guest_node.kernel.interrupts import BY_PREFERENCE
from hmx import arm_map, gic, notify, vcpu_area, xen
from hmx.cpu import apic_regs
from hv_node.interrupts import its, msi, v2m

_GUEST_WORDS = 4  # of vcpu_area.Word: the first ones have the guest as their writer


def posts() -> str:
    """Kinds of posted interrupts."""
    return table(("kind", "number"), ((kind.name, kind.value) for kind in vcpu_area.Post))


def area() -> str:
    """What of a vCPU area concerns interrupts."""
    rows: list[tuple[object, ...]] = [
        (number(word.value), "u32", word.name.lower(), "guest" if at < _GUEST_WORDS else "hypervisor")
        for at, word in enumerate(vcpu_area.Word)
    ]
    rows += [
        (number(vcpu_area.POSTS_OFFSET), f"u32[{vcpu_area.POST_ENTRIES}]", "post", "hypervisor"),
        (number(gic.LR_OFFSET), f"u64[{gic.MAX_LRS}]", "lr", "hypervisor"),
        (number(gic.LR_STATE_OFFSET), f"u64[{gic.MAX_LRS}]", "lr_state", "guest"),
    ]
    return table(("offset", "type", "name", "written by"), rows)


def modes() -> str:
    """Notification modes."""
    return table(
        ("mode", "operation", "a1 of it", "rings have their own", "bit of DESCRIBE", "meaning"),
        (
            (
                row.name, row.operation, None if row.mode is None else row.mode.value, row.own_vectors,
                number(row.feature), row.note,
            )
            for row in notify.MODES
        ),
    )  # fmt: skip


def operations() -> str:
    """The experimental operations of argo_op."""
    return table(("cmd", "operation"), ((number(row.value), row.name) for row in notify.NotifyOp))


def register_ring_ex() -> str:
    """The structure of REGISTER_RING_EX."""
    return layout(
        notify.REGISTER_RING_EX,
        "aport", "partner_id", "pad", "len", "flags, zero", "interrupt's address", "interrupt's data", "pad, zero",
    )  # fmt: skip


def preferences() -> str:
    """What a guest takes of what is offered, where nothing is asked for and there are no event channels."""
    return table(("rank", "mode"), enumerate(BY_PREFERENCE, 1))


def interrupt_numbers() -> str:
    """Numbers that both sides take for granted."""
    return table(
        ("name", "value"),
        (
            ("LINE_IRQ (x86, ISA)", notify.LINE_IRQ),
            ("LINE_INTID (Arm)", arm_map.LINE_INTID),
            ("FIRST_VECTOR of SET_NOTIFICATION (x86)", notify.FIRST_VECTOR),
            ("FIRST_LEGAL_VECTOR of an MSI (x86)", apic_regs.FIRST_LEGAL_VECTOR),
            ("V2M_DOORBELL (Arm)", number(arm_map.V2M_DOORBELL)),
            ("V2M_FIRST_SPI (Arm)", arm_map.V2M_FIRST_SPI),
            ("V2M_SPIS (Arm)", arm_map.V2M_SPIS),
            ("PER_CPU_INTID (Arm, a guest's choice)", arm_map.PER_CPU_INTID),
            ("EVTCHN_INTID (Arm, Xen's PPI)", arm_map.EVTCHN_INTID),
        ),
    )


def msi_fields() -> str:
    """Fields of an MSI."""
    return table(
        ("half", "bits", "field", "must be", "source"),
        ((row.part, bits(row.high, row.low), row.name, number(row.must), row.source) for row in msi.FIELDS),
    )


def msi_modes() -> str:
    """Delivery modes and what comes of them."""
    return table(
        ("number", "mode", "has a vector", "posted as", "injection", "nobody meant", "source"),
        (
            (
                row.mode.value, row.mode, row.vectored, row.post, _errno(row.xen), _errno(row.nobody), row.source,
            )
            for row in msi.MODES
        ),
    )  # fmt: skip


def _errno(value: int) -> str:
    return f"-{getattr(value, 'name', value)}" if value else "0"


def apic_registers() -> str:
    """The x2APIC registers."""
    return table(
        ("MSR", "register", "access", "writable bits", "ignored bits", "reset", "source"),
        (
            (
                f"{row.first:#x}" if row.first == row.last else f"{row.first:#x}..{row.last:#x}",
                row.name, row.access, number(row.writable), number(row.ignored), number(row.reset), row.source,
            )
            for row in apic_regs.REGISTERS
        ),
    )  # fmt: skip


def icr_fields() -> str:
    """Fields of the ICR."""
    rows = apic_regs.ICR_FIELDS
    return table(("bits", "field", "source"), ((bits(row.high, row.low), row.name, row.source) for row in rows))


def icr_modes() -> str:
    """What the ICR sends."""
    return table(
        ("mode", "sent with shorthands", "vector checked", "de-assert dropped", "error", "source"),
        (
            (
                apic_regs.DeliveryMode(row.mode).name if row.mode in set(apic_regs.DeliveryMode) else row.mode,
                row.shorthands, row.checks_vector, row.drops_deassert, row.error, row.source,
            )
            for row in apic_regs.ICR_MODES
        ),
    )  # fmt: skip


def destinations() -> str:
    """How destinations are compared."""
    hexadecimal = ("broadcast", "logical_broadcast", "cluster", "member")
    return named(apic_regs.DESTINATION_FORMATS, "name", *hexadecimal, "source", hexadecimal=hexadecimal)


def apic_errors() -> str:
    """Bits of the ESR."""
    return table(("bit", "error"), ((error.value, error.name) for error in apic_regs.ApicError))


def event_channel_operations() -> str:
    """The operations that are served."""
    structures = {
        "BIND_INTERDOMAIN": "remote_dom u16 @0, pad u16 @2, remote_port u32 @4, OUT local_port u32 @8",
        "BIND_VIRQ": "virq u32 @0, vcpu u32 @4, OUT port u32 @8",
        "CLOSE": "port u32 @0",
        "SEND": "port u32 @0",
        "STATUS": "dom u16 @0, pad u16 @2, port u32 @4, OUT status u32 @8, OUT vcpu u32 @12, OUT virq u32 @16",
        "BIND_VCPU": "port u32 @0, vcpu u32 @4",
        "UNMASK": "port u32 @0",
    }
    return table(
        ("number", "operation", "bytes", "structure"),
        (
            (operation.value, operation.name, getattr(xen, operation.name).size, structures[operation.name])
            for operation in xen.EvtchnOp
        ),
    )


def event_channel_page() -> str:
    """Offsets in shared_info."""
    names = (
        "VCPU_INFO_SIZE", "UPCALL_PENDING_OFFSET", "UPCALL_MASK_OFFSET", "PENDING_SEL_OFFSET", "EVTCHN_PENDING_OFFSET",
        "EVTCHN_MASK_OFFSET", "EVTCHN_2L_PORTS",
    )  # fmt: skip
    return table(("name", "value"), ((name, getattr(xen, name)) for name in names))


# -- Arm ----


def intids() -> str:
    """What INTIDs are."""
    return named(gic.INTID_RANGES, "kind", "first", "last", "banked", "since", "source")


def memory_map() -> str:
    """Where the controller lies."""
    names = (
        "GICD_BASE", "GICD_SIZE", "V2M_BASE", "V2M_SIZE", "V2M_DOORBELL", "GITS_BASE", "GITS_SIZE", "GICR_BASE",
        "GICR_STRIDE", "GIC_LAST",
    )  # fmt: skip
    return table(("name", "value"), ((name, number(getattr(arm_map, name))) for name in names))


def _frame(rows: Sequence[gic.Register]) -> str:
    return table(
        ("offset", "register", "number", "stride", "bits", "bits per INTID", "access", "GIC"),
        (
            (
                number(row.offset), row.name, row.number, row.stride, row.width, row.per_intid or None, row.access,
                f"v{row.since}" if row.since == row.until else f"v{row.since}, v{row.until}",
            )
            for row in rows
        ),
    )  # fmt: skip


def _word(rows: Sequence[gic.Field]) -> str:
    return table(("bits", "field"), ((bits(row.high, row.low), row.name) for row in rows))


def its_commands() -> str:
    """Commands of the ITS."""
    return table(
        ("number", "command", "arguments"),
        (
            (
                number(row.number), row.name,
                ", ".join(f"{each.name} DW{each.dw}[{bits(each.high, each.low)}]" for each in row.fields),
            )
            for row in its.COMMANDS
        ),
    )  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "posts": posts,
    "area": area,
    "modes": modes,
    "operations": operations,
    "register-ring-ex": register_ring_ex,
    "preferences": preferences,
    "interrupt-numbers": interrupt_numbers,
    "msi-fields": msi_fields,
    "msi-modes": msi_modes,
    "apic-registers": apic_registers,
    "icr-fields": icr_fields,
    "icr-modes": icr_modes,
    "destinations": destinations,
    "apic-errors": apic_errors,
    "event-channel-operations": event_channel_operations,
    "event-channel-page": event_channel_page,
    "intids": intids,
    "memory-map": memory_map,
    "gicd": lambda: _frame(gic.GICD),
    "gicr": lambda: _frame(gic.GICR),
    "gicc": lambda: _frame(gic.GICC),
    "gits": lambda: _frame(gic.GITS),
    "v2m": lambda: _frame(v2m.V2M),
    "v2m-typer": lambda: _word(v2m.MSI_TYPER),
    "shared-lr": lambda: _word(gic.SHARED_LR),
    "shared-lr-state": lambda: _word(gic.SHARED_LR_STATE),
    "its-commands": its_commands,
}
