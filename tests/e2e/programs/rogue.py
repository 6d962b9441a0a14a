"""A device model that breaks the protocol of its requests, and the guest that pays for it."""

import asyncio

from guest_node.guest import Guest
from guest_node.virtio.ioreq_server import IoreqServer
from guest_node.virtio.xen_calls import XenCalls
from hmx import ioreq, xen
from hmx.ioreq import IoreqState


class Rogue(IoreqServer):
    """Answers every request with a state that there is not."""

    def _look(self, index: int, port: int) -> None:
        at = index * ioreq.SIZE + ioreq.STATE_OFFSET
        word = self._page.load32(at)
        if (word & ioreq.STATE_MASK) >> ioreq.STATE_SHIFT == IoreqState.READY:
            self._page.store32(at, ioreq.with_state(word, 9))
            self._page.publish()
            self.xen.send(port)


class Nothing:
    """What is at the addresses: nobody gets so far."""

    def load(self, offset: int, size: int) -> int:
        """No request is answered by what is here."""
        raise NotImplementedError

    def store(self, offset: int, size: int, value: int) -> None:
        """The same."""
        raise NotImplementedError

    def pump(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to reset."""


async def model(guest: Guest) -> None:
    """Serve, badly, until the target is gone."""
    (front,) = guest.fronts
    assert guest.kernel is not None
    server = Rogue(guest.kernel, front.domid)
    await server.start()
    window = ioreq.windows(guest.kernel.probe.arch)[front.window]
    server.add(window.base, window.base + ioreq.WINDOW_SIZE - 1, Nothing())
    await server.serve()


async def waits(guest: Guest) -> None:
    """Access the device; the program itself waits for something else."""
    other = asyncio.create_task(guest.virtio(within=100.0))
    await asyncio.Event().wait()
    await other


async def uses(guest: Guest) -> None:
    """Access the device."""
    await guest.virtio(within=100.0)


async def spins(guest: Guest) -> None:
    """Access the device by one vCPU; another one goes on with calls that never await."""
    assert guest.kernel is not None
    other_vcpu = XenCalls(guest.kernel, 1)
    other = asyncio.create_task(guest.virtio(within=100.0))
    while not other.done():
        await asyncio.sleep(0.0001)
        other_vcpu.hypercall(xen.Hypercall.MEMORY_OP, 0)
