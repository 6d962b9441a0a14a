"""``python -m topologies.hosts.remote``, or `argosy agent`: the agent of a host that is not the leader's.

It is started by the leader over the host's provider, speaks with it over standard input and output
(:mod:`topologies.hosts.protocol`), and joins the lab's fabric.  When the pipe ends, it takes its part of the lab down;
after ``release`` the fabric's silence does that instead, once it has lasted for the host timeout.  A leader that comes
back does so through ``--attach``, which joins the pipe to the agent's control socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from topologies import basedir, rundir, sockdir
from topologies.agent.children import Children, allow_descriptors
from topologies.agent.control import Client, ControlSocket, LineWriter
from topologies.agent.entry import redirect_output
from topologies.agent.journal import STATE_SCHEMA, start_time
from topologies.agent.sources import Sources
from topologies.exitcodes import ExitCode
from topologies.hosts.fabric import Fabric, Key
from topologies.hosts.names import part_name
from topologies.hosts.part import Part
from topologies.hosts.protocol import BEAT_EVERY, PROTOCOL, Pipe
from topologies.rundir import RunDirectory

BEGIN_WITHIN: Final = 30.0
"""Seconds that the leader has to say what this is about."""
LAST_WORDS_WITHIN: Final = 2.0
STATE_EVERY: Final = 500_000_000
SECOND: Final = 1_000_000_000


class HostAgent:
    """The agent's process: one loop over descriptors."""

    def __init__(self, begin: Mapping[str, Any], pipe: Pipe, run: RunDirectory, children: Children) -> None:
        self.lab, self.host = str(begin["lab"]), str(begin["host"])
        self._begin = begin
        self._timeout = int(begin["host_timeout"])
        self._pipe: Pipe | None = pipe
        self._run = run
        self._all = children
        self._sources = Sources()
        key = Key.unpack(begin["key"])
        self._part = Part(run, children, self._sources, self._say, key)
        self._fabric = Fabric(key, self.host, self._sources, self._leave)
        self._control: ControlSocket | None = None
        self._clients: list[Client] = []
        self._released = False
        self._heard = time.monotonic_ns()
        self._next_beat = self._next_state = 0
        self._why = ""
        self._since = time.time()

    def run(self, control: ControlSocket) -> str:
        """Serve until nothing is left; the words for why."""
        self._control = control
        self._sources.watch(control.listener.fileno(), self._on_connection)
        self._sources.watch(self._all.forkserver_pidfd, self._on_forkserver_gone)
        self._sources.watch_signals(lambda name: self._leave(f"its agent was sent {name}"))
        self._take_pipe(self._pipe)
        while not self._part.down:
            self._turn()
        self._fabric.close()
        self._run.write_state({**self._state(), "sockets": None, "outcome": {"reasons": [self._why], "nodes": []}})
        return self._why

    def _turn(self) -> None:
        now = time.monotonic_ns()
        moments = [self._next_beat, self._next_state, *self._part.moments(), *self._fabric.moments(now)]
        wait = 0.0 if self._fabric.busy else max(0.0, (min(moments) - now) / SECOND)
        self._sources.serve(min(wait, 0.01) if self._pipe and self._pipe.writer.pending else wait)
        now = time.monotonic_ns()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_EVERY
            self._say({"what": "beat"})
        self._fabric.serve(now)
        self._part.serve(now)
        self._watch_leader(now)
        if now >= self._next_state:
            self._next_state = now + STATE_EVERY
            self._run.write_state(self._state())
        if self._pipe is not None:
            self._pipe.writer.flush()

    # ---- the leader ---------------------------------------------------------------------------------------

    def _say(self, record: Mapping[str, Any]) -> None:
        if self._pipe is not None:
            self._pipe.writer.write(record)

    def _take_pipe(self, pipe: Pipe | None) -> None:
        """Speak with the leader over this pipe from now on."""
        if self._pipe is not None and self._pipe is not pipe:
            self._drop_pipe()
        self._pipe = pipe
        if pipe is None:
            return
        self._sources.watch(pipe.reader.fd, self._on_orders)
        self._say(
            {
                "what": "agent",
                "protocol": PROTOCOL,
                "pid": os.getpid(),
                "run_dir": str(self._run.path),
                "sockets": str(self._run.sockets),
            }
        )

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            self._sources.unwatch(self._pipe.reader.fd)
            self._pipe = None

    def _on_orders(self) -> None:
        pipe = self._pipe
        if pipe is None:
            return
        records = pipe.reader.receive()
        if records:
            self._heard = time.monotonic_ns()
        for record in records:
            self._obey(record)
        if pipe.ended and self._pipe is pipe:
            self._drop_pipe()
            if not self._released:
                self._leave("the leader's pipe ended")

    def _obey(self, record: Mapping[str, Any]) -> None:
        match record.get("op"):
            case "spawn":
                self._part.spawn(record)
            case "signal":
                self._part.signal(str(record["name"]), int(record["life"]), int(record["number"]))
            case "release":
                self._released = True
            case "leave":
                self._leave(str(record.get("words") or "the lab goes down"))
            case _:
                pass  # a beat, whose coming is all it says

    def _watch_leader(self, now: int) -> None:
        """A leader that is neither on the pipe nor on the fabric for too long is gone."""
        heard = max(self._heard, self._fabric.heard_ns or 0)
        if now - heard >= self._timeout:
            self._leave(f"nothing was heard of the leader for {self._timeout / SECOND:g} s")
        elif self._pipe is not None and self._pipe.writer.broken:
            self._drop_pipe()
            if not self._released:
                self._leave("the leader's pipe ended")

    def _leave(self, why: str) -> None:
        if not self._why:
            self._why = why
            print(f"agent: {self.lab} on {self.host} goes down: {why}", file=sys.stderr, flush=True)
            self._say({"what": "leaving", "words": why})
            self._part.go_down()

    # ---- others -------------------------------------------------------------------------------------------

    def _on_connection(self) -> None:
        assert self._control is not None
        client = self._control.accept()
        if client is not None:
            self._sources.watch(client.connection.fileno(), lambda: self._on_client(client))

    def _on_client(self, client: Client) -> None:
        try:
            request = client.request()
        except (ValueError, OSError):
            self._drop(client)
            return
        if request is None:
            return
        match request.get("op"):
            case "state" | "inspect":
                client.writer.write(self._state())
                self._drop(client)
            case "attach":
                self._sources.unwatch(client.connection.fileno())
                self._take_pipe(Pipe(client.connection.fileno(), client.connection.fileno()))
                self._part.tell_all()
            case "down":
                self._clients.append(client)
                self._leave("taken down by a command on this host")
            case _:
                self._drop(client)

    def _drop(self, client: Client) -> None:
        self._sources.unwatch(client.connection.fileno())
        assert self._control is not None
        self._control.drop(client)

    def _on_forkserver_gone(self) -> None:
        self._sources.unwatch(self._all.forkserver_pidfd)
        self._leave("the forkserver died")

    # ---- what is ------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "schema": STATE_SCHEMA,
            "lab": part_name(self.lab, self.host),
            "part_of": self.lab,
            "mode": str(self._begin.get("mode", "")),
            "topology": str(self._begin.get("topology", "")),
            "run_dir": str(self._run.path),
            "sockets": str(self._run.sockets),
            "agent": {"pid": os.getpid(), "started": start_time(os.getpid()), "since": self._since},
            "phase": "leaving" if self._why else "released" if self._released else "running",
            "epoch": self._fabric.epoch,
            "waits": [],
            "nodes": self._part.states(),
        }

    def last_words(self) -> None:
        """Say to the leader that nothing is left."""
        self._say({"what": "left", "words": self._why})
        end = time.monotonic() + LAST_WORDS_WITHIN
        while self._pipe is not None and self._pipe.writer.pending and time.monotonic() < end:
            time.sleep(0.005)
            self._pipe.writer.flush()


