"""file-send and file-receive: a file crosses whole, or both sides say that it did not.

Source: the programs' own agreement (guest_node/programs/transfer.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest

from guest_node.guest import Guest
from guest_node.programs.transfer import (
    HEADER,
    VERDICT,
    TransferError,
    Verdict,
    pack_header,
    pack_verdict,
    unpack_header,
    unpack_verdict,
)
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab

DATA = random.Random(11).randbytes(700_001)
SEND = {"to": "receiver", "file": "in/some file.tar", "ring": "64KiB"}


def transfer(
    lab: Lab, send: dict[str, Any], receive: dict[str, Any], starts: tuple[float, float] = (0.0, 0.0)
) -> dict[str, int]:
    return simulate(
        lambda: lab.run(
            sender=("builtin:file-send", send, starts[0]),
            receiver=("builtin:file-receive", receive, starts[1]),
        )
    )


def lab_with(data: bytes, name: str = "in/some file.tar") -> Lab:
    lab = Lab("sender", "receiver")
    lab.files["sender"].inputs[name] = data
    return lab


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "700 kB"])
def test_a_file_arrives_whole(data: bytes) -> None:
    """Both sides exit 0 and report the same SHA-256, the file's; the counters add up."""
    lab = lab_with(data)
    assert transfer(lab, SEND, {"ring": 65536}) == {"sender": 0, "receiver": 0}
    assert lab.files["receiver"].outputs == {"some file.tar": data}
    sent, got = lab.guests["sender"].results, lab.guests["receiver"].results
    assert sent["sha256"] == got["sha256"] == hashlib.sha256(data).hexdigest()
    assert sent["verdict"] == got["verdict"] == "equal"
    assert sent["bytes"] == got["bytes"] == HEADER.size + len("some file.tar") + len(data) + 32
    assert sent["messages"] == got["messages"]
    assert sent["attempts"] >= 1


def test_the_sender_waits_for_a_receiver_that_starts_late() -> None:
    """Xen signals no registration (common/argo.c): the sender asks again, and reports how often."""
    lab = lab_with(DATA[:1000])
    assert transfer(lab, SEND, {}, (0.0, 3.0)) == {"sender": 0, "receiver": 0}
    assert lab.guests["sender"].results["attempts"] > 5


def test_a_receiver_that_never_comes_is_an_error() -> None:
    """After `within` the sender gives up with exit code 1 and says whom it missed."""
    lab = lab_with(DATA[:1000])
    lab.guests.clear()

    async def main() -> dict[str, int]:
        lab.guest("receiver")
        return await lab.run(sender=("builtin:file-send", {**SEND, "within": "2s"}, 0.0))

    assert simulate(main) == {"sender": 1}
    assert "cannot reach receiver" in lab.guests["sender"].results["error"]


def test_a_missing_input_is_an_error_of_its_own() -> None:
    """An unreadable file is named; the peer is not troubled."""
    lab = Lab("sender", "receiver")

    async def main() -> dict[str, int]:
        lab.guest("receiver")
        return await lab.run(sender=("builtin:file-send", SEND, 0.0))

    assert simulate(main) == {"sender": 1}
    assert "cannot read in/some file.tar" in lab.guests["sender"].results["error"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("a\\..\\b.txt", "b.txt"),
        ("..", "received"),
        (".hidden\x00\n", "hidden"),
    ],
)
def test_no_name_leaves_the_output_directory(name: str, safe: str) -> None:
    """The receiver keeps the last component of a stranger's name, and nothing of its cunning."""

    async def sender(guest: Guest) -> int:
        async with await guest.argo.connect(guest.peers["receiver"], 5001) as connection:
            # pack_header takes what it is given; file-send itself would have cut the path already
            await connection.send(pack_header(name, 3) + b"abc" + hashlib.sha256(b"abc").digest())
            assert unpack_verdict(await connection.receive_exactly(VERDICT.size)).ok
        return 0

    lab = Lab("sender", "receiver")
    codes = simulate(lambda: lab.run(receiver=("builtin:file-receive", {}, 0.0), sender=(sender, {}, 0.1)))
    assert codes == {"sender": 0, "receiver": 0}
    assert lab.files["receiver"].outputs == {safe: b"abc"}


def test_the_output_may_be_named() -> None:
    """`output` wins over the sender's name."""
    lab = lab_with(b"abc")
    assert transfer(lab, SEND, {"output": "copy"}) == {"sender": 0, "receiver": 0}
    assert lab.files["receiver"].outputs == {"copy": b"abc"}


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "another protocol"),
        (HEADER.pack(b"AFT1", 60000, 5), "60000 bytes"),
        (pack_header("x", 100) + b"too little", "stopped 90 bytes before"),
        (b"AF", "2 bytes read"),
    ],
)
def test_a_sender_that_breaks_the_agreement_leaves_no_file(stream: bytes, error: str) -> None:
    """The receiver exits 1, says why, and keeps nothing."""

    async def sender(guest: Guest) -> int:
        async with await guest.argo.connect(guest.peers["receiver"], 5001) as connection:
            await connection.send(stream)
        return 0

    lab = Lab("sender", "receiver")
    codes = simulate(lambda: lab.run(receiver=("builtin:file-receive", {}, 0.0), sender=(sender, {}, 0.1)))
    assert codes == {"sender": 0, "receiver": 1}
    assert error in lab.guests["receiver"].results["error"]
    assert lab.files["receiver"].outputs == {}
    assert lab.files["receiver"].open_outputs == set()


