"""A uXen hypervisor with a host and two guests, and where their calls lay what they pass."""

from __future__ import annotations

from typing import Final

from hmx.argo.abi import RING_HEADER_SIZE
from hmx.memory import PAGE_SIZE, MappedMemory, Window
from hmx.v4v.abi import (
    DOMID_ANY,
    DOMID_DM,
    DOMID_HV,
    DOMID_SELF,
    DOMID_UUID,
    RING_HEADER,
)
from hmx.v4v.consumer import V4vConsumer
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.v4v.core import V4v, V4vOptions
from hv_node.v4v.model import V4vRing

NAMED: Final = {"host": 0, "g1": 1, "g2": 2}
WORDS: Final = {
    **NAMED,
    "SELF": DOMID_SELF,
    "DM": DOMID_DM,
    "HV": DOMID_HV,
    "UUID": DOMID_UUID,
    "ANY": DOMID_ANY,
}
NAMES: Final = {domid: name for name, domid in NAMED.items()}

NPAGES: Final = 64
ARGS: Final = 0x100  # addresses, ids and iovs of a call
IOVS: Final = 0x400
TOKEN: Final = 0x80
DATA: Final = 0x1000  # payloads
QUERIES: Final = 0x4000  # ring data
LIST: Final = 0x8000  # page lists
RING_GFN: Final = 24
UNTOUCHED: Final = 0x5555  # flags of an entry that nobody has answered


def number(text: str) -> int:
    """A domain's name, a reserved word, or a number."""
    return WORDS[text] if text in WORDS else int(text, 0)


def token_of(domid: int) -> bytes:
    """The partner token of a domain."""
    return b"token of dom " + f"{domid:03}".encode()


class Hypervisor:
    """The host (domain 0) and two guests, each with 64 pages and a partner token."""

    def __init__(self) -> None:
        self.sink = RecordingSink()
        self.domains = DomainTable()
        self.signals: list[int] = []
        self.uncontrolled: set[int] = set()
        self.v4v = V4v(
            self.domains,
            self.sink,
            V4vOptions(),
            self.signals.append,
            lambda host, target: host.is_control and target.domid not in self.uncontrolled,
        )
        self.ram: dict[int, bytearray] = {}
        self.ring_at: dict[tuple[int, int], int] = {}  # (domain, port) -> where its ring was laid
        self.result: int | None = None
        for domid in NAMES:
            self.create(domid)

    def create(self, domid: int, npages: int = NPAGES) -> Domain:
        """A new domain with its token."""
        self.ram[domid] = bytearray(npages * PAGE_SIZE)
        domain = Domain(domid, MappedMemory(self.ram[domid]), is_control=domid == 0)
        self.domains.create(domain)
        self.v4v.domain_init(domain, token_of(domid))
        return domain

    def domain(self, domid: int) -> Domain:
        """The domain of that id, which must exist."""
        domain = self.domains.lookup(domid)
        assert domain is not None
        return domain

    def put(self, domid: int, at: int, data: bytes) -> int:
        """Lay bytes into a domain's memory; returns where."""
        self.ram[domid][at : at + len(data)] = data
        return at

    def op(self, domid: int, cmd: int, *args: int, system: bool = True) -> int:
        """A bare hypercall."""
        self.result = self.v4v.op(self.domain(domid), cmd, *args, system=system)
        return self.result

    def ring(self, domid: int, port: int, partner: int) -> V4vRing | None:
        """The hypervisor's record of a ring."""
        state = self.v4v.states.get(domid)
        return None if state is None else state.rings.get((port, partner))

    def window(self, domid: int, port: int) -> Window:
        """A guest's window on the ring that it laid out last for `port`."""
        at = self.ring_at[domid, port]
        size = RING_HEADER.unpack_from(self.ram[domid], at)[4] + RING_HEADER_SIZE
        return Window(self.ram[domid], at, min(-(-size // PAGE_SIZE) * PAGE_SIZE, len(self.ram[domid]) - at))

    def consumer(self, domid: int, port: int) -> V4vConsumer:
        """A receiver on that ring."""
        window = self.window(domid, port)
        return V4vConsumer(window, window.load32(16))
