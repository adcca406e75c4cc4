"""The per-key layout: a stream a key, and a directory stream that lists the keys.

Reads of a key that was not preloaded go to its stream and are exact. Writes keep a tail open on the key's stream, since an append
learns its offset there; the tails that were used least recently are closed when there are too many.

The newest record alone tells the value of a key, with one exception: where it is marked as a retry, an earlier copy may stand
before records of others. Then, and where it is no record at all, the table is folded from the beginning of the stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Sequence

from mqkv.batch import of_sets, pack
from mqkv.check import RESERVED, queue_name
from mqkv.codecs import DEFAULT, BoundCodec
from mqkv.errors import Closed, Error, LogTruncated, OutcomeUnknown, Stale, StreamMissing
from mqkv.fold import Cell, Outcome
from mqkv.ids import new_id
from mqkv.inbox import Inbox
from mqkv.layout.anchors import FOUND, PLAIN, age_by, anchored, max_age_in, told_of
from mqkv.layout.base import Options, answered, before, loaded, reached, rebuilt
from mqkv.layout.followed import FollowedKeys, windows
from mqkv.layout.patterns import Arrivals
from mqkv.layout.shared import SharedKeyspace
from mqkv.logfmt import Log
from mqkv.record import Record, Unreadable, parse, time_ms
from mqkv.streams.base import Delivery, Engine, Promise, Start
from mqkv.table import UNKNOWN, Subscriber, Table
from mqkv.view import Rebuilding, Shown, is_live
from mqkv.waiting import Deadline

DIRECTORY = f"{RESERVED}keys__"


class PerKeyKeyspace(FollowedKeys):
    """Many streams, each folded into a table of one key when it is followed."""

    def __init__(self, engine: Engine, prefix: str, options: Options, log: Log, locks: SharedKeyspace) -> None:
        super().__init__(engine, prefix, options, log)
        self._locks = locks
        self._directory = SharedKeyspace(
            engine,
            queue_name(prefix, DIRECTORY),
            options._replace(codec=BoundCodec(DEFAULT), max_entries=None, max_staleness=None),
            log,
        )
        self._arrivals = Arrivals(self, self._directory, self.watching)

    async def read(self, key: str, deadline: Deadline, *, fresh: bool = False) -> Cell | None:
        table = self._tables.get(key)
        if table is not None:
            if table.is_pending(key):
                with contextlib.suppress(Rebuilding):  # if it is settled just now
                    return table.read(key)
            if table.serving and not fresh:
                return await self._followed(key, deadline)
        if key in self._preloaded and not fresh:
            return await self._followed(key, deadline)
        cell = await self._newest(key, self.engine.begin_last(self.stream(key), deadline.left), deadline)
        if fresh and self.engine.lags:
            raise _not_to_be_had(f"key {key!r}")
        return cell

    async def read_many(self, keys: Sequence[str], deadline: Deadline) -> tuple[dict[str, Shown], dict[str, Cell]]:
        cells: dict[str, Cell | None] = {}
        asked: dict[str, Promise[Delivery | None]] = {}
        for key in dict.fromkeys(keys):
            table = self._tables.get(key)
            if key in self._preloaded or (table is not None and (table.serving or table.is_pending(key))):
                cells[key] = await self.read(key, deadline)
            else:
                asked[key] = self.engine.begin_last(self.stream(key), deadline.left)
        for key, promise in asked.items():
            cells[key] = await self._newest(key, promise, deadline)
        return {}, {key: cell for key, cell in cells.items() if cell is not None}

    def peek(self, key: str) -> Cell | None:
        table = self._tables.get(key)
        if table is None or not (table.serving or table.is_pending(key)):
            return None
        with contextlib.suppress(Rebuilding):
            return table.read(key)
        return None

    async def write(
        self, record: Record, deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> tuple[int, Outcome | None]:
        self._use(record.key)
        try:
            return await self._write(record, deadline, confirm, max_age, create)
        finally:
            self._used(record.key)

    async def _write(
        self, record: Record, deadline: Deadline, confirm: bool, max_age: int | None, create: bool
    ) -> tuple[int, Outcome | None]:
        while True:
            table: Table | None = None
            try:
                table = await self._writable(record, max_age, deadline, confirm=confirm, create=create)
                if record.op not in PLAIN:
                    await self._anchored(table, record.key, deadline)
                offset, outcome = await self.write_to(table, record, deadline, confirm=confirm, shared=False)
                if outcome is None and confirm and record.op != "set":
                    outcome = await self._outcome(record, offset, deadline)
                if confirm and table.behind_retry:
                    with contextlib.suppress(Error):  # what was to be written is
                        await self._anchored(table, record.key, deadline)
                return offset, outcome
            except (StreamMissing, Closed) as error:
                if self.closed:
                    raise
                if table is self._tables.get(record.key) or (table is None and isinstance(error, StreamMissing)):
                    self._forget(record.key)
                # Deleted under us: make it anew.
                if not create or not deadline.left:
                    raise StreamMissing(f"there is no stream {self.stream(record.key)}") from error

    async def write_all(
        self, records: Sequence[Record], deadline: Deadline, *, confirm: bool, max_age: int | None = None, create: bool = True
    ) -> list[Outcome | None]:
        outcomes: list[Outcome | None] = []
        for window in windows(records):
            with self._using([record.key for record in window]):
                outcomes += await self._write_window(window, deadline, confirm, max_age, create)
        return outcomes

    async def _write_window(
        self, records: Sequence[Record], deadline: Deadline, confirm: bool, max_age: int | None, create: bool
    ) -> list[Outcome | None]:
        keys = [record.key for record in records]
        tables = await self._attach_all(keys, deadline)
        if create:
            await self._list(list(tables), deadline)
            tables |= await self._make([key for key in keys if key not in tables], max_age, deadline)
        if confirm and not create:
            tables = {key: await self._complete(key, table, deadline) for key, table in tables.items()}
        places = [(tables[record.key], record) for record in records if record.key in tables]
        outcomes = await self.write_each(places, deadline, confirm=confirm, shared=False)
        if confirm:
            for table, record in places:
                if table.behind_retry:
                    with contextlib.suppress(Error):
                        await self._anchored(table, record.key, deadline)
        if confirm and not create:
            for number, (table, record) in enumerate(places):
                if not table.determined:
                    outcomes[number] = await self._outcome(record, table.position, deadline)
        by_key = {record.key: outcome for (_, record), outcome in zip(places, outcomes, strict=True)}
        return [by_key.get(record.key) for record in records]

    async def snapshot(self, deadline: Deadline) -> dict[str, Cell]:
        found: dict[str, Cell] = {}
        for keys in windows(list(await self._directory.snapshot(deadline))):
            with self._using(keys):
                tables = await self._open_all(keys, deadline)
                if self.signal[0] != self.seen:
                    self.catch_up()
                for key, table in tables.items():
                    cell = await self._told(table, key, deadline)
                    if cell is not None:
                        found[key] = cell
        return found

    async def count(self, now_ms: float, deadline: Deadline) -> int:
        return sum(is_live(cell, now_ms) for cell in (await self.snapshot(deadline)).values())

    async def newest(self, now_ms: float, but: Container[tuple[str, int]], deadline: Deadline) -> tuple[str, Cell] | None:
        for key in reversed(list(await self._directory.snapshot(deadline))):
            cell = await self.read(key, deadline)
            if cell is not None and is_live(cell, now_ms) and (key, cell.revision) not in but:
                return key, cell
            deadline.renew()
        return None

    async def preload(self, keys: Iterable[str], deadline: Deadline) -> None:
        keys = list(dict.fromkeys(keys))
        with self._lock:
            for key in keys:
                self._preloaded[key] = True
        for window in windows(keys):
            with self._using(window):
                for key, table in (await self._open_all(window, deadline)).items():
                    if key in self._preloaded:
                        self._serve_key(key, table)

    async def clear(self, record: Record, deadline: Deadline) -> None:
        prefix = str(record.args.get("prefix", ""))
        keys = [key for key in await self.snapshot(deadline) if key.startswith(prefix)]
        tombstones = [Record("delete", key, written_ms=record.written_ms, id=new_id()) for key in keys]
        await self.write_all(tombstones, deadline, confirm=True, create=False)

    async def sync(self, deadline: Deadline) -> None:
        if self.engine.exact:
            self.catch_up()
            return
        with self._lock:
            tables = list(self._tables.values())
        asked = [(table, self.engine.begin_last(table.stream, deadline.left)) for table in tables]
        for table, promise in asked:
            with contextlib.suppress(StreamMissing):
                newest = await answered(promise, deadline, table.stream)
                if newest is not None:
                    await reached(table, newest[0], deadline)
        if tables and self.engine.lags:
            raise _not_to_be_had("the keys that are followed")
        await self._directory.sync(deadline)
        if self._locks.tables():
            await self._locks.sync(deadline)

    async def purge(self, deadline: Deadline) -> None:
        await self._locks.purge(deadline)
        try:
            listed = await self._directory.snapshot(deadline)
        except LogTruncated:
            listed = await self._directory.left(deadline)
        keys = set(listed) | set(self._tables)
        asked = {key: self.engine.begin_delete(self.stream(key), deadline.left) for key in keys}
        for key, promise in asked.items():
            stream = self.stream(key)
            await answered(promise, deadline, stream)
            deadline.renew()
            table = self._tables.get(key)
            if table is not None:
                table.ended(StreamMissing(f"stream {stream} was purged"))
            self._forget(key)
        await self._directory.purge(deadline)

    def replay(self, key: str, subscriber: Subscriber) -> Table:
        return self.open_table(self.stream(key), Start.FIRST, key=key, subscriber=subscriber)

    async def follow(self, inbox: Inbox, start: int | str, deadline: Deadline) -> None:
        await self._arrivals.listen(deadline)
        await self.watching.pursue(self._arrivals.follow(inbox, start), inbox, deadline)

    async def lock_table(self, deadline: Deadline, *, declare: bool = True) -> Table | None:
        return await self._locks.whole(deadline, declare=declare)

    def tables(self) -> list[Table]:
        with self._lock:
            return [*self._tables.values(), *self._directory.tables(), *self._locks.tables()]

    def close(self) -> None:
        super().close()
        self._directory.close()
        self._locks.close()

    # Reading

    async def _newest(self, key: str, asked: Promise[Delivery | None], deadline: Deadline) -> Cell | None:
        """What the newest record that was confirmed before the call says."""
        try:
            newest = await answered(asked, deadline, self.stream(key))
            if newest is None:
                return None
            offset, message = newest
            try:
                record = parse(message, key)
            except Unreadable:
                record = Record("unreadable", key)
            if record.retry or record.op not in ("set", "delete"):
                # Its meaning depends on what stands before it: ask the fold, which is kept for the next time.
                with self._using([key]):
                    table = await self._open(key, deadline)
                    if self.engine.exact:
                        self.catch_up()
                    await reached(table, offset, deadline)
                    return await self._told(await self._complete(key, table, deadline), key, deadline)
        except StreamMissing:
            return None
        if record.op == "delete":
            return None
        return Cell(record.body, record.content_type, record.content_encoding, offset, record.expires_ms, record.written_ms)

    async def _followed(self, key: str, deadline: Deadline) -> Cell | None:
        """What the table of a preloaded key says. A key that had no stream is followed as soon as there is one."""
        try:
            table = await self._open(key, deadline)
        except StreamMissing:
            return None
        if not table.serving:
            self._serve_key(key, table)
        self.fresh_enough(table)
        if self.signal[0] != self.seen:
            self.catch_up()
        return await self._told(table, key, deadline)

    async def _told(self, table: Table, key: str, deadline: Deadline) -> Cell | None:
        """What a table says, once it is not being rebuilt."""
        while True:
            try:
                return table.read(key)
            except Rebuilding:
                await rebuilt(table, deadline)

    # Writing

    async def _writable(
        self, record: Record, max_age: int | None, deadline: Deadline, *, confirm: bool = True, create: bool = True
    ) -> Table:
        """The table to write to: complete, if the outcome is asked for."""
        key = record.key
        table = self._usable(key)
        if table is None:
            try:
                table = await self._attach(key, deadline)
            except StreamMissing:
                if not create:
                    raise
                made = (await self._make([key], max_age, deadline)).get(key)
                if made is None:
                    raise StreamMissing(f"stream {self.stream(key)} was deleted as soon as it was made") from None
                table = made
            else:
                if create:
                    await self._list([key], deadline)
        # A table from the stream's first record on decides rightly while it still loads.
        return await self._complete(key, table, deadline) if confirm and record.op != "set" and not table.whole else table

    async def _anchored(self, table: Table, key: str, deadline: Deadline) -> None:
        """Have what a key's value rests on outlive its stream's max-age."""
        if table.max_age is UNKNOWN:
            with contextlib.suppress(LogTruncated):  # of the directory: then it is not known, as where another policy is at work
                listed = await self._directory.read(key, deadline)
                table.max_age = age_by(None if listed is None else listed.body)
        if isinstance(table.max_age, int):
            await anchored(self, table, table.max_age, deadline)

    async def _outcome(self, record: Record, offset: int, deadline: Deadline) -> Outcome | None:
        """What a record of ours did that stands in the log, by all that stands before it."""
        assert record.id is not None
        table = self.open_table(self.stream(record.key), Start.FIRST, key=record.key, awaited=record.id)
        try:
            await reached(await loaded(table, deadline), offset, deadline)
            return table.take(record.id)
        except Error as error:
            raise OutcomeUnknown(f"{record.op} of key {record.key!r} is in the log, and its outcome could not be read") from error
        finally:
            table.tail.close()

    async def _make(self, keys: Sequence[str], max_age: int | None, deadline: Deadline) -> dict[str, Table]:
        """The tables of keys that had no stream."""
        asked = {key: self.engine.begin_declare(self.stream(key), max_age, deadline.left) for key in keys}
        for key, promise in asked.items():
            await answered(promise, deadline, self.stream(key))
            deadline.renew()
            self.log.debug("declare", key=key, stream=self.stream(key), max_age=max_age)
        await self._list(keys, deadline, made=True, max_age=max_age)
        # From the first record on, whatever another process writes meanwhile. There may be none: nothing to wait for.
        return await self._attach_all(keys, deadline, Start.FIRST)

    async def _list(self, keys: Sequence[str], deadline: Deadline, *, made: bool = False, max_age: int | None = None) -> None:
        """Have keys in the directory: before they have a value, and after they have a stream. One whose stream was ``made`` is
        told there in any case, with its ``max_age``: who followed an earlier one waits for that. (Of two who make one at once,
        the shorter age counts: it costs the most, and loses nothing.)"""
        ready, cells = await self._directory.read_many(keys, deadline)
        told = {key: str(value).encode() for key, (value, _) in ready.items()} | {key: cell.body for key, cell in cells.items()}
        ages = {key: max_age_in(body) for key, body in told.items()}
        new = []
        for key in keys:
            if made:
                age = min((age for age in (ages.get(key), max_age) if age is not None), default=None)
                new.append((key, told_of(age), None))
            elif key not in told:  # its maker died before it could tell, or is about to, or is the gem
                new.append((key, FOUND, None))
        if new:
            batch, now = of_sets(new), time_ms(self.options.clock())
            record = Record("set_many", "", pack(batch), written_ms=now, id=new_id(), batch=batch)
            with before(deadline, "a key's place in the directory"):
                await self._directory.write(record, deadline, confirm=True)

    # Watching

    async def live(self, key: str, deadline: Deadline, *, create: bool) -> Table:
        with self._using([key]):
            while True:
                if create:
                    table = await self._writable(Record("set", key), None, deadline)
                    table = await self._complete(key, table, deadline)
                else:
                    table = await self._open(key, deadline)
                if table.rebuilt.done():
                    return table
                await rebuilt(table, deadline)


def _not_to_be_had(what: str) -> Stale:
    return Stale(
        f"a fresh read of {what} can't be had in a cluster: a key's own stream is read from one replica, which may be behind, "
        "and it holds nothing but values, so that no marker can tell. Use layout='shared', where one does, or keep the streams "
        "on one node (?replicas=1)"
    )
