"""VirtIO-Argo when one of the two goes: the back end parks and resumes, the front end is told and revives.

Source: docs/virtio-argo.md, life and death; Xen common/argo.c: a dead domain's rings are gone, sendv to them answers
-ECONNREFUSED, to a domain that is no more -ESRCH, and nobody is told of it by a signal.
"""

from __future__ import annotations

import asyncio

import pytest

from guest_node.virtio.argo_front import connect
from guest_node.virtio.frontend import DeviceBroken
from hmx.argo.abi import DOMID_ANY, Address, Op
from hmx.argo.calls import Outgoing
from hmx.errno import Errno
from hmx.virtio.argo import BYE, MESSAGE_TYPE_VIRTIO, Variant, pack_bye
from hmx.virtio.msg import Message, MsgType, pack_message
from hmx.virtio.msg_client import Caller
from tests.doubles.argo_rig import simulate
from tests.guest_node.virtio.argo_world import PORT, EchoModel, KeepingModel, World, ask, live


def kept(world: World, index: int = -1) -> KeepingModel:
    model = world.models[index]
    assert isinstance(model, KeepingModel)
    return model


async def revived(world: World, domid: int) -> None:
    """The domain's process was started again: a new domain, here with the same id."""
    del world.drivers[domid]
    world.rig.domains.remove(domid)
    await world.driver(domid)


async def kill(world: World, domid: int) -> None:
    """The domain's process dies in the middle of whatever it does."""
    driver = world.drivers[domid]
    world.rig.kill(domid)
    driver.calls.refuse = lambda op, detail: -Errno.ESRCH  # type: ignore[attr-defined]  # nobody runs there any more
    driver.end(RuntimeError("this guest is dead"))
    assert driver._pump is not None
    await asyncio.wait([driver._pump])
    assert driver.failure is not None


@pytest.mark.parametrize("answer", [False, True])
def test_a_front_end_that_dies_is_parked(answer: bool) -> None:
    """Its models are reset and its state is dropped: when an answer is refused, or by looking after it."""

    async def main() -> None:
        world = World()
        backend = await world.serve(KeepingModel)
        _, (_, (queue,)) = await world.device()
        for _ in range(3):
            queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        requests = list(kept(world).kept)
        assert len(requests) == 3 and backend.clients
        await kill(world, 1)
        if answer:
            requests[0].complete(b"x")
            await asyncio.sleep(0.05)
        else:
            await asyncio.sleep(2)
        assert world.left == [(1, "gone")] and not backend.clients
        assert kept(world).resets == 2, "the driver's own reset, and now"
        requests[1].complete(b"late")  # what is completed later does nothing
        await asyncio.sleep(1)
        assert not backend.faults
        assert [ring.partner for ring in world.drivers[2].rings] == [DOMID_ANY]

    simulate(main)


