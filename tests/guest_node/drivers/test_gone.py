"""The hypervisor dies in the middle of traffic: whatever the guest's tasks wait for ends, and nothing is left running.

Rule: contracts 8 (a guest learns of the death by the end of its attach connection); source: `Vcpu.stop` and the cancel
that guest_node.node does then.  In virtual time, at many moments: what only a timer ends counts as a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest

from guest_node import life
from guest_node.config import GuestConfig
from guest_node.guest import Guest
from guest_node.life import Ending, World, live
from guest_node.vcpu import LATE, LOOK_AGAIN, Trap, Vcpu
from hmx.argo.abi import Address
from hmx.trap import Kind, Outcome
from hmx.vcpu_area import AREA_SIZE, GuestSide, HypervisorSide
from tests.doubles.argo_rig import Rig, simulate
from tests.doubles.files import MemoryFiles
from tests.doubles.machine import Machine
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, SharedMemory

MEMORY = 4 << 20
PORT = 7
SERVER, CLIENT = 1, 2
Program = Callable[[Guest], Awaitable[None]]


class Gone(ConnectionError):
    """As guest_node.node.HypervisorGone."""


class Lab:
    """Guests whose hypervisor can die."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = InlineMachine(Machine().core, self.random)
        self.vcpus: list[Vcpu] = []
        self.lives: list[asyncio.Task[Ending]] = []
        self.gone: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def guest(self, domid: int, program: str) -> None:
        memory = SharedMemory(MEMORY)
        (area,), (bells,) = self.machine.create_domain(domid, memory, 1, name=f"g{domid}")
        vcpu = Vcpu(0, GuestSide(area), bells)
        self.vcpus.append(vcpu)
        ready = asyncio.Event()
        world = World(
            lambda record: ready.set() if record == ["ready"] else None, lambda _: None, MemoryFiles(),
            random.Random(domid), random.Random(domid), self.gone,
        )  # fmt: skip
        config = GuestConfig(
            "lab", f"g{domid}", "", "", b"", 1, "hv0", domid, MEMORY, 1, "x86_64", "auto", "auto", program, {}, {}, 0,
            "", "",
        )  # fmt: skip
        self.lives.append(asyncio.create_task(live(config, [vcpu], memory.guest, world)))
        await ready.wait()

    def die(self) -> None:
        """From here on no frame is taken and no bell rings."""
        self.machine._turn = lambda: 0  # type: ignore[method-assign]
        self.machine._schedule = lambda: None  # type: ignore[method-assign]
        self.machine._active.clear()

    def tell(self, cancel: bool) -> None:
        """Each guest learns of it, as from its shell, which cancels the program too."""
        gone = Gone("the hypervisor is gone")
        for vcpu in self.vcpus:
            vcpu.stop(gone)
        self.gone.set_result(gone)
        if cancel:
            for life in self.lives:
                life.cancel()


async def serves(guest: Guest) -> None:
    async def one(connection: object) -> None:
        with contextlib.suppress(OSError):
            while data := await connection.receive():  # type: ignore[attr-defined]
                await connection.send(data)  # type: ignore[attr-defined]

    async with await guest.argo.listen(PORT, ring=8128) as listener, asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(one(await listener.accept()))


async def streams(guest: Guest) -> None:
    """Connections that come and go, each with more on its way than fits the ring."""

    async def one() -> None:
        while True:
            try:
                async with await guest.argo.connect(SERVER, PORT, ring=8128) as connection:
                    sending = asyncio.create_task(connection.send(bytes(20000)))
                    try:
                        await connection.receive_exactly(guest.random.randrange(1, 15000))
                    finally:
                        with contextlib.suppress(OSError):
                            await sending
            except ConnectionRefusedError:
                await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(one())


async def takes(guest: Guest) -> None:
    async with await guest.argo.datagram(PORT, ring=4032) as socket:
        while True:
            await socket.receive()


