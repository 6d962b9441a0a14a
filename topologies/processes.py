"""The `processes` runtime as the launcher sees it: start an agent, hand it the plan, pass its progress on.

The agent is started before there is a plan, so that it and its forkserver get ready while the topology is
read.  The launcher holds a pipe to it: whatever ends the launcher closes the pipe, and the agent takes the
lab down.  Ctrl-C and SIGTERM do just that and then wait for the agent's last words, so that the command
returns when nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from topologies import basedir
from topologies.agent.spec import CheckSpec, LabSpec, Mode, NodeSpec
from topologies.exitcodes import ExitCode
from topologies.interruption import INTERRUPTING, hear_no_more
from topologies.runtime import NodeKind, Observer, Outcome

if TYPE_CHECKING:
    from topologies.hosts.split import HostPlan
    from topologies.plan import Places, Plan

RUNTIME = "processes"
HELLO_WITHIN = 20.0
"""Seconds until a started agent says where its sockets are."""
DOWN_WITHIN = 30.0
"""Seconds that an interrupted lab may take to go down; the agent's own limits are far below."""

ENTRIES: Mapping[NodeKind, str] = {
    NodeKind.BROKER: "broker.node:main",
    NodeKind.HYPERVISOR: "hv_node.node:main",
    NodeKind.GUEST: "guest_node.node:main",
}
"""The main of each kind of node."""


class AgentFailed(Exception):
    """There is no lab: the exit code, what to tell the user, and the log that says more."""

    def __init__(self, code: ExitCode, words: str, log: str | None = None) -> None:
        super().__init__(words)
        self.code = code
        self.words = words
        self.log = log


class Detached(Exception):
    """The lab is up and the agent's own now; not an error."""


def restarted_nodes(plan: Plan, section: str) -> set[str]:
    """Nodes of `section` (guests, hypervisors) whose topology says ``restart: on-failure``."""
    nodes: Mapping[str, Any] = plan.topology.get(section, {})
    return {name for name, keys in nodes.items() if keys.get("restart") == "on-failure"}


def lab_spec(plan: Plan, mode: Mode, timeout_ns: int | None = None, topology: str = "") -> LabSpec:
    """What the agent needs of a plan."""
    from topologies.yaml12 import dump

    parts = _parts(plan)
    homes = {name: part.host.name for part in parts if not part.leads for name in part.names}
    nodes = [NodeSpec("broker", NodeKind.BROKER, ENTRIES[NodeKind.BROKER], plan.broker)]
    entry, restarted = ENTRIES[NodeKind.HYPERVISOR], restarted_nodes(plan, "hypervisors")
    for hypervisor in plan.hypervisors:
        again = hypervisor.name in restarted
        home = homes.get(hypervisor.name, "")
        under = getattr(hypervisor, "parent", "") or None
        nodes.append(NodeSpec(hypervisor.name, NodeKind.HYPERVISOR, entry, hypervisor, under, restart=again, host=home))
    entry, restarted = ENTRIES[NodeKind.GUEST], restarted_nodes(plan, "guests")
    for guest in plan.guests:
        again = guest.name in restarted
        home = homes.get(guest.name, "")
        nodes.append(NodeSpec(guest.name, NodeKind.GUEST, entry, guest, guest.hypervisor, guest.domid, again, home))
    return LabSpec(
        name=plan.lab,
        mode=mode,
        nodes=tuple(nodes),
        checks=tuple(CheckSpec(check.name, check.guest, check.exit, check.within_ns) for check in plan.checks),
        timeout_ns=timeout_ns,
        run_dir=plan.places.run_dir,
        topology=topology,
        resolved=dump(plan.topology),
        **_hosts(plan, parts),
    )


def _parts(plan: Plan) -> list[HostPlan]:
    """What each host runs; nothing where the topology has no `hosts`."""
    if not plan.topology.get("hosts"):
        return []
    from topologies.hosts.split import split

    return list(split(plan).values())


