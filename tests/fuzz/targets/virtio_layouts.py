"""Property: what a device type reads of the other side is a structure, or LayoutError with few words; what was read
packs to bytes that read the same.

Input: which structure, then its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hmx.virtio import blk, console, iommu, net, vsock
from hmx.virtio.layout import LayoutError
from tests.fuzz.targets import Tally

TALLY = Tally()


def _blk_request(data: bytes) -> None:
    header = blk.unpack_header(data)
    assert blk.unpack_header(blk.REQUEST_HEADER.pack(*header)) == header
    status = blk.refusal(header, len(data) - 16, len(data) & 1023, header.sector)
    if status is None and header.type in (blk.BlkType.DISCARD, blk.BlkType.WRITE_ZEROES, blk.BlkType.SECURE_ERASE):
        for segment in blk.unpack_segments(data[16:]):
            refused = blk.segment_refusal(header.type, segment)
            assert refused is None or refused is blk.BlkStatus.UNSUPP


def _vsock_packet(data: bytes) -> None:
    header, payload = vsock.unpack_packet(data)
    assert len(payload) == header.len and header.pack() == data[: vsock.HEADER_SIZE]
    answer = vsock.reset_for(header)
    assert (answer is None) == (header.op == vsock.Op.RST)
    if answer is not None:
        assert vsock.reset_for(answer) is None
    assert 0 <= vsock.peer_free(header.buf_alloc, header.fwd_cnt, header.src_port) <= header.buf_alloc


def _iommu_request(data: bytes) -> None:
    request = iommu.unpack_request(data)
    assert iommu.unpack_request(iommu.pack_request(request)) == request


def _same(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    def checked(data: bytes) -> None:
        found = read(data)
        assert read(found.pack()) == found

    return checked


READERS: tuple[Callable[[bytes], object], ...] = (
    _blk_request, _vsock_packet, _iommu_request, _same(console.Control.unpack), _same(net.NetControl.unpack),
    _same(net.NetHeader.unpack), _same(blk.BlkConfig.unpack), _same(vsock.VsockConfig.unpack), iommu.unpack_tail,
)  # fmt: skip


def one_input(data: bytes) -> None:
    """Read one structure."""
    TALLY.count += 1
    reader = READERS[(data[0] if data else 0) % len(READERS)]
    try:
        reader(data[1:])
    except LayoutError as error:
        assert len(str(error)) < 200
