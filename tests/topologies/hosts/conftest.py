"""The rig of the whole command, with a second host that is this machine too."""

from __future__ import annotations

from tests.e2e.conftest import rig

__all__ = ["rig"]
