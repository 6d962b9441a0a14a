"""The inline runtime: the plan's broker, hypervisors and guests as objects of one process, in virtual time.

The same cores run as in processes: the router with its members, the hypervisor, the guest's kernel, drivers and
program, and the agent's life cycle, which starts them, watches them and gives the verdict.  What differs is who
decides the order of things: here a generator with a seed.  The same seed gives the same history, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from broker.envelope import Envelope
from broker.fabric import FabricLink, MemoryFabric
from broker.frames import Lane
from guest_node.config import GuestConfig
from guest_node.files import DirectoryFiles
from guest_node.life import Ending, World, live
from guest_node.seeds import generators
from guest_node.soon import once
from guest_node.vcpu import Vcpu
from hmx.memory import FIRMWARE_BASE
from hmx.trap import Arch
from hmx.vcpu_area import GuestSide
from hv_node.argo.options import parse_options
from hv_node.config import HypervisorConfig
from hv_node.domain import Domain
from hv_node.doors.tables import PERSONALITIES
from hv_node.hypervisor import Hypervisor
from hv_node.uplinks.around import is_joined, parents_of
from hv_node.uplinks.joint import Joint
from hv_node.xsm import xsm_by_name
from topologies.agent.core import LabCore
from topologies.agent.phases import STARTING, Phase
from topologies.agent.spec import LabSpec, Mode, NodeSpec
from topologies.exitcodes import ExitCode
from topologies.inline.levels import InlineLevel
from topologies.inline.loop import VirtualLoop
from topologies.inline.machine import InlineMachine, InlineMemory, SharedMemory
from topologies.plan import Plan
from topologies.processes import lab_spec
from topologies.runtime import Fault, NodeKind, Observer, Outcome

PARENT_S: Final = 0.001
"""How long a nested hypervisor waits before it looks again for a parent that was not there."""
HORIZON_S: Final = 3600.0
"""Virtual seconds after which a lab whose guests never end is taken down."""

MemoryFactory = Callable[[int], InlineMemory]


class InlineRuntime:
    """Runs plans in one process.  `seed` decides everything that is left to chance; `memory` makes a guest's RAM."""

    def __init__(self, seed: int = 0, memory: MemoryFactory = SharedMemory) -> None:
        self._seed = seed
        self._memory = memory
        self.log: list[str] = []
        self.probes: dict[str, tuple[Any, ...]] = {}

    def run(self, plan: Plan, observer: Observer) -> Outcome:
        """Run the lab to its verdict."""
        lab = _Lab(lab_spec(plan, Mode.RUN), plan, random.Random(self._seed), self._memory, observer)
        self.log, self.probes = lab.log, lab.probes
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(lab.run())


