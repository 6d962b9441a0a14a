"""Guests of a nested hypervisor that does not serve Argo itself: their calls, carried to the one around it.

Experimental, not upstream.  The nested hypervisor lends its parent the memory of such a guest (hmx/attach.py) and
carries each argo_op of it upwards as a request of its own; the parent executes it on that memory and answers, at once
or later: hv_node/levels/wards.py.

A carried call: name length u8, flags u8 (1: a 32-bit caller), zero u16, cmd u32, arg1 to arg4 u64, context u64, the
guest's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from hmx.argo.abi import Op
from hmx.errno import Errno
from hmx.trap import FrameFlag
from hv_node.effects import PENDING

if TYPE_CHECKING:
    from hv_node.doors.handlers import Call
    from hv_node.levels.level import Level

OWN: Final = "own"
FORWARD: Final = "forward"
STEAL: Final = "steal"
CARRY: Final = 0x4000_0030
"""Operation of a request that carries a call."""
PRESENT: Final = 0xFFFF_FFFF
"""In the place of `cmd`: answer 0 as soon as the guest's memory is there."""

_HEAD: Final = Struct("<BBHIQQQQQ")
_COMPAT: Final = 1
_ESRCH: Final = -int(Errno.ESRCH)
_ENOSYS: Final = -int(Errno.ENOSYS)
_ASYNC: Final = int(FrameFlag.ASYNC)
_WIDTH32: Final = int(FrameFlag.WIDTH32)


class CarriedOp(NamedTuple):
    """One argo_op of a guest."""

    guest: str
    compat: bool
    cmd: int
    arguments: tuple[int, int, int, int]
    ctx: int


def pack_call(call: CarriedOp) -> bytes:
    """The payload of a request that carries `call`."""
    name = call.guest.encode()
    return _HEAD.pack(len(name), _COMPAT * call.compat, 0, call.cmd, *call.arguments, call.ctx) + name


def unpack_call(payload: bytes) -> CarriedOp | None:
    """The call in a payload; None: it makes no sense."""
    if len(payload) < _HEAD.size:
        return None
    length, flags, zero, cmd, *arguments, ctx = _HEAD.unpack_from(payload)
    name = payload[_HEAD.size :]
    if zero or flags & ~_COMPAT or length != len(name) or not length:
        return None
    try:
        guest = name.decode()
    except UnicodeDecodeError:
        return None
    return CarriedOp(guest, bool(flags), cmd, (arguments[0], arguments[1], arguments[2], arguments[3]), ctx)


class Carrier:
    """Carries the calls of a nested hypervisor's guests to its parent."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._parent = level.path[:-1]

    def carry(self, call: Call, level: int, cmd: int, a1: int, a2: int, a3: int, a4: int) -> int:
        """argo_op of a guest, as hv_node.doors.outer.Stolen has it; only the parent serves it, nobody further out."""
        if level != len(self._parent) - 1:
            return _ENOSYS
        vcpu = call.vcpu
        domid = vcpu.hvm.domain.domid
        path = self._level.guest_path(domid)
        if path is None:
            return _ESRCH
        token = vcpu.token if call.flags & _ASYNC else vcpu
        found: list[int] = []
        waiting = False

        def settled(ret: int, _reply: bytes) -> None:
            if cmd == Op.SENDV and ret >= 0:
                self._level.host.message_sent(domid, ret)
            if waiting:
                if ret < 0 and cmd != Op.SENDV:
                    ret -= 1 << 64  # the same in the register, and not mistaken for a sendv's, which is zero-extended
                self._level.settle(token, domid, ret)
            else:
                found.append(ret)

        one = CarriedOp(path[-1], bool(call.flags & _WIDTH32), cmd, (a1, a2, a3, a4), call.ctx)
        self._level.request(self._parent, CARRY, pack_call(one), settled)
        if found:
            return found[0]
        waiting = True
        return PENDING

    def when_present(self, guests: Iterable[str], then: Callable[[], None]) -> None:
        """Call `then` once when the parent has the memory of all `guests`."""
        missing = dict.fromkeys(guests)

        def settled(guest: str, ret: int) -> None:
            if not ret and guest in missing:
                del missing[guest]
                if not missing:
                    then()

        if not missing:
            then()
        for guest in list(missing):
            self._ask(guest, partial(settled, guest))

    def _ask(self, guest: str, settled: Callable[[int], None]) -> None:
        payload = pack_call(CarriedOp(guest, False, PRESENT, (0, 0, 0, 0), 0))
        self._level.request(self._parent, CARRY, payload, lambda ret, _reply: settled(ret))
