"""The life of one lab, without processes, sockets or clocks.

The core walks the tables of :mod:`topologies.agent.phases`.  It is told what happened (a process started,
joined the broker, is ready, ended; somebody wants the lab down; time passed) and says to its sink what to
do.  Start goes broker, hypervisors, guests; the way down goes the other way round.  Whatever the order of
events, every lab ends in phase DOWN with a verdict and no process left.

Times are nanoseconds of any monotonic clock, given with every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from topologies.agent.checks import Checks
from topologies.agent.nodes import LabSink, Node, Nodes
from topologies.agent.phases import (
    KILLED_WITHIN,
    LIVING,
    ROWS,
    SECOND,
    STARTING,
    STRAGGLERS,
    Late,
    NodeEvent,
    Phase,
    PhaseRow,
    Until,
)
from topologies.agent.restarts import Restarts
from topologies.agent.spec import LabSpec, Mode
from topologies.agent.verdict import Verdict
from topologies.agent.waits import sentences, untold
from topologies.exitcodes import ExitCode
from topologies.runtime import ENDED, Fault, NodeKind, NodeState, Outcome, ending_words, node_faults

REPORT_EVERY = SECOND // 2
"""How often a wait that lasts says what it waits for."""


class LabCore:
    """One lab from its plan to its verdict."""

    def __init__(self, spec: LabSpec, sink: LabSink) -> None:
        self.spec = spec
        self.phase = Phase.STARTING_BROKER
        self._sink = sink
        self._nodes = Nodes(spec.nodes, sink)
        self._checks = Checks(spec.checks, self._nodes)
        self._restarts = Restarts(self._nodes, sink)
        self._verdict = Verdict(spec, self._nodes, self._checks)
        self._began = self._phase_since = self._next_report = 0
        self._over_since: int | None = None
        self._limit: int | None = None
        self._killed = False

    # ---- what happened ------------------------------------------------------------------------------------

    def begin(self, now: int) -> None:
        """Start the lab."""
        self._began = now
        self._enter(Phase.STARTING_BROKER, now)
        self._walk(now)

    def spawned(self, name: str, pid: int, now: int) -> None:
        """The process of `name` runs."""
        node = self._nodes[name]
        if node.state is NodeState.RESTARTING:
            node.begin_again()
        node.pid = pid
        self._nodes.move(node, NodeEvent.SPAWNED, now)
        self._walk(now)

    def not_spawned(self, name: str, words: str, now: int) -> None:
        """The process of `name` could not be started."""
        self._nodes[name].detail = words
        kind = self._nodes[name].spec.kind
        self.stop(Fault(ExitCode.INFRASTRUCTURE, f"{kind} {name} could not be started: {words}"), now)

    def joined(self, name: str, now: int) -> None:
        """The broker knows `name`."""
        node = self._nodes.get(name)
        if node is not None:
            self._nodes.move(node, NodeEvent.JOINED, now)
            self._walk(now)

    def ready(self, name: str, now: int) -> None:
        """`name` has done what it needs before it can serve or run."""
        node = self._nodes.get(name)
        if node is not None:
            node.was_ready = True
            if self._nodes.move(node, NodeEvent.READY, now) and node.spec.kind is NodeKind.HYPERVISOR:
                if self.phase is Phase.STARTING_GUESTS:  # it comes for the second time: for those that waited with it
                    self._start_planned(self._nodes.on(node))
                elif self.phase is Phase.STARTING_HYPERVISORS:  # those inside it have their ground now
                    self._start_planned(self._nodes.inside(node))
                self._restarts.start_due(now)
            self._walk(now)

    def silent(self, name: str, since: int | None) -> None:
        """The broker has not heard `name` since then, or (None) hears it.  Silence kills nothing."""
        node = self._nodes.get(name)
        if node is not None:
            node.silent_since_ns = since

    def said_goodbye(self, name: str, reason: str, now: int, code: int = 0) -> None:
        """`name` told the broker that it ends with exit code `code`, and why; its results came before."""
        node = self._nodes.get(name)
        if node is None:
            return
        if node.state in (NodeState.RESTARTING, NodeState.STARTING):  # it joins before it speaks: said in its last life
            node.explain_last(reason)
        if node.state is not NodeState.STARTING:
            node.goodbye = True
            node.bereft = code == ExitCode.INFRASTRUCTURE
            node.detail = node.detail or reason
            self._walk(now)

    def said_why(self, name: str, words: str) -> None:
        """What `name`, which never joined, wrote down before it ended."""
        self._nodes[name].detail = words

    def detached(self, name: str, now: int) -> None:
        """The attach connection of guest `name` ended.  One that lives on without it is killed."""
        node = self._nodes.get(name)
        if node is not None and self.phase in LIVING:
            self._restarts.detached(node, now)

    def ended(self, name: str, status: int, crash: str, now: int) -> None:
        """The process of `name` is gone.

        Args:
            name: the node.
            status: exit code, or the negated number of the signal that ended it.
            crash: what the node's own code raised, when that was no program's doing; else empty.
            now: the time.
        """
        node = self._nodes[name]
        event = node.end(status, crash)
        if not (self._restarts.wanted(node, event, self.phase) and self._restarts.begin(node, event, now)):
            self._stay_down(node, event, now)
        self._walk(now)

    def host_lost(self, names: Iterable[str], words: str, now: int) -> None:
        """The host of these nodes is lost: what ran there counts as gone, and what was to start there never will."""
        nodes = [self._nodes[name] for name in names]
        late = [node.spec.name for node in nodes if node.state is NodeState.PLANNED]
        # Hypervisors first: that their guests are gone as well follows from it.
        for node in sorted(nodes, key=lambda node: node.spec.kind is NodeKind.GUEST):
            if node.lives or node.state is NodeState.RESTARTING:
                node.lost, node.detail, node.kill_at = True, words, None
                self._stay_down(node, NodeEvent.ENDED_BADLY, now)
        if late and self.phase in STARTING:
            why = f"{', '.join(late)} could not be started: host {nodes[0].spec.host} is lost: {words}"
            self.stop(Fault(ExitCode.INFRASTRUCTURE, why), now)
        self._walk(now)

    def accuse(self, words: str) -> None:
        """Something of the machines went wrong that the verdict must name."""
        self._verdict.broken(words)

    def not_restarted(self, name: str, words: str, now: int) -> None:
        """There is nothing on which `name` could be started again."""
        node = self._nodes[name]
        if node.state is NodeState.RESTARTING:
            node.detail = f"{node.detail}; not started again: {words}".lstrip("; ")
            self._stay_down(node, node.ended_as, now)
            self._walk(now)

    def result(self, name: str, fields: Mapping[str, Any]) -> None:
        """`name` reported results; later fields add to earlier ones.  ``arch`` and ``host`` are its
        counters.
        """
        node = self._nodes.get(name)
        if node is not None:
            node.add(fields)

    def counters(self, hypervisor: str, fields: Mapping[str, Any], now: int) -> None:
        """`hypervisor` answered with its counters."""
        node = self._nodes.get(hypervisor)
        if node is not None:
            node.counters = fields
            self._walk(now)

    def event(self, origin: str, code: str, fields: tuple[Any, ...]) -> None:
        """`origin` reported an event."""
        self._verdict.event(origin, code, fields)

    def stop(self, fault: Fault | None, now: int) -> None:
        """The lab is to go down now: for `fault`, or (None) because somebody may ask for it."""
        if fault is not None:
            self._verdict.blame(fault)
        if self.phase in LIVING or self.phase is Phase.COLLECTING:
            hurry = fault is None or fault.code is ExitCode.INTERRUPTED
            first = Phase.STOPPING_GUESTS if hurry or self.phase is Phase.COLLECTING else Phase.COLLECTING
            self._enter(first, now)
            self._walk(now)

    def tick(self, now: int) -> None:
        """Time passed."""
        self._decide_checks(now)
        self._restarts.start_due(now)
        self._restarts.kill_overdue(now)
        if self._limit is not None and now >= self._limit:
            self._late(now)
        self._walk(now)
        if now >= self._next_report and self.phase is not Phase.DOWN:
            self._next_report = now + REPORT_EVERY
            waited = (now - self._phase_since) / SECOND
            self._sink.progress({"what": "waiting", "waits": self.waits(now), "seconds": round(waited, 1)})

    # ---- what is ------------------------------------------------------------------------------------------

    def may_start(self, name: str) -> bool:
        """Whether a start that was ordered is still wanted, and can be now."""
        node = self._nodes[name]
        phases = LIVING if node.state is NodeState.RESTARTING else STARTING
        waiting = node.state in (NodeState.PLANNED, NodeState.RESTARTING)
        return waiting and self.phase in phases and self._restarts.has_ground(node)

    def comes_again(self, name: str) -> bool:
        """Whether a hypervisor that is started again needs a domain for guest `name`."""
        return self._restarts.comes_again(self._nodes[name])

    def deadline(self) -> int | None:
        """When :meth:`tick` has something to do; None in phase DOWN."""
        if self.phase is Phase.DOWN:
            return None
        moments = [self._next_report]
        if self._limit is not None:
            moments.append(self._limit)
        for node in self._nodes:
            moments += [at for at in (node.restart_at, node.kill_at) if at is not None]
        if self.phase is Phase.RUNNING:
            moments += [at for _, at in self._checks.open() if at is not None]
            if self._over_since is not None:
                moments.append(self._over_since + STRAGGLERS)
        return min(moments)

    @property
    def epoch(self) -> int:
        """The epoch of the broker: it grows with each of its lives."""
        first: int = 1
        lives = 0
        for node in self._nodes.of(NodeKind.BROKER):
            first, lives = getattr(node.spec.config, "epoch", 1), node.restarts
        return first + lives

    def lived_before(self, name: str) -> bool:
        """Whether the present life of guest `name`, or the one that is about to begin, is not its first."""
        node = self._nodes.get(name)
        coming = node is not None and node.state is not NodeState.PLANNED and self._restarts.comes_again(node)
        return node is not None and (node.restarts > 0 or coming)

    def node(self, name: str) -> Node | None:
        """The node called `name`."""
        return self._nodes.get(name)

    def nodes(self) -> list[Node]:
        """All nodes, in the order of the plan."""
        return list(self._nodes)

    def waits(self, now: int) -> list[str]:
        """What the lab waits for, one sentence for each wait."""
        return sentences(self.phase, self._nodes, self._checks, now)

    def outcome(self, now: int) -> Outcome:
        """How it went so far; final in phase DOWN."""
        return self._verdict.outcome((now - self._began) / SECOND)

    # ---- endings ------------------------------------------------------------------------------------------

    def _stay_down(self, node: Node, event: NodeEvent, now: int) -> None:
        """The node ended for good."""
        node.restart_at, node.due = None, False
        self._nodes.move(node, event, now)
        for guest in self._nodes.on(node):
            if guest.state is NodeState.RESTARTING:
                self._stay_down(guest, guest.ended_as, now)
        if self.phase in LIVING:
            self._restarts.left_behind(node, now)
        if node.spec.kind is NodeKind.BROKER and self.phase in LIVING:
            self.stop(Fault(ExitCode.DIED, f"broker {node.spec.name} {ending_words(node.outcome())}"), now)
        self._look_for_faults(now)

    def _look_for_faults(self, now: int) -> None:
        """Go down when a node's ending says that this cannot go well any more."""
        self._decide_checks(now)
        staying = self.spec.mode is Mode.UP and self.phase is Phase.RUNNING
        if self.phase in LIVING and not staying:
            nodes = [node.outcome() for node in self._nodes]
            if node_faults(nodes, self.spec.checks):
                self._enter(Phase.COLLECTING, now)

    def _decide_checks(self, now: int) -> None:
        if self.spec.mode is Mode.RUN and self.phase in LIVING and self._checks.decide(now):
            self._enter(Phase.COLLECTING, now)

    # ---- phases -------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, now: int) -> None:
        self.phase = phase
        row = ROWS[phase]
        self._killed = False
        if phase not in LIVING:
            self._restarts.none_any_more(now)
        self._phase_since = now
        self._next_report = now + REPORT_EVERY
        self._limit = None if row.within is None else now + row.within
        if phase in LIVING and self.spec.timeout_ns is not None:
            whole = self._began + self.spec.timeout_ns
            if phase is not Phase.RUNNING or self.spec.mode is Mode.RUN:
                self._limit = whole if self._limit is None else min(whole, self._limit)
        self._sink.progress({"what": "phase", "phase": str(phase), "doing": row.doing})
        self._on_entry(row, now)

    def _on_entry(self, row: PhaseRow, now: int) -> None:
        if row.phase is Phase.RUNNING:
            self._checks.ready_at = now
            self._sink.progress({"what": "ready", "run_dir": self.spec.run_dir})
            self._decide_checks(now)
        elif row.until is Until.READY:
            self._start_planned(self._nodes.of(row.kind))
        elif row.until is Until.TOLD:
            for node in self._nodes.of(NodeKind.HYPERVISOR):
                node.counters = None  # those of an earlier question are not the last
            for node in untold(self._nodes):
                if node.spec.kind is NodeKind.HYPERVISOR:
                    self._sink.ask_counters(node.spec.name)
        elif row.until is Until.ENDED:
            for node in self._nodes.of(row.kind):
                if node.lives:
                    self._nodes.move(node, NodeEvent.ASKED, now)
                    self._sink.ask_to_leave(node.spec.name)

    def _start_planned(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.state is NodeState.PLANNED and self._restarts.has_ground(node):
                self._sink.start(node.spec.name)

    def _walk(self, now: int) -> None:
        """On to the next phase for as long as the present one is done."""
        while self._done(ROWS[self.phase], now):
            self._enter(ROWS[self.phase].then, now)

    def _done(self, row: PhaseRow, now: int) -> bool:
        if row.until is Until.READY:
            return all(node.settled for node in self._nodes.of(row.kind))
        if row.until is Until.OVER:
            return self.spec.mode is Mode.RUN and self._over(now)
        if row.until is Until.TOLD:
            return not untold(self._nodes)
        if row.until is Until.ENDED:
            return not any(node.lives for node in self._nodes.of(row.kind))
        return False

    def _over(self, now: int) -> bool:
        """Whether a run has nothing more to wait for."""
        if all(node.state in ENDED for node in self._nodes.of(NodeKind.GUEST)):
            return True
        if not self._checks.decided:
            return False
        # What is left serves others and need not end, or is about to.
        if self._over_since is None:
            self._over_since = now
        return now >= self._over_since + STRAGGLERS

    def _late(self, now: int) -> None:
        row = ROWS[self.phase]
        self._limit = None
        if row.late is Late.FAIL:
            waits = "; ".join(self.waits(now)) or "nothing"
            self.stop(Fault(ExitCode.TIMEOUT, f"too late while {row.doing}, waiting for: {waits}"), now)
        elif row.late is Late.GO_ON:
            self._enter(row.then, now)
        elif not self._killed:
            self._killed = True
            self._limit = now + KILLED_WITHIN
            for node in self._nodes.of(row.kind):
                if node.lives:
                    self._sink.kill(node.spec.name)
        else:
            for node in self._nodes.of(row.kind):
                if node.lives:
                    words = f"{row.kind} {node.spec.name} (pid {node.pid}) does not disappear after SIGKILL"
                    self._verdict.broken(words)
            self._enter(row.then, now)
