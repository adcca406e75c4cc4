"""Values that were created while the broker was away: this process keeps them until it is back."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from typing import Any, NamedTuple

from cachetools import LRUCache

#: Bytes that all that is kept may take; what was not asked for the longest goes first.
ROOM = 64 * 2**20

#: Bytes that one value takes beside its key and body.
EACH = 400


class Value(NamedTuple):
    body: bytes
    until: float | None  #: by time.monotonic
    beside: Any  #: what the stream was known to have then
    size: int

    @property
    def ttl(self) -> float | None:
        """For how many seconds it still lives."""
        return None if self.until is None else self.until - time.monotonic()


class Kept:
    """A bounded cache in this process's memory. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: LRUCache[str, Value] = LRUCache(ROOM, getsizeof=lambda value: value.size)
        _all.add(self)

    def put(self, key: str, body: bytes, ttl: float | None, beside: Any) -> None:
        size = sys.getsizeof(key) + sys.getsizeof(body) + sys.getsizeof(beside) + EACH
        value = Value(body, None if ttl is None else time.monotonic() + ttl, beside, size)
        with self._lock:
            self._values.pop(key, None)  # an older one, in any case
            if size <= ROOM:
                self._values[key] = value

    def get(self, key: str) -> Value | None:
        with self._lock:
            value = self._values.get(key)
        return None if value is None or (value.until is not None and time.monotonic() >= value.until) else value

    def drop(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


_all: weakref.WeakSet[Kept] = weakref.WeakSet()


def _after_fork() -> None:
    for kept in list(_all):
        kept.after_fork()


os.register_at_fork(after_in_child=_after_fork)
