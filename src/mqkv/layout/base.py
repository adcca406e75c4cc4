"""What a layout offers to the store, and what both layouts do alike: append a record and wait for what it did.

It knows engines by their interface, tables and records; it knows no codec beyond handing it to tables, and no default.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mqkv.codecs import Codec
from mqkv.errors import Error, OutcomeUnknown, ReadTimeout, Stale
from mqkv.fold import Cell, Outcome
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.streams.base import Engine, Promise, Start
from mqkv.table import Event, Shown, Subscriber, Table
from mqkv.watch import Dispatcher, Watch

#: A load that makes no progress for so many seconds has failed.
STALL = 10.0

NOTHING: dict[str, Shown] = {}


class Options(NamedTuple):
    """What stores must agree on to share a keyspace's tables in one process."""

    codec: Codec
    clock: Callable[[], float]
    max_entries: int | None
    max_staleness: float | None


class Unconfirmed:
    """Writes that nobody waits for: how many are under way, and how many have failed."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._changed = threading.Condition()
        self.under_way = 0
        self.failed = 0

    def add(self, promise: Promise[int], table: Table, record: Record) -> None:
        with self._changed:
            self.under_way += 1
        promise.then(lambda settled: self._settled(settled, table, record))

    def _settled(self, promise: Promise[int], table: Table, record: Record) -> None:
        error = promise.error()
        assert record.id is not None
        table.forget_early(record.key, record.id)
        if error is not None:
            self._log(logging.ERROR, "write-failed", key=record.key, op=record.op, error=type(error).__name__)
        with self._changed:
            self.under_way -= 1
            self.failed += error is not None
            if not self.under_way:
                self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self.under_way, timeout)


class Keyspace(ABC):
    """The keys of one prefix (and name), shared by all stores of this process that were opened alike. Thread-safe."""

    #: What a cached read looks into: values that may be handed out now. Swapped for an empty dict while none may.
    cells: dict[str, Shown] = NOTHING
    #: Changes when another process may have written (engines of files); ``seen`` is its value at the last look.
    signal: Sequence[int] = (0,)
    seen: int = 0

    def __init__(self, engine: Engine, options: Options, log: Log, name: str) -> None:
        self.engine = engine
        self.options = options
        self.log = log
        self.unconfirmed = Unconfirmed(log)
        self._dispatcher = Dispatcher(name, log)
        self._watches: set[Watch] = set()

    # What a layout does

    @abstractmethod
    def read(self, key: str, timeout: float, *, fresh: bool = False) -> Cell | None:
        """The newest cell of a key, from memory where it is followed, else from its stream."""

    @abstractmethod
    def peek(self, key: str) -> Cell | None:
        """The newest cell of a key, as far as memory knows it."""

    @abstractmethod
    def write(
        self, record: Record, timeout: float, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        """Append a record; with ``confirm`` wait for its offset and outcome. ``StreamMissing`` where there is none to
        ``create``."""

    @abstractmethod
    def snapshot(self, timeout: float) -> dict[str, Cell]:
        """All cells."""

    @abstractmethod
    def preload(self, keys: Iterable[str], timeout: float) -> None:
        """Bring keys into memory and keep them there, fresh."""

    @abstractmethod
    def clear(self, record: Record, timeout: float) -> None:
        """Remove all keys."""

    @abstractmethod
    def purge(self, timeout: float) -> None:
        """Delete the streams themselves."""

    @abstractmethod
    def replay(self, key: str, subscriber: Subscriber) -> Table:
        """A table of its own that tells ``subscriber`` each change of the key's stream from the first record on."""

    @abstractmethod
    def follow(self, watch: Watch, start: int | str, timeout: float) -> None:
        """Tell ``watch`` each change: from the ``next`` one, from the ``last`` value on, or from an offset on."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The tables that are open now."""

    # What all do

    def catch_up(self) -> None:
        """Take in what other processes appended to a file before this call."""
        seen = self.signal[0]
        self.engine.catch_up()
        self.seen = seen

    def open_table(
        self,
        stream: str,
        start: Start,
        *,
        key: str | None = None,
        shown: dict[str, Shown] | None = None,
        subscriber: Subscriber | None = None,
    ) -> Table:
        """Begin to fold a stream. Does not wait."""
        table = Table(stream, self.options.codec, self.log, key=key, shown=shown)
        if subscriber is not None:
            table.subscribe(subscriber)
        table.tail = self.engine.open(stream, start, table)
        return table

    def write_to(
        self, table: Table, record: Record, timeout: float, *, confirm: bool, shared: bool
    ) -> tuple[int, Outcome | None]:
        """Append to a table's stream, and learn the offset and the outcome there."""
        assert record.id is not None
        message = to_message(record, shared=shared)
        if not confirm:
            table.show_early(record, _early(record))
            try:
                promise = table.tail.append(message, timeout)
            except BaseException:
                table.forget_early(record.key, record.id)
                raise
            self.unconfirmed.add(promise, table, record)
            return -1, None
        table.expect(record.id, message, record)
        try:
            promise = table.tail.append(message, timeout)
            offset = promise.result() if promise.done() else settled(promise, timeout + 1, table.stream)
        finally:
            outcome = table.take(record.id)
        return offset, outcome

    def fresh_enough(self, table: Table) -> None:
        """Raise :class:`mqkv.Stale` if the table has been out of touch for longer than ``max_staleness``."""
        since, limit = table.out_of_touch_since, self.options.max_staleness
        if since is not None and limit is not None and time.monotonic() - since > limit:
            raise Stale(
                f"stream {table.stream} has been out of reach for {time.monotonic() - since:.1f} s, over max_staleness={limit}"
            )

    def replay_into(self, watch: Watch, key: str, start: int, timeout: float, tell: Subscriber | None = None) -> None:
        """Tell ``watch`` what a stream has told since ``start``, and goes on to tell."""
        offer = tell or watch.offer

        def since(event: Event) -> None:
            if event[3] >= start or event[0] in ("reset", "ended"):
                offer(event)

        table = attached(self.replay(key, since), timeout)
        watch.on_close(table.tail.close)

    def add_watch(self, watch: Watch, callback: Callable[..., object] | None) -> None:
        """Keep a watch until it is closed, and start its callback."""
        self._watches.add(watch)
        watch.on_close(lambda: self._watches.discard(watch))
        self.engine.listen()
        if callback is not None:
            watch.call(callback, self._dispatcher)

    def close(self) -> None:
        """Let go of tails and watches. The engine is closed by whoever opened it."""
        self.cells = NOTHING
        self.signal = Keyspace.signal  # an engine's own may hold a mapping open
        for watch in list(self._watches):
            watch.close()
        self._dispatcher.close()
        for table in self.tables():
            table.tail.close()

    def stats(self) -> Mapping[str, object]:
        tables = self.tables()
        lost = [table.out_of_touch_since for table in tables if table.out_of_touch_since is not None]
        return {
            "tables": len(tables),
            "unreadable": sum(table.unreadable for table in tables),
            "unconfirmed": self.unconfirmed.under_way,
            "failed_writes": self.unconfirmed.failed,
            "watches": len(self._watches),
            "staleness": time.monotonic() - min(lost) if lost else 0.0,
        }


