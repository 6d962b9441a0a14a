"""``python -m topologies.agent ORDERS PROGRESS``: started by the launcher in a session of its own.

`ORDERS` is the descriptor of a pipe from the launcher: the lab to run (pickled, by the same user on the same
host, over an inherited pipe), later the word that leaves the lab to the agent.  `PROGRESS` is that of a pipe
to the launcher: JSON lines.  When the orders end, the lab goes down.

The forkserver is launched first of all, so that it imports what nodes need while the launcher still reads
the topology.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from topologies import basedir, rundir, sockdir
from topologies.agent.control import ControlSocket, LineWriter
from topologies.exitcodes import ExitCode

if TYPE_CHECKING:
    from topologies.agent.children import Children
    from topologies.agent.spec import LabSpec
    from topologies.runtime import Outcome

LENGTH = struct.Struct("<Q")


def read_spec(fd: int) -> LabSpec | None:
    """The lab to run; None when the launcher left before it said so."""
    size = _read(fd, LENGTH.size)
    data = None if size is None else _read(fd, LENGTH.unpack(size)[0])
    if data is None:
        return None
    spec: LabSpec = pickle.loads(data)
    return spec


def _read(fd: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            return None
        data += part
    return data


def main(orders: int, progress: int) -> int:
    """Run one lab."""
    os.umask(0o077)
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    launcher = LineWriter(progress)
    try:
        sockets = sockdir.new_socket_directory()
    except basedir.RunDirError as error:
        launcher.write({"what": "refused", "code": int(ExitCode.INFRASTRUCTURE), "words": str(error)})
        return int(ExitCode.INFRASTRUCTURE)
    with contextlib.ExitStack() as stack:
        stack.callback(sockdir.remove_socket_directory, sockets)
        control = ControlSocket(sockets / rundir.CONTROL_SOCKET)
        stack.callback(control.close)
        from topologies.agent.children import Children, allow_descriptors

        allow_descriptors()
        children = Children(sockets)
        stack.callback(children.close)
        launcher.write({"what": "agent", "pid": os.getpid(), "sockets": str(sockets)})
        return _serve(stack, orders, launcher, sockets, control, children)


def _serve(
    stack: contextlib.ExitStack,
    orders: int,
    launcher: LineWriter,
    sockets: Path,
    control: ControlSocket,
    children: Children,
) -> int:
    """The rest, once the forkserver is on its way."""
    from topologies.agent.shell import Shell
    from topologies.hosts.provider import HostsFailed

    spec = read_spec(orders)
    if spec is None:
        return int(ExitCode.INTERRUPTED)
    run = None
    try:
        run = rundir.RunDirectory.take(Path(spec.run_dir), sockets)
        stack.callback(run.release)
        run.write_resolved(spec.resolved)
        _write_log_to(run.path / rundir.AGENT_LOG)
        team = None
        if spec.hosts:
            from topologies.hosts.team import Team  # it needs more than a lab of one host does

            team = Team(spec, sockets, orders)
            stack.callback(team.close)
            spec = team.gather(run.path, launcher.write)
        shell = Shell(spec, run, children, control, orders, launcher, team)
        outcome: Outcome = shell.run()
    except basedir.RunDirError as error:
        launcher.write({"what": "refused", "code": int(ExitCode.INFRASTRUCTURE), "words": str(error)})
        return int(ExitCode.INFRASTRUCTURE)
    except HostsFailed as error:
        launcher.write({"what": "refused", "code": int(error.code), "words": str(error)})
        return int(error.code)
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        log = None if run is None else str(run.path / rundir.AGENT_LOG)
        words = f"the agent failed: {type(error).__name__}: {error}"
        if isinstance(error, OSError):
            where = error.filename or (spec.run_dir if run is None else run.path)
            words = f"the lab cannot go on: {error.strerror}: {where}"
        code = ExitCode.INFRASTRUCTURE if isinstance(error, OSError) else ExitCode.DIED
        launcher.write({"what": "refused", "code": int(code), "words": words, "log": log})
        return int(code)
    # Whoever reads the last words may rely on it that nothing is left: processes and files go first.
    children.close()
    sockdir.remove_socket_directory(sockets)
    run.release()
    shell.last_words(outcome)
    return int(outcome.code)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _write_log_to(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
