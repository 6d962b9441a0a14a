"""Feature bits: their numbers, sets of any length, windows, dependencies, and what a device refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.virtio import blk, console, features, iommu, net, rng, vsock
from hmx.virtio.device_types import TYPES, feature_rows
from hmx.virtio.features import FEATURES, Feature, Kind, Refusal, feature_set
from hmx.virtio.ids import EARLY_CONFIG, DeviceId, early_config, name_of

# VIRTIO 1.4, 6: number, and who may see it (queue, negotiation, pci, legacy, host).
RESERVED = {
    "NOTIFY_ON_EMPTY": (24, "legacy"), "LOG_ALL": (26, "host"), "ANY_LAYOUT": (27, "legacy"),
    "RING_INDIRECT_DESC": (28, "queue"), "RING_EVENT_IDX": (29, "queue"), "PROTOCOL_FEATURES": (30, "host"),
    "VERSION_1": (32, "negotiation"), "ACCESS_PLATFORM": (33, "negotiation"), "RING_PACKED": (34, "queue"),
    "IN_ORDER": (35, "queue"), "ORDER_PLATFORM": (36, "negotiation"), "SR_IOV": (37, "pci"),
    "NOTIFICATION_DATA": (38, "queue"), "NOTIF_CONFIG_DATA": (39, "pci"), "RING_RESET": (40, "queue"),
    "ADMIN_VQ": (41, "pci"), "SUSPEND": (43, "negotiation"),
}  # fmt: skip
# VIRTIO 1.4, 5.1.3 to 5.13.3.
DEVICES = {
    "net": "CSUM 0 GUEST_CSUM 1 CTRL_GUEST_OFFLOADS 2 MTU 3 MAC 5 GSO 6 GUEST_TSO4 7 GUEST_TSO6 8 GUEST_ECN 9 "
    "GUEST_UFO 10 HOST_TSO4 11 HOST_TSO6 12 HOST_ECN 13 HOST_UFO 14 MRG_RXBUF 15 STATUS 16 CTRL_VQ 17 CTRL_RX 18 "
    "CTRL_VLAN 19 CTRL_RX_EXTRA 20 GUEST_ANNOUNCE 21 MQ 22 CTRL_MAC_ADDR 23 DEVICE_STATS 50 HASH_TUNNEL 51 "
    "VQ_NOTF_COAL 52 NOTF_COAL 53 GUEST_USO4 54 GUEST_USO6 55 HOST_USO 56 HASH_REPORT 57 GUEST_HDRLEN 59 RSS 60 "
    "RSC_EXT 61 STANDBY 62 SPEED_DUPLEX 63 RSS_CONTEXT 64 GUEST_UDP_TUNNEL_GSO 65 GUEST_UDP_TUNNEL_GSO_CSUM 66 "
    "HOST_UDP_TUNNEL_GSO 67 HOST_UDP_TUNNEL_GSO_CSUM 68 OUT_NET_HEADER 69 IPSEC 70",
    "blk": "BARRIER 0 SIZE_MAX 1 SEG_MAX 2 GEOMETRY 4 RO 5 BLK_SIZE 6 SCSI 7 FLUSH 9 TOPOLOGY 10 CONFIG_WCE 11 MQ 12 "
    "DISCARD 13 WRITE_ZEROES 14 LIFETIME 15 SECURE_ERASE 16 ZONED 17",
    "console": "SIZE 0 MULTIPORT 1 EMERG_WRITE 2",
    "rng": "",
    "vsock": "STREAM 0 SEQPACKET 1 NO_IMPLIED_STREAM 2",
    "iommu": "INPUT_RANGE 0 DOMAIN_RANGE 1 MAP_UNMAP 2 BYPASS 3 PROBE 4 MMIO 5 BYPASS_CONFIG 6",
}
# 5.1.3.1 and 5.2.5.2: what needs all of these / one of these.
NEEDS = {
    "net": {
        "GUEST_TSO4": ("GUEST_CSUM", ""), "GUEST_TSO6": ("GUEST_CSUM", ""), "GUEST_ECN": ("", "GUEST_TSO4 GUEST_TSO6"),
        "GUEST_UFO": ("GUEST_CSUM", ""), "HOST_TSO4": ("CSUM", ""), "HOST_TSO6": ("CSUM", ""),
        "HOST_ECN": ("", "HOST_TSO4 HOST_TSO6"), "HOST_UFO": ("CSUM", ""), "CTRL_RX": ("CTRL_VQ", ""),
        "CTRL_VLAN": ("CTRL_VQ", ""), "GUEST_ANNOUNCE": ("CTRL_VQ", ""), "MQ": ("CTRL_VQ", ""),
        "CTRL_MAC_ADDR": ("CTRL_VQ", ""), "HASH_TUNNEL": ("CTRL_VQ", "RSS HASH_REPORT"),
        "VQ_NOTF_COAL": ("CTRL_VQ", ""), "NOTF_COAL": ("CTRL_VQ", ""), "GUEST_USO4": ("GUEST_CSUM", ""),
        "GUEST_USO6": ("GUEST_CSUM", ""), "HOST_USO": ("CSUM", ""), "RSS": ("CTRL_VQ", ""),
        "RSC_EXT": ("", "HOST_TSO4 HOST_TSO6"), "RSS_CONTEXT": ("CTRL_VQ RSS", ""),
        "GUEST_UDP_TUNNEL_GSO": ("GUEST_TSO4 GUEST_TSO6 GUEST_USO4 GUEST_USO6", ""),
        "GUEST_UDP_TUNNEL_GSO_CSUM": ("GUEST_UDP_TUNNEL_GSO", ""),
        "HOST_UDP_TUNNEL_GSO": ("HOST_TSO4 HOST_TSO6 HOST_USO", ""),
        "HOST_UDP_TUNNEL_GSO_CSUM": ("HOST_UDP_TUNNEL_GSO", ""),
    },
    "blk": {"CONFIG_WCE": ("FLUSH", "")},
}  # fmt: skip
MODULES = {"net": net, "blk": blk, "console": console, "rng": rng, "vsock": vsock, "iommu": iommu}


def test_reserved_bits() -> None:
    """Names, numbers and who they are for; the table has a row for each (VIRTIO 1.4, 6)."""
    assert {row.name: (int(row.bit), row.kind.value) for row in FEATURES} == RESERVED
    assert [int(bit) for bit in Feature] == [int(row.bit) for row in FEATURES]
    assert not any(row.needs or row.any_of or row.offer_only for row in FEATURES)


@pytest.mark.parametrize("name", DEVICES)
def test_bits_of_devices(name: str) -> None:
    """Numbers and dependencies of a device type; the table has every bit once (5.1.3 to 5.13.3)."""
    words = DEVICES[name].split()
    rows = MODULES[name].FEATURES
    assert [word for row in rows for word in (row.name, str(int(row.bit)))] == words
    bits = {row.name: int(row.bit) for row in rows}
    for row in rows:
        needs, any_of = NEEDS.get(name, {}).get(row.name, ("", ""))
        assert row.needs == tuple(bits[need] for need in needs.split()), row.name
        assert row.any_of == tuple(bits[need] for need in any_of.split()), row.name
        assert row.kind is (Kind.LEGACY if row.name in ("SCSI", "BARRIER", "GSO") else Kind.DEVICE)
        assert row.offer_only == (row.name == "CONFIG_WCE")


def test_device_types() -> None:
    """Ids, feature tables and bytes of configuration (section 5); every type's rows end with those of all."""
    expected = {1: (net, 28), 2: (blk, 96), 3: (console, 12), 4: (rng, 0), 19: (vsock, 8), 23: (iommu, 40)}
    assert {int(row.device): (row.features, row.config_size) for row in TYPES} == {
        number: (module.FEATURES, size) for number, (module, size) in expected.items()
    }
    assert feature_rows(2) == (*blk.FEATURES, *FEATURES)
    assert feature_rows(99) == FEATURES


