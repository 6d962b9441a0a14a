"""The lane of guests on other hosts than their hypervisors, where the link between the two hosts is impaired.

What such a guest and its hypervisor tell each other (docs/remote-guests.md) are control records of the one kind that an
impairment concerns: they are the guest's traps, memory and interrupts.  They travel by the model of
:mod:`broker.impair`, in order, and a doubled one comes twice, since both ends number what they say.  What a partition
or a full line loses is lost without a word: both ends repeat what is not acknowledged.

Their link is named by the two, or else by their hosts; a guest is not the end of any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.frames import Buffer
from broker.impair import Impairment, Lines
from broker.lifecycle import Node

if TYPE_CHECKING:
    from random import Random

MIRROR: Final = "mirror"
"""First word of the record that a message is told with."""
MAX_WAITING: Final = 1 << 23
"""Bytes under way between two nodes in one direction; an end has a quarter of that in its hands, and repeats it."""

Deliver = Callable[[str, str, Buffer], None]


class _Message(NamedTuple):
    sender: str
    target: str
    payload: bytes


class MirrorLines:
    """What is under way between such guests and their hypervisors.

    `hosts`: node name -> host.  `deliver(sender, target, payload)` hands over what has arrived.
    """

    def __init__(
        self, chance: Random | None, hosts: dict[str, str], counters: Counter[str], deliver: Deliver
    ) -> None:
        self._lines: Lines[_Message] = Lines(chance, hosts)
        self._counters = counters
        self._deliver = deliver
        self._waiting: Counter[tuple[str, str]] = Counter()

    def set(self, a: str, b: str, impairment: Impairment) -> None:
        """The link between two nodes or two hosts is like that from now on."""
        self._lines.set(a, b, impairment)

    def take(self, sender: Node, target: Node, payload: Buffer, now_ns: int) -> bool:
        """Put a message on its way, or lose it.  False: nothing is wrong with the way, pass it on at once."""
        pair = sender.name, target.name
        if self._lines.idle or self._lines.clear(pair):
            return False
        if self._lines.of(*pair).cut or self._waiting[pair] + len(payload) > MAX_WAITING:
            self._counters["mirrored_lost"] += 1
            return True
        message = _Message(*pair, bytes(payload))
        self._waiting[pair] += len(payload) * self._lines.send(pair, pair, len(payload), now_ns, message)
        return True

    def on_time(self, now_ns: int) -> None:
        """Time passed: hand over what has arrived, but for what arrives at a cut."""
        for pair, message in self._lines.arrived(now_ns):
            self._forget(pair, message)
            if self._lines.of(*pair).cut:
                self._counters["mirrored_lost"] += 1
            else:
                self._deliver(*message)

    def left(self, name: str) -> None:
        """A node is gone: what was under way to it is too."""
        for pair, message in self._lines.drop(None, name):
            self._forget(pair, message)

    def _forget(self, pair: tuple[str, str], message: _Message) -> None:
        self._waiting[pair] -= len(message.payload)
        if not self._waiting[pair]:
            del self._waiting[pair]

    def next_deadline(self) -> int | None:
        """When the next one arrives; None: nothing is under way."""
        return self._lines.next_deadline()
