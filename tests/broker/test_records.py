"""The control vocabulary: every record's fields, directions, lanes, senders and fate, and errors that name
the culprit.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import codec, frames, records
from broker.envelope import Use
from broker.fields import RecordError
from broker.frames import FrameKind, Lane
from broker.records import Direction, PayloadReader, Rejoin, decode, decode_frame, encode
from tests.broker.test_envelope import values

UP, DOWN = Direction.TO_BROKER, Direction.TO_NODE
CONTROL, REQUEST, EVENT = Lane
NODES: tuple[str, ...] = ()
I32, U8, U32, U64 = "i32", "u8", "u32", "u64"

# direction, name, field types, any more fields, lanes, who may say it, payload, fate at the end of a session
VOCABULARY = [
    (UP, "hello", [U8, U8, "kind", "name", "secret", U32, U64], False, [CONTROL], NODES, False, Rejoin.DROP),
    (UP, "ready", [], False, [CONTROL], NODES, False, Rejoin.STANDING),
    (UP, "exit", [I32, "text"], False, [CONTROL], NODES, False, Rejoin.RESEND),
    (UP, "heartbeat", [U64], False, [CONTROL], NODES, False, Rejoin.DROP),
    (UP, "subscribe", [], False, [CONTROL], NODES, False, Rejoin.STANDING),
    (UP, "tell", ["name", "record"], False, [CONTROL], NODES, True, Rejoin.RESEND),
    (UP, "event", ["code"], True, [CONTROL, EVENT], NODES, False, Rejoin.RESEND),
    (UP, "attach", ["name"], False, [CONTROL], ("guest", "hypervisor"), False, Rejoin.RESEND),
    (UP, "gone", ["name", I32, "text", U32], False, [CONTROL], ("agent",), False, Rejoin.RESEND),
    (UP, "shutdown", [], False, [CONTROL], ("agent",), False, Rejoin.RESEND),
    (UP, "impair", ["name", "name", "impairment"], False, [CONTROL], ("agent",), False, Rejoin.RESEND),
    (UP, "relabel", [U64, "record"], False, [CONTROL], ("agent",), False, Rejoin.RESEND),
    (DOWN, "welcome", [U64, "name"], False, [CONTROL], NODES, False, Rejoin.DROP),
    (DOWN, "refused", ["code", "text"], False, [CONTROL], NODES, False, Rejoin.DROP),
    (DOWN, "told", ["name", "record"], False, [CONTROL], NODES, True, Rejoin.RESEND),
    (DOWN, "nobody", ["name", "record"], False, [CONTROL], NODES, False, Rejoin.RESEND),
    (DOWN, "busy", ["name", "record"], False, [CONTROL], NODES, False, Rejoin.RESEND),
    (DOWN, "node", ["name", "kind", "code", "text"], False, [CONTROL], NODES, False, Rejoin.DROP),
    (DOWN, "event", ["name", "code"], True, [CONTROL, EVENT], NODES, False, Rejoin.RESEND),
    (DOWN, "shutdown", [], False, [CONTROL], NODES, False, Rejoin.RESEND),
    (DOWN, "peer", ["name", "peer state", U64, U32], False, [CONTROL], NODES, False, Rejoin.DROP),
    (DOWN, "relabelled", [U64], False, [CONTROL], NODES, False, Rejoin.RESEND),
    (DOWN, "impaired", ["name", "name", "impairment"], False, [CONTROL], NODES, False, Rejoin.RESEND),
]

# type: values that are right, values that are not
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    U8: ([0, 255], [-1, 256, True, "1", None, 1.0]),
    U32: ([0, (1 << 32) - 1], [-1, 1 << 32, False, b"1"]),
    U64: ([0, (1 << 64) - 1], [-1, True, "1"]),
    I32: ([-(1 << 31), (1 << 31) - 1], [-(1 << 31) - 1, 1 << 31, True]),
    "kind": (["hypervisor", "guest", "agent"], ["broker", "", "guests", b"guest", 1, None]),
    "name": (
        ["a", "Z9", "0", "a.b_c-d", "x" * 128],
        ["", "x" * 129, "-a", ".a", "_a", "a b", "a/b", "é", "a\n", 1, b"a"],
    ),
    "secret": ([b"x", b"x" * 64], [b"", b"x" * 65, "x", None]),
    "text": (["", "x" * 16384, "é\n"], ["x" * 16385, b"", 1, None]),
    "code": (["x", "x" * 128, "WRONG TOKEN"], ["", "x" * 129, b"x", 1]),
    "peer state": (["up", "down", "dead"], ["", "UP", "gone", b"up", 1, None, ["up"]]),
    "impairment": (
        [[0] * 7, [1, 2, 0.5, 3, 1.0, 0, True]],
        [[0] * 6, [0] * 8, [-1, *[0] * 6], ["x"] * 7, [float("nan"), *[0] * 6], [1 << 63, *[0] * 6], 7, None, []],
    ),
    "record": ([["x"], ["x", 1, [2]], ["x"] * 250], [[], [1], ["x"] * 257, "x", None, {}, [b"x"]]),
}  # fmt: skip


def good(types: list[str]) -> list[Any]:
    return [VALUES[kind][0][0] for kind in types]


@pytest.mark.parametrize("row", VOCABULARY, ids=lambda row: f"{row[0].name}-{row[1]}")
def test_row(row: tuple[Direction, str, list[str], bool, list[Lane], tuple[str, ...], bool, Rejoin]) -> None:
    """Each record against a second table: what is right passes, each field wrong in turn is named in the error."""
    direction, name, types, more, lanes, senders, payload, rejoin = row
    for lane in (CONTROL, EVENT):
        if lane not in lanes:
            with pytest.raises(RecordError, match="lane"):
                encode(direction, lane, [name, *good(types)])
            continue
        outgoing = encode(direction, lane, [name, *good(types)])
        assert (outgoing.use, outgoing.rejoin) == (Use.ORDINARY, rejoin)
        found = records.lookup(direction, lane, [name])
        assert (found.senders, found.rejoin, found.payload) == (senders, rejoin, payload)
    for at, kind in enumerate(types):
        for value in VALUES[kind][0]:
            encode(direction, CONTROL, [name, *good(types[:at]), value, *good(types[at + 1 :])])
        for value in VALUES[kind][1]:
            with pytest.raises(RecordError) as caught:
                encode(direction, CONTROL, [name, *good(types[:at]), value, *good(types[at + 1 :])])
            assert caught.value.record == name
            assert caught.value.value is value
            assert caught.value.expected in str(caught.value)
    extra = [name, *good(types), None]
    if more:
        encode(direction, CONTROL, [*extra, 1, "x", [1]])
    else:
        with pytest.raises(RecordError, match="length"):
            encode(direction, CONTROL, extra)
    if types:
        with pytest.raises(RecordError, match="length"):
            encode(direction, CONTROL, [name, *good(types[:-1])])
    if payload:
        encode(direction, CONTROL, [name, *good(types)], b"x")
    else:
        with pytest.raises(RecordError, match="payload"):
            encode(direction, lanes[0], [name, *good(types)], b"x")


def test_no_other_records_exist() -> None:
    """The second table is complete, and neither direction knows the other's records."""
    assert [(row.direction, row.name) for row in records.VOCABULARY] == [(row[0], row[1]) for row in VOCABULARY]
    strange: list[tuple[Direction, list[Any]]] = [
        (UP, ["welcome", 1, "a"]), (DOWN, ["ready"]), (UP, ["nonsense"]), (UP, [7]), (UP, []),
    ]  # fmt: skip
    for direction, record in strange:
        with pytest.raises(RecordError, match=r"record\.name"):
            encode(direction, CONTROL, record)


