"""The tables of docs/virtio.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from docs.render import named, number, table
from hmx.virtio import (
    blk,
    console,
    device_types,
    features,
    ids,
    iommu,
    mmio,
    msg,
    net,
    packed,
    queue_state,
    split,
    status,
    vsock,
)
from hmx.virtio.features import FeatureRow
from hmx.virtio.rings import Field


def statuses() -> str:
    """Bits of the status."""
    return table(("bit", "value"), ((bit, number(int(bit))) for bit in status.Status))


def states() -> str:
    """What a status says."""
    rows: list[tuple[object, ...]] = [(row.has, row.state.value) for row in status.STATES]
    return table(("a status with", "says"), [*rows, (None, status.State.RESET.value)])


def moves() -> str:
    """What a rising bit does."""
    return table(
        ("bit that rises", "in state", "then", "note"),
        ((row.bit, " ".join(state.value for state in row.states), row.then.value, row.note) for row in status.MOVES),
    )


def _features(rows: Sequence[FeatureRow]) -> str:
    names = {int(row.bit): row.name for row in rows}
    return table(
        ("bit", "feature", "of", "needs", "needs one of", "note"),
        (
            (
                int(row.bit), row.name, row.kind.value,
                " ".join(names[bit] for bit in row.needs) + (" (to be offered)" if row.offer_only else ""),
                " ".join(names[bit] for bit in row.any_of), row.note,
            )
            for row in rows
        ),
    )  # fmt: skip


def _layout(fields: Sequence[Field]) -> str:
    return named(fields, "offset", "size", "name")


def device_ids() -> str:
    """Types of devices, and those that have tables here."""
    known = {row.device: row.config_size for row in device_types.TYPES}
    return table(
        ("id", "device", "bytes of configuration"),
        ((device.value, ids.name_of(device), known.get(device)) for device in ids.DeviceId),
    )


def early() -> str:
    """What may be written early."""
    return table(
        ("device", "offset", "bytes", "source"),
        ((ids.name_of(row.device), row.offset, row.size, row.source) for row in ids.EARLY_CONFIG),
    )


def queue_parts() -> str:
    """The parts of the two formats."""
    return table(
        ("format", "sizes", "part", "alignment", "bytes", "and for each descriptor"),
        (
            (
                kind.name,
                f"{kind.smallest} to {kind.largest}" + (", powers of two" if kind.power_of_two else ""),
                part.name,
                part.align,
                part.fixed,
                part.each,
            )
            for kind in (split.SPLIT, packed.PACKED)
            for part in kind.parts
        ),
    )


def registers() -> str:
    """virtio-mmio."""
    return table(
        ("offset", "register", "access", "bytes", "note"),
        ((f"{row.offset:#05x}", row.name, row.access, row.sizes, row.note) for row in mmio.REGISTERS),
    )


def interrupts() -> str:
    """InterruptStatus."""
    return table(("value", "bit"), ((bit.value, bit) for bit in mmio.Interrupt))


def _payload(layout: msg.Layout | None) -> str | None:
    if layout is None:
        return None
    sizes = {"B": 8, "H": 16, "I": 32, "Q": 64}
    fields = list(zip(layout.type._fields, layout.format.lstrip("<"), strict=False))
    parts = [f"{name} le{sizes[code]}" for name, code in fields]
    if layout.tail is not msg.Tail.NONE:
        parts.append(
            f"{layout.type._fields[-1]}: {layout.tail.value}, counted by {layout.type._fields[layout.counted]}"
        )
    return ", ".join(parts) or "empty"


def _messages(bus: bool) -> str:
    return table(
        ("id", "message", "from", "request or event", "response", "mandatory"),
        (
            (
                f"{int(row.id):#04x}", row.name, row.sender.value, _payload(row.request),
                _payload(row.response), row.mandatory,
            )
            for row in msg.MESSAGES
            if row.bus == bus
        ),
    )  # fmt: skip


def ours() -> str:
    """Implementation-defined ids."""
    both = [("transport", each) for each in msg.MsgId] + [("bus", each) for each in msg.BusId]
    return table(
        ("of", "id", "message"),
        ((of, f"{int(each):#04x}", each.name) for of, each in both if each & msg.IMPLEMENTATION_BIT),
    )


def revisions() -> str:
    """States of the draft."""
    return table(
        ("number in HELLO", "name", "bytes of the header", "token", "HELLO, ERROR and a data plane", "source"),
        ((number(row.number), row.name, row.header_size, row.token, row.ours, row.source) for row in msg.REVISIONS),
    )


def reasons() -> str:
    """Reasons of ERROR."""
    return table(
        ("reason", "name", "errno", "meaning"),
        ((row.reason.value, row.reason, row.errno, row.meaning) for row in msg.REASONS),
    )


def blk_requests() -> str:
    """Requests of a disk."""
    return table(
        ("type", "request", "data", "only with", "changes the disk", "segment flags"),
        (
            (
                row.type.value,
                row.type,
                row.data.value,
                row.feature,
                row.writes,
                " ".join(str(f.name) for f in row.flags),
            )
            for row in blk.TYPES
        ),
    )


def net_headers() -> str:
    """Bytes of a packet's header."""
    rows = [(row.size, " or ".join(feature.name for feature in row.features)) for row in net.HEADER_SIZES]
    return table(("bytes", "where one of these was negotiated"), [*rows, (net.HEADER_SIZE, None)])


