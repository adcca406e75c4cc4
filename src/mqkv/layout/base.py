"""What a layout offers to the store, and what both layouts do alike: append a record and wait for what it did.

It knows engines by their interface, tables and records; it knows no codec beyond handing it to tables, and no default.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from mqkv.clock import writer_of
from mqkv.codecs import BoundCodec
from mqkv.errors import Error, OutcomeUnknown, Stale, StreamMissing
from mqkv.fold import Cell, Outcome
from mqkv.inbox import Inbox
from mqkv.layout.leases import Leases
from mqkv.layout.watching import Watching
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.streams.base import Engine, Promise, Start
from mqkv.table import Subscriber, Table
from mqkv.view import Shown
from mqkv.waiting import Deadline, wait
from mqkv.watch import Watch

#: A load has failed when nothing has come for so many seconds, or for its deadline if that is more.
STALL = 2.0

#: What a caller waits longer than an engine that keeps its timeouts, whose errors know more.
GRACE = 0.25

#: Silence of a broker is not noticed sooner, however small ``max_staleness`` is: it may be at work.
LEAST_SILENCE = 0.5

NOTHING: dict[str, Shown] = {}

#: Memory can't say: read it.
ASK: Any = object()

T = TypeVar("T")


class Options(NamedTuple):
    """What stores must agree on to share a keyspace's tables in one process."""

    codec: BoundCodec
    clock: Callable[[], float]
    max_entries: float | None
    max_staleness: float | None
    maker: str  #: who opens it; empty: nobody in particular