def test_device_ids() -> None:
    """VIRTIO 1.4, 5."""
    assert {device.name: int(device) for device in DeviceId} == {
        "NONE": 0, "NET": 1, "BLK": 2, "CONSOLE": 3, "RNG": 4, "BALLOON": 5, "SCSI": 8, "P9": 9, "GPU": 16, "RTC": 17,
        "INPUT": 18, "VSOCK": 19, "CRYPTO": 20, "IOMMU": 23, "MEM": 24, "SOUND": 25, "FS": 26, "PMEM": 27, "RPMB": 28,
        "SCMI": 32, "I2C": 34, "CAN": 36, "GPIO": 41, "SPI": 45, "TEE": 46, "CPU_BALLOON": 47, "MEDIA": 48, "USB": 49,
    }  # fmt: skip
    assert name_of(2) == "blk" and name_of(77) == "77"


def test_early_configuration() -> None:
    """Only a console's emerg_wr may be written before negotiation (5.3.4)."""
    assert [(row.device, row.offset, row.size) for row in EARLY_CONFIG] == [(DeviceId.CONSOLE, 8, 4)]
    assert early_config(3) == range(8, 12) and not early_config(2)


def test_what_a_guest_may_see() -> None:
    """Bit 30 belongs to vhost-user, 26 to vhost; 24 and 27 are legacy, 37, 39 and 41 are PCI's (6, 4.2)."""
    everything = (1 << 130) - 1
    hidden = everything & ~features.offerable(everything)
    assert list(features.bits_of(hidden)) == [24, 26, 27, 30, 37, 39, 41]


