"""Slots that lead up, in notify: where they lead is asked of the hypervisors around.  Experimental, not upstream.

A send that leads up travels with its message, and whoever directs it decides.  A question about room is put to the
ring's own hypervisor, so it has to be known first: the next hypervisor outwards is asked WHERE, which is its guest's
path or its own next one's business; then the entry goes the way of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.codec import CodecError, pack, unpack_array
from hmx.argo.abi import DOMID_ANY, U32_MAX
from hmx.errno import Errno
from hv_node.argo.model import DomainArgo
from hv_node.argo.notify import QueryAnswer
from hv_node.domain import Domain
from hv_node.levels.paths import ITSELF, Path
from hv_node.levels.proxies import NO_MEMORY
from hv_node.levels.slots import Hit, Slots

if TYPE_CHECKING:
    from hv_node.argo.notify import Entries, QueryEntry
    from hv_node.levels.level import Level

WHERE: Final = 0x4000_0022
"""[port]: [path, port] of the guest that a send to that port reaches; an empty path: the next one outwards knows."""
_NOT_THERE: Final = -int(Errno.ESRCH)
_SENSELESS: Final = -int(Errno.EINVAL)


class Outwards:
    """Whoever a slot leads to that leads up.  `domain` stands for all of them until it is known who is meant."""

    path: Path = ("^", ITSELF)  # of no hypervisor: its entries never travel with others

    def __init__(
        self,
        level: Level,
        slots: Slots,
        child_of: Callable[[Path], Domain | None],
        denied: Callable[[Domain, Domain, int], int],
    ) -> None:
        """`child_of`: the domain of the nested hypervisor of ours through which a hypervisor at that path speaks;
        `denied`: what the module, without the gate, says about a question of a guest for a port.
        """
        self._denied = denied
        self._level = level
        self._slots = slots
        self._child_of = child_of
        self.domain = Domain(DOMID_ANY, NO_MEMORY, name="up")
        self.domain.argo = DomainArgo()
        self.domain.remote = self

    def send(self, *_: Any) -> int:
        """Sends go by the level."""
        return _NOT_THERE

    def query(self, entries: Entries, targets: list[QueryEntry]) -> QueryAnswer | None:
        """The first entry, wherever it belongs; the rest is asked again."""
        answers: list[QueryAnswer] = []
        waits = False

        def found(answer: QueryAnswer) -> None:
            if waits:
                entries.answered(answer)
            else:
                answers.append(answer)

        self._ask(self._level.path[:-1], entries, targets[0], found)
        waits = True
        return answers[0] if answers else None

    def _ask(self, hypervisor: Path, entries: Entries, entry: QueryEntry, found: Callable[[QueryAnswer], None]) -> None:
        nobody = QueryAnswer([(0, entry.largest)], 0)

        def heard(ret: int, reply: bytes) -> None:
            place = _place(reply) if ret >= 0 else None
            if place is None:
                found(nobody)
                return
            path, port = place
            if not path and len(hypervisor) > 1:
                self._ask(hypervisor[:-1], entries, entry._replace(port=port), found)
                return
            target = self._level.proxies.current(path) if path else None
            if target is None or target.remote is None or target.argo is None:
                found(nobody)
                return
            denied = self._denied(entries.caller, target, port)
            if denied:
                found(nobody if denied == _NOT_THERE else QueryAnswer([], denied))
                return
            answer = target.remote.query(entries, [entry._replace(target=target, port=port)])
            if answer is not None:
                found(answer)

        if hypervisor:
            self._level.request(hypervisor, WHERE, pack([entry.port]), heard)
        else:
            found(nobody)

    def told(self, origin: Path, payload: bytes) -> tuple[int, bytes]:
        """A hypervisor inside asks: (result, where)."""
        try:
            (port,) = unpack_array(payload)
        except (CodecError, ValueError):
            return _SENSELESS, b""
        child = self._child_of(origin)
        if child is None or not isinstance(port, int) or not 0 <= port <= U32_MAX:
            return _SENSELESS, b""
        hit = self._slots.resolve_query(child, DOMID_ANY, port)
        if not isinstance(hit, Hit):
            return _NOT_THERE, b""
        path = () if hit.up else self._slots.directory.path_of(hit.domid)
        return (_NOT_THERE, b"") if path is None else (0, pack([list(path), hit.port]))


def _place(reply: bytes) -> tuple[Path, int] | None:
    try:
        path, port = unpack_array(reply)
    except (CodecError, ValueError):
        return None
    names = isinstance(path, list) and all(isinstance(name, str) for name in path)
    return (tuple(path), port) if names and isinstance(port, int) and 0 <= port <= U32_MAX else None
