"""Slots in front of Argo: what stands between the core's checks and a guest's table.  Experimental, not upstream.

To the core this is the security module: it refuses a confined guest what is not there for it (-ESRCH, before the real
module is asked), and passes on all else.  Sends and queries to ids that are nobody's come here too, and are led by
the sender's table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hmx.errno import Errno
from hv_node.argo.sendv import send_given
from hv_node.domain import Domain
from hv_node.effects import PENDING
from hv_node.levels.slot_table import op_of, slot_of
from hv_node.levels.slots import Hit, Slots
from hv_node.xsm import PortXsm

if TYPE_CHECKING:
    from hv_node.argo.core import Argo

_NOT_THERE: Final = -int(Errno.ESRCH)
Upwards = Callable[[Domain, Hit, int, int, tuple[int, ...], int, object], int]
"""(caller, hit, source port, message type, iovs, ctx, token): a send that the next hypervisor outwards decides."""


class Gate:
    """The slots of one hypervisor, as its core sees them.  `install` puts it in front of `base`."""

    permissive = False

    def __init__(self, core: Argo, slots: Slots, base: PortXsm, upwards: Upwards | None = None) -> None:
        self.core = core
        self.slots = slots
        self.base = base
        self.upwards = upwards
        self.up: Domain | None = None  # stands in notify for whoever a slot leads to that leads up
        self._led: tuple[Domain, Domain, int] | None = None  # what was led here just now, and is asked about next

    @property
    def name(self) -> str:
        """The module behind it."""
        return self.base.name

    @property
    def loud(self) -> bool:
        """Whether the core is to tell of the module's denials."""
        return getattr(self.base, "loud", True)

    def install(self) -> None:
        """Let the core ask here from now on."""
        self.core.set_xsm(self)
        self.core.implicit = self.implicit
        self.core.implicit_query = self.implicit_query

    # -- the security module ----

    def enable(self, domain: Domain) -> int:
        """As the module says.  Asked at the beginning of each call."""
        self._led = None
        base = self.base
        return 0 if base.permissive else base.enable(domain)

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        """A confined guest may name as a partner whom it may answer."""
        if not self.slots.may_name(domain.domid, partner.domid):
            return _NOT_THERE
        return self.base.register_single_source(domain, partner)

    def register_any_source(self, domain: Domain) -> int:
        """As the module says."""
        return self.base.register_any_source(domain)

    def send(self, source: Domain, destination: Domain) -> int:
        """As the module says, to those whom the guest may name."""
        if not self.slots.may_name(source.domid, destination.domid):
            return _NOT_THERE
        return self.base.send(source, destination)

    def send_to(self, source: Domain, destination: Domain, port: int, source_port: int | None = None) -> int:
        """As the module says, if the guest was led there or may say so itself."""
        if destination is self.up:
            return 0  # asked again when it is known who is meant
        led, self._led = self._led, None
        slots, base = self.slots, self.base
        if slots.holders and led != (source, destination, port) and slots.hides(source.domid, destination.domid, port):
            return _NOT_THERE
        return 0 if base.permissive else base.send_to(source, destination, port, source_port)

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        """As the module says."""
        return self.base.delegate(source, recipient, endpoint)

    def query(self, asker: Domain, subject: Domain) -> int:
        """As the module says, about those whom the guest may name."""
        hidden = asker is not subject and not self.slots.may_name(asker.domid, subject.domid)
        return _NOT_THERE if hidden else self.base.query(asker, subject)

    # -- ids that are nobody's ----

    def implicit(
        self,
        caller: Domain,
        source_port: int,
        domid: int,
        port: int,
        message_type: int,
        iovs: tuple[int, ...],
        ctx: int,
        token: object,
    ) -> int:
        """A sendv to an id that does not resolve: its result, or PENDING."""
        hit = self.slots.resolve(caller, source_port, domid, port, message_type)
        if hit is None:
            return _NOT_THERE
        if isinstance(hit, int):
            return hit
        if hit.up:
            if self.upwards is None:
                return _NOT_THERE
            return self.upwards(caller, hit, source_port, message_type, iovs, ctx, token)
        core = self.core
        target = core.lookup(hit.domid)
        if target is None:
            return _NOT_THERE
        self._led = caller, target, hit.port
        plain, core.through = core.through, op_of(hit.slot)
        try:
            ret = send_given(
                core, caller, caller.memory, source_port, hit.domid, hit.port, message_type, iovs, ctx, token
            )
        finally:
            core.through = plain
        if ret >= 0 and ret is not PENDING:
            self.slots.delivered(hit.slot, hit.domid, caller.domid, source_port)
        return ret

    def implicit_query(self, caller: Domain, domid: int, port: int) -> tuple[Domain | None, int]:
        """An entry of notify about such an id: whom and which port it means; None: nobody."""
        hit = self.slots.resolve_query(caller, domid, port)
        if not isinstance(hit, Hit):
            return None, port
        if hit.up:
            return self.up, hit.port
        target = self.core.lookup(hit.domid)
        if target is not None:
            self._led = caller, target, hit.port
        return target, hit.port

    def delivered(self, op: int, target: int, source: int, source_port: int) -> None:
        """A message of another hypervisor's guest lies in a ring of `target`; `op` is its envelope's."""
        path = self.slots.directory.path_of(source)
        slot_id = None if path is None else slot_of(op, path)
        if slot_id is not None:
            self.slots.delivered(slot_id, target, source, source_port)
