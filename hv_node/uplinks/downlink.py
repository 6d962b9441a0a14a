"""The parent's end of a nested hypervisor: envelopes down into its rings, envelopes up out of its sends.

The child is a domain like any other, and may do to its memory what it likes: what it sends is judged as a stranger's
would be, and a ring that it never empties holds back no more than a bounded queue.  No clock, no I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final
from zlib import crc32

from broker.envelope import Envelope
from hmx.argo.abi import MESSAGE_HEADER, MESSAGE_HEADER_SIZE
from hmx.argo.ring import advance, fits, roundup16, sanitise_rx
from hmx.errno import Errno
from hmx.nested import CHUNK_HEADER, DOMID_XEN, DOWNLINK_PORT, MAX_CHUNK, MESSAGE_TYPE, UPLINK_PORT
from hmx.vcpu_area import Post, post_entry
from hv_node.argo.model import Ring
from hv_node.domain import Domain
from hv_node.uplinks.wire import ANSWERS, Assembler, Whole, WireError

QUEUE_RECORDS: Final = 4096
QUEUE_BYTES: Final = 1 << 26
LOOK: Final = post_entry(Post.PORT, 0)
"""What tells a vCPU of its downlink ring: port 0 is nobody's, so that the vCPU is woken and looks."""

OnEnvelope = Callable[[Envelope, bytes], bool]


class Downlink:
    """The way to one nested hypervisor, and from it.

    `on_envelope(envelope, payload)` takes what it sends and says whether it could; False has the child send it again.
    `post(vcpu, entry)` interrupts the child.  `on_room()` runs when envelopes that were held back have left.
    """

    def __init__(
        self,
        name: str,
        on_envelope: OnEnvelope,
        post: Callable[[int, int], None],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self._on_envelope = on_envelope
        self._on_room = on_room
        self._post = post
        self.domain: Domain | None = None
        self._vcpus = 1
        self._begin()

    def _begin(self) -> None:
        self._held: deque[tuple[Whole, int]] = deque()  # with the number of the vCPU whose ring it is for
        self._held_bytes = 0
        self._refused = False  # an envelope was not taken: who sent it waits for room
        self._turned_away = False  # the child was told to send again
        self._seq = 0
        self._up = Assembler()

    # -- the child's life ----

    def attach(self, domain: Domain, vcpus: int) -> None:
        """The child lives in `domain` now."""
        self.domain, self._vcpus = domain, vcpus

    def detach(self) -> None:
        """The child is dead: what it did not get is lost, and its successor will know nothing of this life."""
        self.counters["lost"] += len(self._held)
        self.domain = None
        self._begin()

    @property
    def up(self) -> bool:
        """Whether there is a child that has registered its rings."""
        return self._ring(0) is not None

    # -- down ----

    def send(self, envelope: Envelope, payload: bytes = b"") -> bool:
        """Give the child an envelope, at once or after those that wait for room in its rings.

        False: it is not there, or too much waits already; `on_room` follows.
        """
        full = len(self._held) >= QUEUE_RECORDS or self._held_bytes > QUEUE_BYTES
        if self.domain is None or (full and envelope.kind not in ANSWERS):
            self._refused = True
            self.counters["refused"] += 1
            return False
        whole = Whole(envelope, payload)
        self._held.append((whole, self._vcpu_of(envelope)))
        self._held_bytes += whole.size
        self.counters["down"] += 1
        self.retry()
        return True

    def _vcpu_of(self, envelope: Envelope) -> int:
        """Whose ring: all that is for one of the child's guests goes through one."""
        return crc32(str(envelope.dst[-1:]).encode()) % self._vcpus

    def retry(self) -> None:
        """The child may have made room: write what fits."""
        posted: set[int] = set()
        while self._held:
            whole, vcpu = self._held[0]
            ring = self._ring(vcpu)
            if ring is None or not self._write(ring, whole, posted, vcpu):
                break
            self._held.popleft()
            self._held_bytes -= whole.size
        for vcpu in posted:
            self._post(vcpu, LOOK)
        if self._refused and self.domain is not None and len(self._held) <= QUEUE_RECORDS // 2:
            self._refused = False
            self._on_room()

    def room(self) -> None:
        """Whoever stood behind `on_envelope` takes more: the child that was turned away may send again."""
        if self._turned_away:
            self._turned_away = False
            self._post(0, LOOK)

    def _write(self, ring: Ring, whole: Whole, posted: set[int], vcpu: int) -> bool:
        """Write chunks until the whole is written, or the ring is full."""
        limit = min(MAX_CHUNK, (ring.len // 2) & ~15)
        while not whole.done:
            header, body = whole.chunk(self._seq, limit)
            if not produce(ring, vcpu, header, body):
                self.counters["full"] += 1
                return False
            whole.took(body)
            self._seq = (self._seq + 1) & 0xFFFF_FFFF
            posted.add(vcpu)
        return True

    def _ring(self, vcpu: int) -> Ring | None:
        argo = None if self.domain is None else self.domain.argo
        return None if argo is None else argo.rings.get((DOWNLINK_PORT + vcpu, DOMID_XEN))

    # -- up ----

    def upcall(self, message: bytes, message_type: int) -> int:
        """The child's sendv to the uplink port: its result, as sendv's."""
        if message_type != MESSAGE_TYPE:
            return -Errno.EINVAL
        try:
            found = self._up.look(message)
        except WireError:
            self.counters["malformed"] += 1
            self._up.skip(message)
            return -Errno.EINVAL
        if found is not None:
            if not self._on_envelope(*found):
                self._turned_away = True
                self.counters["turned away"] += 1
                return -Errno.EAGAIN
            self.counters["up"] += 1
        self._up.take(message)
        return len(message)


def produce(ring: Ring, vcpu: int, header: bytes, body: memoryview) -> bool:
    """Write one message of the hypervisor itself into a ring; False when it does not fit now."""
    pages = ring.pages
    size = CHUNK_HEADER.size + len(body)
    if pages is None or not fits(ring.len, sanitise_rx(pages.load_rx(), ring.len), ring.tx, size):
        return False
    message = MESSAGE_HEADER.pack(MESSAGE_HEADER_SIZE + size, UPLINK_PORT + vcpu, DOMID_XEN, 0, MESSAGE_TYPE)
    data = memoryview(b"".join((message, header, body)))
    head = min(len(data), ring.len - ring.tx)
    pages.copy_in(ring.tx, data[:head])
    if head < len(data):
        pages.copy_in(0, data[head:])
    ring.tx = advance(ring.tx, roundup16(len(data)), ring.len)
    pages.store_tx(ring.tx)
    return True
