"""Replay of recorded Argo traces against the core.

A trace is a file of JSON objects, one a line (gzip or plain): what a hypervisor was asked and what it
answered.

    boot        cmdline, xsm, ret          a new hypervisor
    domain      dom, npages                a domain with zeroed pages; domain 0 is the control domain
    page        dom, gfn, type, nowrite    a page changes its type
    op          dom, cmd, args, pre, ret, post, sigs
    kill, soft_reset   dom, pre, ret, post, sigs
    free        dom                        the id no longer resolves

`pre` and `post` map domains to runs [address, hex bytes]: memory written by guests before the event, and
memory as the event left it. Everything that no run names must be as it was: after every event that the
core took part in, the whole memory of all domains is compared with a copy to which only `pre` and `post`
have been applied. `sigs`, the virtual interrupts, are compared as a multiset.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hmx.errno import describe
from hmx.memory import PAGE_SIZE, MappedMemory, PageType
from hv_node.argo.core import Argo
from hv_node.argo.options import parse_options
from hv_node.domain import Domain, DomainTable
from hv_node.effects import RecordingSink
from hv_node.xsm import xsm_by_name

CONTROL_DOMID: Final = 0
_SHOWN: Final = 16  # differing bytes shown of one domain

Runs = Mapping[str, Sequence[tuple[int, str]]]

_U64: Final = (1 << 64) - 1
_MAX_DOMID: Final = 0xFFFF
_MAX_PAGES: Final = 1 << 13  # of one domain: twice the largest ring


def _integer(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _text(value: object) -> bool:
    return isinstance(value, str)


def _runs(value: object) -> bool:
    """{domid: [[address, hex bytes], ...]}; whether the hex digits are any is seen when they are read."""
    return isinstance(value, dict) and all(
        isinstance(pieces, list)
        and all(isinstance(run, list) and len(run) == 2 and _U64_OF(run[0]) and _text(run[1]) for run in pieces)
        for pieces in value.values()
    )


def _pairs(value: object) -> bool:
    """[[domid, virq], ...]."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(item) is int for item in pair) for pair in value
    )


_U64_OF: Final = _integer(0, _U64)
_DOM: Final = _integer(0, _MAX_DOMID)
_RET: Final = _integer(-(1 << 63), _U64)
_ANSWERED: Final = {"dom": _DOM, "pre": _runs, "ret": _RET, "post": _runs, "sigs": _pairs}
# What each event must hold; further fields are comments.
_FIELDS: Final[Mapping[str, Mapping[str, Callable[[object], bool]]]] = {
    "boot": {"cmdline": _text, "xsm": _text, "ret": _RET},
    "domain": {"dom": _DOM, "npages": _integer(1, _MAX_PAGES)},
    "page": {"dom": _DOM, "gfn": _U64_OF, "type": _text},
    "op": {
        "cmd": _integer(0, 0xFFFF_FFFF),
        "args": lambda value: isinstance(value, list) and len(value) == 4 and all(map(_U64_OF, value)),
        **_ANSWERED,
    },
    "kill": _ANSWERED,
    "soft_reset": _ANSWERED,
    "free": {"dom": _DOM},
}


