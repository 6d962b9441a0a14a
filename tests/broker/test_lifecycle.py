"""States of a node at the broker, checked against a second table; refusals and what each of them ends."""

from __future__ import annotations

from broker import lifecycle
from broker.lifecycle import State, Stimulus
from broker.refusals import ENDS, MEANING, Ends, Refusal

# state: HELLO READY HEARD SILENT EXIT GONE CUT; "-" where the state has no such transition
TABLE = """
JOINED        JOINED READY JOINED JOINED_SILENT EXITED EXITED LOST
READY         JOINED READY READY  READY_SILENT  EXITED EXITED LOST
JOINED_SILENT JOINED -     JOINED JOINED_SILENT -      EXITED LOST
READY_SILENT  JOINED -     READY  READY_SILENT  -      EXITED LOST
EXITED        JOINED -     -      -             -      EXITED -
LOST          JOINED -     -      -             -      EXITED -
"""


def test_transitions() -> None:
    """Every cell, the empty ones included: a silent node becomes what it was, a dead one only joins anew."""
    expected = {}
    for line in TABLE.split("\n")[1:-1]:
        state, *results = line.split()
        for stimulus, result in zip(Stimulus, results, strict=True):
            if result != "-":
                expected[State[state], stimulus] = State[result]
    assert expected == lifecycle.NEXT
    assert len(lifecycle.TRANSITIONS) == len(expected)


def test_what_is_shown() -> None:
    """joined, ready, unresponsive, exited, lost; the last two have no session."""
    shown = [(row.state.name, row.shown, row.live) for row in lifecycle.STATES]
    assert shown == [
        ("JOINED", "joined", True),
        ("READY", "ready", True),
        ("JOINED_SILENT", "unresponsive", True),
        ("READY_SILENT", "unresponsive", True),
        ("EXITED", "exited", False),
        ("LOST", "lost", False),
    ]


WORDS = """
the bytes are not a frame
the record is not in the vocabulary
a node of this kind may not say that
the broker knows no way to that destination
the frame was received before
the source is not below the node that sent it
the label is not the one bound to that source
the origin has already spoken in a later epoch
the dead endpoint is not below the node that says so
the node was not asked for that result
nobody joined over this connection
the frame belongs to another epoch
records before this one are missing
records were acknowledged that were never sent
more was sent than there was credit for
a result came that no request waits for
the two sides speak different major versions
the token is not this lab's
that node runs on another host
the connection was not secured; said by the node's own side
a live node has that name
the broker keeps that name for itself
the broker remembers as many nodes as it may
"""


def test_refusals() -> None:
    """What a refusal ends decides whether a node goes on, joins again, or gives up."""
    ends = {
        Ends.RECORD: "MALFORMED_RECORD NOT_ALLOWED NO_ROUTE REPLAYED FORGED_SOURCE FORGED_LABEL FORGED_EPOCH "
        "FORGED_DEATH FORGED_RESULT",
        Ends.SESSION: "MALFORMED_FRAME HELLO_FIRST STALE_EPOCH SEQ_GAP BAD_ACK OVERRUN UNASKED_RESULT",
        Ends.JOINING: "WRONG_VERSION WRONG_TOKEN WRONG_HOST HANDSHAKE_FAILED NAME_IN_USE NAME_RESERVED TOO_MANY_NODES",
    }
    expected = {Refusal[name]: end for end, names in ends.items() for name in names.split()}
    assert expected == ENDS
    forged = [code.value for code in Refusal if code.name.startswith("FORGED")]
    assert forged == ["forged-source", "forged-label", "forged-epoch", "forged-death", "forged-result"]
    assert [MEANING[code] for code in Refusal] == WORDS.strip().splitlines()
