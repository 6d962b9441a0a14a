"""One rig for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import Rig

PROGRAMS = """
import asyncio, os, signal

async def fine(guest):
    guest.result(answer=42)
    guest.log("all is well")

async def forever(guest):
    guest.log("waiting")
    while True:
        await asyncio.sleep(3600)

async def raises(guest):
    raise ValueError("no such luck")

async def boasts(guest):
    guest.result(a="x" * 600000)

async def rants(guest):
    raise ValueError("no " * 100000)

async def reports(guest):
    guest.result(a="x" * 49130)

async def leaves(guest):
    return guest.arguments["code"]

async def dies(guest):
    os.kill(os.getpid(), signal.SIGKILL)

async def spins(guest):
    guest.log("spinning")
    await asyncio.sleep(0.2)
    while True:
        pass
"""


@pytest.fixture
def rig(short_tmp_path: Path) -> Iterator[Rig]:
    """The command in a world of its own, with the module `mine` next to its topologies."""
    made = Rig(short_tmp_path)
    made.program(PROGRAMS)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def world() -> Iterator[Rig]:
    """One world for all labs of a module, each of which runs once."""
    with tempfile.TemporaryDirectory(prefix="av-") as directory:
        made = Rig(Path(directory))
        try:
            yield made
        finally:
            made.close()
