"""The Argo stream protocol as tables: who is in which state, what happens, what follows.

Specification: the stream half of OpenXT's Linux Argo driver (argo-linux/argo-module.c).  Hypervisors know
nothing of this protocol; it is an agreement of drivers, so the wire is kept exactly: message type
0x3574526D, an 8-byte header (flags u32, conid u32, little-endian) before each payload, control frames of
exactly 8 bytes, data frames with flags 0 and 1 to 32748 bytes.

A row says: machine, state, event -> new state, actions in order, and the errno that is answered (calls) or
left pending (frames).  Machines:

    CONNECTOR   a socket that called connect; it has a ring of its own
    ACCEPTED    a socket that accept returned; several share the listener's port
    LISTENER    frames at a listening port of no accepted socket, and calls on the listening socket
    STRANGER    frames at a connector's ring that do not belong to its connection

Rows whose note starts with "improve" depart from the Linux driver, where that loses data or lets one peer
hold up others; the note says how.  Departures that are no single row are in `stream_fsm` and `stream`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag, auto
from struct import Struct
from typing import Final, NamedTuple

from hmx.errno import Errno

MESSAGE_TYPE_STREAM: Final = 0x3574526D
HEADER: Final = Struct("<II")  # flags, conid
HEADER_SIZE: Final = 8
FRAME_LIMIT: Final = 32748  # payload bytes in one data frame: a quarter of the driver's default ring
CONNECT_TIMEOUT: Final = 5.0  # seconds
DEFAULT_RING_LEN: Final = 130992  # 32 pages less 80 bytes


class Flag(IntFlag):
    """First word of the stream header.  PING and PONG are defined and never used."""

    SYN = 0x1
    ACK = 0x2
    RST = 0x4
    PING = 0x100
    PONG = 0x200


class Machine(IntEnum):
    """Which table of rows applies."""

    CONNECTOR = auto()
    ACCEPTED = auto()
    LISTENER = auto()
    STRANGER = auto()


class State(IntEnum):
    """The Linux driver's socket states with its numbers; OPENING and CLOSED are ours."""

    IDLE = 0
    BOUND = 1
    LISTENING = 2
    ACCEPTED = 3
    CONNECTING = 4
    CONNECTED = 5
    DISCONNECTED = 6
    OPENING = 7  # SYN taken by accept, ring for its peer being registered, ACK not yet sent
    CLOSED = 8


class Event(IntEnum):
    """What happens to a machine: frames first, then calls and the clock."""

    SYN = auto()
    SYN_ODD = auto()  # a SYN that is not exactly 8 bytes
    SYN_FULL = auto()  # the queue of pending SYNs is at its limit
    SYN_AGAIN = auto()  # the same SYN waits already
    ACK = auto()
    RST = auto()
    DATA = auto()
    DATA_FULL = auto()  # the reader's budget of unread bytes is used up
    OTHER = auto()  # neither SYN nor RST
    CONNECT = auto()
    REFUSED = auto()  # the hypervisor refused the SYN
    TIMEOUT = auto()
    FAILED = auto()  # connect returns its failure
    ACCEPT = auto()
    READY = auto()  # the ring that accept wanted stands, or the shared one is to serve
    VANISHED = auto()  # the peer's ring is gone
    SEND = auto()
    RECEIVE = auto()
    CLOSE = auto()


class Action(IntEnum):
    """What a row makes its machine do."""

    SEND_SYN = auto()
    SEND_ACK = auto()
    SEND_RST = auto()  # to the connection's peer, with its conid
    REPLY_RST = auto()  # to whoever sent the frame, with the frame's conid
    QUEUE = auto()  # the payload becomes readable
    HOLD = auto()  # the frame stays in the ring, and the ring's pass ends
    FAIL = auto()  # the row's errno becomes the pending error
    CLEAR_ERROR = auto()
    WAKE = auto()  # whoever waits on this socket looks again
    QUEUE_SYN = auto()
    FORGET_SYN = auto()  # the pending SYN with this identity, if any
    TAKE_SYN = auto()  # the oldest pending SYN becomes a connection
    RESET_SYNS = auto()  # RST to each pending SYN


