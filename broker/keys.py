"""The keys of one lab: a CURVE key pair for its broker and one for each host (RFC 26/CurveZMQ, 32/Z85).

A key pair lives in a file of its own, made 0600 in a directory that is 0700, and is not used when either has
come to be readable by others, belongs to another user, or is a link.  The broker's public key tells its
clients that they speak to their broker; a host's public key tells the broker, through ZAP, which host speaks.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

BROKER_KEYS: Final = "broker"
KEY_LENGTH: Final = 40
"""Characters of a key in Z85."""


class KeyFileError(Exception):
    """A key file cannot be made, or is not safe or right to use: which one, and why."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(f"{path}: {why}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair in Z85, 40 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """What a broker needs to listen beyond its host: its own pair, and (public key, host) of each host allowed."""

    pair: KeyPair
    allowed: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a node needs to reach it: the broker's public key, and the pair of the host that the node runs on."""

    server: bytes
    pair: KeyPair


def generate() -> KeyPair:
    """A new pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def host_keys(host: str) -> str:
    """The name of a host's key file."""
    return f"host-{host}"


def make_keys(directory: Path, hosts: Iterable[str]) -> None:
    """Make a lab's keys in `directory`, which is made if it is not there.  KeyFileError: it is not private, or
    keys are there already.
    """
    try:
        directory.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise KeyFileError(directory, error.strerror or str(error)) from None
    _check_directory(directory)
    for name in (BROKER_KEYS, *map(host_keys, hosts)):
        _write(directory / name, generate())


def _write(path: Path, pair: KeyPair) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise KeyFileError(path, error.strerror or str(error)) from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask
        file.write(pair.public + b"\n" + pair.secret + b"\n")


def load(directory: Path, name: str) -> KeyPair:
    """The pair in file `name` of `directory`.  KeyFileError: not there, not private, not ours, or no key pair."""
    _check_directory(directory)
    path = directory / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(path, error.strerror or str(error)) from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(path, "is not a plain file")
        _check_private(path, found)
        lines = file.read(2 * KEY_LENGTH + 3).split(b"\n")
    if len(lines) != 3 or lines[2] or not is_key(lines[0]) or not is_key(lines[1]):
        raise KeyFileError(path, "does not hold two keys")
    if zmq.curve_public(lines[1]) != lines[0]:
        raise KeyFileError(path, "its public key does not belong to its secret key")
    return KeyPair(lines[0], lines[1])


def _check_directory(directory: Path) -> None:
    try:
        found = directory.lstat()
    except OSError as error:
        raise KeyFileError(directory, error.strerror or str(error)) from None
    if not stat.S_ISDIR(found.st_mode):
        raise KeyFileError(directory, "is not a directory")
    _check_private(directory, found)


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise KeyFileError(path, f"belongs to user {found.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise KeyFileError(path, f"its mode is {stat.S_IMODE(found.st_mode):04o}: others may use it")


def is_key(text: bytes) -> bool:
    """Whether this is a key in Z85."""
    try:
        return len(text) == KEY_LENGTH and len(z85.decode(text)) == 32 and z85.encode(z85.decode(text)) == text
    except (KeyError, ValueError, struct.error):  # what pyzmq lets through of characters and values out of range
        return False


def server_curve(directory: Path, hosts: Iterable[str]) -> ServerCurve:
    """What the broker needs, from the files of :func:`make_keys`."""
    allowed = tuple((load(directory, host_keys(host)).public, host) for host in hosts)
    return ServerCurve(load(directory, BROKER_KEYS), allowed)


def client_curve(directory: Path, host: str) -> ClientCurve:
    """What the nodes of a host need, from the files of :func:`make_keys`."""
    return ClientCurve(load(directory, BROKER_KEYS).public, load(directory, host_keys(host)))
