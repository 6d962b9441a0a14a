"""What devices and drivers put into buffers and configuration spaces (VIRTIO 1.4, 5.1 to 5.13); offsets of structures
are held by test_golden.py.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.virtio import blk, console, iommu, layout, net, rng, vsock
from hmx.virtio.layout import LayoutError
from hmx.virtio.rings import Field


def enum(kind: Any) -> dict[str, int]:
    return {each.name: int(each) for each in kind}


# -- the helper ----


def test_records() -> None:
    """Offsets are the table's; gaps and the end are zero; odd sizes are bytes."""
    fields = (Field("a", 1, 2), Field("b", 4, 6), Field("c", 10, 1))
    structure = layout.record(fields, 13, ("a", "b", "c"))
    assert structure.size == 13
    assert structure.pack(0x0201, b"uvwxyz", 9) == b"\0\1\2\0uvwxyz\t\0\0"


@pytest.mark.parametrize(
    ("fields", "size", "names"),
    [
        ((Field("a", 0, 4), Field("b", 2, 4)), 8, ("a", "b")),
        ((Field("a", 0, 4),), 3, ("a",)),
        ((Field("a", 0, 4),), 4, ("b",)),
    ],
)
def test_records_that_cannot_be(fields: tuple[Field, ...], size: int, names: tuple[str, ...]) -> None:
    """Overlaps, fields beyond the end, other names than the values have."""
    with pytest.raises(ValueError):
        layout.record(fields, size, names)


# -- configuration spaces ----


@pytest.mark.parametrize(
    ("kind", "least", "size"),
    [
        (blk.BlkConfig, 8, 96), (net.NetConfig, 6, 28), (console.ConsoleConfig, 0, 12), (iommu.IommuConfig, 8, 40),
    ],
)  # fmt: skip
def test_configuration_spaces_of_any_length(kind: Any, least: int, size: int) -> None:
    """A driver takes shorter and longer ones; what is missing is zero (2.5.1)."""
    whole = bytes(range(1, size + 1))
    for given_ in range(size + 5):
        data = (whole + b"xxxxx")[:given_]
        if given_ < least:
            with pytest.raises(LayoutError):
                kind.unpack(data)
        else:
            assert kind.unpack(data) == kind.unpack(data[:size].ljust(size, b"\0"))
    again = kind.unpack(whole)
    assert kind.unpack(again.pack()) == again and len(again.pack()) == size
    with pytest.raises(LayoutError):
        vsock.VsockConfig.unpack(bytes(7))


def test_offsets_that_are_written() -> None:
    """The fields that a driver may write: writeback, emerg_wr, bypass."""
    assert (blk.WRITEBACK_OFFSET, console.EMERG_WR_OFFSET, iommu.BYPASS_OFFSET) == (32, 8, 36)


# -- blk ----


def test_blk_numbers() -> None:
    """5.2.6."""
    assert enum(blk.BlkType) == {
        "IN": 0, "OUT": 1, "FLUSH": 4, "GET_ID": 8, "GET_LIFETIME": 10, "DISCARD": 11, "WRITE_ZEROES": 13,
        "SECURE_ERASE": 14, "ZONE_APPEND": 15, "ZONE_REPORT": 16, "ZONE_OPEN": 18, "ZONE_CLOSE": 20, "ZONE_FINISH": 22,
        "ZONE_RESET": 24, "ZONE_RESET_ALL": 26,
    }  # fmt: skip
    assert enum(blk.BlkStatus) == {
        "OK": 0, "IOERR": 1, "UNSUPP": 2, "ZONE_INVALID_CMD": 3, "ZONE_UNALIGNED_WP": 4, "ZONE_OPEN_RESOURCE": 5,
        "ZONE_ACTIVE_RESOURCE": 6,
    }  # fmt: skip
    assert enum(blk.SegmentFlag) == {"UNMAP": 1}
    assert (blk.SECTOR, blk.ID_SIZE, blk.STATUS_SIZE) == (512, 20, 1)


def test_blk_headers() -> None:
    """16 bytes, whatever follows; less is no request."""
    assert blk.pack_header(8, 0x0102030405060708).hex() == "08000000000000000807060504030201"
    assert blk.unpack_header(blk.pack_header(77, 5) + b"data") == (77, 0, 5)
    with pytest.raises(LayoutError):
        blk.unpack_header(bytes(15))


def test_blk_segments() -> None:
    """Whole ones of 16 bytes, at least one."""
    two = blk.SEGMENT.pack(1, 2, 3) + blk.SEGMENT.pack(1 << 60, 1 << 31, 0)
    assert blk.unpack_segments(two) == ((1, 2, 3), (1 << 60, 1 << 31, 0))
    for bad in (b"", two[:-1], two[:15]):
        with pytest.raises(LayoutError):
            blk.unpack_segments(bad)


