"""Key files and the ZAP handler: what is made is private, what is not private is not used, who is let in."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from broker import keys, zap
from broker.keys import BROKER_KEYS, KeyFileError, KeyPair, generate, load, make_keys
from broker.monitor import EVENTS, FAILURES


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    make_keys(made, ["lab1", "lab2"])
    return made


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """0600 in 0700, one file for the broker and one for each host; made once."""
    before = os.umask(0)
    try:
        make_keys(tmp_path / "k", ["lab1"])
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "k").iterdir()}
    assert modes == {"broker": 0o600, "host-lab1": 0o600}
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o700
    with pytest.raises(KeyFileError, match="exists"):
        make_keys(tmp_path / "k", ["lab1"])


def test_both_sides_find_what_they_need(directory: Path) -> None:
    """The server's allow-list names each host by its public key; no two pairs are alike; secrets are not shown."""
    server = keys.server_curve(directory, ["lab1", "lab2"])
    clients = {host: keys.client_curve(directory, host) for host in ("lab1", "lab2")}
    assert server.allowed == tuple((clients[host].pair.public, host) for host in ("lab1", "lab2"))
    assert {client.server for client in clients.values()} == {server.pair.public}
    pairs = [server.pair, *(client.pair for client in clients.values())]
    assert len({pair.secret for pair in pairs}) == len({pair.public for pair in pairs}) == 3
    assert all(zmq.curve_public(pair.secret) == pair.public for pair in pairs)
    assert pairs[0].secret.decode() not in repr(server) + repr(clients)


def _replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED: list[tuple[str, Callable[[Path], None], str]] = [
    ("group may read", lambda path: path.chmod(0o640), "its mode is 0640: others may use it"),
    ("others may read", lambda path: path.chmod(0o604), "0604"),
    ("directory open", lambda path: path.parent.chmod(0o750), "0750"),
    ("gone", lambda path: path.unlink(), "No such file"),
    ("a link", _link, "symbolic link"),
    ("a fifo", _fifo, "not a plain file"),
    ("empty", lambda path: _replace(path, b""), "two keys"),
    ("one key", lambda path: _replace(path, generate().public + b"\n"), "two keys"),
    ("not Z85", lambda path: _replace(path, b"\xff" * 40 + b"\n" + generate().secret + b"\n"), "two keys"),
    ("too large", lambda path: _replace(path, b"#" * 40 + b"\n" + generate().secret + b"\n"), "two keys"),
    ("more", lambda path: _replace(path, generate().public + b"\n" + generate().secret + b"\nx"), "two keys"),
    ("no pair", lambda path: _replace(path, generate().public + b"\n" + generate().secret + b"\n"), "does not belong"),
]


@pytest.mark.parametrize(("spoil", "words"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_what_is_not_safe_is_not_used(directory: Path, spoil: Callable[[Path], None], words: str) -> None:
    """The error names the file and why."""
    spoil(directory / BROKER_KEYS)
    with pytest.raises(KeyFileError, match=words) as caught:
        load(directory, BROKER_KEYS)
    assert str(directory) in str(caught.value)


def test_owner_and_directory(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's keys, a link to a directory, a file in its place, no directory to make it in."""
    (tmp_path / "link").symlink_to(directory)
    (tmp_path / "file").write_bytes(b"")
    for name, words in (("link", "not a directory"), ("file", "not a directory"), ("none", "No such file")):
        with pytest.raises(KeyFileError, match=words):
            load(tmp_path / name, BROKER_KEYS)
    for name, words in (("link", "not a directory"), ("file", "exists"), ("none/deeper", "No such file")):
        with pytest.raises(KeyFileError, match=words):
            make_keys(tmp_path / name, ["x"])
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyFileError, match="belongs to user"):
        load(directory, BROKER_KEYS)


# ---- ZAP -------------------------------------------------------------------------------------------------

PAIR = generate()
KEY = z85.decode(PAIR.public)
REQUEST = [b"1.0", b"17", zap.DOMAIN, b"10.0.0.1", b"", b"CURVE", KEY]


@pytest.mark.parametrize(
    ("changes", "status", "host"),
    [
        ({}, b"200", b"lab1"),
        ({6: z85.decode(generate().public)}, b"400", b""),
        ({6: b""}, b"400", b""),
        ({5: b"NULL"}, b"400", b""),
        ({5: b"PLAIN"}, b"400", b""),
        ({2: b"other"}, b"400", b""),
        ({0: b"2.0"}, b"500", b""),
    ],
)
def test_zap_answers(changes: dict[int, bytes], status: bytes, host: bytes) -> None:
    """Version, the request's id, status, words, the host as user id, no metadata (27/ZAP)."""
    request = [changes.get(at, part) for at, part in enumerate(REQUEST)]
    answer = zap.AllowList([(PAIR.public, "lab1")]).answer(request)
    assert (answer[:3], answer[4:]) == ([b"1.0", b"17", status], [host, b""])
    assert answer[3]


def test_zap_junk() -> None:
    """Too few parts, too many: an answer all the same, and never a host."""
    allow = zap.AllowList([(PAIR.public, "lab1")])
    for junk in ([], [b"1.0"], REQUEST[:5], REQUEST[:6], [*REQUEST, b"x"]):
        answer = allow.answer(junk)
        assert len(answer) == 6
        assert answer[2] in (b"400", b"500")
        assert answer[4] == b""
    assert (allow.accepted, allow.refused) == (0, 5)
    assert zap.ENDPOINT == "inproc://zeromq.zap.01"


def test_failures_of_a_handshake() -> None:
    """Every failure that ZeroMQ's monitor knows is watched; only the one that tells nothing must repeat."""
    known = {event for event in zmq.Event if str(event.name).startswith("HANDSHAKE_FAILED")}
    assert {row.event for row in FAILURES} == known
    assert [row.limit for row in FAILURES] == [1, 1, 3]
    assert [row.event.name for row in FAILURES] == [
        "HANDSHAKE_FAILED_AUTH", "HANDSHAKE_FAILED_PROTOCOL", "HANDSHAKE_FAILED_NO_DETAIL",
    ]  # fmt: skip
    assert all(EVENTS & event for event in (*known, zmq.Event.HANDSHAKE_SUCCEEDED))
    assert KeyPair(b"a", b"b") == KeyPair(b"a", b"b")