FIELD_NAMES = """
hello major minor kind name token pid epoch_seen / ready / exit code reason / heartbeat n / subscribe / tell to record
/ event code / attach hypervisor / gone name code reason pid / shutdown
/ impair a b impairment / relabel round labels / welcome epoch name / refused code message
/ told from record / nobody to record / busy to record / node name kind state detail / event from code / shutdown
/ peer name state epoch pid / relabelled round / impaired a b impairment
"""


def test_field_names_are_those_of_the_errors() -> None:
    """The names that errors print, row by row."""
    names = [[row.name, *(field.name for field in row.fields)] for row in records.VOCABULARY]
    assert names == [line.split() for line in FIELD_NAMES.split("/")]


def test_the_error_reads_well() -> None:
    """It names record, field and value, and says what would have been right."""
    with pytest.raises(RecordError) as caught:
        encode(UP, CONTROL, ["tell", 17, ["x"]])
    assert str(caught.value).startswith("tell.to: 17 is not a name: 1 to 128 of letters")


def test_payload_travels_beside_the_record() -> None:
    """A record with bulk bytes ends with (offset, length) on the wire and without them in a receiver's hands."""
    packed = [encode(UP, CONTROL, ["tell", "a", ["x"]], data).packed for data in (b"", b"abc", b"defg")]
    frame = frames.parse_frame(frames.assemble(CONTROL, 1, 0, 0, packed))
    assert frame.records == [["tell", "a", ["x"]], ["tell", "a", ["x"], 0, 3], ["tell", "a", ["x"], 3, 4]]
    taken, bad = decode_frame(UP, frame)
    assert not bad
    assert [(item.record, bytes(item.payload)) for item in taken] == [
        (["tell", "a", ["x"]], b""), (["tell", "a", ["x"]], b"abc"), (["tell", "a", ["x"]], b"defg"),
    ]  # fmt: skip


