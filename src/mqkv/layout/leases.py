"""Leases that this process holds: one thread renews them while the process lives, whatever its other threads do.

A lease is good until its ttl has passed since the last renewal that the log has taken was *sent*; who waits for the lock counts
from when it *hears* the renewal, which is later. So a holder knows that it has lost a lease before anybody else may have it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mqkv.errors import Closed, Error, StreamMissing
from mqkv.fold import Lock
from mqkv.ids import new_id
from mqkv.locks import renewal
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.streams.base import Promise

if TYPE_CHECKING:
    from mqkv.table import Table

#: A lease is renewed when so much of its ttl has passed, or so much earlier along with another one; after a failure again soon.
RENEW, AHEAD, RETRY = 1 / 3, 1 / 6, 1 / 20
#: Seconds between two looks at nothing.
IDLE = 3600.0
#: Seconds that letting go may take where nobody waits for it, and after which it is tried again.
PARTING = 1.0
#: How many owners are let go of at once, at most, while the broker is out of reach. Of others it is found out by the ttl.
MOST_PARTING = 1_000


class Waiter(Protocol):
    """Who waits for a lock."""

    @property
    def store(self) -> object: ...

    def leave(self) -> Promise[int] | None:
        """The store is being closed: give up, and let go of the place in the queue; when that is done."""


class Lease:
    """A lock that this process holds, as far as it knows. Thread-safe."""

    def __init__(
        self, table: Table, name: str, owner: str, store: object, holder: object, ttl: float, token: int, sent: float
    ) -> None:
        self.table = table
        self.name = name
        self.owner = owner
        self.store = store
        self.holder = holder  #: the thread or task that asked
        self.ttl = ttl
        self.token = token
        self.good_until = sent + ttl
        self.due = sent + ttl * RENEW
        self.lost = False

    @property
    def good(self) -> bool:
        return not self.lost and time.monotonic() < self.good_until

    def on_change(self, held: Lock | None, heard: float) -> None:
        if held is None or held.holder.owner != self.owner:
            self.lost = True

    def record(self, op: str) -> Record:
        return Record(op, self.name, id=new_id(), args={"owner": self.owner})


class Leases:
    """The leases of a keyspace."""

    def __init__(self, name: str, log: Log) -> None:
        self._name = name
        self._log = log
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._waiters: set[Waiter] = set()
        self._parting: deque[tuple[float, Table, Record]] = deque(maxlen=MOST_PARTING)  #: when it is tried again, and what
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wakes = 0.0  #: when the thread looks again by itself

    def held_by(self, name: str, holder: object) -> bool:
        """Whether this thread or task holds the lock already."""
        with self._changed:
            return any(lease.name == name and lease.holder == holder and lease.good for lease in self._leases)

    def add(self, lease: Lease) -> None:
        """Keep a lease until it is removed or lost."""
        lease.table.listen(lease.name, lease.on_change)
        with self._changed:
            self._leases.append(lease)
            self._wake(lease.due)

    def remove(self, lease: Lease) -> None:
        lease.table.unlisten(lease.name, lease.on_change)
        with self._changed:
            if lease in self._leases:
                self._leases.remove(lease)

    def wait(self, waiter: Waiter) -> None:
        """Have a waiter told when its store is closed, until ``wait_no_more``."""
        with self._changed:
            self._waiters.add(waiter)

    def wait_no_more(self, waiter: Waiter) -> None:
        with self._changed:
            self._waiters.discard(waiter)

    def leave(self, store: object) -> list[Promise[int]]:
        """Let go of what a store holds and waits for; what is then under way."""
        with self._changed:
            leases = [lease for lease in self._leases if lease.store is store]
            waiters = [waiter for waiter in self._waiters if waiter.store is store]
        under_way = [waiter.leave() for waiter in waiters]
        for lease in leases:
            lease.lost = True
            self.remove(lease)
            under_way.append(self.let_go(lease.table, lease.record("unlock")))
        return [promise for promise in under_way if promise is not None]

    def let_go(self, table: Table, unlock: Record) -> Promise[int] | None:
        """Have the log say that an owner is gone. Where that fails it is tried again: nobody renews for it, and nobody should
        have to wait for its ttl."""
        try:
            promise = table.tail.append(to_message(unlock, shared=True), PARTING)
        except Error as error:
            self._let_go_later(error, table, unlock)
            return None
        promise.then(lambda settled: self._let_go_later(settled.error(), table, unlock))
        return promise

    def _let_go_later(self, error: BaseException | None, table: Table, unlock: Record) -> None:
        if error is None or isinstance(error, (StreamMissing, Closed)) or table.failed is not None:
            return
        with self._changed:
            due = time.monotonic() + PARTING
            self._parting.append((due, table, unlock))
            self._wake(due)

    def _wake(self, due: float) -> None:
        """Have the thread look again by then. Under the lock."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name=f"mqkv-leases-{self._name}", daemon=True)
            self._thread.start()
        if due < self._wakes:
            # Kept though the lease may be gone by then: an idle thread is cheaper than one a lock, and one wake-up too many than
            # one a lock.
            self._wakes = due
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread. The stores have left by then."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due = [lease for lease in self._leases if lease.due <= now]
                parting = []
                while self._parting and self._parting[0][0] <= now:
                    parting.append(self._parting.popleft())
                if not due and not parting:
                    if self._wakes <= now:
                        dues = [lease.due for lease in self._leases] + [at for at, *_ in self._parting]
                        self._wakes = min(dues, default=now + IDLE)
                    self._changed.wait(self._wakes - now)
                    continue
            for lease in due:
                if not lease.good:
                    lease.lost = True
                    self._log(logging.WARNING, "lock", name=lease.name, status="lost")
                    self.remove(lease)
            for table in {lease.table for lease in due}:
                self._renew(table, now)
            for _, table, unlock in parting:
                self.let_go(table, unlock)

    def _renew(self, table: Table, now: float) -> None:
        """Renew the leases of a table that are due, and those with them that will be soon: in one record."""
        with self._changed:
            due = (lease for lease in self._leases if lease.table is table and lease.due - now <= lease.ttl * AHEAD)
            leases = list({lease.name: lease for lease in due}.values())
        if not leases:
            return
        record = renewal({lease.name: lease.owner for lease in leases}, new_id())
        assert record.id is not None
        id = record.id
        message = to_message(record, shared=True)
        for lease in leases:  # not again while it is under way, unless that takes long
            lease.due = now + lease.ttl * RENEW
        table.expect(id, message, record)
        try:
            promise = table.tail.append(message, min(lease.ttl for lease in leases))
        except Error:
            table.take(id)
            self._renew_again(leases)
            return

        def settled(promise: Promise[int]) -> None:
            outcome = table.take(id)
            if promise.error() is not None or outcome is None:
                self._renew_again(leases)
                return
            renewed = set(outcome.keys)
            for lease in leases:
                if lease.name in renewed:
                    lease.good_until = max(lease.good_until, now + lease.ttl)
                else:
                    lease.lost = True

        promise.then(settled)

    def _renew_again(self, leases: Sequence[Lease]) -> None:
        with self._changed:
            now = time.monotonic()
            for lease in leases:
                lease.due = min(lease.due, now + lease.ttl * RETRY)
                self._wake(lease.due)
