"""What a hypervisor core does to the world: calls on a sink that its owner gives it.

Cores never open, wait, spawn or read a clock.  Each effect is one method call, made at the point where the
hypervisor it models would have acted; the owner decides what becomes of it.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

# : Returned instead of a result when the result comes later, by exactly one `Sink.complete`.  Compare with
# `is`.
PENDING: Final[int] = 1 << 40


class Sink(Protocol):
    """Where effects go."""

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:
        """Raise a per-domain virtual interrupt; dropped where it is not bound.  `ring`: in which a message arrived."""

    def post(self, domid: int, vcpu: int, entry: int) -> None:
        """Post an interrupt entry (kind << 24 | id) to a vCPU."""

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None:
        """Hand an envelope to the uplink."""

    def set_timer(self, key: object, deadline_ns: int) -> None:
        """Ask for `on_timer(key, now_ns)` at `deadline_ns`."""

    def complete(self, token: object, ret: int) -> None:
        """The operation that answered PENDING for `token` ends with `ret`."""

    def event(self, code: str, *fields: Any) -> None:
        """Something that a person may want to know."""


class RecordingSink:
    """A sink that remembers: each effect is appended to `log` as (method, arguments...)."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.virqs: list[tuple[int, int]] = []

    def raise_virq(self, domid: int, virq: int, ring: object = None) -> None:  # noqa: ARG002
        """Record it, in `virqs` too."""
        self.virqs.append((domid, virq))
        self.log.append(("raise_virq", domid, virq))

    def post(self, domid: int, vcpu: int, entry: int) -> None:
        """Record it."""
        self.log.append(("post", domid, vcpu, entry))

    def send_up(self, lane: int, envelope: Any, payload: bytes) -> None:
        """Record it."""
        self.log.append(("send_up", lane, envelope, payload))

    def set_timer(self, key: object, deadline_ns: int) -> None:
        """Record it."""
        self.log.append(("set_timer", key, deadline_ns))

    def complete(self, token: object, ret: int) -> None:
        """Record it."""
        self.log.append(("complete", token, ret))

    def event(self, code: str, *fields: Any) -> None:
        """Record it."""
        self.log.append(("event", code, *fields))

    def take_virqs(self) -> list[tuple[int, int]]:
        """The VIRQs raised since the last call, in order."""
        taken, self.virqs = self.virqs, []
        return taken
