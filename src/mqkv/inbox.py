"""What a watch has not read yet. It knows events, and neither watches nor where events come from.

Rules:

1. It never holds up who fills it. Past :data:`LIMIT` bytes all that waits is dropped, and a ``reset`` takes its place: "changes
   may have been missed here". What comes to an empty inbox is taken, however much it is: a reader that keeps up misses nothing.
2. A batch is one event and is taken apart as it is read. Its bodies are those of the record, or the table's.
3. Whoever fills it holds it, and nobody the watch that reads it: a watch that is dropped can be collected. Its finaliser, which
   may run anywhere, takes no lock: it marks the inbox as left, and whoever comes next closes it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from mqkv.fold import Cell
from mqkv.logfmt import Log
from mqkv.streams.base import Promise
from mqkv.table import Event

#: Bytes of changes that may wait for their reader.
LIMIT = 64 * 2**20

#: What an event takes besides its key and value.
OVERHEAD = 300

RESET = Event("reset")


class Inbox:
    """Events that wait for the reader of one watch. Thread-safe."""

    def __init__(self, pattern: str, wants: Callable[[str], bool], log: Log, key: str | None = None) -> None:
        self.pattern = pattern
        self.wants = wants
        self.key = key  #: the one key that is wanted, if it is one
        self.left = False  #: nobody will read it any more
        self.closed = False
        self.on_event: Callable[[], object] | None = None
        self.owner: Callable[[], object] | None = None  #: a weak reference to the store
        self._log = log
        self._events: deque[tuple[Event, int]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._on_close: list[Callable[[], object]] = []
        self._room: Promise[None] | None = None
        # What is being taken apart.
        self._reading = threading.Lock()
        self._batch: Event | None = None
        self._rest: Iterator[tuple[str, Cell | None]] = iter(())
        self._batch_size = self._to_come = 0

    def __len__(self) -> int:
        return len(self._events)

    # Who fills it

    def offer(self, event: Event, *, paced: bool = False) -> None:
        """Take in an event. Never waits. Whoever is ``paced`` gives no more than there is ``room`` for, and a little."""
        if self.left:
            return
        kind = event.kind
        if kind == "batch":
            if self.key is not None:
                if self.key not in event.many:
                    return
                event = one_of(event, self.key, event.many[self.key])
        elif kind in ("clear", "ended"):
            event = RESET
        elif kind != "reset" and not self.wants(event.key):
            return
        size = size_of(event)
        with self._changed:
            if self.closed:
                return
            if event.kind == "reset" and self._events and self._events[-1][0].kind == "reset":
                return  # there is nothing between them
            if not paced and self._size and self._size + size > LIMIT:
                self._log(logging.WARNING, "watch", pattern=self.pattern, status="overflow", bytes=self._size)
                self._events.clear()
                self._size = self._batch_size
                event, size = RESET, OVERHEAD
            self._events.append((event, size))
            self._size += size
            self._changed.notify()
        self._tell()

    @property
    def full(self) -> bool:
        """Whether who can wait should."""
        return self._size > LIMIT // 2

    def room(self) -> Promise[None]:
        """Settled when it is not ``full``, or is closed."""
        with self._changed:
            if self.closed or not self.full:
                return Promise.of(None)
            if self._room is None:
                self._room = Promise()
            return self._room

    # Who reads it

    def wait(self, timeout: float | None) -> bool:
        """Whether there is something to take within ``timeout`` seconds. Bounded by the life of the watch, at any rate."""
        with self._changed:
            return self._changed.wait_for(lambda: self._events or self._batch or self.closed, timeout) and not self.ended

    @property
    def ended(self) -> bool:
        """Whether it is closed, and there is nothing left in it."""
        return self.closed and not self._events and self._batch is None

    def take(self) -> Event | None:
        """The next change, or ``reset``; None where there is none. Never waits for one."""
        with self._reading:
            while True:
                if self._batch is not None:
                    event = self._next_of(self._batch)
                    if event is not None:
                        return event
                with self._changed:
                    if not self._events:
                        return None
                    event, size = self._events.popleft()
                    if event.kind == "batch":  # its size counts until it is taken apart
                        self._batch, self._batch_size = event, size
                        self._rest, self._to_come = iter(event.many.items()), len(event.many)
                        continue
                    room = self._less(size)
                if room is not None:
                    room.resolve(None)
                return event

    def _next_of(self, batch: Event) -> Event | None:
        """The next change of a batch that is wanted."""
        found = None
        for key, cell in self._rest:
            self._to_come -= 1
            if self.wants(key):
                found = one_of(batch, key, cell)
                break
        if not self._to_come:
            self._batch = None
            with self._changed:
                size, self._batch_size = self._batch_size, 0
                room = self._less(size)
            if room is not None:
                room.resolve(None)
        return found

    def _less(self, size: int) -> Promise[None] | None:
        """Under the lock in which it was taken out: so much waits no more; who may be told of it."""
        self._size -= size
        if self._room is None or self.full:
            return None
        room, self._room = self._room, None
        return room

    # Its life

    def on_close(self, callback: Callable[[], object]) -> None:
        """What is to be let go of when nobody reads it any more; at once, if that is so already."""
        with self._changed:
            if not self.closed:
                self._on_close.append(callback)
                return
        callback()

    def close(self) -> None:
        """Take no more; what has come can still be read. Idempotent."""
        with self._changed:
            if self.closed:
                return
            self.closed = True
            callbacks, self._on_close = self._on_close, []
            room, self._room = self._room, None
            self._changed.notify_all()
        if room is not None:
            room.resolve(None)
        for callback in callbacks:
            callback()
        self._tell()

    def leave(self) -> None:
        """Its watch is no more. Called by a finaliser: it takes no lock."""
        self.left = True
        self.on_event = None
        self._events.clear()
        self._batch = None

    def after_fork(self) -> None:
        """In a forked child: nothing feeds it there."""
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._on_close = []
        self.closed = True
        self.on_event = None

    def _tell(self) -> None:
        on_event = self.on_event
        if on_event is not None:
            on_event()


def one_of(batch: Event, key: str, cell: Cell | None) -> Event:
    """What a batch, or all that a table held, says of one key."""
    if cell is None:
        return Event("delete", key, None, batch.offset, batch.written_ms)
    return Event("set", key, cell, cell.revision, cell.written_ms)


def size_of(event: Event) -> int:
    """About how many bytes it keeps in memory."""
    size = OVERHEAD if event.cell is None else OVERHEAD + len(event.cell.body)
    many: Mapping[str, Cell | None] = event.many
    if many:
        size += OVERHEAD * len(many) + sum(len(cell.body) for cell in many.values() if cell is not None)
    return size
