"""The surfaces that are fuzzed.

A target is a module with `one_input(data)`, which raises only when a property is violated, and `TALLY`, which counts
what was done.  Targets import nothing of ours before they are loaded: the coverage engine instruments imports.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, NamedTuple

PACKAGES: Final = ("hmx", "broker", "hv_node", "guest_node", "topologies")


class Target(NamedTuple):
    """One surface."""

    name: str
    surface: str  # what reads the bytes
    counts: str  # what one counted operation is
    joined: int = 1  # mutations that the random engine puts one behind another: scripts amortise their setting


TARGETS: Final = (
    Target("frame", "broker.frames.parse_frame and broker.records.decode_frame", "messages parsed"),
    Target("router", "control records through broker.router.RouterCore", "messages given to the router", 24),
    Target("member", "the broker's messages through broker.member.Member", "messages given to the member", 8),
    Target("envelope", "broker.envelope.validate", "envelopes judged"),
    Target("attach", "hmx.attach, request and reply", "messages parsed"),
    Target("hypervisor", "vCPU area, trap frames, Argo arguments: Hypervisor.run", "trap frames executed", 6),
    Target("ring", "ring contents through hmx.argo.consumer.Consumer", "calls of the consumer"),
    Target("stream", "stream frames through the engine of guest_node.drivers.stream_fsm", "frames received"),
    Target("acpi", "ACPI tables through hmx.acpi", "tables read"),
    Target("aml", "byte code and resources through hmx.aml, hmx.acpi_resources", "blocks and constants read"),
    Target("fdt", "device trees through hmx.fdt, the hypervisor's node and Argo's", "blobs and properties read"),
    Target("firmware", "what lies at FIRMWARE_BASE through guest_node.kernel.firmware", "looks taken"),
    Target("topology", "topology text through topologies.load.loads", "lines read"),
    Target("queue_device", "memory of a virtqueue through its device's end", "operations of the device", 2),
    Target("queue_driver", "memory of a virtqueue through its driver's end", "operations of the driver", 8),
    Target("trace", "golden-trace files through hv_node.conform.replay", "lines read"),
    Target("virtio_argo", "VirtIO-Argo's data plane: hmx.virtio.argo, the device's end of a queue", "messages read", 2),
    Target("virtio_msg", "virtio-msg messages to hmx.virtio.msg_device and msg_client", "messages handled", 3),
    Target("virtio_layouts", "requests, packets and configurations of VirtIO device types", "structures read"),
)
_BY_NAME: Final = {target.name: target for target in TARGETS}


class Tally:
    """How many operations a target has done."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Loaded(NamedTuple):
    """A target that can run."""

    one_input: Callable[[bytes], None]
    operations: Callable[[], int]


def target_named(name: str) -> Target:
    """A target by its name.  ValueError names those that there are."""
    found = _BY_NAME.get(name)
    if found is None:
        raise ValueError(f"no target {name!r}; there are {', '.join(_BY_NAME)}")
    return found


def load(target: Target) -> Loaded:
    """Import a target's module."""
    module = import_module(f"tests.fuzz.targets.{target.name}")
    tally: Tally = module.TALLY
    return Loaded(module.one_input, lambda: tally.count)
