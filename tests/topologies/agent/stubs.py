"""Mains of nodes that do as they are told by their config; run in children of a real forkserver."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def obey(config: dict[str, Any]) -> int:
    """Print, then end in the way that is asked for."""
    print(f"out of {config['name']}")
    print("err", file=sys.stderr)
    if config.get("raises"):
        raise ValueError(config["raises"])
    if config.get("signal"):
        os.kill(os.getpid(), config["signal"])
    if config.get("exits") is not None:
        sys.exit(config["exits"])
    if config.get("sleeps"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(config["sleeps"])
    if config.get("reads_stdin"):
        return len(sys.stdin.read())
    return int(config.get("code", 0))
