"""What each operation does to a table: one small function each, in :data:`OPERATIONS`. Pure.

Rules:

1. A function decides by the state and its record alone. It returns None for a record that is malformed, before it changes
   anything: such a record is skipped.
2. A condition is judged at the record's place in the log: by what :meth:`mqkv.state.State.live` says of the key there.
3. The caller of a conditional operation reads its :class:`mqkv.state.Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable

from mqkv import number
from mqkv.anchor import told_by
from mqkv.codecs import JSON
from mqkv.locks import break_lease, lock, renew, unlock
from mqkv.record import Record
from mqkv.state import LONGEST_MAKER, Cell, Outcome, State

Operation = Callable[[State, int, Record], "Outcome | None"]

_NONE = Outcome("none", done=False)
_REFUSED = Outcome("none", found=True, done=False)
_SYNC = Outcome("none")
_SET_NEW, _SET_OVER = Outcome("set"), Outcome("set", found=True)
_DELETE_NONE, _DELETE = Outcome("delete", done=False), Outcome("delete", found=True)
_CLEAR = Outcome("clear")


def _set(state: State, offset: int, record: Record) -> Outcome:
    found = state.live(record.key, record) is not None
    _, key, body, content_type, content_encoding, expires_ms, written_ms, *_ = record
    ends_at = state.ends_at(expires_ms, written_ms)
    state.put(key, Cell(body, content_type, content_encoding, offset, expires_ms, written_ms, ends_at))
    return _SET_OVER if found else _SET_NEW


def _delete(state: State, offset: int, record: Record) -> Outcome:
    found = state.live(record.key, record) is not None
    state.cells.pop(record.key, None)
    return _DELETE if found else _DELETE_NONE


def _add(state: State, offset: int, record: Record) -> Outcome:
    """Only if the key has no value."""
    if state.live(record.key, record) is not None:
        return _REFUSED
    return _set(state, offset, record)


def _compare_and_set(state: State, offset: int, record: Record) -> Outcome | None:
    """Only if the key still has this revision; without one, only if it has no value."""
    expected = record.args.get("revision")
    if expected is not None and type(expected) is not int:
        return None
    cell = state.live(record.key, record)
    if (None if cell is None else cell.revision) != expected:
        return _NONE if cell is None else _REFUSED
    return _set(state, offset, record)


def _delete_if(state: State, offset: int, record: Record) -> Outcome | None:
    """Only if the key still has this revision."""
    expected = record.args.get("revision")
    if type(expected) is not int:
        return None
    cell = state.live(record.key, record)
    if cell is None or cell.revision != expected:
        return _NONE if cell is None else _REFUSED
    return _delete(state, offset, record)


def _incr(state: State, offset: int, record: Record) -> Outcome | None:
    """Add to a number, which keeps its ttl. A key without a value counts as ``initial``, and gets the record's ttl."""
    delta, initial = number.from_header(record.args.get("delta")), record.args.get("initial")
    if delta is None:
        return None
    cell = state.live(record.key, record)
    if cell is not None:
        base, expires_ms, ends_at = number.read(cell), cell.expires_ms, cell.ends_at
        if base is None:
            return _REFUSED._replace(why="is not a number")
    elif initial is None:
        return _NONE
    else:
        base, expires_ms = number.from_header(initial), record.expires_ms
        ends_at = state.ends_at(expires_ms, record.written_ms)
        if base is None:
            return None
    body = number.render(base + delta)
    if body is None:
        return Outcome("none", found=cell is not None, done=False, why="would not fit 64 bits")
    total = Cell(body, JSON, None, offset, expires_ms, record.written_ms, ends_at)
    state.put(record.key, total)
    return Outcome("set", found=cell is not None, cell=total)


def _touch(state: State, offset: int, record: Record) -> Outcome:
    """Another expiry for a value."""
    cell = state.live(record.key, record)
    if cell is None:
        return _NONE
    expires_ms, written_ms = record.expires_ms, record.written_ms
    ends_at = state.ends_at(expires_ms, written_ms)
    state.put(record.key, cell._replace(revision=offset, expires_ms=expires_ms, written_ms=written_ms, ends_at=ends_at))
    return _SET_OVER


def _pop(state: State, offset: int, record: Record) -> Outcome:
    """Take the value away."""
    cell = state.live(record.key, record)
    state.cells.pop(record.key, None)
    return _DELETE_NONE if cell is None else Outcome("delete", found=True, cell=cell)


def _set_many(state: State, offset: int, record: Record) -> Outcome | None:
    batch = record.batch
    if batch is None:
        return None
    expires_ms, written_ms = record.expires_ms, record.written_ms
    put = state.cells.__setitem__ if expires_ms is None else state.put
    ends_at = state.ends_at(expires_ms, written_ms)
    for key, body, content_type in batch.items():
        put(key, Cell(body, content_type, None, offset, expires_ms, written_ms, ends_at))
    return Outcome("batch", keys=batch.keys)


def _delete_many(state: State, offset: int, record: Record) -> Outcome | None:
    batch = record.batch
    if batch is None:
        return None
    hits = [key for key in batch.keys if state.live(key, record) is not None]
    for key in batch.keys:
        state.cells.pop(key, None)
    return Outcome("batch", keys=batch.keys, hits=hits)


def _clear(state: State, offset: int, record: Record) -> Outcome | None:
    """Remove all keys, or those that begin with ``prefix``."""
    prefix = record.args.get("prefix", "")
    if type(prefix) is not str:
        return None
    if not prefix:
        state.cells.clear()
        return _CLEAR
    keys = [key for key in state.cells if key.startswith(prefix)]
    for key in keys:
        del state.cells[key]
    return Outcome("batch", keys=keys)


def _settings(state: State, offset: int, record: Record) -> Outcome:
    """Settings of a new keyspace count only if they are the first; a later ``change`` changes what it names, save the maker."""
    args, change = record.args, record.args.get("change") is True
    max_entries, maker = args.get("max_entries"), args.get("maker")
    if state.settled and not change:
        return _NONE
    if max_entries is not None and (type(max_entries) is not int or max_entries < 0):
        return _NONE
    settings = state.settings
    if max_entries is not None:
        settings = settings._replace(max_entries=max_entries or None)
    if type(maker) is str and len(maker) <= LONGEST_MAKER and not change:
        settings = settings._replace(maker=maker)
    state.settled = True
    state.bound(settings)
    return _SYNC


def _state(state: State, offset: int, record: Record) -> Outcome | None:
    """What the key was after an earlier record: news only to who did not read that far back."""
    return None if told_by(record) is None else _SYNC


def _sync(state: State, offset: int, record: Record) -> Outcome:
    return _SYNC


OPERATIONS: dict[str, Operation] = {
    "set": _set,
    "delete": _delete,
    "add": _add,
    "compare_and_set": _compare_and_set,
    "delete_if": _delete_if,
    "incr": _incr,
    "touch": _touch,
    "pop": _pop,
    "set_many": _set_many,
    "delete_many": _delete_many,
    "clear": _clear,
    "lock": lock,
    "unlock": unlock,
    "renew": renew,
    "break": break_lease,
    "settings": _settings,
    "state": _state,
    "sync": _sync,
}
