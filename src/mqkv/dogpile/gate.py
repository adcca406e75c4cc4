"""The gate before a creation lock: threads of one process wait here, and the process stands in the stream's queue once.

All who wait will find the value that the first has created. So they hand the lock on among themselves, still held, and the stream
sees one holder; for a moment only, since other processes may be waiting too.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time

from dogpile.util import NameRegistry

from mqkv import Lock
from mqkv.errors import Error

#: For how many seconds the threads of a process hand a lock on.
HANDED_ON = 0.1


class Gate:
    """One thread at a time is past the gate; any thread may leave for it. Thread-safe."""

    def __init__(self, identifier: object) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._taken = False
        self._waiting = 0
        self._left: Lock | None = None  #: held still, for who enters next
        self._until: float | None = None

    def enter(self, timeout: float | None) -> bool:
        """Wait for one's turn; whether it came within ``timeout`` seconds."""
        orphan = None
        try:
            with self._changed:
                self._waiting += 1
                try:
                    entered = self._changed.wait_for(lambda: not self._taken, timeout)
                    self._taken = self._taken or entered
                    return entered
                except BaseException:  # of a signal's handler; it may have been one's turn
                    self._changed.notify()
                    if self._waiting == 1 and not self._taken:
                        orphan, self._left = self._left, None
                    raise
                finally:
                    self._waiting -= 1
        finally:
            if orphan is not None:
                orphan.release()

    def inherit(self) -> Lock | None:
        """The lock that the one before has left, if it is still held."""
        lock, self._left = self._left, None
        return lock if lock is not None and lock.owned() else None

    def leave(self, lock: Lock | None, logger: logging.Logger) -> None:
        """Let the next one in: with the lock, or after it was released."""
        with self._changed:
            if lock is not None and self._waiting and lock.owned():
                now = time.monotonic()
                self._until = self._until or now + HANDED_ON
                if now < self._until:
                    self._left, self._taken = lock, False
                    self._changed.notify()
                    return
            self._until = None
        try:
            if lock is not None:
                _release(lock, logger)
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify()


def _release(lock: Lock, logger: logging.Logger) -> None:
    try:
        lock.release()
    except Error as error:
        logger.warning("at=lock name=%s status=lost error=%s", json.dumps(lock.name), type(error).__name__)


_gates = NameRegistry(Gate)


def gate_of(name: str) -> Gate:
    """The gate of this name; it is kept while somebody has it."""
    gate: Gate = _gates.get(name)
    return gate


def _after_fork() -> None:
    """What threads of the parent hold must not stop the child."""
    global _gates
    _gates = NameRegistry(Gate)


os.register_at_fork(after_in_child=_after_fork)