class Precedence(NamedTuple):
    """A frame is the first event of its kind whose flag it carries; with none of them it is `DATA` or
    `OTHER`.
    """

    known: bool  # the frame belongs to a connection
    flag: Flag
    event: Event


PRECEDENCE: Final = (
    Precedence(True, Flag.SYN, Event.SYN),
    Precedence(True, Flag.ACK, Event.ACK),
    Precedence(True, Flag.RST, Event.RST),
    Precedence(False, Flag.RST, Event.RST),
    Precedence(False, Flag.SYN, Event.SYN),
)


class Row(NamedTuple):
    """One transition."""

    machine: Machine
    state: State
    event: Event
    new_state: State
    actions: tuple[Action, ...] = ()
    error: int = 0
    note: str = ""


_CO, _AC, _LI, _ST = Machine.CONNECTOR, Machine.ACCEPTED, Machine.LISTENER, Machine.STRANGER
_BOUND, _LISTENING, _ACCEPTED, _CONNECTING = State.BOUND, State.LISTENING, State.ACCEPTED, State.CONNECTING
_CONNECTED, _DOWN, _OPENING, _CLOSED = State.CONNECTED, State.DISCONNECTED, State.OPENING, State.CLOSED
_RST, _REPLY, _WAKE, _FAIL = Action.SEND_RST, Action.REPLY_RST, Action.WAKE, Action.FAIL
_QUEUE, _HOLD = Action.QUEUE, Action.HOLD

_LATE = "improve: Linux answers EOF and drops what is queued; here queued bytes are read first"
_BUDGET = "improve: Linux holds after 3 frames; here after a budget of bytes per connection"
_GONE = "improve: Linux never notices; the pending error follows the bytes that are queued"

