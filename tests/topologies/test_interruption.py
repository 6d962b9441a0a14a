"""Ctrl-C is heard even when it does not interrupt the call that waits."""

from __future__ import annotations

import subprocess
import sys

WAITS = """
import select, signal, threading
from topologies.processes import ProcessRuntime

with ProcessRuntime() as runtime, runtime._interrupt_closes() as wake:
    begun = threading.Event()
    # The kernel gives the signal to the other thread: the wait goes on, as one does that begins right after it.
    other = threading.Thread(target=lambda: (begun.wait(), signal.pthread_kill(threading.get_ident(), signal.SIGINT)))
    other.start()
    begun.set()
    print("woken" if select.select([wake], [], [], 20.0)[0] else "asleep", runtime._interrupted)
"""


def test_a_wait_ends_that_no_signal_interrupts() -> None:
    """A handler in Python runs between two steps of Python; what waits is told by a descriptor before that."""
    result = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, check=False, timeout=55)
    assert result.stdout.split() == ["woken", "True"], result.stdout + result.stderr
