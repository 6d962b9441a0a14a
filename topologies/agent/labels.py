"""The labels that a change of policy gives to a lab's guests, as the broker is told: it passes no other.

The broker's plan has the labels of the lab's start.  A change is a round, told in parts that fit into records; the
broker says of each part that it has it.  Another broker starts with the last round, and is told it again, so nobody
waits for one that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from topologies.agent.phases import SECOND

WITHIN: Final = 2 * SECOND
"""What the broker has to answer in."""
PART: Final = 100
"""Guests in one record."""


class Labels:
    """Labels of guests by name.  `say(record)` speaks to the broker."""

    def __init__(self, say: Callable[[list[Any]], None]) -> None:
        self._say = say
        self._number = 0
        self._parts: list[list[str]] = []
        self._missing = 0
        self._until = 0
        self._done: Callable[[int], None] | None = None

    @property
    def waits(self) -> bool:
        """Whether a round is being told."""
        return self._done is not None

    def give(self, labels: Sequence[Sequence[Any]], now: int, done: Callable[[int], None]) -> None:
        """Tell the broker a round; `done(now)` when it has it all, or is not there to say so."""
        words = [str(word) for pair in labels for word in pair]
        self._parts = [words[at : at + 2 * PART] for at in range(0, max(1, len(words)), 2 * PART)]
        self._number += 1
        self._missing, self._until, self._done = len(self._parts), now + WITHIN, done
        self.repeat()

    def repeat(self) -> None:
        """Tell the last round again: the broker may be another one."""
        for part in self._parts:
            self._say(["relabel", self._number, ["labels", *part]])

    def present(self, config: Any) -> Any:
        """The start arguments of a broker, with the labels of the last round in the place of the plan's."""
        binding = getattr(config, "binding", None)
        if not self._number or binding is None:
            return config
        labels = {name: label for part in self._parts for name, label in zip(part[::2], part[1::2], strict=True)}
        guests = tuple((path, labels.get(path[-1], "")) for path, _ in binding.guests)
        return replace(config, binding=replace(binding, guests=guests))

    def taken(self, number: int, now: int) -> None:
        """The broker has a part."""
        if number == self._number and self._done is not None:
            self._missing -= 1
            if self._missing <= 0:
                self._end(now)

    def due(self, now: int) -> None:
        """Wait no longer when time is over."""
        if self._done is not None and now >= self._until:
            self._end(now)

    def _end(self, now: int) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(now)

    def moments(self) -> list[int]:
        """When to look again, whatever happens."""
        return [] if self._done is None else [self._until]