def settled(promise: Promise[int], timeout: float, stream: str) -> int:
    """The result of an append. The engine keeps the deadline; ours, later, is for an engine that does not."""
    if not promise.wait(timeout):
        raise OutcomeUnknown(f"no answer for a write to stream {stream} within {timeout:g} s: it may be in the log or not")
    return promise.result()


def attached(table: Table, timeout: float) -> Table:
    """Wait until whatever is appended from now on will be folded. A table that can't is closed."""
    if not table.tail.attached.wait(timeout + STALL):
        table.tail.close()
        raise ReadTimeout(f"opening stream {table.stream} took more than {timeout + STALL:g} s")
    try:
        table.tail.attached.result()
    except BaseException:
        table.tail.close()
        raise
    return table


def loaded(table: Table, timeout: float) -> Table:
    """Wait until all that stood in the stream is folded; bounded by the lack of progress, not by the size of the stream."""
    position = table.position
    while not table.tail.ready.wait(max(timeout, STALL)):
        if table.position == position:
            table.tail.close()
            raise ReadTimeout(f"loading stream {table.stream} made no progress for {max(timeout, STALL):g} s")
        position = table.position
    try:
        table.tail.ready.result()
    except Error:
        table.tail.close()
        raise
    if table.failed is not None:
        raise table.failed
    return table


def rebuilt(table: Table, timeout: float) -> None:
    """Wait while a table is being built anew (its log was rewritten)."""
    if not table.rebuilt.wait(timeout):
        raise ReadTimeout(f"the table of stream {table.stream} is being rebuilt: try again")


def _early(record: Record) -> Cell | None:
    if record.op != "set":
        return None
    return Cell(record.body, record.content_type, record.content_encoding, -1, record.expires_ms, record.written_ms)
