"""The device status: bits, the states they stand for, and the table of what a rising bit does (VIRTIO 1.4, 2.1)."""

from __future__ import annotations

import pytest

from hmx.virtio.status import ALL_BITS, MOVES, ORDER, State, Status, Then, move, state_of

A, D, OK, F, S, N, X = 1, 2, 4, 8, 16, 64, 128


def test_bits() -> None:
    """Values of the status byte (2.1)."""
    assert [(bit.name, int(bit)) for bit in Status] == [
        ("ACKNOWLEDGE", 1), ("DRIVER", 2), ("DRIVER_OK", 4), ("FEATURES_OK", 8), ("SUSPEND", 16),
        ("DEVICE_NEEDS_RESET", 64), ("FAILED", 128),
    ]  # fmt: skip
    assert ALL_BITS == 0xDF


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0, "reset"), (A, "acknowledged"), (A | D, "driven"), (D, "driven"), (A | D | F, "negotiated"),
        (A | D | F | OK, "live"), (A | D | F | OK | S, "live"), (A | D | F | S, "suspended"), (A | X, "failed"),
        (A | D | F | OK | X, "failed"), (A | D | F | S | X, "failed"), (N, "broken"), (A | D | F | OK | N, "broken"),
        (N | X, "broken"), (N | S, "broken"), (OK, "live"), (32, "reset"),
    ],
)  # fmt: skip
def test_states(status: int, state: str) -> None:
    """A device that needs a reset is broken whatever else is set; one that suspends is live until it is drained."""
    assert state_of(status).value == state


def test_every_status_byte() -> None:
    """The worst that it says, or the furthest that a driver has come."""
    for status in range(256):
        expected = (
            State.BROKEN if status & N
            else State.FAILED if status & X
            else State.LIVE if status & OK
            else State.SUSPENDED if status & S
            else State.NEGOTIATED if status & F
            else State.DRIVEN if status & D
            else State.ACKNOWLEDGED if status & A
            else State.RESET
        )  # fmt: skip
        assert state_of(status) is expected, hex(status)


# state: what raising A, D, F, OK, S, N, X does.
# s store, g negotiate, t start, u suspend, r resume, p stop, - nothing, . it is set already.
EXPECTED = {
    State.RESET: "ssg---p",
    State.ACKNOWLEDGED: "ssg---p",
    State.DRIVEN: "ssg---p",
    State.NEGOTIATED: "ss.t--p",
    State.LIVE: "sss.u-p",
    State.SUSPENDED: "sssr.-p",
    State.FAILED: "ss----p",
    State.BROKEN: "ss-s--p",
}
LETTERS = {
    "s": Then.STORE, "g": Then.NEGOTIATE, "t": Then.START, "u": Then.SUSPEND, "r": Then.RESUME, "p": Then.STOP,
    "-": Then.IGNORE,
}  # fmt: skip


@pytest.mark.parametrize("state", State)
def test_moves(state: State) -> None:
    """DRIVER_OK only after FEATURES_OK, SUSPEND only when live, NEEDS_RESET never by the driver (2.1, 3.1.1)."""
    for bit, letter in zip((A, D, F, OK, S, N, X), EXPECTED[state], strict=True):
        if letter != ".":
            assert move(state, Status(bit)) is LETTERS[letter], bit


def test_every_bit_that_can_rise_has_a_rule() -> None:
    """In every status byte that there can be."""
    for status in range(256):
        for bit in Status:
            if not status & bit:
                assert move(state_of(status), bit) in Then


def test_one_rule_each() -> None:
    """No combination has two rows, and every bit has a rank; FAILED comes before what it forbids."""
    pairs = [(state, row.bit) for row in MOVES for state in row.states]
    assert len(pairs) == len(set(pairs))
    assert [int(bit) for bit in ORDER] == [X, A, D, F, OK, S, N]
