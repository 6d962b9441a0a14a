"""Driver and device of a virtqueue against each other, in both formats with every set of features; and each against
memory that anybody scribbles over (VIRTIO 2.6 to 2.8).
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.virtio.features import Feature
from tests.doubles.scribbled_queues import Scribbled
from tests.doubles.virtqueues import FEATURE_SETS, play

PACKED = 1 << Feature.RING_PACKED
IN_ORDER = 1 << Feature.IN_ORDER
SEEDS = st.integers(0, 2**32 - 1)
SPLIT_SIZES = st.sampled_from((1, 2, 4, 8, 16))
PACKED_SIZES = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16))
STEPS = st.integers(1, 400)


def ids(features: int) -> str:
    return "+".join(bit.name for bit in Feature if features >> bit & 1) or "none"


@pytest.mark.parametrize("features", FEATURE_SETS, ids=ids)
@settings(max_examples=60)
@given(data=st.data(), seed=SEEDS, steps=STEPS)
def test_nothing_is_lost(features: int, data: st.DataObject, seed: int, steps: int) -> None:
    """Random chains, completions, suppression and interleaving: every chain arrives as it was added, comes back once
    with what the device wrote, and nobody sleeps over it.
    """
    size = data.draw(PACKED_SIZES if features & PACKED else SPLIT_SIZES)
    driver = play(seed, features, size, steps)
    if features & IN_ORDER:
        assert driver.taken == sorted(driver.taken)


@pytest.mark.parametrize("features", [features for features in FEATURE_SETS if not features & PACKED], ids=ids)
@settings(max_examples=30)
@given(size=SPLIT_SIZES, seed=SEEDS, steps=STEPS, before=st.integers(1, 40))
def test_indexes_wrap(features: int, size: int, seed: int, steps: int, before: int) -> None:
    """The same while the free-running indexes pass 65536."""
    play(seed, features, size, steps, index=0x1_0000 - before)


# -- memory that anybody writes into ----


def vandalise(target: Scribbled, dice: random.Random) -> None:
    """Write what is likely to hurt into one of the places that are read."""
    layout, size = target.area.layout, target.size
    table = target.area.indirect.address if target.area.indirect else layout.descriptors
    at = dice.choice((
        layout.descriptors + 16 * dice.randrange(size) + dice.choice((0, 8, 12, 14)),
        table + 16 * dice.randrange(4 * size) + dice.choice((0, 8, 12, 14)),
        layout.driver + dice.choice((0, 2, 4 + 2 * dice.randrange(size))),
        layout.device + dice.choice((0, 2, 4 + 8 * dice.randrange(size), 8 + 8 * dice.randrange(size))),
        dice.randrange(len(target.content)),
    ))  # fmt: skip
    value = dice.choice(
        (0, 1, 2, 3, 4, 5, 6, 7, size, 16, 32, 0x80, 0x81, 0x8000, 0x8080, 0xFFFF, dice.getrandbits(16))
    )
    target.scribble(at, value.to_bytes(2, "little") * dice.choice((1, 1, 1, 2, 4)))


def scribbled(seed: int, features: int, size: int, steps: int, every: int) -> Scribbled:
    """A history in which about one step of `every` is somebody else's."""
    dice = random.Random(seed)
    target = Scribbled(features, size, dice.choice((0, 0xFFFD)))
    for _ in range(steps):
        if dice.randrange(every) == 0:
            vandalise(target, dice)
        elif dice.random() < 0.5:
            target.drive(dice.randrange(6), dice.randint(0, 5), dice.randint(0, 5))
        else:
            target.serve(dice.randrange(6), dice.randrange(8))
    return target


@pytest.mark.parametrize("features", FEATURE_SETS, ids=ids)
@settings(max_examples=60)
@given(data=st.data(), seed=SEEDS, steps=st.integers(1, 300), every=st.sampled_from((2, 8, 30)))
def test_nothing_but_broken(features: int, data: st.DataObject, seed: int, steps: int, every: int) -> None:
    """Whatever is written into the rings: every operation ends; QueueBroken is all that comes out, and it stays; no
    chain comes back twice, none is longer than it may be.
    """
    size = data.draw(PACKED_SIZES if features & PACKED else SPLIT_SIZES)
    scribbled(seed, features, size, steps, every)


def test_both_ends_break() -> None:
    """The property above is about something: the same writing breaks queues of every kind, for many reasons."""
    reasons: dict[bool, set[str]] = {True: set(), False: set()}
    for features in FEATURE_SETS:
        ends = set()
        for seed in range(120):
            target = scribbled(seed, features, 4, 60, 6)
            for end, why in target.broken.items():
                ends.add(end is target.driver)
                reasons[end is target.driver].add(re.sub(r"-?\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b", "n", why))
        assert ends == {True, False}
    assert len(reasons[True]) >= 4 and len(reasons[False]) >= 15, reasons


@pytest.mark.long
@pytest.mark.parametrize("features", FEATURE_SETS, ids=ids)
def test_many_histories(features: int) -> None:
    """Thousands of either kind."""
    dice = random.Random(features)
    for _ in range(1_000):
        seed = dice.getrandbits(32)
        packed = features & PACKED
        size = dice.choice((1, 2, 3, 4, 5, 7, 8, 16) if packed else (1, 2, 4, 8, 16))
        index = 0 if packed else dice.choice((0, 0x1_0000 - dice.randint(1, 60)))
        play(seed, features, size, dice.randint(1, 1000), index=index)
        scribbled(seed, features, size, dice.randint(1, 300), dice.choice((2, 8, 30)))
