"""`argosy run` and `argosy up`: from a topology file to a lab."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from topologies import basedir, rundir
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.processes import AgentFailed, ProcessRuntime, failed_outcome, restarted_nodes
from topologies.report import print_outcome, print_reasons, progress_for
from topologies.runtime import Outcome

if TYPE_CHECKING:
    from topologies.plan import Places, Plan
    from topologies.schema import Topology

TOKEN_BYTES = 32
INLINE, PROCESSES = "inline", "processes"
PLAN_SCHEMA = "plan/1"


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about a launch."""

    file: str
    name: str | None = None
    run_dir: str | None = None
    seed: int = 0
    timeout_ns: int | None = None
    form: Format = Format.TABLE


class Misuse(Exception):
    """A flag that cannot be meant: what to tell the user."""

    code = ExitCode.USAGE


def run(options: Options, runtime: str = PROCESSES) -> int:
    """`argosy run`: the exit code is the verdict."""
    if runtime == INLINE:
        if options.timeout_ns is not None:
            raise Misuse("--timeout is real time, which the inline runtime does not know; use a check's `within`")
        outcome = _run_inline(options)
    else:
        with ProcessRuntime(options.timeout_ns, _shown(options.file)) as launcher:
            launcher.start()  # it gets ready while the topology is read
            plan = _plan(options, launcher)
            with progress_for(sys.stderr) as progress:
                outcome = launcher.run(plan, progress)
    print_outcome(outcome, options.form)
    return int(outcome.code)


def up(options: Options, *, detach: bool) -> int:
    """`argosy up`: until the lab is ready with `detach`, else until it is taken down."""
    with ProcessRuntime(options.timeout_ns, _shown(options.file)) as launcher:
        launcher.start()
        plan = _plan(options, launcher)
        with progress_for(sys.stderr) as progress:
            outcome = launcher.up(plan, progress, detach=detach)
    if outcome is None:
        _say_up(plan, options.form)
        return int(ExitCode.OK)
    if options.form is Format.JSON:
        print_outcome(outcome, options.form)
    else:
        print_reasons(outcome, sys.stderr)
    return int(outcome.code)


def dry_run(options: Options) -> int:
    """`argosy up --dry-run`: what would be started, without starting anything."""
    from topologies.plan import Places, plan

    topology, name = _load(options)
    sockets = str(basedir.base_path() / basedir.RESERVED_NAME / ("0" * 8))
    places = Places(_base_dir(options.file), str(basedir.run_path(name, options.run_dir)), sockets)
    planned = plan(topology, places, seed=options.seed, name=name)
    if options.form is Format.JSON:
        print(json.dumps({"schema": PLAN_SCHEMA, **planned.to_dict()}, indent=1))
        return int(ExitCode.OK)
    print(f"lab {planned.lab}, run directory {places.run_dir}")
    for number, stage in enumerate(planned.order, 1):
        print(f"{number}. {', '.join(_described(planned, node) for node in stage)}")
    for check in planned.checks:
        print(f"check {check.name!r}: guest {check.guest} ends with exit code {check.exit}")
    return int(ExitCode.OK)


def _described(plan: Plan, name: str) -> str:
    for guest in plan.guests:
        if guest.name == name:
            return f"guest {name} ({guest.program}, domain {guest.domid} on {guest.hypervisor})"
    for hypervisor in plan.hypervisors:
        if hypervisor.name == name:
            return f"hypervisor {name} ({hypervisor.personality} {hypervisor.arch})"
    return name


def _say_up(plan: Plan, form: Format) -> None:
    nodes = [name for stage in plan.order for name in stage]
    if form is Format.JSON:
        print(json.dumps({"schema": "up/1", "lab": plan.lab, "run_dir": plan.places.run_dir, "nodes": nodes}))
    else:
        print(f"{plan.lab} is up: {len(nodes)} nodes; `argosy down {plan.lab}` takes it down")
        print(f"files: {plan.places.run_dir}")


# ---- from the file to the plan ----------------------------------------------------------------------------


def _plan(options: Options, launcher: ProcessRuntime) -> Plan:
    """The plan, with the directories that the agent has made."""
    topology, name = _load(options)
    return _planned(options, topology, name, launcher.places(name, _base_dir(options.file), options.run_dir))


def _planned(options: Options, topology: Topology, name: str, places: Places) -> Plan:
    from topologies.plan import plan

    return plan(topology, places, token=os.urandom(TOKEN_BYTES), seed=options.seed, name=name)


def _load(options: Options) -> tuple[Topology, str]:
    """The topology and the lab's name."""
    from topologies.load import load

    topology = load(options.file)
    if options.name is None:
        return topology, topology.name
    from pydantic import TypeAdapter, ValidationError

    from topologies.scalars import Name

    try:
        return topology, TypeAdapter(Name).validate_python(options.name)
    except ValidationError as error:
        raise Misuse(f"--name: {error.errors()[0]['msg']}") from None


def _base_dir(file: str) -> str:
    return os.getcwd() if file == "-" else os.path.dirname(os.path.abspath(file))


def _shown(file: str) -> str:
    return file if file == "-" else os.path.abspath(file)


# ---- without processes ------------------------------------------------------------------------------------


def _run_inline(options: Options) -> Outcome:
    """Run in this process; the run directory holds what the guests wrote, and who may use it."""
    from topologies.inline.runtime import InlineRuntime
    from topologies.plan import Places

    topology, name = _load(options)
    path = basedir.run_path(name, options.run_dir)
    places = Places(_base_dir(options.file), str(path), str(path))
    plan = _planned(options, topology, name, places)
    for section, kind in (("hypervisors", "hypervisor"), ("guests", "guest")):
        again = restarted_nodes(plan, section)
        if again:
            words = f"restart: on-failure ({kind} {min(again)}) is not yet available in the inline runtime"
            raise Misuse(words)
    try:
        directory = rundir.RunDirectory.take(path, None)
    except basedir.RunDirError as error:
        return failed_outcome(name, AgentFailed(ExitCode.INFRASTRUCTURE, str(error)), INLINE)
    try:
        for guest in plan.guests:
            directory.node_directory(guest.name)
        with progress_for(sys.stderr) as progress:
            runtime = InlineRuntime(options.seed)
            outcome = runtime.run(plan, progress)
        archs = {hypervisor.name: hypervisor.arch for hypervisor in plan.hypervisors}
        archs |= {guest.name: guest.arch for guest in plan.guests}
        _record(directory, options, outcome, runtime.probes, archs)
    except KeyboardInterrupt:
        # It was raised inside some guest's task; asyncio need not tell of that.
        logging.getLogger("asyncio").disabled = True
        return failed_outcome(name, AgentFailed(ExitCode.INTERRUPTED, "interrupted"), INLINE)
    finally:
        directory.release()
    return outcome


def _record(
    directory: rundir.RunDirectory,
    options: Options,
    outcome: Outcome,
    probes: Mapping[str, tuple[Any, ...]],
    archs: Mapping[str, str],
) -> None:
    """Leave the same record behind as a lab of processes does."""
    from topologies.agent.journal import ended_state

    directory.write_state(ended_state(outcome, _shown(options.file), probes, archs))
