"""The replay itself: it must see every kind of difference, and reject what is no trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hv_node import conform
from hv_node.conform import TraceError, differences, main, replay

Event = dict[str, Any]

REGISTER = "10000000 0100 0000 70000000"  # port 0x10 for domain 1, 112 bytes
SEND = "05000000 0100 0000 10000000 0200 0000"
HEADER = "15000000 05000000 0100 0000 07000000"


def trace() -> list[Event]:
    """Domain 2 registers a ring for domain 1, which sends 'hello' from address 0x3000."""
    return [
        {"ev": "boot", "cmdline": "on", "xsm": "dummy", "ret": 0},
        {"ev": "domain", "dom": 1, "npages": 4},
        {"ev": "domain", "dom": 2, "npages": 4},
        {"ev": "domain", "dom": 3, "npages": 4},
        {"ev": "page", "dom": 1, "gfn": 2, "type": "paged", "nowrite": False},
        {
            "ev": "op", "dom": 2, "cmd": 1, "args": [256, 512, 1, 0], "ret": 0, "err": None,
            "pre": {"2": [[256, REGISTER.replace(" ", "")], [512, "02"]]}, "post": {}, "sigs": [],
        },
        {
            "ev": "op", "dom": 1, "cmd": 3, "args": [256, 512, 1, 7], "ret": 5, "err": None,
            "pre": {"1": [
                [256, SEND.replace(" ", "")], [512, "003000000000000005"], [0x3000, b"hello".hex()],
            ]},
            "post": {"2": [
                [0x2004, "20"], [0x2040, (HEADER + "68656c6c6f").replace(" ", "")],
            ]},
            "sigs": [[2, 11]],
        },
        {"ev": "soft_reset", "dom": 1, "pre": {}, "ret": 0, "post": {}, "sigs": []},
        {"ev": "kill", "dom": 2, "pre": {}, "ret": 0, "post": {}, "sigs": []},
        {"ev": "free", "dom": 2},
        {"ev": "domain", "dom": 2, "npages": 4},
    ]  # fmt: skip


SEND_INDEX = 6


def write(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_good_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 ops, nothing to complain about, plain or compressed."""
    plain = write(tmp_path / "t.jsonl", trace())
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert replay(packed).ops == 2
    assert main([str(plain), packed]) == 0
    assert capsys.readouterr().out == "4 ops, 0 mismatches\n"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("ret", 6, "expected 6, got 5"),
        ("ret", -11, "expected -EAGAIN, got 5"),
        ("sigs", [], "expected signals [], got [(2, 11)]"),
        ("sigs", [[2, 11], [2, 11]], "expected signals [(2, 11), (2, 11)], got [(2, 11)]"),
        ("sigs", [[1, 11]], "expected signals [(1, 11)], got [(2, 11)]"),
        ("post", {}, "domain 2: at 0x2004 expected 00, found 20; domain 2: at 0x2040 expected"),
        ("post", {"2": [[0x2004, "30"]]}, "domain 2: at 0x2004 expected 30, found 20"),
        (
            "post",
            {**trace()[SEND_INDEX]["post"], "3": [[0x3FFF, "01"]]},
            "domain 3: at 0x3fff expected 01, found 00",
        ),
    ],
)
def test_each_difference_is_seen(
    field: str, value: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Result, signals, a byte missing or too many, in any domain: one mismatch; what follows is judged anew."""
    events = trace()
    events[SEND_INDEX][field] = value
    path = write(tmp_path / "t.jsonl", events)
    (text,) = replay(path).mismatches
    assert text.startswith("t.jsonl:7: domain 1 argo_op(3, 0x100, 0x200, 0x1, 0x7): ")
    assert said in text
    assert main([path]) == 1
    assert capsys.readouterr().out.endswith("2 ops, 1 mismatches\n")


def test_a_core_that_writes_too_much_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stray store anywhere, in memory that the trace never names."""
    real = conform._call

    def stray(subject: conform.Subject, event: Event) -> int:
        ret = real(subject, event)
        if event["ev"] == "kill":
            subject.actual[3][-1] ^= 1
        return ret

    monkeypatch.setattr(conform, "_call", stray)
    (text,) = replay(write(tmp_path / "t.jsonl", trace())).mismatches
    assert text == "t.jsonl:9: kill 2: domain 3: at 0x3fff expected 00, found 01"


def test_the_boot_options_are_judged(tmp_path: Path) -> None:
    """What the parser of `argo=` answers belongs to the trace."""
    events = trace()
    events[0]["ret"] = -22
    (text,) = replay(write(tmp_path / "t.jsonl", events)).mismatches
    assert text == "t.jsonl:1: boot: expected -EINVAL, got 0"


def test_page_types_count(tmp_path: Path) -> None:
    """Without the page event the payload would be readable elsewhere too; with it, it faults."""
    events = trace()
    events[4]["gfn"] = 3
    assert "expected 5, got -EFAULT" in replay(write(tmp_path / "t.jsonl", events)).mismatches[0]


def test_differences_are_cut_short() -> None:
    """Runs of what differs, and not all of it when all of it does."""
    expected = bytes(100)
    actual = bytearray(100)
    actual[3:5] = b"\x01\x02"
    actual[99] = 9
    assert list(differences(actual, expected)) == [
        "at 0x3 expected 0000, found 0102",
        "at 0x63 expected 00, found 09",
    ]
    assert len("".join(differences(b"\xff" * 100, expected))) < 200


@pytest.mark.parametrize(
    ("events", "line", "reason"),
    [
        ([{"ev": "domain", "dom": 1, "npages": 1}], 1, "begin with a boot"),
        ([trace()[0], {"ev": "dance"}], 2, "unknown event 'dance'"),
        ([trace()[0], {"dom": 1}], 2, "KeyError"),
        ([trace()[0], {"ev": "kill", "dom": 5, "pre": {}, "ret": 0, "post": {}, "sigs": []}], 2, "domain 5"),
        ([{"ev": "boot", "cmdline": "on", "xsm": "flask", "ret": 0}], 1, "flask"),
        ([*trace()[:2], {"ev": "domain", "dom": 1, "npages": 1}], 3, "in use"),
        ([*trace()[:2], {"ev": "page", "dom": 1, "gfn": 0, "type": "wet"}], 3, "WET"),
        ([trace()[0], {"ev": "domain", "dom": 1, "npages": 1 << 40}], 2, "'npages' that makes no sense"),
        ([trace()[0], {"ev": "domain", "dom": "1", "npages": 1}], 2, "'dom' that makes no sense"),
        ([*trace()[:3], {**trace()[5], "pre": []}], 4, "'pre' that makes no sense"),
        ([*trace()[:3], {**trace()[5], "args": [1, 2, 3]}], 4, "'args' that makes no sense"),
        ([*trace()[:3], {**trace()[5], "args": [-1, 2, 3, 4]}], 4, "'args' that makes no sense"),
        ([*trace()[:3], {**trace()[5], "sigs": [[1]]}], 4, "'sigs' that makes no sense"),
        ([*trace()[:3], {**trace()[5], "pre": {"2": [[4 * 4096 - 1, "0000"]]}}], 4, "domain 2 has 16384"),
    ],
)
def test_what_is_no_trace(
    events: list[Event], line: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said with file and line, exit code 2."""
    path = write(tmp_path / "t.jsonl", events)
    with pytest.raises(TraceError, match=reason) as caught:
        replay(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert main([path]) == 2
    assert f"{path}:{line}: " in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"not json\n", b"\x1f\x8bgarbage", b"[1]\n", b"\xff\xfe\n"])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    """Also files that no decoder likes."""
    path = tmp_path / "t"
    path.write_bytes(content)
    assert main([path]) == 2


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there, a directory, no file at all."""
    assert main([tmp_path / "nowhere"]) == 2
    assert main([tmp_path]) == 2
    assert main([]) == 2
    assert "no trace given" in capsys.readouterr().err
