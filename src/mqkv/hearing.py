"""How long the holders of a table's locks have been silent, and who is told how a lock stands. No I/O; one thread at a time.

Rules:

1. Only the holder is heard: by the record that granted it the lock, and by its renewals. Those who wait say nothing about it.
2. Silence counts from when this process heard the holder last, by a clock that only measures; or from earlier, where the log says
   for how long others had heard nothing when they went away (see ``mqkv.locks``).
3. What a process has counted outlives the table: who tries again with another store goes on counting.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mqkv.fold import Lock
from mqkv.streams.base import HeaderValue

#: How many silences a process remembers that somebody has waited through.
REMEMBERED = 10_000

#: What a listener to a lock is told: how it stands now (None: free), and since when its holder is silent, by ``time.monotonic``.
LockListener = Callable[["Lock | None", float], None]


class _Silence(NamedTuple):
    owner: str
    renewed: int
    since: float


class Memory:
    """Since when holders are silent, for the tables of a process. Thread-safe."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self._since: dict[tuple[str, int], float] = {}

    def remember(self, owner: str, renewed: int, since: float) -> float:
        """The earliest that was told. (An owner is the id of a record, which is no other's in any stream.)"""
        key = owner, renewed
        with self.mutex:
            known = self._since.get(key)
            if known is not None and known <= since:
                return known
            self._since[key] = since
            if len(self._since) > REMEMBERED:
                del self._since[next(iter(self._since))]
        return since

    def forget(self, owner: str, renewed: int) -> None:
        with self.mutex:
            self._since.pop((owner, renewed), None)


_PROCESS = Memory()


class Hearing:
    """What a table hears of its locks. Not thread-safe: called under the table's lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, memory: Memory = _PROCESS) -> None:
        self._clock = clock
        self._memory = memory
        self._silences: dict[str, _Silence] = {}
        self._listeners: dict[str, list[LockListener]] = {}

    def note(self, name: str, held: Lock | None) -> None:
        """A record was folded: this is how a lock stands now."""
        if held is None:
            self._silences.pop(name, None)
            return
        owner, _, _, renewed, silent_ms = held.holder
        now = self._clock()
        known = self._silences.get(name)
        since = known.since if known is not None and (known.owner, known.renewed) == (owner, renewed) else now
        self._silences[name] = _Silence(owner, renewed, min(since, now - silent_ms / 1000))

    def since(self, name: str, held: Lock | None) -> float:
        """Since when its holder is silent, for all that this process has heard; which is remembered from now on."""
        if held is None:
            return self._clock()
        known = self._silences.get(name)
        since = self._clock() - held.holder.silent_ms / 1000 if known is None else known.since
        return self._memory.remember(held.holder.owner, held.holder.renewed, since)

    def forget(self) -> None:
        """The log was rewritten: what was heard stands in it no more, or at another place."""
        for silence in self._silences.values():
            self._memory.forget(silence.owner, silence.renewed)
        self._silences.clear()

    def listen(self, name: str, listener: LockListener) -> None:
        self._listeners.setdefault(name, []).append(listener)

    def unlisten(self, name: str, listener: LockListener) -> None:
        left = [other for other in self._listeners.get(name, ()) if other != listener]
        if left:
            self._listeners[name] = left
        else:
            self._listeners.pop(name, None)

    def tell(self, name: str, locks: Mapping[str, Lock]) -> None:
        listeners = self._listeners.get(name)
        if listeners:
            held = locks.get(name)
            since = self.since(name, held)
            for listener in listeners:
                listener(held, since)

    def tell_all(self, locks: Mapping[str, Lock]) -> None:
        for name in list(self._listeners):
            self.tell(name, locks)


def witness(held: Lock, since: float, now: float) -> dict[str, HeaderValue]:
    """What is said of the holder by who goes away without the lock, where the log does not say as much already."""
    silent_ms = int((now - since) * 1000)
    if silent_ms <= held.holder.silent_ms:
        return {}
    return {"holder": held.holder.owner, "renewed": held.holder.renewed, "silent_ms": silent_ms}


def _after_fork() -> None:
    _PROCESS.mutex = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
