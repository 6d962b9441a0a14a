"""console-server: the back end of consoles, each of which echoes what is written to it.

with: {service: console, instance: 0, sessions: 1, ring: 1MiB, from: GUEST}

`sessions` is how many front ends say goodbye before the program ends, 0 is without end.
"""

from __future__ import annotations

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.back import ARGUMENTS, Front, serve_until_left
from guest_node.virtio.models.console import ConsoleModel, echo_console


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    args.check_keys(guest.arguments, *ARGUMENTS)
    models: list[ConsoleModel] = []

    def console_for(_front: Front) -> ConsoleModel:
        models.append(echo_console())
        return models[-1]

    def settle() -> None:
        guest.result(written=sum(each.bytes_out for each in models), echoed=sum(each.bytes_in for each in models))

    return await serve_until_left(guest, "console", console_for, settle=settle)
