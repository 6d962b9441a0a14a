"""tests/golden/stream.csv: what the Linux Argo driver does, and where we mean to do something else.

The table was written from the specification alone, without sight of the code.  Every row of it is either
driven through our code, or listed in `NOT_OFFERED` with the reason.  A driven row must be answered as the
table says, unless a row of `DEPARTURES` says what we answer instead, and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from tests.golden import rows


class GoldenRow(NamedTuple):
    """One row of the table."""

    machine: str
    state: str
    event: str
    condition: str
    new_state: str
    sends: str
    effect: str
    error: str
    source: str
    note: str

    def __str__(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", f"{self.machine}-{self.state}-{self.event}-{self.condition}")


class Excuse(NamedTuple):
    """Rows that our API has no way to bring about; all four are regular expressions for whole cells."""

    machine: str
    state: str
    event: str
    condition: str
    reason: str

    def covers(self, row: GoldenRow) -> bool:
        cells = zip(self[:4], row[:4], strict=True)
        return all(re.fullmatch(pattern, cell) for pattern, cell in cells)


class Departure(NamedTuple):
    """Rows that we answer otherwise; cells of `instead` replace the table's."""

    where: Excuse
    instead: dict[str, str]


class Answer(NamedTuple):
    """What was observed, in the table's words."""

    new_state: str
    sends: str
    effect: frozenset[str]
    error: str


ROWS = tuple(GoldenRow(**row) for row in rows("stream.csv"))
API = "(datagram-)?api"

NOT_OFFERED = (
    Excuse("poll", ".*", ".*", ".*", "asyncio sockets have no poll; a task awaits instead"),
    Excuse(API, ".*", ".*", "nonblocking.*", "asyncio calls wait, or are cancelled"),
    Excuse("api", ".*", "send", ".*without MSG_NOSIGNAL", "no signals: the error is raised either way"),
    Excuse("api", ".*", "send", "address given", "stream send takes no address"),
    Excuse(API, ".*", "recv", "MSG_PEEK|.*; MSG_PEEK", "no peeking"),
    Excuse("datagram-api", ".*", "recv", "user buffer faults", "the buffer is the receiver's own bytes"),
    Excuse(API, ".*", "bind", "domain field not 0x7FF4", "the domain is not an argument"),
    Excuse(API, ".*", "bind", "state not IDLE", "a socket is bound when it is made"),
    Excuse(API, "IDLE", "listen|accept|send|close", ".*", "a socket is bound when it is made"),
    Excuse("api", ".*", "listen", "state not BOUND", "a listener is made listening"),
    Excuse("api", "BOUND|ACCEPTED|CONNECT.*|DISC.*", "accept", ".*", "only a listener has accept"),
    Excuse("datagram-api", ".*", "listen|accept", ".*", "only a listener has accept"),
    Excuse("datagram-api", "IDLE", "connect", "NULL address; .*", "a socket is bound when it is made"),
    Excuse("api", "LISTENING", "accept", ".*oldest item not a SYN.*", "only SYNs are queued: nothing to discard"),
    Excuse("rx-pass", "IDLE", "interrupt", ".*", "every ring has a socket behind it"),
    Excuse("wire", "-", "role_.*", ".*", "what stands behind a ring is an object, not a number"),
    Excuse("wire", "-", "socket_type_.*", ".*", "no ioctl asks"),
    Excuse("wire", "-", "data_area_fill_byte", ".*", "new ring pages are zero: no stale bytes to tell apart"),
    Excuse("wire", "-", "receive_queue_frames", ".*", "a budget of bytes instead of 3 frames"),
)

_LIVE = "(CONNECTED|ACCEPTED)"
_LATER = "a budget of bytes instead of 3 frames"
_FULL = "EBUSY means that no wake-up will come: the driver polls, the SYN goes out when there is room"

