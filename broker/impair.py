"""What may be wrong with a link between two hosts or two hypervisors, and when what travels over it arrives.

The model is a network below a reliable transport, seen by what travels above it, per direction:

* `rate`: an envelope leaves when those before it have left, at so many bytes a second;
* `delay` and `jitter`: it is under way for delay, plus or minus an evenly drawn part of jitter;
* `loss`: each transmission is lost with that probability and repeated after a timeout that doubles, as TCP's
  does, while all that was sent later waits behind it.  Nothing is lost for good, save by a loss of 1;
* `duplicate`: it arrives once more, later.  The lane would refuse the second copy of a frame by its number,
  so what is doubled is the envelope, which the levels must recognise by (origin epoch, origin seq);
* `reorder`: it is late, and those of other endpoints overtake it.  What one endpoint sends stays in order
  even so: data and signals between two endpoints never overtake each other, whatever the network does;
* `partition`, or a loss of 1: nothing passes.  The two ends are told that the link is down.

No clock and no randomness of its own: times come in, and so does the generator, so that one seed gives one
history.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from random import Random

Item = TypeVar("Item")
Pair = tuple[str, str]

RESEND_NS: Final = 200_000_000
"""The first retransmission comes this long, and a round trip, after what was lost: the least that Linux's TCP waits."""
RESEND_MAX_NS: Final = 3_200_000_000
MAX_LOSSES: Final = 16
"""Losses in a row; the next transmission arrives."""
LATE_NS: Final = 1_000_000
"""A reordered or duplicated envelope is late by the link's delay, and at least by this."""
OVERHEAD: Final = 128
"""Bytes that an envelope takes on the wire beside its payload, for `rate`."""
MAX_FLOWS: Final = 1024


def earliest(a: int | None, b: int | None) -> int | None:
    """The earlier of two times; None: there is none."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)


class Impairment(NamedTuple):
    """What is wrong with a link, in each direction.  The fields are the array of an `impair` record, in order.

    Times in ns; `loss`, `duplicate` and `reorder` are probabilities from 0 to 1; `rate` in bytes a second, 0
    for no limit.
    """

    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    rate: int = 0
    duplicate: float = 0.0
    reorder: float = 0.0
    partition: bool = False

    @property
    def cut(self) -> bool:
        """Whether nothing passes."""
        return self.partition or self.loss >= 1

    @classmethod
    def of(cls, values: Sequence[Any]) -> Impairment:
        """From a record's array.  ValueError: a probability above 1."""
        delay, jitter, loss, rate, duplicate, reorder, partition = values
        if max(loss, duplicate, reorder) > 1:
            raise ValueError("a probability is above 1")
        return cls(int(delay), int(jitter), float(loss), int(rate), float(duplicate), float(reorder), bool(partition))


NOTHING: Final = Impairment()


class _Direction:
    """What one direction of a link remembers."""

    __slots__ = ("arrives_ns", "flows", "free_ns", "waiting")

    def __init__(self) -> None:
        self.free_ns = 0  # when all that was sent has left
        self.arrives_ns = 0  # when the last that keeps order arrives
        self.flows: dict[Hashable, int] = {}  # per endpoint, when its last arrives
        self.waiting = 0


