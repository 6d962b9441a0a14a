"""Property: bytes are a request or a reply, or AttachError with few words; a request that is accepted packs to the same
bytes.

Input: one message.
"""

from __future__ import annotations

from hmx.attach import MAX_MESSAGE, AttachError, Reply, pack_reply, pack_request, unpack_reply, unpack_request
from tests.fuzz.targets import Tally

TALLY = Tally()


def one_input(data: bytes) -> None:
    """Read one message as either side would."""
    TALLY.count += 1
    try:
        request = unpack_request(data)
    except AttachError as error:
        words = str(error)
        assert len(words) < 200
        assert unpack_reply(pack_reply(Reply(True, 0, 0, 0, 0, words))).text == words, "the reason reaches the peer"
    else:
        assert pack_request(request) == data
        assert len(pack_reply(Reply(True, 0, 0, 0, 0, repr(request.name) * 9))) <= MAX_MESSAGE
    try:
        reply = unpack_reply(data)
    except AttachError:
        return
    assert len(pack_reply(reply)) <= MAX_MESSAGE
    assert unpack_reply(pack_reply(reply))[:5] == reply[:5]
