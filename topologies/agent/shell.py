"""The agent's process: one loop over descriptors, the core behind it.

Sources are the launcher's pipe (its end takes the lab down, unless the lab was handed over), signals, the
pidfd of the forkserver, sentinel and pidfd of every child, the control socket and its clients, and the link
to the broker, which the agent joins as node ``agent``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker.client import ZmqLink
from broker.frames import Lane
from broker.router import SILENCE_NS
from topologies.agent.children import Child, Children, SpawnError
from topologies.agent.control import Client, ControlSocket, LineWriter
from topologies.agent.core import LabCore
from topologies.agent.entry import CRASH
from topologies.agent.journal import Journal
from topologies.agent.phases import MILLISECOND, Phase
from topologies.agent.spec import LabSpec
from topologies.agent.toolstack import CREATED, FREED, REFUSED, NoDomid, Toolstack
from topologies.exitcodes import ExitCode
from topologies.rundir import RunDirectory
from topologies.runtime import Fault, NodeKind, NodeState, Outcome

BROKER, AGENT = "broker", "agent"
TOLD_BY_BROKER = ("joined", "ready")
"""States of a node that stand in its events because the broker announces them."""
HEARTBEAT = 500 * MILLISECOND
COUNTERS_WITHIN = 500 * MILLISECOND
TELL_AGAIN = 200 * MILLISECOND
LOOK_FOR_BROKER = 2 * MILLISECOND
STATE_EVERY = 100 * MILLISECOND
LAST_WORDS_WITHIN = 2.0
"""Seconds that the launcher has to read the outcome when its pipe is full."""

RELEASE = b"release\n"
"""What the launcher writes to leave the lab to the agent."""


@dataclasses.dataclass(slots=True)
class Inspection:
    """Somebody asked for everything: who, which hypervisors have not told their counters, and until when to wait."""

    client: Client
    untold: set[str]
    until: int


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
    ) -> None:
        self._spec = spec
        self._specs = {node.name: node for node in spec.nodes}
        self._run = run
        self._all = children
        self._control = control
        self._orders = orders
        self._launcher = progress
        self._released = False
        self._core = LabCore(spec, self)
        self._toolstack = Toolstack(spec.nodes, self._tell)
        self._journal = Journal(self._core, run)
        self._children: dict[str, Child] = {}
        self._to_start: deque[str] = deque()
        self._going_down: list[Client] = []
        self._inspecting: list[Inspection] = []
        self._link: ZmqLink | None = None
        self._link_busy = False
        self._next_beat = 0
        self._again_at: dict[str, int] = {}  # when to repeat to a hypervisor what did not reach it
        self._dirty = True
        self._next_state = 0
        self._selector = selectors.DefaultSelector()

    # ---- the loop -----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run the lab to its end."""
        self._watch(self._orders, self._on_orders)
        self._watch(self._all.forkserver_pidfd, self._on_forkserver_gone)
        self._watch(self._control.listener.fileno(), self._on_connection)
        self._catch_signals()
        self._core.begin(time.monotonic_ns())
        while self._core.phase is not Phase.DOWN:
            self._turn()
        now = time.monotonic_ns()
        if self._link is not None:
            self._link.close()
        outcome = self._core.outcome(now)
        self._journal.write_state(now, outcome)
        return outcome

    def _turn(self) -> None:
        timeout = self._timeout(time.monotonic_ns())
        for key, _events in self._selector.select(timeout):
            key.data()
        self._start_next()
        now = time.monotonic_ns()
        deadline = self._core.deadline()
        if deadline is not None and now >= deadline:
            self._core.tick(now)
        self._serve_link(now)  # after everything that may have something to say
        self._hear_broker(now)
        self._answer_inspections(now)
        self._flush_writers()
        if self._dirty and now >= self._next_state:
            self._dirty = False
            self._next_state = now + STATE_EVERY
            self._journal.write_state(now)

    def _timeout(self, now: int) -> float:
        """Seconds until there is something to do without anything having happened."""
        if self._to_start or self._link_busy:
            return 0.0
        moments = [now + HEARTBEAT]
        deadline = self._core.deadline()
        if deadline is not None:
            moments.append(deadline)
        if self._dirty:
            moments.append(self._next_state)
        moments += [inspection.until for inspection in self._inspecting]
        if self._link is not None:
            moments += [self._next_beat, *self._again_at.values()]
        elif BROKER in self._children:
            moments.append(now + LOOK_FOR_BROKER)
        if self._launcher.pending or any(client.writer.pending for client in self._control.clients.values()):
            moments.append(now + 10 * MILLISECOND)
        return max(0.0, (min(moments) - now) / 1e9)

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, handler)

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    # ---- the launcher, signals, the forkserver ------------------------------------------------------------

    def _on_orders(self) -> None:
        data = os.read(self._orders, 4096)
        if data == RELEASE:
            self._released = True
            self._launcher.write({"what": "released"})
        if not data:
            self._unwatch(self._orders)
            if not self._released:
                self._interrupt("interrupted")

    def _interrupt(self, words: str) -> None:
        self._core.stop(Fault(ExitCode.INTERRUPTED, words), time.monotonic_ns())

    def _catch_signals(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

        def on_signal() -> None:
            for number in os.read(read, 64):
                # A detached lab has nobody whose terminal could hang up.
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._interrupt(f"the agent was sent {signal.Signals(number).name}")

        self._watch(read, on_signal)

    def _on_forkserver_gone(self) -> None:
        self._unwatch(self._all.forkserver_pidfd)
        self._core.stop(Fault(ExitCode.DIED, "the lab's forkserver died"), time.monotonic_ns())

    # ---- children -----------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """One start per turn, so that an interruption is seen between two of them."""
        if not self._to_start:
            return
        name = self._to_start.popleft()
        if not self._core.may_start(name):
            return
        spec = self._specs[name]
        try:
            directory = self._run.node_directory(name)
            (directory / CRASH).unlink(missing_ok=True)  # a former life's
            child = self._all.spawn(name, directory, spec.entry, self._config(name))
        except (SpawnError, OSError) as error:
            if self._all.forkserver_lives():
                self._core.not_spawned(name, str(error), time.monotonic_ns())
            else:  # seen here before its pidfd was looked at: its death is the reason, not this start
                self._on_forkserver_gone()
            return
        self._children[name] = child
        self._watch(child.sentinel, lambda: self._on_end(name))
        if child.pidfd >= 0:
            self._watch(child.pidfd, lambda: self._on_end(name))
        self._core.spawned(name, child.pid, time.monotonic_ns())

    def _config(self, name: str) -> Any:
        """What a node is told at its start, which for a later life is not what the plan says."""
        node, config = self._core.node(name), self._specs[name].config
        if node is None or node.state is not NodeState.RESTARTING:
            return config
        if name == BROKER:
            return dataclasses.replace(config, epoch=self._core.epoch + 1)
        toolstack = self._toolstack
        return dataclasses.replace(
            config, epoch=self._core.epoch, domid=toolstack.domids[name], peers=toolstack.peers(name)
        )

    def _on_end(self, name: str) -> None:
        child = self._children.pop(name, None)
        if child is None:
            return
        status, crash = child.wait(), child.crash()
        node = self._core.node(name)
        if status == ExitCode.INFRASTRUCTURE and node is not None and not node.was_ready and not node.detail:
            # It could not even join, so it could tell nobody.
            self._core.said_why(name, child.last_words())
        self._unwatch(child.sentinel)
        self._unwatch(child.pidfd)
        child.close()
        if name == BROKER:
            if self._link is not None:
                self._link.member.rejoin("the broker died")
        elif self._link is not None:
            if self._specs[name].kind is NodeKind.GUEST:
                self._toolstack.exited(name)
            self._send(["gone", name, status, crash])
        self._core.ended(name, status, crash, time.monotonic_ns())

    # ---- the broker ---------------------------------------------------------------------------------------

    def _serve_link(self, now: int) -> None:
        if self._link is None:
            endpoint = self._broker_endpoint()
            if BROKER not in self._children or not Path(endpoint.removeprefix("ipc://")).exists():
                return
            self._join(endpoint)
        assert self._link is not None
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT
            self._link.heartbeat()
        for name, at in list(self._again_at.items()):
            if now >= at:
                del self._again_at[name]
                self._toolstack.repeat(name)
        # ZMQ_FD is edge-triggered: look before every sleep, not only when it seems readable.
        self._link_busy = self._link.pump()

    def _hear_broker(self, now: int) -> None:
        """Nobody but the agent can tell that the broker is silent."""
        if self._link is None or BROKER not in self._children:
            return
        silent = self._link.silent_ns()
        since = None if silent is None or silent < SILENCE_NS else now - silent
        node = self._core.node(BROKER)
        if node is not None and (node.silent_since_ns is None) != (since is None):
            self._core.silent(BROKER, since)
            self._note(BROKER, "unresponsive" if since is not None else "heard", ())
            self._dirty = True

    def _broker_endpoint(self) -> str:
        return str(self._specs[BROKER].config.endpoint)

    def _join(self, endpoint: str) -> None:
        config = self._specs[BROKER].config
        link = self._link = ZmqLink(endpoint, kind=AGENT, name=AGENT, token=config.token, epoch=config.epoch)
        link.on_record = self._on_record
        link.member.on_welcome = lambda _epoch: self._core.ready(BROKER, time.monotonic_ns())
        link.send(Lane.CONTROL, ["subscribe"])
        link.send(Lane.CONTROL, ["ready"])
        self._watch(link.fileno(), lambda: None)

    def _send(self, record: list[Any]) -> None:
        if self._link is not None:
            self._link.send(Lane.CONTROL, record)

    def _tell(self, name: str, record: list[Any]) -> None:
        self._send(["tell", name, record])

    def _on_record(self, _lane: Lane, record: Any, _payload: Any) -> None:
        now = time.monotonic_ns()
        match list(record):
            case ["node", str(name), _kind, str(state), str(detail)]:
                self._on_node(name, state, detail, now)
            case ["event", str(origin), "result", _name, str(text)]:
                self._core.result(origin, _json_object(text))
                self._note(origin, "result", (_json_object(text),))
            case ["event", str(origin), str(code), *fields]:
                self._core.event(origin, code, tuple(fields))
                if code == "probe":
                    self._journal.probes[origin] = tuple(fields)
                self._note(origin, code, tuple(fields))
                self._on_domain(origin, code, fields, now)
            case ["nobody" | "busy", str(name), ["exited" | "create", *_]]:
                self._again_at[name] = now + TELL_AGAIN
            case ["told", str(name), ["counters", str(text)]]:
                self._core.counters(name, _json_object(text), now)
                for inspection in self._inspecting:
                    inspection.untold.discard(name)
            case _:
                pass  # refusals of what we told a node that has just gone, the broker's farewell

    def _on_node(self, name: str, state: str, detail: str, now: int) -> None:
        node = self._core.node(name)
        if node is None or (state in TOLD_BY_BROKER and _pid(detail) not in (None, node.pid)):
            return  # the agent itself, or late news of a former life
        self._note(name, state, (detail,))
        if state == "joined":
            self._core.joined(name, now)
            self._toolstack.repeat(name)
        elif state == "ready":
            self._core.ready(name, now)
        elif state == "exited":
            self._core.said_goodbye(name, _reason(detail), now)
        self._core.silent(name, now - SILENCE_NS if state == "unresponsive" else None)
        self._dirty = True

    def _on_domain(self, origin: str, code: str, fields: list[Any], now: int) -> None:
        """A hypervisor says what became of a guest's domain."""
        match fields:
            case [str(guest), int(domid), *words] if self._runs(guest, origin):
                current = self._toolstack.domids[guest] == domid
                if code == "domain-dying" and current and guest in self._children:
                    self._core.detached(guest, now)
                elif code in (CREATED, REFUSED, FREED) and self._toolstack.answered(origin, code, guest, domid, now):
                    if code == CREATED:
                        self._begin_in(guest, domid)
                    else:
                        self._core.not_restarted(guest, " ".join(map(str, words)), now)
            case _:
                pass

    def _runs(self, guest: str, hypervisor: str) -> bool:
        """Whether `hypervisor` is one, and `guest` a guest of its."""
        spec = self._specs.get(guest)
        return spec is not None and spec.kind is NodeKind.GUEST and spec.hypervisor == hypervisor

    def _begin_in(self, guest: str, domid: int) -> None:
        """The fresh domain is there: its peers learn of it before its guest starts."""
        for peer in self._toolstack.neighbours(guest):
            if peer in self._children:
                self._tell(peer, ["peer", guest, domid])
        node = self._core.node(guest)
        if node is not None:
            node.domid = domid
        self._to_start.append(guest)

    def _note(self, node: str, code: str, fields: tuple[Any, ...]) -> None:
        if node in self._specs:
            self._journal.event(node, code, fields)

    # ---- the core's sink ----------------------------------------------------------------------------------

    def start(self, node: str) -> None:
        """Start a node in one of the next turns, a guest that was there before when it has its fresh domain."""
        known = self._core.node(node)
        if self._specs[node].kind is NodeKind.GUEST and known is not None and known.state is NodeState.RESTARTING:
            now = time.monotonic_ns()
            try:
                self._toolstack.renew(node, now)
            except NoDomid as error:
                self._core.not_restarted(node, str(error), now)
        else:
            self._to_start.append(node)

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
        for client in self._going_down:
            client.writer.write(record)
        if record["what"] == "node" and record["state"] not in TOLD_BY_BROKER:
            self._journal.event(record["name"], record["state"], (record["detail"],))
        self._dirty = True

    # ---- the control socket -------------------------------------------------------------------------------

    def _on_connection(self) -> None:
        client = self._control.accept()
        if client is not None:
            self._watch(client.connection.fileno(), lambda: self._on_client(client))

    def _on_client(self, client: Client) -> None:
        try:
            request = client.request()
        except (ConnectionError, ValueError, OSError) as error:
            if isinstance(error, ValueError):
                client.writer.write({"what": "error", "words": str(error)})
            self._drop(client)
            return
        if request is None:
            return
        now = time.monotonic_ns()
        if request.get("op") == "state":
            client.writer.write(self._journal.state(now))
            self._finish(client)
        elif request.get("op") == "inspect":
            self._inspect(client, now)
        elif request.get("op") == "down":
            self._going_down.append(client)
            if self._released:
                self._core.stop(None, now)
            else:
                self._interrupt("taken down by another command")
        else:
            client.writer.write({"what": "error", "words": f"unknown request {request.get('op')!r}"})
            self._finish(client)

    def _inspect(self, client: Client, now: int) -> None:
        """Answer with everything, once the hypervisors have told their counters, or did not in time."""
        hypervisors = [node for node in self._core.nodes() if node.spec.kind is NodeKind.HYPERVISOR]
        ready = {node.spec.name for node in hypervisors if node.state is NodeState.READY}
        self._inspecting.append(Inspection(client, ready, now + COUNTERS_WITHIN))
        for name in ready:
            self.ask_counters(name)

    def _answer_inspections(self, now: int) -> None:
        for inspection in list(self._inspecting):
            if not inspection.untold or now >= inspection.until:
                self._inspecting.remove(inspection)
                inspection.client.writer.write(self._journal.inspection(now))
                self._finish(inspection.client)

    def _finish(self, client: Client) -> None:
        """Close a client once it has read its answer."""
        if client.writer.pending:
            self._selector.modify(client.connection, selectors.EVENT_WRITE, lambda: self._finish_write(client))
        else:
            self._drop(client)

    def _finish_write(self, client: Client) -> None:
        client.writer.flush()
        if not client.writer.pending:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._unwatch(client.connection.fileno())
        self._inspecting = [inspection for inspection in self._inspecting if inspection.client is not client]
        if client in self._going_down:
            self._going_down.remove(client)
        self._control.drop(client)

    def _flush_writers(self) -> None:
        self._launcher.flush()
        for client in list(self._control.clients.values()):
            client.writer.flush()
            if client.writer.broken:
                self._drop(client)

    def last_words(self, outcome: Outcome) -> None:
        """Tell everybody who waits for it how it went.  The end of the descriptors says the rest."""
        record = {"what": "outcome", "outcome": outcome.as_json()}
        writers = [self._launcher] + [client.writer for client in self._going_down]
        for writer in writers:
            writer.write(record)
        end = time.monotonic() + LAST_WORDS_WITHIN
        while any(writer.pending for writer in writers) and time.monotonic() < end:
            time.sleep(0.005)
            for writer in writers:
                writer.flush()


def _reason(detail: str) -> str:
    """The node's own words in the broker's ``exit 3: words``."""
    _code, colon, words = detail.partition(": ")
    return words.strip() if colon else detail


def _pid(detail: str) -> int | None:
    """The process that the broker's ``pid 17, was in epoch 1`` speaks of."""
    words = detail.replace(",", " ").split()
    return int(words[1]) if words[:1] == ["pid"] and words[1:] and words[1].isdigit() else None


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
