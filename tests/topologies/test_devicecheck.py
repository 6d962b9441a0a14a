"""Rules about devices (topology.md, "A topology"): each has a text that breaks it alone, and its words."""

from __future__ import annotations

import pytest

from tests.topologies.test_crosscheck import tree
from topologies.devicecheck import devices

LAB = """
hypervisors: {hv0: {}, hv1: {parent: hv0}, hv2: {parent: hv1, argo: {mode: %s}}}
guests:
  disk: {on: hv0, program: builtin:blk-server, with: {blank: 1MiB}}
  mine: {on: hv0, program: 'm:f', serves: [net]}
  talks: {on: hv0, program: builtin:echo}
"""
TO_DISK = "{from: app, service: storage, to: disk}"
BLK = "devices: [{type: blk}]"
NOBODY = "no destination says who serves storage 0 for 'app'"

# A guest beside the lab above, what the patch panel says, what is said of it and what the hint is.
SAYINGS = (
    (f"on: hv0, {BLK}", TO_DISK, "", ""),
    (f"on: hv0, {BLK}", "", NOBODY, "{from: app, service: storage, to: disk}"),
    ("on: hv0, devices: [{type: net}]", "", "no destination says who serves net 0 for 'app'",
     "{from: app, service: net, to: mine}"),
    ("on: hv0, devices: [{type: vsock}]", "", "no destination says who serves vsock for 'app'",
     "{from: app, service: vsock, to: GUEST}"),
    ("on: hv0, devices: [{type: blk, service: net, instance: 3}]", "", "no destination says who serves net 3 for 'app'",
     "{from: app, service: net, instance: 3, to: disk}"),
    (f"on: hv0, {BLK}", "{from: app, service: storage, instance: 1, to: disk}", NOBODY,
     "{from: app, service: storage, to: disk}"),
    (f"on: hv0, {BLK}", "{from: disk, service: storage, to: mine}", NOBODY,
     "{from: app, service: storage, to: disk}"),
    (f"on: hv0, {BLK}", "{from: app, source-port: 7, to: disk}", NOBODY,
     "{from: app, service: storage, to: disk}"),
    ("on: hv0, devices: [{type: blk, instance: 1}]", "{from: app, service: storage, instance: 1, to: disk}",
     "'disk' runs builtin:blk-server at storage 0, and this leads to storage 1", "with: {instance: 1}"),
    ("on: hv0, devices: [{type: blk, instance: 1}]",
     f"{{from: app, service: storage, instance: 1, to: disk, port: {0xD0000}}}", "", ""),
    (f"on: hv0, {BLK}", "{from: app, service: storage, to: disk, port: 7}",
     "'disk' runs builtin:blk-server at storage 0, and this leads to echo", ""),
    (f"on: hv0, {BLK}", "{from: app, service: storage, to: talks}",
     "'talks' runs builtin:echo, which serves no blk device", "a program that does: builtin:blk-server"),
    ("on: hv0, devices: [{type: rng, service: storage}]", TO_DISK,
     "'disk' runs builtin:blk-server, which serves no rng device", "a program that does: builtin:rng-server"),
    (f"on: hv0, {BLK}", "{from: app, service: storage, to: mine}", "", ""),
    ("on: hv0, devices: [{type: rng, service: entropy}]", "", "'entropy' is no well-known service", ""),
    ("on: hv0, devices: [{type: vsock, instance: 1}]", "", "vsock has 1 instance, counted from 0", ""),
    ("on: hv0, devices: [{type: rng, instance: 16}]", "", "rng has 16 instances, counted from 0", ""),
    ("on: hv0, devices: [{type: blk, queues: 16}]", TO_DISK, "", ""),
    ("on: hv0, devices: [{type: rng, queues: 2}]", "{from: app, service: rng, to: mine}",
     "rng devices have 1 queue of requests at most", ""),
    (f"on: hv0, {BLK[:-1]}, {{type: blk, instance: 0}}]", TO_DISK, "this guest has storage 0 already, at 7:44", ""),
    # Inside another hypervisor: `up` leads on.
    (f"on: hv1, {BLK}", TO_DISK, "", ""),
    (f"on: hv1, {BLK}", "{from: app, service: storage, to: up}", f"{NOBODY}: that leads to 'hv1' and no further",
     "{from: hv1, service: storage, to: disk}"),
    (f"on: hv1, {BLK}", "{from: app, service: storage, to: up}, {from: hv1, service: storage, to: disk}", "", ""),
    (f"on: hv1, {BLK}", "{from: app, service: storage, to: up}, {from: hv1, service: storage, to: talks}",
     "'talks' runs builtin:echo, which serves no blk device", "a program that does: builtin:blk-server"),
    (f"on: hv1, {BLK}", "{from: app, service: storage, to: up, port: 7}, {from: hv1, service: storage, to: disk}",
     "no destination says who serves echo for 'app': that leads to 'hv1' and no further",
     "{from: hv1, service: echo, to: disk}"),
    (f"on: hv2, {BLK}", "{from: app, service: storage, to: up}, {from: hv2, service: storage, to: up},"
     " {from: hv1, service: storage, to: disk}", "", ""),
    # Malformed, or wrong in a way that others say.
    (f"on: hv9, {BLK}", "", "", ""),
    (f"on: hv0, {BLK}", "{from: app, service: storage, to: up}", "", ""),
    (f"on: hv0, {BLK}", "{from: app, service: storage, to: zz9}", "", ""),
    ("on: hv0, devices: 5", "", "", ""),
    ("on: hv0, devices: [5, {type: disk}, {type: blk, instance: x}, {type: blk, instance: 256}, {service: storage}]",
     "", "", ""),
    ("on: hv0, devices: [{type: blk, queues: 17}]", TO_DISK, "", ""),
)  # fmt: skip


