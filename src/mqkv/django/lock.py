"""A cache's locks, by redis-py's names: those who come from django-redis change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any, Literal

import mqkv


class CacheLock:
    """A lock that one owner holds at a time, of all processes; made by ``cache.lock``. A context manager.

    It is a :class:`mqkv.Lock` (or one for each thread that uses it, so that no thread lets go of what another holds;
    ``thread_local=False``: one for all, which a thread may acquire and another release). While the holder's process lives, the
    lease is renewed by itself: a lock is not lost to others because the work takes long.
    """

    def __init__(self, make: Callable[[], mqkv.Lock], blocking: bool, blocking_timeout: float | None, thread_local: bool) -> None:
        self._make = make
        self._blocking, self._blocking_timeout = blocking, blocking_timeout
        self._local: Any = threading.local() if thread_local else SimpleNamespace()
        self._lock()  # what is wrong with it shows now

    def __repr__(self) -> str:
        return repr(self._lock()).replace("mqkv.Lock", type(self).__name__, 1)

    def _lock(self) -> mqkv.Lock:
        lock: mqkv.Lock | None = getattr(self._local, "lock", None)
        if lock is None:
            lock = self._local.lock = self._make()
        return lock

    @property
    def name(self) -> str:
        """The full key."""
        return self._lock().name

    @property
    def token(self) -> int:
        """The fencing token: a number that grows with every owner. Raises :class:`mqkv.LockLost` where it is not held."""
        return self._lock().token

    def acquire(self, *, blocking: bool | None = None, blocking_timeout: float | None = None, sleep: float | None = None) -> bool:
        """Take the lock; whether it was had. What is not given is as the lock was made. ``sleep`` is taken, and not needed: who
        waits is told.

        Where this thread holds the lock already, through another object too, there is nothing to wait for: False; and
        :class:`mqkv.LockHeld` where the wait would have no end.
        """
        wait = self._wait(blocking, blocking_timeout)
        try:
            return self._lock().acquire(wait)
        except mqkv.LockHeld:
            if wait is None:
                raise
            return False

    def _wait(self, blocking: bool | None, blocking_timeout: float | None) -> float | None:
        if not (self._blocking if blocking is None else blocking):
            return 0
        return self._blocking_timeout if blocking_timeout is None else blocking_timeout

    def release(self) -> None:
        """Let go, and wake the next. Raises :class:`mqkv.LockLost` where it is not held (any more), or by another thread."""
        self._lock().release()

    def extend(self, additional_time: float = 0, replace_ttl: bool = False) -> Literal[True]:
        """Make sure that the lock is still held: :class:`mqkv.LockLost` if it is not. The arguments are taken, and not needed: it
        is renewed by itself."""
        _ = self.token
        return True

    def reacquire(self) -> Literal[True]:
        """The same."""
        return self.extend()

    def locked(self) -> bool:
        """Whether anybody holds it, as far as memory knows."""
        return self._lock().locked()

    def owned(self) -> bool:
        """Whether this thread holds it, through this object."""
        return self._lock().owned()

    def __enter__(self) -> CacheLock:
        wait = self._wait(None, None)
        if not self._lock().acquire(wait):
            raise mqkv.LockTimeout(f"lock {self.name!r} was not to be had within {wait or 0:g} s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock().__exit__(kind, error, trace)