@given(st.integers(0, (1 << 300) - 1), st.integers(0, 9), st.integers(0, (1 << 33) - 1))
def test_windows(value: int, index: int, word: int) -> None:
    """A set is as long as it has to be; windows are 32 bits of it (4.2.2)."""
    changed = features.with_window(value, index, word)
    assert features.window(changed, index) == word & 0xFFFFFFFF
    for other in range(12):
        if other != index:
            assert features.window(changed, other) == features.window(value, other) == value >> 32 * other & 0xFFFFFFFF
    count = features.windows(value)
    assert count >= 2 and not value >> 32 * count and (count == 2 or value >> 32 * (count - 1))
    assert feature_set(*features.bits_of(value)) == value
    assert all(features.has(value, bit) == bool(value & 1 << bit) for bit in (0, 31, 32, 63, 64, 70, 299))


V1 = 1 << 32


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (V1, None),
        (V1 | 1 << 9, None),
        (V1 | 1 << 9 | 1 << 11, None),
        (V1 | 1 << 11, None),
        (V1 | 1 << 12, Refusal("accepted what was not offered", 12)),
        (V1 | 1 << 70, Refusal("accepted what was not offered", 70)),
        (1 << 9, Refusal("a legacy driver", 32)),
        (0, Refusal("a legacy driver", 32)),
    ],
)
def test_refusals(accepted: int, expected: Refusal | None) -> None:
    """An un-offered bit, an open dependency, no VERSION_1: FEATURES_OK is refused (2.2.2, 6.2)."""
    offered = V1 | 1 << 9 | 1 << 11
    assert features.refusal(offered, accepted, feature_rows(2)) == expected


def test_open_dependencies() -> None:
    """MQ without CTRL_VQ is refused; CONFIG_WCE without FLUSH only where it is offered (2.2.1, 5.2.5.2)."""
    offered = feature_set(Feature.VERSION_1, net.NetFeature.MQ, net.NetFeature.CTRL_VQ)
    accepted = feature_set(Feature.VERSION_1, net.NetFeature.MQ)
    assert features.refusal(offered, accepted, feature_rows(1)) == Refusal("accepted without what it needs", 22)
    rows = feature_rows(2)
    assert features.unmet(1 << 11, rows) is None and features.unmet(1 << 11, rows, offer=True) == 11


def test_closure() -> None:
    """What a driver may accept: bits that lack something fall, and those that lean on them (2.2.1)."""
    bits = net.NetFeature
    rows = feature_rows(1)
    ecn = feature_set(bits.GUEST_ECN, bits.GUEST_TSO4)
    assert features.unmet(ecn, rows) == bits.GUEST_TSO4
    assert features.closed(ecn, rows) == 0
    whole = ecn | 1 << bits.GUEST_CSUM
    assert features.closed(whole, rows) == whole and features.unmet(whole, rows) is None
    assert features.unmet(feature_set(bits.HASH_TUNNEL, bits.CTRL_VQ), rows) == bits.HASH_TUNNEL
    assert features.unmet(feature_set(bits.HASH_TUNNEL, bits.RSS), rows) == bits.HASH_TUNNEL
    assert features.unmet(feature_set(bits.HASH_TUNNEL, bits.CTRL_VQ, bits.HASH_REPORT), rows) is None


@given(st.integers(0, (1 << 71) - 1))
def test_the_closure_is_closed(value: int) -> None:
    """Of any offer a driver's choice is closed, and part of it."""
    rows = feature_rows(1)
    found = features.closed(value, rows)
    assert not found & ~value and features.unmet(found, rows) is None
