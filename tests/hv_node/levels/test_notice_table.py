"""The notices of docs/levels.md, "Notices", in a second copy: which numbers end an operation, and which wait."""

from __future__ import annotations

from hv_node.levels.notices import BY_RET, NOTICE_OP, NOTICES, ROUTER_NOTICES, notice

# rule; ret (Xen's numbers); ends the operation; means that the way is down; the far side has it
WRITTEN = (
    ("way down", -107, False, True, False),
    ("no such hypervisor", -111, True, False, False),
    ("no room on the way", -11, False, False, False),
    ("another copy is being executed", -115, False, False, True),
    ("fenced", -125, True, False, False),
)


def test_notices_are_those_that_are_written_down() -> None:
    """A flag that flips would end an operation that may still run, or wait for one that never will."""
    assert [(row.rule, -int(row.errno), row.final, row.down, row.running) for row in NOTICES] == list(WRITTEN)
    assert sorted(BY_RET) == sorted(ret for _, ret, *_ in WRITTEN)
    assert [notice(rule) for rule, *_ in WRITTEN] == [ret for _, ret, *_ in WRITTEN]


def test_no_request_has_the_op_of_a_notice() -> None:
    """Argo's operations begin at 1 (Xen public/argo.h), ours at 0x40000000."""
    assert NOTICE_OP == 0


def test_the_router_speaks_of_copies_only() -> None:
    """What it did not forward may have been forwarded before: nothing that it says ends an operation."""
    assert {ret: row.final for ret, row in ROUTER_NOTICES.items()} == {-111: False, -11: False}
