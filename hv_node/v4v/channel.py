"""Who may speak to whom (uXen common/v4v.c, validate_channel).

A guest has one peer, its device model, which it names by `DOMID_DM` or by domain id.  The host names anybody; where
it registers a ring for a domain by id it must control that domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hmx.v4v.abi import DOMID_ANY, DOMID_DM, DOMID_SELF
from hv_node.domain import Domain
from hv_node.v4v.order import refusal

if TYPE_CHECKING:
    from hv_node.v4v.core import V4v

_OP = "channel"
_NOT_DM = refusal(_OP, "guest names another than the device model")
_RESERVED = refusal(_OP, "reserved id")
_UNKNOWN = refusal(_OP, "domain to control unknown")
_NOT_CONTROLLED = refusal(_OP, "domain not controlled")


def is_reserved(domid: int) -> bool:
    """Whether `domid` names no domain and is not the wildcard either."""
    return domid >= DOMID_SELF and domid != DOMID_ANY


def validate(core: V4v, caller: Domain, named: int, *, authorised: bool = True) -> int:
    """The domain id that `caller` reaches by naming `named`, or a refusal.

    `authorised`: control of the domain need not be shown (sends, notify entries, a partner found by its token).
    """
    if not core.is_host(caller):
        dm = core.options.dm_domid
        return dm if named in (DOMID_DM, dm) else _NOT_DM
    if is_reserved(named):
        return _RESERVED
    if not authorised and named != DOMID_ANY:
        target = core.lookup(named)
        if target is None:
            return _UNKNOWN
        if target is caller or not core.controls(caller, target):
            return _NOT_CONTROLLED
    return named