def _hosts(plan: Plan, parts: list[HostPlan]) -> dict[str, Any]:
    """The fields of a :class:`LabSpec` that are for labs on several hosts."""
    far = [part.host for part in parts if not part.leads]
    if not far:
        return {}
    from topologies.hosts.split import host_timeout_ns

    leader = next(part.host for part in parts if part.leads)
    base = plan.places.base_dir
    hosts = [replace(h, ssh_config=os.path.join(base, h.ssh_config) if h.ssh_config else "") for h in far]
    return {
        "hosts": tuple(hosts),
        "leader": leader.name,
        "address": leader.address,
        "host_timeout_ns": host_timeout_ns(plan),
    }


class ProcessRuntime:
    """Runs plans as processes.  A context: leaving it takes down whatever still runs.

    Args:
        timeout_ns: limit for a whole run, or for coming up; None for none.
        topology: path of the topology, for listings.
    """

    def __init__(self, timeout_ns: int | None = None, topology: str = "") -> None:
        self._timeout_ns = timeout_ns
        self._topology = topology
        self._process: subprocess.Popen[bytes] | None = None
        self._orders = -1
        self._lines: Lines | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._sockets: str | None = None
        self._interrupted = False

    def __enter__(self) -> ProcessRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- before the plan ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent; it gets ready by itself."""
        orders_read, orders_write = os.pipe()
        progress_read, progress_write = os.pipe()
        with deferred_interrupt():
            self._orders, self._lines = orders_write, Lines(progress_read)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "topologies.agent", str(orders_read), str(progress_write)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=(orders_read, progress_write),
                    env=_agent_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                words = f"the agent could not be started: {error.strerror}"
                raise AgentFailed(ExitCode.INFRASTRUCTURE, words) from error
            finally:
                os.close(orders_read)
                os.close(progress_write)

    def places(self, name: str, base_dir: str, run_dir: str | None) -> Places:
        """Where lab `name` keeps its things; waits until the agent has its socket directory.

        Raises:
            AgentFailed: it has none.
            RunDirError: the run directory cannot be that of a lab.
        """
        from topologies.plan import Places

        path = basedir.run_path(name, run_dir)
        if self._process is None:
            self.start()
        if self._sockets is None:
            self._sockets = str(self._expect("agent", HELLO_WITHIN)["sockets"])
        return Places(base_dir=base_dir, run_dir=str(path), socket_dir=self._sockets)

    # ---- with it ------------------------------------------------------------------------------------------

    def run(self, plan: Plan, observer: Observer) -> Outcome:
        """Run `plan` to its end; see :class:`topologies.runtime.Runtime`."""
        return self._follow(plan, Mode.RUN, observer, detach=False)

    def up(self, plan: Plan, observer: Observer, *, detach: bool) -> Outcome | None:
        """Bring `plan` up.  With `detach` return None when it is; else stay until it is taken down."""
        try:
            return self._follow(plan, Mode.UP, observer, detach=detach)
        except Detached:
            return None

    def _follow(self, plan: Plan, mode: Mode, observer: Observer, *, detach: bool) -> Outcome:
        with self._interrupt_closes() as wake:
            try:
                self._send_spec(lab_spec(plan, mode, self._timeout_ns, self._topology))
                while True:
                    record = self._next_record(wake, None)
                    if record["what"] == "outcome":
                        return self._interrupted_or(Outcome.from_json(record["outcome"]))
                    if record["what"] == "ready" and detach and not self._interrupted:
                        self._release(wake)
                    observer.progress(record)
            except AgentFailed as failure:
                return failed_outcome(plan.lab, failure)

    def _release(self, wake: int) -> None:
        """Leave the lab to the agent."""
        os.write(self._orders, b"release\n")
        while self._next_record(wake, DOWN_WITHIN)["what"] != "released":
            pass
        assert self._process is not None
        self._process.returncode = 0  # not ours to wait for any more
        self._process = None
        raise Detached

    def _interrupted_or(self, outcome: Outcome) -> Outcome:
        if self._interrupted and outcome.code is not ExitCode.INTERRUPTED:
            reasons = ("interrupted", *outcome.reasons)
            return replace(outcome, code=ExitCode.INTERRUPTED, reasons=reasons)
        return outcome

    def _send_spec(self, spec: LabSpec) -> None:
        data = pickle.dumps(spec)
        data = len(data).to_bytes(8, "little") + data
        try:
            while data:
                data = data[os.write(self._orders, data) :]
        except OSError as error:
            if self._orders >= 0:  # else an interruption closed it
                raise self._why_gone() from error

    # ---- the agent's words --------------------------------------------------------------------------------

    def _expect(self, what: str, within: float) -> dict[str, Any]:
        with self._interrupt_closes() as wake:
            while True:
                record = self._next_record(wake, within)
                if self._interrupted:
                    raise KeyboardInterrupt
                if record["what"] == what:
                    return record

    def _next_record(self, wake: int, within: float | None) -> dict[str, Any]:
        """The agent's next record.  Raises AgentFailed when it has none to give."""
        assert self._lines is not None
        end = None if within is None else time.monotonic() + within
        while True:
            record = self._lines.next()
            if record is not None:
                if record["what"] == "refused":
                    raise AgentFailed(ExitCode(record["code"]), record["words"], record.get("log"))
                return record
            if self._lines.ended:
                raise self._why_gone()
            if self._interrupted and end is None:
                end = time.monotonic() + DOWN_WITHIN
            left = None if end is None else max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._lines.fd, wake], [], [], left)
            if wake in ready:
                os.read(wake, 64)
            elif self._lines.fd in ready:
                self._lines.receive()
            elif left == 0.0:
                raise AgentFailed(ExitCode.INFRASTRUCTURE, f"the agent is silent for {within or DOWN_WITHIN:g} s")

    def _why_gone(self) -> AgentFailed:
        """The agent left without last words."""
        if self._process is None:
            return AgentFailed(ExitCode.INFRASTRUCTURE, "there is no agent")
        status = self._process.wait(DOWN_WITHIN)
        if self._interrupted:
            return AgentFailed(ExitCode.INTERRUPTED, "interrupted")
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        words = f"the agent ended unexpectedly (status {status})"
        if said:
            words += f": {said.splitlines()[-1]}"
        kept = basedir.keep_failure(said + "\n") if said else None
        return AgentFailed(ExitCode.DIED, words, None if kept is None else str(kept))

    @contextlib.contextmanager
    def _interrupt_closes(self) -> Iterator[int]:
        """While inside, Ctrl-C, SIGTERM and SIGHUP close the orders; yields a descriptor that says so."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            self._interrupted = True
            self._close_orders()

        # By the interpreter: a handler that writes would run too late when the signal comes just before a wait.
        outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before = {number: signal.signal(number, interrupt) for number in INTERRUPTING}
        try:
            yield read
        finally:
            if self._interrupted:
                hear_no_more()
            else:
                _restore(before)
            signal.set_wakeup_fd(outer)
            os.close(read)
            os.close(write)

    def _close_orders(self) -> None:
        if self._orders >= 0:
            fd, self._orders = self._orders, -1
            os.close(fd)

    def close(self) -> None:
        """Take down what still runs, and wait for it."""
        self._close_orders()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DOWN_WITHIN)
            self._process = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        self._errors.close()


class Lines:
    """JSON lines from a descriptor."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.ended = False
        self._data = bytearray()

    def receive(self) -> None:
        """Take what has arrived."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        self._data += data
        self.ended = not data

    def next(self) -> dict[str, Any] | None:
        """The next record that is complete."""
        line, newline, rest = self._data.partition(b"\n")
        if not newline:
            return None
        self._data = rest
        record: dict[str, Any] = json.loads(line)
        return record

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold KeyboardInterrupt back until the block is done, so that what it starts is always owned."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _f: seen.append(n)) for number in INTERRUPTING}
    try:
        yield
    finally:
        if seen:
            hear_no_more()
        else:
            _restore(before)
    if seen:
        raise KeyboardInterrupt


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def failed_outcome(lab: str, failure: AgentFailed, runtime: str = RUNTIME) -> Outcome:
    """The outcome of a lab that never was, or whose agent was lost."""
    words = failure.words if failure.log is None else f"{failure.words} (see {failure.log})"
    return Outcome(lab=lab, runtime=runtime, code=failure.code, reasons=(words,), nodes=())


def _agent_environment() -> dict[str, str]:
    """Our environment, with this very package in front of others wherever it was imported from."""
    environment = dict(os.environ)
    root = Path(__file__).resolve().parent.parent
    if os.fspath(root) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{rest}" if rest else os.fspath(root)
    return environment
