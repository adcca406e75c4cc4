"""Beginning to fold one key's stream in the middle, where its beginning is gone: what tells the state there. No I/O.

Rules:

1. A plain set or delete that is no retry tells it, whatever came before.
2. An anchor tells it, if all records since the one that it names have been read (see :mod:`mqkv.anchor`), and none of them may
   be the second copy of one that was not. Where it stands at the very next offset there is none to be read.
3. Until then nothing is known, and a record that comes is kept for rule 2, as many as ``KEPT``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mqkv.anchor import told_by
from mqkv.fold import Outcome, State, fold
from mqkv.record import Record

#: Records between the one that an anchor names and the anchor: those that were under way when it was written. Never so many.
KEPT = 1_000


class Middle:
    """The records since a fold began in the middle. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Record]] = deque()
        self._since = -1  #: all records after this offset have been read and kept

    def read(self, offset: int, record: Record) -> State | None:
        """The next record; the state before it, if that is known now. (Not called again then.)"""
        if self._since < 0:
            self._since = offset
        if record.op == "state" and not record.retry:  # a retry may have been written into another log than it tells of
            told = told_by(record)
            if told is not None and (self._since <= told.after < offset or told.after == offset - 1):
                state = self._state(told.after)
                if state is not None:
                    if told.cell is not None:
                        state.cells[record.key] = told.cell
                    self._kept = deque((at, each) for at, each in self._kept if at > told.after)
                    return state
        self._kept.append((offset, record))
        if len(self._kept) > KEPT:
            self._since = self._kept.popleft()[0]
        return None

    def _state(self, after: int) -> State | None:
        """A state that remembers what was read up to an offset; None if what was read since may repeat what was not read."""
        state, since = State(single=True), set()
        for at, each in self._kept:
            if at <= after:
                state.is_repeat(each.id)
            elif each.retry and not state.knows(each.id) and each.id not in since:
                return None
            else:
                since.add(each.id)
        return state

    def replay(self, state: State) -> Iterator[tuple[str | None, Outcome | None]]:
        """Fold what was read since the record that the anchor named: ids and outcomes."""
        for offset, record in self._kept:
            yield record.id, fold(state, offset, record)
