"""Two guests of two hypervisors, and the calls of a guest whose memory a test writes itself."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from broker.envelope import Envelope, EnvelopeKind
from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    SEND_ADDR,
    Op,
)
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hv_node.levels.calls import FLOOR_BITS
from hv_node.levels.options import LevelOptions
from tests.doubles.levels import Lab, Node

SECOND = 1_000_000_000
PORT = 7
REFUSED, UNKNOWN, AGAIN, GONE = -Errno.ECONNREFUSED, -Errno.EIO, -Errno.EAGAIN, -Errno.ESRCH
A, B = ("a",), ("b",)
X, Y = 1, 2  # guests x of a and y of b


def two(*, held: bool = False, posted: bool = False, credit: int = 2) -> tuple[Lab, Node, Node]:
    """Guest x (1) of hypervisor a and guest y (2) of hypervisor b, whose ring at port 7 is open to all."""

    def options(found: LevelOptions) -> LevelOptions:
        return replace(found, posted=frozenset({A, B}) if posted else frozenset(), posted_credit=credit)

    lab = Lab([A, B], guests={(*A, "x"): X, (*B, "y"): Y}, held=held, options=options)
    register(lab.nodes[B], Y)
    return lab, lab.nodes[A], lab.nodes[B]


def call(node: Node, domid: int, cmd: int, *args: int, token: object = None) -> int:
    domain = node.domains.lookup(domid)
    assert domain is not None
    a1, a2, a3, a4 = (*args, 0, 0, 0, 0)[:4]
    return node.argo.op(domain, cmd, a1, a2, a3, a4, token)


def register(node: Node, domid: int, partner: int = DOMID_ANY, gfn: int = 24, port: int = PORT) -> int:
    ram, ring_len = node.ram[domid], 112
    count = npages_for(ring_len)
    REGISTER_RING.pack_into(ram, 0x100, port, partner, 0, ring_len)
    struct.pack_into(f"<{count}Q", ram, 0x1000, *range(gfn, gfn + count))
    struct.pack_into("<II", ram, gfn * PAGE_SIZE, 0, 0)
    return call(node, domid, Op.REGISTER_RING, 0x100, 0x1000, count, 0)


def send(node: Node, domid: int, target: int, data: bytes = b"hello", token: object = "t", port: int = PORT) -> int:
    ram = node.ram[domid]
    SEND_ADDR.pack_into(ram, 0x100, 5, DOMID_ANY, 0, port, target, 0)
    IOV.pack_into(ram, 0x200, 0x3000, len(data), 0)
    ram[0x3000 : 0x3000 + len(data)] = data
    return call(node, domid, Op.SENDV, 0x100, 0x200, 1, 42, token=token)


def notify(node: Node, domid: int, *entries: tuple[int, int, int], token: object = "n") -> int:
    ram = node.ram[domid]
    RING_DATA.pack_into(ram, 0x100, len(entries), 0)
    for index, (port, target, wanted) in enumerate(entries):
        RING_DATA_ENT.pack_into(ram, 0x108 + 20 * index, port, target, 0, 0, 0, wanted, 0)
    return call(node, domid, Op.NOTIFY, 0x100, token=token)


def tx(node: Node, domid: int, gfn: int = 24) -> int:
    return int.from_bytes(node.ram[domid][gfn * PAGE_SIZE + 4 :][:4], "little")


def drain(node: Node, domid: int, gfn: int = 24) -> None:
    ram, at = node.ram[domid], gfn * PAGE_SIZE
    ram[at : at + 4] = ram[at + 4 : at + 8]


def consume(node: Node, domid: int, gfn: int = 24) -> None:
    drain(node, domid, gfn)
    assert call(node, domid, Op.NOTIFY) == 0


def envelope_of(kind: EnvelopeKind, src_path: tuple[Any, ...], dst: tuple[Any, ...], **fields: Any) -> Envelope:
    made = Envelope(1, kind, 1 << FLOOR_BITS, 1, 1, src_path, dst, 16, "", 3, 5, PORT, 0, 0, 0, 0)
    return made._replace(**fields)
