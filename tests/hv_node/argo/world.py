"""A hypervisor with a few domains, and short ways to make the calls that a guest would make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    IOV_COMPAT,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    RING_HEADER_SIZE,
    SEND_ADDR,
    UNREGISTER_RING,
    Address,
    Op,
)
from hmx.argo.consumer import Consumer
from hmx.argo.ring import npages_for
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hv_node.argo.core import Argo
from hv_node.argo.model import Ring
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.xsm import DummyXsm, Xsm

ON: Final = ArgoOptions(True, True)

ARGS: Final = 0x100  # the structure of a call
IOVS: Final = 0x200
GFNS: Final = 0x1000
DATA: Final = 0x3000  # payloads
RING_GFN: Final = 24  # rings go here unless a test says otherwise
NPAGES: Final = 48


class World:
    """Domains `domids`, each of `npages` zeroed pages; domain 0 is the control domain."""

    def __init__(
        self,
        domids: Iterable[int] = (0, 1, 2, 3),
        options: ArgoOptions = ON,
        xsm: Xsm | None = None,
        npages: int = NPAGES,
    ) -> None:
        self.sink = RecordingSink()
        self.domains = DomainTable()
        self.argo = Argo(self.domains, xsm or DummyXsm(), self.sink, options)
        self.ram: dict[int, bytearray] = {}
        for domid in domids:
            self.create(domid, npages)

    def create(self, domid: int, npages: int = NPAGES) -> Domain:
        """A new domain."""
        self.ram[domid] = bytearray(npages * PAGE_SIZE)
        domain = Domain(domid, MappedMemory(self.ram[domid]), is_control=domid == 0)
        self.domains.create(domain)
        self.argo.domain_init(domain)
        return domain

    def kill(self, domid: int) -> None:
        """The domain starts dying."""
        self.argo.domain_kill(self.domain(domid))

    def free(self, domid: int) -> None:
        """The id goes."""
        self.argo.domain_kill(self.domain(domid))
        self.domains.remove(domid)
        del self.ram[domid]

    def domain(self, domid: int) -> Domain:
        """The domain of that id, which must exist."""
        domain = self.domains.lookup(domid)
        assert domain is not None
        return domain

    def memory(self, domid: int) -> MappedMemory:
        """Its memory as the hypervisor sees it."""
        memory = self.domain(domid).memory
        assert isinstance(memory, MappedMemory)
        return memory

    def op(self, domid: int, cmd: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0) -> int:
        """A bare hypercall."""
        return self.argo.op(self.domain(domid), cmd, a1, a2, a3, a4)

    def register(
        self,
        domid: int,
        port: int,
        partner: int,
        ring_len: int,
        *,
        gfns: Sequence[int] | None = None,
        flags: int = 0,
        pad: int = 0,
    ) -> int:
        """Register a ring on `gfns` (default: from RING_GFN on)."""
        if gfns is None:
            gfns = range(RING_GFN, RING_GFN + npages_for(ring_len))
        ram = self.ram[domid]
        REGISTER_RING.pack_into(ram, ARGS, port, partner, pad, ring_len)
        for index, gfn in enumerate(gfns):
            ram[GFNS + 8 * index : GFNS + 8 * index + 8] = gfn.to_bytes(8, "little")
        return self.op(domid, Op.REGISTER_RING, ARGS, GFNS, len(gfns), flags)

    def unregister(self, domid: int, port: int, partner: int, pad: int = 0) -> int:
        """Unregister a ring."""
        UNREGISTER_RING.pack_into(self.ram[domid], ARGS, port, partner, pad)
        return self.op(domid, Op.UNREGISTER_RING, ARGS)

    def send(
        self,
        domid: int,
        dst: Address | tuple[int, int],
        *buffers: bytes,
        src_port: int = 0x99,
        message_type: int = 0,
        source: int = DOMID_ANY,
        compat: bool = False,
    ) -> int:
        """Send one message of up to 8 buffers, laid out one after the other from DATA on."""
        ram = self.ram[domid]
        SEND_ADDR.pack_into(ram, ARGS, src_port, source, 0, dst[0], dst[1], 0)
        va = DATA
        layout = IOV_COMPAT if compat else IOV
        for index, data in enumerate(buffers):
            ram[va : va + len(data)] = data
            layout.pack_into(ram, IOVS + layout.size * index, va, len(data), 0)
            va += len(data)
        op = self.argo.op_compat if compat else self.argo.op
        return op(self.domain(domid), Op.SENDV, ARGS, IOVS, len(buffers), message_type)

    def notify(
        self, domid: int, *entries: tuple[int, int, int], va: int = ARGS
    ) -> tuple[int, list[tuple[int, int]]]:
        """notify about (port, domid, space_required) entries; (result, [(flags, max_message_size)])."""
        ram = self.ram[domid]
        RING_DATA.pack_into(ram, va, len(entries), 0)
        for index, (port, target, space) in enumerate(entries):
            at = va + RING_DATA.size + RING_DATA_ENT.size * index
            RING_DATA_ENT.pack_into(ram, at, port, target, 0, 0xFFFF, 0, space, 0xAAAA)
        ret = self.op(domid, Op.NOTIFY, va)
        answers = []
        for index in range(len(entries)):
            fields = RING_DATA_ENT.unpack_from(ram, va + RING_DATA.size + RING_DATA_ENT.size * index)
            answers.append((fields[3], fields[6]))
        return ret, answers

    def ring(self, domid: int, port: int, partner: int) -> Ring:
        """The hypervisor's record of a ring, which must exist."""
        argo = self.domain(domid).argo
        assert argo is not None
        return argo.rings[port, partner]

    def window(self, domid: int, ring_len: int, gfn: int = RING_GFN) -> Window:
        """A guest's window on a ring at `gfn`."""
        return Window(self.ram[domid], gfn * PAGE_SIZE, npages_for(ring_len) * PAGE_SIZE)

    def consumer(self, domid: int, ring_len: int, gfn: int = RING_GFN) -> Consumer:
        """A receiver on a ring at `gfn`."""
        return Consumer(self.window(domid, ring_len, gfn), ring_len)

    def data(self, domid: int, ring_len: int, gfn: int = RING_GFN) -> bytes:
        """The ring's data area."""
        start = gfn * PAGE_SIZE + RING_HEADER_SIZE
        return bytes(self.ram[domid][start : start + ring_len])

    def pointers(self, domid: int, gfn: int = RING_GFN) -> tuple[int, int]:
        """(rx_ptr, tx_ptr) in guest memory."""
        at = gfn * PAGE_SIZE
        ram = self.ram[domid]
        return int.from_bytes(ram[at : at + 4], "little"), int.from_bytes(ram[at + 4 : at + 8], "little")

    def set_rx(self, domid: int, rx: int, gfn: int = RING_GFN) -> None:
        """The guest stores its rx_ptr."""
        self.ram[domid][gfn * PAGE_SIZE : gfn * PAGE_SIZE + 4] = rx.to_bytes(4, "little")

    def set_tx(self, domid: int, tx: int, gfn: int = RING_GFN) -> None:
        """The guest stores to tx_ptr, which is the hypervisor's."""
        self.ram[domid][gfn * PAGE_SIZE + 4 : gfn * PAGE_SIZE + 8] = tx.to_bytes(4, "little")

    def woken(self) -> list[int]:
        """Domains signalled since the last look, in order."""
        return [domid for domid, virq in self.sink.take_virqs() if virq == 11]