def vsock_operations() -> str:
    """Operations of sockets."""
    return table(
        ("op", "operation", "payload", "RST without a connection", "flags"),
        ((row.op.value, row.op, row.payload, row.answered, number(row.flags)) for row in vsock.OPS),
    )


def iommu_requests() -> str:
    """Requests of an IOMMU."""
    return table(
        ("type", "request", "bytes behind the head", "fields (offset behind the head)"),
        (
            (row.type.value, row.type, row.size, ", ".join(f"{field.name} @{field.offset}" for field in row.fields))
            for row in iommu.REQUESTS
        ),
    )


def limits() -> str:
    """Bounds."""
    return table(
        ("what", "value"),
        (
            ("descriptors of a queue, at most", queue_state.MAX_QUEUE_SIZE),
            ("queues of a device, at most", queue_state.MAX_QUEUES),
            ("bytes of a message that every bus carries", msg.MIN_MESSAGE),
            ("bytes of a message, recommended upper limit", msg.USUAL_MESSAGE),
            ("bytes of a message, at most", msg.MAX_MESSAGE),
            ("bytes of a receive buffer without MRG_RXBUF", net.RX_LEAST),
            ("... where segments may be merged", net.RX_LEAST_GSO),
        ),
    )


_CONFIGS: Mapping[str, Sequence[Field]] = {
    "blk": blk.CONFIG_FIELDS,
    "net": net.CONFIG_FIELDS,
    "console": console.CONFIG_FIELDS,
    "vsock": vsock.CONFIG_FIELDS,
    "iommu": iommu.CONFIG_FIELDS,
}
_FEATURES: Mapping[str, Sequence[FeatureRow]] = {
    "blk": blk.FEATURES,
    "net": net.FEATURES,
    "console": console.FEATURES,
    "vsock": vsock.FEATURES,
    "iommu": iommu.FEATURES,
}

TABLES: dict[str, Callable[[], str]] = {
    "statuses": statuses,
    "states": states,
    "moves": moves,
    "features": lambda: _features(features.FEATURES),
    "device-ids": device_ids,
    "early-config": early,
    "queue-parts": queue_parts,
    "split-descriptor": lambda: _layout(split.DESCRIPTOR_FIELDS),
    "packed-descriptor": lambda: _layout(packed.DESCRIPTOR_FIELDS),
    "registers": registers,
    "interrupts": interrupts,
    "transport-messages": lambda: _messages(False),
    "bus-messages": lambda: _messages(True),
    "our-messages": ours,
    "revisions": revisions,
    "reasons": reasons,
    "limits": limits,
    "blk-header": lambda: _layout(blk.HEADER_FIELDS),
    "blk-segment": lambda: _layout(blk.SEGMENT_FIELDS),
    "blk-requests": blk_requests,
    "blk-statuses": lambda: table(("status", "name"), ((each.value, each) for each in blk.BlkStatus)),
    "net-header": lambda: _layout(net.HEADER_FIELDS),
    "net-headers": net_headers,
    "console-control": lambda: _layout(console.CONTROL_FIELDS),
    "console-events": lambda: table(("event", "name"), ((each.value, each) for each in console.ConsoleEvent)),
    "vsock-header": lambda: _layout(vsock.HEADER_FIELDS),
    "vsock-operations": vsock_operations,
    "iommu-requests": iommu_requests,
    "iommu-statuses": lambda: table(("status", "name"), ((each.value, each) for each in iommu.IommuStatus)),
    "iommu-fault": lambda: _layout(iommu.FAULT_FIELDS),
    **{f"{name}-config": partial(_layout, fields) for name, fields in _CONFIGS.items()},
    **{f"{name}-features": partial(_features, rows) for name, rows in _FEATURES.items()},
}
