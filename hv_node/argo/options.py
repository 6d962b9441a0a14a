"""The `argo=` boot option (Xen docs/misc/xen-command-line): `argo=<bool>[,mac-permissive=<bool>]`.

Items stand in any order and are processed from left to right; a later one overrides an earlier one. An
item that is not understood makes the whole option an error, but those that are understood count
nevertheless.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.errno import Errno


class ArgoOptions(NamedTuple):
    """Both are off unless the command line says otherwise."""

    enabled: bool = False
    mac_permissive: bool = False


class BoolWord(NamedTuple):
    """A word that Xen's option parser takes for a boolean."""

    word: str
    value: bool


BOOL_WORDS: Final = (
    BoolWord("1", True),
    BoolWord("0", False),
    BoolWord("on", True),
    BoolWord("no", False),
    BoolWord("yes", True),
    BoolWord("off", False),
    BoolWord("true", True),
    BoolWord("false", False),
    BoolWord("enable", True),
    BoolWord("disable", False),
)
_BOOL: Final = dict(BOOL_WORDS)
_MAC: Final = "mac-permissive"


def _named_bool(item: str) -> bool | None:
    """`mac-permissive`, `no-mac-permissive` or `mac-permissive=<bool>`; None for anything else."""
    if item == _MAC:
        return True
    if item == f"no-{_MAC}":
        return False
    name, equals, value = item.partition("=")
    return _BOOL.get(value) if equals and name == _MAC else None


def parse_options(text: str) -> tuple[ArgoOptions, int]:
    """The options that `text` (what follows `argo=`) sets, and 0 or -EINVAL."""
    enabled = mac_permissive = False
    ret = 0
    for item in text.split(","):
        switch = _BOOL.get(item)
        if switch is not None:
            enabled = switch
            continue
        named = _named_bool(item)
        if named is not None:
            mac_permissive = named
        else:
            ret = -Errno.EINVAL
    return ArgoOptions(enabled, mac_permissive), ret