async def floods(guest: Guest) -> None:
    """More tasks than there are slots for frames, which make calls of every kind."""

    async def one() -> None:
        async with await guest.argo.datagram(ring=1024) as socket:
            to = Address(PORT, SERVER)
            while True:
                with contextlib.suppress(ConnectionRefusedError, BlockingIOError):
                    await socket.send_to(bytes(500), to, wait=False)
                await guest.driver.probe(to)
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(70):
            tasks.create_task(one())


async def hoards(guest: Guest) -> None:
    """A ring that is never read."""
    async with await guest.argo.datagram(PORT, ring=1024), await guest.argo.datagram(PORT + 1) as other:
        await other.receive()


async def fills(guest: Guest) -> None:
    async with await guest.argo.datagram() as socket:
        while True:
            await socket.send_to(bytes(300), Address(PORT, SERVER))


async def idles(guest: Guest) -> None:
    async with await guest.argo.listen(PORT) as listener:
        await listener.accept()


async def connects(guest: Guest) -> None:
    """To somebody who never accepts."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            await guest.argo.connect(SERVER, PORT)
        await asyncio.sleep(0.001)


async def waits(guest: Guest) -> None:
    async with await guest.argo.listen(PORT), await guest.argo.datagram(PORT + 1) as socket:
        await socket.receive()


async def stubborn(guest: Guest) -> None:
    """Takes every error for one that passes."""
    async with await guest.argo.datagram() as socket:
        while True:
            with contextlib.suppress(OSError):
                await socket.send_to(b"x", Address(PORT, SERVER), wait=False)
            await asyncio.sleep(0)


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (serves, streams, takes, floods, hoards, fills, idles, waits, connects, stubborn)
}


@pytest.fixture
def few_objects() -> Iterator[None]:
    """`one_death` collects garbage: only of what came since, not of all that other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("cancel", [True, False])
