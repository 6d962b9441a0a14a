"""The device status byte: who sets which bit, and what a driver's write does in each state.

A write is a whole byte.  0 resets.  Otherwise each bit that rises is looked up in MOVES, lowest rank first; bits that
fall are a defect of the driver, which is counted and the value stored as it was given (VIRTIO 1.4, 2.1: a driver must
not clear a bit).  DEVICE_NEEDS_RESET is the device's: no write sets it, only a reset clears it.
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final, NamedTuple


class Status(IntFlag):
    """Bits of the device status (VIRTIO 1.4, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class State(Enum):
    """What a status byte says of the device."""

    RESET = "reset"
    ACKNOWLEDGED = "acknowledged"
    DRIVEN = "driven"  # there is a driver; features are being negotiated
    NEGOTIATED = "negotiated"  # FEATURES_OK; queues are being set up
    LIVE = "live"
    SUSPENDED = "suspended"
    FAILED = "failed"  # the driver gave up
    BROKEN = "broken"  # the device needs a reset


class StateRow(NamedTuple):
    """`state` is what a status with the bit `has` says."""

    state: State
    has: Status


# In order: the first row that fits; RESET if none does.
STATES: Final[tuple[StateRow, ...]] = (
    StateRow(State.BROKEN, Status.DEVICE_NEEDS_RESET),
    StateRow(State.FAILED, Status.FAILED),
    StateRow(State.LIVE, Status.DRIVER_OK),
    StateRow(State.SUSPENDED, Status.SUSPEND),
    StateRow(State.NEGOTIATED, Status.FEATURES_OK),
    StateRow(State.DRIVEN, Status.DRIVER),
    StateRow(State.ACKNOWLEDGED, Status.ACKNOWLEDGE),
)


_STATES: Final = tuple((int(row.has), row.state) for row in STATES)  # plain ints: flags are slow


def state_of(status: int) -> State:
    """The state that a status byte stands for."""
    for bit, state in _STATES:
        if status & bit:
            return state
    return State.RESET


class Then(Enum):
    """What a rising bit does."""

    STORE = "store"
    NEGOTIATE = "negotiate"  # set if the features are acceptable, else left clear
    START = "start"  # set, buffers are consumed from now on; every ring is looked at
    SUSPEND = "suspend"  # set; DRIVER_OK is cleared when nothing is in flight
    RESUME = "resume"  # set, SUSPEND cleared
    STOP = "stop"  # set, nothing is consumed any more
    IGNORE = "ignore"  # left clear


class Move(NamedTuple):
    """In `states`, a write that raises `bit` does `then`."""

    bit: Status
    states: tuple[State, ...]
    then: Then
    note: str = ""


_ALL: Final = tuple(State)
_EARLY: Final = (State.RESET, State.ACKNOWLEDGED, State.DRIVEN)
_DEAD: Final = (State.FAILED, State.BROKEN)

MOVES: Final[tuple[Move, ...]] = (
    Move(Status.FAILED, _ALL, Then.STOP, "before the other bits of the same write"),
    Move(Status.ACKNOWLEDGE, _ALL, Then.STORE),
    Move(Status.DRIVER, _ALL, Then.STORE),
    Move(Status.FEATURES_OK, _EARLY, Then.NEGOTIATE, "the driver reads the status back"),
    Move(Status.FEATURES_OK, (State.LIVE, State.SUSPENDED), Then.STORE, "cleared by mistake; nothing is renegotiated"),
    Move(Status.FEATURES_OK, _DEAD, Then.IGNORE, "a reset comes first"),
    Move(Status.DRIVER_OK, (State.NEGOTIATED,), Then.START),
    Move(Status.DRIVER_OK, (State.SUSPENDED,), Then.RESUME, "VIRTIO 1.4"),
    Move(Status.DRIVER_OK, _EARLY, Then.IGNORE, "without FEATURES_OK nobody knows the format of the queues"),
    Move(Status.DRIVER_OK, (State.FAILED,), Then.IGNORE, "a reset comes first"),
    Move(Status.DRIVER_OK, (State.BROKEN,), Then.STORE, "and nothing runs"),
    Move(Status.SUSPEND, (State.LIVE,), Then.SUSPEND, "with the feature SUSPEND only"),
    Move(Status.SUSPEND, (*_EARLY, State.NEGOTIATED, *_DEAD), Then.IGNORE, "nothing runs"),
    Move(Status.DEVICE_NEEDS_RESET, _ALL, Then.IGNORE, "the device's own bit"),
)
ORDER: Final[tuple[Status, ...]] = tuple(dict.fromkeys(move.bit for move in MOVES))  # of bits that rise together
_MOVES: Final = {(state, move.bit): move.then for move in MOVES for state in move.states}
ALL_BITS: Final = sum(Status)


def move(state: State, bit: Status) -> Then:
    """What raising `bit` does in `state`.  KeyError for a bit that is set in every status of that state."""
    return _MOVES[state, bit]
