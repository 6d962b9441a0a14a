"""What arrives and may not be believed: sources, results, notices.  Rules of docs/levels.md and argo.md 15."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.envelope import Envelope, EnvelopeKind
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hv_node.domain import DomainState
from hv_node.levels.calls import FLOOR_BITS
from hv_node.levels.notices import NOTICES
from hv_node.levels.options import Death
from tests.doubles.levels import Lab
from tests.doubles.two_levels import PORT, REFUSED, UNKNOWN, A, B, X, Y, envelope_of, register, send, two, tx


@pytest.mark.parametrize(
    ("child", "src_path"),
    [
        ("n", ("x", "m")),  # a sibling's
        ("n", ("x", "n", "b")),  # grown by somebody else
        ("n", ("n",)),
        (None, ("x", "a")),  # ours, from above
        (None, ("x", "n", "a")),
        (None, ("x", 5, "b")),
        (None, ("x", "", "b")),
    ],
)
def test_a_forged_source_is_dropped(child: str | None, src_path: tuple[Any, ...]) -> None:
    """A child speaks for what lies below it, the fabric for what does not lie below us."""
    lab = Lab([A, ("a", "n"), ("a", "m"), B], guests={("a", "y"): 1, ("a", "n", "x"): 2, ("b", "x"): 3})
    a = lab.nodes[A]
    register(a, 1)
    died = envelope_of(EnvelopeKind.ENDPOINT_DIED, src_path, ("a", ""), op=Death.DYING)
    for envelope in (envelope_of(EnvelopeKind.SEND, src_path, ("a", "y")), died):
        assert a.level.on_envelope(child, envelope, b"", 0)
    assert a.level.counters.forged == 2 and tx(a, 1) == 0
    assert all(domain.state is DomainState.ALIVE for domain in a.domains)


def test_only_whoever_was_asked_may_answer() -> None:
    """A result from another hypervisor, of another epoch, or to nothing, changes nothing."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    good: dict[str, Any] = {"src_path": ("", "b"), "dst": ("a", "x"), "origin_seq": 1, "ret": 5}
    for wrong in ({"src_path": ("", "c")}, {"origin_epoch": 2}, {"origin_seq": 9}, {"kind": EnvelopeKind.CANCEL}):
        fields = {"kind": EnvelopeKind.RESULT, **good, **wrong}
        wrongly = envelope_of(fields.pop("kind"), fields.pop("src_path"), fields.pop("dst"), **fields)
        a.level.on_envelope(None, wrongly, b"", 0)
        assert a.completed == {}
    a.level.on_envelope(None, envelope_of(EnvelopeKind.RESULT, good.pop("src_path"), good.pop("dst"), **good), b"", 0)
    assert a.completed == {"t": 5}


@pytest.mark.parametrize("row", NOTICES, ids=lambda row: row.rule)
def test_notices(row: Any) -> None:
    """What each notice does to an operation: it ends, or goes on; it never ran as far as this copy is concerned."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    told = envelope_of(EnvelopeKind.RESULT, ("", "b"), ("a", "x"), op=0, ret=-int(row.errno))
    a.level.on_envelope(None, told, b"", 0)
    assert a.completed == ({"t": REFUSED} if row.final else {})
    a.level.on_envelope(None, told, b"", 0)
    a.level.on_timer(1)
    a.level.calls.timeout_ns = 2
    a.level.on_timer(10)
    assert a.completed == ({"t": REFUSED} if row.final or row.down else {})


def test_a_notice_about_one_copy_says_nothing_about_another() -> None:
    """The first copy may have run; that the second did not proves nothing."""
    _, a, _ = two(held=True)
    send(a, X, Y)
    a.level.on_link(False, 0)
    a.level.on_link(True, 0)
    told = envelope_of(EnvelopeKind.RESULT, ("", "b"), ("a", "x"), op=0, ret=-Errno.ECANCELED, cookie=2 << FLOOR_BITS)
    a.level.on_envelope(None, told, b"", 0)
    assert a.completed == {"t": UNKNOWN}


@settings(max_examples=300)
@given(st.integers(0, 1 << 32), st.sampled_from([None, "n"]))
def test_nothing_that_arrives_raises(seed: int, child: str | None) -> None:
    """Any envelope with fields of the right types: no exception, and guests' memory but for rings stays as it is."""
    rng = random.Random(seed)
    lab = Lab([A, ("a", "n"), B], guests={("a", "y"): 1, ("a", "n", "x"): 2, ("b", "x"): 3})
    a = lab.nodes[A]
    register(a, 1)
    names: list[Any] = ["a", "b", "n", "x", "y", "", "*", "x#2", 5]
    for _ in range(20):
        src = tuple(rng.choice(names) for _ in range(rng.randint(0, 3))) + ((child,) if child else ("b",))
        dst = tuple(rng.choice(names) for _ in range(rng.randint(0, 4)))
        payload = rng.randbytes(rng.choice([0, 2, 10, 60]))
        if rng.random() < 0.5:
            payload = rng.choice([b"\x01\x00\x01y\x01\0\0\0\0\0\0\0", b"\x08\0\0\0", b"\x01\0\0\0"]) + payload
        envelope = Envelope(
            1, rng.randint(1, 7), rng.getrandbits(64), rng.randint(0, 3), rng.getrandbits(rng.choice([3, 64])),
            src, dst, rng.randint(0, 16), "", rng.choice([0, 1, 2, 3, 4, 5, 1 << 31]), 5, PORT, 0, 0, len(payload),
            rng.choice([0, 1, 2, 3, 7, -5, -111, 1 << 30]),
        )  # fmt: skip
        a.level.on_envelope(child, envelope, payload, rng.getrandbits(40))
    assert not any(a.ram[1][0x10000 : 24 * PAGE_SIZE])
