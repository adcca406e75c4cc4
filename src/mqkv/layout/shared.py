"""The shared layout: all keys of a keyspace in one stream, folded into one table that a tail keeps fresh."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar, cast

from mqkv.check import RESERVED
from mqkv.codecs import DEFAULT, BoundCodec
from mqkv.errors import Closed, Error, StreamMissing
from mqkv.fold import Cell, Outcome, State
from mqkv.ids import new_id
from mqkv.inbox import Inbox
from mqkv.layout import settings
from mqkv.layout.base import (
    ASK,
    NOTHING,
    STALL,
    Keyspace,
    Options,
    answered,
    attached,
    before,
    loaded,
    opening,
    rebuilt,
    retire,
    settled,
)
from mqkv.layout.following import Following
from mqkv.layout.markers import Markers
from mqkv.logfmt import Log
from mqkv.record import Record, to_message
from mqkv.streams.base import Engine, Start
from mqkv.table import Subscriber, Table
from mqkv.view import Rebuilding, Shown
from mqkv.waiting import Deadline, Turn

#: What follows the name of a shared keyspace, or a prefix and a dot, in the name of the stream of its locks.
LOCKS = f"{RESERVED}locks__"

T = TypeVar("T")


class SharedKeyspace(Keyspace):
    """One stream. The first read loads its table; a stream that does not exist is an empty table, and is not made by a read."""

    remakes = True

    def __init__(self, engine: Engine, stream: str, options: Options, log: Log, locks: SharedKeyspace | None = None) -> None:
        super().__init__(engine, options, log, stream)
        self.stream = stream
        self._locks = locks
        self._table: Table | None = None
        self._serving = threading.Lock()
        self._opening = Turn()
        self._markers: Markers | None = None
        #: Of the log whose settings are known, told of, and changed if need be. (It holds all values: not kept alive.)
        self._settled: Callable[[], State | None] = lambda: None

    async def read(self, key: str, deadline: Deadline, *, fresh: bool = False) -> Cell | None:
        return await self._read(lambda table: table.read(key), deadline, fresh=fresh)

    async def read_many(self, keys: Sequence[str], deadline: Deadline) -> tuple[dict[str, Shown], dict[str, Cell]]:
        return await self._read(lambda table: table.read_many(keys), deadline) or ({}, {})

    def at_hand(self, key: str) -> Cell | None:
        table = self._table
        try:
            found: Cell | None = ASK if table is None or self.cells is NOTHING else table.read(key)
        except Rebuilding:
            return cast("Cell | None", ASK)
        return found

    def peek(self, key: str) -> Cell | None:
        table = self._table
        with contextlib.suppress(Rebuilding):
            return None if table is None else table.read(key)
        return None

    async def write(
        self, record: Record, deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        while True:
            table: Table | None = None
            try:
                table = await self._writable(deadline, create)
                return await self.write_to(table, record, deadline, confirm=confirm, shared=True)
            except (StreamMissing, Closed) as error:
                if self.closed:
                    raise
                if table is self._table or (table is None and isinstance(error, StreamMissing)):
                    self._drop()
                # Deleted under us: make it anew.
                if not create or not deadline.left:
                    raise StreamMissing(f"there is no stream {self.stream}") from error

    async def write_all(
        self, records: Sequence[Record], deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> list[Outcome | None]:
        if not records:
            return []
        try:
            table = await self._writable(deadline, create)
        except StreamMissing:
            return [None] * len(records)
        places = [(table, record) for record in records]
        return await self.write_each(places, deadline, confirm=confirm, shared=True)

    async def snapshot(self, deadline: Deadline) -> dict[str, Cell]:
        return await self._read(lambda table: table.snapshot(), deadline) or {}

    async def count(self, now_ms: float, deadline: Deadline) -> int:
        return await self._read(lambda table: table.count(now_ms), deadline) or 0

    async def newest(self, now_ms: float, but: Container[tuple[str, int]], deadline: Deadline) -> tuple[str, Cell] | None:
        return await self._read(lambda table: table.newest(now_ms, but), deadline)

    async def preload(self, keys: Iterable[str], deadline: Deadline) -> None:
        await self._loaded(deadline)

    async def clear(self, record: Record, deadline: Deadline) -> None:
        if await self._loaded(deadline) is not None:
            await self.write(record, deadline, confirm=True)

    async def sync(self, deadline: Deadline) -> None:
        while (table := await self._loaded(deadline)) is not None:
            if await self._level(table, deadline):
                break
        if self._locks is not None and self._locks.tables():
            await self._locks.sync(deadline)

    async def left(self, deadline: Deadline) -> dict[str, Cell]:
        """What the rest of a log tells that has lost its beginning, for want of better."""
        table = self.open_table(self.stream, 1)
        try:
            return (await loaded(table, deadline)).snapshot()
        finally:
            table.tail.close()

    async def purge(self, deadline: Deadline) -> None:
        if self._locks is not None:
            await self._locks.purge(deadline)
        await self._hold(deadline)
        try:
            table = self._table
            await answered(self.engine.begin_delete(self.stream, deadline.left), deadline, self.stream)
            if table is not None:
                table.ended(StreamMissing(f"stream {self.stream} was purged"))
            self._drop()
        finally:
            self._opening.give()

    def replay(self, key: str, subscriber: Subscriber) -> Table:
        return self.open_table(self.stream, Start.FIRST, subscriber=subscriber)

    async def follow(self, inbox: Inbox, start: int | str, deadline: Deadline) -> None:
        following = Following(self, "", start, inbox.offer, create=True, inbox=inbox)
        inbox.on_close(following.close)
        await self.watching.pursue(following, inbox, deadline)

    # Followed by watches (``following.Source``)

    async def live(self, key: str, deadline: Deadline, *, create: bool) -> Table:
        while True:
            if self.signal[0] != self.seen:  # or a table is taken for that of a stream that another process has deleted
                self.catch_up()
            table = await self._writable(deadline, create)
            if table.rebuilt.done():
                return table
            await rebuilt(table, deadline)

    def hold(self, key: str, table: Table, subscriber: Subscriber, *, current: bool) -> int | None:
        if self._table is not table:
            return None
        position = table.subscribe(subscriber, current=current)
        if self._table is not table:  # dropped meanwhile
            table.unsubscribe(subscriber)
            return None
        return position

    def let_go(self, key: str, table: Table, subscriber: Subscriber) -> None:
        table.unsubscribe(subscriber)

    def stream_of(self, key: str) -> str:
        return self.stream

    def table_of(self, key: str) -> Table:
        return Table(self.stream, self.options.codec, self.log)

    def lost(self, following: Following) -> None:
        self.watching.soon(following, following.inbox)

    async def lock_table(self, deadline: Deadline, *, declare: bool = True) -> Table | None:
        return None if self._locks is None else await self._locks.whole(deadline, declare=declare)

    async def whole(self, deadline: Deadline, *, declare: bool) -> Table | None:
        """The table, with all that stood in the stream; None if there is no stream to ``declare``."""
        table = await self._loaded(deadline)
        if declare and (table is None or table.state is not self._settled()):
            table = await self._writable(deadline, create=True)
        return table

    def tables(self) -> list[Table]:
        tables = [] if self._table is None else [self._table]
        return tables if self._locks is None else tables + self._locks.tables()

    def close(self) -> None:
        super().close()
        if self._locks is not None:
            self._locks.close()

    # Opening

    async def _read(self, read: Callable[[Table], T], deadline: Deadline, *, fresh: bool = False) -> T | None:
        """What the table says, once it is loaded; None if there is no stream."""
        while True:
            table = await self._loaded(deadline)
            if table is None:
                return None
            if fresh and not await self._level(table, deadline):
                continue
            try:
                return read(table)
            except Rebuilding:
                continue  # since it was loaded: wait with it

    def _usable(self) -> Table | None:
        table = self._table
        if table is None or table.failed is None:
            return table
        if not isinstance(table.failed, StreamMissing):
            raise table.failed
        self._drop()
        return None

    async def _loaded(self, deadline: Deadline) -> Table | None:
        """The table with all that stood in the stream when the call began; None if there is no stream."""
        table = self._usable()
        if table is None:
            try:
                table = await self._open(deadline, declare=False)
            except StreamMissing:
                return None
        if not table.tail.ready.done() or table.tail.ready.error() is not None:
            try:
                await loaded(table, deadline)
            except (StreamMissing, Closed):
                if self.closed:
                    raise
                if table is self._table:
                    self._drop()
                return None
        _judge(table)
        if not table.rebuilt.done():
            await rebuilt(table, deadline)
        self.fresh_enough(table)
        self._serve(table)
        if table.state is not self._settled() and table.position >= 0:
            self._settle(table)
        if self.signal[0] != self.seen:
            self.catch_up()
        return table

    async def _writable(self, deadline: Deadline, create: bool) -> Table:
        """The table to write to: loaded, since a record counts once it is folded, and its deadline should not pay for a load; and
        with settings, since these come first."""
        table = await self._open(deadline, declare=create)
        if not table.tail.ready.done():
            await loaded(table, deadline)
        _judge(table)
        if table.state is not self._settled() and table.rebuilt.done():
            if table.position < 0:  # its maker died, or is just about to
                await self._found(table, deadline)
            self._settle(table)
        return table

    async def _open(self, deadline: Deadline, *, declare: bool = True) -> Table:
        """The table, perhaps still loading; opened by one caller at a time."""
        table = self._usable()
        if table is None:
            await self._hold(deadline)
            try:
                table = self._usable() or await self._attach(deadline, declare=declare)
            finally:
                self._opening.give()
        return table

    async def _hold(self, deadline: Deadline) -> None:
        if not await self._opening.take(opening(deadline)):
            raise deadline.late(f"somebody else has been opening stream {self.stream} for {deadline}")

    async def _level(self, table: Table, deadline: Deadline) -> bool:
        """Wait until all that anybody has written before is folded here; False where the stream was deleted instead."""
        try:
            await self._barrier(table, deadline)
        except StreamMissing:
            if table is self._table:
                self._drop()
            if not deadline.left:
                raise
            return False
        return True

    async def _barrier(self, table: Table, deadline: Deadline) -> None:
        if self.engine.exact:
            self.catch_up()
            return
        markers = self._markers
        if markers is None or markers.table is not table:
            markers = self._markers = Markers(table, self._mark)
        await markers.passed(deadline)

    async def _mark(self, table: Table, deadline: Deadline) -> None:
        with before(deadline, f"a marker in stream {self.stream}"):
            await self.write_to(table, Record("sync", "", id=new_id()), deadline, confirm=True, shared=True)

    async def _attach(self, deadline: Deadline, *, declare: bool) -> Table:
        """Open the table; where there is no stream, make it and write its settings first."""
        table = self.open_table(self.stream, Start.FIRST)
        try:
            await attached(table, deadline)
        except StreamMissing:
            if not declare:
                raise
            await answered(self.engine.begin_declare(self.stream, None, deadline.left), deadline, self.stream)
            self.log.debug("declare", stream=self.stream)
            table = await attached(self.open_table(self.stream, Start.FIRST), deadline)
            try:
                await self._found(table, deadline)
            except BaseException:
                table.tail.close()
                raise
        self.signal = self.engine.signal
        table.on_change = lambda: self._serve(table)
        self._table = table
        return table

    async def _found(self, table: Table, deadline: Deadline) -> None:
        """The first record of a keyspace: its settings. (It also wakes LavinMQ, where the first record of a stream may wake
        nobody.)"""
        message = to_message(settings.founding(self.options), shared=True)
        with before(deadline, f"the settings of stream {self.stream}"):
            await settled(table.tail.append(message, deadline.left), deadline, self.stream)

    def _settle(self, table: Table) -> None:
        """When a keyspace was opened: tell who made it, and have it kept as this store was told by name to keep it. Once, so that
        two who were told otherwise do not change it in turns. Nobody waits: records of this process come behind the change."""
        self._settled, has = weakref.ref(table.state), table.state.settings
        change = settings.change(self.options, has)
        if change is not None:
            fields = {"max_entries": change.args["max_entries"], "was": has.max_entries}
            self.log(logging.WARNING, "settings", stream=self.stream, **fields)
            try:
                self.unconfirmed.add(table.tail.append(to_message(change, shared=True), STALL), table, change)
            except Error as error:
                self.log(logging.ERROR, "write-failed", op="settings", error=type(error).__name__)
        ahead = table.state.clock.newest_ms / 1000 - self.options.clock()
        if ahead > 60:
            self.log(logging.WARNING, "clock", stream=self.stream, others_ahead=f"{ahead:.0f}s")
        settings.tell_maker(self.options, has, self.stream, self.log)

    def _serve(self, table: Table) -> None:
        """Let cached reads look into the table, while they may."""
        with self._serving:  # or who has looked before a reset would serve after it
            if table is not self._table or self.closed:
                return
            waiting = not table.tail.ready.done() or table.rebuilding
            strict = self.options.max_staleness is not None and table.out_of_touch_since is not None
            self.cells = NOTHING if waiting or strict or table.failed is not None else table.shown

    def _drop(self) -> None:
        with self._serving:
            table, self._table = self._table, None
            self._markers, self.cells = None, NOTHING
        if table is not None:
            retire(table, f"stream {self.stream} was deleted")


def lock_stream(engine: Engine, stream: str, options: Options, log: Log) -> SharedKeyspace:
    """The stream beside a keyspace that holds its locks, and is loaded by those who lock only."""
    plain = options._replace(codec=BoundCodec(DEFAULT), max_entries=None, max_staleness=None, maker="")
    return SharedKeyspace(engine, stream, plain, log)


def _judge(table: Table) -> None:
    """Raise for a log that can't be folded: its loading may have shown that."""
    if table.failed is not None and not isinstance(table.failed, StreamMissing):
        raise table.failed