class Unconfirmed:
    """Writes that nobody waits for: how many are under way, and how many have failed."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._changed = threading.Lock()
        self._idle: Promise[None] | None = None
        self.under_way = 0
        self.failed = 0

    def add(self, promise: Promise[int], table: Table, record: Record) -> None:
        with self._changed:
            self.under_way += 1
        promise.then(lambda settled: self._settled(settled, table, record))

    def _settled(self, promise: Promise[int], table: Table, record: Record) -> None:
        error = promise.error()
        assert record.id is not None
        table.forget_early(_early(record), record.id)
        if error is not None:
            self._log(logging.ERROR, "write-failed", key=record.key, op=record.op, error=type(error).__name__)
        with self._changed:
            self.under_way -= 1
            self.failed += error is not None
            idle = self._idle if not self.under_way else None
            if idle is not None:
                self._idle = None
        if idle is not None:
            idle.resolve(None)

    def settled(self) -> Promise[None]:
        """Settled when no write is under way."""
        with self._changed:
            if not self.under_way:
                return Promise.of(None)
            if self._idle is None:
                self._idle = Promise()
            return self._idle


class Keyspace(ABC):
    """The keys of one prefix (and name), shared by all stores of this process that were opened alike. Thread-safe."""

    #: What a cached read looks into: values that may be handed out now. Swapped for an empty dict while none may.
    cells: dict[str, Shown] = NOTHING
    #: Changes when another process may have written (engines of files); ``seen`` is its value at the last look.
    signal: Sequence[int] = (0,)
    seen: int = 0
    #: Whether its engine may wait in the caller's thread.
    blocks: bool = False

    def __init__(self, engine: Engine, options: Options, log: Log, name: str) -> None:
        self.engine = engine
        self.blocks = engine.blocks
        self.options = options
        self.log = log
        self.unconfirmed = Unconfirmed(log)
        self.leases = Leases(name, log)
        self.watching = Watching(name, log)
        self.closed = False
        if options.max_staleness is not None:
            engine.keep_in_touch(max(options.max_staleness, LEAST_SILENCE))

    # What a layout does

    @abstractmethod
    async def read(self, key: str, deadline: Deadline, *, fresh: bool = False) -> Cell | None:
        """The newest cell of a key, from memory where it is followed, else from its stream."""

    @abstractmethod
    async def read_many(self, keys: Sequence[str], deadline: Deadline) -> tuple[dict[str, Shown], dict[str, Cell]]:
        """Those of ``keys`` that have a value: ready to be handed out, or as cells."""

    @abstractmethod
    def peek(self, key: str) -> Cell | None:
        """The newest cell of a key, as far as memory knows it."""

    @abstractmethod
    async def live(self, key: str, deadline: Deadline, *, create: bool) -> Table:
        """The table that tells of a key, and to which its writes go, loaded; ``StreamMissing`` where there is no stream to
        ``create``."""

    @abstractmethod
    async def write(
        self, record: Record, deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        """Append a record; with ``confirm`` wait for its offset and outcome. ``StreamMissing`` where there is none to
        ``create``. ``max_age`` (seconds) is for a stream that is made for the record."""

    @abstractmethod
    async def write_all(
        self, records: Sequence[Record], deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> list[Outcome | None]:
        """The same for many plain records, all under way at once. What failed raises when all are settled; None for a record
        whose stream there was none to ``create``."""

    @abstractmethod
    async def snapshot(self, deadline: Deadline) -> dict[str, Cell]:
        """All cells."""

    @abstractmethod
    async def count(self, now_ms: float, deadline: Deadline) -> int:
        """How many keys have a value."""

    @abstractmethod
    async def newest(self, now_ms: float, but: Container[tuple[str, int]], deadline: Deadline) -> tuple[str, Cell] | None:
        """The last key that has a value, in the order of ``snapshot``; none whose key and revision are in ``but``."""

    @abstractmethod
    async def preload(self, keys: Iterable[str], deadline: Deadline) -> None:
        """Bring keys into memory and keep them there, fresh."""

    @abstractmethod
    async def clear(self, record: Record, deadline: Deadline) -> None:
        """Remove the keys that the record's ``prefix`` names, or all."""

    @abstractmethod
    async def sync(self, deadline: Deadline) -> None:
        """Have in memory, of what is followed, all that was written before the call."""

    @abstractmethod
    async def purge(self, deadline: Deadline) -> None:
        """Delete the streams themselves."""

    @abstractmethod
    def replay(self, key: str, subscriber: Subscriber) -> Table:
        """A table of its own that tells ``subscriber`` each change of the key's stream from the first record on."""

    @abstractmethod
    async def lock_table(self, deadline: Deadline, *, declare: bool = True) -> Table | None:
        """The table in whose stream the keyspace's locks are, with all that stood there; None if there is no stream to
        ``declare``."""

    @abstractmethod
    async def follow(self, inbox: Inbox, start: int | str, deadline: Deadline) -> None:
        """Have ``inbox`` told each change: from the ``next`` one, from the ``last`` value on, or from an offset on."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The tables that are open now."""

    # What all do

    def at_hand(self, key: str) -> Cell | None:
        """The newest cell of a key, where memory may answer for it at once; else ``ASK``."""
        found: Cell | None = ASK
        return found

    def catch_up(self) -> None:
        """Take in what other processes appended to a file before this call."""
        seen = self.signal[0]
        self.engine.catch_up()
        self.seen = seen

    def open_table(
        self,
        stream: str,
        start: Start | int,
        *,
        key: str | None = None,
        shown: dict[str, Shown] | None = None,
        subscriber: Subscriber | None = None,
        awaited: str | None = None,
    ) -> Table:
        """Begin to fold a stream. Does not wait. The outcome of the record with the id ``awaited`` is kept until it is taken."""
        table = Table(stream, self.options.codec, self.log, whole=start is Start.FIRST, key=key, shown=shown)
        if subscriber is not None:
            table.subscribe(subscriber)
        if awaited is not None:
            table.await_outcome(awaited)
        table.tail = self.engine.open(stream, start, table)
        return table

    async def write_to(
        self, table: Table, record: Record, deadline: Deadline, *, confirm: bool, shared: bool
    ) -> tuple[int, Outcome | None]:
        """Append to a table's stream, and learn the offset and the outcome there."""
        id = record.id
        assert id is not None
        if table.failed is not None:
            raise table.failed
        message = to_message(record, shared=shared)
        if not confirm:
            if self.engine.room() is not None:
                await self.room(deadline)
            early = _early(record)
            table.show_early(record, early)
            try:
                promise = table.tail.append(message, deadline.left)
            except BaseException:
                table.forget_early(early, id)
                raise
            self.unconfirmed.add(promise, table, record)
            return -1, None
        if self.engine.room() is not None:
            await self.room(deadline)
        table.expect(id, message, record)
        try:
            promise = table.tail.append(message, deadline.left)
            offset = promise.result() if promise.done() else await settled(promise, deadline, table.stream)
        finally:
            outcome = table.take(id)
        if table.state.clock.apart:
            self._tell_apart(table, id)
        return offset, outcome if table.determined else None

    async def write_each(
        self, places: Sequence[tuple[Table, Record]], deadline: Deadline, *, confirm: bool, shared: bool
    ) -> list[Outcome | None]:
        """Append each record to its table's stream, all under way at once. What failed raises when all are settled."""
        if not confirm:
            for table, record in places:
                await self.write_to(table, record, deadline, confirm=False, shared=shared)
            return [None] * len(places)
        under_way: list[Promise[int]] = []
        problem: Error | None = None
        try:
            for table, record in places:
                assert record.id is not None
                message = to_message(record, shared=shared)
                try:
                    if table.failed is not None:
                        raise table.failed
                    if self.engine.room() is not None:
                        await self.room(deadline)
                    table.expect(record.id, message, record)
                    under_way.append(table.tail.append(message, deadline.left))
                except Error as error:
                    problem = error
                    break
            for promise, (table, _) in zip(under_way, places, strict=False):
                try:
                    await settled(promise, deadline, table.stream)
                except Error as error:
                    problem = problem or error
        finally:
            outcomes = [table.take(record.id or "") for table, record in places]
        if problem is not None:
            raise problem
        return outcomes

    def _tell_apart(self, table: Table, id: str) -> None:
        """Say so where this process's clock and another writer's contradict each other."""
        ahead_ms = table.state.clock.apart.get(writer_of(id))
        if ahead_ms is not None:
            fields = {"stream": table.stream, "this_ahead": f"{ahead_ms / 1000:.0f}s"}
            self.log.once(logging.WARNING, "clock", "clock", **fields, reason="another-writers-clock-differs")

    async def room(self, deadline: Deadline) -> None:
        """Wait until the engine has room for one more append."""
        while (more := self.engine.room()) is not None:
            if not await wait(more, deadline.left):
                raise deadline.late(f"too much is under way already, and too little of it ended within {deadline}")

    def fresh_enough(self, table: Table) -> None:
        """Raise :class:`mqkv.Stale` if the table has been out of touch for longer than ``max_staleness``."""
        since, limit = table.out_of_touch_since, self.options.max_staleness
        if since is not None and limit is not None and time.monotonic() - since > limit:
            raise Stale(
                f"stream {table.stream} has been out of reach for {time.monotonic() - since:.1f} s, over max_staleness={limit}"
            )

    def add_watch(self, watch: Watch, callback: Callable[..., object] | None, owner: object) -> None:
        """Keep a watch until it, or its owner, is closed or dropped, and start its callback."""
        self.watching.add(watch, callback, owner)
        if not watch.closed:
            self.engine.listen()

    def close(self) -> None:
        """Let go of tails and watches. The engine is closed by whoever opened it."""
        self.closed = True
        self.cells = NOTHING
        self.leases.close()
        self.watching.close()
        for table in self.tables():
            table.tail.close()
        self.signal = Keyspace.signal  # an engine's own may hold a mapping open

    def stats(self) -> Mapping[str, object]:
        tables = self.tables()
        lost = [table.out_of_touch_since for table in tables if table.out_of_touch_since is not None]
        return {
            "tables": len(tables),
            "unreadable": sum(table.unreadable for table in tables),
            "unconfirmed": self.unconfirmed.under_way,
            "failed_writes": self.unconfirmed.failed,
            "watches": len(self.watching),
            "staleness": time.monotonic() - min(lost) if lost else 0.0,
        }


