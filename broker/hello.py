"""What a hello says by itself: whether it is one, of our version, and shows the lab's token.

Who holds the name that it asks for is for the router to judge (broker/router.py).
"""

from __future__ import annotations

import hmac
from typing import Any

from broker import codec, frames
from broker.fields import RecordError
from broker.frames import Lane
from broker.records import Direction, PayloadReader, decode
from broker.refusals import Refusal


def judge_words(record: list[Any], lab_token: bytes) -> tuple[Refusal, str] | None:
    """Why a handshake with this record is refused, whoever holds its name; None: its fields are those of a hello."""
    if record[0] != "hello":
        return Refusal.HELLO_FIRST, f"a handshake with {codec.show(record[0])}"
    if len(record) > 1 and type(record[1]) is int and record[1] != frames.MAJOR:
        ours = f"{frames.MAJOR}.{frames.MINOR}"
        return Refusal.WRONG_VERSION, f"this broker speaks {ours}, the node speaks major {record[1]}"
    try:
        decode(Direction.TO_BROKER, Lane.CONTROL, record, PayloadReader(memoryview(b"")))
    except RecordError as error:
        return Refusal.MALFORMED_RECORD, str(error)
    _, _, _, kind, name, token, pid, _ = record
    if not hmac.compare_digest(token, lab_token):
        return Refusal.WRONG_TOKEN, f"{kind} {name!r} (pid {pid}) does not show this lab's token"
    return None