class TraceError(Exception):
    """A file is no trace.  `path`, `line` (0: the file as a whole) and `reason` say where and why."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


@dataclass(slots=True)
class Outcome:
    """What a replay found: hypercalls replayed, and one description for each event that went otherwise."""

    ops: int = 0
    mismatches: list[str] = field(default_factory=list)


class Subject:
    """The hypervisor under test and, beside each domain's memory, what that memory should hold.

    `argo_of`, `start`, `kill` and `free` are what a subject of several hypervisors does otherwise.
    """

    def __init__(self, cmdline: str, xsm: str) -> None:
        self.options, self.boot_ret = parse_options(cmdline)
        self.domains = DomainTable()
        self.sink = RecordingSink()
        self.argo = Argo(self.domains, xsm_by_name(xsm), self.sink, self.options)
        self.actual: dict[int, bytearray] = {}
        self.expected: dict[int, bytearray] = {}

    def create(self, domid: int, npages: int) -> None:
        """A new domain with zeroed pages."""
        self.actual[domid] = bytearray(npages * PAGE_SIZE)
        self.expected[domid] = bytearray(npages * PAGE_SIZE)
        self.start(Domain(domid, MappedMemory(self.actual[domid]), is_control=domid == CONTROL_DOMID))

    def free(self, domid: int) -> None:
        """Its id no longer resolves."""
        self.end(self.domain(domid))
        del self.actual[domid], self.expected[domid]

    def domain(self, domid: int) -> Domain:
        """The domain.  ValueError: there is none."""
        domain = self.domains.lookup(domid)
        if domain is None:
            raise ValueError(f"domain {domid} does not exist here")
        return domain

    def argo_of(self, domain: Domain) -> Argo:  # noqa: ARG002  (here there is but one)
        """Who serves its calls."""
        return self.argo

    def start(self, domain: Domain) -> None:
        """Enter a new domain."""
        self.domains.create(domain)
        self.argo.domain_init(domain)

    def kill(self, domain: Domain) -> None:
        """It starts dying."""
        self.argo.domain_kill(domain)

    def end(self, domain: Domain) -> None:
        """It is freed."""
        self.argo.domain_kill(domain)
        self.domains.remove(domain.domid)

    def take_virqs(self) -> list[tuple[int, int]]:
        """The virtual interrupts raised since the last call, as (domid, VIRQ)."""
        return self.sink.take_virqs()

    def apply(self, runs: Runs, *images: dict[int, bytearray]) -> None:
        """Write `runs` to the memories in `images`."""
        for domid, pieces in runs.items():
            for address, text in pieces:
                data = bytes.fromhex(text)
                for image in images:
                    memory = image[int(domid)]
                    if address + len(data) > len(memory):
                        raise ValueError(f"{len(data)} bytes at {address:#x}: domain {domid} has {len(memory)}")
                    memory[address : address + len(data)] = data

    def compare(self) -> list[str]:
        """Differences between memory and expectation, by domain.  Then memory is made to agree."""
        found = []
        actual = self.actual
        for domid, expected in self.expected.items():
            if actual[domid] != expected:  # one memcmp over the whole domain
                found += [f"domain {domid}: {text}" for text in differences(actual[domid], expected)]
                actual[domid][:] = expected
        return found


def differences(actual: bytes | bytearray, expected: bytes | bytearray) -> Iterator[str]:
    """Runs of differing bytes as text, at most the first few."""
    shown = at = 0
    end = len(expected)
    while at < end and shown < _SHOWN:
        if actual[at] == expected[at]:
            at += 1
            continue
        start = at
        while at < end and actual[at] != expected[at] and at - start < _SHOWN:
            at += 1
        yield f"at {start:#x} expected {expected[start:at].hex()}, found {actual[start:at].hex()}"
        shown += at - start


def _check_fields(event: Mapping[str, Any]) -> None:
    """ValueError or KeyError for an event that is unknown, or whose fields are not what they should be."""
    kind = event["ev"]
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ValueError(f"unknown event {kind!r}")
    for name, fits in fields.items():
        if not fits(event[name]):
            raise ValueError(f"this {kind} event has a {name!r} that makes no sense")


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line.  Raises TraceError."""
    number = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise TraceError(path, number, "a line that is no JSON object")
                yield number, event
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(path, number, str(error)) from error
    except RecursionError:
        raise TraceError(path, number, "nested too deep") from None
    except ValueError as error:
        raise TraceError(path, number, str(error)) from error


