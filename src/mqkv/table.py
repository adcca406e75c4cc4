"""A table: what this process knows of one stream. It is the sink of a tail and keeps the fold's state.

It knows records and cells, and no engine, layout or store; it never waits. Everything that changes is changed under the lock.
How it is read is in ``view``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mqkv.anchor import Anchor, told_by
from mqkv.codecs import BoundCodec
from mqkv.errors import Error, LogTruncated, StreamMissing, UpgradeRequired
from mqkv.fold import Cell, Lock, Outcome, State, fold
from mqkv.hearing import Hearing, LockListener
from mqkv.logfmt import Log
from mqkv.middle import Middle
from mqkv.record import Record, Unreadable, parse
from mqkv.streams.base import Delivery, Message, Promise, Tail
from mqkv.view import Shown, View

NO_CELLS: Mapping[str, Cell | None] = {}


class Event(NamedTuple):
    """What a subscriber is told."""

    kind: str  #: ``set``, ``delete``, ``batch``, ``clear``, ``reset``, ``ended``
    key: str = ""
    cell: Cell | None = None  #: of a set
    offset: int = -1  #: the record's
    written_ms: int | None = None
    many: Mapping[str, Cell | None] = NO_CELLS  #: of a batch: what each of its keys is now


Subscriber = Callable[[Event], None]


#: What is not known of a stream.
UNKNOWN = "unknown"


class Table(View):
    """One stream, folded. Thread-safe."""

    tail: Tail

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
        super().__init__(stream, codec, log, whole=whole, key=key, shown=shown)
        self._from_first = whole
        #: Whether the log that it is folded from has lost its beginning.
        self.beheaded = False
        self._middle = Middle()
        #: The record that a fold may begin at was written after this, by ``time.monotonic``; None: nobody can say.
        self.rests_since: float | None = None
        self._written_after: float | None = None  # so was the record that was folded last
        #: Whether one that may be a second copy came since: who begins behind the first one knows nothing from there on.
        self.behind_retry = False
        self.max_age: int | str | None = UNKNOWN  #: of its stream, in seconds
        self._anchored: tuple[int, float | None] | None = None  #: the last anchor: where, and since when
        #: The offset of the first record that it could not judge; it tells nothing from there on.
        self.doubted_at: int | None = None
        #: Called, by the thread that delivers, when subscribers wait for a judgement.
        self.on_doubt: Callable[[], None] | None = None
        self.unreadable = 0
        self.failed: Error | None = None  #: why there is nothing to be read here any more
        self.out_of_touch_since: float | None = None
        self.rebuilt = Promise[None].of(None)
        self.on_change: Callable[[], None] | None = None  #: called when it may have become readable, or ceased to be
        self._awaited: dict[str, Outcome | None] = {}
        self._own: dict[str, tuple[Message, Record, float]] = {}
        self._subscribers: tuple[Subscriber, ...] = ()
        self._hearing = Hearing()
        self._reaching: list[tuple[int, Promise[None]]] = []

    def is_determined(self) -> bool:
        """Whether a table that is loaded knows the state of its key. One that found nothing has begun at the beginning."""
        with self._lock:
            if self.position < 0 and not self.beheaded:
                self.whole = self.determined = True
            return self.determined

    def reach(self, offset: int) -> Promise[None]:
        """Settled when the record at ``offset`` has been folded."""
        promise: Promise[None] = Promise()
        with self._lock:
            if self.position >= offset or self.failed is not None:
                promise.resolve(None)
            else:
                self._reaching.append((offset, promise))
        return promise

    # Locks

    def lock_state(self, name: str) -> Lock | None:
        """How a lock stands; None: it is free."""
        with self._lock:
            self._check()
            return self.state.locks.get(name)

    def lock_heard(self, name: str) -> tuple[Lock | None, float]:
        """How a lock stands, and since when its holder is silent."""
        with self._lock:
            return self._heard(name)

    def listen(self, name: str, listener: LockListener) -> None:
        """Tell ``listener`` how a lock stands, now and at every change; while the table is being rebuilt, not before the end.
        It must be quick, and must not call the table."""
        with self._lock:
            self._hearing.listen(name, listener)
            if not self.rebuilding:
                listener(*self._heard(name))

    def unlisten(self, name: str, listener: LockListener) -> None:
        with self._lock:
            self._hearing.unlisten(name, listener)

    # Writing

    def expect(self, id: str, message: Message, record: Record) -> None:
        """Keep the outcome of this record until it is taken."""
        self._awaited[id] = None
        self._own[id] = message, record, time.monotonic() if self.key is not None else 0.0

    def await_outcome(self, id: str) -> None:
        """Keep the outcome of the record with this id until it is taken."""
        self._awaited[id] = None

    def take(self, id: str) -> Outcome | None:
        self._own.pop(id, None)
        return self._awaited.pop(id, None)

    def subscribe(self, subscriber: Subscriber, *, current: bool = False) -> int | None:
        """Tell ``subscriber`` each change from now on; with ``current`` first what is there, with nothing lost in between. The
        offset that was folded last; None, and nothing is told, while the table is being rebuilt, or where it has failed."""
        with self._lock:
            if self.failed is not None or self.rebuilding:
                return None
            if current and self.state.cells:
                subscriber(Event("batch", offset=self.position, many=dict(self.state.cells)))
            self._subscribers = (*self._subscribers, subscriber)
            return self.position

    def unsubscribe(self, subscriber: Subscriber) -> None:
        with self._lock:
            self._subscribers = tuple(other for other in self._subscribers if other != subscriber)

    def hand_over(self, other: Table) -> None:
        """Have ``other`` tell our subscribers from now on."""
        with self._lock, other._lock:
            others = (each for each in other._subscribers if each != self.judge)
            other._subscribers, self._subscribers = (*others, *self._subscribers), ()

    def judge(self, event: Event) -> None:
        """Tell our subscribers, in place of what we could not judge, what a table that knows the whole stream says."""
        if self.doubted_at is not None and (event.offset >= self.doubted_at or event.kind == "reset"):
            for subscriber in self._subscribers:
                subscriber(event)

    def give_up(self) -> None:
        """Nobody can judge: tell the subscribers that they may have missed something, and go on."""
        with self._lock:
            if self.doubted_at is not None:
                self.doubted_at = None
                self._tell("reset")

    @property
    def watched(self) -> bool:
        return bool(self._subscribers)

    # The sink

    def deliver(self, batch: Sequence[Delivery]) -> None:
        with self._lock:
            if self.failed is None:
                for offset, message in batch:
                    own = self._own.get(message.id) if self._own and message.id is not None else None
                    if own is not None and own[0] is message:
                        # An embedded engine hands back the very message; what it was made of need not be parsed.
                        self._fold(offset, own[1])
                        self.position = offset
                        continue
                    try:
                        record = parse(message, self.key)
                    except Unreadable as why:
                        self._skip(offset, str(why))
                    except UpgradeRequired as error:
                        self._fail(error)
                        return
                    else:
                        self._fold(offset, record)
                    self.position = offset
                if self._reaching:
                    self._reach()

    def truncated(self) -> None:
        """A key's state may rest on what is left; that of a keyspace rests on all that there was."""
        with self._lock:
            if self.failed is not None:
                return
            if self.key is None:
                self._fail(lost(self.stream, "purge the keyspace to start anew"))
            else:
                self.beheaded, self.whole, self.determined, self.doubted_at = True, False, False, 0
                self._middle = Middle()

    def interrupted(self, since: float | None = None) -> None:
        if self.out_of_touch_since is None:
            self.out_of_touch_since = time.monotonic() if since is None else since
        self._changed()

    def resumed(self) -> None:
        with self._lock:
            self.out_of_touch_since = None
            self.rebuilding = False
            if self.key is not None:
                self._show(self.key)
        self.rebuilt.resolve(None)
        self._changed()
        with self._lock:
            self._hearing.tell_all(self.state.locks)

    def reset(self) -> None:
        with self._lock:
            self.state = State(single=self.key is not None)
            self.position = -1
            self.whole = self.determined = self._from_first
            self.beheaded, self.doubted_at = False, None
            self.rests_since = self._written_after = self._anchored = None
            self.behind_retry = False
            self._hearing.forget()
            self.rebuilding = True
            if self.key is None:
                self.shown = {}
                for key in self._pending:
                    self._show(key)
            else:
                self._show(self.key)
            if self.rebuilt.done():
                self.rebuilt = Promise()
            self._tell("reset")
        self._changed()
        self._log(logging.WARNING, "reset", stream=self.stream)

    def ended(self, error: Exception) -> None:
        failed = error if isinstance(error, Error) else StreamMissing(f"the tail of stream {self.stream} has ended: {error}")
        with self._lock:
            if self.failed is None:  # a purge says so, and the engine; who was told has gone on since
                self._fail(failed)

    # Under the lock

    def _heard(self, name: str) -> tuple[Lock | None, float]:
        held = self.state.locks.get(name)
        return held, self._hearing.since(name, held)

    def _fold(self, offset: int, record: Record) -> None:
        if not self.whole:
            self._judge(offset, record)
        state, id = self.state, record.id
        outcome = fold(state, offset, record)
        if state.removed:  # a malformed record moves the log clock, too
            self._forget_removed()
        if record.retry:
            self.rests_since, self._anchored, self.behind_retry = None, None, True
        if outcome is None:
            if id is None or not record.retry:
                self._skip(offset, "a repeat, malformed, or of an unknown operation")
            return
        if self.key is not None:
            self._note_rest(offset, record)
        if id in self._awaited and self.determined:
            self._awaited[id] = outcome
        kind, key = outcome.kind, record.key
        if self._pending and id is not None:
            for changed in outcome.keys or (key,):
                self._settle(changed, id)
        if kind == "set":
            self._show(key)
            self._tell("set", key, state.cells[key], offset, record.written_ms)
        elif kind == "delete":
            self._show(key)
            if outcome.found:
                self._tell("delete", key, None, offset, record.written_ms)
        elif kind == "batch":
            self._show_all(outcome.keys)
            if self._subscribers:
                told = {key: state.cells.get(key) for key in outcome.keys}
                if record.op == "delete_many":
                    told = dict.fromkeys(outcome.hits)
                elif record.op == "set_many":  # what it set and is not there was evicted by the rest of it
                    told = {key: cell for key, cell in told.items() if cell is not None}
                if told:
                    self._tell("batch", "", None, offset, record.written_ms, told)
        elif kind == "lock":
            for name in outcome.keys or (key,):
                self._hearing.note(name, state.locks.get(name))
                if not self.rebuilding:  # else what is folded is long past
                    self._hearing.tell(name, state.locks)
        elif kind == "clear":
            self._hide_all()
            self._tell("clear", "", None, offset, record.written_ms)

    def _judge(self, offset: int, record: Record) -> None:
        """A fold that began at the end of a stream knows the key's state by its first plain set or delete, and as long as no
        record comes that may be the second copy of one that stands before."""
        if self.position < 0 or (self.beheaded and not self.determined):
            self.determined = not record.retry and record.op in ("set", "delete")
            if self.beheaded:
                self._begin(offset, record)
        elif record.retry and self.determined and not self.state.knows(record.id):
            own = self._own.get(record.id or "")
            if own is not None and not own[1].retry:
                return  # we sent it, and all its copies stand behind our beginning
            self.determined, self.doubted_at = False, offset
            self._middle = Middle()
            self._middle.read(offset, record)
            self._hide_all()
            if self._subscribers and self.on_doubt is not None:
                self.on_doubt()

    def _begin(self, offset: int, record: Record) -> None:
        """Where the beginning is gone: begin here, if the state is known here."""
        state = None if self.determined else self._middle.read(offset, record)
        if state is not None:
            self.state, self.determined = state, True
            for id, outcome in self._middle.replay(state):
                if id in self._awaited:
                    self._awaited[id] = outcome
        if self.determined:
            self._middle, self.doubted_at = Middle(), None
        if state is not None:
            self._show(record.key)
            cell = state.cells.get(record.key)
            if cell is not None:
                self._tell("set", record.key, cell, cell.revision, cell.written_ms)

    def _note_rest(self, offset: int, record: Record) -> None:
        """A fold may begin at a plain set or delete; at an anchor that names the offset before its own; and at another once a
        further one names it, or a later record. How old that is, no clock but ours can say: it is younger than what we wrote
        before it, and may be as old as that, however late it comes here."""
        own = self._own.get(record.id) if self._own and record.id is not None else None
        if own is not None:
            self._written_after = max(own[2], self._written_after or own[2])
        if record.op in ("set", "delete") and not record.retry:
            self._anchored = None
            self.rests_since, self.behind_retry = self._written_after, False
        elif record.op == "state" and not record.retry:
            anchored, told = self._anchored, told_by(record)
            self._anchored = offset, self._written_after
            if told is not None and told.after == offset - 1:
                self.rests_since, self.behind_retry = self._written_after, False
            elif told is not None and anchored is not None and told.after >= anchored[0]:
                self.rests_since, self.behind_retry = anchored[1], False

    def place(self) -> Anchor | None:
        """What an anchor would tell now; None where nothing is known, or nothing has been."""
        with self._lock:
            known = self.determined and self.position >= 0 and self.key is not None
            return Anchor(self.position, self.state.cells.get(self.key or "")) if known else None

    def _reach(self) -> None:
        waiting, self._reaching = self._reaching, []
        for offset, promise in waiting:
            if self.position >= offset or self.failed is not None:
                promise.resolve(None)
            else:
                self._reaching.append((offset, promise))

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _skip(self, offset: int, why: str) -> None:
        self.unreadable += 1
        self._log.once(logging.WARNING, f"skip {self.stream}", "skip", stream=self.stream, offset=offset, reason=why)

    def _fail(self, error: Error) -> None:
        self.failed, self.rebuilding = error, False
        self.state = State(single=self.key is not None)
        self._hide_all()
        self._reach()
        self._hearing.tell_all(self.state.locks)
        self.rebuilt.resolve(None)
        self._tell("ended")
        self._subscribers = ()
        self._changed()
        self._log(logging.WARNING, "table-ended", stream=self.stream, reason=type(error).__name__)

    def _tell(
        self,
        kind: str,
        key: str = "",
        cell: Cell | None = None,
        offset: int = -1,
        written_ms: int | None = None,
        many: Mapping[str, Cell | None] = NO_CELLS,
    ) -> None:
        if self._subscribers and (self.doubted_at is None or kind == "ended"):
            event = Event(kind, key, cell, offset, written_ms, many)
            for subscriber in self._subscribers:
                subscriber(event)


def lost(stream: str, remedy: str) -> LogTruncated:
    """Why a log that has lost its beginning is not read."""
    return LogTruncated(
        f"the beginning of stream {stream} is gone: retention dropped records that its state rests on, so that nobody can know "
        f"it. Take the retention policy (or max-age) away; {remedy}"
    )
