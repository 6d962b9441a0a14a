"""net-switch: the back end of network devices, a learning Ethernet switch with a port for each front end.

with: {tap: NAME, service: net, instance: 0, sessions: 1, ring: 1MiB, from: GUEST}

Each front end gets an address of its own, made from its domain id.  `tap` is a TAP interface of the host that becomes
one more port, not in virtual time; `ip tuntap add NAME mode tap user USER` makes one.  `sessions` is how many front
ends say goodbye before the program ends, 0 is without end.
"""

from __future__ import annotations

import errno
from typing import Final

from guest_node.files import Interface
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.back import ARGUMENTS, Front, serve_until_left
from guest_node.programs.ethernet import shown
from guest_node.programs.patience import give_up
from guest_node.virtio.models.net import NetModel
from guest_node.virtio.models.switch import Frame, Port, Switch

PREFIX: Final = b"\x02ar"
"""Locally administered; a number among the front ends of a domain follows, then its domain id."""
COUNTED: Final = ("frames_in", "frames_out", "flooded", "dropped")


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended, 1 when the port cannot be served or there is no such interface."""
    arguments = guest.arguments
    args.check_keys(arguments, "tap", *ARGUMENTS)
    switch = Switch(guest.time)
    models: dict[Front, NetModel] = {}
    ports: list[Port] = []

    def plug(front: Front) -> NetModel:
        mac = _address(front.domid, {model.mac for model in models.values()})
        model = models[front] = NetModel(switch, mac)
        ports.append(model.port)
        guest.log(f"{shown(mac)} is domain {front.domid}")
        return model

    def unplug(front: Front) -> None:
        model = models.pop(front, None)
        if model is not None:
            model.close()

    def settle() -> None:
        counters = [port.counters for port in ports]
        sums = {name: sum(getattr(each, name) for each in counters) for name in COUNTED}
        guest.result(ports=len(ports), **sums)

    tap: Interface | None = None
    try:
        if "tap" in arguments:
            tap = _tap(guest, switch, args.text(arguments, "tap"), ports)
    except OSError as exc:
        return give_up(guest, "no TAP interface", exc)
    try:
        return await serve_until_left(guest, "net", plug, leave=unplug, settle=settle)
    finally:
        if tap is not None:
            tap.close()


def _address(domid: int, taken: set[bytes]) -> bytes:
    """A free address for a front end of domain `domid`.  Raises OSError where it has all of them."""
    for number in range(256):
        mac = PREFIX + bytes((number,)) + domid.to_bytes(2, "big")
        if mac not in taken:
            return mac
    raise OSError(errno.EADDRNOTAVAIL, f"domain {domid} has 256 network devices here")


def _tap(guest: Guest, switch: Switch, name: str, ports: list[Port]) -> Interface:
    """The host's interface `name`, at a port of the switch."""

    def deliver(frame: Frame) -> bool:
        return tap.send(frame)

    port = switch.attach(name, deliver)
    tap = guest.files.open_tap(name, port.send)
    ports.append(port)
    return tap
