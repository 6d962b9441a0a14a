"""A host's part of a lab: its processes, started, signalled and watched for a leader elsewhere.

It decides nothing but how it goes down.  What the leader orders is done once, however often it is said; what became of
a node is kept, and said again to a leader that comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from topologies.agent.children import Child, Children, SpawnError
from topologies.agent.entry import CRASH, LOG
from topologies.agent.journal import start_time
from topologies.agent.sources import Sources
from topologies.codec import CodecError
from topologies.exitcodes import ExitCode
from topologies.hosts.fabric import Key
from topologies.hosts.protocol import unpack_config
from topologies.processes import ENTRIES
from topologies.rundir import RunDirectory
from topologies.runtime import NodeKind

TERMINATED_WITHIN: Final = 700_000_000
"""How long (ns) nodes have to leave by themselves."""
HYPERVISOR_GOES_WITHIN: Final = 0.2
LOG_EVERY: Final = 100_000_000
LOG_CHUNK: Final = 1 << 16
LOG_KEPT: Final = 64 << 20
"""Most bytes of a node's log that are passed on."""
STAGES: Final = (NodeKind.GUEST, NodeKind.HYPERVISOR)
"""Who goes first."""


@dataclass(slots=True)
class Life:
    """One life of a node."""

    name: str
    kind: NodeKind
    life: int
    hypervisor: str
    child: Child | None = None
    ended: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    log_at: int = 0
    since: float = 0.0


