"""`argosy version`."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Literal

from topologies.exitcodes import ExitCode

DISTRIBUTION = "argosy"


def installed_version() -> str:
    """The version that is installed; of a source tree that is not, the one it would have."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        import tomllib

        project = Path(__file__).resolve().parents[2] / "pyproject.toml"
        try:
            return str(tomllib.loads(project.read_text())["project"]["version"])
        except (OSError, KeyError, ValueError):
            return "unknown"


def version(format: Literal["table", "json"] = "table") -> int:
    """Print versions."""
    if format == "json":
        print(json.dumps({"schema": "version/1", "argosy": installed_version(), "python": platform.python_version()}))
    else:
        print(f"argosy {installed_version()} (Python {platform.python_version()})")
    return int(ExitCode.OK)
