"""What the hypervisor remembers about v4v: rings and who waits for room in them (uXen common/v4v.c).

A ring belongs to its owner and is keyed by (port, partner); partner `DOMID_ANY` is the wildcard.  A ring of length 0
is a placeholder: it has an identity and waiters, and no pages.  Nothing links a ring to its partner or a waiter to the
rings that it waits on: neither's death changes another domain's rings.
"""

from __future__ import annotations

from hmx.v4v.abi import DOMID_ANY
from hmx.v4v.ring import bucket, payload_space
from hv_node.domain import Domain
from hv_node.v4v.pages import V4vPages


class V4vRing:
    """One ring.  `tx` here is authoritative; the guest's copy is only written."""

    __slots__ = ("len", "pages", "partner", "pending", "port", "sort_key", "tx")

    def __init__(self, port: int, partner: int, sort_key: tuple[int, int]) -> None:
        self.port = port
        self.partner = partner
        self.len = 0
        self.tx = 0
        self.pages: V4vPages | None = None
        #: waiting domain -> payload bytes wanted, oldest waiter first
        self.pending: dict[int, int] = {}
        self.sort_key = sort_key

    def space(self) -> int:
        """The payload bytes that notify believes to fit, by the guest's rx_ptr as it stands (one load)."""
        pages = self.pages
        return 0 if pages is None else payload_space(self.len, pages.load_rx(), self.tx)

    def wait(self, domid: int, size: int) -> None:
        """Let `domid` wait for `size` payload bytes, or for more if it asked for more before."""
        self.pending[domid] = max(size, self.pending.get(domid, 0))

    def reset(self) -> None:
        """Become a placeholder; who waits goes on waiting."""
        self.pages = None
        self.len = 0
        self.tx = 0


class DomainV4v:
    """The v4v state of one domain."""

    __slots__ = ("domain", "in_order", "rings", "serial", "token")

    def __init__(self, domain: Domain, token: bytes | None) -> None:
        self.domain = domain
        self.token = token
        self.rings: dict[tuple[int, int], V4vRing] = {}
        self.in_order: tuple[V4vRing, ...] = ()
        self.serial = 0

    def create(self, port: int, partner: int) -> V4vRing:
        """A new placeholder; a wake-up pass visits buckets upwards and, within one, the newest ring first."""
        self.serial += 1
        ring = V4vRing(port, partner, (bucket(port, self.domain.domid, partner), -self.serial))
        self.rings[port, partner] = ring
        self._reorder()
        return ring

    def delete(self, ring: V4vRing) -> None:
        """Unlink a ring and forget its waiters, unsignalled."""
        ring.pending.clear()
        ring.reset()
        del self.rings[ring.port, ring.partner]
        self._reorder()

    def _reorder(self) -> None:
        self.in_order = tuple(sorted(self.rings.values(), key=lambda ring: ring.sort_key))

    def match(self, port: int, sender: int) -> V4vRing | None:
        """The ring on `port` that `sender` reaches: its own first, else the wildcard ring."""
        return self.rings.get((port, sender)) or self.rings.get((port, DOMID_ANY))
