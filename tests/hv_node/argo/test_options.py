"""The `argo=` option (Xen docs/misc/xen-command-line)."""

from __future__ import annotations

import pytest

from hmx.errno import Errno
from hv_node.argo.options import ArgoOptions, parse_options

BAD = -Errno.EINVAL
WORDS = {
    "1": True, "on": True, "yes": True, "true": True, "enable": True,
    "0": False, "off": False, "no": False, "false": False, "disable": False,
}  # fmt: skip


@pytest.mark.parametrize(("word", "value"), WORDS.items())
def test_booleans(word: str, value: bool) -> None:
    """Xen's words for yes and no, alone and as a value; the later item wins."""
    assert parse_options(word) == (ArgoOptions(value, False), 0)
    assert parse_options(f"mac-permissive={word}") == (ArgoOptions(False, value), 0)
    assert parse_options(f"1,mac-permissive,{word}") == (ArgoOptions(value, True), 0)
    assert parse_options(f"mac-permissive,mac-permissive={word}") == (ArgoOptions(False, value), 0)


@pytest.mark.parametrize(
    ("text", "enabled", "permissive", "ret"),
    [
        ("on,mac-permissive", True, True, 0),
        ("1,mac-permissive=1", True, True, 0),
        ("mac-permissive=1", False, True, 0),
        ("on,no-mac-permissive", True, False, 0),
        ("mac-permissive,on", True, True, 0),
        ("on,off", False, False, 0),
        ("", False, False, BAD),
        ("On", False, False, BAD),
        ("2", False, False, BAD),
        ("on,", True, False, BAD),
        ("bogus,on,mac-permissive", True, True, BAD),
        ("on,mac-permissive=maybe", True, False, BAD),
        ("on,mac-permissive=", True, False, BAD),
        ("on,no-mac-permissive=1", True, False, BAD),
        ("on,mac-permissives", True, False, BAD),
        ("on mac-permissive", False, False, BAD),
    ],
)
def test_lists(text: str, enabled: bool, permissive: bool, ret: int) -> None:
    """Left to right; what is not understood is an error, what is understood counts."""
    assert parse_options(text) == (ArgoOptions(enabled, permissive), ret)


def test_both_default_to_off() -> None:
    """Argo needs to be asked for."""
    assert ArgoOptions() == (False, False)
