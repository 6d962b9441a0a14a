"""The programs that a guest can name: `builtin:NAME`, or a user's own as `module:function`.

What is known here of the built-in ones is what can be wrong in a topology: their names and the names of
their arguments. The values of arguments are the program's own business.
"""

from __future__ import annotations

import keyword
from typing import Final, NamedTuple

from topologies.diagnose import nearest

PREFIX: Final = "builtin:"


class Builtin(NamedTuple):
    """A program that comes with Argosy: the arguments it takes, those it needs (`a|b`: one of them), those that name
    another guest; the type of the devices that it uses as a front end, and of those that it serves as a back end.
    """

    name: str
    arguments: tuple[str, ...]
    required: tuple[str, ...]
    peers: tuple[str, ...]
    uses: str = ""
    serves: str = ""


BUILTINS: Final = (
    Builtin("echo", ("port", "service", "instance", "kind", "sessions", "ring", "from"), (), ("from",)),
    Builtin(
        "ping-pong",
        ("to", "port", "service", "instance", "kind", "count", "size", "ring", "within"),
        ("to|service",),
        ("to",),
    ),
    Builtin(
        "file-send",
        ("to", "file", "port", "service", "instance", "ring", "within", "chunk"),
        ("to|service", "file"),
        ("to",),
    ),
    Builtin("file-receive", ("port", "service", "instance", "output", "ring", "from"), (), ("from",)),
    Builtin("door-report", ("to", "port", "count", "size", "burst", "ring", "within"), ("to",), ("to",)),
    Builtin("door-peer", ("port", "sessions", "ring", "from"), (), ("from",)),
    Builtin("v4v-store", ("serves", "blocks", "ring", "over", "disks", "sessions"), ("serves",), ()),
    Builtin("v4v-disk", ("count", "blocks", "ring", "within"), (), ()),
    Builtin("blk-copy", ("device", "output", "chunk", "depth", "within"), (), (), uses="blk"),
    Builtin("blk-write", ("device", "file", "offset", "count", "size", "depth", "within"), (), (), uses="blk"),
    Builtin("net-ping", ("device", "count", "size", "within"), (), (), uses="net"),
    Builtin("net-echo", ("device", "sessions", "within"), (), (), uses="net"),
    Builtin("console-talk", ("device", "count", "size", "within"), (), (), uses="console"),
    Builtin("rng-read", ("device", "size", "output", "within"), (), (), uses="rng"),
    Builtin("vsock-ping", ("device", "cid", "port", "count", "size", "within"), (), (), uses="vsock"),
    Builtin("vsock-echo", ("device", "port", "sessions", "within"), (), (), uses="vsock"),
    Builtin(
        "blk-server",
        ("image", "blank", "copy", "read-only", "queues", "service", "instance", "sessions", "ring", "from"),
        ("image|blank",),
        ("from",),
        serves="blk",
    ),
    Builtin("net-switch", ("tap", "service", "instance", "sessions", "ring", "from"), (), ("from",), serves="net"),
    Builtin("console-server", ("service", "instance", "sessions", "ring", "from"), (), ("from",), serves="console"),
    Builtin("rng-server", ("service", "instance", "sessions", "ring", "from"), (), ("from",), serves="rng"),
    Builtin(
        "vsock-server",
        ("cids", "port", "service", "instance", "sessions", "ring", "from"),
        (),
        ("from",),
        serves="vsock",
    ),
)


class ProgramError(ValueError):
    """A program that cannot be: what is wrong, and how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def builtin_names() -> tuple[str, ...]:
    """The built-in programs as a topology names them."""
    return tuple(PREFIX + builtin.name for builtin in BUILTINS)


def builtin_of(program: str) -> Builtin | None:
    """The built-in program that `program` names, None where it names none."""
    for builtin in BUILTINS:
        if program == PREFIX + builtin.name:
            return builtin
    return None


def nearest_builtin(program: str) -> str:
    """The built-in program that `program` is probably meant to be, or ""."""
    name = nearest(program.removeprefix(PREFIX), tuple(builtin.name for builtin in BUILTINS))
    return PREFIX + name if name else ""


def check_program(program: str) -> None:
    """Refuse what cannot name a program.  Whether a user's module exists is seen where the guest runs.

    Raises:
        ProgramError: an unknown built-in, or neither of the two forms.
    """
    if program.startswith(PREFIX):
        if builtin_of(program) is None:
            raise ProgramError("is no built-in program")
        return
    module, colon, function = program.partition(":")
    if module.endswith(".py") and colon:
        name = module.removesuffix(".py").replace("/", ".").strip(".")
        raise ProgramError("names a file, not a module", f"write {name}:{function or 'main'}")
    if not colon or not all(map(_is_name, (*module.split("."), function))):
        raise ProgramError("is neither builtin:NAME nor module:function")


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)
