"""Locks that one owner holds at a time, of all processes; decided by log order (see ``mqkv.locks``)."""

from __future__ import annotations

import logging
import math
import threading
import time
from types import TracebackType
from typing import Any

from mqkv import check
from mqkv.core import Core
from mqkv.errors import (
    Closed,
    ConnectionFailed,
    Error,
    InvalidOption,
    LockHeld,
    LockLost,
    LockTimeout,
    StreamMissing,
    WriteTimeout,
)
from mqkv.fold import Lock as Held
from mqkv.fold import Outcome
from mqkv.hearing import witness
from mqkv.ids import new_id
from mqkv.layout import Keyspace
from mqkv.layout.leases import Lease
from mqkv.locks import renewal
from mqkv.record import Record
from mqkv.streams.base import HeaderValue, Promise
from mqkv.table import Table
from mqkv.view import Rebuilding
from mqkv.waiting import Deadline, run, wait

#: How much later than the one before it in the queue a waiter breaks a silent holder's lease, in seconds.
STAGGER = 0.25

#: Seconds that a broker has at least for an answer, whatever a lock's timeout.
LEAST = 0.5

#: Seconds after which a waiter looks again that was not told how the lock stands, as its table is being rebuilt.
UNTOLD = 60.0

_OWN: Any = object()

#: What an append to a purged stream comes to, before and after the keyspace has let go of its table.
_GONE = (StreamMissing, Closed)

#: What an append comes to that has left nothing behind.
_NOTHING_WRITTEN = (StreamMissing, ConnectionFailed, WriteTimeout)


class LockCore:
    """What locks for threads and for event loops have in common."""

    def __init__(self, core: Core, name: str, ttl: float, timeout: float | None) -> None:
        name = check.shared_key(name)
        check.positive("ttl", ttl)
        self._core = core
        self._name = name
        self._ttl = (check.ttl_ms(ttl) or 0) / 1000
        self._timeout = _checked(timeout)
        self._lease: Lease | None = None
        self._keyspace: Keyspace | None = None

    def __repr__(self) -> str:
        return f"<mqkv.{type(self).__name__} {self._name!r} {'held' if self.owned() else 'not held'}>"

    @property
    def name(self) -> str:
        return self._name

    @property
    def token(self) -> int:
        """The fencing token: a number that grows with every owner. Hand it to what the lock protects, which refuses a smaller one
        than it has seen. Raises :class:`mqkv.LockLost` where the lock is not held."""
        lease = self._lease
        if lease is None or not self.owned():
            raise LockLost(f"lock {self._name!r} is not held by this one")
        return lease.token

    def owned(self) -> bool:
        """Whether this object holds the lock, for all that is known here. Costs nothing."""
        lease = self._lease
        return lease is not None and lease.good and self._keyspace is self._core._keyspace

    async def _acquire(self, timeout: Any, holder: object) -> bool:
        limit = self._timeout if timeout is _OWN else _checked(timeout)
        core = self._core
        keyspace = core._open_keyspace()
        if self.owned() or keyspace.leases.held_by(self._name, holder):
            raise LockHeld(f"lock {self._name!r} is held here already: it is not re-entrant")
        until = None if limit is None else time.monotonic() + limit
        lease: Lease | None = None
        while lease is None:
            try:
                lease = await self._attempt(keyspace, holder, until)
                if lease is None:
                    return False
            except _GONE:
                # Purged under us, with all who held and waited: ask again, in the stream that is there now.
                if core._keyspace is not keyspace:
                    raise
                if until is not None and time.monotonic() >= until:
                    return False
        self._keyspace, self._lease = keyspace, lease
        keyspace.leases.add(lease)
        core._log.debug("lock", name=self._name, status="acquired", token=lease.token)
        return True

    async def _attempt(self, keyspace: Keyspace, holder: object, until: float | None) -> Lease | None:
        core = self._core
        patience = core._read_timeout if until is None else max(until - time.monotonic(), LEAST)
        table = await keyspace.lock_table(Deadline(min(patience, core._read_timeout), WriteTimeout))
        if table is None:
            raise LockLost(f"lock {self._name!r} has no stream to be in")
        attempt = _Attempt(core, keyspace, table, self._name, self._ttl)
        granted = await attempt.make(until)
        return None if granted is None else Lease(table, self._name, attempt.owner, core, holder, self._ttl, *granted)

    async def _release(self) -> None:
        lease, keyspace = self._lease, self._keyspace
        if lease is None or keyspace is None or keyspace is not self._core._keyspace:
            raise LockLost(f"lock {self._name!r} is not held by this one: only who acquired it can release it")
        self._lease = None
        keyspace.leases.remove(lease)
        unlock = lease.record("unlock")
        try:
            _, outcome = await keyspace.write_to(lease.table, unlock, self._core._writing(), confirm=True, shared=True)
        except _GONE:
            outcome = None
        except BaseException:
            keyspace.leases.let_go(lease.table, unlock)
            raise
        if outcome is None or not outcome.done:
            raise LockLost(f"the lease of lock {self._name!r} ran out before it was released: others may have held it")
        self._core._log.debug("lock", name=self._name, status="released")

    async def _locked(self) -> bool:
        keyspace, deadline = self._core._open_keyspace(), self._core._reading()
        while True:
            table = await keyspace.lock_table(deadline, declare=False)
            try:
                return table is not None and table.lock_state(self._name) is not None
            except Rebuilding:  # since just now: that is waited for
                continue

    async def _enter(self, holder: object) -> None:
        if not await self._acquire(_OWN, holder):
            raise LockTimeout(f"lock {self._name!r} was not to be had within {self._timeout:g} s")

    async def _exit(self, error: BaseException | None) -> None:
        try:
            await self._release()
        except Error as problem:
            if error is None:
                raise
            self._core._log(logging.WARNING, "lock", name=self._name, status="lost", error=type(problem).__name__)