def main() -> int:
    """Be the agent of one host for one lab."""
    os.umask(0o077)
    os.chdir("/")
    orders, progress = os.dup(0), os.dup(1)
    # Whatever prints must not speak in the agent's name; what it says before there is a log is ssh's to carry.
    os.dup2(2, 1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    leader = LineWriter(progress)
    with contextlib.ExitStack() as stack:
        try:
            sockets = sockdir.new_socket_directory()
            stack.callback(sockdir.remove_socket_directory, sockets)
            control = ControlSocket(sockets / rundir.CONTROL_SOCKET)
            stack.callback(control.close)
            allow_descriptors()
            children = Children(sockets)
            stack.callback(children.close)
            pipe = Pipe(orders, progress)
            begin = _await_begin(pipe)
            if begin is None:
                return int(ExitCode.INTERRUPTED)
            path = basedir.run_path(part_name(str(begin["lab"]), str(begin["host"])))
            run = RunDirectory.take(path, sockets)
            stack.callback(run.release)
            redirect_output(run.path / rundir.AGENT_LOG)
            agent = HostAgent(begin, pipe, run, children)
            agent.run(control)
        except (basedir.RunDirError, OSError, KeyError, ValueError) as error:
            words = str(error) if isinstance(error, basedir.RunDirError) else f"{type(error).__name__}: {error}"
            leader.write({"what": "refused", "words": words})
            return int(ExitCode.INFRASTRUCTURE)
        # Whoever hears the last words may rely on it that nothing is left.
        children.close()
        sockdir.remove_socket_directory(sockets)
        run.release()
        agent.last_words()
    return int(ExitCode.OK)


def _await_begin(pipe: Pipe) -> Mapping[str, Any] | None:
    """The leader's first line; None when it leaves without one."""
    import select

    poller = select.poll()
    poller.register(pipe.reader.fd, select.POLLIN)
    end = time.monotonic() + BEGIN_WITHIN
    while (left := end - time.monotonic()) > 0 and not pipe.reader.ended:
        if poller.poll(left * 1000):
            for record in pipe.reader.receive():
                if record.get("op") == "begin":
                    return record
    return None


def attach(part: str) -> int:
    """Join standard input and output to the agent of `part`, ``LAB@HOST``, on this machine."""
    import json
    import select
    import socket

    control = Path(basedir.run_path(part)) / rundir.SOCKETS / rundir.CONTROL_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        try:
            agent.connect(os.path.realpath(control))
        except OSError as error:
            print(f"no agent of {part} is here: {error.strerror}", file=sys.stderr)
            return int(ExitCode.NOTHING_TO_DO)
        agent.sendall(json.dumps({"op": "attach"}).encode() + b"\n")
        ways = {0: lambda data: agent.sendall(data), agent.fileno(): lambda data: _write_all(1, data)}
        poller = select.poll()
        for fd in ways:
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _events in poller.poll():
                data = os.read(fd, 1 << 16)
                if not data:
                    return int(ExitCode.OK)
                with contextlib.suppress(BrokenPipeError):
                    ways[fd](data)


def clean() -> int:
    """Remove what killed agents left on this machine."""
    from topologies import labs

    labs.remove_leftovers()
    return int(ExitCode.OK)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--attach", part]:
            sys.exit(attach(part))
        case ["--clean"]:
            sys.exit(clean())
        case _:
            sys.exit(main())
