"""Entry point of the `argosy` command.

It does next to nothing by itself, so that an interruption, which may come while the rest is still being imported, is
answered as promised: a word, exit code 130, no traceback.
"""

from __future__ import annotations

import signal
import sys

from topologies.interruption import INTERRUPTING, interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

PROGRAM = "argosy"
INTERRUPTED = 130
"""That of :class:`topologies.exitcodes.ExitCode`, which is not imported yet."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code.

    Args:
        arguments: those of the command line unless given.
    """
    try:
        # A handler of our own also keeps asyncio from installing one that only cancels.
        for number in INTERRUPTING:
            signal.signal(number, interrupt)
        from topologies.verbs import app

        app(args=arguments, prog_name=PROGRAM)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        # What to exit with is decided: while the interpreter goes down, it would die of one more signal instead.
        for number in INTERRUPTING:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    main()