def test_a_wrong_hash_is_a_mismatch_on_both_sides() -> None:
    """The receiver answers with what it got and exits 1, without keeping the file."""
    verdicts: list[Verdict] = []

    async def sender(guest: Guest) -> int:
        async with await guest.argo.connect(guest.peers["receiver"], 5001) as connection:
            await connection.send(pack_header("x", 3) + b"abc" + bytes(32))
            verdicts.append(unpack_verdict(await connection.receive_exactly(VERDICT.size)))
        return 0

    lab = Lab("sender", "receiver")
    codes = simulate(lambda: lab.run(receiver=("builtin:file-receive", {}, 0.0), sender=(sender, {}, 0.1)))
    assert codes == {"sender": 0, "receiver": 1}
    assert verdicts == [Verdict(False, hashlib.sha256(b"abc").digest())]
    assert lab.files["receiver"].outputs == {}


@pytest.mark.parametrize(
    "answer",
    [
        pack_verdict(Verdict(False, bytes(32))),
        pack_verdict(Verdict(True, bytes(32))),  # says yes, and has another file
        b"?" * VERDICT.size,
        b"",
    ],
    ids=["different", "lies", "nonsense", "nothing"],
)
def test_the_sender_believes_only_its_own_hash(answer: bytes) -> None:
    """Exit code 0 needs a verdict that repeats the sender's own SHA-256."""

    async def receiver(guest: Guest) -> int:
        async with await guest.argo.listen(5001) as listener:
            connection = await listener.accept()
        async with connection:
            length, size = unpack_header(await connection.receive_exactly(HEADER.size))
            await connection.receive_exactly(length + size + 32)
            await connection.send(answer)
        return 0

    lab = lab_with(DATA[:5000])
    codes = simulate(lambda: lab.run(receiver=(receiver, {}, 0.0), sender=("builtin:file-send", SEND, 0.1)))
    assert codes == {"sender": 1, "receiver": 0}


def test_a_file_that_shrinks_is_not_sent_as_whole() -> None:
    """The size was promised in the header: what is missing is an error at both ends."""
    lab = lab_with(DATA[:600_000])
    opened = lab.files["sender"].open_input

    def shrinking(path: str) -> Any:
        file = opened(path)
        real = file.readinto  # type: ignore[attr-defined]
        reads = iter([True, False])

        class Shrinking:
            seek = file.seek

            def readinto(self, target: memoryview) -> int:
                return int(real(target)) if next(reads) else 0

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                return None

        return Shrinking()

    lab.files["sender"].open_input = shrinking  # type: ignore[method-assign]
    assert transfer(lab, SEND, {}) == {"sender": 1, "receiver": 1}
    assert "shrank" in lab.guests["sender"].results["error"]
    assert lab.files["receiver"].outputs == {}


def test_from_needs_no_mac_permissive() -> None:
    """A ring for one partner is allowed where a wildcard ring is -EPERM; without `from` the hint names the
    option.
    """
    lab = Lab("sender", "receiver", mac_permissive=False)
    lab.files["sender"].inputs["f"] = b"abc"
    send = {"to": "receiver", "file": "f"}
    assert transfer(lab, send, {"from": "sender"}) == {"sender": 0, "receiver": 0}
    refused = Lab("sender", "receiver", mac_permissive=False)

    async def main() -> dict[str, int]:
        return await refused.run(receiver=("builtin:file-receive", {}, 0.0))

    assert simulate(main) == {"receiver": 1}
    assert any("mac-permissive" in line for line in refused.logs["receiver"])


def test_pieces_of_the_agreement() -> None:
    """Header and verdict refuse other magics and over-long names; a long name is cut at a character."""
    with pytest.raises(TransferError, match="another protocol"):
        unpack_header(HEADER.pack(b"AFT2", 0, 0))
    with pytest.raises(TransferError, match="another protocol"):
        unpack_verdict(VERDICT.pack(b"AFT1", 1, bytes(32)))
    assert unpack_header(pack_header("\u20ac" * 500, 7)[: HEADER.size]) == (1023, 7)
    assert unpack_header(HEADER.pack(b"AFT1", 1024, 2**64 - 1)) == (1024, 2**64 - 1)


def test_two_senders_to_one_receiver() -> None:
    """Only the first is served; the other is refused, and says so."""
    lab = Lab("sender", "receiver", "other")
    for name in ("sender", "other"):
        lab.files[name].inputs["f"] = DATA[:50_000]
    send = {"to": "receiver", "file": "f", "within": 1}

    async def main() -> dict[str, int]:
        async with asyncio.timeout(100):
            return await lab.run(
                receiver=("builtin:file-receive", {}, 0.0),
                sender=("builtin:file-send", send, 0.1),
                other=("builtin:file-send", send, 0.1),
            )

    assert simulate(main) == {"receiver": 0, "sender": 0, "other": 1}
