"""Watches: each change of a key, or of the keys of a pattern, as it is folded, to an iterator or a callback.

A watch never holds up the table: what its reader is too slow to take is dropped, and the reader is told by a ``reset``, which
means "changes may have been missed here: read again". It never skips in silence.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple

from mqkv.codecs import BoundCodec
from mqkv.errors import UnreadableValue
from mqkv.logfmt import Log
from mqkv.table import Event

#: Changes that wait for a slow reader; past it they are dropped and a ``reset`` is told.
QUEUE_LIMIT = 100_000


class Change(NamedTuple):
    """One change of one key."""

    key: str  #: empty for a ``reset``
    value: object  #: None for a ``delete`` or ``reset``
    revision: int  #: the offset of its record; -1 for a ``reset``
    kind: str  #: ``set``, ``delete``, or ``reset``: changes may have been missed, or the log was rewritten; read again
    written_at: float | None  #: Unix seconds by the writer's clock; None where the writer did not say (the Ruby gem)


RESET = Change("", None, -1, "reset", None)


class Watch:
    """Changes, in the order of the log. Iterable, and a context manager. Thread-safe.

    ``for change in watch`` waits for the next change and ends when the watch is closed. ``get(timeout)`` waits no longer than
    ``timeout`` seconds.
    """

    def __init__(self, pattern: str, wants: Callable[[str], bool], codec: BoundCodec, log: Log) -> None:
        self.pattern = pattern
        self.wants = wants
        self._codec = codec
        self._log = log
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._on_close: list[Callable[[], object]] = []
        self._on_event: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<mqkv.Watch {self.pattern!r} {'closed' if self._closed else 'open'} waiting={len(self._events)}>"

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        while True:
            with self._changed:
                # Bounded by the life of the watch: closing it, or its store, wakes the reader.
                self._changed.wait_for(lambda: self._events or self._closed)
            change = self.get(0)
            if change is not None:
                return change
            if self._closed:
                raise StopIteration

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def get(self, timeout: float) -> Change | None:
        """The next change; None if none came within ``timeout`` seconds or the watch is closed and empty."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._closed, timeout) or not self._events:
                return None
            kind, key, cell, offset, written_ms = self._events.popleft()
        value: object = None
        if cell is not None:
            try:
                if cell.content_encoding is not None:
                    raise UnreadableValue(cell.content_encoding)
                value = self._codec.decode(key, cell.body, cell.content_type)
            except Exception:  # noqa: BLE001 -- a codec may be the user's own; the next change must still be told
                self._log.once(logging.WARNING, f"watch {key}", "watch", key=key, status="unreadable", offset=offset)
                return RESET
        return Change(key, value, offset, kind, None if written_ms is None else written_ms / 1000)

    def after_fork(self) -> None:
        """Called by the registry in a forked child: nothing feeds it there."""
        self._changed = threading.Condition()
        self._closed = True
        self._on_event = None

    def close(self) -> None:
        """End the watch; what has come already can still be read. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        for callback in self._on_close:
            callback()
        if self._on_event is not None:
            self._on_event()

    def offer(self, event: Event) -> None:
        """Take in an event of a table. Never waits."""
        kind, key = event[0], event[1]
        if kind in ("set", "delete") and not self.wants(key):
            return
        if kind in ("clear", "ended"):
            event = ("reset", "", None, -1, None)
        with self._changed:
            if self._closed:
                return
            self._closed = kind == "ended"  # there is no stream to watch any more
            if len(self._events) >= QUEUE_LIMIT:
                self._events.clear()
                event = ("reset", "", None, -1, None)
                self._log(logging.WARNING, "watch", pattern=self.pattern, status="overflow")
            self._events.append(event)
            self._changed.notify()
        if self._on_event is not None:
            self._on_event()

    def on_close(self, callback: Callable[[], object]) -> None:
        """What is to be let go of when the watch ends."""
        self._on_close.append(callback)

    def notify(self, on_event: Callable[[], object]) -> None:
        """Call ``on_event``, which must be quick, whenever there may be something to ``get``, and now."""
        self._on_event = on_event
        on_event()

    def call(self, callback: Callable[[Change], object], dispatcher: Dispatcher) -> None:
        """Hand each change to ``callback`` in the dispatcher's thread."""
        self.notify(lambda: dispatcher.ready(self, callback))


class Dispatcher:
    """The one thread in which the callbacks of a keyspace run, one after the other. It ends with the last watch."""

    def __init__(self, name: str, log: Log) -> None:
        self._name = name
        self._log = log
        self._lock = threading.Condition()
        self._ready: dict[Watch, Callable[[Change], object]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def ready(self, watch: Watch, callback: Callable[[Change], object]) -> None:
        with self._lock:
            if self._closed:
                return
            self._ready[watch] = callback
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"mqkv-watch-{self._name}", daemon=True)
                self._thread.start()
            self._lock.notify()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)  # a callback that hangs must not hang close()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._ready or self._closed)
                if self._closed:
                    return
                watch, callback = next(iter(self._ready.items()))
                del self._ready[watch]
            for _ in range(100):  # then the next watch has its turn
                change = watch.get(0)
                if change is None:
                    break
                self._call(watch, callback, change)
            else:
                self.ready(watch, callback)

    def _call(self, watch: Watch, callback: Callable[[Change], object], change: Change) -> None:
        try:
            callback(change)
        except Exception as error:  # noqa: BLE001 -- a callback is the user's code; the next change must still reach it
            self._log(logging.ERROR, "watch", pattern=watch.pattern, status="callback-failed", error=type(error).__name__)


def is_pattern(text: str) -> bool:
    """Whether a string is a glob rather than a key. ``[*]`` is a literal star."""
    return any(character in text for character in "*?[")


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a key matches a glob of ``*``, ``?`` and ``[...]``, case-sensitively."""
    import fnmatch

    if not is_pattern(pattern):
        return pattern.__eq__
    match = re.compile(fnmatch.translate(pattern)).match
    return lambda key: match(key) is not None
