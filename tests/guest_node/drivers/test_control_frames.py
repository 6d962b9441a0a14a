"""The driver core: control frames keep their order, have a limit, and are polled where nobody signals.

Source: the interrupt and notify passes of OpenXT's Linux Argo driver, over Xen common/argo.c (notify, pending queue).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from guest_node.drivers.controls import CONTROL_LIMIT
from guest_node.drivers.core import TICK
from hmx.argo.abi import Address, Op
from hmx.argo.calls import Outgoing
from hmx.errno import Errno
from tests.doubles.argo_rig import Rig, simulate
from tests.doubles.drivers import TYPE, Collector, two


def test_control_frames_keep_their_order_and_have_a_limit() -> None:
    """Queued frames go out in order when room appears; equal ones once; answers beyond the limit are dropped."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        failures: list[tuple[int, bool]] = []

        def post(number: int, own: bool = False) -> None:
            frame = number.to_bytes(8, "little")
            near.controls.post(Outgoing(to, 9, (frame,), TYPE), (lambda e, w: failures.append((e, w))) if own else None)

        for number in range(CONTROL_LIMIT + 50):
            post(number)
            post(number)
        post(1000, own=True)
        assert len(near.controls) == CONTROL_LIMIT + 1
        assert near.controls.dropped == CONTROL_LIMIT + 100
        await asyncio.sleep(TICK / 2)
        sink.limit = 1 << 30
        far.resume(ring)
        pending = near.controls.pending(to)
        assert pending is not None
        await pending
        await asyncio.sleep(0.1)
        assert [int.from_bytes(data, "little") for data in sink.got[1:]] == [*range(CONTROL_LIMIT), 1000]
        assert near.controls.pending(to) is None
        assert failures == []

    simulate(main)


@pytest.mark.parametrize("waited", [False, True])
def test_who_queued_a_frame_learns_that_its_ring_is_gone(waited: bool) -> None:
    """At the first try, or after a wait for room; frames behind it share its fate."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        to = Address(5, 2)
        if waited:
            ring = await far.rings.bind(5, 1, 48, Collector(limit=0))
            await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        failures: list[tuple[int, bool]] = []
        for number in range(2):
            frame = bytes([number] * 8)
            near.controls.post(Outgoing(to, 9, (frame,), TYPE), lambda e, w: failures.append((e, w)))
        await asyncio.sleep(0.1)
        if waited:
            await far.rings.unbind(ring)
            await asyncio.sleep(2 * TICK)
        assert failures == [(Errno.ECONNREFUSED, waited)] * 2
        assert near.controls.pending(to) is None

    simulate(main)


def test_ebusy_is_polled() -> None:
    """-EBUSY from sendv means that no wake-up will come: the frame is tried again, at growing intervals."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector()
        await far.rings.bind(5, 1, 4096, sink)
        tries: list[float] = []

        def busy(op: Op, detail: Any) -> int | None:
            if op is not Op.SENDV or len(tries) >= 10:
                return None
            tries.append(asyncio.get_running_loop().time())
            return -Errno.EBUSY

        rig.guests[1].refuse = busy
        near.controls.post(Outgoing(Address(5, 2), 9, (bytes(8),), TYPE))
        await asyncio.sleep(5)
        assert sink.got == [bytes(8)]
        gaps = [round((b - a) * 1000) for a, b in itertools.pairwise(tries)]
        assert gaps == [1, 2, 4, 8, 16, 32, 64, 100, 100]

    simulate(main)


def test_a_signal_during_a_refused_control_frame_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room may be signalled between the refusal of a frame and the booking of its wait: then it is asked about."""

    async def main() -> None:
        rig = Rig()
        near, far = await two(rig)
        calls = rig.guests[1]
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        to = Address(5, 2)
        await near.calls.sendv(to, 1, (bytes(16),), TYPE)
        real = calls.sendv_linked

        async def slow(messages: Sequence[Outgoing]) -> list[int]:
            results = await real(messages)
            if results[0] == -Errno.EAGAIN:
                sink.limit = 1 << 30
                far.resume(ring)
                await asyncio.sleep(0.01)  # the signal comes and goes, and the pump sleeps again
            return results

        monkeypatch.setattr(calls, "sendv_linked", slow)
        near.controls.post(Outgoing(to, 9, (b"RST_____",), TYPE))
        near._kicked = False  # the frame is flushed by its own task, not by the pump
        await near.controls.flush(to)
        await asyncio.sleep(TICK / 2)
        assert sink.got[1:] == [b"RST_____"]

    simulate(main)


def test_close_sends_what_is_queued_but_not_for_ever() -> None:
    """`close` waits for room for queued frames, at most `linger` seconds."""

    async def main(room: bool) -> float:
        rig = Rig()
        near, far = await two(rig)
        sink = Collector(limit=0)
        ring = await far.rings.bind(5, 1, 48, sink)
        await near.calls.sendv(Address(5, 2), 1, (bytes(16),), TYPE)
        near.controls.post(Outgoing(Address(5, 2), 9, (b"RST_____",), TYPE))
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        if room:
            sink.limit = 5
            loop.call_later(1, far.resume, ring)
        before = loop.time()
        await near.close(linger=3)
        took = loop.time() - before
        await asyncio.sleep(0.1)
        assert (b"RST_____" in sink.got) == room
        return took

    assert simulate(main, True) == pytest.approx(1.0, abs=0.1)
    assert simulate(main, False) == pytest.approx(3.0, abs=0.1)