ALL = sum(1 << bit for bit in blk.BlkFeature if bit is not blk.BlkFeature.RO)
RO = 1 << blk.BlkFeature.RO
# request: feature, changes the disk, shapes (readable, writable) that are right, that are wrong.
SHAPES: dict[str, tuple[str | None, bool, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]] = {
    "IN": (None, False, ((0, 512), (0, 4096)), ((0, 0), (0, 511), (512, 512))),
    "OUT": (None, True, ((512, 0), (1024, 0), (512, 7)), ((0, 0), (513, 0))),
    "FLUSH": ("FLUSH", False, ((0, 0),), ((512, 0),)),
    "GET_ID": (None, False, ((0, 20), (0, 21)), ((0, 19), (1, 20))),
    "GET_LIFETIME": ("LIFETIME", False, ((0, 6),), ((0, 0), (1, 6))),
    "DISCARD": ("DISCARD", True, ((16, 0), (48, 0)), ((0, 0), (17, 0))),
    "WRITE_ZEROES": ("WRITE_ZEROES", True, ((16, 0),), ((0, 0), (8, 0))),
    "SECURE_ERASE": ("SECURE_ERASE", True, ((16, 0),), ((0, 0), (8, 0))),
    "ZONE_APPEND": ("ZONED", True, ((512, 8),), ((0, 8),)),
    "ZONE_REPORT": ("ZONED", False, ((0, 64),), ((0, 0),)),
    **{
        f"ZONE_{name}": ("ZONED", True, ((0, 0),), ((1, 0),))
        for name in ("OPEN", "CLOSE", "FINISH", "RESET", "RESET_ALL")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_blk_shapes(name: str) -> None:
    """IOERR for the wrong shape and for writes to a read-only disk, UNSUPP without the feature (5.2.6.2)."""
    feature, writes, right, wrong = SHAPES[name]
    header = blk.BlkHeader(blk.BlkType[name], 0, 0)
    for readable, writable in right:
        assert blk.refusal(header, readable, writable, ALL) is None
        assert blk.refusal(header, readable, writable, ALL | RO) is (blk.BlkStatus.IOERR if writes else None)
        if feature is None:
            assert blk.refusal(header, readable, writable, 0) is None
        else:
            without = ALL & ~(1 << blk.BlkFeature[feature])
            assert blk.refusal(header, readable, writable, without) is blk.BlkStatus.UNSUPP
    for readable, writable in wrong:
        assert blk.refusal(header, readable, writable, ALL) is blk.BlkStatus.IOERR
    assert len(SHAPES) == len(blk.BlkType) == len(blk.TYPES)


def test_blk_types() -> None:
    """Which data, which segment flags; the rest is in SHAPES."""
    data = {
        "IN": "READ", "OUT": "WRITE", "FLUSH": "NONE", "GET_ID": "ID", "GET_LIFETIME": "BYTES", "DISCARD": "SEGMENTS",
        "WRITE_ZEROES": "SEGMENTS", "SECURE_ERASE": "SEGMENTS", "ZONE_APPEND": "WRITE", "ZONE_REPORT": "BYTES",
    }  # fmt: skip
    assert {row.type.name: (row.data.name, int(row.flags)) for row in blk.TYPES} == {
        name: (data.get(name, "NONE"), int(name == "WRITE_ZEROES")) for name in SHAPES
    }


def test_blk_unknown_requests() -> None:
    """Numbers between, legacy ones: UNSUPP."""
    for number in (2, 3, 5, 0x80000000, 12, 99, 0xFFFFFFFF):
        assert blk.refusal(blk.BlkHeader(number, 0, 0), 0, 0, ALL) is blk.BlkStatus.UNSUPP


def test_blk_segment_flags() -> None:
    """UNMAP for WRITE_ZEROES only, nothing else at all (5.2.6.2)."""
    for kind, flags, good in (
        (blk.BlkType.DISCARD, 0, True), (blk.BlkType.DISCARD, 1, False), (blk.BlkType.WRITE_ZEROES, 1, True),
        (blk.BlkType.WRITE_ZEROES, 2, False), (blk.BlkType.SECURE_ERASE, 1, False), (blk.BlkType.WRITE_ZEROES, 0, True),
    ):  # fmt: skip
        expected = None if good else blk.BlkStatus.UNSUPP
        assert blk.segment_refusal(kind, blk.BlkSegment(0, 1, flags)) is expected


# -- net ----


def test_net_numbers() -> None:
    """5.1.4, 5.1.6."""
    assert enum(net.NetStatus) == {"LINK_UP": 1, "ANNOUNCE": 2}
    assert enum(net.Duplex) == {"HALF": 0, "FULL": 1, "UNKNOWN": 255}
    assert enum(net.HeaderFlag) == {"NEEDS_CSUM": 1, "DATA_VALID": 2, "RSC_INFO": 4, "UDP_TUNNEL_CSUM": 8}
    assert enum(net.Gso) == {"NONE": 0, "TCPV4": 1, "UDP": 3, "TCPV6": 4, "UDP_L4": 5}
    assert enum(net.GsoFlag) == {"UDP_TUNNEL_IPV4": 0x20, "UDP_TUNNEL_IPV6": 0x40, "ECN": 0x80}
    assert enum(net.ControlClass) == {
        "RX": 0, "MAC": 1, "VLAN": 2, "ANNOUNCE": 3, "MQ": 4, "GUEST_OFFLOADS": 5, "NOTF_COAL": 6,
    }  # fmt: skip
    assert enum(net.Ack) == {"OK": 0, "ERR": 1}


def test_net_headers() -> None:
    """12 bytes always, more with some features (5.1.6)."""
    header = net.NetHeader(1, 2, 0x0403, 0x0605, 0x0807, 0x0A09, 0x0C0B)
    assert header.pack() == bytes(range(1, 13)) and net.NetHeader.unpack(header.pack() + b"frame") == header
    assert header.pack(20) == bytes(range(1, 13)) + bytes(8)
    with pytest.raises(LayoutError):
        net.NetHeader.unpack(bytes(11))


@pytest.mark.parametrize(
    ("names", "size", "least"),
    [
        ("", 12, 1526), ("MRG_RXBUF", 12, 12), ("GUEST_TSO4", 12, 65601), ("GUEST_TSO6", 12, 65601),
        ("GUEST_UFO", 12, 65601), ("GUEST_TSO4 MRG_RXBUF", 12, 12), ("HASH_REPORT", 20, 1526),
        ("HASH_REPORT HOST_UDP_TUNNEL_GSO MRG_RXBUF", 24, 24), ("GUEST_UDP_TUNNEL_GSO", 24, 1526),
        ("OUT_NET_HEADER", 32, 1526), ("IPSEC GUEST_UDP_TUNNEL_GSO", 32, 1526), ("HOST_TSO4", 12, 1526),
    ],
)  # fmt: skip
def test_net_sizes(names: str, size: int, least: int) -> None:
    """Of the header, and of a receive buffer (5.1.6.3.1)."""
    features = sum(1 << net.NetFeature[name] for name in names.split())
    assert (net.header_size(features), net.rx_least(features)) == (size, least)


def test_net_control_queue() -> None:
    """Behind the first pair, or behind all that there can be (5.1.2)."""
    vq, mq, rss = (1 << net.NetFeature[name] for name in ("CTRL_VQ", "MQ", "RSS"))
    assert [net.control_queue(features, 4) for features in (0, mq, vq, vq | mq, vq | rss)] == [None, None, 2, 8, 8]


def test_net_control_messages() -> None:
    """Class, command, data (5.1.6.5)."""
    assert net.NetControl(4, 0, b"\2\0").pack() == b"\4\0\2\0"
    assert net.NetControl.unpack(b"\1\1abcdef") == (1, 1, b"abcdef")
    for bad in (b"", b"\1"):
        with pytest.raises(LayoutError):
            net.NetControl.unpack(bad)


def test_net_mac() -> None:
    """Six bytes."""
    with pytest.raises(ValueError, match="6 bytes"):
        net.NetConfig(b"12345").pack()
    assert net.NetConfig(b"abcdef", 1).pack()[:8] == b"abcdef\1\0"


# -- console, rng ----


def test_console_messages() -> None:
    """8 bytes and what follows (5.3.6.2)."""
    assert enum(console.ConsoleEvent) == {
        "DEVICE_READY": 0, "DEVICE_ADD": 1, "DEVICE_REMOVE": 2, "PORT_READY": 3, "CONSOLE_PORT": 4, "RESIZE": 5,
        "PORT_OPEN": 6, "PORT_NAME": 7,
    }  # fmt: skip
    assert console.Control(1, 7, 1, b"tty").pack() == bytes.fromhex("01000000 0700 0100") + b"tty"
    message = console.resize(2, 80, 25)
    assert message.pack() == bytes.fromhex("02000000 0500 0000 5000 1900")
    assert console.Control.unpack(message.pack()) == message and message.size() == (80, 25)
    for bad in (bytes(7), bytes.fromhex("00000000 0500 0000"), bytes.fromhex("00000000 0500 0000 500019")):
        with pytest.raises(LayoutError):
            console.Control.unpack(bad)
    with pytest.raises(LayoutError):
        console.Control(0, 7, 0, b"1234").size()


def test_console_queues() -> None:
    """Port 1 begins at 4: 2 and 3 are the control queues (5.3.2)."""
    assert [(console.rx_queue(port), console.tx_queue(port)) for port in range(4)] == [(0, 1), (4, 5), (6, 7), (8, 9)]
    assert [console.port_of(queue) for queue in range(8)] == [
        (0, False), (0, True), None, None, (1, False), (1, True), (2, False), (2, True),
    ]  # fmt: skip
    assert (console.CONTROL_RX, console.CONTROL_TX) == (2, 3)


def test_rng() -> None:
    """At least one byte, none beyond the buffer (5.4.6)."""
    assert [written for written in range(6) if rng.valid_answer(4, written)] == [1, 2, 3, 4]
    assert rng.REQUEST_QUEUE == 0


# -- vsock ----


def test_vsock_numbers() -> None:
    """5.10.6."""
    assert enum(vsock.Op) == {
        "INVALID": 0, "REQUEST": 1, "RESPONSE": 2, "RST": 3, "SHUTDOWN": 4, "RW": 5, "CREDIT_UPDATE": 6,
        "CREDIT_REQUEST": 7,
    }  # fmt: skip
    assert enum(vsock.SocketType) == {"STREAM": 1, "SEQPACKET": 2}
    assert enum(vsock.Shutdown) == {"RECEIVE": 1, "SEND": 2} and enum(vsock.Seq) == {"EOM": 1, "EOR": 2}
    assert enum(vsock.VsockEvent) == {"TRANSPORT_RESET": 0}
    assert enum(vsock.Cid) == {"HYPERVISOR": 0, "LOCAL": 1, "HOST": 2, "ANY32": 0xFFFFFFFF, "ANY": 0xFFFFFFFFFFFFFFFF}
    assert (vsock.RX, vsock.TX, vsock.EVENTS) == (0, 1, 2)
    assert {row.op.name: (row.payload, row.answered, row.flags) for row in vsock.OPS} == {
        "REQUEST": (False, True, 0), "RESPONSE": (False, True, 0), "RST": (False, False, 0),
        "SHUTDOWN": (False, True, 3), "RW": (True, True, 3), "CREDIT_UPDATE": (False, True, 0),
        "CREDIT_REQUEST": (False, True, 0),
    }  # fmt: skip


def packet(data: bytes = b"", **changes: int) -> bytes:
    header = vsock.VsockHeader(42, 2, 1000, 1234, len(data), 1, 5)
    return header._replace(**changes).pack() + data


def test_vsock_packets() -> None:
    """The payload is as long as `len` says; more room than that is dropped (5.10.6)."""
    header, payload = vsock.unpack_packet(packet(b"hello") + b"rest")
    assert header.len == 5 and payload == b"hello"
    assert vsock.unpack_packet(packet(type=99))[0].type == 99, "an unknown type is answered with RST"


@pytest.mark.parametrize(
    "data",
    [
        b"", packet()[:43], packet(b"hello")[:-1], packet(op=0), packet(op=8), packet(b"x", op=1), packet(b"x", op=7),
        packet(src_cid=1 << 32), packet(dst_cid=1 << 32), packet(len=0xFFFFFFFF),
    ],
)  # fmt: skip
def test_vsock_packets_that_cannot_be(data: bytes) -> None:
    """Too short, no such operation, a payload where there is none, a CID beyond 32 bits."""
    with pytest.raises(LayoutError):
        vsock.unpack_packet(data)


def test_vsock_reset() -> None:
    """RST goes back to where the packet came from; never for a RST (5.10.6.6)."""
    header = vsock.VsockHeader(42, 2, 1000, 1234, 7, 2, vsock.Op.RW, 1, 5, 6)
    assert vsock.reset_for(header) == (2, 42, 1234, 1000, 0, 2, 3, 0, 0, 0)
    assert vsock.reset_for(header._replace(op=99)) is not None
    assert vsock.reset_for(header._replace(op=3)) is None


@given(st.integers(0, vsock.U32), st.integers(0, vsock.U32), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_vsock_credit(start: int, alloc: int, sent: int, forwarded: int) -> None:
    """Wherever the counters stand, credit is what is free of the peer's room; never negative (5.10.6.3)."""
    tx_cnt, fwd_cnt = start + sent & vsock.U32, start + forwarded & vsock.U32
    assert vsock.plausible(fwd_cnt, tx_cnt, start) == (forwarded <= sent)
    if forwarded <= sent:
        assert vsock.in_flight(fwd_cnt, tx_cnt) == sent - forwarded
        assert vsock.peer_free(alloc, fwd_cnt, tx_cnt) == max(0, alloc - (sent - forwarded))


def test_vsock_types() -> None:
    """Stream sockets are implied by nothing, unless NO_IMPLIED_STREAM (5.10.3.1)."""
    stream, seqpacket, explicit = (1 << bit for bit in vsock.VsockFeature)
    for features, expected in (
        (0, True), (stream, True), (seqpacket, True), (explicit, False), (explicit | stream, True),
        (explicit | seqpacket, False),
    ):  # fmt: skip
        assert vsock.stream_allowed(features) is expected
        assert vsock.seqpacket_allowed(features) is bool(features & seqpacket)


# -- iommu ----


def test_iommu_numbers() -> None:
    """5.13.6."""
    assert enum(iommu.IommuType) == {"ATTACH": 1, "DETACH": 2, "MAP": 3, "UNMAP": 4, "PROBE": 5}
    assert enum(iommu.IommuStatus) == {
        "OK": 0, "IOERR": 1, "UNSUPP": 2, "DEVERR": 3, "INVAL": 4, "RANGE": 5, "NOENT": 6, "FAULT": 7, "NOMEM": 8,
    }  # fmt: skip
    assert enum(iommu.AttachFlag) == {"BYPASS": 1} and enum(iommu.MapFlag) == {"READ": 1, "WRITE": 2, "MMIO": 4}
    assert enum(iommu.FaultReason) == {"UNKNOWN": 0, "DOMAIN": 1, "MAPPING": 2}
    assert enum(iommu.FaultFlag) == {"READ": 1, "WRITE": 2, "ADDRESS": 256}
    assert (iommu.REQUESTS_QUEUE, iommu.EVENTS_QUEUE) == (0, 1)


@pytest.mark.parametrize(
    ("request_", "data"),
    [
        (iommu.Attach(1, 2, 1), "01000000 01000000 02000000 01000000 00000000"),
        (iommu.Detach(1, 2), "02000000 01000000 02000000 0000000000000000"),
        (
            iommu.Map(1, 0x1000, 0x1FFF, 0x8000, 3),
            "03000000 01000000 0010000000000000 ff1f000000000000 0080000000000000 03000000",
        ),
        (iommu.Unmap(1, 0x1000, 0x1FFF), "04000000 01000000 0010000000000000 ff1f000000000000 00000000"),
        (iommu.Probe(7), "05000000 07000000" + "00" * 64),
    ],
)
def test_iommu_requests(request_: iommu.Request, data: str) -> None:
    """Head and body, to the byte; longer or shorter ones cannot be answered (5.13.6)."""
    packed = bytes.fromhex(data)
    assert iommu.pack_request(request_) == packed and iommu.unpack_request(packed) == request_
    assert type(iommu.unpack_request(packed)) is type(request_)
    for bad in (packed[:-1], packed + b"\0", packed[:3], b"\x09" + packed[1:], b""):
        with pytest.raises(LayoutError):
            iommu.unpack_request(bad)


def test_iommu_answers() -> None:
    """The last four bytes; no bytes at all means that the device did not answer (5.13.6)."""
    assert iommu.pack_tail(iommu.IommuStatus.NOENT) == b"\6\0\0\0"
    assert iommu.unpack_tail(b"properties\4\0\0\0") is iommu.IommuStatus.INVAL
    for bad in (b"", b"\0\0\0", b"\x09\0\0\0"):
        with pytest.raises(LayoutError):
            iommu.unpack_tail(bad)
    fault = iommu.Fault(2, 0x102, 7, 0x1234)
    assert iommu.Fault.unpack(fault.pack() + b"more") == fault
    with pytest.raises(LayoutError):
        iommu.Fault.unpack(bytes(23))


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    """Are a structure, or LayoutError; never another exception."""
    for read in (
        blk.unpack_header, blk.unpack_segments, blk.BlkConfig.unpack, net.NetHeader.unpack, net.NetControl.unpack,
        net.NetConfig.unpack, console.Control.unpack, console.ConsoleConfig.unpack, vsock.unpack_packet,
        vsock.VsockConfig.unpack, iommu.unpack_request, iommu.unpack_tail, iommu.IommuConfig.unpack, iommu.Fault.unpack,
    ):  # fmt: skip
        with suppress(LayoutError):
            read(data)
