"""Watches: each change of a key, or of the keys of a pattern, as it is folded, to an iterator or a callback.

A watch never skips in silence: a ``reset`` means "changes may have been missed here: read again". What waits for its reader is in
``inbox``.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple

from mqkv.codecs import BoundCodec
from mqkv.errors import UnreadableValue
from mqkv.inbox import Inbox
from mqkv.logfmt import Log


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
    ``timeout`` seconds. A watch that nobody holds any more ends by itself, unless it has a callback.
    """

    def __init__(self, pattern: str, wants: Callable[[str], bool], codec: BoundCodec, log: Log) -> None:
        self.pattern = pattern
        self.inbox = Inbox(pattern, wants, log, None if is_pattern(pattern) else pattern)
        self._codec = codec
        self._log = log

    def __repr__(self) -> str:
        return f"<mqkv.Watch {self.pattern!r} {'closed' if self.closed else 'open'} waiting={len(self.inbox)}>"

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        while self.inbox.wait(None):
            change = self._take()
            if change is not None:
                return change
        raise StopIteration

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self.inbox.closed

    def get(self, timeout: float) -> Change | None:
        """The next change; None if none came within ``timeout`` seconds or the watch is closed and empty."""
        end = time.monotonic() + timeout
        while self.inbox.wait(max(end - time.monotonic(), 0)):
            change = self._take()
            if change is not None:
                return change
        return None

    def _take(self) -> Change | None:
        event = self.inbox.take()
        if event is None:
            return None
        kind, key, cell, offset, written_ms, _ = event
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
        self.inbox.after_fork()

    def close(self) -> None:
        """End the watch; what has come already can still be read. Idempotent."""
        self.inbox.close()

    def notify(self, on_event: Callable[[], object]) -> None:
        """Call ``on_event``, which must be quick, whenever there may be something to ``get``, and now. (It keeps what it refers
        to alive for as long as the watch is open.)"""
        self.inbox.on_event = on_event
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
