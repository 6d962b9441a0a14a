"""Every way in which the broker, or a node, refuses what it was sent: codes, and what each one ends."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple


class Ends(IntEnum):
    """How far a refusal reaches."""

    RECORD = 1  # this frame or record; the session goes on
    SESSION = 2  # the session; a new hello may start another
    JOINING = 3  # joining altogether: the same hello would be refused again


class Refusal(StrEnum):
    """The code in ["refused", code, message]."""

    MALFORMED_FRAME = "MALFORMED_FRAME"
    MALFORMED_RECORD = "MALFORMED_RECORD"
    NOT_ALLOWED = "NOT_ALLOWED"
    NO_ROUTE = "NO_ROUTE"
    REPLAYED = "REPLAYED"
    FORGED_SOURCE = "forged-source"
    FORGED_LABEL = "forged-label"
    FORGED_EPOCH = "forged-epoch"
    FORGED_DEATH = "forged-death"
    FORGED_RESULT = "forged-result"
    HELLO_FIRST = "HELLO_FIRST"
    STALE_EPOCH = "STALE_EPOCH"
    SEQ_GAP = "SEQ_GAP"
    BAD_ACK = "BAD_ACK"
    OVERRUN = "OVERRUN"
    UNASKED_RESULT = "UNASKED_RESULT"
    WRONG_VERSION = "WRONG_VERSION"
    WRONG_TOKEN = "WRONG_TOKEN"
    WRONG_HOST = "WRONG_HOST"
    HANDSHAKE_FAILED = "HANDSHAKE_FAILED"
    NAME_IN_USE = "NAME_IN_USE"
    NAME_RESERVED = "NAME_RESERVED"
    TOO_MANY_NODES = "TOO_MANY_NODES"


class RefusalRow(NamedTuple):
    """A refusal, what it ends, and what it means."""

    code: Refusal
    ends: Ends
    meaning: str


REFUSALS: Final = (
    RefusalRow(Refusal.MALFORMED_FRAME, Ends.SESSION, "the bytes are not a frame"),
    RefusalRow(Refusal.MALFORMED_RECORD, Ends.RECORD, "the record is not in the vocabulary"),
    RefusalRow(Refusal.NOT_ALLOWED, Ends.RECORD, "a node of this kind may not say that"),
    RefusalRow(Refusal.NO_ROUTE, Ends.RECORD, "the broker knows no way to that destination"),
    RefusalRow(Refusal.REPLAYED, Ends.RECORD, "the frame was received before"),
    RefusalRow(Refusal.FORGED_SOURCE, Ends.RECORD, "the source is not below the node that sent it"),
    RefusalRow(Refusal.FORGED_LABEL, Ends.RECORD, "the label is not the one bound to that source"),
    RefusalRow(Refusal.FORGED_EPOCH, Ends.RECORD, "the origin has already spoken in a later epoch"),
    RefusalRow(Refusal.FORGED_DEATH, Ends.RECORD, "the dead endpoint is not below the node that says so"),
    RefusalRow(Refusal.FORGED_RESULT, Ends.RECORD, "the node was not asked for that result"),
    RefusalRow(Refusal.HELLO_FIRST, Ends.SESSION, "nobody joined over this connection"),
    RefusalRow(Refusal.STALE_EPOCH, Ends.SESSION, "the frame belongs to another epoch"),
    RefusalRow(Refusal.SEQ_GAP, Ends.SESSION, "records before this one are missing"),
    RefusalRow(Refusal.BAD_ACK, Ends.SESSION, "records were acknowledged that were never sent"),
    RefusalRow(Refusal.OVERRUN, Ends.SESSION, "more was sent than there was credit for"),
    RefusalRow(Refusal.UNASKED_RESULT, Ends.SESSION, "a result came that no request waits for"),
    RefusalRow(Refusal.WRONG_VERSION, Ends.JOINING, "the two sides speak different major versions"),
    RefusalRow(Refusal.WRONG_TOKEN, Ends.JOINING, "the token is not this lab's"),
    RefusalRow(Refusal.WRONG_HOST, Ends.JOINING, "that node runs on another host"),
    RefusalRow(Refusal.HANDSHAKE_FAILED, Ends.JOINING, "the connection was not secured; said by the node's own side"),
    RefusalRow(Refusal.NAME_IN_USE, Ends.JOINING, "a live node has that name"),
    RefusalRow(Refusal.NAME_RESERVED, Ends.JOINING, "the broker keeps that name for itself"),
    RefusalRow(Refusal.TOO_MANY_NODES, Ends.JOINING, "the broker remembers as many nodes as it may"),
)
ENDS: Final = {row.code: row.ends for row in REFUSALS}
MEANING: Final = {row.code: row.meaning for row in REFUSALS}


class Violation(ValueError):
    """A peer broke a rule of the session: the refusal that answers it, and the particulars."""

    def __init__(self, code: Refusal, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{MEANING[code]}: {detail}")