@pytest.mark.parametrize(
    ("server", "client", "moments"),
    [
        ("serves", "streams", 25), ("takes", "floods", 3), ("hoards", "fills", 20), ("idles", "idles", 20),
        ("waits", "connects", 20),
    ],
)  # fmt: skip
def test_everything_ends(server: str, client: str, moments: int, cancel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At many moments: within no time at all both guests' lives have ended, and no task of theirs is left.

    Without the cancel too: whoever waits for the hypervisor, or for what only it can bring about, is told.
    """
    monkeypatch.setattr(life, "load", lambda program, _: PROGRAMS[program])
    for seed in range(moments):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(one_death(seed, server, client, cancel))


@pytest.mark.usefixtures("few_objects")
def test_a_cancel_is_not_lost_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that goes on after every error ends when it is cancelled, though its call failed meanwhile."""
    monkeypatch.setattr(life, "load", lambda program, _: PROGRAMS[program])
    for seed in range(20):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(one_death(seed, "takes", "stubborn", True))


async def one_death(seed: int, server: str, client: str, cancel: bool) -> None:
    lab, loop = Lab(seed), asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await lab.guest(SERVER, server)
    await lab.guest(CLIENT, client)
    for _ in range(lab.random.randrange(20, 200)):
        await asyncio.sleep(0)
    lab.die()
    for _ in range(lab.random.randrange(10)):
        await asyncio.sleep(0)
    begin = loop.time()
    lab.tell(cancel)
    _, pending = await asyncio.wait(lab.lives, timeout=10)
    assert not pending, f"seed {seed}"
    assert loop.time() == begin, f"seed {seed}: after {loop.time() - begin:.1f} s"
    for ended in lab.lives:
        assert ended.cancelled() or ended.result().code, f"seed {seed}"
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"seed {seed}: {left}"
    lab.lives.clear()
    gc.collect()
    assert not complaints, f"seed {seed}: {complaints}"


def test_a_socket_that_fails_to_close_leaves_no_pump() -> None:
    """Whatever stops `close` early, the driver's own tasks end."""

    class Stuck:
        async def close(self) -> None:
            raise OSError("cannot")

    async def main() -> None:
        driver = Rig().driver(1)
        await driver.start()
        driver.open_sockets[Stuck()] = None
        with pytest.raises(OSError, match="cannot"):
            await driver.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


class NoBells:
    """A platform on which nothing happens by itself."""

    def ring(self) -> None: ...
    def yield_cpu(self) -> None: ...
    def wait_briefly(self) -> None: ...
    def pause(self) -> None: ...
    def on_bell(self, handler: Callable[[], None]) -> None: ...


def test_a_chain_of_which_the_first_frame_was_answered() -> None:
    """The answer and the end come in one turn of the loop: the task asks for the second answer after the end."""

    async def main() -> None:
        area = memoryview(bytearray(AREA_SIZE))
        hypervisor = HypervisorSide(area)
        vcpu = Vcpu(0, GuestSide(area), NoBells())
        vcpu.start()
        chain = asyncio.create_task(vcpu.trap_chain([Trap(Kind.CPUID, ()), Trap(Kind.CPUID, ())]))
        await asyncio.sleep(0)
        hypervisor.complete(hypervisor.take()[0][0], Outcome.DONE)
        hypervisor.publish()
        vcpu._collect()
        vcpu.stop(Gone("the hypervisor is gone"))
        with pytest.raises(Gone):
            await asyncio.wait_for(chain, 1)
        while vcpu.area.room():
            vcpu.area.submit(Kind.CPUID, ())
        with pytest.raises(Gone):
            await asyncio.wait_for(vcpu.trap(Trap(Kind.CPUID, ())), 1)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_a_cancelled_task_learns_what_became_of_its_trap() -> None:
    """An instruction cannot be taken back: the task goes on waiting, and is cancelled at its next await."""

    async def main() -> list[object]:
        area = memoryview(bytearray(AREA_SIZE))
        side = HypervisorSide(area)
        vcpu = Vcpu(0, GuestSide(area), NoBells())
        vcpu.start()
        seen: list[object] = []

        async def program() -> None:
            seen.append((await vcpu.trap(Trap(Kind.VMCALL, (1,)))).regs)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        task = asyncio.create_task(program())
        await asyncio.sleep(0)
        for _ in range(2):
            assert task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        side.complete(0, Outcome.DONE, (42,))
        side.publish()
        await asyncio.wait((task,), timeout=5)
        assert task.cancelled()
        return seen

    assert asyncio.run(main()) == [(42,), "cancelled"]


def test_who_is_always_answered_late_does_not_wait_for_the_bell() -> None:
    """After LATE late answers in a row a trap parks at once, but for one in LOOK_AGAIN; a soon one counts anew."""

    class Waits(NoBells):
        """Counts them; `soon`: the answer comes in the next one."""

        def __init__(self) -> None:
            self.count = 0
            self.soon: Callable[[], None] = lambda: None

        def wait_briefly(self) -> None:
            self.count += 1
            self.soon()

    async def main() -> list[int]:
        area = memoryview(bytearray(AREA_SIZE))
        side, waits = HypervisorSide(area), Waits()
        vcpu = Vcpu(0, GuestSide(area), waits)
        vcpu.start()
        counts = []

        def answer() -> None:
            side.complete(side.take()[0][0], Outcome.DONE)
            side.publish()

        async def late() -> None:
            task = asyncio.create_task(vcpu.trap(Trap(Kind.CPUID, ())))
            await asyncio.sleep(0)
            answer()
            vcpu._on_bell()
            await task
            counts.append(waits.count)

        for _ in range(LOOK_AGAIN + 2):
            await late()
        waits.soon = answer
        vcpu._late = LOOK_AGAIN
        await vcpu.trap(Trap(Kind.CPUID, ()))
        waits.soon = lambda: None
        for _ in range(LATE + 1):
            await late()
        return counts

    steady = [LATE] * (LOOK_AGAIN - LATE)
    assert asyncio.run(main()) == [
        *range(1, LATE + 1), *steady, LATE + 1, LATE + 1, *range(LATE + 3, 2 * LATE + 3), 2 * LATE + 2,
    ]  # fmt: skip
