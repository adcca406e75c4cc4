"""Waiting, written once for threads and for event loops.

What waits is a coroutine that awaits :func:`wait`, and nothing else. A thread drives it with :func:`run`; an event loop has a
driver of its own (``mqkv.aio``). A coroutine that finds all that it needs runs through without being suspended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from mqkv.errors import Error, ReadTimeout, WriteTimeout
from mqkv.streams.base import Promise

T = TypeVar("T")


class Wait:
    """What a coroutine is suspended on: a promise, for up to ``timeout`` seconds."""

    __slots__ = ("promise", "timeout")

    def __init__(self, promise: Promise[Any], timeout: float) -> None:
        self.promise = promise
        self.timeout = timeout

    def __await__(self) -> Generator[Wait, bool, bool]:
        return (yield self)


async def wait(promise: Promise[Any], timeout: float) -> bool:
    """Whether the promise was settled within ``timeout`` seconds."""
    return promise.done() or await Wait(promise, timeout)


Waiting = Coroutine[Any, Any, T]


def run(coroutine: Waiting[T]) -> T:
    """Run a coroutine to its end, waiting in this thread."""
    try:
        waiting = coroutine.send(None)
        while True:
            try:
                settled = waiting.promise.wait(waiting.timeout)
            except BaseException as error:  # noqa: BLE001 -- a signal's, say: it belongs where the coroutine waits
                waiting = coroutine.throw(error)
            else:
                waiting = coroutine.send(settled)
    except StopIteration as stop:
        result: T = stop.value
        return result


class Turn:
    """A lock that is waited for by coroutines, in the order in which they came, and may be let go of by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._queue: deque[Promise[None]] = deque()

    async def take(self, timeout: float) -> bool:
        """Whether it was had within ``timeout`` seconds."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            mine: Promise[None] = Promise()
            self._queue.append(mine)
        try:
            had = await wait(mine, timeout)
        except BaseException:
            if not self._leave(mine):
                self.give()
            raise
        return had or not self._leave(mine)

    def _leave(self, mine: Promise[None]) -> bool:
        """Leave the queue; False if it was one's turn by now."""
        with self._lock:
            if mine.done():
                return False
            self._queue.remove(mine)
            return True

    def give(self) -> None:
        """Let go; the next in the queue has it."""
        with self._lock:
            if self._queue:
                self._queue.popleft().resolve(None)
            else:
                self._taken = False


class Deadline:
    """When a call must be over. It is made where the call enters and handed down, and all that the call waits for shares it."""

    __slots__ = ("_at", "late", "timeout")

    def __init__(self, timeout: float, late: type[Error] = ReadTimeout) -> None:
        self.timeout = timeout
        self.late = late  #: what is raised where it has passed and nothing was written
        self._at = time.monotonic() + timeout

    def __str__(self) -> str:
        return f"{self.timeout:g} s"

    @property
    def left(self) -> float:
        """The seconds that are left, or 0."""
        return max(self._at - time.monotonic(), 0.0)

    @property
    def writing(self) -> bool:
        return self.late is WriteTimeout

    def renew(self) -> None:
        """Begin anew. For what takes as long as there is much of it (a load): there only silence is bounded."""
        self._at = time.monotonic() + self.timeout
