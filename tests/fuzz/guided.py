"""One target under atheris, in a process of its own: `python -m tests.fuzz.guided TARGET [libFuzzer options]`.

The packages are instrumented while they are imported, so nothing of them may be imported before.
"""

from __future__ import annotations

import sys
from importlib import import_module

from tests.fuzz.targets import PACKAGES, load, target_named


def main(argv: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    atheris = import_module("atheris")
    target = target_named(argv[1])
    with atheris.instrument_imports(include=list(PACKAGES), enable_loader_override=False):
        loaded = load(target)
    atheris.Setup([argv[0], *argv[2:]], loaded.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