def _call(subject: Subject, event: Mapping[str, Any]) -> int:
    """Make the core live through an op, kill or soft_reset.  Returns what it answered."""
    domain = subject.domain(event["dom"])
    if event["ev"] == "op":
        a1, a2, a3, a4 = event["args"]
        return subject.argo_of(domain).op(domain, event["cmd"], a1, a2, a3, a4)
    if event["ev"] == "kill":
        subject.kill(domain)
    else:
        subject.argo_of(domain).soft_reset(domain)
    return 0


def _judge(subject: Subject, event: Mapping[str, Any]) -> list[str]:
    """Replay an event that has an answer.  Returns the differences."""
    subject.apply(event["pre"], subject.actual, subject.expected)
    subject.take_virqs()
    ret = _call(subject, event)
    subject.apply(event["post"], subject.expected)
    found = []
    if ret != event["ret"]:
        found.append(f"expected {describe(event['ret'])}, got {describe(ret)}")
    expected_virqs = Counter((domid, virq) for domid, virq in event["sigs"])
    virqs = Counter(subject.take_virqs())
    if virqs != expected_virqs:
        found.append(f"expected signals {sorted(expected_virqs.elements())}, got {sorted(virqs.elements())}")
    return found + subject.compare()


def _step(subject: Subject, event: Mapping[str, Any]) -> list[str]:
    """Any event but boot.  Returns the differences."""
    match event["ev"]:
        case "op" | "kill" | "soft_reset":
            return _judge(subject, event)
        case "domain":
            subject.create(event["dom"], event["npages"])
        case "free":
            subject.free(event["dom"])
        case "page":
            memory = subject.domain(event["dom"]).memory
            assert isinstance(memory, MappedMemory)
            page_type = PageType[event["type"].upper()]
            memory.set_page(event["gfn"], page_type, nowrite=bool(event.get("nowrite")))
        case other:
            raise ValueError(f"unknown event {other!r}")
    return []


def replay(path: str | Path, subject_type: Callable[[str, str], Subject] = Subject) -> Outcome:
    """Replay one trace against `subject_type(cmdline, xsm)`.  Raises TraceError when the file cannot be read or is
    none.
    """
    path = Path(path)
    outcome = Outcome()
    subject: Subject | None = None
    for number, event in _events(path):
        try:
            _check_fields(event)
            if event["ev"] == "boot":
                subject = subject_type(event["cmdline"], event["xsm"])
                same = subject.boot_ret == event["ret"]
                wanted, got = describe(event["ret"]), describe(subject.boot_ret)
                found = [] if same else [f"expected {wanted}, got {got}"]
            elif subject is None:
                raise ValueError("the trace does not begin with a boot event")
            else:
                found = _step(subject, event)
                outcome.ops += event["ev"] == "op"
        except (KeyError, ValueError, TypeError) as error:
            raise TraceError(path, number, f"{type(error).__name__}: {error}") from error
        if found:
            outcome.mismatches.append(f"{path.name}:{number}: {_title(event)}: " + "; ".join(found))
    return outcome


def _title(event: Mapping[str, Any]) -> str:
    if event["ev"] == "op":
        return f"domain {event['dom']} argo_op({event['cmd']}, {', '.join(map(hex, event['args']))})"
    return f"{event['ev']} {event.get('dom', '')}".rstrip()


def main(paths: Sequence[str | Path]) -> int:
    """Replay `paths`; print each mismatch, then `N ops, M mismatches`.

    Returns an exit code: 0 no mismatch, 1 some, 2 no trace or an unreadable one (said on stderr).
    """
    if not paths:
        print("no trace given", file=sys.stderr)
        return 2
    total = Outcome()
    for path in paths:
        try:
            outcome = replay(path)
        except TraceError as error:
            print(error, file=sys.stderr)
            return 2
        total.ops += outcome.ops
        total.mismatches += outcome.mismatches
        for text in outcome.mismatches:
            print(text)
    print(f"{total.ops} ops, {len(total.mismatches)} mismatches")
    return 1 if total.mismatches else 0