REFERENCES = [
    # payload, (offset, length) of each record, right
    (b"abcd", [(0, 2), (2, 2)], True),
    (b"abcd", [(0, 4), (0, 4)], False),  # twice the same bytes: 64 records could claim 64 payloads
    (b"abcd", [(2, 2), (0, 2)], False),
    (b"abcd", [(0, 2), (3, 1)], False),
    (b"abcd", [(0, 2)], False),
    (b"abcd", [(0, 5)], False),
    (b"abcd", [(0, -1)], False),
    (b"abcd", [], False),
    (b"", [(0, 0)], True),
    (b"", [(1, 0)], False),
]


@pytest.mark.parametrize(("payload", "references", "right"), REFERENCES)
def test_references_cover_the_payload_once(payload: bytes, references: list[tuple[int, int]], right: bool) -> None:
    """References are in order, touch, and cover all of it: a receiver handles no byte twice."""
    told = [["tell", "a", ["x"], offset, length] for offset, length in references] or [["ready"]]
    frame = frames.parse_frame(frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 0, 0, told, payload))
    taken, bad = decode_frame(UP, frame)
    assert (not bad) is right
    assert sum(len(item.payload) for item in taken) <= len(payload)


def test_one_bad_record_does_not_spoil_the_others() -> None:
    """Errors come beside the records that are right, in order."""
    mixed: list[list[Any]] = [["ready"], ["tell", 5, ["x"]], ["nonsense"], ["exit", 0, "done"]]
    frame = frames.parse_frame(frames.pack_frame(FrameKind.RECORDS, CONTROL, 1, 0, 0, mixed))
    taken, bad = decode_frame(UP, frame)
    assert [item.record[0] for item in taken] == ["ready", "exit"]
    assert [(error.record, error.field) for error in bad] == [("tell", "to"), ("record", "name")]


def test_envelopes_have_the_request_lane_for_themselves() -> None:
    """No named record on the request lane, no envelope on another."""
    outgoing = encode(UP, REQUEST, values(), b"abc")
    assert (outgoing.use, outgoing.rejoin) == (Use.REQUEST, Rejoin.DROP)
    frame = frames.parse_frame(frames.assemble(REQUEST, 1, 0, 0, [outgoing.packed, outgoing.packed]))
    assert [record[13:15] for record in frame.records] == [[0, 3], [3, 3]]
    taken, bad = decode_frame(DOWN, frame)
    assert not bad
    assert [bytes(item.payload) for item in taken] == [b"abc", b"abc"]
    for lane, record in [(REQUEST, ["ready"]), (CONTROL, values()), (EVENT, values())]:
        with pytest.raises(RecordError):
            encode(UP, lane, record)
        with pytest.raises(RecordError):
            decode(UP, lane, list(record), PayloadReader(memoryview(b"")))


def test_sizes_are_bounded_at_the_sender() -> None:
    """A record must fit a frame's body, its payload the lane, its items an array: said before anything is sent."""
    encode(UP, EVENT, ["event", "x", *["y" * 16000] * 4])
    encode(UP, CONTROL, ["event", "x", *[0] * 250])
    encode(UP, CONTROL, ["tell", "a", ["x"]], bytes(1 << 20))
    wrong: list[tuple[Lane, list[Any], bytes, str]] = [
        (EVENT, ["event", "x", *["y" * 16400] * 4], b"", "size"),
        (CONTROL, ["event", "x", *[0] * 255], b"", "length"),
        (CONTROL, ["tell", "a", ["x"]], bytes((1 << 20) + 1), "payload"),
        (REQUEST, values(), bytes((1 << 24) + 1), "payload"),
        (CONTROL, ["event", "x", 1 << 64], b"", "fields"),
        (CONTROL, ["event", "x", {}], b"", "fields"),
        (CONTROL, ["event", "\ud800"], b"", "record"),
    ]
    for lane, record, payload, field in wrong:
        with pytest.raises(RecordError) as caught:
            encode(UP, lane, record, payload)
        assert caught.value.field == field


def test_the_largest_array_that_may_be_sent_is_read() -> None:
    """Sender and decoder agree on how long a record may be."""
    longest = ["event", "x", *[0] * 252]
    packed = encode(UP, CONTROL, longest).packed
    assert codec.unpack_array(packed.head) == longest
    with pytest.raises(RecordError):
        encode(UP, CONTROL, [*longest, 0])


ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
NAMES = st.sampled_from([row[1] for row in VOCABULARY])


@given(st.sampled_from(Direction), st.sampled_from(Lane), NAMES, st.lists(ITEMS, max_size=8))
def test_random_fields_raise_nothing_but_record_errors(
    direction: Direction, lane: Lane, name: str, fields: list[Any]
) -> None:
    """Whatever stands behind a name: accepted or refused, never anything else."""
    frame = frames.parse_frame(frames.pack_frame(FrameKind.RECORDS, lane, 1, 0, 0, [[name, *fields]]))
    taken, bad = decode_frame(direction, frame)
    assert len(taken) + len(bad) == 1
