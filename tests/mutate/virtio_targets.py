"""The tables of VirtIO that `make mutate` changes; see targets.py."""

from __future__ import annotations

from typing import Final

from tests.mutate.campaign import Target

_VIRTIO: Final = "tests/hmx/virtio/"
_VIRTIO_FEATURES: Final = (_VIRTIO + "test_features.py", _VIRTIO + "test_golden.py")
_VIRTIO_STATUS: Final = (_VIRTIO + "test_status.py", _VIRTIO + "test_control.py", _VIRTIO + "test_golden.py")
_VIRTIO_MMIO: Final = (_VIRTIO + "test_mmio.py", _VIRTIO + "test_golden.py")
_VIRTIO_MSG: Final = (_VIRTIO + "test_msg.py", _VIRTIO + "test_msg_device.py", _VIRTIO + "test_golden.py")
_VIRTIO_TYPES: Final = (_VIRTIO + "test_device_layouts.py", _VIRTIO + "test_golden.py", _VIRTIO + "test_features.py")

_IOREQ: Final = (
    "tests/hmx/test_ioreq.py",
    "tests/hv_node/ioreq/test_servers.py",
    "tests/hv_node/ioreq/test_memory.py",
    "tests/guest_node/virtio/test_mmio.py",
)
_WIRE: Final = (_VIRTIO + "test_argo_wire.py",)
_RINGS: Final = (
    _VIRTIO + "test_queue_layouts.py",
    _VIRTIO + "test_queue_golden.py",
    _VIRTIO + "test_queue_hostile_driver.py",
    _VIRTIO + "test_queues_alike.py",
)
_SPLIT: Final = (*_RINGS, _VIRTIO + "test_split_queue.py")
_PACKED: Final = (*_RINGS, _VIRTIO + "test_packed_queue.py", _VIRTIO + "test_packed_queue_events.py")

VIRTIO: Final = (
    Target("hmx.virtio.split", "SPLIT", _SPLIT),
    Target("hmx.virtio.split", "DESCRIPTOR_FIELDS", _SPLIT),
    Target("hmx.virtio.split", "RING_FIELDS", _SPLIT),
    Target("hmx.virtio.split", "USED_FIELDS", _SPLIT),
    Target("hmx.virtio.packed", "PACKED", _PACKED),
    Target("hmx.virtio.packed", "DESCRIPTOR_FIELDS", _PACKED),
    Target("hmx.virtio.packed", "EVENT_FIELDS", _PACKED),
    Target("hmx.virtio.features", "Feature", _VIRTIO_FEATURES),
    Target("hmx.virtio.features", "FEATURES", _VIRTIO_FEATURES, words=("note",)),
    Target("hmx.virtio.ids", "DeviceId", _VIRTIO_FEATURES),
    Target("hmx.virtio.ids", "EARLY_CONFIG", _VIRTIO_FEATURES, words=("source",)),
    Target("hmx.virtio.device_types", "TYPES", _VIRTIO_FEATURES),
    Target("hmx.virtio.status", "Status", _VIRTIO_STATUS),
    Target("hmx.virtio.status", "STATES", _VIRTIO_STATUS),
    Target("hmx.virtio.status", "MOVES", _VIRTIO_STATUS, words=("note",)),
    Target("hmx.virtio.mmio", "REGISTERS", _VIRTIO_MMIO, words=("note",)),
    Target("hmx.virtio.mmio", "ADDRESS_HALVES", _VIRTIO_MMIO),
    Target("hmx.virtio.mmio", "Interrupt", _VIRTIO_MMIO),
    Target("hmx.virtio.msg", "MESSAGES", _VIRTIO_MSG),
    Target("hmx.virtio.msg", "MsgId", _VIRTIO_MSG),
    Target("hmx.virtio.msg", "BusId", _VIRTIO_MSG),
    Target("hmx.virtio.msg", "REVISIONS", _VIRTIO_MSG, words=("source",)),
    Target("hmx.virtio.msg_payloads", "Reason", _VIRTIO_MSG),
    Target("hmx.virtio.msg_payloads", "REASONS", _VIRTIO_MSG, words=("meaning",)),
    Target("hmx.virtio.blk", "FEATURES", _VIRTIO_TYPES, words=("note",)),
    Target("hmx.virtio.net", "FEATURES", _VIRTIO_TYPES, words=("note",)),
    Target("hmx.virtio.console", "FEATURES", _VIRTIO_TYPES, words=("note",)),
    Target("hmx.virtio.vsock", "FEATURES", _VIRTIO_TYPES, words=("note",)),
    Target("hmx.virtio.iommu", "FEATURES", _VIRTIO_TYPES, words=("note",)),
    *(
        Target(f"hmx.virtio.{module}", name, _VIRTIO_TYPES)
        for module, names in {
            "blk": "BlkFeature CONFIG_FIELDS HEADER_FIELDS SEGMENT_FIELDS LIFETIME_FIELDS TYPES BlkType BlkStatus",
            "net": "NetFeature CONFIG_FIELDS HEADER_FIELDS HEADER_SIZES NetStatus Duplex HeaderFlag Gso GsoFlag "
            "ControlClass Ack",
            "console": "ConsoleFeature CONFIG_FIELDS CONTROL_FIELDS SIZE_FIELDS ConsoleEvent",
            "vsock": "VsockFeature CONFIG_FIELDS HEADER_FIELDS EVENT_FIELDS OPS Op Cid SocketType Shutdown Seq",
            "iommu": "IommuFeature CONFIG_FIELDS HEAD_FIELDS TAIL_FIELDS FAULT_FIELDS REQUESTS IommuType IommuStatus "
            "AttachFlag MapFlag FaultReason FaultFlag",
        }.items()
        for name in names.split()
    ),
    Target("hmx.virtio.argo", "FLOWS", _WIRE),
    Target("hmx.virtio.argo", "UPDATE_FIELDS", _WIRE),
    Target("hmx.virtio.argo", "RANGE_FIELDS", _WIRE),
    Target("hmx.virtio.argo", "PIECE_FIELDS", _WIRE),
    Target("hmx.virtio.argo", "BYE_FIELDS", _WIRE),
    Target("guest_node.virtio.argo_image", "OWNERS", ("tests/guest_node/virtio/test_argo_pack.py",)),
    Target(
        "guest_node.virtio.drivers.negotiate",
        "STEPS",
        ("tests/guest_node/virtio/drivers/test_negotiate.py",),
        words=("name", "source"),
    ),
    Target("topologies.devices", "TYPES", ("tests/topologies/test_schema.py", "tests/topologies/test_devicecheck.py")),
    Target("guest_node.devices", "NOT_YET", ("tests/guest_node/test_devices.py",)),
    Target("guest_node.devices", "OPENERS", ("tests/topologies/inline/test_devices.py",)),
    Target("topologies.devices", "PAST_IOMMU", ("tests/topologies/test_devicecheck.py",)),
    Target("guest_node.programs.back_mmio", "WAYS", ("tests/topologies/compare/test_compare.py",)),
    Target("hmx.ioreq", "DMOPS", _IOREQ, words=("source",)),
    Target("hmx.ioreq", "WINDOWS", _IOREQ, words=("source",)),
    Target("hmx.grants", "OPS", _IOREQ, words=("source",)),
)
