"""Parts of the virtio-mmio transport by themselves: lines, the second look at a ring, features that are not shown."""

from __future__ import annotations

from typing import Any

from guest_node.virtio.mmio_back import OFFERED, MmioDevice
from guest_node.virtio.models.rng import RngModel
from hmx.virtio.features import Feature, has
from hmx.virtio.mmio import OFFSETS, Interrupt
from tests.guest_node.virtio.mmio_world import World, simulate


class Ring:
    """An end of a queue that has nothing; something came while it said that it wants to be told."""

    def __init__(self) -> None:
        self.looks = 0
        self.came = [True, False]

    def pop(self) -> None:
        self.looks += 1

    take = pop

    def want_notifications(self, wanted: bool) -> bool:
        assert wanted
        return self.came.pop(0)

    want_interrupts = want_notifications


def test_a_cause_that_remains_after_an_acknowledgement_is_an_edge() -> None:
    """VIRTIO 1.4, 4.2: the line is a level; an edge-like channel is triggered again (both bits set, one acknowledged).
    A second cause while the line is up triggers nothing.
    """
    levels: list[bool] = []
    access: Any = object()
    device = MmioDevice(RngModel(bytes), access, levels.append, lambda: None)
    registers = device._registers
    registers._notify(0)
    registers._notify(None)
    assert levels == [True]
    device.store(OFFSETS["InterruptACK"], 4, Interrupt.USED)
    assert levels == [True, False, True]
    device.store(OFFSETS["InterruptACK"], 4, Interrupt.CONFIG)
    assert levels == [True, False, True, False]


def test_both_ends_look_again_after_they_asked_to_be_told() -> None:
    """VIRTIO 1.4, 2.7.7, 2.7.10: event, barrier, index once more."""

    async def main(world: World) -> None:
        await world.boot()
        device = world.plug(RngModel(bytes))
        transport = await world.open()
        from guest_node.virtio.drivers.rng import RngDevice

        rng = RngDevice(transport)
        await rng.start()
        for queue, look in ((device._queues[0], "run"), (transport._queues[0], "collect")):
            ring: Any = Ring()
            name = "_ring" if look == "run" else "_queue"
            real = getattr(queue, name)
            setattr(queue, name, ring)
            getattr(queue, look)()
            assert ring.looks == 2
            setattr(queue, name, real)

    simulate(0, main)


def test_without_grants_nobody_accepts_addresses_that_the_platform_translates() -> None:
    """ACCESS_PLATFORM is shown to a driver only if this guest can give such addresses."""

    async def main(world: World) -> None:
        await world.boot()
        world.plug(RngModel(bytes), features=OFFERED | 1 << Feature.ACCESS_PLATFORM)
        assert not has(await (await world.open()).device_features(), Feature.ACCESS_PLATFORM)
        assert has(await (await world.open(grants=True)).device_features(), Feature.ACCESS_PLATFORM)

    simulate(0, main)
