"""The engine of ``file:///folder``: appends, deliveries to this process's sinks, and the thread that waits for other processes.

It knows messages and offsets, no key. Rules:

1. An append holds the engine's lock (threads) and then the shared lock (processes), catches up, inserts one row, stores the
   signal, and gives the message to the sinks: nothing came between, so nothing need be read back.
2. A signal that equals what the tails know means that nothing that has returned anywhere is missing here (``shared.py``, rule 1).
3. No connection of SQLite lives through a fork (``forks.py``).
4. What the folder holds is looked at before every use (one ``stat``): files that nobody can open any more are let go of.
5. ``?sync=normal`` (the default): what returned survives the kill of any process; a power loss may take the last commits, and
   never damages the database. ``?sync=full``: it survives a power loss as well, and an append waits for the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mqkv.errors import Closed, ConnectionFailed, Error, StreamDamaged, WriteTimeout
from mqkv.logfmt import Log
from mqkv.streams.base import Delivery, Engine, Message, Piece, Promise, Sink, Start, Tail
from mqkv.streams.file import database
from mqkv.streams.file.database import INDEX_EVERY, INSERT, Database, Row, blob_of, checksum, mapped
from mqkv.streams.file.forks import enlist
from mqkv.streams.file.shared import LISTENING, SIGNAL, Shared, say
from mqkv.streams.file.tails import FileTail, Stream, Tails, missing
from mqkv.url import URL

T = TypeVar("T")

#: How long the listening thread waits for a signal at most.
LISTEN = 30.0
#: What a call without a deadline of its own may wait for locks.
PATIENCE = 10.0
UNOPENED = (0,)


class FileEngine(Engine):
    """Streams in a folder. Thread-safe, and safe to share between processes of one machine (not on a network file system)."""

    blocks = True

    def __init__(self, url: URL, *, logger: logging.Logger | None = None) -> None:
        self.url = url
        self.signal = UNOPENED
        self._log = Log(logger)
        self._sync = url.option("sync") or "normal"
        self._lock = threading.RLock()
        self._shared: Shared | None = None
        self._database: Database | None = None
        self._tails = Tails(self._log, url.path)
        self._listener: threading.Thread | None = None
        self._heard: Shared | None = None  #: whose signal the listener waits for
        self._closed = False
        self._forking = False
        enlist(self)

    @property
    def damaged(self) -> int:
        """How many records were not delivered, since their checksum was wrong."""
        return self._tails.damaged

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._database else "idle"
        return f"<FileEngine {self.url} sync={self._sync} {state} at={self._tails.known}>"

    # The interface

    def declare(self, stream: str, max_age: int | None, timeout: float) -> None:
        def work(base: Database) -> None:
            if base.find(stream) is None:
                self._exclusively(timeout, lambda: base.declare(stream, max_age))
                self._log.debug("declare", stream=stream)

        self._with(work, timeout, writing=True)

    def open(self, stream: str, start: Start | int, sink: Sink) -> Tail:
        tail = FileTail(self, sink)
        try:
            self._feed(tail, stream, start)
        except Closed:
            raise
        except Error as error:
            tail.closed = True
            tail.ready.reject(error)
        else:
            tail.ready.resolve(None)
        return tail

    def last(self, stream: str, timeout: float) -> Delivery | None:
        def work(base: Database) -> Row | None:
            found = base.find(stream)
            if found is None:
                raise missing(stream)
            row = base.newest(found[0])
            if row is not None and row[0] > self._tails.known:
                # Its writer has committed and not told yet, or was killed in between: who sees it here must find it in tables.
                self._tails.catch_up(base)
            return row

        row = self._with(work, timeout)
        if row is None:
            return None
        message = self._tails.read(row, stream)
        if message is None:
            raise StreamDamaged(f"the newest record of stream {stream} in {self.url.path} is damaged: write it again")
        return row[0], message

    def begin_read(self, stream: str, start: int, size: int, timeout: float) -> Promise[Piece]:
        try:
            return Promise.of(self._with(lambda base: self._tails.piece(base, stream, start, size), timeout))
        except Error as error:
            promise: Promise[Piece] = Promise()
            promise.reject(error)
            return promise

    def delete(self, stream: str, timeout: float) -> None:
        def work(base: Database) -> None:
            found = base.find(stream)
            if found is not None:
                assert self._shared is not None
                self._exclusively(timeout, lambda: self._tell(base.delete(found[0], _now())))
                self._tails.catch_up(base)

        self._with(work, timeout, writing=True)

    def catch_up(self) -> None:
        shared = self._shared
        if self.signal[0] != self._tails.known or self._closed or (shared is not None and shared.gone()):
            self._with(self._tails.catch_up, PATIENCE)

    def listen(self) -> None:
        def work(base: Database) -> None:
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="mqkv-file-listen", daemon=True)
                self._listener.start()

        self._with(work, PATIENCE)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            listener, shared, base = self._listener, self._shared, self._database
            self._listener = self._shared = self._database = None
            self._tails.clear()
            self.signal = UNOPENED
            if base is not None:
                base.close()
        if listener is not None and listener is not threading.current_thread():
            while listener.is_alive():  # a wake can come just before its wait begins
                if self._heard is not None:
                    self._heard.wake(SIGNAL)
                listener.join(0.01)
        self._heard = None
        if shared is not None:
            shared.close()

    # Appending

    def append(self, stream: Stream, message: Message, timeout: float) -> Promise[int]:
        blob = blob_of(message)
        lock = self._lock
        nested = lock._is_owned()  # type: ignore[attr-defined]
        try:
            if not lock.acquire(timeout=timeout):
                return _broken(WriteTimeout(f"other threads kept {self.url.path} busy for {timeout:g} s; nothing was written"))
            base = self._base()
            shared, tails = self._shared, self._tails
            assert shared is not None
            if stream.log is not tails:
                raise missing(stream.name)
            if not shared.acquire(timeout):
                return _broken(WriteTimeout(f"other processes kept {self.url.path} busy for {timeout:g} s; nothing was written"))
            try:
                offset = self._insert(base, stream, blob)
                shared.words[SIGNAL] = offset
            finally:
                shared.release()
            live = tails.streams.get(stream.id)
            if live is not None:
                batch = ((offset, message),)
                for tail in live.tails:
                    tail.sink.deliver(batch)
            tails.known = offset
            if offset - base.indexed >= INDEX_EVERY:
                self._keep_house(base, stream, timeout)
        except Closed:
            raise
        except (Error, OSError, *database.Failure) as error:
            return _broken(mapped(error, self.url.path, writing=True))
        finally:
            # Here, and in a loop: a signal's exception may have come between an acquire and what follows it, or before it.
            try:
                lock.release()
                while not nested:
                    lock.release()
            except RuntimeError:
                pass
        return Promise.of(offset)

    def _insert(self, base: Database, stream: Stream, blob: bytes) -> int:
        """Add a row after the newest. With the shared lock held."""
        tails = self._tails
        if self.signal[0] != tails.known:
            tails.catch_up(base)
        for _ in range(2):
            if stream.id not in tails.streams and not base.exists(stream.id):
                raise missing(stream.name)
            at, offset = int(time.time() * 1000), tails.known + 1
            try:
                base.execute(INSERT, (offset, stream.id, at, checksum(offset, stream.id, at, blob), blob))
            except database.Conflict:
                # A writer was killed between its commit and its signal. It was the only one, so this happens once.
                tails.catch_up(base)
            else:
                return offset
        raise StreamDamaged(f"the database in {self.url.path} is damaged: restore it from a backup, or move it away")

    def _keep_house(self, base: Database, stream: Stream, timeout: float) -> None:
        """Now and then: bring the index up to date, and drop what is too old. Its failure is not the append's."""

        def work() -> None:
            base.index()
            if stream.max_age is not None:
                base.trim(stream.id, _now() - stream.max_age * 1000)

        try:
            self._exclusively(timeout, work)
        except (Error, OSError, *database.Failure) as error:
            self._log(logging.WARNING, "housekeeping", path=self.url.path, error=error)

    # Tails

    def _feed(self, tail: FileTail, stream: str, start: Start | int) -> None:
        """Deliver what there is, some at a time, then have the tail get what comes."""
        self._with(lambda base: self._tails.begin(base, tail, stream, start), PATIENCE)
        complete = False
        while not complete and not tail.closed:
            batch, complete = self._with(lambda base: self._tails.load(base, tail), PATIENCE)
            if batch and not complete:
                tail.sink.deliver(batch)

    def detach(self, tail: FileTail) -> None:
        with self._lock:
            self._tails.detach(tail)

    # Connecting and locking

    def _with(self, work: Callable[[Database], T], timeout: float, *, writing: bool = False) -> T:
        """Do something with the database, under the lock, and have its errors be ours."""
        lock = self._lock
        nested = lock._is_owned()  # type: ignore[attr-defined]
        try:
            if not lock.acquire(timeout=timeout):
                kind = WriteTimeout if writing else ConnectionFailed
                raise kind(f"other threads kept {self.url.path} busy for {timeout:g} s: try again")
            return work(self._base())
        except (Error, OSError, *database.Failure) as error:
            ours = mapped(error, self.url.path, writing=writing)
            if ours is error:
                raise
            raise ours from error
        finally:
            # Here, and in a loop: a signal's exception may have come between an acquire and what follows it, or before it.
            try:
                lock.release()
                while not nested:
                    lock.release()
            except RuntimeError:
                pass

    def _exclusively(self, timeout: float, work: Callable[[], None]) -> None:
        """Do something that writes, as the only process."""
        shared = self._shared
        assert shared is not None
        if not shared.acquire(timeout):
            raise WriteTimeout(f"other processes kept {self.url.path} busy for {timeout:g} s; nothing was written")
        try:
            work()
        finally:
            shared.release()

    def _tell(self, offset: int) -> None:
        assert self._shared is not None
        self._shared.words[SIGNAL] = offset

    def _base(self) -> Database:
        """The database that is in the folder now. Under the lock."""
        if self._shared is not None and self._shared.gone():
            self._lose()
        return self._database or self._connect()

    def _lose(self) -> None:
        """The folder was removed under us: what is in our hands is nobody's, and all streams are gone. Under the lock."""
        base, shared, tails = self._database, self._shared, self._tails
        assert shared is not None
        self._log(logging.ERROR, "folder-removed", path=self.url.path)
        self._database = self._shared = None
        self.signal = UNOPENED
        self._tails = Tails(self._log, self.url.path)
        self._tails.damaged = tails.damaged
        if base is not None:
            base.close()
        shared.words[SIGNAL] += 1  # other processes that hold these files look, too
        shared.wake(SIGNAL)
        shared.close()
        tails.end_all()

    def _connect(self) -> Database:
        if self._closed:
            raise Closed(f"the engine of {self.url} was closed")
        try:
            Path(self.url.path).mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._shared is None:
                self._shared = Shared(self.url.path)
        except OSError as error:
            raise ConnectionFailed(
                f"can't use the folder {self.url.path} ({say(error)}): choose one that this user may write"
            ) from error
        shared, again = self._shared, self._tails.known >= 0

        def work() -> None:
            base = self._database = Database(self.url.path, self._sync)
            end = base.end()
            if shared.words[SIGNAL] != end:  # a new folder, a killed writer, or a power loss
                shared.words[SIGNAL] = end
            if not again:
                self._tails.known = end

        try:
            self._exclusively(PATIENCE, work)
        except BaseException:
            if not again:
                self._shared = None
                shared.close()
            raise
        shared.guard(database.NAME)
        self.signal = shared.words
        self._log.debug("connect", path=self.url.path, sync=self._sync)
        assert self._database is not None
        return self._database

    def _listen(self) -> None:
        shared = self._shared
        while shared is not None and not self._closed:
            self._heard = shared
            shared.words[LISTENING] = int(time.monotonic() + LISTEN * 2)
            signal = shared.words[SIGNAL]
            try:
                self.catch_up()
            except Closed:
                return
            except Error as error:
                self._log(logging.ERROR, "listen", path=self.url.path, error=error)
            shared.wait(SIGNAL, signal, LISTEN)
            with self._lock:  # or it is between two folders
                shared = self._shared or shared

    # Forking

    def before_fork(self) -> None:
        self._forking = self._lock.acquire(timeout=PATIENCE)
        if self._forking and self._database is not None:
            base, self._database = self._database, None
            base.close()

    def after_fork_in_parent(self) -> None:
        if self._forking:
            self._forking = False
            self._lock.release()

    def after_fork(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._lock = threading.RLock()
        self._listener = self._heard = None
        self._tails = Tails(self._log, self.url.path)
        if self._database is not None:  # it could not be closed before the fork: never touch it, never finalise it
            _inherited.append(self._database)
            self._database = None
        if self._shared is not None:
            self._shared.close()


#: Connections that a parent could not close before it forked.
_inherited: list[Database] = []


def _now() -> int:
    return int(time.time() * 1000)


def _broken(error: Error) -> Promise[int]:
    promise: Promise[int] = Promise()
    promise.reject(error)
    return promise
