"""A guest's chance: two generators from one seed, made by its shell."""

from __future__ import annotations

import random


def generators(seed: int) -> tuple[random.Random, random.Random]:
    """(the program's, the driver's).  Apart, so that a program's draws do not depend on how often a driver retried."""
    return random.Random(f"{seed} program"), random.Random(f"{seed} driver")