@pytest.mark.parametrize(("guest", "panel", "said", "hint"), SAYINGS)
def test_what_is_said_of_devices(guest: str, panel: str, said: str, hint: str) -> None:
    """A device asks for an instance of a service; the patch panel leads to a guest whose program serves it there."""
    text = f"{LAB % 'own'}  app: {{program: 'm:f', {guest}}}\ndestinations: [{panel}]"
    found = [(one.message, one.hint.removeprefix("destinations: ").strip("[]")) for _, one in devices(tree(text))]
    assert found == ([(said, hint)] if said else [])


def test_guests_whose_hypervisor_serves_no_argo_itself() -> None:
    """One that forwards asks for them as itself; with one that is bypassed (steal), `up` is its parent's."""
    text = f"{LAB}  app: {{on: hv2, program: 'm:f', {BLK}}}\ndestinations: [{{from: @, service: storage, to: disk}}]"
    assert list(devices(tree((text % "forward").replace("@", "hv2")))) == []
    (one,) = (one for _, one in devices(tree((text % "forward").replace("@", "app"))))
    assert one.message == f"{NOBODY}: that leads to 'hv2' and no further"
    assert list(devices(tree((text % "steal").replace("@", "app")))) == []
    up = (text % "steal").replace("to: disk", "to: up").replace("@", "app")
    (one,) = (one for _, one in devices(tree(up)))
    assert one.message == f"{NOBODY}: that leads to 'hv1' and no further"


USES = (
    ("program: builtin:blk-copy", "builtin:blk-copy needs a device of type blk", "devices: [{type: blk}]"),
    ("program: builtin:blk-copy, devices: []", "builtin:blk-copy needs a device of type blk", "devices: [{type: blk}]"),
    ("program: builtin:rng-read, devices: [{type: blk}]",
     "builtin:rng-read needs a device of type rng", "devices: [{type: rng}]"),
    ("program: builtin:blk-copy, devices: [{type: blk}]", "", ""),
    ("program: builtin:blk-copy, with: {device: 0}, devices: [{type: blk}]", "", ""),
    ("program: builtin:blk-copy, with: {device: 1}, devices: [{type: blk}]",
     "this guest has 1 blk device, counted from 0", ""),
    ("program: builtin:blk-copy, with: {device: x}, devices: [{type: blk}]", "", ""),
    ("program: builtin:echo", "", ""),
)  # fmt: skip


@pytest.mark.parametrize(("guest", "said", "hint"), USES)
def test_front_ends_have_their_device(guest: str, said: str, hint: str) -> None:
    """A built-in program that drives a device has one of its type, and argument `device` counts those."""
    text = f"{LAB % 'own'}  app: {{on: hv0, {guest}}}\ndestinations: [{TO_DISK}]"
    found = [(one.message, one.hint) for _, one in devices(tree(text))]
    assert found == ([(said, hint)] if said else [])


