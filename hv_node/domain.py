"""Domains and the table that resolves their ids (Xen common/domain.c, as far as other cores see it)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from hmx.argo.abi import DOMID_FIRST_RESERVED
from hmx.memory import GuestMemory

if TYPE_CHECKING:
    from hv_node.argo.model import DomainArgo
    from hv_node.argo.notify import Entries, QueryAnswer, QueryEntry


class DomainState(Enum):
    """A dying domain still resolves; it has no Argo state any more."""

    ALIVE = "alive"
    DYING = "dying"


class Remote(Protocol):
    """What stands behind a domain that lives on another hypervisor (experimental, not upstream)."""

    path: tuple[str, ...]

    def send(
        self,
        caller: Domain,
        dst: Domain,
        src_port: int,
        dst_port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """The rest of a sendv, from the search for a ring on: its result, or PENDING."""

    def query(self, entries: Entries, targets: list[QueryEntry]) -> QueryAnswer | None:
        """Entries of a notify whose rings are all at this far hypervisor; None: `entries.answered` is called later."""


class Domain:
    """One domain.  `argo` is None where Argo is off for it, or it is dying.

    `remote`: it lives on another hypervisor, and this is its proxy: it has no memory and owns no rings, all else is
    as for a guest.  `nested`: it is a hypervisor itself.  Both are experimental, not upstream.
    """

    __slots__ = ("argo", "domid", "is_control", "memory", "name", "nested", "remote", "state")

    def __init__(
        self, domid: int, memory: GuestMemory, *, is_control: bool = False, name: str = "", nested: bool = False
    ) -> None:
        self.domid = domid
        self.memory = memory
        self.is_control = is_control
        self.name = name or f"d{domid}"
        self.nested = nested
        self.remote: Remote | None = None
        self.state = DomainState.ALIVE
        self.argo: DomainArgo | None = None

    def __repr__(self) -> str:
        return f"<Domain {self.domid} {self.name!r} {self.state.value}>"


class DomainTable:
    """Every domain whose id resolves, alive or dying."""

    __slots__ = ("_domains", "lookup")

    def __init__(self) -> None:
        self._domains: dict[int, Domain] = {}
        # : lookup(domid): the domain, or None.  The dictionary's own method: it is on the path of every
        # message.
        self.lookup: Callable[[int], Domain | None] = self._domains.get

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._domains.values()))

    def __len__(self) -> int:
        return len(self._domains)

    def create(self, domain: Domain) -> None:
        """Enter a domain.  Raises ValueError for an id that is reserved, out of range or in use."""
        domid = domain.domid
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"domain id {domid:#x} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")
        if domid in self._domains:
            raise ValueError(f"domain id {domid} is in use")
        self._domains[domid] = domain

    def remove(self, domid: int) -> Domain | None:
        """The last reference is gone: the id no longer resolves and may be used again."""
        return self._domains.pop(domid, None)
