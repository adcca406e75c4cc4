"""What a table shows: the values that the log tells, and this process's own writes that are still under way.

Rules:

1. ``shown`` holds, ready to be handed out, the values that can be shared; what is mutable, absent or not served is not in it.
   Its readers take no lock (a dict lookup is atomic); all else is read and changed under the lock.
2. A write that nobody waited for is shown at once, and stays shown until its own record is folded or has failed.
3. Who has seen one value of a batch sees all of it.
4. While the log is read anew nobody reads it: :class:`Rebuilding`. Readers that had ``shown`` already keep the old one.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Container, Iterable

from mqkv.codecs import IMMUTABLE, BoundCodec
from mqkv.fold import Cell, State
from mqkv.logfmt import Log
from mqkv.record import Record

#: What ``shown`` holds for a key: the value, and the expiry in Unix seconds.
Shown = tuple[object, "float | None"]


class Rebuilding(Exception):
    """The log was found to be another one, and is being read anew: what is known so far is no answer."""


class View:
    """The side of a table that is read. Thread-safe."""

    def __init__(
        self,
        stream: str,
        codec: BoundCodec,
        log: Log,
        *,
        whole: bool = True,
        key: str | None = None,
        shown: dict[str, Shown] | None = None,
    ) -> None:
        self.stream = stream
        self.key = key  #: the one key of the stream, in the per-key layout
        self.whole = whole  #: whether it is folded from the stream's first record on
        self.state = State(single=key is not None)
        self.shown: dict[str, Shown] = {} if shown is None else shown
        self.serving = key is None  #: whether folded values are shown
        self.position = -1  #: the offset that was folded last
        self.determined = whole  #: whether what was folded tells the state of its key, whatever came before
        self.rebuilding = False  #: whether the log is being read anew, so that nobody may read what is known of it
        self._codec = codec
        self._log = log
        self._lock = threading.Lock()
        self._pending: dict[str, dict[str, Cell | None]] = {}

    def read(self, key: str) -> Cell | None:
        """The newest cell of a key: this process's own write under way, or what the log says."""
        with self._lock:  # not while a batch is half folded
            pending = self._pending.get(key)
            if pending:
                return next(reversed(pending.values()))
            if self.rebuilding:
                raise Rebuilding
            return self.state.cells.get(key)

    def read_many(self, keys: Iterable[str]) -> tuple[dict[str, Shown], dict[str, Cell]]:
        """Those of ``keys`` that have a value, at one moment: ready to be handed out, or as cells."""
        ready: dict[str, Shown] = {}
        cells: dict[str, Cell] = {}
        with self._lock:
            self._check()
            shown, folded, pending = self.shown, self.state.cells, self._pending
            for key in keys:
                value = shown.get(key)
                if value is not None:
                    ready[key] = value
                    continue
                own = pending.get(key) if pending else None
                cell = next(reversed(own.values())) if own else folded.get(key)
                if cell is not None:
                    cells[key] = cell
        return ready, cells

    def snapshot(self) -> dict[str, Cell]:
        """All cells at one moment, in a dict of the caller's own."""
        with self._lock:
            self._check()
            cells = dict(self.state.cells)
            for key, pending in self._pending.items():
                cell = next(reversed(pending.values()))
                if cell is None:
                    cells.pop(key, None)
                else:
                    cells[key] = cell
            return cells

    def count(self, now_ms: float) -> int:
        """How many keys have a value at one moment."""
        with self._lock:
            self._check()
            count = self.state.count(now_ms)
            for key, pending in self._pending.items():
                count += is_live(next(reversed(pending.values())), now_ms) - is_live(self.state.cells.get(key), now_ms)
            return count

    def newest(self, now_ms: float, but: Container[tuple[str, int]]) -> tuple[str, Cell] | None:
        """The last key that has a value, in the order of ``snapshot``; none whose key and revision are in ``but``."""
        with self._lock:
            self._check()
            cells = self.state.cells
            for key in itertools.chain(reversed(self._pending), reversed(cells if isinstance(cells, dict) else list(cells))):
                pending = self._pending.get(key)
                cell = next(reversed(pending.values())) if pending else cells.get(key)
                if cell is not None and is_live(cell, now_ms) and (key, cell.revision) not in but:
                    return key, cell
            return None

    def is_pending(self, key: str) -> bool:
        return key in self._pending

    def show_early(self, record: Record, cells: dict[str, Cell | None]) -> None:
        """Show a write before it is confirmed."""
        assert record.id is not None
        with self._lock:
            for key, cell in cells.items():
                self._pending.setdefault(key, {})[record.id] = cell
                self._show(key)

    def forget_early(self, keys: Iterable[str], id: str) -> None:
        """The write is settled: the log speaks for itself again."""
        with self._lock:
            for key in keys:
                self._settle(key, id)

    def serve(self, serving: bool) -> None:
        """Whether the folded value of this stream's one key is shown."""
        with self._lock:
            self.serving = serving
            if self.key is not None:
                self._show(self.key)

    # Under the lock

    def _check(self) -> None:
        if self.rebuilding:
            raise Rebuilding

    def _show(self, key: str) -> None:
        ready = self._ready(key)
        if ready is None:
            self.shown.pop(key, None)
        else:
            self.shown[key] = ready

    def _show_all(self, keys: Iterable[str]) -> None:
        """Show a batch as a whole: who has seen one of its values sees all. What can't be shown goes first, so that its readers
        come here, and wait; ``dict.update`` is one step."""
        ready: dict[str, Shown] = {}
        for key in keys:
            value = self._ready(key)
            if value is None:
                self.shown.pop(key, None)
            else:
                ready[key] = value
        self.shown.update(ready)

    def _ready(self, key: str) -> Shown | None:
        """What may be handed out for a key without asking; None where asking is needed."""
        pending = self._pending.get(key) if self._pending else None
        if pending:
            cell = next(reversed(pending.values()))
        else:
            # A key's table shares its ``shown`` with others, which are read meanwhile.
            hidden = not (self.serving and self.determined) or (self.rebuilding and self.key is not None)
            cell = None if hidden else self.state.cells.get(key)
        if cell is None or cell.content_encoding is not None:
            return None
        body, content_type, _, _, expires_ms, *_ = cell
        if not self._codec.may_share(body, content_type):
            return None
        try:
            value = self._codec.decode(key, body, content_type)
        except Exception:  # noqa: BLE001 -- a codec may be the user's own; reading the key says what is wrong
            if not self._codec.lenient:  # else it is absent, and whoever asks for it says so
                self._log.once(logging.WARNING, "undecodable", "undecodable", stream=self.stream, offset=cell.revision)
            return None
        return (value, None if expires_ms is None else expires_ms / 1000) if type(value) in IMMUTABLE else None

    def _settle(self, key: str, id: str) -> None:
        pending = self._pending.get(key)
        if pending is not None and id in pending:
            del pending[id]
            if not pending:
                del self._pending[key]
            self._show(key)

    def _forget_removed(self) -> None:
        removed = self.state.removed[:]
        self.state.removed.clear()
        self._show_all(removed)

    def _hide_all(self) -> None:
        if self.key is None:
            self.shown.clear()
            for key in self._pending:
                self._show(key)
        else:
            self._show(self.key)


def is_live(cell: Cell | None, now_ms: float) -> bool:
    return cell is not None and (cell.expires_ms is None or now_ms < cell.expires_ms)