class Part:
    """The nodes of this host.

    Args:
        run: the directory of this part.
        children: what starts processes.
        sources: what the owner's loop waits for.
        say: passes a record to the leader.
        key: this host's, which its nodes show the broker.
    """

    def __init__(
        self,
        run: RunDirectory,
        children: Children,
        sources: Sources,
        say: Callable[[Mapping[str, Any]], None],
        key: Key,
    ) -> None:
        self._key = key
        self._run = run
        self._all = children
        self._sources = sources
        self._say = say
        self._lives: dict[str, Life] = {}
        self._stage: int | None = None
        self._limit: int | None = None
        self._next_log = 0

    # ---- orders -------------------------------------------------------------------------------------------

    def spawn(self, order: Mapping[str, Any]) -> None:
        """Start a node; a life that was ordered before is not started again."""
        name, kind, number = str(order["name"]), NodeKind(order["kind"]), int(order["life"])
        before = self._lives.get(name)
        if before is not None and before.life >= number:
            self._tell(before)
            return
        life = Life(name, kind, number, str(order.get("hypervisor") or ""), log_at=before.log_at if before else 0)
        try:
            if self._stage is not None:
                raise SpawnError("this part of the lab goes down")
            if before is not None and before.child is not None:
                raise SpawnError("its former life goes on")
            config = self._key.into(unpack_config(kind, order["config"]))
            for key in ("arch", "domid"):
                life.facts[key] = getattr(config, key, None)
            if kind is NodeKind.HYPERVISOR:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(config.attach_path)  # type: ignore[union-attr]  # a former life's
            directory = self._run.node_directory(name)
            (directory / CRASH).unlink(missing_ok=True)
            child = self._all.spawn(name, directory, ENTRIES[kind], config)
        except (SpawnError, CodecError, OSError) as error:
            self._say({"what": "not-spawned", "name": name, "life": number, "words": str(error)})
            return
        life.child, life.since = child, time.time()
        self._lives[name] = life
        self._sources.watch(child.sentinel, lambda: self._on_end(life))
        if child.pidfd >= 0:
            self._sources.watch(child.pidfd, lambda: self._on_end(life))
        self._tell(life)

    def signal(self, name: str, life: int, number: int) -> None:
        """Send a signal to a life of a node; one that is over is left alone."""
        found = self._lives.get(name)
        if found is not None and found.child is not None and found.life == life:
            found.child.signal(number)

    def tell_all(self) -> None:
        """Say what became of everything, to a leader that is back."""
        for life in self._lives.values():
            self._tell(life)

    def _tell(self, life: Life) -> None:
        if life.child is not None:
            record = {"what": "spawned", "name": life.name, "life": life.life, "pid": life.child.pid}
            self._say(record)
        elif life.ended is not None:
            self._say(life.ended)

    # ---- endings ------------------------------------------------------------------------------------------

    def _on_end(self, life: Life) -> None:
        child = life.child
        if child is None:
            return
        status, crash = child.wait(), child.crash()
        if life.kind is NodeKind.GUEST:
            self._hypervisor_first(life, status)
        life.child = None
        self._sources.unwatch(child.sentinel)
        self._sources.unwatch(child.pidfd)
        self._pass_log(life)
        life.ended = {
            "what": "ended",
            "name": life.name,
            "life": life.life,
            "status": status,
            "crash": crash,
            "last_words": child.last_words(),
        }
        child.close()
        self._say(life.ended)

    def _hypervisor_first(self, guest: Life, status: int) -> None:
        """When a guest and its hypervisor have both ended, the hypervisor was the first."""
        under = self._lives.get(guest.hypervisor)
        if under is None or under.child is None or self._stage is not None:
            return
        if under.child.gone(HYPERVISOR_GOES_WITHIN if status == ExitCode.INFRASTRUCTURE else 0.0):
            self._on_end(under)

    # ---- the way down -------------------------------------------------------------------------------------

    def go_down(self) -> None:
        """Have everything end, guests first."""
        if self._stage is None:
            self._stage = 0
            self._terminate()

    @property
    def down(self) -> bool:
        """Whether everything was to end, and has."""
        return self._stage is not None and not any(life.child for life in self._lives.values())

    def serve(self, now: int) -> None:
        """Go on with what takes time."""
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY
            for life in self._lives.values():
                if life.child is not None:
                    self._pass_log(life)
        while self._stage is not None and self._stage < len(STAGES) and not list(self._of(STAGES[self._stage])):
            self._stage += 1
            if self._stage < len(STAGES):
                self._terminate()
        if self._limit is not None and now >= self._limit:
            self._limit = None
            for life in self._of(STAGES[self._stage]) if self._stage is not None and self._stage < len(STAGES) else ():
                assert life.child is not None
                life.child.signal(signal.SIGKILL)

    def moments(self) -> list[int]:
        """When to look again, whatever happens."""
        return [self._next_log] + ([] if self._limit is None else [self._limit])

    def _of(self, kind: NodeKind) -> list[Life]:
        return [life for life in self._lives.values() if life.kind is kind and life.child is not None]

    def _terminate(self) -> None:
        assert self._stage is not None
        self._limit = time.monotonic_ns() + TERMINATED_WITHIN
        for life in self._of(STAGES[self._stage]):
            assert life.child is not None
            life.child.signal(signal.SIGTERM)

    # ---- logs ---------------------------------------------------------------------------------------------

    def _pass_log(self, life: Life) -> None:
        """Pass on what a node has written since the last look."""
        path = self._run.node_directory(life.name) / LOG
        with contextlib.suppress(OSError):
            size = min(path.stat().st_size, LOG_KEPT)
            if size <= life.log_at:
                return
            with open(path, "rb") as file:
                file.seek(life.log_at)
                while data := file.read(min(LOG_CHUNK, size - life.log_at)):
                    # Latin-1 keeps every byte, whatever the program wrote.
                    self._say({"what": "log", "name": life.name, "at": life.log_at, "data": data.decode("latin-1")})
                    life.log_at += len(data)

    # ---- what is ------------------------------------------------------------------------------------------

    def states(self) -> list[dict[str, Any]]:
        """What there is to say of each node here."""
        return [self._state(life) for life in self._lives.values()]

    @staticmethod
    def _state(life: Life) -> dict[str, Any]:
        pid = None if life.child is None else life.child.pid
        status = None if life.ended is None else int(life.ended["status"])
        return {
            "name": life.name,
            "kind": str(life.kind),
            "state": "ready" if pid is not None else "exited" if status == 0 else "failed",
            "hypervisor": life.hypervisor or None,
            "domid": life.facts.get("domid"),
            "pid": pid,
            "started": None if pid is None else start_time(pid),
            "since": round(life.since, 3),
            "silent": None,
            "exit": status if status is not None and status >= 0 else None,
            "signal": -status if status is not None and status < 0 else None,
            "detail": "" if life.ended is None else life.ended["crash"],
            "arch": life.facts.get("arch"),
            "probe": None,
            "restarts": life.life - 1,
            "last_error": "",
        }
