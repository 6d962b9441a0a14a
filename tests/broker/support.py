"""What the broker's tests share: a sink that records, and peers of a core that speak in real frames, without
sockets.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from broker import frames
from broker.envelope import VERSION, Envelope, EnvelopeKind, result_of, validate
from broker.frames import Buffer, Frame, FrameKind, Lane, Parts
from broker.records import Direction, encode
from broker.router import RouterCore
from broker.session import SendResult, Session

TOKEN = b"0123456789abcdef"
EPOCH = 7
MS = 1_000_000


class RecordingSink:
    """Keeps what a core sends, per routing id; `answers` makes a peer full or unreachable."""

    def __init__(self) -> None:
        self.sent: dict[bytes, deque[list[bytes]]] = {}
        self.events: list[tuple[object, ...]] = []
        self.answers: dict[bytes, SendResult] = {}

    def send(self, routing_id: bytes, parts: Parts) -> SendResult:
        answer = self.answers.get(routing_id, SendResult.SENT)
        if answer is SendResult.SENT:
            self.sent.setdefault(routing_id, deque()).append([bytes(part) for part in parts])
        return answer

    def event(self, code: str, *fields: object) -> None:
        self.events.append((code, *fields))

    def take(self, routing_id: bytes) -> list[Frame]:
        """The frames sent to a peer since last asked, parsed."""
        queue = self.sent.pop(routing_id, deque())
        return [frames.parse_frame(parts) for parts in queue]


def hello_record(kind: str = "guest", name: str = "app", **changes: Any) -> list[Any]:
    """A hello that is right but for `changes`: major, minor, token, pid, epoch_seen."""
    fields = {"major": 1, "minor": 0, "token": TOKEN, "pid": 100, "epoch_seen": 0, **changes}
    return [
        "hello", fields["major"], fields["minor"], kind, name, fields["token"], fields["pid"], fields["epoch_seen"],
    ]  # fmt: skip


def envelope_of(path: str = "hv0/app", to: str = "hv1/store", seq: int = 1, **changes: Any) -> Envelope:
    """A SEND from one absolute path to another, but for `changes`: what the fabric gets of the L0 in the first step."""
    names = path.split("/")
    fields: dict[str, Any] = {
        "ver": VERSION, "kind": EnvelopeKind.SEND, "cookie": 0, "origin_epoch": 1, "origin_seq": seq,
        "src_path": tuple(names[::-1]), "dst": tuple(to.split("/")), "hops_left": 16, "label": "", "op": 3,
        "port_src": 1000, "port_dst": 2000, "msg_type": 0, "offset": 0, "length": 0, "ret": 0,
    }  # fmt: skip
    return Envelope(**{**fields, **changes})


def handshake(record: Sequence[Any], attempt: int = 1) -> list[bytes]:
    return frames.pack_frame(FrameKind.HANDSHAKE, Lane.CONTROL, 0, attempt, 0, [record])


class Peer:
    """One connection to a core: a real session once it is welcomed, raw frames at will."""

    _ids = itertools.count(1)

    def __init__(self, lab: CoreLab, routing_id: bytes | None = None) -> None:
        self.lab = lab
        self.routing_id = routing_id or b"\0" + next(self._ids).to_bytes(4, "big")
        self.session = Session(Direction.TO_NODE, lab.core.epoch)
        self._kept: list[Frame] = []  # what came with a welcome

    def raw(self, parts: Parts) -> None:
        self.lab.core.on_frame(self.routing_id, parts, self.lab.now_ns)

    def hello(self, kind: str = "guest", name: str = "app", **changes: Any) -> list[list[Any]]:
        """Say hello; the records of the handshake frames that answer."""
        attempt = changes.pop("attempt", 1)
        self.raw(handshake(hello_record(kind, name, **changes), attempt))
        answers = self.frames()
        self._kept = [frame for frame in answers if frame.kind is not FrameKind.HANDSHAKE]
        return [frame.records[0] for frame in answers if frame.kind is FrameKind.HANDSHAKE]

    def say(self, record: Sequence[Any], payload: Buffer = b"", lane: Lane = Lane.CONTROL) -> None:
        """Send one record in a frame of its own."""
        assert self.session.offer(lane, encode(Direction.TO_BROKER, lane, record, payload))
        self.push()

    def push(self) -> None:
        """Flush this peer's session into the core."""

        def send(parts: Parts) -> SendResult:
            self.raw(parts)
            return SendResult.SENT

        self.session.flush(send)

    def frames(self) -> list[Frame]:
        """Flush the core; the frames it had for this peer."""
        self.lab.core.flush()
        kept, self._kept = self._kept, []
        return kept + self.lab.sink.take(self.routing_id)

    def raw_records(self) -> list[list[Any]]:
        """The records that the core had for this peer, taken without its session: for peers that speak raw frames."""
        return [record for frame in self.frames() for record in frame.records]

    def envelopes(self) -> list[tuple[Envelope, bytes]]:
        """The envelopes that the core had for this peer, and their payloads; acknowledged."""
        got = [(record, payload) for lane, record, payload in self.received() if lane is Lane.REQUEST]
        return [(validate(record), payload) for record, payload in got]

    def news(self) -> list[tuple[str, str]]:
        """What the core had to tell of other hypervisors: name and state."""
        return [(record[1], record[2]) for record in self.heard() if record[0] == "peer"]

    def ask(self, request: Envelope, payload: bytes = b"") -> None:
        """Send an envelope."""
        self.say(request, payload, Lane.REQUEST)

    def answer(self, request: Envelope, ret: int = 0, payload: bytes = b"") -> None:
        """Send the result of a request that was received."""
        self.say(result_of(request, ret), payload, Lane.REQUEST)

    def heard(self, acknowledge: bool = True) -> list[list[Any]]:
        """The records that the core had for this peer, acknowledged at once unless told otherwise."""
        return [record for _, record, _ in self.received(acknowledge)]

    def received(self, acknowledge: bool = True) -> list[tuple[Lane, list[Any], bytes]]:
        records: list[tuple[Lane, list[Any], bytes]] = []
        for frame in self.frames():
            if frame.kind is FrameKind.HANDSHAKE:
                records.append((frame.lane, frame.records[0], b""))
                continue
            good, bad = self.session.accept(frame)
            assert not bad
            records += [(frame.lane, list(item.record), bytes(item.payload)) for item in good]
        if acknowledge:
            self.push()
        return records


