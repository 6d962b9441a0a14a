"""The rows of the stream tables that the golden table cannot reach, written down a second time.

tests/golden/stream.csv speaks of what Linux's driver does (OpenXT argo-linux/argo-module.c).  Here is the rest: states
of ours (OPENING, CLOSED), events that Linux does not know (a ring that vanished, a SYN that waits already), and what
closing a socket owes to its peer and to whoever waits on it.
"""

from __future__ import annotations

import pytest

from guest_node.drivers.stream_table import ROWS, Action, Event, Machine, State
from hmx.errno import Errno

# machine, state, event: new state, actions, errno
EXPECTED = """
CONNECTOR BOUND        SYN       : BOUND        SEND_RST
CONNECTOR BOUND        SYN_ODD   : BOUND
CONNECTOR BOUND        ACK       : BOUND
CONNECTOR BOUND        RST       : BOUND
CONNECTOR BOUND        DATA      : BOUND        QUEUE WAKE
CONNECTOR BOUND        DATA_FULL : BOUND        HOLD
CONNECTOR BOUND        SEND      : BOUND        ENOTCONN
CONNECTOR BOUND        RECEIVE   : BOUND        ENOTCONN
CONNECTOR BOUND        CLOSE     : CLOSED
CONNECTOR CONNECTING   REFUSED   : BOUND        WAKE
CONNECTOR CONNECTING   RST       : DISCONNECTED FAIL WAKE ECONNREFUSED
CONNECTOR CONNECTING   TIMEOUT   : DISCONNECTED SEND_RST FAIL WAKE ETIMEDOUT
CONNECTOR CONNECTING   VANISHED  : DISCONNECTED FAIL WAKE ECONNREFUSED
CONNECTOR CONNECTING   SEND      : CONNECTING   ENOTCONN
CONNECTOR CONNECTING   RECEIVE   : CONNECTING   ENOTCONN
CONNECTOR CONNECTING   CLOSE     : CLOSED       SEND_RST WAKE
CONNECTOR CONNECTED    VANISHED  : DISCONNECTED FAIL WAKE ECONNRESET
CONNECTOR CONNECTED    CLOSE     : CLOSED       SEND_RST WAKE
CONNECTOR DISCONNECTED FAILED    : BOUND
CONNECTOR DISCONNECTED RECEIVE   : DISCONNECTED
CONNECTOR DISCONNECTED CLOSE     : CLOSED       WAKE
CONNECTOR CLOSED       SEND      : CLOSED       EBADF
CONNECTOR CLOSED       RECEIVE   : CLOSED       EBADF
CONNECTOR CLOSED       CLOSE     : CLOSED
ACCEPTED  OPENING      READY     : ACCEPTED     SEND_ACK
ACCEPTED  OPENING      SYN       : OPENING      SEND_RST
ACCEPTED  OPENING      SYN_ODD   : OPENING      SEND_RST
ACCEPTED  OPENING      ACK       : OPENING      SEND_RST
ACCEPTED  OPENING      RST       : DISCONNECTED WAKE
ACCEPTED  OPENING      DATA      : OPENING      QUEUE WAKE
ACCEPTED  OPENING      DATA_FULL : OPENING      HOLD
ACCEPTED  OPENING      CLOSE     : CLOSED       SEND_RST WAKE
ACCEPTED  ACCEPTED     VANISHED  : DISCONNECTED FAIL WAKE ECONNRESET
ACCEPTED  ACCEPTED     CLOSE     : CLOSED       SEND_RST WAKE
ACCEPTED  DISCONNECTED RECEIVE   : DISCONNECTED
ACCEPTED  DISCONNECTED CLOSE     : CLOSED       WAKE
ACCEPTED  CLOSED       SEND      : CLOSED       EBADF
ACCEPTED  CLOSED       RECEIVE   : CLOSED       EBADF
ACCEPTED  CLOSED       CLOSE     : CLOSED
LISTENER  LISTENING    SYN       : LISTENING    QUEUE_SYN WAKE
LISTENER  LISTENING    SYN_ODD   : LISTENING
LISTENER  LISTENING    SYN_FULL  : LISTENING    REPLY_RST
LISTENER  LISTENING    SYN_AGAIN : LISTENING
LISTENER  LISTENING    RST       : LISTENING    FORGET_SYN
LISTENER  LISTENING    OTHER     : LISTENING    REPLY_RST
LISTENER  LISTENING    ACCEPT    : LISTENING    TAKE_SYN
LISTENER  LISTENING    CLOSE     : CLOSED       RESET_SYNS WAKE
LISTENER  CLOSED       SYN       : CLOSED
LISTENER  CLOSED       SYN_ODD   : CLOSED
LISTENER  CLOSED       RST       : CLOSED
LISTENER  CLOSED       OTHER     : CLOSED       REPLY_RST
LISTENER  CLOSED       ACCEPT    : CLOSED       EINVAL
LISTENER  CLOSED       CLOSE     : CLOSED
STRANGER  BOUND        SYN       : BOUND        REPLY_RST
STRANGER  BOUND        SYN_ODD   : BOUND
STRANGER  BOUND        RST       : BOUND
STRANGER  BOUND        OTHER     : BOUND        REPLY_RST
"""
LINES = EXPECTED.strip().splitlines()

ROW = {(row.machine, row.state, row.event): row for row in ROWS}
CALLS = {Event.SEND, Event.RECEIVE, Event.ACCEPT}


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.partition(":")[0].split()))
def test_row(line: str) -> None:
    """Each line is one row: what it leads to, what it does in which order, what error it leaves."""
    key, _, answer = line.partition(":")
    machine, state, event = key.split()
    new_state, *rest = answer.split()
    row = ROW[Machine[machine], State[state], Event[event]]
    assert row.new_state is State[new_state]
    assert row.actions == tuple(Action[word] for word in rest if word in Action.__members__)
    assert row.error == next((Errno[word] for word in rest if word in Errno.__members__), 0)


def test_a_row_is_listed_once() -> None:
    """Two rows for the same event would leave one of them dead."""
    assert len(ROW) == len(ROWS)


def test_errors_stand_where_somebody_reads_them() -> None:
    """A row fails its connection, or refuses a call and changes nothing; no other row has an errno."""
    for row in ROWS:
        refuses = row.event in CALLS and not row.actions and row.new_state is row.state
        if Action.FAIL in row.actions:
            assert row.error, row
        elif not refuses:
            assert not row.error, row
