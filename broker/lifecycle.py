"""What a node is to the broker, from hello to exit, as a transition table.

A silent node is `unresponsive` whatever it was before, and becomes again what it was when it is heard: so
there are two silent states that show the same word.  Silence kills nothing.  An EXITED or LOST node keeps
its name in listings and gives it up to the next hello.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from broker.records import Direction
from broker.session import Session


class State(IntEnum):
    """A node's state."""

    JOINED = 1
    READY = 2
    JOINED_SILENT = 3
    READY_SILENT = 4
    EXITED = 5
    LOST = 6


class Stimulus(IntEnum):
    """What moves a node from one state to another."""

    HELLO = 1  # a valid hello, first or repeated
    READY = 2  # the node said so
    HEARD = 3  # any valid frame
    SILENT = 4  # none for SILENCE_NS
    EXIT = 5  # the node said so
    GONE = 6  # the agent that owns the process said so
    CUT = 7  # unreachable, or its session ended for a violation


class StateRow(NamedTuple):
    """How a state is shown, and whether a node in it has a session and holds its name."""

    state: State
    shown: str
    live: bool


STATES: Final = (
    StateRow(State.JOINED, "joined", True),
    StateRow(State.READY, "ready", True),
    StateRow(State.JOINED_SILENT, "unresponsive", True),
    StateRow(State.READY_SILENT, "unresponsive", True),
    StateRow(State.EXITED, "exited", False),
    StateRow(State.LOST, "lost", False),
)
SHOWN: Final = {row.state: row.shown for row in STATES}
LIVE: Final = frozenset(row.state for row in STATES if row.live)


class Transition(NamedTuple):
    """In `state`, `stimulus` leads to `result`."""

    state: State
    stimulus: Stimulus
    result: State


_J, _R, _JS, _RS, _E, _L = State
TRANSITIONS: Final = (
    Transition(_J, Stimulus.HELLO, _J),
    Transition(_J, Stimulus.READY, _R),
    Transition(_J, Stimulus.HEARD, _J),
    Transition(_J, Stimulus.SILENT, _JS),
    Transition(_J, Stimulus.EXIT, _E),
    Transition(_J, Stimulus.GONE, _E),
    Transition(_J, Stimulus.CUT, _L),
    Transition(_R, Stimulus.HELLO, _J),
    Transition(_R, Stimulus.READY, _R),
    Transition(_R, Stimulus.HEARD, _R),
    Transition(_R, Stimulus.SILENT, _RS),
    Transition(_R, Stimulus.EXIT, _E),
    Transition(_R, Stimulus.GONE, _E),
    Transition(_R, Stimulus.CUT, _L),
    Transition(_JS, Stimulus.HELLO, _J),
    Transition(_JS, Stimulus.HEARD, _J),
    Transition(_JS, Stimulus.SILENT, _JS),
    Transition(_JS, Stimulus.GONE, _E),
    Transition(_JS, Stimulus.CUT, _L),
    Transition(_RS, Stimulus.HELLO, _J),
    Transition(_RS, Stimulus.HEARD, _R),
    Transition(_RS, Stimulus.SILENT, _RS),
    Transition(_RS, Stimulus.GONE, _E),
    Transition(_RS, Stimulus.CUT, _L),
    Transition(_E, Stimulus.HELLO, _J),
    Transition(_E, Stimulus.GONE, _E),
    Transition(_L, Stimulus.HELLO, _J),
    Transition(_L, Stimulus.GONE, _E),
)
NEXT: Final = {(row.state, row.stimulus): row.result for row in TRANSITIONS}
SILENT: Final = frozenset(
    row.state for row in TRANSITIONS if row.stimulus is Stimulus.HEARD and row.result is not row.state
)
"""States that end when the node is heard."""


class Node:
    """What the broker knows of one name."""

    __slots__ = (
        "detail",
        "heard_ns",
        "kind",
        "missed",
        "name",
        "pid",
        "probed_ns",
        "routing_id",
        "session",
        "state",
        "subscribed",
    )

    def __init__(self, name: str, epoch: int) -> None:
        self.name = name
        self.kind = ""
        self.pid = 0
        self.state = State.LOST
        self.detail = ""
        self.routing_id = b""
        self.session = Session(Direction.TO_BROKER, epoch)
        self.heard_ns = self.probed_ns = 0
        self.subscribed = False
        self.missed = 0  # control records for this subscriber that found its queue full

    @property
    def live(self) -> bool:
        """Whether it has a session and holds its name."""
        return self.state in LIVE

    @property
    def record(self) -> list[str]:
        """What subscribers are told of it."""
        return ["node", self.name, self.kind, SHOWN[self.state], self.detail]
