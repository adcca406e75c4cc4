"""The fold: a table as a deterministic function of its records. Pure: no I/O, no clock, no thread.

Rules:

1. The answer depends on the records and on nothing else, so that every process that has read the same log knows the same.
2. An operation finds an entry expired when the operation's own record was written at or after the expiry. Once *log time* (the
   newest time that any record has told) is past the expiry by a margin, the entry is gone for everybody, and only then is it
   dropped.
3. A record whose id is among the last ``Settings.id_window`` ones is a repeat and does nothing.
4. A new operation is one small function in :data:`OPERATIONS`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

from cachetools import FIFOCache

from mqkv.record import Record

ID_WINDOW = 10_000
_MARGIN_MS = 60_000


class Cell(NamedTuple):
    """What is known of a key: its newest value as it stands in the log."""

    body: bytes
    content_type: str | None
    content_encoding: str | None
    revision: int
    expires_ms: int | None
    written_ms: int | None


class Settings(NamedTuple):
    """What the fold depends on besides the records; itself a record of the stream."""

    max_entries: int | None = None
    id_window: int = ID_WINDOW


class Outcome(NamedTuple):
    """What a record did."""

    kind: str  #: ``set`` or ``delete`` a key, ``clear`` all, or ``none``
    found: bool = False  #: whether the key had a value before
    done: bool = True  #: whether the operation's condition held


class State:
    """A table: the fold of the records so far. Not thread-safe."""

    def __init__(self) -> None:
        self.cells: MutableMapping[str, Cell] = {}
        self.settings = Settings()
        self.settled = False  #: whether a settings record was seen
        self.log_time = 0
        self.removed: list[str] = []  #: keys that were dropped or evicted since the caller last looked and cleared
        self._ids: set[str] = set()
        self._id_order: deque[str | None] = deque()
        self._expiries: list[tuple[int, str, int]] = []

    def is_repeat(self, id: str | None) -> bool:
        """Whether a record with this id was seen; remembers it."""
        order = self._id_order
        if id is not None:
            if id in self._ids:
                return True
            self._ids.add(id)
        order.append(id)
        if len(order) > self.settings.id_window:
            old = order.popleft()
            if old is not None:
                self._ids.discard(old)
        return False

    def put(self, key: str, cell: Cell) -> None:
        self.cells[key] = cell
        if cell.expires_ms is not None:
            heapq.heappush(self._expiries, (_gone_at(cell), key, cell.revision))
            self.advance(self.log_time)  # a writer whose clock is far behind may write what is gone already

    def advance(self, time_ms: int) -> None:
        """Move log time on, and drop what is expired for everybody."""
        self.log_time = time_ms
        expiries = self._expiries
        while expiries and expiries[0][0] <= time_ms:
            _, key, revision = heapq.heappop(expiries)
            cell = self.cells.get(key)
            if cell is not None and cell.revision == revision:
                del self.cells[key]
                self.removed.append(key)

    def live(self, key: str, record: Record) -> Cell | None:
        """The cell of a key as ``record`` finds it: None if absent or expired by then."""
        cell = self.cells.get(key)
        if cell is None or cell.expires_ms is None:
            return cell
        time_ms = self.log_time if record.written_ms is None else record.written_ms
        return None if time_ms >= cell.expires_ms else cell

    def bound(self, settings: Settings) -> None:
        """Take over settings; what no longer fits is evicted, the oldest write first."""
        self.settings = settings
        cells: MutableMapping[str, Cell] = {} if settings.max_entries is None else _Bounded(settings.max_entries, self.removed)
        for key, cell in sorted(self.cells.items(), key=lambda item: item[1].revision):  # a dict keeps the order of first writes
            cells[key] = cell
        self.cells = cells
        while len(self._id_order) > settings.id_window:
            old = self._id_order.popleft()
            if old is not None:
                self._ids.discard(old)


class _Bounded(FIFOCache[str, Cell]):
    """A bounded mapping that evicts in the order of the writes, and tells what it evicted."""

    def __init__(self, maxsize: int, evicted: list[str]) -> None:
        super().__init__(maxsize)
        self._evicted = evicted

    def popitem(self) -> tuple[str, Cell]:
        key, cell = super().popitem()
        self._evicted.append(key)
        return key, cell


def _gone_at(cell: Cell) -> int:
    assert cell.expires_ms is not None
    ttl = 0 if cell.written_ms is None else cell.expires_ms - cell.written_ms
    return cell.expires_ms + max(_MARGIN_MS, ttl // 10)


_NONE = Outcome("none", done=False)
_SYNC = Outcome("none")
_SET_NEW, _SET_OVER = Outcome("set"), Outcome("set", found=True)
_DELETE_NONE, _DELETE = Outcome("delete", done=False), Outcome("delete", found=True)
_CLEAR = Outcome("clear")


def _set(state: State, offset: int, record: Record) -> Outcome:
    found = state.live(record.key, record) is not None
    _, key, body, content_type, content_encoding, expires_ms, written_ms, *_ = record
    state.put(key, Cell(body, content_type, content_encoding, offset, expires_ms, written_ms))
    return _SET_OVER if found else _SET_NEW


def _delete(state: State, offset: int, record: Record) -> Outcome:
    found = state.live(record.key, record) is not None
    state.cells.pop(record.key, None)
    return _DELETE if found else _DELETE_NONE


def _clear(state: State, offset: int, record: Record) -> Outcome:
    state.cells.clear()
    return _CLEAR


def _settings(state: State, offset: int, record: Record) -> Outcome:
    """Settings of a new keyspace count only if they are the first; a later change says ``change``."""
    if state.settled and record.args.get("change") is not True:
        return _NONE
    max_entries = record.args.get("max_entries")
    if max_entries is not None and (type(max_entries) is not int or max_entries < 1):
        return _NONE
    state.settled = True
    state.bound(state.settings._replace(max_entries=max_entries))
    return _SYNC


def _sync(state: State, offset: int, record: Record) -> Outcome:
    return _SYNC


Operation = Callable[[State, int, Record], Outcome]

OPERATIONS: dict[str, Operation] = {"set": _set, "delete": _delete, "clear": _clear, "settings": _settings, "sync": _sync}


def fold(state: State, offset: int, record: Record) -> Outcome | None:
    """Apply one record. None: the record did nothing, because it is a repeat or of an operation that nobody knows."""
    operation = OPERATIONS.get(record.op)
    if operation is None or state.is_repeat(record.id):
        return None
    time_ms = record.written_ms
    if time_ms is not None and time_ms > state.log_time:
        state.advance(time_ms)
    return operation(state, offset, record)