class CoreLab:
    """A router core with a recording sink and a clock that the test moves."""

    def __init__(self, epoch: int = EPOCH, **options: Any) -> None:
        self.sink = RecordingSink()
        self.now_ns = 10**9
        minted = itertools.count(1)
        self.core = RouterCore(
            token=TOKEN, epoch=epoch, sink=self.sink, mint=lambda: next(minted).to_bytes(16, "big"), **options
        )
        self.core.on_tick(self.now_ns)

    def peer(self) -> Peer:
        """A connection that has not said hello."""
        return Peer(self)

    def node(self, kind: str = "guest", name: str = "app", **changes: Any) -> Peer:
        """A connection that was welcomed."""
        peer = self.peer()
        answers = peer.hello(kind, name, **changes)
        assert answers == [["welcome", self.core.epoch, name]]
        return peer

    def agent(self) -> Peer:
        """A subscriber that has read the snapshot."""
        agent = self.node("agent", "agent")
        agent.say(["subscribe"])
        agent.heard()
        return agent

    def hypervisors(self, *names: str) -> list[Peer]:
        """Hypervisors below the fabric that have heard of each other."""
        peers = [self.node("hypervisor", name) for name in names]
        for peer in peers:
            peer.heard()
        return peers

    def wait(self, ms: int, step_ms: int = 100) -> None:
        """Let time pass in steps, as a broker's loop does."""
        for _ in range(ms // step_ms):
            self.now_ns += step_ms * MS
            self.core.on_tick(self.now_ns)

    def shown(self, name: str) -> str:
        return self.core.nodes[name].record[3]


def rets(peer: Peer) -> list[tuple[int, int, bool]]:
    """Results that a peer got: seq, ret, whether the broker itself said so."""
    got = [envelope for envelope, _ in peer.envelopes()]
    assert all(envelope.kind == EnvelopeKind.RESULT for envelope in got)
    return [(envelope.origin_seq, envelope.ret, envelope.src_path == ("", "broker")) for envelope in got]


def rooms(lab: CoreLab, peer: Peer, name: str) -> tuple[int, int]:
    """Requests without their result, as the node and as the broker count them."""
    return peer.session.lane(Lane.REQUEST).outstanding, lab.core.nodes[name].session.lane(Lane.REQUEST).owed


def outstanding(lab: CoreLab, name: str, count: int) -> None:
    """Let the broker believe that so many of its requests to a node are unanswered."""
    node = lab.core.nodes[name]
    node.session.lane(Lane.REQUEST).outstanding = count
    lab.core.touch(node)


def records_of(peer: Peer, name: str) -> list[list[Any]]:
    """The records of that name among those that `peer` has not heard yet."""
    return [record for record in peer.heard() if record[0] == name]


def raw_frame(records: list[Any], **changes: Any) -> list[bytes]:
    """The parts of a frame that nobody has checked; `changes` are fields of its header."""
    fields = {"kind": FrameKind.RECORDS, "lane": Lane.CONTROL, "epoch": EPOCH, "seq": 0, "ack": 0, **changes}
    return frames.pack_frame(records=records, **fields)
