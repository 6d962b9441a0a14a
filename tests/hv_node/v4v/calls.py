"""A v4v call that would succeed, for tests to spoil in one way or several."""

from __future__ import annotations

from dataclasses import dataclass, field

from hmx.memory import PAGE_SIZE, Buffer, MappedMemory, PageType
from hmx.v4v.abi import (
    ADDR,
    DOMID_DM,
    IOV,
    PFN_LIST,
    PFN_LIST_MAGIC,
    RING_DATA,
    RING_DATA_ENT,
    RING_DATA_MAGIC,
    RING_HEADER,
    RING_ID,
    RING_MAGIC,
    Op,
)
from hv_node.argo.model import Allocation
from tests.hv_node.v4v.language import World
from tests.hv_node.v4v.world import ARGS, DATA, IOVS, LIST, NPAGES, QUERIES, RING_GFN, TOKEN, token_of

END = NPAGES * PAGE_SIZE
HOST, GUEST, OTHER = 0, 1, 2
PORT = 5
RING_LEN = 2 * PAGE_SIZE - 64
RING = RING_GFN * PAGE_SIZE


class Stubborn(MappedMemory):
    """RAM in which one address refuses to be written."""

    __slots__ = ("refused",)

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(buffer)
        self.refused = -1

    def write(self, ctx: int, va: int, data: Buffer) -> bool:
        return va != self.refused and super().write(ctx, va, data)


@dataclass
class Case:
    """A call that would succeed, for rules to spoil."""

    op: int
    caller: int
    system: bool = True
    off: set[int] = field(default_factory=set)
    oom: set[Allocation] = field(default_factory=set)
    refused: int = -1
    # register_ring, unregister_ring
    va: int = RING
    magic: int = RING_MAGIC
    partner: int | None = None
    port: int = PORT
    ring_len: int = RING_LEN
    tx: int = 0
    token_va: int = TOKEN
    token: bytes = token_of(GUEST)
    list_va: int = LIST
    list_magic: int = PFN_LIST_MAGIC
    npages: int = 2
    existing: bool = False
    fail_exist: int = 0
    bad_page: bool = False
    # send, sendv, notify, create_ring
    a1: int = ARGS
    a2: int = ARGS + 8
    named: int = DOMID_DM
    iovs: int = IOVS
    sizes: list[int] = field(default_factory=lambda: [8, 8])
    buffer: int = DATA
    placeholder: bool = False
    absent: bool = False
    full: bool = False
    query: int = QUERIES
    query_magic: int = RING_DATA_MAGIC
    owner: int = GUEST

    def run(self) -> int:
        """Build the world, spoil it, make the call."""
        world = World()
        memory = Stubborn(world.ram[self.caller])
        domain = world.domain(self.caller)
        domain.memory = memory
        lay = {
            Op.REGISTER_RING: self._register,
            Op.UNREGISTER_RING: self._unregister,
            Op.SEND: self._send,
            Op.SENDV: self._send,
            Op.NOTIFY: self._notify,
            Op.CREATE_RING: self._create,
        }
        args = lay[Op(self.op)](world) if self.op in lay else (0, 0, 0, GUEST)
        for domid in self.off:
            world.v4v.domain_kill(world.domain(domid))
        if self.bad_page:
            memory.set_page(RING_GFN + 1, PageType.INVALID)
        memory.refused = self.refused
        world.v4v.allocate = lambda what: what not in self.oom
        return world.v4v.op(domain, self.op, *args, system=self.system)

    def _header(self, world: World, default: int) -> None:
        partner = default if self.partner is None else self.partner
        if self.va < END:
            world.put(
                self.caller,
                self.va,
                RING_HEADER.pack(self.magic, self.port, 0, partner, self.ring_len, 0, self.tx),
            )

    def _register(self, world: World) -> tuple[int, ...]:
        if self.existing:
            world.run(f"register host port={PORT} partner=g1 len={RING_LEN} gfn=30")
        self._header(world, GUEST)
        world.put(self.caller, TOKEN, self.token)
        pages = PFN_LIST.pack(self.list_magic, self.npages, 0)
        pages += b"".join(gfn.to_bytes(8, "little") for gfn in (RING_GFN, RING_GFN + 1))
        world.put(self.caller, self.list_va, pages[: max(END - self.list_va, 0)])
        return self.va, self.list_va, self.token_va, self.fail_exist

    def _unregister(self, world: World) -> tuple[int, ...]:
        world.run(f"register g1 port={PORT} partner=DM len={RING_LEN}")
        self._header(world, DOMID_DM)
        return (self.va,)

    def _peer_ring(self, world: World) -> None:
        world.run(f"register host port={PORT} partner=g1 len={RING_LEN}")
        ring = world.ring(HOST, PORT, GUEST)
        assert ring is not None
        if self.full:
            ring.tx = RING_LEN - 16
        if self.absent:
            ring.pages = None
        if self.placeholder:
            ring.reset()

    def _send(self, world: World) -> tuple[int, ...]:
        self._peer_ring(world)
        world.put(self.caller, ARGS, ADDR.pack(9, 0))
        world.put(self.caller, ARGS + 8, ADDR.pack(self.port, self.named))
        world.put(self.caller, IOVS, b"".join(IOV.pack(self.buffer, size) for size in self.sizes))
        if self.op == Op.SENDV:
            return self.a1, self.a2, self.iovs, len(self.sizes), 7
        return self.a1, self.a2, self.buffer, self.sizes[0], 7

    def _notify(self, world: World) -> tuple[int, ...]:
        self._peer_ring(world)
        data = RING_DATA.pack(self.query_magic, 1, 0) + RING_DATA_ENT.pack(self.port, self.named, 0, 8, 0)
        world.put(self.caller, self.query, data[: max(END - self.query, 0)])
        return (self.query,)

    def _create(self, world: World) -> tuple[int, ...]:
        world.put(self.caller, ARGS, RING_ID.pack(PORT, self.owner, HOST))
        return (self.a1,)