class _Attempt:
    """One wait for a lock."""

    def __init__(self, core: Core, keyspace: Keyspace, table: Table, name: str, ttl: float) -> None:
        self.store = self._core = core
        self._keyspace, self._table, self._name, self._ttl = keyspace, table, name, ttl
        self.owner = new_id()
        self._until: float | None = None
        self._granted: Promise[int | None] = Promise()
        #: How the lock stands, and since when its holder is silent: one tuple, since another thread sets it.
        self._heard: tuple[Held | None, float] = None, 0.0
        self._asked = False  #: whether the log may hold a record that asks for the lock
        self._queued = False

    async def make(self, until: float | None) -> tuple[int, float] | None:
        """The token, and since when the lease counts; None if ``until`` came first."""
        self._until = until
        self._keyspace.leases.wait(self)
        try:
            granted = await self._make(until)
            self._check_open()
            return granted
        except BaseException as error:
            self._unlock()
            if isinstance(error, Error):
                self._check_open()
            raise
        finally:
            self._keyspace.leases.wait_no_more(self)
            self._table.unlisten(self._name, self._on_change)

    def leave(self) -> Promise[int] | None:
        """In the thread that closes the store, which has said already that it is closed."""
        under_way = self._unlock()
        self._granted.resolve(None)
        return under_way

    def _unlock(self) -> Promise[int] | None:
        """Have no place in the queue, and not the lock, whatever the log says of it."""
        if not self._asked:
            return None
        return self._keyspace.leases.let_go(self._table, self._record("unlock", owner=self.owner, **self._silence()))

    def _check_open(self) -> None:
        if self._core._keyspace is not self._keyspace:
            raise Closed(f"the store was closed while lock {self._name!r} was waited for")

    async def _make(self, until: float | None) -> tuple[int, float] | None:
        waits = until is None or until > time.monotonic()
        while True:
            self._check_open()
            if not waits:
                self._on_change(*self._table.lock_heard(self._name))
            sent = time.monotonic()
            offset, outcome = await self._ask(waits)
            if outcome.done:
                return offset, sent
            if outcome.why:
                raise LockTimeout(f"lock {self._name!r} is not to be had: {outcome.why} for it already")
            self._granted, self._queued = Promise(), waits
            self._table.listen(self._name, self._on_change)
            if not waits:
                if not await self._break_silent(0):
                    return None
                waits = until is None or until > time.monotonic()
            else:
                self._keyspace.engine.listen()
                granted = await self._queue(until)
                if granted is not None or self._queued:
                    return granted
            self._table.unlisten(self._name, self._on_change)
            self.owner = new_id()

    async def _queue(self, until: float | None) -> tuple[int, float] | None:
        """Wait for one's turn. None: ``until`` came first, or the place in the queue is gone (then ``_queued`` is False)."""
        while True:
            self._check_open()
            now = time.monotonic()
            held, silent_since = self._heard
            patience = UNTOLD if held is None else silent_since + _ttl(held) + self._position(held) * STAGGER - now
            left = patience if until is None else min(patience, until - now)
            if left > 0 and not await wait(self._granted, left):
                continue
            if self._granted.done():
                token = self._granted.result()
                if token is None:
                    self._queued = False
                    return None
                # Others may have heard of the grant before: the lease counts from here, if it is still ours when they hear this.
                sent = time.monotonic()
                _, outcome = await self._append(renewal({self._name: self.owner}, new_id()))
                if outcome.done:
                    return token, sent
                self._queued = False
                return None
            if until is not None and time.monotonic() >= until:
                await self._write("unlock", owner=self.owner, **self._silence())
                return None
            if held is not None:
                await self._break_silent(self._position(held))

    def _position(self, held: Held) -> int:
        for at, owner in enumerate(list(held.queue)):
            if owner == self.owner:
                return at
        return 0

    async def _break_silent(self, position: int) -> bool:
        """Break the lease of a holder that was silent for its ttl."""
        held, silent_since = self._heard
        if held is None:
            return True
        if time.monotonic() - silent_since < _ttl(held) + position * STAGGER:
            return False
        _, outcome = await self._write("break", owner=held.holder.owner, renewed=held.holder.renewed)
        if outcome.done:
            self._core._log(logging.WARNING, "lock", name=self._name, status="lease-broken")
        return outcome.done

    def _silence(self) -> dict[str, HeaderValue]:
        held, since = self._heard
        return {} if held is None or held.holder.owner == self.owner else witness(held, since, time.monotonic())

    def _on_change(self, held: Held | None, silent_since: float) -> None:
        self._heard = held, silent_since
        if held is not None and held.holder.owner == self.owner:
            self._granted.resolve(held.holder.token)
        elif self._queued and (held is None or self.owner not in held.queue):
            self._granted.resolve(None)

    async def _ask(self, waits: bool) -> tuple[int, Outcome]:
        silence = {} if waits else self._silence()
        args: dict[str, HeaderValue] = {"ttl_ms": round(self._ttl * 1000), "wait": waits, **silence}
        record = Record("lock", self._name, id=self.owner, args=args)
        self._asked = True
        try:
            return await self._append(record)
        except _NOTHING_WRITTEN:
            self._asked = False
            raise

    async def _write(self, op: str, **args: HeaderValue) -> tuple[int, Outcome]:
        return await self._append(self._record(op, **args))

    def _record(self, op: str, **args: HeaderValue) -> Record:
        return Record(op, self._name, id=new_id(), args=args)

    async def _append(self, record: Record) -> tuple[int, Outcome]:
        deadline = _answer(self._core, self._until)
        offset, outcome = await self._keyspace.write_to(self._table, record, deadline, confirm=True, shared=True)
        return offset, Outcome("lock", done=False) if outcome is None else outcome


