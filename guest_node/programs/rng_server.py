"""rng-server: the back end of entropy devices.

with: {service: rng, instance: 0, sessions: 1, ring: 1MiB, from: GUEST}

The bytes are those of this guest's own chance, which comes from the run's seed.  `sessions` is how many front ends say
goodbye before the program ends, 0 is without end.
"""

from __future__ import annotations

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.back import ARGUMENTS, Front, serve_until_left
from guest_node.virtio.models.rng import RngModel


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended."""
    args.check_keys(guest.arguments, *ARGUMENTS)
    models: list[RngModel] = []

    def source_for(_front: Front) -> RngModel:
        models.append(RngModel(guest.random.randbytes))
        return models[-1]

    def settle() -> None:
        guest.result(given=sum(model.answered for model in models))

    return await serve_until_left(guest, "rng", source_for, settle=settle)
