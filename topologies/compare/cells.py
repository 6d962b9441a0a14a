"""What is compared: works, ways to carry them, and the cells of the table that ships.

A cell is one work over one way, by one door, with one notification, at one depth of nesting.  The table is not the
whole product: each axis is varied while the others stay at what is usual, which is what a reader compares.
Experimental.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple


class Work(NamedTuple):
    """One kind of request: what a guest does, with how many bytes, how many at a time before the device is told."""

    name: str
    kind: str  # read | write | frame | peek
    size: int
    at_once: int = 1


WORKS: Final = (
    Work("blk-read-512", "read", 512),
    Work("blk-read-4KiB", "read", 4096),
    Work("blk-read-64KiB", "read", 65536),
    Work("blk-write-512", "write", 512),
    Work("blk-write-4KiB", "write", 4096),
    Work("blk-write-64KiB", "write", 65536),
    Work("blk-read-4KiB-x16", "read", 4096, 16),
    Work("blk-write-4KiB-x16", "write", 4096, 16),
    Work("net-64", "frame", 64),
    Work("net-1500", "frame", 1500),
    Work("peek-5", "peek", 5),
)


class Way(NamedTuple):
    """One design: the transport, how its back end reaches the front end's memory, and which works it can carry."""

    name: str
    transport: str  # virtio-argo | virtio-mmio | v4v
    variant: str  # of virtio-argo
    access: str  # of virtio-mmio and of introspection
    kinds: tuple[str, ...]
    at_once: int = 16  # most requests that it has under way


_BLOCK: Final = ("read", "write")
_VIRTIO: Final = (*_BLOCK, "frame")
WAYS: Final = (
    Way("argo-inline", "virtio-argo", "inline", "", _VIRTIO),
    Way("argo-mirror", "virtio-argo", "mirror", "", _VIRTIO),
    Way("mmio-foreign", "virtio-mmio", "", "foreign", _VIRTIO),
    Way("mmio-foreign-kept", "virtio-mmio", "", "foreign-kept", _VIRTIO),
    Way("mmio-grant-map", "virtio-mmio", "", "grant-map", _VIRTIO),
    Way("mmio-grant-copy", "virtio-mmio", "", "grant-copy", _VIRTIO),
    Way("mmio-dma", "virtio-mmio", "", "dma", _VIRTIO),
    Way("mmio-dma-rings", "virtio-mmio", "", "dma-rings", _VIRTIO),
    Way("v4v", "v4v", "", "", _BLOCK, at_once=1),  # uXen's storage driver waits for each reply
    Way("map", "virtio-mmio", "", "foreign", ("peek",)),
    Way("dma", "virtio-mmio", "", "dma", ("peek",)),
)


class Cell(NamedTuple):
    """One line of the table.  `depth`: hypervisors around the front end's own."""

    work: Work
    way: Way
    door: str = "hypercall"
    notification: str = "virq"
    depth: int = 0

    @property
    def name(self) -> str:
        """What `--only` looks into."""
        return f"{self.work.name}/{self.way.name}/{self.door}/{self.notification}/L{self.depth}"


DOORS: Final = ("msr", "cpuid", "pio", "mmio")
NOTIFICATIONS: Final = ("line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority")
DEPTHS: Final = (1, 2)
USUAL: Final = "blk-read-4KiB"  # the work by which doors, notifications and depths are compared


def cells(ways: tuple[Way, ...] = WAYS) -> Iterator[Cell]:
    """The cells that ship, in the order of the table."""
    for work in WORKS:
        for way in ways:
            if work.kind in way.kinds and work.at_once <= way.at_once:
                yield Cell(work, way)
    usual = next(work for work in WORKS if work.name == USUAL)
    for way in ways:
        if way.transport != "virtio-argo":
            continue
        for door in DOORS:
            yield Cell(usual, way, door=door)
        for notification in NOTIFICATIONS:
            yield Cell(usual, way, notification=notification)
        for depth in DEPTHS:
            yield Cell(usual, way, depth=depth)
