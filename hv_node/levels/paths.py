"""Paths: where an endpoint lives, from the fabric down, and which way an envelope goes.  Experimental, not upstream.

A path is absolute: ("hv0", "hv1", "app") is guest app of hv1, which is a guest hypervisor of the L0 hv0.  What a
hypervisor itself says or hears stands under the guest name "".  An envelope's `src_path` is written the other way
round: it grows at its end as the envelope climbs, and the level at which the envelope turns downwards completes it,
so that whoever receives it from above reads an absolute path backwards.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple, cast

Path = tuple[str, ...]
Wire = tuple[str | int, ...]  # as an envelope's type has it; a level takes only those that are made of names

ITSELF: Final = ""  # in the place of a guest: the hypervisor
EVERYBODY: Final[Path] = ("*",)  # destination of what every hypervisor is to hear
_AGAIN: Final = "#"  # "app#2" is the second guest called app


class Where(IntEnum):
    """Which way a destination lies, seen from one hypervisor."""

    ITSELF = 1
    GUEST = 2
    CHILD = 3
    UP = 4


class Way(NamedTuple):
    """A direction, and the name of the guest or child that it leads to."""

    where: Where
    name: str = ""


_HERE: Final = Way(Where.ITSELF)
_UP: Final = Way(Where.UP)


def way(own: Path, dst: Wire) -> Way:
    """The way from the hypervisor at `own` to `dst`: a guest's path, or a hypervisor's with or without a last ""."""
    depth = len(own)
    if dst[:depth] != own:
        return _UP
    rest = dst[depth:]
    if not rest or rest == (ITSELF,):
        return _HERE
    return Way(Where.GUEST if len(rest) == 1 else Where.CHILD, str(rest[0]))


def way_to_hypervisor(own: Path, far: Path) -> Way:
    """The way to another hypervisor, which is at `far`: one level below it is a child, not a guest."""
    depth = len(own)
    return Way(Where.CHILD, far[depth]) if far[:depth] == own and len(far) > depth else _UP


def started(own: Path, guest: str, *, climbing: bool) -> Path:
    """The `src_path` of an envelope that starts at `guest` of the hypervisor at `own`."""
    return (guest, own[-1]) if climbing else (guest, *reversed(own))


def grown(own: Path, src_path: Wire, *, climbing: bool) -> Wire:
    """The `src_path` of an envelope from a child after the level at `own`: one name longer, or complete."""
    return (*src_path, own[-1]) if climbing else (*src_path, *reversed(own))


def absolute(src_path: Wire) -> Path:
    """Who sent an envelope that came from above."""
    return cast(Path, src_path[::-1])


@lru_cache(maxsize=4096)
def well_formed(path: Wire) -> bool:
    """Names only, and "" only where it may stand for a hypervisor itself."""
    return bool(path) and all(isinstance(name, str) for name in path) and all(path[1:-1])


def incarnation(name: str, number: int) -> str:
    """How the `number`-th guest called `name` is known to others; the first one has the plain name."""
    return name if number == 1 else f"{name}{_AGAIN}{number}"


def plain(name: str) -> str:
    """The name in the topology of any incarnation."""
    return name.partition(_AGAIN)[0]


def plain_path(path: Path) -> Path:
    """The path of the first incarnation."""
    return (*path[:-1], plain(path[-1])) if path else path


def within(prefix: Path, path: Path) -> bool:
    """Whether `path` is, or lies below, `prefix`."""
    return path[: len(prefix)] == prefix
