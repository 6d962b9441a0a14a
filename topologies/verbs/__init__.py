"""The verbs of the `argosy` command and their flags, in the order of its help."""

from __future__ import annotations

from topologies.verbs import labs, live, tools
from topologies.verbs.base import app

__all__ = ["app", "labs", "live", "tools"]
