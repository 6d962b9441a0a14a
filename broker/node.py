"""The broker as a process: bind, route until told to stop, leave nothing behind."""

from __future__ import annotations

import gc
import signal
import sys
from typing import Final

from broker.config import BrokerConfig
from broker.server import EndpointError, Server

EXIT_OK: Final = 0
EXIT_ENDPOINT: Final = 4
"""The endpoint cannot be bound: an infrastructure error."""


def main(config: BrokerConfig) -> int:
    """Serve a lab until an agent tells the broker to shut down, or SIGTERM.  The process's exit code."""
    try:
        server = Server.of(config)
    except EndpointError as error:
        print(f"broker: {error}", file=sys.stderr, flush=True)
        return EXIT_ENDPOINT
    signal.signal(signal.SIGTERM, lambda _signum, _frame: server.stop())
    print(f"broker: lab {config.lab} epoch {config.epoch} at {' '.join(server.endpoints)}", file=sys.stderr, flush=True)
    gc.freeze()  # what is there now stays: nobody need look through it again
    try:
        server.serve()
    finally:
        server.close()
    return EXIT_OK
