"""What a fold knows: the cells of a table, its settings, the log clock, locks, remembered ids. Pure: no I/O, no thread."""

from __future__ import annotations

import heapq
import math
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

from cachetools import FIFOCache

from mqkv.clock import LogClock
from mqkv.record import Record
from mqkv.remembered import FastIds, SmallIds

ID_WINDOW = 10_000
LONGEST_MAKER = 100  #: characters
_STALE_EXPIRIES = 1_000  #: expiries of values that are no more, that are kept at least


class Cell(NamedTuple):
    """What is known of a key: its newest value as it stands in the log."""

    body: bytes
    content_type: str | None
    content_encoding: str | None
    revision: int
    expires_ms: int | None
    written_ms: int | None
    ends_at: int | None = None  #: the tick of the log clock at which it is gone for everybody; None: it stays


class Settings(NamedTuple):
    """What the fold depends on besides the records; itself a record of the stream."""

    max_entries: int | None = None
    id_window: int = ID_WINDOW
    maker: str | None = None  #: who made the keyspace


class Lease(NamedTuple):
    """A lock that is held."""

    owner: str  #: the id of the record that asked for it
    token: int  #: the offset of the record that granted it: the fencing token
    ttl_ms: int  #: how long its holder may be silent
    renewed: int  #: the offset of the record by which the holder was heard last
    silent_ms: int = 0  #: for how long it has been silent since, at least, as those say who have given up


class Lock(NamedTuple):
    """A lock that is held, and who waits for it: owner -> ttl, in the order in which they asked."""

    holder: Lease
    queue: dict[str, int]


class Outcome(NamedTuple):
    """What a record did."""

    kind: str  #: ``set`` or ``delete`` a key, ``batch`` of changes, ``clear`` all, ``lock``, or ``none``
    found: bool = False  #: whether the key had a value before
    done: bool = True  #: whether the operation's condition held
    cell: Cell | None = None  #: what the operation made, or took away
    keys: Sequence[str] = ()  #: those of a batch
    hits: Sequence[str] = ()  #: those of a batch of deletes that had a value before
    why: str = ""  #: why an operation could not be done, where its condition held


class State:
    """A table: the fold of the records so far. Not thread-safe.

    ``single``: of a stream that holds one key. There a fold may begin at a plain set or delete, so nothing that it decides may
    depend on what came before: the log clock drops nothing (it would be one value).
    """

    def __init__(self, *, single: bool = False) -> None:
        self.single = single
        self.cells: MutableMapping[str, Cell] = {}
        self.settings = Settings()
        self.settled = False  #: whether a settings record was seen
        self.clock = LogClock()
        self.locks: dict[str, Lock] = {}
        self.removed: list[str] = []  #: keys that were dropped or evicted since the caller last looked and cleared
        self._ids: FastIds | SmallIds = (SmallIds if single else FastIds)(self.settings.id_window)
        self.is_repeat = self._ids.is_repeat  #: whether a record with this id was seen; remembers it
        self._expiries: list[tuple[float, str, int]] = []  #: of all cells that expire; a heap by when they end

    def knows(self, id: str | None) -> bool:
        """Whether a record with this id was seen lately."""
        return id in self._ids

    def ends_at(self, expires_ms: int | None, written_ms: int | None) -> int | None:
        """When what is written now is gone for everybody. None: it stays. (It may be the only value, wherever the fold began; and
        the gem does not tell how long one lives.)"""
        if expires_ms is None or written_ms is None or self.single:
            return None
        return self.clock.ends_at(expires_ms - written_ms)

    def put(self, key: str, cell: Cell) -> None:
        self.cells[key] = cell
        if cell.expires_ms is not None:
            expiries = self._expiries
            heapq.heappush(expiries, (_end(cell), key, cell.revision))
            if len(expiries) > 2 * len(self.cells) + _STALE_EXPIRIES:
                self._forget_stale_expiries()

    def _forget_stale_expiries(self) -> None:
        """A key that is written again and again, with a ttl of days, would leave one behind for every write."""
        cells = self.cells.items()
        self._expiries = [(_end(cell), key, cell.revision) for key, cell in cells if cell.expires_ms is not None]
        heapq.heapify(self._expiries)

    def drop_ended(self) -> None:
        """Drop what is gone for everybody by the log clock."""
        now, expiries = self.clock.ticks, self._expiries
        while expiries and expiries[0][0] <= now:
            _, key, revision = heapq.heappop(expiries)
            cell = self.cells.get(key)
            if cell is not None and cell.revision == revision:
                del self.cells[key]
                self.removed.append(key)

    def count(self, now_ms: float) -> int:
        """How many keys have a value by a reader's clock. Costs a look at those that expire, and nothing where none does."""
        cells, expired = self.cells, 0
        for _, key, revision in self._expiries:
            cell = cells.get(key)
            if cell is not None and cell.revision == revision and cell.expires_ms is not None and cell.expires_ms <= now_ms:
                expired += 1
        return len(cells) - expired

    def live(self, key: str, record: Record) -> Cell | None:
        """The cell of a key as ``record`` finds it: None if absent or expired by then, by the record's own time."""
        cell = self.cells.get(key)
        if cell is None or cell.expires_ms is None or record.written_ms is None:
            return cell
        return None if record.written_ms >= cell.expires_ms else cell

    def bound(self, settings: Settings) -> None:
        """Take over settings; what no longer fits is evicted, the oldest write first."""
        self.settings = settings
        cells: MutableMapping[str, Cell] = {} if settings.max_entries is None else _Bounded(settings.max_entries, self.removed)
        for key, cell in sorted(self.cells.items(), key=lambda item: item[1].revision):  # a dict keeps the order of first writes
            cells[key] = cell
        self.cells = cells
        self._ids.resize(settings.id_window)


def _end(cell: Cell) -> float:
    return math.inf if cell.ends_at is None else cell.ends_at


class _Bounded(FIFOCache[str, Cell]):
    """A bounded mapping that evicts in the order of the writes, and tells what it evicted."""

    def __init__(self, maxsize: int, evicted: list[str]) -> None:
        super().__init__(maxsize)
        self._evicted = evicted

    def popitem(self) -> tuple[str, Cell]:
        key, cell = super().popitem()
        self._evicted.append(key)
        return key, cell
