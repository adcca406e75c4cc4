"""The tables of keys that have a stream each: opened, kept while they are of use, let go of.

Rules:

1. A key has one table at a time; whoever opens it first has the others wait.
2. A table is open because its key is preloaded, watched, used at the moment, or was used lately; of the last kind there are so
   many at most. What an operation uses is not closed under it; operations on many keys go in windows.
3. What a table says counts once it is loaded and determined (see :meth:`mqkv.table.Table.is_determined`).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from mqkv.check import queue_name
from mqkv.errors import Error, StreamMissing
from mqkv.layout.base import NOTHING, STALL, Keyspace, Options, attached, loaded, opening, retire
from mqkv.layout.bounded import Bounded
from mqkv.layout.following import Following
from mqkv.logfmt import Log
from mqkv.streams.base import Engine, Promise, Start
from mqkv.table import Subscriber, Table, lost
from mqkv.view import Shown
from mqkv.waiting import Deadline, run, wait

T = TypeVar("T")

#: Tails that are kept open at most for keys that nobody preloaded, watches, or uses at the moment.
MAX_TAILS = 4_096

#: How many keys an operation on many has open at once.
WINDOW = 1_000

#: Tails that are looked at, one after the other, for one that is not in use.
LOOKS = 16

#: How often the whole stream is tried, before watchers are told that they may have missed something.
ATTEMPTS = 3


class FollowedKeys(Keyspace):
    """The part of the per-key layout that opens and keeps tables."""

    remakes = False  # an empty stream costs every reader a wait; the directory tells when there is a new one

    def __init__(self, engine: Engine, prefix: str, options: Options, log: Log) -> None:
        super().__init__(engine, options, log, prefix)
        self.prefix = prefix
        self._shown: dict[str, Shown] = {}
        self.cells = self._shown
        self._lock = threading.RLock()
        self._serving = threading.Lock()
        self._tables: dict[str, Table] = {}
        #: Tails that are open only because they were used; the one used least recently is closed first.
        self._idle: OrderedDict[str, Table] = OrderedDict()
        self._in_use: dict[str, int] = {}  # key -> operations under way
        self._opening: dict[str, Promise[None]] = {}
        #: Keys that were preloaded; past ``max_entries``, the one preloaded first is let go of.
        self._preloaded: Bounded[bool] = Bounded(options.max_entries or float("inf"), self._preloaded_no_more)

    def stream(self, key: str) -> str:
        return queue_name(self.prefix, key)

    def _use(self, key: str) -> None:
        """Keep the key's table open, if it is or will be, until :meth:`_used`."""
        with self._lock:
            self._in_use[key] = self._in_use.get(key, 0) + 1
            if key in self._idle:
                self._idle.move_to_end(key)

    def _used(self, key: str) -> None:
        with self._lock:
            left = self._in_use[key] - 1
            if left:
                self._in_use[key] = left
            else:
                del self._in_use[key]
        if len(self._idle) > MAX_TAILS:
            self._make_room()

    @contextlib.contextmanager
    def _using(self, keys: Sequence[str]) -> Iterator[None]:
        """Keep the tables of all these keys open meanwhile."""
        for key in keys:
            self._use(key)
        try:
            yield
        finally:
            for key in keys:
                self._used(key)

    def _make_room(self) -> None:
        """Close tails that were not used lately, as many as there are too many."""
        with self._lock:
            for _ in range(len(self._idle) - MAX_TAILS + LOOKS):
                if len(self._idle) <= MAX_TAILS:
                    return
                key, table = next(iter(self._idle.items()))
                if key in self._in_use or table.is_pending(key):
                    self._idle.move_to_end(key)
                else:
                    self._forget(key)

    def _usable(self, key: str) -> Table | None:
        table = self._tables.get(key)
        if table is not None and table.failed is not None:
            if not isinstance(table.failed, StreamMissing):
                raise table.failed
            self._forget(key)
            return None
        return table

    async def _open(self, key: str, deadline: Deadline) -> Table:
        """The table of a key whose stream exists, with all that stood there when the call began."""
        return await self._complete(key, await self._attach(key, deadline), deadline)

    async def _attach(self, key: str, deadline: Deadline) -> Table:
        """The table of a key whose stream exists, perhaps still loading."""
        while True:
            table = self._usable(key)
            if table is not None:
                return table
            if await self._alone(key, deadline):
                try:
                    return self._keep(key, await attached(self._begin(key), deadline))
                finally:
                    self._opened(key)

    async def _complete(self, key: str, table: Table, deadline: Deadline) -> Table:
        """The table, loaded; folded from the beginning of the stream where its end alone does not tell."""
        while True:
            if not table.tail.ready.done() or table.tail.ready.error() is not None:
                await loaded(table, deadline)
            if table.is_determined():
                return table
            if await self._alone(key, deadline):
                break
            table = await self._attach(key, deadline)
        try:
            whole = await loaded(self._begin(key, Start.FIRST, table.judge), deadline)
            if not whole.is_determined():
                whole.tail.close()
                raise lost(whole.stream, f"set key {key!r} to start anew")
            with self._lock:  # in one step: no other table may come between
                if self._tables.get(key) is table:
                    del self._tables[key]
                    table.hand_over(whole)
                    table.tail.close()
                return self._keep(key, whole)
        finally:
            self._opened(key)

    async def _alone(self, key: str, deadline: Deadline) -> bool:
        """Whether nobody else is opening this key's table; else wait until it is opened."""
        with self._lock:
            under_way = self._opening.get(key)
            if under_way is None:
                self._opening[key] = Promise()
                return True
        if not await wait(under_way, opening(deadline)):
            raise deadline.late(f"somebody else has been opening the stream of key {key!r} for {deadline}")
        return False

    def _opened(self, key: str) -> None:
        with self._lock:
            under_way = self._opening.pop(key)
        under_way.resolve(None)

    def _doubted(self, key: str, table: Table) -> None:
        """Watchers wait for what a table can't judge: read the whole stream, in a thread of its own. (This is rare: after a lost
        connection, where a copy of a record came that may stand before the table's beginning.)"""

        def judge() -> None:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(Error):
                    run(self._complete(key, table, Deadline(STALL)))
                    return
            table.give_up()

        threading.Thread(target=judge, name=f"mqkv-judge-{key}", daemon=True).start()

    def _begin(self, key: str, start: Start = Start.LAST, subscriber: Subscriber | None = None) -> Table:
        return self.open_table(self.stream(key), start, key=key, shown=self._shown, subscriber=subscriber)

    async def _open_all(self, keys: Sequence[str], deadline: Deadline) -> dict[str, Table]:
        """The tables of all keys that have a stream, loaded. For a window of keys, in use."""
        tables = await self._attach_all(keys, deadline)
        return {key: await self._complete(key, table, deadline) for key, table in tables.items()}

    async def _attach_all(self, keys: Iterable[str], deadline: Deadline, start: Start = Start.LAST) -> dict[str, Table]:
        """The tables of all keys that have a stream, perhaps still loading; all are asked for before one is waited for."""
        tables: dict[str, Table] = {}
        begun: dict[str, Table] = {}
        for key in keys:
            table = self._usable(key)
            if table is None:
                begun[key] = self._begin(key, start)
            else:
                tables[key] = table
        try:
            for key in list(begun):
                with contextlib.suppress(StreamMissing):
                    tables[key] = self._keep(key, await attached(begun[key], deadline))
                    deadline.renew()
                del begun[key]
        finally:
            for table in begun.values():
                table.tail.close()
        return tables

    def _keep(self, key: str, table: Table) -> Table:
        """Make a table the table of its key, unless another thread was first."""
        self.watching.let_go_of_left()
        with self._lock:
            has = self._tables.get(key)
            if has is not None and has.failed is None:
                table.tail.close()
                return has
            self._tables[key] = table
            table.on_change = self._serve
            table.on_doubt = lambda: self._doubted(key, table)
            self.signal = self.engine.signal
            if key in self._preloaded and table.tail.ready.done() and table.tail.ready.error() is None:
                table.serve(True)
            else:
                self._rest(key, table)
                if key in self._preloaded:
                    table.tail.ready.then(lambda ready: self._serve_loaded(key, table, ready))
        return table

    def _serve_loaded(self, key: str, table: Table, ready: Promise[None]) -> None:
        """A table of a preloaded key has been loaded, perhaps."""
        with self._lock:
            if ready.error() is None and key in self._preloaded and self._tables.get(key) is table:
                self._serve_key(key, table)

    def _rest(self, key: str, table: Table) -> None:
        """Count a table among those that are open only because they were used, if it is one. Under the lock."""
        if self._tables.get(key) is table and not table.serving and not table.watched:
            self._idle[key] = table
            self._idle.move_to_end(key)
            if len(self._idle) > MAX_TAILS:
                self._make_room()

    def _preloaded_no_more(self, key: str) -> None:
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                table.serve(False)
                self._rest(key, table)

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
            retire(table, f"stream {table.stream} was deleted")

    def _serve(self) -> None:
        """While any tail is out of touch, a store that says how stale it may be is not served without a look."""
        with self._serving:  # or who has looked before a tail was out of touch would serve after it
            strict = self.options.max_staleness is not None and any(
                table.out_of_touch_since is not None for table in list(self._tables.values())
            )
            self.cells = NOTHING if strict or self.closed else self._shown

    # Followed by watches (``following.Source``)

    def hold(self, key: str, table: Table, subscriber: Subscriber, *, current: bool) -> int | None:
        with self._lock:
            if self._tables.get(key) is not table:
                return None
            position = table.subscribe(subscriber, current=current)
            if position is not None:
                self._idle.pop(key, None)
            return position

    def let_go(self, key: str, table: Table, subscriber: Subscriber) -> None:
        table.unsubscribe(subscriber)
        with self._lock:
            table = self._tables.get(key, table)  # another may have taken its place
            table.unsubscribe(subscriber)
            self._rest(key, table)

    def stream_of(self, key: str) -> str:
        return self.stream(key)

    def table_of(self, key: str) -> Table:
        return Table(self.stream(key), self.options.codec, self.log, key=key)

    def lost(self, following: Following) -> None:
        self.watching.soon(following, following.inbox)


def windows(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many at a time as an operation may have open."""
    size = min(WINDOW, MAX_TAILS)
    return (keys[begin : begin + size] for begin in range(0, len(keys), size))
