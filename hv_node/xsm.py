"""Access control for Argo: Xen's security modules behind one interface.

`dummy` is Xen without a security module (include/xsm/dummy.h): everything that Argo asks is granted.
`silo` (xsm/silo.c) keeps domains apart: two domains may meet if they are the same one or if the caller or
either of them is a control domain. A hook answers 0 or a negated errno.

Xen asks about domains and sees no ports. `send_to`, which names them too, `delegate` and `query` are experimental,
not upstream; the firewall that needs them is :mod:`hv_node.levels.policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from hmx.errno import Errno
from hv_node.domain import Domain


class Xsm(Protocol):
    """The four questions that Argo asks.  `permissive`: all answers are 0, so nobody needs to ask."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def permissive(self) -> bool:
        """True if every answer is 0."""

    def enable(self, domain: Domain) -> int:
        """May `domain` use Argo?  Asked at each call and at domain creation."""

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        """May `domain` register a ring that only `partner` sends to?"""

    def register_any_source(self, domain: Domain) -> int:
        """May `domain` register a wildcard ring?  Asked after mac-permissive has allowed it."""

    def send(self, source: Domain, destination: Domain) -> int:
        """May `source` send to, or ask notify about, `destination`?"""


class PortXsm(Xsm, Protocol):
    """A module that judges more than Xen's hooks show."""

    def send_to(self, source: Domain, destination: Domain, port: int, source_port: int | None = None) -> int:
        """`send`, for one port of the destination.  `source_port` None: not known, as for an entry of notify."""

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        """May `source` pass `recipient` a slot that leads to `endpoint` (None: to the next hypervisor outwards)?"""

    def query(self, asker: Domain, subject: Domain) -> int:
        """May `asker` learn where `subject` lives and what its label is?"""


class DummyXsm:
    """No security module."""

    name = "dummy"
    permissive = True

    def enable(self, domain: Domain) -> int:  # noqa: ARG002
        """Granted."""
        return 0

    def register_single_source(self, domain: Domain, partner: Domain) -> int:  # noqa: ARG002
        """Granted."""
        return 0

    def register_any_source(self, domain: Domain) -> int:  # noqa: ARG002
        """Granted."""
        return 0

    def send(self, source: Domain, destination: Domain) -> int:  # noqa: ARG002
        """Granted."""
        return 0

    def send_to(self, source: Domain, destination: Domain, port: int, source_port: int | None = None) -> int:  # noqa: ARG002
        """As `send`: ports do not matter."""
        return self.send(source, destination)

    def delegate(self, source: Domain, recipient: Domain, endpoint: Domain | None) -> int:
        """As `send`, for each of the two steps."""
        return self.send(source, recipient) or (0 if endpoint is None else self.send(recipient, endpoint))

    def query(self, asker: Domain, subject: Domain) -> int:
        """As `send`."""
        return self.send(asker, subject)


class SiloXsm(DummyXsm):
    """Guests talk to control domains and to themselves only.  Arm's default module."""

    name = "silo"
    permissive = False
    denied: Final = Errno.EPERM

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        """Granted between domains that may meet."""
        return 0 if _may_meet(domain, partner) else -self.denied

    def send(self, source: Domain, destination: Domain) -> int:
        """Granted between domains that may meet."""
        return 0 if _may_meet(source, destination) else -self.denied


def _may_meet(caller: Domain, other: Domain) -> bool:
    """Silo's rule.  In each of Argo's hooks the calling domain is one of the two."""
    return caller is other or _controls(caller) or _controls(other)


def _controls(domain: Domain) -> bool:
    """True for this hypervisor's own control domains: whatever a domain is elsewhere, its proxy is a domU here."""
    return domain.is_control and domain.remote is None


class Module(NamedTuple):
    """A module as the `xsm=` option names it."""

    name: str
    create: Callable[[], PortXsm]


MODULES: Final = (Module("dummy", DummyXsm), Module("silo", SiloXsm))


def xsm_by_name(name: str) -> PortXsm:
    """The module called `name`.  Raises ValueError for another name."""
    for module in MODULES:
        if module.name == name:
            return module.create()
    raise ValueError(f"no XSM module {name!r}; there are {', '.join(module.name for module in MODULES)}")
