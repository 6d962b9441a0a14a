"""Property: nothing that a broker sends raises out of a member; whatever came, it can join a sound broker afterwards.

Input: messages, as they come or behind right headers, in a session or before it.
"""

from __future__ import annotations

from broker import frames
from broker.frames import FrameKind, Lane, Parts
from broker.member import HELLO_AGAIN_NS, Identity, Member, MemberState
from broker.session import SendResult
from tests.fuzz.data import Choices
from tests.fuzz.targets import Tally
from tests.fuzz.targets.frame import parts_of

TALLY = Tally()
EPOCH = 7
_EPOCHS = (EPOCH, EPOCH, EPOCH, EPOCH, EPOCH, EPOCH - 1, EPOCH + 1, (1 << 64) - 1)


def welcome(epoch: int, attempt: int) -> list[bytes]:
    """The answer to a hello."""
    return frames.pack_frame(FrameKind.HANDSHAKE, Lane.CONTROL, epoch, 0, attempt, [["welcome", epoch, "app"]])


def one_input(data: bytes) -> None:
    """Let a hostile broker speak to one member."""
    member = Member(Identity("guest", "app", b"0123456789abcdef", 1))
    sent: list[Parts] = []
    heard: list[object] = []

    def send(parts: Parts) -> SendResult:
        sent.append(parts)
        return SendResult.SENT

    member.on_record = lambda _lane, record, _payload: heard.append(record)
    now = 0
    member.flush(send, now)
    choices = Choices(data)
    if choices.u8() & 7:
        member.on_frame(welcome(EPOCH, 1), now)
    seq = 0
    while choices:
        step = choices.u8()
        parts = parts_of(choices, _EPOCHS[step & 7], seq if step & 8 else choices.u8())
        TALLY.count += 1
        if step & 16 and len(parts) == 3 and len(parts[0]) == 32:
            parts[0] = parts[0][:20] + (step >> 5).to_bytes(4, "little") + parts[0][24:]
        member.on_frame(parts, now)
        member.deliver()
        if len(parts) == 3 and parts[1][:1] > b"\x90":
            seq += parts[1][0] & 15
        if step & 32:
            member.send(Lane.CONTROL, ["tell", "b", ["x"]])
            now += HELLO_AGAIN_NS
            member.flush(send, now)
            if step & 64 and member.state is MemberState.JOINING:
                member.on_frame(welcome(max(EPOCH, member.epoch), _attempt(sent)), now)
                seq = 0
    if member.state is MemberState.REFUSED or member.epoch == (1 << 64) - 1:
        return  # for good: only the true broker can know the number of our hello
    if member.state is MemberState.JOINED:
        member.rejoin("the test's end")
    now += 2 * HELLO_AGAIN_NS
    member.flush(send, now)
    member.on_frame(welcome(member.epoch + 1, _attempt(sent)), now)
    member.deliver()
    assert member.state is MemberState.JOINED
    member.on_frame(
        frames.pack_frame(FrameKind.RECORDS, Lane.CONTROL, member.epoch, 0, 0, [["told", "b", ["the end"]]]), now
    )
    member.deliver()
    assert heard[-1] == ["told", "b", ["the end"]]


def _attempt(sent: list[Parts]) -> int:
    hellos = [frame for frame in map(frames.parse_frame, sent) if frame.kind is FrameKind.HANDSHAKE]
    return hellos[-1].seq
