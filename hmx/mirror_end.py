"""What both ends of an attachment over the mirror protocol do alike: ship, repeat, acknowledge, end.

Experimental, not upstream.  Protocol: hmx/mirror.py.  The guest's end is guest_node/remote.py, the hypervisor's
hv_node/remote_guest.py; each says what it ships and what it makes of what arrives.  No I/O and no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from hmx import mirror
from hmx.memory import Buffer
from hmx.mirror import Batch, Message, MessageKind, MirrorError, Numbers

_REASON: Final = 1024  # bytes of a reason that travel


class MirrorEnd(ABC):
    """One end.  `send(message)`: hand it to the ordered lane; a message that is not taken is repeated later.

    `on_gone(reason)`: the other end left, or said what it must not say.
    """

    def __init__(self, epoch: int, send: Callable[[bytes], object], on_gone: Callable[[str], None]) -> None:
        self.numbers = Numbers(epoch)
        self.gone: str | None = None
        self.on_gone = on_gone
        self._send = send

    @abstractmethod
    def _fill(self, batch: Batch) -> bool:
        """Move what there is to ship into `batch`, in its order.  True: that was all."""

    @abstractmethod
    def _understand(self, message: Message) -> None:
        """A message of this attachment.  MirrorError: it makes no sense."""

    def _sent(self) -> None:  # noqa: B027  (the guest's end has nothing to do then)
        """A batch has been filled, and sent unless it was empty."""

    def flush(self) -> None:
        """Ship everything that is there, as far as what is under way allows."""
        if self.gone is not None:
            return
        numbers = self.numbers
        for message in numbers.repeats():
            self._send(message)
        while (room := numbers.room()) >= mirror.MIN_ROOM:
            batch = Batch(room)
            done = self._fill(batch)
            if batch.count:
                self._send(numbers.send(batch))
            self._sent()
            if done:
                break
        self._acknowledge()

    def receive(self, data: Buffer) -> None:
        """A message of the other end.  One that makes no sense ends the attachment."""
        if self.gone is not None:
            return
        try:
            message = mirror.unpack(data)
            if message.epoch != self.numbers.epoch:
                self.numbers.counters["stale"] += 1
            else:
                self._understand(message)
        except MirrorError as error:
            self.close(str(error))
            self._end(str(error))
        else:
            self.flush()

    def tick(self, now_ns: int) -> None:
        """Now and then: acknowledge, and repeat what got lost."""
        if self.gone is None:
            self._acknowledge(at_once=True)
            if self.numbers.due(now_ns):
                self.link_up()
            self.flush()

    def link_up(self) -> None:
        """There is a new session: what was under way in the last one may be lost."""
        if self.gone is None:
            for message in self.numbers.repeats(asked=False):
                self._send(message)

    def close(self, reason: str) -> None:
        """End it from here: the other end is told."""
        if self.gone is None:
            self.gone = reason
            self._send(mirror.pack(MessageKind.GONE, self.numbers.epoch, reason.encode()[:_REASON]))

    def _acknowledge(self, *, at_once: bool = False) -> None:
        acknowledgement = self.numbers.acknowledgement(at_once=at_once)
        if acknowledgement is not None:
            self._send(acknowledgement)

    def _end(self, reason: str) -> None:
        self.gone = reason
        self.on_gone(reason)