MMIO = "devices: [{type: blk, transport: virtio-mmio}]"
WINDOWS = (
    ("{}", "on: hv0", "disk", ""),
    ("{arch: aarch64}", "on: hv0", "disk", ""),
    ("{personality: xen-viridian}", "on: hv0", "disk", ""),
    ("{personality: kvm}", "on: hv0", "disk", "needs a Xen that serves its guests itself: 'hv0' is none"),
    ("{restart: on-failure}", "on: hv0", "disk", "does not bear `restart: on-failure` of 'hv0'"),
    ("{host: lab1}", "on: hv0, host: lab1", "disk", ""),
    ("{host: lab1}", "on: hv0, host: lab2", "disk", "does not bear `host: lab2` of 'app'"),
    ("{}", "on: hv0, restart: on-failure", "disk", "does not bear `restart: on-failure` of 'app'"),
    ("{}", "on: hv0, restart: never", "disk", ""),
    ("{}", "on: hv0", "mortal", "does not bear `restart: on-failure` of 'mortal'"),
    ("{}", "on: hv0", "far", "needs its back end beside it: 'far' is not on 'hv0'"),
    ("{}", "on: hv0", "up", "needs its back end beside it: 'up' is not on 'hv0'"),
    ("{}", "on: hv9", "disk", ""),
    ("{personality: zz9}", "on: hv0", "disk", ""),
    ("{}", "on: hv0", "zz9", ""),
)


@pytest.mark.parametrize(("home", "guest", "to", "said"), WINDOWS)
def test_what_is_said_of_virtio_mmio(home: str, guest: str, to: str, said: str) -> None:
    """A device model is a guest beside its target, under a Xen, and both live as long as the run."""
    text = f"""
hypervisors: {{hv0: {home}, hv1: {{}}}}
guests:
  disk: {{on: hv0, program: "m:f"}}
  mortal: {{on: hv0, restart: on-failure, program: "m:f"}}
  far: {{on: hv1, program: "m:f"}}
  app: {{{guest}, program: "m:f", {MMIO}}}
destinations: [{{from: app, service: storage, to: {to}}}]
"""
    assert [one.message for _, one in devices(tree(text))] == ([f"virtio-mmio {said}"] if said else [])


PAST = "does not reach a guest with a virtio-iommu, as another device of 'app' wants it"
EIGHT = "a guest has 8 register windows for virtio-mmio"
IOMMU = (
    ("dma-iommu", (), ""),
    ("dma-iommu", ("dma-iommu", "grant-map", "grant-copy"), ""),
    ("dma-iommu", ("foreign",), f"'foreign' {PAST}"),
    ("dma-iommu", ("foreign-kept",), f"'foreign-kept' {PAST}"),
    ("dma-iommu", ("",), f"'foreign' {PAST}"),
    ("dma-iommu", ("dma",), f"'dma' {PAST}"),
    ("dma-rings", ("dma-iommu",), f"'dma-rings' {PAST}"),
    ("dma-iommu", ("dma-iommu",) * 6, ""),
    ("dma-iommu", ("grant-map",) * 7, f"{EIGHT}, of which its virtio-iommu takes one"),
    ("grant-map", ("grant-map",) * 7, ""),
    ("dma", ("foreign",) * 8, EIGHT),
)  # fmt: skip


@pytest.mark.parametrize(("first", "others", "said"), IOMMU)
def test_what_is_said_of_a_guest_with_an_iommu(first: str, others: tuple[str, ...], said: str) -> None:
    """docs/ioreq.md: it has one as soon as a device is behind one, at its last window; nothing goes around it."""
    ways = ", ".join(
        f"{{type: blk, transport: virtio-mmio, instance: {at}{f', access: {way}' if way else ''}}}"
        for at, way in enumerate((first, *others))
    )
    lines = ", ".join(f"{{from: app, service: storage, instance: {at}, to: disk}}" for at in range(len(others) + 1))
    text = f"""
hypervisors: {{hv0: }}
guests:
  disk: {{on: hv0, program: "m:f"}}
  app: {{on: hv0, program: "m:f", devices: [{ways}, {{type: rng}}]}}
destinations: [{lines}, {{from: app, service: rng, to: disk}}]
"""
    assert [one.message for _, one in devices(tree(text))] == ([said] if said else [])