class Lock(LockCore):
    """A lock for threads and processes. Made by :meth:`mqkv.Store.lock`; a context manager.

    Who waits is woken by the release, in the order in which they asked. The holder's lease is renewed in the background while its
    process lives; a holder that is killed or cut off is given up after ``ttl`` seconds of silence. Not re-entrant: a thread that
    holds the lock and asks again gets :class:`mqkv.LockHeld`. An uncontended acquire or release costs a confirmed publish each.
    """

    def acquire(self, timeout: float | None = _OWN) -> bool:
        """Take the lock; wait for up to ``timeout`` seconds (0: not at all; None: as long as it takes; by default what the lock
        was made with). Whether it was had. Raises :class:`mqkv.ConnectionFailed` where the broker is out of reach."""
        return run(self._acquire(timeout, threading.get_ident()))

    def release(self) -> None:
        """Let go, and wake the next. Raises :class:`mqkv.LockLost` where the lock is not held any more, or by another object."""
        run(self._release())

    def locked(self) -> bool:
        """Whether anybody holds it, as far as memory knows."""
        return run(self._locked())

    def __enter__(self) -> Lock:
        run(self._enter(threading.get_ident()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        run(self._exit(error))


def _checked(timeout: object) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < math.inf:
        raise InvalidOption(f"a lock's timeout is a number of seconds, 0 for not waiting, or None, not {timeout!r}")
    return float(timeout)


def _answer(core: Core, until: float | None) -> Deadline:
    """By when the broker must have answered: one that is silent holds nobody up for much longer than was asked for."""
    timeout = core._write_timeout
    return Deadline(timeout if until is None else min(timeout, max(until - time.monotonic(), LEAST)), WriteTimeout)


def _ttl(held: Held) -> float:
    return held.holder.ttl_ms / 1000