@pytest.mark.parametrize("noticed", [False, True])
def test_a_front_end_that_was_born_again_resumes(noticed: bool) -> None:
    """A new HELLO, even from an id whose ring here is the dead one's; whether its death was noticed or not."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        _, (_, (queue,)) = await world.device()
        assert await ask(queue, b"a", 1) == b"\x3b"
        await kill(world, 1)
        if noticed:
            await asyncio.sleep(2)
        await revived(world, 1)
        _, (_, (queue,)) = await world.device()
        assert await ask(queue, bytes(100_000), 1) == b"\x5a"
        await asyncio.sleep(2)
        assert [client.domid for client in backend.clients] == [1]
        assert sorted(ring.partner for ring in world.drivers[2].rings) == [1, DOMID_ANY]
        assert not backend.shared

    simulate(main)


def test_a_reset_forgets_what_was_under_way() -> None:
    """VIRTIO 2.4: after a reset the device has nothing; what the model completes later reaches nobody."""

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device()
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        (old,) = list(kept(world).kept)
        await transport.reset()
        with pytest.raises(DeviceBroken):
            await future
        with pytest.raises(DeviceBroken):
            await queue.kick()
        _, (again,) = await live(transport)
        old.complete(b"old")
        future = again.submit((b"def",), 10)
        await again.kick()
        await asyncio.sleep(0.01)
        (new,) = kept(world).kept
        assert bytes(new.readable) == b"def" and not future.done()
        new.complete(b"new")
        assert await future == b"new"

    simulate(main)


@pytest.mark.parametrize("variant", list(Variant))
def test_a_back_end_that_dies_breaks_its_devices(variant: Variant) -> None:
    """Requests under way end with an error; a reset finds nobody, later somebody, and then everything works again."""

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device(variant=variant)
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        told: list[int] = []
        transport.on_config = lambda: told.append(1)
        await kill(world, 2)
        with pytest.raises(DeviceBroken) as broken:
            await asyncio.wait_for(future, 5)
        assert broken.value.errno in (Errno.ECONNREFUSED, Errno.ESRCH)
        assert told
        with pytest.raises(DeviceBroken):
            queue.submit((b"abc",), 10)
        with pytest.raises(DeviceBroken):
            await transport.status()
        with pytest.raises(DeviceBroken):
            await transport.reset()
        await revived(world, 2)
        with pytest.raises(DeviceBroken) as broken:
            await transport.reset()
        assert broken.value.errno == Errno.ECONNREFUSED
        await world.serve(EchoModel)
        _, (queue,) = await live(transport)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


def test_a_back_end_that_ends_says_so() -> None:
    """BYE: nobody has to find out by waiting.  A program that serves that port anew is found by a reset."""

    async def main() -> None:
        world = World()
        backend = await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device()
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await backend.close()
        with pytest.raises(DeviceBroken):
            await asyncio.wait_for(future, 0.1)
        assert world.left == [(1, "closed")] and kept(world).resets
        assert not list(world.drivers[2].rings)
        await world.serve(EchoModel)
        _, (queue,) = await live(transport)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


def test_a_back_end_that_forgot_us_is_noticed() -> None:
    """Another program serves the port now and knows nothing of us: the first message to it is answered so."""

    async def main() -> None:
        world = World()
        backend = await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device()
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        backend._forget(backend.clients[0], "closed")  # without a word
        with pytest.raises(DeviceBroken):
            await asyncio.wait_for(future, 5)
        _, (queue,) = await live(transport)
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        backend._forget(backend.clients[0], "closed")
        second = queue.submit((b"abc",), 10)
        await queue.kick()
        with pytest.raises(DeviceBroken):
            await asyncio.wait_for(second, 0.5)
        assert future.done()

    simulate(main)


def test_a_back_end_that_says_nothing_is_given_up() -> None:
    """A request has a time limit; with chains under way silence leads to a question, and that has one, too."""

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device(timeout=3.0)
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(10)
        assert not future.done(), "a back end that answers a question lives, however long a request takes"
        backend = world.backend
        assert backend is not None
        backend.receive = lambda *_: None  # type: ignore[method-assign]
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeviceBroken) as broken:
            await future
        assert broken.value.errno == Errno.ETIMEDOUT and "PING" in str(broken.value)
        assert asyncio.get_running_loop().time() - start < 6
        with pytest.raises(DeviceBroken):
            await transport.status()

    simulate(main)


def test_an_idle_connection_costs_nothing() -> None:
    """Nothing under way: no question is sent, however long that lasts."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        transport, (_, (queue,)) = await world.device()
        await ask(queue, b"a", 1)
        await asyncio.sleep(2)
        before = transport.bus.traffic.sendv, backend.traffic.sendv  # type: ignore[attr-defined]
        await asyncio.sleep(100)
        assert (transport.bus.traffic.sendv, backend.traffic.sendv) == before  # type: ignore[attr-defined]

    simulate(main)


def test_closing_says_goodbye() -> None:
    """The back end hears of it at once, the ring is gone, and closing again does nothing."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        transport, (_, (queue,)) = await world.device()
        await transport.close()
        await asyncio.sleep(0.01)
        assert world.left == [(1, "bye")] and not backend.clients
        assert not list(world.drivers[1].rings)
        await transport.close()
        with pytest.raises(DeviceBroken):
            queue.submit((b"a",), 1)
        with pytest.raises(DeviceBroken):
            await transport.reset()

    simulate(main)


def test_a_guest_that_ends_closes_what_it_left_open() -> None:
    """Both ends stand among the driver's sockets."""

    async def main() -> None:
        world = World()
        await world.serve()
        await world.device()
        await world.drivers[1].close()
        await asyncio.sleep(0.01)
        assert world.left == [(1, "bye")]
        await world.drivers[2].close()
        assert not list(world.drivers[2].rings)

    simulate(main)


def test_the_end_of_the_hypervisor_ends_everything() -> None:
    """Whoever waits is told; nothing hangs."""

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        _, (_, (queue,)) = await world.device()
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        for driver in world.drivers.values():
            driver.end(ConnectionResetError("no hypervisor"))
        with pytest.raises(DeviceBroken):
            await asyncio.wait_for(future, 0.1)
        await asyncio.sleep(0.01)
        assert world.left == [(1, "closed")]

    simulate(main)


