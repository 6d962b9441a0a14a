"""The allocation of well-known Argo ports, and uXen's v4v ports beside it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hmx.services import AUTOMATIC_PORTS, SERVICES, UXEN_PORTS, ServiceError, port_of, service, service_of

#: name -> base, instances.  Published: a port that changes strands every guest that was built with the old one.
PORTS = {
    "echo": (7, 1), "file": (5001, 1), "clipboard": (44445, 2), "guest-agent": (44448, 1), "discovery": (0xA0000, 1),
    "virtio-msg": (0xA1000, 256), "console": (0xA2000, 256), "rng": (0xA3000, 16), "vsock": (0xA4000, 1),
    "net": (0xC0000, 256), "storage": (0xD0000, 128), "display": (0xD1580, 3), "hid": (0xE0000, 16),
}  # fmt: skip

#: uXen's table (v4v drivers and device model): port -> name, whether a unit number is added, our service.
UXEN = {
    8888: ("echo", False, "echo"),
    44444: ("shared folders", False, ""),
    44445: ("clipboard", False, "clipboard"),
    44446: ("clipboard, second channel", False, "clipboard"),
    44448: ("guest agent, keyboard", False, "guest-agent"),
    44449: ("atto agent", False, "guest-agent"),
    44461: ("diagnostics", False, ""),
    55560: ("atto keyboard", False, "hid"),
    0xC0000: ("network interface", True, "net"),
    0xD0000: ("storage unit", True, "storage"),
    0xD1580: ("display", False, "display"),
    0xD1581: ("display commands", False, "display"),
    0xD1582: ("display, third channel", False, "display"),
    0xE0000: ("HID type", True, "hid"),
}


def test_the_allocation_is_the_published_one() -> None:
    """Every service has the base and the instances that were published, and says what it is."""
    assert {row.name: (row.base, row.instances) for row in SERVICES} == PORTS
    assert all(row.what and row.source for row in SERVICES)


def test_no_two_services_overlap() -> None:
    """Rows ascend, each ends before the next begins, and none reaches the ports that drivers choose themselves."""
    for row, after in pairwise(SERVICES):
        assert row.base + row.instances <= after.base, (row.name, after.name)
    assert all(row.instances > 0 and row.base > 0 for row in SERVICES)
    assert SERVICES[-1].base + SERVICES[-1].instances <= AUTOMATIC_PORTS == 0x8000_0000


def test_ports_and_services_lead_back_to_each_other() -> None:
    """port_of and service_of are inverse for first and last instance; next to a range lies nobody."""
    for row in SERVICES:
        for instance in {0, row.instances - 1}:
            assert port_of(row.name, instance) == row.base + instance
            assert service_of(row.base + instance) == (row.name, instance)
    assert service_of(0xD0000 - 1) is None and service_of(0xD0000 + 128) is None and service_of(0) is None
    assert port_of("storage", 5) == 0xD0005


def test_unknown_services_and_instances_are_named() -> None:
    """ServiceError lists what there is, and how many."""
    with pytest.raises(ServiceError, match=r"'disk' is no well-known service.*storage"):
        port_of("disk")
    with pytest.raises(ServiceError, match="storage has no instance 128: 0 to 127"):
        port_of("storage", 128)
    with pytest.raises(ServiceError, match="no instance -1"):
        port_of("echo", -1)


def test_uxen_is_the_precedent() -> None:
    """uXen's numbers as its drivers have them; a service with a computed port there keeps its base here."""
    assert {row.port: (row.name, row.indexed, row.service) for row in UXEN_PORTS} == UXEN
    assert [row.port for row in UXEN_PORTS] == sorted(UXEN)
    for row in UXEN_PORTS:
        if row.service:
            taken = service(row.service)
            assert not row.indexed or taken.base == row.port
        assert row.source