# fmt: off
ROWS: Final = (
    # connect and the frames of its own connection
    Row(_CO, _BOUND, Event.CONNECT, _CONNECTING, (Action.SEND_SYN,)),
    Row(_CO, _BOUND, Event.SYN, _BOUND, (_RST,)),
    Row(_CO, _BOUND, Event.SYN_ODD, _BOUND),
    Row(_CO, _BOUND, Event.ACK, _BOUND),
    Row(_CO, _BOUND, Event.RST, _BOUND),
    Row(_CO, _BOUND, Event.DATA, _BOUND, (_QUEUE, _WAKE)),
    Row(_CO, _BOUND, Event.DATA_FULL, _BOUND, (_HOLD,), 0, _BUDGET),
    Row(_CO, _BOUND, Event.SEND, _BOUND, (), Errno.ENOTCONN),
    Row(_CO, _BOUND, Event.RECEIVE, _BOUND, (), Errno.ENOTCONN),
    Row(_CO, _BOUND, Event.CLOSE, _CLOSED),
    Row(_CO, _CONNECTING, Event.REFUSED, _BOUND, (_WAKE,), 0, "connect raises what the hypervisor answered"),
    Row(_CO, _CONNECTING, Event.SYN, _CONNECTING, (_RST,)),
    Row(_CO, _CONNECTING, Event.SYN_ODD, _CONNECTING),
    Row(_CO, _CONNECTING, Event.ACK, _CONNECTED, (Action.CLEAR_ERROR, _WAKE)),
    Row(_CO, _CONNECTING, Event.RST, _DOWN, (_FAIL, _WAKE), Errno.ECONNREFUSED),
    Row(_CO, _CONNECTING, Event.DATA, _CONNECTING, (_QUEUE, _WAKE)),
    Row(_CO, _CONNECTING, Event.DATA_FULL, _CONNECTING, (_HOLD,), 0, _BUDGET),
    Row(_CO, _CONNECTING, Event.TIMEOUT, _DOWN, (_RST, _FAIL, _WAKE), Errno.ETIMEDOUT,
        "improve: an RST withdraws the SYN, so that no accept returns a dead connection"),
    Row(_CO, _CONNECTING, Event.VANISHED, _DOWN, (_FAIL, _WAKE), Errno.ECONNREFUSED,
        "improve: a SYN that waits for room in a ring that is gone fails at once, not after 5 s"),
    Row(_CO, _CONNECTING, Event.SEND, _CONNECTING, (), Errno.ENOTCONN),
    Row(_CO, _CONNECTING, Event.RECEIVE, _CONNECTING, (), Errno.ENOTCONN),
    Row(_CO, _CONNECTING, Event.CLOSE, _CLOSED, (_RST, _WAKE)),
    Row(_CO, _CONNECTED, Event.SYN, _CONNECTED, (_RST,)),
    Row(_CO, _CONNECTED, Event.SYN_ODD, _CONNECTED),
    Row(_CO, _CONNECTED, Event.ACK, _DOWN, (_WAKE, _RST)),
    Row(_CO, _CONNECTED, Event.RST, _DOWN, (_WAKE,)),
    Row(_CO, _CONNECTED, Event.DATA, _CONNECTED, (_QUEUE, _WAKE)),
    Row(_CO, _CONNECTED, Event.DATA_FULL, _CONNECTED, (_HOLD,), 0, _BUDGET),
    Row(_CO, _CONNECTED, Event.VANISHED, _DOWN, (_FAIL, _WAKE), Errno.ECONNRESET, _GONE),
    Row(_CO, _CONNECTED, Event.SEND, _CONNECTED),
    Row(_CO, _CONNECTED, Event.RECEIVE, _CONNECTED),
    Row(_CO, _CONNECTED, Event.CLOSE, _CLOSED, (_RST, _WAKE)),
    Row(_CO, _DOWN, Event.SYN, _DOWN, (_RST,)),
    Row(_CO, _DOWN, Event.SYN_ODD, _DOWN),
    Row(_CO, _DOWN, Event.ACK, _DOWN, (_WAKE, _RST)),
    Row(_CO, _DOWN, Event.RST, _DOWN),
    Row(_CO, _DOWN, Event.DATA, _DOWN, (_QUEUE, _WAKE)),
    Row(_CO, _DOWN, Event.DATA_FULL, _DOWN, (_HOLD,), 0, _BUDGET),
    Row(_CO, _DOWN, Event.FAILED, _BOUND, (), 0,
        "improve: connect raises the pending error, so a timeout is ETIMEDOUT; Linux says ECONNREFUSED"),
    Row(_CO, _DOWN, Event.SEND, _DOWN, (), Errno.EPIPE),
    Row(_CO, _DOWN, Event.RECEIVE, _DOWN, (), 0, _LATE),
    Row(_CO, _DOWN, Event.CLOSE, _CLOSED, (_WAKE,)),
    Row(_CO, _CLOSED, Event.SEND, _CLOSED, (), Errno.EBADF),
    Row(_CO, _CLOSED, Event.RECEIVE, _CLOSED, (), Errno.EBADF),
    Row(_CO, _CLOSED, Event.CLOSE, _CLOSED),
    # accept and the frames of its connection
    Row(_AC, _OPENING, Event.READY, _ACCEPTED, (Action.SEND_ACK,), 0,
        "improve: the ACK follows the registration of a ring for its peer: a slow reader stops no other"),
    Row(_AC, _OPENING, Event.SYN, _OPENING, (_RST,)),
    Row(_AC, _OPENING, Event.SYN_ODD, _OPENING, (_RST,)),
    Row(_AC, _OPENING, Event.ACK, _OPENING, (_RST,)),
    Row(_AC, _OPENING, Event.RST, _DOWN, (_WAKE,)),
    Row(_AC, _OPENING, Event.DATA, _OPENING, (_QUEUE, _WAKE)),
    Row(_AC, _OPENING, Event.DATA_FULL, _OPENING, (_HOLD,), 0, _BUDGET),
    Row(_AC, _OPENING, Event.CLOSE, _CLOSED, (_RST, _WAKE)),
    Row(_AC, _ACCEPTED, Event.SYN, _ACCEPTED, (_RST,)),
    Row(_AC, _ACCEPTED, Event.SYN_ODD, _ACCEPTED, (_RST,)),
    Row(_AC, _ACCEPTED, Event.ACK, _ACCEPTED, (_RST,)),
    Row(_AC, _ACCEPTED, Event.RST, _DOWN, (_WAKE,)),
    Row(_AC, _ACCEPTED, Event.DATA, _ACCEPTED, (_QUEUE, _WAKE)),
    Row(_AC, _ACCEPTED, Event.DATA_FULL, _ACCEPTED, (_HOLD,), 0, _BUDGET),
    Row(_AC, _ACCEPTED, Event.VANISHED, _DOWN, (_FAIL, _WAKE), Errno.ECONNRESET, _GONE),
    Row(_AC, _ACCEPTED, Event.SEND, _ACCEPTED),
    Row(_AC, _ACCEPTED, Event.RECEIVE, _ACCEPTED),
    Row(_AC, _ACCEPTED, Event.CLOSE, _CLOSED, (_RST, _WAKE)),
    Row(_AC, _DOWN, Event.SYN, _DOWN, (_RST,)),
    Row(_AC, _DOWN, Event.SYN_ODD, _DOWN, (_RST,)),
    Row(_AC, _DOWN, Event.ACK, _DOWN, (_RST,)),
    Row(_AC, _DOWN, Event.RST, _DOWN),
    Row(_AC, _DOWN, Event.DATA, _DOWN, (_QUEUE, _WAKE)),
    Row(_AC, _DOWN, Event.DATA_FULL, _DOWN, (_HOLD,), 0, _BUDGET),
    Row(_AC, _DOWN, Event.SEND, _DOWN, (), Errno.EPIPE),
    Row(_AC, _DOWN, Event.RECEIVE, _DOWN, (), 0, _LATE),
    Row(_AC, _DOWN, Event.CLOSE, _CLOSED, (_WAKE,)),
    Row(_AC, _CLOSED, Event.SEND, _CLOSED, (), Errno.EBADF),
    Row(_AC, _CLOSED, Event.RECEIVE, _CLOSED, (), Errno.EBADF),
    Row(_AC, _CLOSED, Event.CLOSE, _CLOSED),
    # a listening port, frames of no accepted connection
    Row(_LI, _LISTENING, Event.SYN, _LISTENING, (Action.QUEUE_SYN, _WAKE)),
    Row(_LI, _LISTENING, Event.SYN_ODD, _LISTENING),
    Row(_LI, _LISTENING, Event.SYN_FULL, _LISTENING, (_REPLY,), 0,
        "improve: Linux leaves the 4th SYN in the ring, and all stops; here a long backlog, then refusal"),
    Row(_LI, _LISTENING, Event.SYN_AGAIN, _LISTENING, (), 0, "improve: one SYN, one connection"),
    Row(_LI, _LISTENING, Event.RST, _LISTENING, (Action.FORGET_SYN,), 0,
        "improve: Linux compares the conid only, so that one peer could withdraw another's SYN"),
    Row(_LI, _LISTENING, Event.OTHER, _LISTENING, (_REPLY,)),
    Row(_LI, _LISTENING, Event.ACCEPT, _LISTENING, (Action.TAKE_SYN,), 0,
        "improve: Linux's accept throws away what it finds queued besides SYNs; here only SYNs are queued"),
    Row(_LI, _LISTENING, Event.CLOSE, _CLOSED, (Action.RESET_SYNS, _WAKE)),
    Row(_LI, _CLOSED, Event.SYN, _CLOSED),
    Row(_LI, _CLOSED, Event.SYN_ODD, _CLOSED),
    Row(_LI, _CLOSED, Event.RST, _CLOSED),
    Row(_LI, _CLOSED, Event.OTHER, _CLOSED, (_REPLY,)),
    Row(_LI, _CLOSED, Event.ACCEPT, _CLOSED, (), Errno.EINVAL),
    Row(_LI, _CLOSED, Event.CLOSE, _CLOSED),
    # a connector's ring, frames of another connection
    Row(_ST, _BOUND, Event.SYN, _BOUND, (_REPLY,)),
    Row(_ST, _BOUND, Event.SYN_ODD, _BOUND),
    Row(_ST, _BOUND, Event.RST, _BOUND, (), 0,
        "improve: Linux answers an RST of another connection by RST; two such sockets never stop"),
    Row(_ST, _BOUND, Event.OTHER, _BOUND, (_REPLY,)),
)
# fmt: on
