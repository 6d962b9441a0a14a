"""What a domain's creation, death and soft reset do to Argo (Xen common/argo.c, common/domain.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmx.argo.abi import DOMID_ANY
from hv_node.argo.model import DomainArgo
from hv_node.domain import Domain, DomainState

if TYPE_CHECKING:
    from hv_node.argo.core import Argo


def domain_init(core: Argo, domain: Domain) -> None:
    """A domain was created: it gets Argo state if Argo is on and the security module agrees."""
    if core.enabled and not core.xsm.enable(domain):
        domain.argo = DomainArgo()


def domain_kill(core: Argo, domain: Domain) -> None:
    """The domain starts dying: its Argo state goes at once, its id still resolves."""
    domain.state = DomainState.DYING
    _teardown(core, domain)
    domain.argo = None


def soft_reset(core: Argo, domain: Domain) -> None:
    """Tear the domain's Argo state down and start it anew; counters begin at 0 again."""
    if domain.argo is not None:
        _teardown(core, domain)
        domain.argo = DomainArgo()


def _teardown(core: Argo, domain: Domain) -> None:
    """Delete the domain's rings, those that only it could send to, and its waits.  Nobody is signalled."""
    argo = domain.argo
    if argo is None:
        return
    lookup = core.lookup
    for ring in argo.in_order:
        # The partners' records of these rings stay: Xen tolerates stale ones, below.
        argo.delete(ring, lookup)
    for (owner_id, port), count in argo.send_records.items():
        owner = lookup(owner_id)
        if owner is None or owner.argo is None:
            continue
        named = owner.argo.rings.get((port, domain.domid))
        if named is None:
            core.sink.event("argo-stale-send-record", domain.domid, owner_id, port, count)
            continue
        owner.argo.delete(named, lookup)
        owner.argo.ring_count -= 1
    for ring in list(argo.waiting_on):
        if ring.partner == DOMID_ANY and ring.owner.argo is not None:
            ring.owner.argo.forget(ring, domain.domid, lookup)
