"""Property: nothing that peers send raises out of the router, which therefore loses no message; two bystanders still
tell each other things in order; what is queued for a peer stays within the lanes' limits.

Input: messages of two hostile connections, one of which has joined, each with an epoch, a seq and a body of choice.
"""

from __future__ import annotations

from broker.frames import LIMITS, Lane
from tests.broker.support import EPOCH, MS, CoreLab, handshake, hello_record
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally
from tests.fuzz.targets.frame import parts_of

TALLY = Tally()
_EPOCHS = (EPOCH, EPOCH, EPOCH, EPOCH, EPOCH, EPOCH - 1, EPOCH + 1, 0)
_NAMES = ("h", "h", "a", "b", "x", "broker")
_KINDS = ("guest", "hypervisor", "agent", "nonsense")


def one_input(data: bytes) -> None:
    """Let the hostile connections speak, then the bystanders."""
    lab = CoreLab()
    a, b, hostile, stranger = lab.node(name="a"), lab.node("hypervisor", "b"), lab.node("agent", "h"), lab.peer()
    for node in (a, b):
        node.heard()
    peers = (hostile, hostile, hostile, stranger)
    seqs = {hostile.routing_id: 0, stranger.routing_id: 0}
    choices = Choices(data)
    while choices:
        step = choices.u8()
        peer = peers[step & 3]
        TALLY.count += 1
        if step & 0x0C == 0x0C:
            lab.now_ns += (1 + (step >> 4)) * 100 * MS
            lab.core.on_tick(lab.now_ns)
            continue
        if step & 0x1C == 0x18:
            record = hello_record(choices.one_of(_KINDS), choices.one_of(_NAMES), epoch_seen=choices.u8() & 7)
            peer.raw(handshake(record))
            seqs[peer.routing_id] = 0
            continue
        if peer is hostile and not lab.core.nodes["h"].live:  # cut for an earlier message: a new session
            lab.sink.sent.clear()
            hostile.raw(handshake(hello_record("agent", "h")))
            seqs[peer.routing_id] = 0
        seq = seqs[peer.routing_id]
        parts = parts_of(choices, _EPOCHS[step >> 5], seq if step & 0x10 == 0 else choices.u8())
        peer.raw(parts)
        if len(parts) == 3 and parts[1][:1] > b"\x90" and parts[0][7:8] == b"\x01":
            seqs[peer.routing_id] = seq + (parts[1][0] & 15)
    lab.core.flush()
    for known in lab.core.nodes.values():
        for lane in Lane:
            assert known.session.queued(lane) <= LIMITS[lane].queue_records
    nodes = (lab.core.nodes["a"], lab.core.nodes["b"])
    ours = [node.live and node.routing_id == peer.routing_id for node, peer in zip(nodes, (a, b), strict=True)]
    if lab.core.stopping or not all(ours):
        return  # an agent may end the lab, say that a node is gone, and so free its name for another
    for bystander in (a, b):
        bystander.heard()
    for n in range(2):
        a.say(["tell", "b", ["x", n]], b"%d" % n)
    told = [record for _, record, _ in b.received()]
    assert told[-2:] == [["told", "a", ["x", 0]], ["told", "a", ["x", 1]]]
    b.say(["tell", "a", ["y"]])
    assert a.heard()[-1] == ["told", "b", ["y"]]