def test_who_says_hello_again_is_a_new_front_end() -> None:
    """The same address, a connection opened anew: the old models are reset, the old queues are nobody's."""

    async def main() -> None:
        world = World()
        backend = await world.serve(KeepingModel)
        transport, (_, (queue,)) = await world.device()
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        await asyncio.sleep(0.01)
        bus = transport.bus
        bus.fail(OSError(int(Errno.EIO), "for a test"))  # type: ignore[attr-defined]
        assert future.done()
        _, (queue,) = await live(transport)
        assert world.left == [(1, "replaced")] and len(backend.clients) == 1
        assert kept(world, 0).resets == 2 and not kept(world, 0).kept

    simulate(main)


def test_a_front_end_that_takes_no_answers_is_dropped() -> None:
    """Its ring is full and stays full: nothing is queued for it without bound, and nobody else waits for it."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        driver = await world.driver(1)
        await world.driver(3)
        transport = await connect(driver, Address(PORT, 2), ring_len=512)
        ring = next(iter(driver.rings))
        ring.held = True  # the front end does not look at its ring any more
        sends = world.rig.guests[1]
        caller = Caller(0)
        for _ in range(200):
            message = caller.get_config(0, 32).message
            port = transport.bus.port  # type: ignore[attr-defined]
            assert await sends.sendv(Address(PORT, 2), port, (message,), MESSAGE_TYPE_VIRTIO) > 0
            await asyncio.sleep(0.001)
        assert (1, "refused") in world.left and not [c for c in backend.clients if c.domid == 1]
        _, (_, (queue,)) = await world.device(3)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)


def test_coming_and_going_leaves_nothing_behind() -> None:
    """One session after another, whatever is under way while the next begins."""

    async def main() -> None:
        world = World()
        backend = await world.serve()
        await world.driver(1)
        world.rig.suspend = 0.5
        for _ in range(5):
            transport, (_, (queue,)) = await world.device()
            assert await ask(queue, b"a", 1) == b"\x3b"
            await transport.close()
        await asyncio.sleep(1)
        assert not backend.clients and len(world.left) == 5
        assert [ring.partner for ring in world.drivers[2].rings] == [DOMID_ANY]

    simulate(main)


def test_an_error_of_sendv_that_says_nothing_ends_the_connection() -> None:
    """-EIO (experimental: a peer behind a link that broke): nobody knows what arrived, so nothing goes on."""

    async def main() -> None:
        world = World()
        await world.serve()
        _, (_, (queue,)) = await world.device()
        world.rig.guests[1].refuse = lambda op, detail: -Errno.EIO if op is Op.SENDV else None
        future = queue.submit((b"a",), 1)
        with pytest.raises(DeviceBroken):
            await queue.kick()
        with pytest.raises(DeviceBroken):
            await future

    simulate(main)


@pytest.mark.parametrize("kick", [False, True])
def test_an_implicit_destination_that_leads_elsewhere(kick: bool) -> None:
    """The toolstack plugged in another back end, or the same was started again under another id: it does not know us.

    Its word alone is not enough, since anybody could say so: it has to answer a question.
    """

    async def main() -> None:
        world = World()
        await world.serve(KeepingModel)
        await world.driver(1)
        calls = world.rig.guests[1]
        send = calls._sendv
        leads = 2

        def led(message: Outgoing) -> int:
            return send(message._replace(dst=Address(message.dst.port, leads)))

        calls._sendv = led  # type: ignore[method-assign]
        transport = await connect(world.drivers[1], Address(PORT, DOMID_ANY))
        _, (queue,) = await live(transport)
        future = queue.submit((b"abc",), 10)
        await queue.kick()
        bye = pack_message(Message(MsgType.BUS, BYE, 0, 0, pack_bye(Errno.ENOTCONN)))
        stranger = await world.driver(5)
        port = transport.bus.port  # type: ignore[attr-defined]
        for _ in range(3):
            await stranger.calls.sendv(Address(port, 1), PORT, (bye,), MESSAGE_TYPE_VIRTIO)
        await asyncio.sleep(0.1)
        assert not future.done(), "a stranger's word ends nothing"
        await world.serve(EchoModel, domid=4)
        leads = 4
        if kick:
            second = queue.submit((b"abc",), 10)
            await queue.kick()
        with pytest.raises(DeviceBroken) as broken:
            await asyncio.wait_for(future, 0.1 if kick else 2.5)
        assert broken.value.errno == Errno.ENOTCONN
        if kick:
            assert second.done()
        _, (queue,) = await live(transport)
        assert await ask(queue, b"a", 1) == b"\x3b"

    simulate(main)
