"""`argosy agent`: what the leader of a lab on several hosts starts on each of the others."""

from __future__ import annotations

import sys

from topologies.exitcodes import ExitCode


class Misuse(Exception):
    """It was started by a person: what to tell them."""

    code = ExitCode.USAGE


def agent(part: str | None) -> int:
    """Be the agent of this host, with the leader on standard input and output; or join the pipe to that of `part`."""
    from topologies.hosts import remote

    if sys.stdin.isatty():
        raise Misuse("this is started by `argosy up` on another host, over ssh; it reads its orders from a pipe")
    return remote.main() if part is None else remote.attach(part)
