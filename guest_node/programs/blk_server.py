"""blk-server: the back end of block devices, one disk for all front ends that come.

with: {image: PATH, blank: SIZE, copy: NAME, read-only: false, queues: 1, service: storage, instance: 0, sessions: 1,
       ring: 1MiB, from: GUEST}

`image` is a raw image, relative to the topology's directory, and is changed in place.  With `copy` the image stays as
it is, and a copy of that name in the guest's directory of the run is the disk.  `blank` needs no image: the disk, a
file of the name that `copy` says or disk.img, is this large and all zero.  `queues` are offered; `sessions` is how many
front ends say goodbye before the program ends, 0 is without end.  `from` restricts it to one guest, which needs no
mac-permissive.

What is written is volatile until it was flushed: it lies in a cache of this process (models/cache.py).
"""

from __future__ import annotations

from guest_node.files import Image
from guest_node.guest import Guest
from guest_node.programs import arguments as args
from guest_node.programs.back import ARGUMENTS, Front, serve_until_left
from guest_node.programs.patience import give_up
from guest_node.virtio.models.blk import BlkModel, BlkOptions
from guest_node.virtio.models.cache import WriteBackCache

SECTOR = 512
MAX_QUEUES = 16
OWN = "disk.img"


async def main(guest: Guest) -> int:
    """Exit code 0 when all sessions have ended, 1 when there is no disk, or it cannot be served or kept."""
    arguments = guest.arguments
    args.check_keys(arguments, "image", "blank", "copy", "read-only", "queues", *ARGUMENTS)
    read_only = args.yes_or_no(arguments, "read-only")
    queues = args.whole(arguments, "queues", 1, 1, MAX_QUEUES)
    try:
        image = _disk(guest, read_only)
    except OSError as exc:
        return give_up(guest, "there is no disk", exc)
    options = BlkOptions(identity=guest.name.encode()[:20], read_only=read_only, queues=queues)
    cache = WriteBackCache(image)
    models: list[BlkModel] = []

    def disk_for(_front: Front) -> BlkModel:
        models.append(BlkModel(cache, options))
        return models[-1]

    def settle() -> None:
        counts: dict[str, int] = {}
        for model in models:
            for what, count in model.counts.items():
                counts[what] = counts.get(what, 0) + count
        guest.result(requests=counts, size=image.size)

    code = await serve_until_left(guest, "storage", disk_for, settle=settle)
    try:
        cache.flush()
        image.close()
    except OSError as exc:
        return give_up(guest, "the disk does not keep what was written", exc)
    return code


def _disk(guest: Guest, read_only: bool) -> Image:
    arguments = guest.arguments
    name = args.output_name(arguments, "copy", OWN)
    if "blank" in arguments:
        if "image" in arguments:
            raise args.ArgumentError("blank", "goes without `image`: a disk is one or the other")
        size = args.size(arguments, "blank", 0, SECTOR)
        if size % SECTOR:
            raise args.ArgumentError("blank", f"{size} bytes are no whole sectors of {SECTOR}")
        return guest.files.own_image(name, size=size)
    path = args.text(arguments, "image")
    if "copy" in arguments:
        return guest.files.own_image(name, source=path)
    return guest.files.open_image(path, writable=not read_only)
