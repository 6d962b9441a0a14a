"""Property: no frame makes the stream engine raise; a bystander's connection carries its bytes in order whatever
strangers and other peers send; a connection holds no more than its budget.

Input: frames from any domain, port and conid, at a listener and at a connector, between the calls of their owners.
"""

from __future__ import annotations

from guest_node.drivers.stream_fsm import Connector, Listener, connecting
from guest_node.drivers.stream_table import HEADER, MESSAGE_TYPE_STREAM, Event, Flag, State
from hmx.argo.abi import Address
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally

TALLY = Tally()
BUDGET = 128
_TYPES = (MESSAGE_TYPE_STREAM, MESSAGE_TYPE_STREAM, MESSAGE_TYPE_STREAM, 0)
_BYSTANDER = (9, 1, 77)  # domid, port, conid


class Sink:
    """Counts what the engine asks for."""

    def __init__(self) -> None:
        self.controls: list[tuple[Address, int, Flag, int]] = []

    def control(self, to: Address, source_port: int, flags: Flag, conid: int) -> None:
        """A frame to send."""
        self.controls.append((to, source_port, flags, conid))

    def changed(self, machine: object) -> None:
        """Somebody should look."""


def frame(flags: int, conid: int, payload: bytes = b"") -> memoryview:
    """One stream frame."""
    return memoryview(HEADER.pack(flags, conid) + payload)


def one_input(data: bytes) -> None:
    """A listener with one bystander connected, a connector, and hostile frames."""
    sink = Sink()
    listener = Listener(80, sink, backlog=4, budget=BUDGET)
    domid, port, conid = _BYSTANDER
    listener.receive(port, domid, MESSAGE_TYPE_STREAM, frame(Flag.SYN, conid))
    _, bystander = listener.accept()
    assert bystander is not None
    bystander.step(Event.READY)
    outgoing = connecting(5, Address(80, 3), 1234, sink, BUDGET)
    connector = Connector(outgoing)
    outgoing.step(Event.CONNECT)
    accepted = [bystander]
    said = heard = b""
    choices = Choices(data)
    turn = 0
    while choices:
        step = choices.u8()
        TALLY.count += 1
        match step & 7:
            case 0 | 1 | 2:
                source = (choices.u8() % 4, choices.u8() % 4, choices.u8() % 4)
                message = _frame(choices, source[2])
                before = len(sink.controls)
                listener.receive(source[1], source[0], _TYPES[step >> 6], message)
                assert len(sink.controls) - before <= 1, "one frame is answered by one at most"
            case 3 | 4:
                who = (80, 3) if step & 8 else (choices.u8() % 4, choices.u8() % 4)
                message = _frame(choices, 1234 if step & 16 else choices.u8())
                before = len(sink.controls)
                connector.receive(who[0], who[1], _TYPES[step >> 6], message)
                assert len(sink.controls) - before <= 1
            case 5:
                _, connection = listener.accept()
                if connection is not None:
                    accepted.append(connection)
                    if step & 8 and connection.state is State.OPENING:
                        connection.step(Event.READY)
            case 6:
                victim = accepted[(step >> 3) % len(accepted)]
                if victim is not bystander:
                    victim.step(Event.CLOSE)
                    listener.forget(victim)
                    accepted.remove(victim)
            case _:
                for connection in accepted[1:]:
                    connection.take(1 + (step >> 3))
        for connection in (*accepted, outgoing):
            assert connection.unread <= BUDGET
        turn += 1
        piece = b"<%d>" % turn
        if listener.receive(port, domid, MESSAGE_TYPE_STREAM, frame(0, conid, piece)):
            said += piece
        if step & 8:
            heard += bystander.take(64)
        assert len(listener.pending) <= 4
    while piece := bystander.take(64):
        heard += piece
    assert heard == said and bystander.state is State.ACCEPTED


def _frame(choices: Choices, conid: int) -> memoryview:
    flags = choices.u8()
    wide = flags if flags & 0xF0 != 0xF0 else flags << 24
    size = choices.u8()
    if size & 0x80:
        return memoryview(choices.take(size & 15))  # shorter than a header, or a header of noise
    return frame(wide, conid, choices.take(size & 31))
