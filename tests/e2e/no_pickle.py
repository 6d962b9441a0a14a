"""A hook for node processes (topologies.agent.entry): from here on nothing is unpickled in them."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

FORBIDDEN = "pickle is forbidden here"
MODULES = ("pickle", "_pickle", "dill", "dill._dill")
NAMES = ("load", "loads", "_load", "_loads", "Unpickler", "_Unpickler")


class Unpickled(BaseException):
    """Something was unpickled.  No `except Exception` hides it."""


def _refuse(*_: Any, **__: Any) -> NoReturn:
    print("unpickled!", flush=True)
    raise Unpickled(FORBIDDEN)


def forbid() -> None:
    """Replace every way to unpickle, those that multiprocess keeps under names of its own too."""
    replaced = []
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in NAMES:
            if hasattr(module, attribute):
                setattr(module, attribute, _refuse)
                replaced.append(f"{name}.{attribute}")
    reduction = importlib.import_module("multiprocess.reduction")
    reduction.ForkingPickler.loads = _refuse
    expected = {f"{module}.{name}" for module in ("pickle", "dill") for name in ("load", "loads", "Unpickler")}
    assert expected <= {*replaced}
    print(FORBIDDEN, flush=True)
