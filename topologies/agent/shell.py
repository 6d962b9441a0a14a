"""The agent's process: one loop over descriptors, the core behind it.

Sources are the launcher's pipe (its end takes the lab down, unless the lab was handed over), signals, the
pidfd of the forkserver, sentinel and pidfd of every child, the control socket and its clients, and the link
to the broker, which the agent joins as node ``agent``.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from topologies.agent.changes import Changes
from topologies.agent.children import Child, Children, SpawnError
from topologies.agent.control import ControlSocket, LineWriter
from topologies.agent.core import LabCore
from topologies.agent.entry import CRASH
from topologies.agent.journal import Journal
from topologies.agent.lives import Lives
from topologies.agent.news import TOLD_BY_BROKER, News
from topologies.agent.phases import LIVING, MILLISECOND, Phase
from topologies.agent.requests import Requests
from topologies.agent.sources import Sources
from topologies.agent.spec import LabSpec
from topologies.agent.toolstack import NoDomid
from topologies.agent.uplink import BROKER, HEARTBEAT, Uplink
from topologies.exitcodes import ExitCode
from topologies.rundir import RunDirectory
from topologies.runtime import Fault, Outcome

if TYPE_CHECKING:
    from topologies.hosts.member import HostState, RemoteChild
    from topologies.hosts.team import Team

FLUSH_EVERY = 10 * MILLISECOND
HYPERVISOR_GOES_WITHIN = 0.2
"""Seconds that a hypervisor has to be seen gone after a guest of its ended for want of one: a dying process closes its
sockets before its pidfd says so.
"""

RELEASE = b"release\n"
"""What the launcher writes to leave the lab to the agent."""


class Shell:
    """Carries out what the core decides, and tells it what happens."""

    def __init__(
        self,
        spec: LabSpec,
        run: RunDirectory,
        children: Children,
        control: ControlSocket,
        orders: int,
        progress: LineWriter,
        team: Team | None = None,
    ) -> None:
        self._specs = {node.name: node for node in spec.nodes}
        self._run = run
        self._all = children
        self._orders = orders
        self._launcher = progress
        self._released = False
        self._children: dict[str, Child | RemoteChild] = {}
        self._team = team
        self._to_start: deque[str] = deque()
        self._sources = Sources()
        self._core = LabCore(spec, self)
        self._journal = Journal(self._core, run, team)
        self._lives = Lives(self._core, self._tell, self._children.keys(), self._to_start.append)
        self._changes = Changes(self._core, self._tell, self._say)
        self._requests = Requests(
            control, self._sources, self._core, self._journal, self._take_down, self.ask_counters, self._changes
        )
        self._news = News(
            self._core, self._journal, self._lives, self._changes, self._requests.on_counters, self._on_lost,
            None if team is None else team.on_fabric,
        )  # fmt: skip
        self._uplink = Uplink(
            self._specs[BROKER], self._sources, self._news.on_record, self._on_welcome, self._repeat
        )

    # ---- the loop -----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run the lab to its end."""
        self._sources.watch(self._orders, self._on_orders)
        self._sources.watch(self._all.forkserver_pidfd, self._on_forkserver_gone)
        self._sources.watch_signals(lambda name: self._interrupt(f"the agent was sent {name}"))
        if self._team is not None:
            self._team.open(self._sources, self)
        self._core.begin(time.monotonic_ns())
        while self._core.phase is not Phase.DOWN:
            self._turn()
        self._leave_hosts()
        now = time.monotonic_ns()
        self._uplink.close()
        outcome = self._core.outcome(now)
        self._journal.write_state(now, outcome)
        return outcome

    def _turn(self) -> None:
        self._sources.serve(self._timeout(time.monotonic_ns()))
        self._start_next()
        now = time.monotonic_ns()
        deadline = self._core.deadline()
        if deadline is not None and now >= deadline:
            self._core.tick(now)
        self._uplink.serve(now, BROKER in self._children)
        if BROKER in self._children:
            self._news.broker_silent(BROKER, self._uplink.silent_since())
        if self._team is not None:
            self._team.serve(now)
        self._requests.serve(now)
        self._launcher.flush()
        self._journal.write_due_state(now)

    def _timeout(self, now: int) -> float:
        """Seconds until there is something to do without anything having happened."""
        if self._to_start or self._uplink.busy:
            return 0.0
        moments = [now + HEARTBEAT, *self._requests.moments(), *self._uplink.moments(now, BROKER in self._children)]
        moments += [at for at in (self._core.deadline(), self._journal.due()) if at is not None]
        if self._launcher.pending or self._requests.pending:
            moments.append(now + FLUSH_EVERY)
        if self._team is not None:
            moments += self._team.moments(now)
        return max(0.0, (min(moments) - now) / 1e9)

    # ---- the launcher, signals, the forkserver ------------------------------------------------------------

    def _on_orders(self) -> None:
        data = os.read(self._orders, 4096)
        if data == RELEASE:
            self._released = True
            if self._team is not None:
                self._team.release()
            self._launcher.write({"what": "released"})
        if not data:
            self._sources.unwatch(self._orders)
            if not self._released:
                self._interrupt("interrupted")

    def _take_down(self) -> None:
        """Another command wants the lab down, which for one that is attached is an interruption."""
        if self._released:
            self._core.stop(None, time.monotonic_ns())
        else:
            self._interrupt("taken down by another command")

    def _interrupt(self, words: str) -> None:
        self._core.stop(Fault(ExitCode.INTERRUPTED, words), time.monotonic_ns())

    def _on_forkserver_gone(self) -> None:
        self._sources.unwatch(self._all.forkserver_pidfd)
        self._core.stop(Fault(ExitCode.DIED, "the lab's forkserver died"), time.monotonic_ns())

    # ---- children -----------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """One start per turn, so that an interruption is seen between two of them."""
        if not self._to_start:
            return
        name = self._to_start.popleft()
        if not self._core.may_start(name):
            return
        try:
            directory = self._run.node_directory(name)
            (directory / CRASH).unlink(missing_ok=True)  # a former life's
            config = self._changes.present(self._lives.config(name, time.monotonic_ns()))
            if self._team is not None and self._team.has(name):
                self._team.spawn(self._specs[name], config)
                return
            child = self._all.spawn(name, directory, self._specs[name].entry, config)
        except (SpawnError, NoDomid, OSError) as error:
            if self._all.forkserver_lives():
                self._core.not_spawned(name, str(error), time.monotonic_ns())
            else:  # seen here before its pidfd was looked at: its death is the reason, not this start
                self._on_forkserver_gone()
            return
        self._children[name] = child
        self._sources.watch(child.sentinel, lambda: self._on_end(name))
        if child.pidfd >= 0:
            self._sources.watch(child.pidfd, lambda: self._on_end(name))
        self._core.spawned(name, child.pid, time.monotonic_ns())

    def _on_end(self, name: str) -> None:
        child = self._children.get(name)
        if not isinstance(child, Child):
            return
        del self._children[name]
        status, crash = child.wait(), child.crash()
        self._hypervisor_first(name, status)
        self._sources.unwatch(child.sentinel)
        self._sources.unwatch(child.pidfd)
        self._ended(name, status, crash, child.last_words())
        child.close()

    def _ended(self, name: str, status: int, crash: str, last_words: str) -> None:
        node = self._core.node(name)
        if status == ExitCode.INFRASTRUCTURE and node is not None and not node.was_ready and not node.detail:
            # It could not even join, so it could tell nobody.
            self._core.said_why(name, last_words)
        now = time.monotonic_ns()
        if name == BROKER:
            self._uplink.broker_died()
            if self._team is not None:
                self._team.fabric_silent()
        else:
            self._lives.ended(name, now)
            self._uplink.send(["gone", name, status, crash, self._pid(name)])
        self._core.ended(name, status, crash, now)

    def _pid(self, name: str) -> int:
        """The process of the life that is told of; 0 where none was seen."""
        node = self._core.node(name)
        return 0 if node is None else node.pid or 0

    def _hypervisor_first(self, guest: str, status: int) -> None:
        """When a guest and its hypervisor have both ended, the hypervisor was the first, whichever is seen first."""
        under = self._specs[guest].hypervisor
        child = self._children.get(under or "")
        if under is None or child is None or self._core.phase not in LIVING:
            return
        wants = status == ExitCode.INFRASTRUCTURE and self._specs[under].restart
        if child.gone(HYPERVISOR_GOES_WITHIN if wants else 0.0):
            self._on_end(under)

    # ---- other hosts --------------------------------------------------------------------------------------

    def far_spawned(self, child: RemoteChild) -> None:
        """A node's process runs on another host."""
        if self._core.may_start(child.name):
            self._children[child.name] = child
            self._core.spawned(child.name, child.pid, time.monotonic_ns())
            self._news.spawned(child.name, child.pid)
        else:
            child.signal(signal.SIGKILL)  # the lab has changed its mind meanwhile

    def far_not_spawned(self, name: str, words: str) -> None:
        """It could not be started."""
        if self._core.may_start(name):
            self._core.not_spawned(name, words, time.monotonic_ns())

    def far_ended(self, name: str, status: int, crash: str, last_words: str) -> None:
        """It is gone."""
        if self._children.pop(name, None) is not None:
            self._news.ended(name)
            self._ended(name, status, crash, last_words)

    def far_log(self, name: str, at: int, data: bytes) -> None:
        """What it wrote is kept here as well: it is to be read when its host is gone."""
        self._journal.far_log(name, at, data)

    def on_host(self, host: str, state: HostState, words: str) -> None:
        """A host stands differently now."""
        assert self._team is not None
        self._journal.event(self._team.agent_of(host), str(state), (words,))
        self.progress({"what": "host", "name": host, "state": str(state), "detail": words})

    def host_lost(self, host: str, words: str) -> None:
        """A host is lost, with what ran there."""
        assert self._team is not None
        now = time.monotonic_ns()
        names = self._team.nodes_on(host)
        for name in names:
            if self._children.pop(name, None) is not None:
                self._lives.ended(name, now)
                self._uplink.send(["gone", name, 0, f"host {host} is lost", self._pid(name)])
        self._core.host_lost(names, words, now)

    def _leave_hosts(self) -> None:
        """Whatever is left on other hosts goes, and says so."""
        team = self._team
        if team is None:
            return
        limit = team.leave()
        while not team.over and time.monotonic_ns() < limit:
            self._turn()
        for words in team.not_left():
            self._core.accuse(words)
        team.close()

    # ---- the broker ---------------------------------------------------------------------------------------

    def _tell(self, name: str, record: list[Any]) -> None:
        self._uplink.tell(name, record)

    def _say(self, record: list[Any]) -> None:
        self._uplink.send(record)

    def _repeat(self, name: str) -> None:
        self._lives.repeat(name)
        self._changes.repeat(name)

    def _on_welcome(self) -> None:
        self._changes.welcome()
        self._core.ready(BROKER, time.monotonic_ns())

    def _on_lost(self, name: str) -> None:
        self._uplink.tell_again(name)

    # ---- the core's sink ----------------------------------------------------------------------------------

    def start(self, node: str) -> None:
        """Start a node in one of the next turns, a guest that was there before when it has its fresh domain."""
        self._lives.start(node, time.monotonic_ns())

    def ask_to_leave(self, node: str) -> None:
        """SIGTERM."""
        self._children[node].signal(signal.SIGTERM)

    def kill(self, node: str) -> None:
        """SIGKILL."""
        self._children[node].signal(signal.SIGKILL)

    def ask_counters(self, hypervisor: str) -> None:
        """Over the broker."""
        self._tell(hypervisor, ["counters?"])

    def progress(self, record: Mapping[str, Any]) -> None:
        """To the launcher, to whoever waits for the end, and to the node's events."""
        self._launcher.write(record)
        self._requests.progress(record)
        if record["what"] == "node" and record["state"] not in TOLD_BY_BROKER:
            self._journal.event(record["name"], record["state"], (record["detail"],))
        self._journal.touch()

    # ---- the end ------------------------------------------------------------------------------------------

    def last_words(self, outcome: Outcome) -> None:
        """Tell everybody who waits for it how it went."""
        self._requests.last_words(outcome, self._launcher)
