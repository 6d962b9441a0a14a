"""The tables of docs/virtio-argo.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from docs.render import number, table
from guest_node.virtio import argo_hold, argo_pack
from guest_node.virtio.argo_back import Limits
from guest_node.virtio.argo_device import OFFERED
from guest_node.virtio.argo_image import OWNERS
from hmx.virtio import argo
from hmx.virtio.features import Feature, bits_of
from hmx.virtio.rings import Field

_PARTS = ("descriptors", "driver area", "device area")


def constants() -> str:
    """Numbers that both sides have to know."""
    return table(
        ("what", "value"),
        (
            ("message type of every Argo message", number(argo.MESSAGE_TYPE_VIRTIO)),
            ("smallest max_message that a side may say in HELLO", argo_pack.SMALLEST_MESSAGE),
            ("largest msg_size", argo.MAX_MSG_SIZE),
            ("id of BYE, a bus message", number(argo.BYE)),
        ),
    )


def flows() -> str:
    """The variants."""
    return table(
        ("variant", "bit", "changes from the driver", "changes from the device", "bytes of buffers"),
        (
            (
                flow.variant.name.lower(), int(flow.variant), f"{flow.driver.name} {number(flow.driver)}",
                f"{flow.device.name} {number(flow.device)}",
                "in the same message, DATA where they do not fit" if flow.joined else "in DATA, ahead",
            )
            for flow in argo.FLOWS
        ),
    )  # fmt: skip


def _fields(rows: Sequence[Field]) -> str:
    return table(("field", "offset", "bytes"), ((field.name, field.offset, field.size) for field in rows))


def owners() -> str:
    """Who writes what."""
    return table(
        ("format", "the driver writes", "the device writes"),
        (
            (owner.format.name, *(", ".join(_PARTS[part] for part in parts) for parts in (owner.driver, owner.device)))
            for owner in OWNERS
        ),
    )


def limits() -> str:
    """What our back end bears, unless it is told otherwise."""
    bound = Limits()
    return table(
        ("what", "at most"),
        (
            ("front ends", bound.clients),
            ("front ends of one domain", bound.of_a_domain),
            ("bytes under way for each queue and direction, and of one chain", number(bound.window)),
            ("seconds that a hint holds an update back", argo_hold.LONGEST),
        ),
    )


def offered() -> str:
    """Features of the transport."""
    return table(("bit", "feature"), ((bit, Feature(bit).name) for bit in bits_of(OFFERED)))


TABLES: Mapping[str, Callable[[], str]] = {
    "argo-constants": constants,
    "argo-flows": flows,
    "argo-update": lambda: _fields(argo.UPDATE_FIELDS),
    "argo-range": lambda: _fields(argo.RANGE_FIELDS),
    "argo-piece": lambda: _fields(argo.PIECE_FIELDS),
    "argo-bye": lambda: _fields(argo.BYE_FIELDS),
    "argo-owners": owners,
    "argo-limits": limits,
    "argo-features": offered,
}
