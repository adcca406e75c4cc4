"""pika's I/O loop, its timers, and the moments in which it waits: then another thread may act in its place.

A switch of threads costs 20 to 30 us, or more on a busy machine. So a thread that has something to send need not wake the I/O
thread where that waits for the broker: it does the I/O thread's work itself. Rules:

1. ``here`` runs a function while the I/O thread waits in the poller, and keeps it there: what belongs to the I/O thread belongs
   to the function meanwhile. It never waits for the I/O thread, so whoever calls it may hold any lock.
2. The function must not run callbacks of others (they may want a lock that its caller holds), nor wait.
3. It may be interrupted by what runs in its thread without being asked (a signal's handler, a finaliser). Whatever that wants of
   the I/O thread goes to the queue: the one that was interrupted is half done.
4. Where pika's private names are not there, the I/O thread is never said to wait, and does all itself.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pika.adapters.select_connection import IOLoop

A = TypeVar("A")

#: What the poller calls right before it waits, and right after.
BEFORE, AFTER = "_get_max_wait", "_dispatch_fd_events"


class Timer:
    """A function to be run at a time; None when it was run or forgotten."""

    __slots__ = ("at", "function")

    def __init__(self, at: float, function: Callable[[], None]) -> None:
        self.at = at
        self.function: Callable[[], None] | None = function

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """The loop of one I/O thread. ``call`` and ``here`` are for any thread, all else for that thread."""

    def __init__(self) -> None:
        self.raw = IOLoop()
        self._gate = threading.RLock()  # who holds it may be interrupted, and come back here
        self._waiting = False  # in the poller
        self._acting = False  # somebody is in its place
        self._timers: list[Timer] = []
        self._forgotten = 0
        self._armed = float("inf")
        self._handle: Any = None
        poller = self.raw._poller
        if hasattr(poller, BEFORE) and hasattr(poller, AFTER):
            self._watch(poller)

    def _watch(self, poller: Any) -> None:
        before, after = getattr(poller, BEFORE), getattr(poller, AFTER)

        def wait() -> float:
            seconds: float = before()
            self._waiting = True
            return seconds

        def dispatch(events: Any) -> None:
            self._wakes()
            after(events)

        setattr(poller, BEFORE, wait)
        setattr(poller, AFTER, dispatch)

    def _wakes(self) -> None:
        with self._gate:
            self._waiting = False

    def call(self, function: Callable[[], None]) -> None:
        """Have the I/O thread run it."""
        self.raw.add_callback_threadsafe(function)

    def here(self, function: Callable[[A], bool], argument: A) -> bool:
        """Whether the I/O thread waited and the function, run in its place, says that it did what there was to do."""
        if not self._waiting:
            return False
        with self._gate:
            if self._acting or not self._waiting:  # it may have changed
                return False
            self._acting = True
            try:
                return function(argument)
            finally:
                self._acting = False

    def run(self) -> None:
        """Until ``stop``, or an error."""
        try:
            self.raw.start()
        finally:
            self._wakes()

    def stop(self) -> None:
        self.raw.stop()

    def close(self) -> None:
        self.raw.close()

    def wake(self) -> None:
        """After something was done in its place that it must know of: it looks again how long to wait, and for what."""
        if self._waiting:
            self.raw._poller.wake_threadsafe()

    # Timers: of pika's there is one at a time, so that a timer that is soon forgotten costs no call of pika, and wakes nobody.

    def later(self, delay: float, function: Callable[[], None]) -> Callable[[], None]:
        """Run after ``delay`` seconds; call what is returned to forget it."""
        timer = Timer(time.monotonic() + max(delay, 0), function)
        heapq.heappush(self._timers, timer)
        if timer.at < self._armed:
            self._arm(timer.at)
            self.wake()

        def forget() -> None:
            if timer.function is not None:
                timer.function = None
                self._forgotten += 1
                if self._forgotten > 64 and self._forgotten > len(self._timers) // 2:
                    self._timers = [each for each in self._timers if each.function is not None]
                    heapq.heapify(self._timers)
                    self._forgotten = 0

        return forget

    def _arm(self, at: float) -> None:
        if self._handle is not None:
            self.raw.remove_timeout(self._handle)
        self._armed = at
        self._handle = self.raw.call_later(max(at - time.monotonic(), 0), self._ring)

    def _ring(self) -> None:
        self._armed, self._handle = float("inf"), None
        now = time.monotonic()
        due: list[Callable[[], None]] = []
        while self._timers and (self._timers[0].at <= now or self._timers[0].function is None):
            timer = heapq.heappop(self._timers)
            if timer.function is None:
                self._forgotten -= 1
            else:
                due.append(timer.function)
                timer.function = None
        if self._timers:
            self._arm(self._timers[0].at)
        for function in due:
            function()
