"""rng-read: read from an entropy device.

with: {device: 0, size: 4KiB, output: NAME, within: 10s}

`device` counts the guest's rng devices.  With `output` the bytes are kept in the guest's directory of the run.
"""

from __future__ import annotations

import hashlib

from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.front import started
from guest_node.programs.patience import give_up
from guest_node.virtio.drivers.rng import RngDevice


async def main(guest: Guest) -> int:
    """Exit code 0 when all bytes were read, else 1."""
    arguments = guest.arguments
    args.check_keys(arguments, "device", "size", "output", "within")
    size = args.size(arguments, "size", 4096)
    name = args.output_name(arguments, "output")
    try:
        device = await started(guest, "rng", RngDevice)
        begin = guest.time()
        data = await device.read(size)
    except OSError as exc:
        return give_up(guest, "no entropy", exc)
    guest.result(
        bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), seconds=round(guest.time() - begin, 6),
        ones=round(int.from_bytes(data, "little").bit_count() / (8 * len(data)), 3),
    )  # fmt: skip
    if name:
        output = guest.files.create_output(name)
        output.write(data)
        output.commit()
    return 0
