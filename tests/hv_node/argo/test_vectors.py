"""Known answers: vectors V1 to V5 and V10, and the sequence of the XTF test for Argo (xtf tests/argo)."""

from __future__ import annotations

import pytest

from hmx.argo.abi import MESSAGE_HEADER, NotifyFlag, RegisterFlag
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE
from hv_node.argo.order import refusal
from tests.hv_node.argo.world import World

PORT = 7


def ring_with(ring_len: int, pointers: int, *, src: int = 1, dst: int = 2) -> World:
    """A ring of domain `dst` for `src`, registered with rx = tx = `pointers`, its data filled with 0x5A."""
    world = World()
    start = 24 * PAGE_SIZE
    world.ram[dst][start + 64 : start + 64 + ring_len] = b"\x5a" * ring_len
    world.set_rx(dst, pointers)
    world.set_tx(dst, pointers)
    assert world.register(dst, PORT, src, ring_len) == 0
    return world


def test_v1_smallest_ring() -> None:
    """Ring of 48: 16 bytes fit an empty one, then not even 0; 17 never do."""
    world = ring_with(48, 0)
    ring = world.ring(2, PORT, 1)
    assert ring.space() == 16
    assert world.send(1, (PORT, 2), b"x" * 17) == -Errno.EMSGSIZE
    assert world.send(1, (PORT, 2), b"x" * 16) == 16
    assert world.pointers(2) == (0, 32)
    assert ring.space() == 0
    assert world.send(1, (PORT, 2)) == -Errno.EAGAIN
    assert ring.pending == {1: 0}


def test_v2_empty_messages_and_the_waiter_of_zero_bytes() -> None:
    """Room for a header alone wakes nobody, though a retry would succeed."""
    world = ring_with(48, 0)
    ring = world.ring(2, PORT, 1)
    assert [world.send(1, (PORT, 2)) for _ in range(3)] == [0, 0, -Errno.EAGAIN]
    assert world.pointers(2) == (0, 32)
    assert ring.space() == 0
    assert world.woken() == [2, 2]
    world.set_rx(2, 16)
    assert world.notify(2)[0] == 0
    assert world.woken() == []
    world.set_rx(2, 32)
    assert world.notify(2)[0] == 0
    assert world.woken() == [1]
    assert ring.pending == {}
    world.set_rx(2, 16)
    assert world.send(1, (PORT, 2)) == 0


def test_v3_wrap() -> None:
    """Ring of 80, pointers 48: header in 48..63, 16 bytes to the end, 24 from the start; padding keeps its bytes."""
    world = ring_with(80, 48)
    assert world.send(1, (PORT, 2), b"A" * 40, src_port=1) == 40
    data = world.data(2, 80)
    assert data[48:64] == bytes.fromhex("38000000 01000000 0100 0000 00000000")
    assert data[64:] == b"A" * 16
    assert data[:24] == b"A" * 24
    assert data[24:48] == b"\x5a" * 24
    assert world.pointers(2) == (48, 32)
    assert world.ring(2, PORT, 1).space() == 0


def test_v4_header_in_the_last_slot() -> None:
    """Ring of 80, pointers 64: the header ends the area, the payload starts at 0."""
    world = ring_with(80, 64)
    assert world.send(1, (PORT, 2), b"hello") == 5
    data = world.data(2, 80)
    assert MESSAGE_HEADER.unpack(data[64:]) == (21, 0x99, 1, 0, 0)
    assert data[:5] == b"hello"
    assert data[5:64] == b"\x5a" * 59
    assert world.pointers(2) == (64, 16)
    assert world.ring(2, PORT, 1).space() == 16


def test_v5_bytes_of_one_message() -> None:
    """Ring of 64, 'hello' from port 0x10 of domain 3."""
    world = ring_with(64, 0, src=3)
    assert world.send(3, (PORT, 2), b"hello", src_port=0x10, message_type=0x6447724D) == 5
    data = world.data(2, 64)
    assert data[:21] == bytes.fromhex("15000000 10000000 0300 0000 4D724764 68656C6C6F")
    assert data[21:] == b"\x5a" * 43
    assert world.pointers(2) == (0, 32)
    assert world.ring(2, PORT, 3).space() == 0


def test_v10_the_largest_message_on_the_largest_ring() -> None:
    """A ring of 4096 pages takes 0xFFFFA0 payload bytes, not one more; the ring spans them all."""
    world = World(domids=(1, 2), npages=4200)
    ring_len = 0xFFFFC0
    # The gfn array of 4096 entries needs 8 pages; let the pages run backwards in two blocks.
    gfns = [*range(2100, 4148), *range(52, 2100)]
    assert world.register(2, PORT, 1, ring_len, gfns=gfns) == 0
    ring = world.ring(2, PORT, 1)
    assert ring.pages is not None
    assert (ring.pages.npages, ring.space()) == (4096, 0xFFFFA0)
    payload = bytes(range(251)) * (0xFFFFA0 // 251 + 1)
    assert world.send(1, (PORT, 2), payload[:0xFFFFA1]) == -Errno.EMSGSIZE
    assert world.send(1, (PORT, 2), payload[:0xFFFFA0]) == 0xFFFFA0
    ram = world.ram[2]
    logical = b"".join(bytes(ram[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE]) for gfn in gfns)
    assert logical[4:8] == (0xFFFFA0 + 16).to_bytes(4, "little")
    assert logical[64 + 16 : 64 + 16 + 0xFFFFA0] == payload[:0xFFFFA0]
    assert ring.space() == 0


@pytest.mark.parametrize("ring_len", [0xFFFFD0, 0x1000000, 0x1000010, 0xFFFFFFF0, 0, 16, 32, 47, 49, 4041])
@pytest.mark.parametrize("npages", [1, 2, 4096, 4097])
def test_rejected_lengths(ring_len: int, npages: int) -> None:
    """16 MiB is the stated bound, but 4096 pages with their header end at 0xFFFFC0; and every length is slots."""
    world = World(domids=(1, 2), npages=4200)
    assert world.register(1, PORT, 2, ring_len, gfns=range(52, 52 + npages)) == -Errno.EINVAL


def test_xtf_sequence() -> None:
    """Probe, register 32 pages for oneself, notify, send to oneself, unregister twice."""
    world = World()
    me, port = 1, 0x1234
    assert world.register(me, port, me, 1, gfns=[24]) == -Errno.EINVAL
    ring_len = 32 * 4096 - 80
    world = World(npages=64)
    gfns = range(24, 56)
    flags = RegisterFlag.FAIL_EXIST
    assert world.register(me, port, me, ring_len, gfns=gfns, flags=flags) == 0
    assert world.register(me, port, me, ring_len, gfns=gfns, flags=flags) == -Errno.EEXIST
    ret, answers = world.notify(me, (port, me, 0))
    assert ret == 0
    assert answers[0][0] & NotifyFlag.EXISTS
    message = b"The quick brown fox"
    assert world.send(me, (port, me), message, src_port=port, message_type=0x5) == len(message)
    assert world.pointers(me) == (0, 16 + 32)
    assert world.woken() == [me]
    data = world.data(me, ring_len)
    assert MESSAGE_HEADER.unpack(data[:16]) == (16 + len(message), port, me, 0, 5)
    assert data[16 : 16 + len(message)] == message
    assert world.unregister(me, port, me) == 0
    assert world.unregister(me, port, me) == -Errno.ENOENT


def test_a_row_without_an_errno_has_no_answer_here() -> None:
    """What a security module decides cannot be looked up in the table of refusals."""
    with pytest.raises(LookupError):
        refusal("sendv", "XSM send")
