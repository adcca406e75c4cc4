"""The per-key layout: a stream a key, and a directory stream that lists the keys.

Reads of a key that was not preloaded go to its stream and are exact. Writes keep a tail open on the key's stream, since an append
learns its offset there; the tails that were used least recently are closed when there are too many.

The newest record alone tells the value of a key, with one exception: where it is marked as a retry, an earlier copy may stand
before records of others. Then, and where it is no record at all, the table is folded from the beginning of the stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable

from cachetools import LRUCache

from mqkv.check import RESERVED, queue_name
from mqkv.codecs import DEFAULT
from mqkv.errors import ReadTimeout, StreamMissing
from mqkv.fold import Cell, Outcome
from mqkv.ids import new_id
from mqkv.layout.base import NOTHING, STALL, Keyspace, Options, attached, loaded, rebuilt, settled
from mqkv.layout.patterns import follow_pattern
from mqkv.layout.shared import SharedKeyspace
from mqkv.logfmt import Log
from mqkv.record import Record, Unreadable, parse, to_message
from mqkv.streams.base import Engine, Promise, Start
from mqkv.table import Shown, Subscriber, Table
from mqkv.watch import Watch, is_pattern

#: Tails that are kept open at most for keys that nobody preloaded or watches.
MAX_TAILS = 4_096

DIRECTORY = f"{RESERVED}keys__"


class PerKeyKeyspace(Keyspace):
    """Many streams, each folded into a table of one key when it is followed."""

    def __init__(self, engine: Engine, prefix: str, options: Options, log: Log) -> None:
        super().__init__(engine, options, log, prefix)
        self.prefix = prefix
        self._shown: dict[str, Shown] = {}
        self.cells = self._shown
        self._directory = SharedKeyspace(
            engine, queue_name(prefix, DIRECTORY), options._replace(codec=DEFAULT, max_entries=None, max_staleness=None), log
        )
        self._lock = threading.RLock()
        self._tables: dict[str, Table] = {}
        self._idle: LRUCache[str, Table] = _Idle(MAX_TAILS, self)
        self._opening: dict[str, Promise[None]] = {}
        self._preloaded: LRUCache[str, bool] = _Preloaded(options.max_entries or float("inf"), self)

    def stream(self, key: str) -> str:
        return queue_name(self.prefix, key)

    def read(self, key: str, timeout: float, *, fresh: bool = False) -> Cell | None:
        table = self._tables.get(key)
        if table is not None:
            if table.is_pending(key):
                return table.read(key)
            if table.serving and not fresh:
                return self._followed(key, timeout)
        if key in self._preloaded and not fresh:
            return self._followed(key, timeout)
        return self._newest(key, timeout)

    def peek(self, key: str) -> Cell | None:
        table = self._tables.get(key)
        if table is None or not (table.serving or table.is_pending(key)):
            return None
        return table.read(key)

    def write(
        self, record: Record, timeout: float, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        def writable() -> Table:
            return self._writable(record.key, max_age, timeout) if create else self._open(record.key, timeout)

        try:
            return self.write_to(writable(), record, timeout, confirm=confirm, shared=False)
        except StreamMissing:
            self._forget(record.key)
            if not create:
                raise
            # Deleted under us: make it anew, once.
            return self.write_to(writable(), record, timeout, confirm=confirm, shared=False)

    def snapshot(self, timeout: float) -> dict[str, Cell]:
        keys = list(self._directory.snapshot(timeout))
        tables = self._open_all(keys, timeout)
        if self.signal[0] != self.seen:
            self.catch_up()
        cells = ((key, table.read(key)) for key, table in tables.items())
        return {key: cell for key, cell in cells if cell is not None}

    def preload(self, keys: Iterable[str], timeout: float) -> None:
        keys = list(dict.fromkeys(keys))
        with self._lock:
            for key in keys:
                self._preloaded[key] = True
        for key, table in self._open_all(keys, timeout).items():
            if key in self._preloaded:
                self._serve_key(key, table)

    def clear(self, record: Record, timeout: float) -> None:
        promises = []
        for key in self.snapshot(timeout):
            table = self._writable(key, None, timeout)
            message = to_message(Record("delete", key, written_ms=record.written_ms, id=new_id()), shared=False)
            promises.append((table, table.tail.append(message, timeout)))
        for table, promise in promises:
            settled(promise, timeout + 1, table.stream)

    def purge(self, timeout: float) -> None:
        keys = set(self._directory.snapshot(timeout)) | set(self._tables)
        for key in keys:
            table = self._tables.get(key)
            self.engine.delete(self.stream(key), timeout)
            if table is not None:
                table.ended(StreamMissing(f"stream {table.stream} was purged"))
            self._forget(key)
        self._directory.purge(timeout)

    def replay(self, key: str, subscriber: Subscriber) -> Table:
        return self.open_table(self.stream(key), Start.FIRST, key=key, subscriber=subscriber)

    def follow(self, watch: Watch, start: int | str, timeout: float) -> None:
        if is_pattern(watch.pattern):
            follow_pattern(self, self._directory, watch, start, timeout)
        else:
            self.subscribe(watch, watch.pattern, start, timeout)

    def tables(self) -> list[Table]:
        with self._lock:
            return [*self._tables.values(), *self._directory.tables()]

    def close(self) -> None:
        super().close()
        self._directory.close()

    # Reading

    def _newest(self, key: str, timeout: float) -> Cell | None:
        """The newest record that was confirmed before the call, from the key's stream."""
        try:
            newest = self.engine.last(self.stream(key), timeout)
        except StreamMissing:
            return None
        if newest is None:
            return None
        offset, message = newest
        try:
            record = parse(message, key)
        except Unreadable:
            record = Record("unreadable", key)
        if record.retry or record.op not in ("set", "delete"):
            return self._folded(key, timeout)
        if record.op == "delete":
            return None
        return Cell(record.body, record.content_type, record.content_encoding, offset, record.expires_ms, record.written_ms)

    def _folded(self, key: str, timeout: float) -> Cell | None:
        """The same by folding the whole stream: for the rare case that its newest record alone does not tell."""
        table = self.replay(key, lambda event: None)
        try:
            return loaded(table, timeout).read(key)
        except StreamMissing:
            return None
        finally:
            table.tail.close()

    def _followed(self, key: str, timeout: float) -> Cell | None:
        """What the table of a preloaded key says. A key that had no stream is followed as soon as there is one."""
        try:
            table = self._open(key, timeout)
        except StreamMissing:
            return None
        if not table.serving:
            self._serve_key(key, table)
        if not table.rebuilt.done():
            rebuilt(table, timeout)
        self.fresh_enough(table)
        if self.signal[0] != self.seen:
            self.catch_up()
        return table.read(key)

    # Tables

    def _usable(self, key: str) -> Table | None:
        table = self._tables.get(key)
        if table is not None and table.failed is not None:
            if not isinstance(table.failed, StreamMissing):
                raise table.failed
            self._forget(key)
            return None
        return table

    def _open(self, key: str, timeout: float) -> Table:
        """The table of a key whose stream exists, with all that stood there when the call began."""
        return self._complete(key, self._attach(key, timeout), timeout)

    def _attach(self, key: str, timeout: float) -> Table:
        """The table of a key whose stream exists, perhaps still loading; opened by one thread at a time."""
        while True:
            table = self._usable(key)
            if table is not None:
                return table
            with self._lock:
                opening = self._opening.get(key)
                mine: Promise[None] = Promise()
                if opening is None:
                    self._opening[key] = mine
            if opening is None:
                try:
                    return self._keep(key, attached(self._begin(key), timeout))
                finally:
                    with self._lock:
                        del self._opening[key]
                    mine.resolve(None)
            if not opening.wait(timeout + STALL):
                raise ReadTimeout(f"another thread has been opening the stream of key {key!r} for {timeout + STALL:g} s")

    def _complete(self, key: str, table: Table, timeout: float) -> Table:
        """The table, loaded; folded from the beginning of the stream where its end alone does not tell."""
        if not table.tail.ready.done() or table.tail.ready.error() is not None:
            loaded(table, timeout)
        if table.determined or table.position < 0:
            return table
        whole = loaded(self._begin(key, Start.FIRST), timeout)
        whole.determined = True
        with self._lock:
            if self._tables.get(key) is table:
                del self._tables[key]
                table.hand_over(whole)
                table.tail.close()
        return self._keep(key, whole)

    def _begin(self, key: str, start: Start = Start.LAST) -> Table:
        return self.open_table(self.stream(key), start, key=key, shown=self._shown)

    def _open_all(self, keys: Iterable[str], timeout: float) -> dict[str, Table]:
        """The tables of all keys that have a stream; all are asked for before one is waited for."""
        tables: dict[str, Table] = {}
        begun: dict[str, Table] = {}
        for key in keys:
            table = self._usable(key)
            if table is None:
                begun[key] = self._begin(key)
            else:
                tables[key] = self._complete(key, table, timeout)
        try:
            for key in list(begun):
                with contextlib.suppress(StreamMissing):
                    tables[key] = self._complete(key, self._keep(key, loaded(begun[key], timeout)), timeout)
                del begun[key]
        finally:
            for table in begun.values():
                table.tail.close()
        return tables

    def _keep(self, key: str, table: Table) -> Table:
        """Make a table the table of its key, unless another thread was first."""
        with self._lock:
            has = self._tables.get(key)
            if has is not None and has.failed is None:
                table.tail.close()
                return has
            self._tables[key] = table
            table.on_change = self._serve
            self.signal = self.engine.signal
            if key in self._preloaded:
                table.serve(True)
            else:
                self._idle[key] = table
        return table

    def _serve_key(self, key: str, table: Table) -> None:
        with self._lock:
            self._idle.pop(key, None)
            table.serve(True)

    def _forget(self, key: str) -> None:
        with self._lock:
            table = self._tables.pop(key, None)
            self._idle.pop(key, None)
        if table is not None:
            table.serve(False)
            table.tail.close()

    def _serve(self) -> None:
        """While any tail is out of touch, a store that says how stale it may be is not served without a look."""
        strict = self.options.max_staleness is not None and any(
            table.out_of_touch_since is not None for table in list(self._tables.values())
        )
        self.cells = NOTHING if strict else self._shown

    # Writing

    def _writable(self, key: str, max_age: int | None, timeout: float) -> Table:
        table = self._usable(key)
        if table is not None:
            with self._lock:
                if key in self._idle:
                    self._idle[key] = table  # used last
            return table
        try:
            table = self._attach(key, timeout)
            self._list(key, timeout)
            return table
        except StreamMissing:
            stream = self.stream(key)
        self.engine.declare(stream, max_age, timeout)
        self.log.debug("declare", key=key, stream=stream, max_age=max_age)
        self._list(key, timeout)
        # From the first record on, whatever another process writes meanwhile. There may be none: nothing to wait for.
        table = attached(self._begin(key, Start.FIRST), timeout)
        table.determined = True
        return self._keep(key, table)

    def _list(self, key: str, timeout: float) -> None:
        """Have the key in the directory: before it has a value, and after it has a stream."""
        if self._directory.read(key, timeout) is None:
            record = Record("set", key, written_ms=int(self.options.clock() * 1000), id=new_id())
            self._directory.write(record, timeout, confirm=True)

    # Watching

    def subscribe(self, watch: Watch, key: str, start: int | str, timeout: float, tell: Subscriber | None = None) -> None:
        """Have ``watch``, through ``tell``, told the changes of one key."""
        table = self._writable(key, None, timeout)
        if isinstance(start, int):
            self.replay_into(watch, key, start, timeout, tell)
            return
        table = self._complete(key, table, timeout)
        tell = tell or watch.offer
        with self._lock:
            self._idle.pop(key, None)
        table.subscribe(tell, current=start == "last")
        watch.on_close(lambda: self._unsubscribe(tell, key, table))

    def _unsubscribe(self, subscriber: Subscriber, key: str, table: Table) -> None:
        table.unsubscribe(subscriber)
        with self._lock:
            if self._tables.get(key) is table and not table.serving and not table.watched:
                self._idle[key] = table


class _Idle(LRUCache[str, Table]):
    """Tails that are open only because they were used; the least recently used one is closed first."""

    def __init__(self, maxsize: float, keyspace: PerKeyKeyspace) -> None:
        super().__init__(maxsize)
        self._keyspace = keyspace

    def popitem(self) -> tuple[str, Table]:
        key, table = super().popitem()
        self._keyspace._forget(key)
        return key, table


class _Preloaded(LRUCache[str, bool]):
    """Keys that were preloaded; past ``max_entries``, the one preloaded first is let go of."""

    def __init__(self, maxsize: float, keyspace: PerKeyKeyspace) -> None:
        super().__init__(maxsize)
        self._keyspace = keyspace

    def popitem(self) -> tuple[str, bool]:
        key, value = super().popitem()
        self._keyspace._forget(key)
        return key, value