class Lines(Generic[Item]):
    """Impaired links, and what is under way on them.

    `hosts`: node name -> host, so that a link named by two hosts is that of every pair of nodes on them.
    """

    def __init__(self, chance: Random | None, hosts: dict[str, str] | None = None) -> None:
        self._chance = chance
        self._hosts = hosts or {}
        self._table: dict[Pair, Impairment] = {}
        self._directions: dict[Pair, _Direction] = {}
        self._heap: list[tuple[int, int, Pair, Item]] = []
        self._count = 0

    # ---- which links -------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no link is impaired and nothing is under way: then everything arrives at once."""
        return not self._table and not self._heap

    def set(self, a: str, b: str, impairment: Impairment) -> None:
        """Impair the link between two nodes or two hosts from now on.  What is under way arrives as it would have."""
        pair = (a, b) if a <= b else (b, a)
        if impairment == NOTHING:
            self._table.pop(pair, None)
        else:
            self._table[pair] = impairment

    def of(self, a: str, b: str) -> Impairment:
        """What is wrong between two nodes: what was said of the two, or else of their hosts."""
        if not self._table:
            return NOTHING
        found = self._table.get((a, b) if a <= b else (b, a))
        if found is None:
            x, y = self._hosts.get(a, ""), self._hosts.get(b, "")
            found = self._table.get((x, y) if x <= y else (y, x))
        return NOTHING if found is None else found

    # ---- when --------------------------------------------------------------------------------------------

    def times(self, pair: Pair, flow: Hashable, size: int, now_ns: int, once: bool = False) -> tuple[int, ...]:
        """When an envelope of `size` bytes from endpoint `flow`, sent from pair[0] to pair[1] now, arrives.

        Two times when it arrives twice, which `once` forbids.
        """
        impairment = self.of(*pair)
        line = self._directions.get(pair)
        if line is None:
            line = self._directions[pair] = _Direction()
        if impairment.rate:
            line.free_ns = max(now_ns, line.free_ns) + (size + OVERHEAD) * 1_000_000_000 // impairment.rate
        arrives = max(now_ns, line.free_ns) + impairment.delay_ns
        if impairment.jitter_ns:
            arrives += round(self._draw(-1.0, 1.0) * impairment.jitter_ns)
        timeout = RESEND_NS + 2 * impairment.delay_ns
        for _ in range(MAX_LOSSES):
            if not self._happens(impairment.loss):
                break
            arrives += timeout
            timeout = min(2 * timeout, RESEND_MAX_NS)
        late = max(LATE_NS, impairment.delay_ns)
        if self._happens(impairment.reorder):
            arrives = max(arrives, line.arrives_ns) + late
        else:
            arrives = line.arrives_ns = max(arrives, line.arrives_ns, now_ns)
        arrives = max(arrives, line.flows.get(flow, 0))
        if len(line.flows) >= MAX_FLOWS:
            line.flows = {name: at for name, at in line.flows.items() if at > now_ns}
        line.flows[flow] = arrives
        if not once and self._happens(impairment.duplicate):
            return arrives, arrives + late
        return (arrives,)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._draw(0.0, 1.0) < probability

    def _draw(self, low: float, high: float) -> float:
        if self._chance is None:
            raise RuntimeError("a link with chance in it needs a generator")
        return low + (high - low) * self._chance.random()

    # ---- what is under way -------------------------------------------------------------------------------

    def clear(self, pair: Pair) -> bool:
        """Whether what is sent from pair[0] to pair[1] arrives at once: nothing is wrong, nothing before it under
        way.
        """
        line = self._directions.get(pair)
        return (line is None or not line.waiting) and self.of(*pair) == NOTHING

    def send(self, pair: Pair, flow: Hashable, size: int, now_ns: int, item: Item, once: bool = False) -> int:
        """Put `item` on its way.  How many copies will arrive."""
        times = self.times(pair, flow, size, now_ns, once)
        for at in times:
            self._count += 1
            heapq.heappush(self._heap, (at, self._count, pair, item))
        self._directions[pair].waiting += len(times)
        return len(times)

    def arrived(self, now_ns: int) -> list[tuple[Pair, Item]]:
        """What has arrived by now, in order, taken off its way."""
        arrived: list[tuple[Pair, Item]] = []
        while self._heap and self._heap[0][0] <= now_ns:
            _, _, pair, item = heapq.heappop(self._heap)
            self._directions[pair].waiting -= 1
            arrived.append((pair, item))
        return arrived

    def drop(self, source: str | None, target: str) -> list[tuple[Pair, Item]]:
        """Take what is under way from `source` (None: from anybody) to `target` off its way, in order."""
        gone = sorted(entry for entry in self._heap if entry[2][1] == target and source in (None, entry[2][0]))
        if gone:
            numbers = {entry[1] for entry in gone}
            self._heap = [entry for entry in self._heap if entry[1] not in numbers]
            heapq.heapify(self._heap)
        for _, _, pair, _ in gone:
            self._directions[pair].waiting -= 1
        return [(pair, item) for _, _, pair, item in gone]

    def next_deadline(self) -> int | None:
        """When the next one arrives; None: nothing is under way."""
        return self._heap[0][0] if self._heap else None
