"""The published exit codes (topology.md, "The command")."""

from __future__ import annotations

import pytest

from topologies.exitcodes import EXIT_CODES, ExitCode, describe

PUBLISHED = (
    (0, "OK", "ok", "everything asked for was done, and every check passed"),
    (
        1,
        "CHECK_FAILED",
        "check-failed",
        "a check failed, or a program raised or ended non-zero and no check expected it",
    ),
    (2, "USAGE", "usage", "wrong usage, or an invalid topology"),
    (3, "NOTHING_TO_DO", "nothing-to-do", "there is nothing to do"),
    (
        4,
        "INFRASTRUCTURE",
        "infrastructure",
        "the machine or the fabric failed: no room, no permission, host unreachable",
    ),
    (5, "DIED", "died", "a node died by a signal or an internal error, and no check expected it"),
    (6, "TIMEOUT", "timeout", "a deadline passed"),
    (130, "INTERRUPTED", "interrupted", "interrupted (Ctrl-C)"),
)


def test_the_published_codes() -> None:
    """Scripts rely on the numbers: they never change, and each has one meaning."""
    assert tuple((code.value, code.name) for code in ExitCode) == tuple(row[:2] for row in PUBLISHED)
    assert tuple(tuple(row) for row in EXIT_CODES) == tuple((row[0], *row[2:]) for row in PUBLISHED)


def test_a_code_has_a_row_or_is_none_of_ours() -> None:
    """`describe` is how help and docs get at the table."""
    for code in ExitCode:
        assert describe(code).code == code
    with pytest.raises(KeyError):
        describe(7)
