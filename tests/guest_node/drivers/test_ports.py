"""The driver core: ports, and rings that are bound to them."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_node.drivers.rings import AUTO_PORT_BASE, AUTO_PORT_TOP, Rings
from hmx.argo.abi import Address
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, RigCalls, simulate
from tests.doubles.drivers import TYPE, Collector, two

# -- ports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "port"),
    [
        (0, AUTO_PORT_BASE),
        (0x12345678, 0x92345678),
        (0xF0000000, 0xF0000000),
        (0xF0000001, 0xE0000001),
        (0xFFFFFFFF, 0xEFFFFFFF),
        (0x7FFFFFFF, 0xEFFFFFFF),
    ],
)
def test_automatic_ports(bits: int, port: int) -> None:
    """Random, bit 31 set, folded back when above 0xF0000000 (the Linux driver's rule)."""

    class Fixed:
        def getrandbits(self, k: int, /) -> int:
            assert k == 32
            return bits

    rings = Rings(RigCalls(Rig(), 1, 4 << 20), Fixed(), lambda: None)
    assert rings.auto_port() == port


def test_an_automatic_port_in_use_gives_the_one_after_the_highest() -> None:
    """max(used, 0x80000000) + 1; 0xFFFFFFFF is none."""

    class Fixed:
        def getrandbits(self, k: int, /) -> int:
            return 0x80000005

    async def main() -> None:
        rings = Rings(RigCalls(Rig(), 1, 4 << 20), Fixed(), lambda: None)
        await rings.bind(0x80000005, 1, 48, Collector())
        assert rings.auto_port() == 0x80000006
        await rings.bind(0xE0000000, 1, 48, Collector())
        assert rings.auto_port() == 0xE0000001
        await rings.bind(0xFFFFFFFE, 1, 48, Collector())
        with pytest.raises(OSError, match="ENOSPC"):
            rings.auto_port()

    simulate(main)


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_automatic_ports_stay_in_their_range(seed: int) -> None:
    """Every draw lands in [0x80000000, 0xF0000000]."""
    rings = Rings(RigCalls(Rig(), 1, 2 << 20), random.Random(seed), lambda: None)
    assert AUTO_PORT_BASE <= rings.auto_port() <= AUTO_PORT_TOP


# -- binding ---------------------------------------------------------------------------------------------------


def test_a_refused_ring_gives_its_pages_back() -> None:
    """Whatever the hypervisor answers, a failed bind leaves neither pages nor the port behind."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        calls = rig.guests[1]
        before = calls.pages.free_pages()
        for partner, ring_len, errno in ((99, 4096, Errno.ESRCH), (1, 40, Errno.EINVAL), (1, 1 << 30, Errno.ENOMEM)):
            with pytest.raises(OSError) as caught:
                await driver.rings.bind(5, partner, ring_len, Collector())
            assert caught.value.errno == errno
        assert calls.pages.free_pages() == before
        ring = await driver.rings.bind(5, 1, 4096, Collector())
        await driver.rings.unbind(ring)
        await driver.rings.unbind(ring)
        assert calls.pages.free_pages() == before
        assert calls.counts["unregister_ring"] == 1

    simulate(main)


def test_a_cancelled_bind_leaves_nothing() -> None:
    """The hypercall ends, and the ring that nobody wants any more is unregistered again."""

    async def main() -> None:
        rig = Rig(3)
        rig.suspend = 0.9
        driver = rig.driver(1)
        before = rig.guests[1].pages.free_pages()
        for delay in (0.0, 0.0001, 0.001):
            task = asyncio.create_task(driver.rings.bind(5, 1, 4096, Collector()))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        rig.suspend = 0.0
        assert list(driver.rings) == []
        assert rig.guests[1].pages.free_pages() == before
        argo = rig.guests[1].domain.argo
        assert argo is not None
        assert argo.rings == {}

    simulate(main)


def test_what_lies_in_a_ring_at_the_end_is_handed_over() -> None:
    """Unread messages remain readable after unregistering (Xen leaves guest memory alone): none is lost."""

    async def main() -> None:
        rig = Rig()
        driver = rig.driver(1)
        sink = Collector()
        ring = await driver.rings.bind(5, 1, 4096, sink)
        for index in range(5):
            await driver.calls.sendv(Address(5, 1), 5, (bytes([index]),), TYPE)
        await driver.rings.unbind(ring)
        assert sink.got == [bytes([index]) for index in range(5)]

    simulate(main)


def test_a_ring_whose_partner_died_can_be_unbound() -> None:
    """Xen deletes a single-partner ring with its partner, so unregister answers -ENOENT: the pages come back anyway."""

    async def main() -> None:
        rig = Rig()
        near, _ = await two(rig)
        before = rig.guests[1].pages.free_pages()
        ring = await near.rings.bind(5, 2, 4096, Collector())
        rig.kill(2)
        await near.rings.unbind(ring)
        assert rig.guests[1].pages.free_pages() == before

    simulate(main)
