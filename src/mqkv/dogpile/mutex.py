"""dogpile's creation lock, held through the stream.

dogpile shares one mutex object of a key among all threads of a region, releases it from other threads (the async creation runner)
and forgets it without a word (``get_or_create_multi``, when a later acquire raises). :class:`mqkv.Lock` is one owner's. Hence:

1. Each acquire makes a lock of its own.
2. A gate goes before it, one a key in the process (see ``gate``). Who is past it may be any thread, since a second acquire by
   the same thread is one like any other to dogpile.
3. A mutex that is collected while it is held lets go, in a thread of its own: a collector runs anywhere, where nothing may wait.
4. Every reader of an expired value tries the lock. Who was refused lately asks its memory first, so that a slow creation does not
   cost the log a record a read; and now and then the log, since only a record can break the lease of a holder that died.
5. While the broker is away the gate is all there is: one creator at a time in each process.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref

from dogpile.cache.api import CacheMutex

from mqkv import Lock, Store
from mqkv.dogpile.gate import Gate, gate_of
from mqkv.errors import Error, LockHeld, LockLost, LockTimeout
from mqkv.outage import Outage, is_outage

#: Seconds for which a refusal counts, and how many are remembered.
REFUSED, MOST_REFUSED = 1.0, 10_000


class Locks:
    """The creation locks of a backend: where they are, and how long they take."""

    def __init__(
        self,
        store: Store,
        logger: logging.Logger,
        space: str,
        ttl: float,
        timeout: float | None,
        patience: float,
        outage: Outage | None,
    ) -> None:
        self.store = store
        self.logger = logger
        self.space = space  #: names the keyspace within this process
        self.ttl = ttl
        self.timeout = timeout
        self.patience = patience  #: seconds that the broker may take for a write
        self.outage = outage  #: None: errors of the broker come out
        self._refused: dict[str, float] = {}

    @property
    def away(self) -> bool:
        return self.outage is not None and self.outage.on

    def take(self, lock: Lock, timeout: float | None) -> bool | None:
        """Whether a lock was had; None where the broker is away, and nobody can say."""
        outage = self.outage
        if outage is None:
            return lock.acquire(timeout)
        if outage.resting(writing=True):
            return None
        begun = time.monotonic()
        try:
            had = self._try(lock, timeout)
        except BaseException as error:
            if outage.told(error, begun, writing=True):
                return None
            raise
        outage.worked(writing=True)
        return had

    def _try(self, lock: Lock, timeout: float | None) -> bool:
        """Wait in tries, each twice as long as the one before: a long wait would not notice that the broker has gone."""
        begun, patience, doubtful = time.monotonic(), 2 * self.patience, False
        while True:
            now = time.monotonic()
            left = None if timeout is None else max(timeout - (now - begun), 0.0)
            last = left is not None and left <= patience
            try:
                if lock.acquire(left if last else patience):
                    return True
                doubtful = False
            except Error as error:
                # At the end of a try, a broker that is only busy has half a second to hear that we leave: ask once more.
                if last or doubtful or not is_outage(error) or time.monotonic() - now < patience:
                    raise
                doubtful = True
            if last:
                return False
            patience = min(2 * patience, max(self.ttl, patience))

    def lock(self, name: str) -> Lock:
        return self.store.lock(name, ttl=self.ttl)

    def gate(self, name: str) -> Gate:
        return gate_of(f"{self.space} {name}")

    def refused(self, name: str) -> None:
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        self._refused[name] = time.monotonic()

    def was_refused(self, name: str) -> bool:
        at = self._refused.get(name)
        return at is not None and time.monotonic() - at < min(REFUSED, self.ttl / 4)


class StreamMutex(CacheMutex):  # type: ignore[misc, unused-ignore]
    """The creation lock of one key: one holder at a time, in all processes that open the keyspace. Thread-safe; not re-entrant;
    any thread may release it.

    An acquire or release that nobody contends costs a confirmed publish each; one that another thread of this process is in the
    way of costs nothing. Waiters are woken by the release. A holder is given up when its process is silent for ``lock_timeout``
    seconds; while it lives, it keeps the lock however long the creation takes.
    """

    def __init__(self, locks: Locks, name: str) -> None:
        self._locks = locks
        self._name = name
        self._hold: weakref.finalize[[Gate, Lock | None, logging.Logger], StreamMutex] | None = None

    def __repr__(self) -> str:
        held = self._hold is not None and self._hold.alive
        return f"<mqkv.dogpile.StreamMutex {self._name!r} {'held' if held else 'not held'}>"

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; without ``wait``, only if nobody has it. Whether it was had.

        With ``wait``, and where ``lock_blocking_timeout`` passes first, raises :class:`mqkv.LockTimeout`: dogpile takes whatever
        comes back from a wait for the lock, and would release somebody else's. Raises what :class:`mqkv.Store` raises.
        """
        timeout = self._locks.timeout if wait else 0.0
        if self._take(timeout, wait):
            return True
        if wait:
            raise LockTimeout(f"{self._name!r} is being created elsewhere, for longer than lock_blocking_timeout={timeout:g} s")
        return False

    def _take(self, timeout: float | None, wait: bool) -> bool:
        begun = time.monotonic()
        locks, name, had = self._locks, self._name, False
        gate = locks.gate(name)
        lock: Lock | None = None
        if not wait and not locks.away and locks.was_refused(name) and self.locked():
            return False
        if not gate.enter(timeout):
            return False
        lock = gate.inherit() or locks.lock(name)
        try:
            left = None if timeout is None else max(timeout - (time.monotonic() - begun), 0.0)
            taken = lock.owned() or locks.take(lock, left)
            if taken is None:
                lock = None
            had = taken is not False
        except LockHeld:  # taken by this thread, past the gate
            if wait:
                raise
        finally:
            if not had:
                gate.leave(None, locks.logger)
        if had:
            # Before anything else: a lock that nobody is known to hold would be renewed for ever.
            self._hold = weakref.finalize(self, _abandoned, gate, lock, locks.logger)
            self._hold.atexit = False
        else:
            locks.refused(name)
        return had

    def release(self) -> None:
        """Let go, and wake the next. Raises :class:`mqkv.LockLost` if this mutex does not hold it.

        A lease that was lost meanwhile, or a broker out of reach, is only a warning in the log: the value was created all the
        same, and a lease that is not renewed ends by itself.
        """
        hold = self._hold
        held = None if hold is None else hold.detach()
        if held is None:
            raise LockLost(f"the creation lock {self._name!r} is not held by this mutex")
        gate, lock, logger = held[2]
        if lock is not None and self._locks.away:
            _abandoned(gate, lock, logger)  # nobody should wait for what can't be done
        else:
            gate.leave(lock, logger)

    def locked(self) -> bool:
        """Whether anybody holds it, here or in another process, as far as this process's memory knows."""
        lock, outage = self._locks.lock(self._name), self._locks.outage
        return bool(lock.locked() if outage is None else outage.call(False, lock.locked, writing=False))


def _abandoned(gate: Gate, lock: Lock | None, logger: logging.Logger) -> None:
    threading.Thread(target=gate.leave, args=(lock, logger), name="mqkv-dogpile-let-go", daemon=True).start()
