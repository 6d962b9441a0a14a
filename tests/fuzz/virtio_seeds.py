"""Seeds for the targets virtio_msg and virtio_layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hmx.virtio import blk, console, iommu, msg, net, vsock
from hmx.virtio.msg import BusId, MsgId
from hmx.virtio.msg_client import Call, Caller

_LIVE = 0x0E  # the revision with ERROR, a device up to DRIVER_OK


def messages() -> Iterator[bytes]:
    """Every request, alone and in the order of an initialisation; answers."""
    call = Caller(5)
    ours: list[Call[Any]] = [
        call.info(), call.set_status(0), call.set_status(3), call.device_features(3),
        call.set_driver_features(1 << 32, 2), call.set_status(11),
        call.get_config(0, 8), call.set_config(0, 0, b"ab"), call.get_queue(0),
        call.set_queue(0, 64, 0x1000, 0x2000, 0x3000), call.set_status(15), call.get_status(), call.reset_queue(0),
        call.devices(0, 64), call.ping(7),
    ]  # fmt: skip
    events = [
        call.kick(0), msg.pack(msg.row(MsgId.EVENT_USED), (0,), 5), msg.pack(msg.row(MsgId.GET_SHM), (1,), 5),
        msg.pack(msg.row(MsgId.EVENT_CONFIG), msg.ConfigEvent(15, 1, 0, 2, b"ab"), 5),
        msg.pack(msg.row(BusId.EVENT_DEVICE), (5, 1)),
    ]  # fmt: skip
    for how in (2, _LIVE):
        for data in [*(each.message for each in ours), *events]:
            yield bytes((how,)) + data
        yield bytes((how,)) + b"".join([*(each.message for each in ours), *events])
    yield b"\x01" + b"".join(each.message for each in ours)
    old = Caller(5, msg.AMP)
    prototypes: list[Call[Any]] = [old.info(), old.get_config(0, 4), old.set_status(0)]
    yield b"\x0c" + b"".join(each.message for each in prototypes)
    answers: tuple[tuple[int, tuple[Any, ...]], ...] = (
        (0, (2, 1, 64, 16, 2, 0, 0)), (3, (0, 3, (1, 2, 3))), (6, (1, 0, 8, bytes(8))), (8, (0, 128, 0, 0, 0, 0, 0)),
        (11, (15,)), (13, (0, 16, 0, b"\x20\0")), (14, (7,)),
    )  # fmt: skip
    for at, values in answers:
        yield bytes((2,)) + msg.pack_response(ours[at].request, values)
    error = msg.pack_error(ours[0].request, msg.Reason.STATE)
    assert error is not None
    yield bytes((2,)) + error


def layouts() -> Iterator[bytes]:
    """One or two of each structure, with the number of its reader."""
    for kind in blk.BlkType:
        yield b"\0" + blk.pack_header(kind, 0xFFFF) + blk.SEGMENT.pack(1, 8, kind & 1)
    for op in vsock.Op:
        header = vsock.VsockHeader(42, 2, 1000, 1234, 3 if op is vsock.Op.RW else 0, 1 + (op & 1), op, 1, 4096, 17)
        yield b"\1" + header.pack() + b"abc"
    requests: tuple[iommu.Request, ...] = (
        iommu.Attach(1, 2), iommu.Detach(1, 2), iommu.Map(1, 0, 0xFFF, 0x1000, 3), iommu.Unmap(1, 0, 0xFFF),
        iommu.Probe(1),
    )  # fmt: skip
    for request in requests:
        yield b"\2" + iommu.pack_request(request)
    yield b"\3" + console.resize(1, 80, 25).pack()
    yield b"\3" + console.Control(1, console.ConsoleEvent.PORT_NAME, 1, b"name").pack()
    yield b"\4" + net.NetControl(net.ControlClass.MQ, 0, b"\2\0").pack()
    yield b"\5" + net.NetHeader(1, 1, 54, 1460, 34, 16, 1).pack() + b"frame"
    yield b"\6" + blk.BlkConfig(1 << 20, writeback=1, num_queues=4).pack()
    yield b"\6" + blk.BlkConfig(7).pack()[:60]
    yield b"\7" + vsock.VsockConfig(42).pack()
    yield b"\x08data" + iommu.pack_tail(iommu.IommuStatus.INVAL)
