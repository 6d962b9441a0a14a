"""Those who ask the agent something over its control socket, and what they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from topologies.agent.changes import Changes, Refused
from topologies.agent.control import Client, ControlSocket, LineWriter
from topologies.agent.core import LabCore
from topologies.agent.journal import Journal
from topologies.agent.phases import MILLISECOND
from topologies.agent.sources import Sources
from topologies.runtime import NodeKind, NodeState, Outcome

COUNTERS_WITHIN = 500 * MILLISECOND
LAST_WORDS_WITHIN = 2.0
"""Seconds that the launcher has to read the outcome when its pipe is full."""


@dataclass(slots=True)
class Inspection:
    """Somebody asked for everything: who, which hypervisors have not told their counters, and until when to wait."""

    client: Client
    untold: set[str]
    until: int


class Requests:
    """Serves the control socket.

    Args:
        control: the socket.
        sources: what the owner's loop waits for.
        core: the lab.
        journal: what there is to tell of it.
        take_down: called when somebody wants the lab down.
        ask_counters: asks a hypervisor for its counters.
        changes: carries out orders, and faults of links.
    """

    def __init__(
        self,
        control: ControlSocket,
        sources: Sources,
        core: LabCore,
        journal: Journal,
        take_down: Callable[[], None],
        ask_counters: Callable[[str], None],
        changes: Changes,
    ) -> None:
        self._changes = changes
        self._control = control
        self._sources = sources
        self._core = core
        self._journal = journal
        self._take_down = take_down
        self._ask_counters = ask_counters
        self._going_down: list[Client] = []
        self._inspections: list[Inspection] = []
        sources.watch(control.listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        client = self._control.accept()
        if client is not None:
            self._sources.watch(client.connection.fileno(), lambda: self._on_client(client))

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
        elif request.get("op") in ("order", "impair"):
            self._change(client, request, now)
        elif request.get("op") == "down":
            self._going_down.append(client)
            self._take_down()
        else:
            client.writer.write({"what": "error", "words": f"unknown request {request.get('op')!r}"})
            self._finish(client)

    def progress(self, record: Mapping[str, Any]) -> None:
        """Pass a progress record to those who wait for the end."""
        for client in self._going_down:
            client.writer.write(record)

    def _change(self, client: Client, request: Mapping[str, Any], now: int) -> None:
        """Have something changed, and answer when it is."""

        def reply(record: Mapping[str, Any]) -> None:
            if client in self._control.clients.values():  # else it has gone meanwhile
                client.writer.write(record)
                self._finish(client)

        try:
            self._changes.request(request, now, reply)
        except Refused as refused:
            reply({"what": "error", "words": str(refused)})

    # ---- inspections --------------------------------------------------------------------------------------

    def _inspect(self, client: Client, now: int) -> None:
        """Answer with everything, once the hypervisors have told their counters, or did not in time."""
        hypervisors = [node for node in self._core.nodes() if node.spec.kind is NodeKind.HYPERVISOR]
        ready = {node.spec.name for node in hypervisors if node.state is NodeState.READY}
        self._inspections.append(Inspection(client, ready, now + COUNTERS_WITHIN))
        for name in ready:
            self._ask_counters(name)

    def on_counters(self, hypervisor: str) -> None:
        """`hypervisor` has told its counters."""
        for inspection in self._inspections:
            inspection.untold.discard(hypervisor)

    def serve(self, now: int) -> None:
        """Answer what can be answered, and send what clients have room for."""
        self._changes.serve(now)
        for inspection in list(self._inspections):
            if not inspection.untold or now >= inspection.until:
                self._inspections.remove(inspection)
                inspection.client.writer.write(self._journal.inspection(now))
                self._finish(inspection.client)
        for client in list(self._control.clients.values()):
            client.writer.flush()
            if client.writer.broken:
                self._drop(client)

    def moments(self) -> list[int]:
        """When to look again, whatever happens."""
        return [*(inspection.until for inspection in self._inspections), *self._changes.moments()]

    @property
    def pending(self) -> bool:
        """Whether something waits for a client to read."""
        return any(client.writer.pending for client in self._control.clients.values())

    # ---- the end of a request -----------------------------------------------------------------------------

    def _finish(self, client: Client) -> None:
        """Close a client once it has read its answer."""
        if client.writer.pending:
            self._sources.watch_for_room(client.connection.fileno(), lambda: self._finish_write(client))
        else:
            self._drop(client)

    def _finish_write(self, client: Client) -> None:
        client.writer.flush()
        if not client.writer.pending:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._sources.unwatch(client.connection.fileno())
        self._inspections = [inspection for inspection in self._inspections if inspection.client is not client]
        if client in self._going_down:
            self._going_down.remove(client)
        self._control.drop(client)

    def last_words(self, outcome: Outcome, launcher: LineWriter) -> None:
        """Tell everybody who waits for it how it went.  The end of the descriptors says the rest."""
        record = {"what": "outcome", "outcome": outcome.as_json()}
        writers = [launcher] + [client.writer for client in self._going_down]
        for writer in writers:
            writer.write(record)
        end = time.monotonic() + LAST_WORDS_WITHIN
        while any(writer.pending for writer in writers) and time.monotonic() < end:
            time.sleep(0.005)
            for writer in writers:
                writer.flush()