class _Lab:
    """One lab: the life-cycle core's sink, and what its orders mean here."""

    def __init__(
        self, spec: LabSpec, plan: Plan, generator: random.Random, memory: MemoryFactory, observer: Observer
    ) -> None:
        self.log: list[str] = []
        self.probes: dict[str, tuple[Any, ...]] = {}  # what each guest found its hypervisor to be
        self._specs: dict[str, NodeSpec] = {node.name: node for node in spec.nodes}
        self._plan = plan
        self._random = generator
        self._make_memory = memory
        self._observer = observer
        self._core = LabCore(spec, self)
        self._fabric = MemoryFabric(
            token=plan.broker.token,
            mint=lambda: generator.randbytes(16),
            binding=plan.broker.binding,
            chance=random.Random(plan.broker.seed),
            silence=False,
            release_ns=plan.broker.release_ns,
        )
        for a, b, impairment in plan.broker.impair:
            self._fabric.impair(a, b, impairment)
        self._fabric_timer: asyncio.TimerHandle | None = None
        self._levels: dict[str, InlineLevel] = {}
        self._machines: dict[str, InlineMachine] = {}
        self._links: dict[str, FabricLink] = {}
        self._guests: dict[str, asyncio.Task[None]] = {}
        self._crashes: dict[str, Callable[[], None]] = {}  # what to do when the domain of a guest that lives crashes
        self._down: asyncio.Future[None]

    async def run(self) -> Outcome:
        """Until the core is down."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._down = loop.create_future()
        self._fabric.on_readable = once(loop, self._route)
        loop.call_later(HORIZON_S, self._too_long)
        self._core.begin(self._now())
        self._arm()
        await self._down
        return replace(self._core.outcome(self._now()), runtime="inline")

    def _route(self) -> None:
        """Let the broker route what was sent, and what is under way on impaired links when it is due."""
        self._fabric.run(self._now())
        if self._fabric_timer is not None:
            self._fabric_timer.cancel()
            self._fabric_timer = None
        due = self._fabric.next_deadline()
        if due is not None:
            self._fabric_timer = self._loop.call_at(max(due, self._now()) / 1e9, self._fabric.on_readable)

    def _now(self) -> int:
        return round(self._loop.time() * 1e9)

    def _arm(self) -> None:
        """Tick the core when it asks for it."""
        deadline = self._core.deadline()
        if deadline is not None:
            self._loop.call_at(deadline / 1e9, self._tick)

    def _tick(self) -> None:
        self._core.tick(self._now())
        self._settle()
        self._arm()

    def _settle(self) -> None:
        if self._core.phase is Phase.DOWN and not self._down.done():
            self._down.set_result(None)

    def _too_long(self) -> None:
        waits = "; ".join(self._core.waits(self._now()))
        words = f"after {HORIZON_S:g} virtual seconds the lab still waited for: {waits}"
        self._core.stop(Fault(ExitCode.TIMEOUT, words), self._now())
        self._settle()

    def _note(self, node: str, code: str, *fields: Any) -> None:
        self.log.append(json.dumps([round(self._loop.time(), 9), node, code, *fields], default=repr))

    # -- what the core orders ----

    def start(self, node: str) -> None:
        """Start a node in one of the loop's next turns."""
        self._loop.call_soon(self._start, node)

    def _start(self, name: str) -> None:
        if not self._core.may_start(name):
            return
        self._note(name, "started")
        self._core.spawned(name, 0, self._now())
        config = self._specs[name].config
        match self._specs[name].kind:
            case NodeKind.BROKER:
                self._join("agent", "agent", self._on_agent_record, ["subscribe"], ["ready"])
                self._links["agent"].member.on_welcome = lambda _epoch: self._core.ready(name, self._now())
            case NodeKind.HYPERVISOR:
                self._start_hypervisor(config)
            case NodeKind.GUEST:
                self._join("guest", name, lambda *_: None)
                self._guests[name] = self._loop.create_task(self._live(config))

    def ask_to_leave(self, node: str) -> None:
        """Let a node end as if it had been asked to."""
        if node in self._guests:
            self._guests[node].cancel()
        else:
            self._loop.call_soon(self._end, node, 0)

    def kill(self, node: str) -> None:
        """There is nothing that could refuse to leave."""
        self.ask_to_leave(node)

    def ask_counters(self, hypervisor: str) -> None:
        """Counters are at hand."""
        machine = self._machines[hypervisor]
        counters: dict[str, Any] = {"arch": machine.counters(), "host": {"doorbells": machine.doorbells}}
        if hypervisor in self._levels:
            counters["level"] = self._levels[hypervisor].joint.counters()
        self._loop.call_soon(lambda: self._core.counters(hypervisor, counters, self._now()))

    def progress(self, record: Mapping[str, Any]) -> None:
        """Pass it on; reports of waiting make no sense in virtual time."""
        if record.get("what") != "waiting":
            self._observer.progress(record)

    def _end(self, name: str, status: int, crash: str = "") -> None:
        if name in self._levels and self._specs[name].config.parent:
            self._move_out(self._specs[name].config)
        self._note(name, "ended", status)
        self._core.ended(name, status, crash, self._now())
        self._settle()

    # -- nodes ----

    def _connect(self, kind: str, name: str, on_record: Callable[..., None]) -> FabricLink:
        link = self._links[name] = self._fabric.connect(kind, name)
        link.on_record = on_record
        link.on_readable = once(self._loop, link.pump)
        return link

    def _join(self, kind: str, name: str, on_record: Callable[..., None], *say: Sequence[Any]) -> None:
        link = self._connect(kind, name, on_record)
        for record in say:
            link.send(Lane.CONTROL, record)
        link.flush()

    def _tell(self, name: str, record: Sequence[Any]) -> None:
        self._links[name].send(Lane.CONTROL, record)
        self._links[name].flush()

    def _on_agent_record(self, _lane: Lane, record: Sequence[Any], _payload: Any) -> None:
        match [*record]:
            case ["node", str(name), _kind, str(state), str(detail)] if name != "agent":
                self._note(name, state, detail)
                if state == "joined":
                    self._core.joined(name, self._now())
                elif state == "ready":
                    self._core.ready(name, self._now())
                elif state == "exited":
                    self._core.said_goodbye(name, detail.partition(": ")[2], self._now())
            case ["event", str(origin), "result", _name, str(text)]:
                self._note(origin, "result", text)
                self._core.result(origin, json.loads(text))
            case ["event", str(origin), str(code), *fields]:
                self._note(origin, code, *fields)
                if code == "probe":
                    self.probes[origin] = tuple(fields)
                self._core.event(origin, code, tuple(fields))
            case _:
                pass
        self._settle()

    def _start_hypervisor(self, config: HypervisorConfig) -> None:
        if config.parent and config.parent not in self._machines:
            if self._core.phase in STARTING:
                self._loop.call_later(PARENT_S, self._start_hypervisor, config)
            return
        options, _ = parse_options(config.argo_cmdline)
        personality = PERSONALITIES[config.personality, Arch[config.arch.upper()]]

        def report(code: str, *fields: Any) -> None:
            self._tell(config.name, ["event", code, *fields])

        core = Hypervisor(
            personality, config.cpu, options, xsm_by_name(config.xsm), report,
            doors=config.doors, notifications=config.notifications, storage=config.storage, parents=parents_of(config),
            device_models=config.device_models, iommus=config.iommus,
        )  # fmt: skip
        core.on_crash = partial(self._crashed, core)
        machine = self._machines[config.name] = InlineMachine(
            core,
            self._random,
            lambda domain, vcpu, frames: self._note(config.name, "turn", domain, vcpu, frames),
        )
        level: InlineLevel | None = None
        if is_joined(config):
            joint = Joint(config, core, 1, self._now, report)
            level = self._levels[config.name] = InlineLevel(self._loop, machine, joint)
        for domain in config.domains:
            memory = self._make_memory(domain.memory)
            memory.guest.buffer[FIRMWARE_BASE : FIRMWARE_BASE + len(domain.firmware)] = domain.firmware
            machine.create_domain(
                domain.domid,
                memory,
                domain.vcpus,
                name=domain.name,
                is_control=domain.is_control,
                nested=domain.nested,
            )
        link = self._connect("hypervisor", config.name, partial(self._on_hypervisor_record, level))
        if level is not None and not config.parent:
            level.join(link)
        if level is None or not config.parent:
            link.send(Lane.CONTROL, ["ready"])
        link.flush()
        if level is not None and config.parent:
            self._move_in(config, level, report)

    def _crashed(self, core: Hypervisor, domain: Domain) -> None:
        """A hypervisor, in the middle of a turn, crashed a domain: end the guest, whose end frees it."""
        crashed = self._crashes.get(domain.name)
        if crashed is None:
            core.kill_domain(domain.domid)
        else:
            crashed()

    def _on_hypervisor_record(
        self, level: InlineLevel | None, _lane: Lane, record: Sequence[Any], payload: Any
    ) -> None:
        if level is None:
            return
        if isinstance(record, Envelope):
            level.joint.arrived(record, payload)
        else:
            match [*record]:
                case ["peer", str(name), str(state), _, int(pid)]:
                    level.joint.peer(name, state, pid)
                case _:
                    return
        level.poke()

    def _move_in(self, config: HypervisorConfig, level: InlineLevel, report: Callable[..., None]) -> None:
        """A nested hypervisor is a domain of its parent's machine."""
        parent = self._machines[config.parent]
        row = next(domain for domain in self._specs[config.parent].config.domains if domain.name == config.name)
        hvm = parent.core.hvm(row.domid)
        assert hvm is not None
        level.move_in(config, *parent.attach(row.domid), lambda: self._tell(config.name, ["ready"]), report)
        above = self._levels[config.parent].joint
        above.attached(row, hvm)
        for domid, name in level.joint.lending():
            above.lent(row, name, self._machines[config.name].attach(domid)[0].hypervisor)
        self._levels[config.parent].poke()

    def _move_out(self, config: HypervisorConfig) -> None:
        """A nested hypervisor ends: so does its domain, and for all others its guests."""
        self._levels[config.name].end()
        row = next(domain for domain in self._specs[config.parent].config.domains if domain.name == config.name)
        parent = self._levels[config.parent]
        parent.joint.dying(row)
        self._machines[config.parent].destroy_domain(row.domid)
        parent.poke()

    async def _live(self, config: GuestConfig) -> None:
        """A guest from attaching to its end, as its process would have run it."""
        machine = self._machines[config.hypervisor]
        lines: list[str] = []
        ending = Ending(0, "told to stop")
        gone: asyncio.Future[BaseException] = self._loop.create_future()
        try:
            memory, areas, bells = machine.attach(config.domid)
            arch = Arch[config.arch.upper()]
            vcpus = [Vcpu(index, GuestSide(area, arch), bells[index]) for index, area in enumerate(areas)]
            files = DirectoryFiles(config.base_dir, config.output_dir, virtual=True)
            chance = generators(config.seed)
            world = World(lambda record: self._tell(config.name, record), lines.append, files, *chance, gone)
            self._crashes[config.name] = partial(_end_of_the_world, vcpus, gone, self._guests[config.name])
            ending = await live(config, vcpus, memory.guest, world)
        except asyncio.CancelledError:
            if gone.done():
                ending = Ending(ExitCode.INFRASTRUCTURE, "")
        finally:
            self._crashes.pop(config.name, None)
            if gone.done() and ending.code:  # as in a process that lost its hypervisor
                ending = Ending(ExitCode.INFRASTRUCTURE, str(gone.result()))
                lines.append(ending.reason)
            machine.destroy_domain(config.domid)
            if config.hypervisor in self._levels:
                self._levels[config.hypervisor].poke()
            for line in lines:
                self._note(config.name, "log", line)
            _write_log(Path(config.node_dir), lines)
        self._tell(config.name, ["exit", ending.code, ending.reason])
        del self._guests[config.name]
        # The goodbye is a record, the end is not: let the record arrive first, as it does between processes.
        self._loop.call_later(0.001, self._end, config.name, ending.code)


def _end_of_the_world(vcpus: Sequence[Vcpu], gone: asyncio.Future[BaseException], guest: asyncio.Task[None]) -> None:
    """Whatever `guest` does with its vCPUs fails from now on, and whatever it waits for ends."""
    if not gone.done():
        error = ConnectionError("its hypervisor crashed its domain")
        for vcpu in vcpus:
            vcpu.stop(error)
        gone.set_result(error)
        guest.cancel()


def _write_log(directory: Path, lines: Sequence[str]) -> None:
    if lines:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "log").write_text("\n".join(lines) + "\n")
