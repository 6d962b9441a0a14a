"""Two processors that share words as x86 processors do: a store waits in its processor's buffer before others see it.

The x86-TSO model (Sewell, Sarkar, Owens et al., CACM 53(7)): a load looks at the processor's own buffer first, then at
memory; stores leave a buffer in order, at any later time; a fence empties it.  Which processor takes the next step, and
when a store leaves, is drawn from a generator, so a history can be repeated.  Between two steps of one processor stands
any number of steps of the other.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable

from hmx import shm

Program = Callable[["Tso"], None]


class _Over(BaseException):
    """Both processors sleep and no bell is on its way: nothing can happen any more."""


class Tso:
    """Runs two programs; each ends by waiting for a bell that never comes."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        # Histories differ in kind: many short turns or few long ones, stores that leave soon or very late.
        self._late, self._turn = generator.choice((0.0, 0.03, 0.2)), generator.choice((0.05, 0.2, 0.5))
        self._buffers: tuple[deque[tuple[memoryview, int, int]], ...] = (deque(), deque())
        self._turns = (threading.Semaphore(0), threading.Semaphore(0))
        self._awake = [True, True]
        self._bells = [False, False]
        self._running = 0
        self._over = False
        self._errors: list[BaseException] = []

    def run(self, *programs: Program) -> None:
        """Run both programs until both wait.  Raises what a program raises."""
        threads = [threading.Thread(target=self._run, args=(me, each)) for me, each in enumerate(programs)]
        for thread in threads:
            thread.start()
        self._running = self._random.randrange(2)
        self._turns[self._running].release()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    # -- what the programs call ----

    def load(self, words: memoryview, index: int) -> int:
        """hmx.shm.load32 of the processor whose turn it is."""
        self._step()
        for where, at, value in reversed(self._buffers[self._running]):
            if where is words and at == index:
                return value
        return shm.load32(words, index)

    def store(self, words: memoryview, index: int, value: int) -> None:
        """hmx.shm.store32."""
        self._step()
        self._buffers[self._running].append((words, index, value))

    def fence(self) -> None:
        """hmx.shm.fence."""
        self._step()
        self._drain(self._running)

    def ring(self) -> None:
        """Wake the other processor: a system call, which empties the buffer."""
        self.fence()
        other = 1 - self._running
        self._bells[other] = self._awake[other] = True

    def wait(self) -> None:
        """Sleep until rung."""
        self._step()
        me = self._running
        self._drain(me)
        while not self._bells[me]:
            self._awake[me] = False
            if not self._awake[1 - me]:
                self._end()
                raise _Over
            self._yield()
        self._bells[me] = False

    # -- turns ----

    def _run(self, me: int, program: Program) -> None:
        self._turns[me].acquire()
        try:
            if not self._over:
                program(self)
        except _Over:
            pass
        except BaseException as error:
            self._errors.append(error)
            self._end()

    def _end(self) -> None:
        self._over = True
        for turn in self._turns:
            turn.release()

    def _step(self) -> None:
        """Anything may happen between two accesses."""
        chance = self._random.random
        for buffer in range(2):
            while self._buffers[buffer] and chance() < self._late:
                self._drain(buffer, 1)
        if self._awake[1 - self._running] and chance() < self._turn:
            self._yield()

    def _yield(self) -> None:
        me = self._running
        self._running = 1 - me
        self._turns[1 - me].release()
        self._turns[me].acquire()
        if self._over:
            raise _Over

    def _drain(self, processor: int, count: int = -1) -> None:
        buffer = self._buffers[processor]
        while buffer and count:
            shm.store32(*buffer.popleft())
            count -= 1
