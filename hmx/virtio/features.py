"""Feature bits that are no device type's own, and what every set of features has to satisfy.

A set of features is a Python int, bit n for feature n, of any length: network devices use bits beyond 63, so a 64-bit
word is too small.  Transports carry it in 32-bit windows.  Source: VIRTIO 1.4, 2.2 (feature bits), 6 (reserved bits).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, IntEnum
from typing import Final, NamedTuple

WINDOW_BITS: Final = 32
WINDOW_MASK: Final = (1 << WINDOW_BITS) - 1


class Feature(IntEnum):
    """Bits with one meaning for every device type."""

    NOTIFY_ON_EMPTY = 24
    LOG_ALL = 26
    ANY_LAYOUT = 27
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41
    SUSPEND = 43


class Kind(Enum):
    """Who has to do with a bit."""

    QUEUE = "queue"  # the format of virtqueues and their notifications
    NEGOTIATION = "negotiation"  # the device as a whole
    PCI = "pci"  # means nothing on other transports
    LEGACY = "legacy"  # before VERSION_1 only
    HOST = "host"  # between the parts of a device; no guest may see it
    DEVICE = "device"  # of one device type


VISIBLE: Final = frozenset({Kind.QUEUE, Kind.NEGOTIATION, Kind.DEVICE})  # what our transports may offer


class FeatureRow(NamedTuple):
    """One feature: `needs` are bits that have to come with it, all of them, `any_of` at least one.

    `offer_only`: that binds the device's offer; a driver may accept the bit alone.
    """

    bit: IntEnum
    kind: Kind
    needs: tuple[int, ...] = ()
    any_of: tuple[int, ...] = ()
    offer_only: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """The specification's name, without its prefix."""
        return self.bit.name


FEATURES: Final[tuple[FeatureRow, ...]] = (
    FeatureRow(Feature.NOTIFY_ON_EMPTY, Kind.LEGACY, note="notify when the queue runs empty"),
    FeatureRow(Feature.LOG_ALL, Kind.HOST, note="vhost: log what is written"),
    FeatureRow(Feature.ANY_LAYOUT, Kind.LEGACY, note="any framing of requests; a matter of course since VERSION_1"),
    FeatureRow(Feature.RING_INDIRECT_DESC, Kind.QUEUE, note="descriptors may lie in a table of their own"),
    FeatureRow(Feature.RING_EVENT_IDX, Kind.QUEUE, note="each side says at which index it wants a notification"),
    FeatureRow(Feature.PROTOCOL_FEATURES, Kind.HOST, note="vhost-user"),
    FeatureRow(Feature.VERSION_1, Kind.NEGOTIATION, note="not legacy; a driver has to accept it"),
    FeatureRow(Feature.ACCESS_PLATFORM, Kind.NEGOTIATION, note="addresses are the platform's, not guest-physical"),
    FeatureRow(Feature.RING_PACKED, Kind.QUEUE, note="one ring in place of three"),
    FeatureRow(Feature.IN_ORDER, Kind.QUEUE, note="buffers come back in the order in which they went"),
    FeatureRow(Feature.ORDER_PLATFORM, Kind.NEGOTIATION, note="the barriers of the platform are needed"),
    FeatureRow(Feature.SR_IOV, Kind.PCI, note="virtual functions"),
    FeatureRow(Feature.NOTIFICATION_DATA, Kind.QUEUE, note="a kick says how far the ring is filled"),
    FeatureRow(Feature.NOTIF_CONFIG_DATA, Kind.PCI, note="a kick carries what the device chose"),
    FeatureRow(Feature.RING_RESET, Kind.QUEUE, note="one queue can be reset"),
    FeatureRow(Feature.ADMIN_VQ, Kind.PCI, note="administration queue; reserved on other transports"),
    FeatureRow(Feature.SUSPEND, Kind.NEGOTIATION, note="the status bit SUSPEND; since VIRTIO 1.4"),
)


class Refusal(NamedTuple):
    """Why a device refuses FEATURES_OK: the rule, and the bit that is wrong (None: many, or out of all bounds)."""

    rule: str
    bit: int | None


def feature_set(*bits: int) -> int:
    """The set with these bits."""
    found = 0
    for bit in bits:
        found |= 1 << bit
    return found


def has(features: int, bit: int) -> bool:
    """Whether the set has the bit."""
    return bool(features >> bit & 1)


def bits_of(features: int) -> Iterator[int]:
    """The bits of a set, lowest first."""
    while features:
        low = features & -features
        yield low.bit_length() - 1
        features ^= low


def window(features: int, index: int) -> int:
    """32-bit word number `index` (>= 0) of a set; 0 where there is nothing."""
    return features >> index * WINDOW_BITS & WINDOW_MASK


def with_window(features: int, index: int, word: int) -> int:
    """The set with word number `index` replaced."""
    shift = index * WINDOW_BITS
    return features & ~(WINDOW_MASK << shift) | (word & WINDOW_MASK) << shift


def windows(features: int) -> int:
    """How many 32-bit words a transport has for the set: those that are needed, and never less than two."""
    return max(2, -(-features.bit_length() // WINDOW_BITS))


_HIDDEN: Final = feature_set(*(row.bit for row in FEATURES if row.kind not in VISIBLE))


def offerable(features: int) -> int:
    """What of a set a guest may see through our transports: without bits of legacy, PCI and vhost."""
    return features & ~_HIDDEN


def unmet(features: int, rows: Iterable[FeatureRow], offer: bool = False) -> int | None:
    """The lowest bit of `features` that lacks what its row says it needs, or None: the set is closed.

    `offer`: the set is what a device offers, not what a driver accepts.
    """
    lacking = [
        int(row.bit)
        for row in rows
        if has(features, row.bit)
        and (offer or not row.offer_only)
        and not (
            all(has(features, bit) for bit in row.needs)
            and (not row.any_of or any(has(features, bit) for bit in row.any_of))
        )
    ]
    return min(lacking, default=None)


def closed(features: int, rows: Iterable[FeatureRow]) -> int:
    """The largest part of `features` whose dependencies are met: what a driver may accept of an offer."""
    table = tuple(rows)
    while (bit := unmet(features, table)) is not None:
        features &= ~(1 << bit)
    return features


def refusal(offered: int, accepted: int, rows: Iterable[FeatureRow]) -> Refusal | None:
    """Why a device that offers `offered` must not grant FEATURES_OK for `accepted`, or None (VIRTIO 1.4, 2.2.2)."""
    extra = accepted & ~offered
    if extra:
        return Refusal("accepted what was not offered", next(bits_of(extra)))
    if not has(accepted, Feature.VERSION_1):
        return Refusal("a legacy driver", int(Feature.VERSION_1))
    lacking = unmet(accepted, rows)
    if lacking is not None:
        return Refusal("accepted without what it needs", lacking)
    return None
