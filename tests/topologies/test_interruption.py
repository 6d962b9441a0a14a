"""Ctrl-C is heard even when it does not interrupt the call that waits, or comes where it would be swallowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep({seconds})
except KeyboardInterrupt:
    print("swallowed", flush=True)
"""

IMPORTS = """
import signal, sys, time
from topologies import interruption
for number in interruption.INTERRUPTING:
    signal.signal(number, interruption.interrupt)
interruption.PUT_OFF_AT_MOST = {at_most}
sys.path.insert(0, {path!r})
try:
    import swallows
    time.sleep(1)
    print("never heard of again")
except KeyboardInterrupt:
    print("interrupted")
    signal.raise_signal(signal.SIGINT)
    print("once")
"""


@pytest.mark.parametrize(
    ("seconds", "at_most", "said"),
    [(0.1, 300, ["interrupted", "once"]), (20, 3, ["swallowed", "never", "heard", "of", "again"])],
    ids=["put off until the module is there", "not for ever"],
)
def test_an_import_does_not_swallow_it(tmp_path: Path, seconds: float, at_most: int, said: list[str]) -> None:
    """A module that catches everything while it is imported: the interruption comes after it, if not too late."""
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(seconds=seconds))
    program = IMPORTS.format(at_most=at_most, path=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=55)
    assert result.stdout.split() == said, result.stdout + result.stderr


MODEL = """
import signal, time
from typing import Annotated
from pydantic import BaseModel, PlainSerializer
from topologies import interruption

def shown(seconds: int) -> str:
    signal.raise_signal(signal.SIGINT)
    return "shown"

class Model(BaseModel):
    seconds: Annotated[int, PlainSerializer(shown)] = 1

signal.signal(signal.SIGINT, interruption.interrupt)
signal.signal(signal.SIGALRM, interruption.interrupt)
try:
    print(Model().model_dump())
    time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_model_does_not_make_an_error_of_it() -> None:
    """Pydantic says PydanticSerializationError of whatever a serializer raises: exit code 5 instead of 130."""
    result = subprocess.run([sys.executable, "-c", MODEL], capture_output=True, text=True, check=False, timeout=55)
    assert result.stdout.split() == ["{'seconds':", "'shown'}", "interrupted"], result.stdout + result.stderr