async def settled(promise: Promise[int], deadline: Deadline, stream: str) -> int:
    """The result of an append. The engine keeps the deadline; ours, later, is for an engine that does not."""
    if not await wait(promise, deadline.left + GRACE):
        raise OutcomeUnknown(f"no answer for a write to stream {stream} within {deadline}: it may be in the log or not")
    return promise.result()


@contextmanager
def before(deadline: Deadline, what: str) -> Iterator[None]:
    """Of a record that must stand before the call does what it is for: where its outcome is unknown, the call has not done it."""
    try:
        yield
    except OutcomeUnknown as error:
        raise deadline.late(f"{what} was not settled within {deadline}, and nothing else was done") from error


async def answered(promise: Promise[T], deadline: Deadline, stream: str) -> T:
    """The result of asking an engine about a stream."""
    if not await wait(promise, deadline.left + GRACE):
        raise deadline.late(f"no answer within {deadline} about stream {stream}: is the broker well?")
    return promise.result()


async def attached(table: Table, deadline: Deadline) -> Table:
    """Wait until whatever is appended from now on will be folded. A table that can't is closed."""
    try:
        patience = opening(deadline)
        if not await wait(table.tail.attached, patience + GRACE):
            raise deadline.late(f"stream {table.stream} could not be opened within {patience:.3g} s: is the broker well?")
        table.tail.attached.result()
    except BaseException:
        table.tail.close()
        raise
    return table


