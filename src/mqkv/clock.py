"""The log clock: how much time has passed, by agreement of those who write. Pure: no I/O, no clock, no thread.

Rules:

1. It counts ticks of a minute, from 0 on, and knows no date: of a writer's clock only the differences count, so one that is wrong
   by minutes or years says the same as one that is right.
2. It ticks when *two* writers have each seen a minute pass since the last tick, or one that wrote ``ALONE`` records since it
   had: no single clock that jumps or races makes it fast for the others.
3. So what is written in tick N has been there for at least M minutes in tick N + M + 1. It may be slow, and stands while nobody
   writes: that keeps what has expired in memory for longer, and nothing else.
4. A record without a time or without an id moves nothing.
"""

from __future__ import annotations

TICK_MS = 60_000
#: So many records a single writer must write to show that it is alone, and not wrong.
ALONE = 100
#: So many writers are known at a time; past it, the one that was heard first in this tick is forgotten.
WRITERS = 1_024
#: Neighbours in the log whose times contradict each other by more than this have clocks that are apart.
APART_MS = 60_000
#: What stands in front of an id: the same in all ids of a process (see ``ids``).
_WRITER = 16


def writer_of(id: str) -> str:
    """The process that made an id."""
    return id[:_WRITER]


class LogClock:
    """A clock that records turn. Not thread-safe."""

    __slots__ = ("_count", "_firsts", "_grown", "_last", "_last_ms", "apart", "ticks")

    def __init__(self) -> None:
        self.ticks = 0
        #: Writers that are known to have a clock apart from others', and by how many milliseconds it is ahead. Nothing that the
        #: fold decides depends on it.
        self.apart: dict[str, int] = {}
        self._last = ""
        self._last_ms = 0
        self._firsts: dict[str, int] = {}
        self._grown: str | None = None
        self._count = 0

    def hear(self, id: str, time_ms: int) -> bool:
        """A record's id and time; whether the clock ticks."""
        writer = id[:_WRITER]
        if writer != self._last:
            if self._last_ms > time_ms + APART_MS:
                self._contradict(writer, self._last_ms - time_ms)
            self._last = writer
        self._last_ms = time_ms
        firsts = self._firsts
        first = firsts.get(writer)
        if first is None or time_ms < first - TICK_MS:  # new, or set back
            if first is None and len(firsts) >= WRITERS:
                del firsts[next(iter(firsts))]
            firsts[writer] = time_ms
            return False
        if time_ms < first + TICK_MS:
            return False
        if self._grown is None:
            self._grown = writer
        if self._grown == writer:
            self._count += 1
            if self._count <= ALONE:
                return False
        self.ticks += 1
        self._firsts = {writer: time_ms}
        self._grown, self._count = None, 0
        return True

    @property
    def newest_ms(self) -> int:
        """The latest time that was told in this tick, by a clock that may be wrong; 0 for none."""
        return max(self._firsts.values(), default=0)

    def ends_at(self, ttl_ms: int) -> int:
        """The tick by which a ttl that begins now, and a margin, has passed for everybody."""
        ttl_ms = max(ttl_ms, 0)
        return self.ticks + 1 - (-(ttl_ms + max(TICK_MS, ttl_ms // 10)) // TICK_MS)

    def _contradict(self, behind: str, by_ms: int) -> None:
        """A later record tells an earlier time: one of the two clocks is wrong."""
        for writer, ahead_ms in ((self._last, by_ms), (behind, -by_ms)):
            if writer in self.apart or len(self.apart) < WRITERS:
                self.apart[writer] = ahead_ms
