"""A guest's life from attached pages to its program's exit code, whatever runtime it lives in.

Boot, driver, program, report.  The shell (a process, or the simulation) provides the pages, the bells, files and a
way to tell the lab what happened.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from guest_node.config import GuestConfig
from guest_node.files import Files
from guest_node.guest import Guest, Program, fits
from guest_node.kernel.argo import GuestMemoryView
from guest_node.kernel.boot import BootError, Kernel, Machine, boot
from guest_node.programs import LoadError, load
from guest_node.vcpu import Vcpu
from hmx.trap import Arch

if TYPE_CHECKING:
    import random

FAILED = 1
REASON_MOST: Final = 2000
"""Characters of an error in the verdict: more is nothing to read there, and need not fit the broker's frame."""
_ARCH = ("traps", "interrupts_delivered", "interrupts_spurious", "interrupts_coalesced")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest ended: its exit code, and why in one line (empty for a clean end)."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class World:
    """What a shell gives its guest: a way to tell the lab (control records), a log, files, and chance.

    `gone` has a result when the hypervisor is dead: the error that whoever waits for it is told.  `coalesced` counts
    interrupts that coalesced on the way to the vCPUs, where the hypervisor is on another host.
    """

    tell: Callable[[list[Any]], object]
    log: Callable[[str], None]
    files: Files
    randomness: random.Random  # the program's
    driver_randomness: random.Random
    gone: asyncio.Future[BaseException] | None = None
    coalesced: Callable[[], int] = lambda: 0


async def live(config: GuestConfig, vcpus: Sequence[Vcpu], memory: GuestMemoryView, world: World) -> Ending:
    """Boot, run the program, report.  Never raises for what a program or a hypervisor does wrong."""
    for vcpu in vcpus:
        vcpu.start()
    try:
        program = load(config.program, config.base_dir)
        kernel = await boot(vcpus, memory, machine_of(config))
    except LoadError as error:
        world.log(f"{type(error).__name__}: {error}")
        return Ending(FAILED, str(error))
    except BootError as error:
        found = error.probe.report()
        world.tell(["event", "probe", json.dumps(found)])
        world.tell(["event", "result", config.name, json.dumps({"door": found["chosen"], "error": str(error)})])
        world.log(f"{type(error).__name__}: {error}")
        return Ending(FAILED, str(error))
    except Exception as error:  # what a user's module raises while it is imported
        return _raised(error, world)
    found = {**kernel.probe.report(), "notification": kernel.interrupts.mode, "said": kernel.interrupts.said}
    if kernel.firmware is not None:
        found["firmware"] = {
            "policy": kernel.firmware.policy.name.lower(),
            "vectors": list(kernel.firmware.vectors),
            "services": [list(offer) for offer in kernel.firmware.services],
        }
    world.tell(["event", "probe", json.dumps(found)])
    if kernel.interrupts.said:
        world.log(kernel.interrupts.said)
    guest = Guest(
        name=config.name, domid=kernel.domid, calls=kernel.argo, arguments=config.arguments, peers=config.peers,
        randomness=world.randomness, driver_randomness=world.driver_randomness, files=world.files, log=world.log,
        probe=found, counters=lambda: counters(kernel, world.coalesced()), v4v=kernel.v4v,
        devices=config.devices, fronts=config.fronts, kernel=kernel,
    )  # fmt: skip
    if world.gone is not None:
        world.gone.add_done_callback(lambda gone: None if gone.cancelled() else guest.end(gone.result()))
    world.tell(["ready"])
    ending = await _run(program, guest, world)
    results = guest.results
    try:
        fits(results)
    except (TypeError, ValueError) as error:  # a list, say, that grew after it had been reported
        ending, results = _raised(error, world), {}
    world.tell(["event", "result", config.name, json.dumps({**results, **counters(kernel, world.coalesced())})])
    return ending


def machine_of(config: GuestConfig) -> Machine:
    """What the kernel is told about the machine it runs on."""
    arch = Arch[config.arch.upper()]
    domid = config.domid if config.knows_domid else None
    return Machine(arch, config.door, config.notification, config.apic, domid, config.firmware)


async def _run(program: Program, guest: Guest, world: World) -> Ending:
    try:
        code = await guest.run(program) & 0xFF
    except SystemExit as leaving:
        code = leaving.code & 0xFF if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        return _raised(error, world)
    if not code:
        return Ending(code, "")
    gave_up = guest.results.get("error")
    return Ending(code, _reason(gave_up) if isinstance(gave_up, str) else f"the program ended with {code}")


def _raised(error: Exception, world: World) -> Ending:
    world.log("".join(traceback.format_exception(error)))
    said = _reason(str(error))
    return Ending(FAILED, f"the program raised {type(error).__name__}{': ' + said if said else ''}")


def _reason(words: str) -> str:
    """On one line, and not the whole of a long story."""
    said = " ".join(words.split())
    return said if len(said) <= REASON_MOST else f"{said[:REASON_MOST]}... (all of it is in the log)"


def counters(kernel: Kernel, coalesced: int = 0) -> dict[str, Any]:
    """What the guest's side counted over all its vCPUs: `arch` and `host` apart.

    `coalesced`: interrupts that coalesced on the way to them.
    """
    counted = [asdict(vcpu.counters) for vcpu in kernel.vcpus]
    total = {name: sum(each[name] for each in counted) for name in counted[0]}
    total["interrupts_coalesced"] += coalesced
    return {
        "arch": {name: total[name] for name in _ARCH}
        | {"hypercalls": kernel.argo.hypercalls + (kernel.v4v.hypercalls if kernel.v4v is not None else 0)},
        "host": {name: total[name] for name in ("doorbells", "parks")},
    }
