"""Whole guests on the rig: `Guest` objects with files in memory, run in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from guest_node.guest import Guest, Program
from guest_node.programs import load
from tests.doubles.argo_rig import Rig
from tests.doubles.files import MemoryFiles


class Lab:
    """Guests named in the order of their domain ids, from 1 on."""

    def __init__(self, *names: str, seed: int = 0, mac_permissive: bool = True) -> None:
        self.rig = Rig(seed, mac_permissive=mac_permissive)
        self.domids = {name: domid for domid, name in enumerate(names, start=1)}
        self.files: dict[str, MemoryFiles] = {name: MemoryFiles() for name in names}
        self.guests: dict[str, Guest] = {}
        self.logs: dict[str, list[str]] = {name: [] for name in names}

    def guest(self, name: str, **arguments: Any) -> Guest:
        domid = self.domids[name]
        guest = self.guests[name] = Guest(
            name=name,
            domid=domid,
            calls=self.rig.guest(domid),
            arguments=arguments,
            peers={other: number for other, number in self.domids.items() if other != name},
            randomness=random.Random(f"{name}"),
            driver_randomness=random.Random(f"{name} driver"),
            files=self.files[name],
            log=self.logs[name].append,
        )
        return guest

    async def run(self, **programs: tuple[str | Program, dict[str, Any], float]) -> dict[str, int]:
        """Run name=(program, arguments, start time) together; exit codes by name.  A name's `_` stands for
        `-`.
        """
        codes: dict[str, int] = {}

        async def one(name: str, program: str | Program, arguments: dict[str, Any], start: float) -> None:
            guest = self.guest(name, **arguments)  # the domain exists before its program runs
            await asyncio.sleep(start)
            codes[name] = await guest.run(load(program) if isinstance(program, str) else program)

        async with asyncio.TaskGroup() as tasks:
            for name, (program, arguments, start) in programs.items():
                tasks.create_task(one(name, program, arguments, start))
        return codes
