"""Real sockets for the broker's tests: a server in a thread or a process, links, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from broker.client import ZmqLink
from broker.server import Server
from tests.broker.support import TOKEN

WAIT_S = 8.0
"""Longer than anything here takes on a machine whose cores are all busy."""

BROKER_SCRIPT = """
import sys
from broker.config import BrokerConfig
from broker.node import main
sys.exit(main(BrokerConfig("lab", sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), ".")))
"""


class Net:
    """An endpoint in a short directory; everything opened through it is closed with it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "broker"
        self.endpoint = f"ipc://{self.path}"
        self._stack = contextlib.ExitStack()
        self._threads: dict[int, threading.Thread] = {}

    def close(self) -> None:
        self._stack.close()

    def server(self, epoch: int = 1) -> Server:
        """A server that serves in a thread."""
        return self.serve(Server(self.endpoint, token=TOKEN, epoch=epoch))

    def serve(self, server: Server) -> Server:
        """Let a server serve in a thread."""
        thread = self._threads[id(server)] = threading.Thread(target=server.serve)
        thread.start()
        self._stack.callback(self.stop, server)
        return server

    def stop(self, server: Server) -> None:
        """Stop a server that serves in a thread."""
        server.stop()
        thread = self._threads[id(server)]
        thread.join(WAIT_S)
        assert not thread.is_alive()
        server.close()

    def broker_process(self, epoch: int = 1) -> subprocess.Popen[bytes]:
        """A broker as a process of its own."""
        process = self.process(BROKER_SCRIPT, self.endpoint, TOKEN.decode(), str(epoch))
        assert eventually(self.path.exists, process)
        return process

    def process(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A Python process, killed with the test."""
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=Path(__file__).parents[2])

        def stop() -> None:
            process.kill()
            process.wait()

        self._stack.callback(stop)
        return process

    def link(self, name: str = "app", kind: str = "guest", **arguments: Any) -> ZmqLink:
        """A link that has not joined."""
        endpoint = arguments.pop("endpoint", self.endpoint)
        link = ZmqLink(endpoint, kind=kind, name=name, **{"token": TOKEN, **arguments})
        self._stack.callback(link.close)
        return link

    def joined(self, name: str = "app", kind: str = "guest", **arguments: Any) -> ZmqLink:
        """A link that has joined."""
        link = self.link(name, kind, **arguments)
        link.wait_joined(WAIT_S)
        return link

    def dealer(self, connect: bool = True) -> zmq.Socket[bytes]:
        """A raw DEALER: a node that does as it likes."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.setsockopt(zmq.RECONNECT_IVL, 20)
        if connect:
            dealer.connect(self.endpoint)

        def stop() -> None:
            dealer.close(0)
            context.term()

        self._stack.callback(stop)
        return dealer


@contextlib.contextmanager
def net_in(directory: Path, net: Net | None = None) -> Iterator[Net]:
    net = net or Net(directory)
    try:
        yield net
    finally:
        net.close()


def eventually(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> bool:
    """Look until `condition` holds; False when it does not in time, or the process ended."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            return False
        time.sleep(0.005)
    return True


def pump_until(condition: Callable[[], bool], *links: ZmqLink) -> None:
    """Run the loops of `links` until `condition` holds."""

    def turn() -> bool:
        for link in links:
            link.pump()
        return condition()

    assert eventually(turn), "nothing came of it"


def listen(link: ZmqLink) -> list[Sequence[Any]]:
    """The records that `link` hears from now on."""
    got: list[Sequence[Any]] = []
    link.on_record = lambda _lane, record, _payload: got.append(record)
    return got
