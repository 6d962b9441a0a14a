"""Guests that keep to no interface: each waits for its signal (duel.ping), then attacks until the lab goes down.

What an attack saw is in its log; `rounds` there says that it took place.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from guest_node.drivers.dgram import DatagramSocket
from guest_node.drivers.stream_table import MESSAGE_TYPE_STREAM
from guest_node.guest import Guest
from hmx.argo import abi
from hmx.argo.abi import DOMID_ANY, Op
from hmx.attach import Request as AttachRequest
from hmx.attach import pack_request, unpack_reply
from hmx.trap import FRAMES, Kind, Outcome, int32, unpack_completion
from hmx.vcpu_area import CQ_OFFSET, SQ_OFFSET, Word
from hmx.xen import Hypercall

PAGE = 4096
PORT = 7
SIGNAL = 99
TOP = (1 << 64) - 1


class Raw:
    """The kernel's own objects, and frames written past them.  After `burst` the kernel's calls are of no use."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        calls: Any = guest.driver.calls
        self.calls = calls
        self.vcpu = calls.vcpu
        self.area = self.vcpu.area
        self.ram = calls._ram
        self.random = guest.random
        self.rounds = 0

    def word(self, word: int) -> int:
        return int.from_bytes(self.area.buffer[word : word + 4], "little")

    def set_word(self, word: int, value: int) -> None:
        self.area.buffer[word : word + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def pages(self, count: int) -> int:
        """The address of `count` pages of this guest's own."""
        return int(self.calls.memory.pages.allocate(count)) * PAGE

    async def burst(self, frames: list[bytes], collect: bool = True) -> None:
        """Put frames into the submission ring at once, without asking, and let the hypervisor look."""
        head = self.word(Word.SQ_HEAD)
        for at, frame in enumerate(frames):
            slot = SQ_OFFSET + (head + at) % 64 * 256
            self.area.buffer[slot : slot + len(frame)] = frame
        if collect:
            self.set_word(Word.CQ_HEAD, self.word(Word.CQ_TAIL))
        self.set_word(Word.SQ_TAIL, head + len(frames))
        self.vcpu.ring()
        for _ in range(200):
            await asyncio.sleep(0)
            if self.word(Word.SQ_HEAD) != head:
                break
        if self.rounds == 10:  # that the hypervisor did what it was asked is part of these attacks
            tail = self.word(Word.CQ_TAIL)
            done = (unpack_completion(self.area.buffer, CQ_OFFSET + (tail - 1 - at) % 64 * 256) for at in range(64))
            results = {int32(one.regs[0]) for one in done if one.outcome == Outcome.DONE and one.regs}
            self.guest.log(f"results: {sorted(results)}, {len([one for one in results if one >= 0])} kinds of success")
        self.round()

    def round(self) -> None:
        self.rounds += 1
        if self.rounds in (1, 20, 1000):
            self.guest.log(f"{self.rounds} rounds")


def frame(
    *regs: int, kind: int = Kind.VMCALL, flags: int = 0, privilege: int = 0, nregs: int | None = None, level: int = 0,
    zero: int = 0, address: int = 0, context: int = 0,
) -> bytes:  # fmt: skip
    count = len(regs) if nregs is None else nregs
    head = FRAMES[len(regs)]
    return head.pack(1, kind, flags, privilege, 8, 0, count, level, zero, address, context, *regs)


def argo(cmd: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, **more: int) -> bytes:
    """argo_op with the registers of a 64-bit caller."""
    return frame(Hypercall.ARGO_OP, 0, 0, a2, a1, cmd, a4, 0, a3, **more)


async def main(guest: Guest) -> None:
    async with await guest.argo.datagram(SIGNAL) as signal:
        await compute(guest, signal)
        message = await signal.receive()
        raw = Raw(guest)
        attack = ATTACKS[guest.arguments["attack"]]
        if attack is never_consuming:
            await own_ring(raw, 8192)
        await signal.send_to(b"begun", message.source)
    await attack(raw)
    await asyncio.Event().wait()


async def compute(guest: Guest, signal: DatagramSocket) -> None:
    """What any neighbour may do: use the CPU, and not the hypervisor, until the next signal."""
    message = await signal.receive()
    await signal.send_to(b"begun", message.source)
    ring = signal._open_ring()
    while not ring.consumer.available():
        end = guest.time() + 0.005
        while guest.time() < end:
            pass


async def own_ring(raw: Raw, length: int, port: int = PORT) -> Any:
    ring = raw.calls.allocate_ring(length)
    assert await raw.calls.register_ring(ring, port, DOMID_ANY) == 0
    return ring


async def everything(raw: Raw) -> None:
    """Random bytes over RAM and the whole vCPU area, the hypervisor's words included."""
    while True:
        at = raw.random.randrange(len(raw.ram) - PAGE)
        raw.ram[at : at + PAGE] = raw.random.randbytes(PAGE)
        raw.area.buffer[PAGE : 10 * PAGE] = raw.random.randbytes(9 * PAGE)
        await raw.burst([raw.random.randbytes(256) for _ in range(64)])
        if raw.rounds % 4 == 0:
            head = raw.area.buffer[Word.SQ_HEAD : Word.SQ_HEAD + 4].tobytes()
            raw.area.buffer[:PAGE] = raw.random.randbytes(PAGE)
            raw.vcpu.ring()
            await asyncio.sleep(0.001)
            raw.area.buffer[Word.SQ_HEAD : Word.SQ_HEAD + 4] = head  # or the next frames would not be looked at


def sending(raw: Raw, base: int, to: int, port: int, size: int) -> bytes:
    """A sendv with its arguments at `base`, payload behind them."""
    domid = raw.guest.domid
    abi.SEND_ADDR.pack_into(raw.ram, base, PORT, DOMID_ANY, 0, port, to or domid, 0)
    abi.IOV.pack_into(raw.ram, base + 16, base + 64, size, 0)
    return argo(Op.SENDV, base, base + 16, 1, 0xABCD)


async def ring_headers(raw: Raw) -> None:
    """Random ring and message headers below the hypervisor's feet, which writes to that very ring."""
    ring = await own_ring(raw, 3 * PAGE)
    base = raw.pages(1)
    start = ring.gfns[0] * PAGE
    frames = [sending(raw, base, 0, PORT, 200)] * 64
    while True:
        raw.ram[start : start + 512] = raw.random.randbytes(512)
        if raw.rounds % 2 == 0:  # room, else nothing would be written
            raw.ram[start : start + 4] = (16 * raw.random.randrange(3 * PAGE // 16)).to_bytes(4, "little")
        await raw.burst(frames)


async def ring_pointers(raw: Raw) -> None:
    """rx and tx of every kind: beyond the ring, odd, negative, moving while the hypervisor sends there."""
    length = 3 * PAGE - 64  # to the very end of its pages
    ring = await own_ring(raw, length)
    base = raw.pages(1)
    start = ring.gfns[0] * PAGE
    gfns = raw.pages(1)
    for at, gfn in enumerate(ring.gfns):
        abi.GFN.pack_into(raw.ram, gfns + 8 * at, gfn)
    abi.REGISTER_RING.pack_into(raw.ram, base + 1024, PORT, DOMID_ANY, 0, length)
    # A new registration takes the write pointer over that it finds.
    again = [argo(Op.UNREGISTER_RING, base + 1024), argo(Op.REGISTER_RING, base + 1024, gfns, len(ring.gfns))]
    frames = [*again, sending(raw, base, 0, PORT, 200), argo(Op.NOTIFY)] * 16
    values = (0, 16, 1, 15, length - 16, length, length + 16, 1 << 24, 1 << 31, 0xFFFFFFF0, 0xFFFFFFFF)
    while True:
        for at in (abi.RX_PTR, abi.TX_PTR):
            raw.ram[start + at : start + at + 4] = raw.random.choice(values).to_bytes(4, "little")
        await raw.burst(frames)


async def gfn_lists(raw: Raw) -> None:
    """register_ring with frames that do not exist, that repeat, that are the arguments themselves, and too many."""
    base, gfns, good, some = raw.pages(1), raw.pages(1), raw.pages(1), raw.pages(512) // PAGE
    for at in range(512):
        abi.GFN.pack_into(raw.ram, good + 8 * at, some + at)
    while True:
        frames = []
        for at in range(32):
            length = raw.random.choice((64, 4032, 8128, 65536, 1 << 24, 0xFFFFFFF0, raw.random.getrandbits(32)))
            port, partner = 100 + at, raw.random.choice((DOMID_ANY, 1, 2, 3, 0x7FF0))
            abi.REGISTER_RING.pack_into(raw.ram, base + 16 * at, port, partner, 0, length)
            count = raw.random.choice((0, 1, 2, 3, 16, 17, 4097, 1 << 32, TOP))
            if at % 2:  # a list of the right length
                length = raw.random.randrange(1, 500) * 4096 - 64 & 0xFFFFFFF0
                count = -(-(length + 64) // PAGE)
                abi.REGISTER_RING.pack_into(raw.ram, base + 16 * at, port, DOMID_ANY, 0, length)
            listed = good if at % 4 == 1 else gfns
            frames.append(argo(Op.REGISTER_RING, base + 16 * at, listed, count, raw.random.getrandbits(2)))
            frames.append(argo(Op.UNREGISTER_RING, base + 16 * at))
        for at in range(512):
            value = raw.random.choice((0, 1, gfns // PAGE, base // PAGE, 255, 256, 4095, 1 << 32, 1 << 52, TOP))
            raw.ram[gfns + 8 * at : gfns + 8 * at + 8] = value.to_bytes(8, "little")
        await raw.burst(frames)


async def trap_flood(raw: Raw) -> None:
    """64 cheap frames, again and again."""
    while True:
        await raw.burst([frame(40, 0, 0, 0, 0, 0, 0, 0, 0)] * 64)


async def costly_flood(raw: Raw) -> None:
    """64 of the most expensive frames again and again: big rings registered, 256 entries asked about, big sends."""
    arguments, data = raw.pages(4), raw.pages(16)
    ring_len = 2048 * PAGE - 64
    pages = raw.pages(2048) // PAGE
    gfns = raw.pages(4)
    for at in range(2048):
        abi.GFN.pack_into(raw.ram, gfns + 8 * at, pages + at)
    abi.REGISTER_RING.pack_into(raw.ram, arguments, PORT, DOMID_ANY, 0, ring_len)
    abi.RING_DATA.pack_into(raw.ram, arguments + PAGE, 256, 0)
    for at in range(256):
        entry = arguments + PAGE + abi.RING_DATA.size + at * abi.RING_DATA_ENT.size
        abi.RING_DATA_ENT.pack_into(raw.ram, entry, PORT, raw.guest.domid, 0, 0, 0, 1 << 30, 0)
    abi.SEND_ADDR.pack_into(raw.ram, arguments + 64, PORT, DOMID_ANY, 0, PORT, raw.guest.domid, 0)
    abi.IOV.pack_into(raw.ram, arguments + 96, data, 16 * PAGE, 0)
    register = argo(Op.REGISTER_RING, arguments, gfns, 2048)
    frames = [register, argo(Op.SENDV, arguments + 64, arguments + 96, 1, 1), argo(Op.NOTIFY, arguments + PAGE)]
    while True:
        await raw.burst((frames * 22)[:64])


async def reserved_bits(raw: Raw) -> None:
    """Each reserved bit and each value that no field may have, one frame each; then all at once."""
    frames = [frame(39, flags=1 << bit) for bit in range(16)]
    frames += [frame(39, zero=1 << bit) for bit in range(16)]
    frames += [frame(39, level=1 << bit) for bit in range(8)]
    frames += [frame(39, privilege=value) for value in (1, 2, 3, 4, 255)]
    frames += [frame(39, nregs=value) for value in (0, 17, 18, 19, 64, 255)]
    frames += [frame(39, kind=value) for value in (0, 10, 11, 13, 100, 65535)]
    frames += [frame(*[TOP] * 18, flags=0xFFFF, zero=0xFFFF, level=255, privilege=255, address=TOP, context=TOP)]
    frames += [argo(cmd, TOP, TOP, TOP, TOP, context=TOP) for cmd in (0, 1, 2, 3, 4, 5)]
    while True:
        await raw.burst(frames[:64])
        frames = frames[7:] + frames[:7]


async def never_consuming(raw: Raw) -> None:
    """Its ring (port 7) fills and stays full; what others send there is none of its business."""
    while True:
        raw.round()
        await asyncio.sleep(0.001)


async def never_collecting(raw: Raw) -> None:
    """No completion is ever taken; the tail says 64 frames more each time."""
    while True:
        await raw.burst([frame(40, 0)] * 64, collect=False)


def descriptors() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def shared(raw: Raw) -> dict[str, list[int]]:
    """The descriptors that the hypervisor handed over, by kind.  The attach connection is the SEQPACKET socket."""
    found: dict[str, list[int]] = {"memfd": [], "eventfd": [], "bell": [], "attach": []}
    own_eventfd = raw.vcpu._platform._out
    for fd, what in descriptors().items():
        if what.startswith("/memfd:argosy-"):
            found["memfd"].append(fd)
        elif fd == own_eventfd:
            found["eventfd"].append(fd)
        elif what.startswith("socket:"):
            probe = socket.socket(fileno=os.dup(fd))
            if probe.family == socket.AF_UNIX and probe.type == socket.SOCK_SEQPACKET:
                found["attach"].append(fd)
            elif probe.family == socket.AF_UNIX and probe.type == socket.SOCK_DGRAM:
                found["bell"].append(fd)
            probe.close()
    return found


def tried(raw: Raw, what: str, call: Callable[[], object]) -> None:
    """Do it, and write down what came of it."""
    try:
        raw.guest.log(f"{what}: {call()!r}")
    except OSError as error:
        raw.guest.log(f"{what}: {type(error).__name__} {error.errno}")


async def truncation(raw: Raw) -> None:
    """Shrink, grow, punch, seal: the memory that the hypervisor has mapped."""
    held = shared(raw)["memfd"]
    raw.guest.log(f"{len(held)} memfds")
    for fd in held:
        size = os.fstat(fd).st_size
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        tried(raw, "shrink", lambda fd=fd: os.ftruncate(fd, 0))  # type: ignore[misc]
        tried(raw, "grow", lambda fd=fd, size=size: os.ftruncate(fd, size * 2))  # type: ignore[misc]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK
        tried(raw, "seal", lambda fd=fd, seals=seals: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals))  # type: ignore[misc]
        assert os.fstat(fd).st_size == size
        again = mmap.mmap(fd, size)
        tried(raw, "remove", lambda again=again, size=size: again.madvise(mmap.MADV_REMOVE, 0, size))  # type: ignore[misc]
    while True:
        raw.round()
        raw.vcpu.ring()
        await asyncio.sleep(0)


async def blocking(raw: Raw) -> None:
    """Clear O_NONBLOCK on everything that is shared, fill it, drain it, fill it again; never read the bell."""
    held = shared(raw)
    raw.guest.log(f"{ {kind: len(fds) for kind, fds in held.items()} }")
    loop = asyncio.get_running_loop()
    for fd in held["bell"]:
        loop.remove_reader(fd)
    raw.vcpu._platform._drain = lambda: None  # or this guest's own kernel would block on its bell
    for fd in (*held["eventfd"], *held["bell"]):
        os.set_blocking(fd, True)
    (bell,) = (socket.socket(fileno=os.dup(fd)) for fd in held["bell"])
    (event,) = held["eventfd"]
    while True:
        os.set_blocking(event, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.eventfd_write(event, 0xFFFF_FFFF_FFFF_FFFE)
        with contextlib.suppress(BlockingIOError):
            while True:
                bell.send(b"x" * 64, socket.MSG_DONTWAIT)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
        os.set_blocking(event, True)
        raw.set_word(Word.GUEST_ASLEEP, 1)  # please ring: the bell is full
        raw.set_word(Word.HV_ASLEEP, 1)
        await raw.burst([frame(40, 0)] * 64)


async def closing(raw: Raw) -> None:
    """Close everything that is shared but the attach connection: first what the hypervisor is about to ring, while it
    has frames of this guest and this guest says that it sleeps; then the rest."""
    held = shared(raw)
    loop = asyncio.get_running_loop()
    for fd in held["bell"]:
        loop.remove_reader(fd)
        os.close(fd)
    for _ in range(20):
        raw.set_word(Word.GUEST_ASLEEP, 1)  # please ring: nobody hears it
        await raw.burst([frame(40, 0)] * 64)
    raw.set_word(Word.SQ_TAIL, raw.word(Word.SQ_HEAD) + 64)
    raw.set_word(Word.CQ_HEAD, raw.word(Word.CQ_TAIL))
    raw.vcpu.ring()
    for kind in ("eventfd", "memfd"):
        for fd in held[kind]:
            os.close(fd)


async def talking(raw: Raw) -> None:
    """Say something on the attach connection, where a guest has nothing to say: its domain is killed for it."""
    (fd,) = shared(raw)["attach"]
    connection = socket.socket(fileno=os.dup(fd))
    raw.guest.log("20 rounds")
    connection.send(b"\xff" * 900)
    while True:
        tried(raw, "talk", lambda: connection.send(b"\xff" * 900))
        await asyncio.sleep(0.02)


async def attaching(raw: Raw) -> None:
    """Malformed attach messages as fast as they are answered, descriptors attached to some; and silent connections."""
    (fd,) = shared(raw)["attach"]
    path = socket.socket(fileno=os.dup(fd)).getpeername()
    silent = []
    others = [pack_request(AttachRequest(name, bytes(16))) for name in ("ping", "pong", "nobody")]
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection.connect(path)
            message = raw.random.choice((raw.random.randbytes(40), *others, b"AVAT"))
            if raw.rounds % 50 == 49:
                silent.append(connection)
            elif raw.rounds % 3:
                socket.send_fds(connection, [message], [0, 1, 2])
            else:
                connection.send(message)
        raw.round()
        await asyncio.sleep(0)
        if not silent or silent[-1] is not connection:
            with contextlib.suppress(OSError):
                assert unpack_reply(connection.recv(4096)).refused
            connection.close()


async def frames_of_noise(raw: Raw) -> None:
    """SYNs, data of nobody's connection and noise at the port where the others play."""
    base = raw.pages(1)
    victims = [raw.guest.peers[name] for name in ("pong", "ping")]
    while True:
        frames = []
        for at in range(8):
            slot = base + 128 * at
            flags = raw.random.choice((1, 2, 4, 0, 7, raw.random.getrandbits(32)))
            raw.ram[slot + 64 : slot + 72] = flags.to_bytes(4, "little") + raw.random.randbytes(4)
            frames.append(sending(raw, slot, raw.random.choice(victims), PORT, raw.random.choice((0, 4, 8, 8, 8, 60))))
            frames[-1] = frames[-1][: 32 + 48] + MESSAGE_TYPE_STREAM.to_bytes(8, "little") + frames[-1][32 + 56 :]  # a4
        await raw.burst(frames)


ATTACKS = {
    "everything": everything,
    "ring-headers": ring_headers,
    "ring-pointers": ring_pointers,
    "gfn-lists": gfn_lists,
    "trap-flood": trap_flood,
    "costly-flood": costly_flood,
    "reserved-bits": reserved_bits,
    "never-consuming": never_consuming,
    "never-collecting": never_collecting,
    "truncation": truncation,
    "blocking": blocking,
    "closing": closing,
    "talking": talking,
    "attaching": attaching,
    "frames-of-noise": frames_of_noise,
}
