"""Security modules for tests."""

from __future__ import annotations

from hmx.errno import Errno
from hv_node.domain import Domain


class DenyingXsm:
    """Refuses the hooks named in `denied`, with -EACCES as FLASK does."""

    name = "denying"
    permissive = False

    def __init__(self, *denied: str) -> None:
        self.denied = set(denied)

    def _answer(self, hook: str) -> int:
        return -Errno.EACCES if hook in self.denied else 0

    def enable(self, domain: Domain) -> int:
        return self._answer("enable")

    def register_single_source(self, domain: Domain, partner: Domain) -> int:
        return self._answer("register_single_source")

    def register_any_source(self, domain: Domain) -> int:
        return self._answer("register_any_source")

    def send(self, source: Domain, destination: Domain) -> int:
        return self._answer("send")
