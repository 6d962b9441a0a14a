"""The programs that come with Argosy, and the way to find a user's own.

A program is named `builtin:NAME` or `module:function`; it is a coroutine function of one argument, the guest.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from guest_node.guest import Program


class Builtin(NamedTuple):
    """A program that comes with Argosy."""

    name: str
    target: str
    summary: str


BUILTINS: Final = (
    Builtin("echo", "guest_node.programs.echo:main", "send back what comes, over streams or datagrams"),
    Builtin("ping-pong", "guest_node.programs.ping_pong:main", "measure round trips to an echo"),
    Builtin("file-send", "guest_node.programs.file_send:main", "send a file to a file-receive"),
    Builtin("file-receive", "guest_node.programs.file_receive:main", "receive a file, check it, keep it"),
    Builtin("door-report", "guest_node.programs.door_report:main", "say what the probe chose, and exchange by it"),
    Builtin("door-peer", "guest_node.programs.door_peer:main", "the other side of any number of door-reports"),
    Builtin("v4v-store", "guest_node.programs.v4v_store:main", "storage units of uXen guests, in its control domain"),
    Builtin("v4v-disk", "guest_node.programs.v4v_disk:main", "find storage units under uXen, write and read them"),
    Builtin("blk-copy", "guest_node.programs.blk_copy:main", "read every block of a VirtIO disk into a file"),
    Builtin("blk-write", "guest_node.programs.blk_write:main", "write a VirtIO disk, flush it, read it back"),
    Builtin("net-ping", "guest_node.programs.net_ping:main", "exchange Ethernet frames with a net-echo"),
    Builtin("net-echo", "guest_node.programs.net_echo:main", "answer net-pings"),
    Builtin("console-talk", "guest_node.programs.console_talk:main", "write to a VirtIO console, read its echo"),
    Builtin("rng-read", "guest_node.programs.rng_read:main", "read from a VirtIO source of entropy"),
    Builtin("vsock-ping", "guest_node.programs.vsock_ping:main", "measure round trips over a vsock"),
    Builtin("vsock-echo", "guest_node.programs.vsock_echo:main", "accept vsock connections, send back what comes"),
    Builtin("blk-server", "guest_node.programs.blk_server:main", "back end: a raw image as a VirtIO disk"),
    Builtin("net-switch", "guest_node.programs.net_switch:main", "back end: a learning Ethernet switch"),
    Builtin("console-server", "guest_node.programs.console_server:main", "back end: consoles that echo"),
    Builtin("rng-server", "guest_node.programs.rng_server:main", "back end: entropy"),
    Builtin("vsock-server", "guest_node.programs.vsock_server:main", "back end: vsock between its front ends"),
)
PREFIX: Final = "builtin:"


class LoadError(Exception):
    """There is no such program; the message says what was looked for, and what is there."""


def load(program: str, directory: str | Path | None = None) -> Program:
    """The coroutine function that `program` names.

    `directory` joins the places where modules are looked for: that of the topology.  Raises LoadError; an
    error inside a module that is found is the user's and is raised as it is.
    """
    target = program
    if program.startswith(PREFIX):
        target = _builtin(program.removeprefix(PREFIX))
    elif directory is not None and str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    module_name, colon, function_name = target.partition(":")
    if not colon or not module_name or not function_name:
        raise LoadError(f"{program!r} names no program: write builtin:NAME or module:function")
    function: Any = _module(program, module_name, directory)
    for part in function_name.split("."):
        if not hasattr(function, part):
            raise LoadError(_no_function(program, module_name, function_name, function))
        function = getattr(function, part)
    if not inspect.iscoroutinefunction(function):
        raise LoadError(
            f"{program}: {function_name} is no coroutine function; write `async def {function_name}(guest)`"
        )
    _check_takes_guest(program, function)
    checked: Program = function
    return checked


def _builtin(name: str) -> str:
    for builtin in BUILTINS:
        if builtin.name == name:
            return builtin.target
    names = [builtin.name for builtin in BUILTINS]
    close = difflib.get_close_matches(name, names, 1)
    meant = f"Did you mean {PREFIX}{close[0]}? " if close else ""
    raise LoadError(f"no built-in program {name!r}. {meant}There are: {', '.join(names)}")


def _module(program: str, name: str, directory: str | Path | None) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # A module that the user's own module fails to import is another matter, and its traceback says so.
        if exc.name is None or not (name + ".").startswith(exc.name + "."):
            raise
        places = f" in {directory} or" if directory is not None else ""
        raise LoadError(f"{program}: no module {exc.name!r}{places} on Python's path") from None


def _no_function(program: str, module_name: str, function_name: str, found: Any) -> str:
    names = [name for name, value in vars(found).items() if inspect.iscoroutinefunction(value)]
    close = difflib.get_close_matches(function_name, names, 1)
    if close:
        return f"{program}: {module_name} has no {function_name!r}. Did you mean {close[0]!r}?"
    there = ", ".join(names) or "none"
    return f"{program}: {module_name} has no {function_name!r}; its coroutine functions: {there}"


def _check_takes_guest(program: str, function: Any) -> None:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise LoadError(f"{program}: it must take exactly one argument, the guest") from None
