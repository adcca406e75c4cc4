"""Values that were created while the broker was away: this process keeps them until it is back."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import NamedTuple

from cachetools import LRUCache

#: Bytes of values that are kept at most; those that were not asked for the longest go first.
ROOM = 64 * 2**20


class _Value(NamedTuple):
    body: bytes
    until: float | None  #: by time.monotonic


class Kept:
    """A bounded cache in this process's memory. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: LRUCache[str, _Value] = LRUCache(ROOM, getsizeof=lambda value: len(value.body))
        _all.add(self)

    def put(self, key: str, body: bytes, ttl: float | None) -> None:
        with self._lock:
            if len(body) <= ROOM:
                self._values[key] = _Value(body, None if ttl is None else time.monotonic() + ttl)

    def get(self, key: str) -> bytes | None:
        with self._lock:
            value = self._values.get(key)
        return None if value is None or (value.until is not None and time.monotonic() >= value.until) else value.body

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
