"""Access control for Argo: Xen's security modules behind one interface.

`dummy` is Xen without a security module (include/xsm/dummy.h): everything that Argo asks is granted.
`silo` (xsm/silo.c) keeps domains apart: two domains may meet if they are the same one or if the caller or
either of them is a control domain. A hook answers 0 or a negated errno.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from hmx.errno import Errno
from hv_node.domain import Domain


class Xsm(Protocol):
    """The four questions that Argo asks.  `permissive`: all answers are 0, so nobody needs to ask."""

    name: str
    permissive: bool

    def enable(self, domain: Domain) -> int:
        """May `domain` use Argo?  Asked at each call and at domain creation."""

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        """May `domain` register a ring that only `partner` sends to?"""

    def register_any_source(self, domain: Domain) -> int:
        """May `domain` register a wildcard ring?  Asked after mac-permissive has allowed it."""

    def send(self, source: Domain, destination: Domain) -> int:
        """May `source` send to, or ask notify about, `destination`?"""


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
    return caller is other or caller.is_control or other.is_control


class Module(NamedTuple):
    """A module as the `xsm=` option names it."""

    name: str
    create: Callable[[], Xsm]


MODULES: Final = (Module("dummy", DummyXsm), Module("silo", SiloXsm))


def xsm_by_name(name: str) -> Xsm:
    """The module called `name`.  Raises ValueError for another name."""
    for module in MODULES:
        if module.name == name:
            return module.create()
    raise ValueError(f"no XSM module {name!r}; there are {', '.join(module.name for module in MODULES)}")
