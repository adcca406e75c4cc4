"""The shared layout: all keys of a keyspace in one stream, folded into one table that a tail keeps fresh."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable

from mqkv.errors import ReadTimeout, SettingsWarning, StreamMissing
from mqkv.fold import Cell, Outcome
from mqkv.ids import new_id
from mqkv.layout.base import NOTHING, Keyspace, Options, attached, loaded, rebuilt, settled
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.streams.base import Engine, Start
from mqkv.table import Subscriber, Table
from mqkv.watch import Watch


class SharedKeyspace(Keyspace):
    """One stream. The first read loads its table; a stream that does not exist is an empty table, and is not made by a read."""

    def __init__(self, engine: Engine, stream: str, options: Options, log: Log) -> None:
        super().__init__(engine, options, log, stream)
        self.stream = stream
        self._table: Table | None = None
        self._opening = threading.Lock()
        self._compared = False

    def read(self, key: str, timeout: float, *, fresh: bool = False) -> Cell | None:
        table = self._loaded(timeout)
        if table is None:
            return None
        if fresh:
            self.write_to(table, Record("sync", "", id=new_id()), timeout, confirm=True, shared=True)
        return table.read(key)

    def peek(self, key: str) -> Cell | None:
        return None if self._table is None else self._table.read(key)

    def write(
        self, record: Record, timeout: float, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        try:
            return self.write_to(self._writable(timeout, create), record, timeout, confirm=confirm, shared=True)
        except StreamMissing:
            self._drop()
            if not create:
                raise
            # Deleted under us: make it anew, once.
            return self.write_to(self._writable(timeout, create), record, timeout, confirm=confirm, shared=True)

    def snapshot(self, timeout: float) -> dict[str, Cell]:
        table = self._loaded(timeout)
        return {} if table is None else table.snapshot()

    def preload(self, keys: Iterable[str], timeout: float) -> None:
        self._loaded(timeout)

    def clear(self, record: Record, timeout: float) -> None:
        if self._loaded(timeout) is not None:
            self.write(record, timeout, confirm=True)

    def purge(self, timeout: float) -> None:
        with self._hold(timeout):
            table = self._table
            self.engine.delete(self.stream, timeout)
            if table is not None:
                table.ended(StreamMissing(f"stream {self.stream} was purged"))
            self._drop()

    def replay(self, key: str, subscriber: Subscriber) -> Table:
        return self.open_table(self.stream, Start.FIRST, subscriber=subscriber)

    def follow(self, watch: Watch, start: int | str, timeout: float) -> None:
        table = loaded(self._writable(timeout), timeout)
        if isinstance(start, int):
            self.replay_into(watch, watch.pattern, start, timeout)
        else:
            table.subscribe(watch.offer, current=start == "last")
            watch.on_close(lambda: table.unsubscribe(watch.offer))

    def tables(self) -> list[Table]:
        return [] if self._table is None else [self._table]

    # Opening

    def _usable(self) -> Table | None:
        table = self._table
        if table is None or table.failed is None:
            return table
        if not isinstance(table.failed, StreamMissing):
            raise table.failed
        self._drop()
        return None

    def _loaded(self, timeout: float) -> Table | None:
        """The table with all that stood in the stream when the call began; None if there is no stream."""
        table = self._usable()
        if table is None:
            with self._hold(timeout):
                table = self._usable() or self._attach(timeout, declare=False)
        if table is None:
            return None
        if not table.tail.ready.done() or table.tail.ready.error() is not None:
            try:
                loaded(table, timeout)
            except StreamMissing:
                self._drop()
                return None
        if not table.rebuilt.done():
            rebuilt(table, timeout)
        self.fresh_enough(table)
        self._serve(table)
        if not self._compared:
            self._compare_settings(table)
        if self.signal[0] != self.seen:
            self.catch_up()
        return table

    def _writable(self, timeout: float, create: bool = True) -> Table:
        table = self._usable()
        if table is None:
            with self._hold(timeout):
                table = self._usable() or self._attach(timeout, declare=create)
        if table is None:
            raise StreamMissing(f"there is no stream {self.stream}")
        return table

    def _hold(self, timeout: float) -> _Held:
        return _Held(self._opening, timeout + 10, self.stream)

    def _attach(self, timeout: float, *, declare: bool) -> Table | None:
        """Open the table; where there is no stream, make it and write its settings first."""
        table = self.open_table(self.stream, Start.FIRST)
        try:
            attached(table, timeout)
        except StreamMissing:
            if not declare:
                return None
            self.engine.declare(self.stream, None, timeout)
            self.log.debug("declare", stream=self.stream)
            table = self.open_table(self.stream, Start.FIRST)
            attached(table, timeout)
            self._found(table, timeout)
        self.signal = self.engine.signal
        table.on_change = lambda: self._serve(table)
        self._table = table
        return table

    def _found(self, table: Table, timeout: float) -> None:
        """The first record of a keyspace: its settings. (It also wakes LavinMQ, where the first record of a stream may wake
        nobody.)"""
        args: dict[str, str | int | bool | float] = {}
        if self.options.max_entries is not None:
            args["max_entries"] = self.options.max_entries
        record = Record("settings", "", args=args, written_ms=int(self.options.clock() * 1000), id=new_id())
        settled(table.tail.append(to_message(record, shared=True), timeout), timeout + 1, self.stream)

    def _serve(self, table: Table) -> None:
        """Let cached reads look into the table, while they may."""
        waiting = not table.tail.ready.done() or not table.rebuilt.done()
        strict = self.options.max_staleness is not None and table.out_of_touch_since is not None
        cells = NOTHING if waiting or strict or table.failed is not None else table.shown
        self.cells = cells

    def _compare_settings(self, table: Table) -> None:
        """Tell those who opened the keyspace with other settings than it was made with; the keyspace's own hold."""
        self._compared = True
        wanted, has = self.options.max_entries, table.state.settings.max_entries
        if wanted is not None and wanted != has:
            self.log(logging.WARNING, "settings", stream=self.stream, max_entries=has, asked_for=wanted, reason="set-when-made")
            told = f"keyspace {self.stream} was made with max_entries={has}, which holds; this store asks for {wanted}"
            warnings.warn(told, SettingsWarning, stacklevel=6)
        ahead = table.state.log_time / 1000 - self.options.clock()
        if ahead > 60:
            self.log(logging.WARNING, "clock", stream=self.stream, log_time_ahead=f"{ahead:.0f}s")

    def _drop(self) -> None:
        table, self._table = self._table, None
        self.cells = NOTHING
        if table is not None:
            table.tail.close()


class _Held:
    """A lock, held; with a bound on the wait for it."""

    def __init__(self, lock: threading.Lock, timeout: float, stream: str) -> None:
        self._lock, self._timeout, self._stream = lock, timeout, stream

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._timeout):
            raise ReadTimeout(f"another thread has been opening stream {self._stream} for {self._timeout:g} s")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