def opening(deadline: Deadline) -> float:
    """For how many seconds opening a stream may be waited for. For a read it is the beginning of a load; a write can't be sent
    before, and has its own time for that."""
    return deadline.left if deadline.writing else max(deadline.left, STALL)


async def loaded(table: Table, deadline: Deadline) -> Table:
    """Wait until all that stood in the stream is folded; bounded by the lack of progress, not by the size of the stream. The
    deadline is for what comes after: it begins anew with each progress."""
    position, stall = table.position, max(deadline.timeout, STALL)
    while not await wait(table.tail.ready, stall):
        if table.position == position:
            table.tail.close()
            raise deadline.late(f"loading stream {table.stream} made no progress for {stall:g} s")
        position = table.position
    deadline.renew()
    try:
        table.tail.ready.result()
    except Error:
        table.tail.close()
        raise
    if table.failed is not None:
        raise table.failed
    return table


async def rebuilt(table: Table, deadline: Deadline) -> None:
    """Wait while a table is being built anew (its log was rewritten): a load, too."""
    position, stall = table.position, max(deadline.timeout, STALL)
    while not await wait(table.rebuilt, stall):
        if table.position == position:
            raise deadline.late(f"the table of stream {table.stream} is being rebuilt, without progress for {stall:g} s")
        position = table.position
    deadline.renew()


async def reached(table: Table, offset: int, deadline: Deadline) -> None:
    """Wait until the record at ``offset`` is folded."""
    if not await wait(table.reach(offset), deadline.left + GRACE):
        raise deadline.late(f"stream {table.stream} was not delivered up to revision {offset} within {deadline}")


def retire(table: Table, why: str) -> None:
    """Let go of a table that is not the one of its stream any more; who was told its changes is told that this has ended."""
    table.tail.close()
    if table.watched and table.failed is None:
        table.ended(StreamMissing(why))


def _early(record: Record) -> dict[str, Cell | None]:
    """What a record will do, where that needs no knowledge of what stands before it."""
    expires_ms, written_ms = record.expires_ms, record.written_ms
    if record.op == "set":
        return {record.key: Cell(record.body, record.content_type, record.content_encoding, -1, expires_ms, written_ms)}
    if record.op == "set_many":
        assert record.batch is not None
        return {key: Cell(body, kind, None, -1, expires_ms, written_ms) for key, body, kind in record.batch.items()}
    return dict.fromkeys(record.batch.keys if record.batch is not None else (record.key,))
