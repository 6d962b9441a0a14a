"""Well-known Argo ports: which service answers at which port.  Experimental, not upstream.

A guest that knows no domain id still knows what it wants: "my storage", "my console".  It sends to the service's
well-known port, and the hypervisor's table of implicit destinations, which the toolstack fills, leads to whoever
serves it.  This file is the whole allocation; nothing else in the project may name such a port by number.

How numbers were given:

* A service that uXen has had at a computed port (base + unit) keeps uXen's base, so that what speaks v4v today finds
  the same number over Argo.  uXen's own list is :data:`UXEN_PORTS`, the precedent.
* Services without a precedent lie in a block from 0xA0000 on, one page of 0x1000 ports each.
* All ports lie below 0x80000000, where the Linux argo driver begins to give out ports of its own accord.

Sources: VirtIO-Argo notes of the Xen community (2020-12, 2021-01: well-known ports and implicit destinations); uXen
v4v drivers; the programs of this project.
"""

from __future__ import annotations

from typing import Final, NamedTuple

AUTOMATIC_PORTS: Final = 0x8000_0000
"""From here on the Linux argo driver picks ports itself; no service may lie there."""


class Service(NamedTuple):
    """One service: `instances` consecutive ports from `base` on, and what is found there."""

    name: str
    base: int
    instances: int
    what: str
    source: str


SERVICES: Final = (
    Service("echo", 7, 1, "sends back what it gets", "builtin:echo; the TCP port of RFC 862"),
    Service("file", 5001, 1, "takes a file", "builtin:file-receive"),
    Service("clipboard", 44445, 2, "clipboard of a person's desktop: requests, then data", "uXen"),
    Service("guest-agent", 44448, 1, "agent inside a guest that its toolstack talks to", "uXen"),
    Service("discovery", 0xA0000, 1, "offers of devices, and their coming and going", "experimental"),
    Service("virtio-msg", 0xA1000, 256, "control channel of virtio-msg bus n", "experimental"),
    Service("console", 0xA2000, 256, "character console n", "experimental"),
    Service("rng", 0xA3000, 16, "source of entropy n", "experimental"),
    Service("vsock", 0xA4000, 1, "all AF_VSOCK traffic of a guest, multiplexed", "experimental"),
    Service("net", 0xC0000, 256, "network interface n", "uXen"),
    Service("storage", 0xD0000, 128, "block storage unit n", "uXen; 128 units are what its bitmap of units holds"),
    Service("display", 0xD1580, 3, "framebuffer: display, commands, cursor", "uXen"),
    Service("hid", 0xE0000, 16, "input devices of type n", "uXen"),
)


class Precedent(NamedTuple):
    """A port of uXen's v4v, whose peer is always the device model.

    `indexed`: the port is a base to which a unit number is added.  `service` is the row of :data:`SERVICES` that
    took it up, "" for none.
    """

    name: str
    port: int
    indexed: bool
    service: str
    source: str


UXEN_PORTS: Final = (
    Precedent("echo", 8888, False, "echo", "uXen echo-common.h"),
    Precedent("shared folders", 44444, False, "", "uXen shared folders"),
    Precedent("clipboard", 44445, False, "clipboard", "uXen clipboard"),
    Precedent("clipboard, second channel", 44446, False, "clipboard", "uXen clipboard"),
    Precedent("guest agent, keyboard", 44448, False, "guest-agent", "uXen guest agent"),
    Precedent("atto agent", 44449, False, "guest-agent", "uXen atto-agent-protocol.h"),
    Precedent("diagnostics", 44461, False, "", "uXen diagnostics"),
    Precedent("atto keyboard", 55560, False, "hid", "uXen atto"),
    Precedent("network interface", 0xC0000, True, "net", "uXen uxennet"),
    Precedent("storage unit", 0xD0000, True, "storage", "uXen uxenstor"),
    Precedent("display", 0xD1580, False, "display", "uXen uxendisp-common.h"),
    Precedent("display commands", 0xD1581, False, "display", "uXen uxendisp-common.h"),
    Precedent("display, third channel", 0xD1582, False, "display", "uXen uxendisp-common.h"),
    Precedent("HID type", 0xE0000, True, "hid", "uXen uxenhid-common.h"),
)

_BY_NAME: Final = {row.name: row for row in SERVICES}


class ServiceError(ValueError):
    """No such service, or it has fewer instances."""


def service(name: str) -> Service:
    """The row of a service.  Raises ServiceError."""
    row = _BY_NAME.get(name)
    if row is None:
        raise ServiceError(f"{name!r} is no well-known service; there are {', '.join(_BY_NAME)}")
    return row


def port_of(name: str, instance: int = 0) -> int:
    """The port of instance `instance` (from 0) of a service.  Raises ServiceError."""
    row = service(name)
    if not 0 <= instance < row.instances:
        raise ServiceError(f"{name} has no instance {instance}: 0 to {row.instances - 1}")
    return row.base + instance


def service_of(port: int) -> tuple[str, int] | None:
    """The service and instance that live at `port`; None when the port is nobody's."""
    for row in SERVICES:
        if row.base <= port < row.base + row.instances:
            return row.name, port - row.base
    return None
