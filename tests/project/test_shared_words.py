"""Words that a guest and its hypervisor share go through hmx/shm.py: their loads, stores and fence.

Python has no atomic read-modify-write on shared memory, so every shared word has one writer and is loaded
and stored by one aligned access.  That holds only as long as nobody makes word views of their own, subscripts
one, or packs bytes over one; what may pack into shared memory is listed here, with the reason why no word is
torn by it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from hmx import shm
from tests.project.source import PACKAGES, modules, parse

SHM = "hmx/shm.py"
ACCESSES = ("load16", "store16", "load32", "store32", "load64", "store64", "fence")
BYTES = {"B", "b", "c"}

PACKERS = {
    "hmx/vcpu_area.py": "frames and completions lie in slots that the other side does not read before the"
    " publishing store of the tail; the header is written before the area is shared",
    "guest_node/kernel/argo.py": "a hypercall's arguments lie in pages that nobody reads before the trap",
    "guest_node/kernel/v4v.py": "the same, for v4v's addresses and iovs",
    "guest_node/kernel/interrupts.py": "the same, for the hypercalls that are not Argo's",
    "guest_node/kernel/window.py": "a message and its addresses lie in pages that nobody reads before the trap",
    "hv_node/hypervisor.py": "completions lie in slots that the guest does not read before the tail is published",
    "hv_node/argo/sendv.py": "a message header lies beyond tx_ptr, which is published after it",
    "topologies/bench/zmq_hv.py": "the same, where the trap is a message",
    "topologies/firmware/acpi.py": "a table is private memory until it is placed",
    "topologies/bench/ledger.py": "messages lie in private memory until they are sent",
}
"""Modules below the top floor that pack structures into a buffer."""


def violations(path: str, tree: ast.AST) -> Iterator[str]:
    """What in the module `path` reaches a shared word by another way than hmx.shm."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "cast" and not _casts_to_bytes(node):
                yield f"{path}:{line}: a word view made outside {SHM}"
            if node.func.attr == "pack_into" and path not in PACKERS:
                yield f"{path}:{line}: pack_into outside the listed packers"
        # The top floor holds no word view, and calls words what people say.
        below = not path.startswith("topologies/")
        if below and isinstance(node, ast.Subscript) and _name(node.value).endswith("words"):
            yield f"{path}:{line}: {_name(node.value)}[...]: a word view subscripted"
        if _name(node) in ("setitem", "getitem"):
            yield f"{path}:{line}: operator.{_name(node)}: use {SHM}"


def _casts_to_bytes(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Constant):
        return first.value in BYTES
    return isinstance(call.func, ast.Attribute) and _name(call.func.value) == "typing"


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def test_they_exist() -> None:
    """contracts: all shared words go through the functions of one module; 16-bit ones came with virtqueues."""
    assert [name for name in ACCESSES if not callable(getattr(shm, name))] == []


def test_every_shared_word_goes_through_shm() -> None:
    """No module of any package reaches a word by its own means."""
    paths = [path for package in PACKAGES for path in modules(package) if path.as_posix() != SHM]
    assert paths
    assert [wrong for path in paths for wrong in violations(path.as_posix(), parse(path))] == []


def test_the_packers_exist() -> None:
    """A packer that is gone must leave the list."""
    present = {path.as_posix() for package in PACKAGES for path in modules(package)}
    assert set(PACKERS) <= present


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("hv_node/argo/core.py", "w = memoryview(b).cast('I')", True),
        ("hv_node/argo/core.py", "w = view.cast(code)", True),
        ("hv_node/argo/core.py", "w = view.cast('B')", False),
        ("hv_node/argo/core.py", "f = typing.cast(Callable, g)", False),
        ("hv_node/argo/core.py", "f = cast(Callable, g)", False),
        ("hv_node/node.py", "struct.pack_into('<I', area, 0x40, tail)", True),
        ("hmx/vcpu_area.py", "FRAMES[3].pack_into(area, 0x1000, 1, 2)", False),
        ("guest_node/vcpu.py", "self.area.words[16] = 1", True),
        ("guest_node/vcpu.py", "tail = _words[16]", True),
        ("guest_node/vcpu.py", "tail = load32(words, 16)", False),
        ("topologies/cli.py", "verb = words[0]", False),
        ("guest_node/vcpu.py", "operator.setitem(area, 16, 1)", True),
        ("guest_node/vcpu.py", "from operator import setitem\nsetitem(area, 16, 1)", True),
    ],
)
def test_the_check_sees_a_violation(path: str, source: str, wrong: bool) -> None:
    """What the test above relies on, on sources of one line."""
    assert bool(list(violations(path, ast.parse(source)))) == wrong
