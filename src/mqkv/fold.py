"""The fold: a table as a deterministic function of its records. Pure: no I/O, no clock, no thread.

Rules:

1. The answer depends on the records and on nothing else, so that every process that has read the same log knows the same.
2. An operation finds an entry expired when the operation's own record was written at or after the expiry: who has a wrong clock
   harms what it touches. Once the ttl and a margin have passed by the *log clock* (:mod:`mqkv.clock`), which no single writer can
   push, the entry is gone for everybody, and only then is it dropped.
3. A record whose id is among the last ``Settings.id_window`` ones is a repeat and does nothing.
4. A new operation is one small function in :data:`mqkv.operations.OPERATIONS`.
"""

from __future__ import annotations

from mqkv.operations import OPERATIONS
from mqkv.record import Record
from mqkv.state import ID_WINDOW, LONGEST_MAKER, Cell, Lease, Lock, Outcome, Settings, State

__all__ = ["ID_WINDOW", "LONGEST_MAKER", "OPERATIONS", "Cell", "Lease", "Lock", "Outcome", "Settings", "State", "fold"]


def fold(state: State, offset: int, record: Record) -> Outcome | None:
    """Apply one record. None: the record did nothing, since it is a repeat, malformed, or of an operation that nobody knows."""
    operation = OPERATIONS.get(record.op)
    if operation is None or state.is_repeat(record.id):
        return None
    id, time_ms = record.id, record.written_ms
    if time_ms is not None and id is not None and state.clock.hear(id, time_ms):
        state.drop_ended()
    return operation(state, offset, record)
