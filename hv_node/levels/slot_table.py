"""Slots as data: entries of the guests' tables of implicit destinations.  Experimental, not upstream.

A slot belongs to one table, which belongs to one guest.  It serves sends by source port, by the well-known port that
is asked for, or by both, and leads to an endpoint by its path, or to the next hypervisor outwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from hv_node.levels.narrowing import Bucket, Narrowing

Path = tuple[str, ...]
UP: Final[Path] = ()
"""The endpoint of a slot that leaves the decision to the next hypervisor outwards."""

MAX_SLOTS: Final = 256  # in one guest's table, those passed to it included
MAX_RIGHTS: Final = 256  # reply rights that one slot gives; the oldest goes first
FIRST_DELEGATED: Final = 0x1_0000
"""Numbers below are the toolstack's, those from here on are given to slots that are passed on, each once."""
LAST_NUMBER: Final = 0xFF_FFFF
MAX_FAR_SLOTS: Final = 1024  # of each other hypervisor, whose messages may be answered; the oldest goes first
_THROUGH: Final = 0x8000_0000
_DEPTH_SHIFT: Final = 24
MAX_DEPTH: Final = 0x7F  # of a holder's path


class SlotError(ValueError):
    """What the toolstack asked for cannot be."""


class SlotId(NamedTuple):
    """A slot's name in the whole lab: its holder's path and its number in the holder's table."""

    holder: Path
    number: int

    def __str__(self) -> str:
        return f"{'/'.join(self.holder)}#{self.number:#x}"


def op_of(slot_id: SlotId) -> int:
    """An envelope's `op` for a sendv that went through the slot: bit 31, length of the holder's path, number."""
    return _THROUGH | len(slot_id.holder) << _DEPTH_SHIFT | slot_id.number


def slot_of(op: int, source: Path) -> SlotId | None:
    """The slot that an envelope's `op` names, for a guest at `source`; None: it went through none.

    The holder is the guest itself or a hypervisor around it: never anybody else.
    """
    depth = op >> _DEPTH_SHIFT & MAX_DEPTH
    if not op & _THROUGH or not 0 < depth <= len(source):
        return None
    return SlotId(source[:depth], op & LAST_NUMBER)


class Child(NamedTuple):
    """A slot that was passed on, as the slot it came from knows it: `slot` here, None on another hypervisor."""

    holder: Path
    slot: Slot | None
    rate: float  # messages/s that it took out of its parents' share; 0 where it draws on their buckets


class Slot:
    """One entry.  `chain` names the slots that it came from, the toolstack's own first.

    `source_port`, `port`: what it serves, at least one given.  `to`: path of the endpoint, or UP; `to_port`: its port,
    None as the sender wrote it.  `narrowing`: what passes, all slots of the chain considered.
    """

    __slots__ = (
        "bucket", "chain", "children", "delegable", "id", "lent", "narrowing", "parent", "port", "rights",
        "serial", "source_port", "to", "to_port",
    )  # fmt: skip

    def __init__(
        self,
        slot_id: SlotId,
        source_port: int | None,
        port: int | None,
        to: Path,
        to_port: int | None = None,
        narrowing: Narrowing = Narrowing(),  # noqa: B008  (frozen)
        *,
        delegable: bool = False,
        chain: tuple[SlotId, ...] = (),
        parent: Slot | None = None,
        serial: int = 0,
    ) -> None:
        self.id = slot_id
        self.source_port = source_port
        self.port = port
        self.to = to
        self.to_port = to_port
        self.narrowing = narrowing
        self.delegable = delegable
        self.chain = chain
        self.parent = parent  # None too where it lives on another hypervisor
        self.serial = serial  # what the parent calls it
        self.children: dict[int, Child] = {}
        self.bucket: Bucket | None = None
        self.lent = 0.0  # messages/s that were passed to other hypervisors
        self.rights: dict[tuple[int, int, int], None] = {}  # (who may answer, whom, at which port)

    @property
    def key(self) -> tuple[int | None, int | None]:
        """What it serves."""
        return self.source_port, self.port

    def lineage(self) -> Iterator[Slot]:
        """The slot and those that it came from, as far as they are on this hypervisor."""
        slot: Slot | None = self
        while slot is not None:
            yield slot
            slot = slot.parent

    def set_rate(self, now_ns: int) -> None:
        """Fit the bucket to the narrowing and to what was lent."""
        rate = self.narrowing.rate
        if not rate:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = Bucket(rate - self.lent, now_ns)
        else:
            self.bucket.set_rate(rate - self.lent)


class Holder:
    """One guest's table."""

    __slots__ = ("by_key", "confined", "delegated", "domid", "next_number", "path", "rights", "slots")

    def __init__(self, domid: int, path: Path) -> None:
        self.domid = domid
        self.path = path
        self.confined = False
        self.slots: dict[int, Slot] = {}
        self.by_key: dict[tuple[int | None, int | None], Slot] = {}
        self.rights: dict[tuple[int, int], dict[SlotId, None]] = {}  # (domid, port) -> slots that give the right
        self.delegated = 0  # slots that it passed on and that are still held
        self.next_number = FIRST_DELEGATED

    def find(self, source_port: int, port: int) -> Slot | None:
        """The slot that serves a send: the one that says more comes first, the sender's port before the service's."""
        keys = self.by_key
        return keys.get((source_port, port)) or keys.get((source_port, None)) or keys.get((None, port))


class SlotRow(NamedTuple):
    """A slot as `argosy inspect` shows it; `passed_to` are the holders of the slots made from it."""

    slot: str
    chain: tuple[str, ...]
    source_port: int | None
    port: int | None
    to: str
    to_port: int | None
    ports: tuple[tuple[int, int], ...]
    types: tuple[int, ...] | None
    rate: float
    delegable: bool
    passed_to: tuple[str, ...]
    reply_rights: int