DEPARTURES = (
    Departure(
        Excuse(
            "connector-receive",
            ".*",
            "WRONG-TYPE",
            ".*",
            "a ring reader must filter: trust no other protocol",
        ),
        {"new_state": "=", "sends": "-", "effect": "consume", "error": "-"},
    ),
    Departure(
        Excuse("connector-receive", ".*", "WRONG-CONID", "carries RST", "RST answered by RST never ends"),
        {"sends": "-"},
    ),
    Departure(
        Excuse("listener-receive", "none", "RST", ".*peer ignored.*", "a peer withdraws its own SYNs only"),
        {"effect": "consume"},
    ),
    Departure(
        Excuse("listener-receive", "none", "SYN", ".*3 SYNs pending", "the backlog has a size of its own"),
        {"effect": "queue+wake-accept"},
    ),
    Departure(
        Excuse(API, "IDLE", "bind", "ring length mod 4096.*", "pages are counted with the ring's header"),
        {"new_state": "BOUND", "effect": "register-ring", "error": "-"},
    ),
    Departure(
        Excuse("api", "BOUND", "connect", ".*full ring and full wake-up queue", _FULL),
        {"new_state": "CONNECTING", "effect": "queue-syn-locally+block", "error": "-"},
    ),
    Departure(
        Excuse("api", "CONNECTING", "timeout", ".*", "the SYN is withdrawn, so that accept returns no dead peer"),
        {"sends": "RST"},
    ),
    Departure(
        Excuse("api", "DISCONNECTED", "connect", ".*timer fired", "a timeout is called one"),
        {"error": "ETIMEDOUT"},
    ),
    Departure(
        Excuse("api", _LIVE, "send", ".*peer ring vanished.*", "whoever waits for a ring that is gone is told"),
        {"new_state": "DISCONNECTED", "effect": "error", "error": "ECONNREFUSED"},
    ),
    Departure(
        Excuse(
            "api",
            _LIVE,
            "send",
            "frame payload . 8 over own.*",
            "the own ring's size says nothing of the peer's",
        ),
        {"sends": "DATA", "effect": "return-all", "error": "-"},
    ),
    Departure(
        Excuse("api", _LIVE, "send", ".*peer ring length 32784 or less", "frames are cut to the peer's ring"),
        {"sends": "DATA+DATA+DATA+DATA+DATA", "effect": "return-all", "error": "-"},
    ),
    Departure(
        Excuse("api", "DISCONNECTED", "recv", "frames still queued", "what came before the RST is read first"),
        {"effect": "dequeue-bytes"},
    ),
    Departure(
        Excuse("api", "LISTENING", "accept", "queue was full.*", "nothing was left in the ring: " + _LATER),
        {"effect": "dequeue-syn+new-fd-ACCEPTED+share-ring"},
    ),
    Departure(
        Excuse(
            "datagram-api",
            ".*",
            "send",
            ".*peer ring vanished.*",
            "whoever waits for a ring that is gone is told",
        ),
        {"effect": "error", "error": "ECONNREFUSED"},
    ),
    Departure(
        Excuse("notify-pass", "waiter", "notify", "not EXISTS", "whoever waits for a ring that is gone is told"),
        {"effect": "drop-entry+wake-writers"},
    ),
    Departure(
        Excuse("notify-pass", "any", "notify", "over 256 entries pending", "several calls of at most 256 entries"),
        {"effect": "all-processed", "error": "-"},
    ),
)

#: Words of the table's effects that name Linux's insides: no observation of ours is compared with them.
INSIDE = frozenset(
    ["role-DGRAM", "role-CONNECTOR", "role-LISTENER", "new-conid", "start-timer", "free", "new-fd-ACCEPTED"]
    + ["SIGPIPE", "no-change", "return-message-length", "return-buffer-length"]
)


def offered(row: GoldenRow) -> bool:
    """Whether our API can bring the row about."""
    return not any(excuse.covers(row) for excuse in NOT_OFFERED)


def expected(row: GoldenRow) -> Answer:
    """What we mean to answer."""
    for departure in DEPARTURES:
        if departure.where.covers(row):
            row = row._replace(**departure.instead)
    new_state = row.state if row.new_state == "=" else row.new_state
    effect = frozenset(row.effect.split("+")) - INSIDE - {"-"}
    return Answer(new_state, row.sends, effect, row.error)


def driven(choose: Callable[[GoldenRow], bool]) -> list[GoldenRow]:
    """The rows that `choose` picks and that our API can bring about."""
    return [row for row in ROWS if choose(row) and offered(row)]
