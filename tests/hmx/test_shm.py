"""Shared words: the seven functions."""

from __future__ import annotations

import operator
import threading

from hmx import shm


def test_words_are_little_endian_and_aligned() -> None:
    """load and store at an index of words."""
    buffer = bytearray(16)
    words = shm.words32(buffer)
    shm.store32(words, 1, 0x04030201)
    assert buffer[4:8] == bytes([1, 2, 3, 4])
    assert shm.load32(words, 1) == 0x04030201
    double = shm.words64(buffer)
    shm.store64(double, 1, 0x0807060504030201)
    assert buffer[8:] == bytes(range(1, 9))
    assert shm.load64(double, 1) == 0x0807060504030201


def test_one_c_call_each() -> None:
    """The accessors are C functions: no Python frame stands between the two halves of an access."""
    accessors: list[object] = [shm.load32, shm.load64, shm.store32, shm.store64]
    assert accessors == [operator.getitem, operator.getitem, operator.setitem, operator.setitem]


def test_fence_releases() -> None:
    """A fence can be passed again and again, by several threads."""

    def pass_often() -> None:
        for _ in range(1000):
            shm.fence()

    threads = [threading.Thread(target=pass_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
