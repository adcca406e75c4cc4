"""The tails of one engine: which sinks follow which stream, and how far they have been fed.

It reads the database and writes nothing. All of it is called under the engine's lock, but for what a tail does by itself. Rules:

1. ``known`` is the newest offset that all attached sinks have been given; it rises after they have.
2. A tail is attached when it has been given all up to ``known``; what stands before that is delivered while it is still loading,
   some hundreds of records at a time, with the lock let go of in between.
3. Who has not been given what was removed as too old is told so, and given what is left.
4. A record whose checksum is wrong is not delivered: it is counted, logged once a stream, and passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mqkv.errors import StreamDamaged, StreamMissing
from mqkv.logfmt import Log
from mqkv.streams.base import MESSAGE, Delivery, Message, Piece, Promise, Sink, Start, Tail
from mqkv.streams.file.database import BATCH, Database, Row, message_of

if TYPE_CHECKING:
    from mqkv.streams.file.engine import FileEngine


class Stream:
    """A stream that somebody has opened here."""

    def __init__(self, id: int, name: str, max_age: int | None, log: Tails) -> None:
        self.log = log  #: whose numbers these are: another folder has another stream of this id
        self.id = id
        self.name = name
        self.max_age = max_age
        self.tails: tuple[FileTail, ...] = ()


class FileTail(Tail):
    """A sink's place in a stream. Thread-safe."""

    def __init__(self, engine: FileEngine, sink: Sink) -> None:
        self._engine = engine
        self.sink = sink
        self.stream: Stream | None = None
        self.position = 0  #: while it is loading: the least offset that it has not been given
        self.begun = False
        self.closed = False
        self.ready = self.attached = Promise()

    def append(self, message: Message, timeout: float) -> Promise[int]:
        if self.stream is None:
            promise: Promise[int] = Promise()
            promise.reject(self.ready.error() or StreamMissing("the stream of this tail could not be opened"))
            return promise
        return self._engine.append(self.stream, message, timeout)

    def close(self) -> None:
        self.closed = True
        self._engine.detach(self)


class Tails:
    """All tails of an engine."""

    def __init__(self, log: Log, path: str) -> None:
        self.known = -1
        self.streams: dict[int, Stream] = {}
        self.damaged = 0
        self._log = log
        self._path = path

    def catch_up(self, base: Database) -> None:
        """Give the sinks all that was committed."""
        if not self.streams:
            self.known = max(self.known, base.end())
            return
        trimmed: dict[int, Stream] = {}
        while rows := base.since(self.known):
            self._check_order(rows, self.known + 1)
            for stream in self.streams.values():
                if stream.max_age is not None and base.trimmed(stream.id) > self.known:
                    trimmed[stream.id] = stream
            batches: dict[int, list[Delivery]] = {}
            for row in rows:
                followed = self.streams.get(row[1])
                if followed is not None and (message := self.read(row, followed.name)):
                    batches.setdefault(followed.id, []).append((row[0], message))
            for id, batch in batches.items():
                if id not in trimmed:
                    for tail in self.streams[id].tails:
                        tail.sink.deliver(batch)
            self.known = rows[-1][0]
            if any(row[1] == 0 for row in rows):
                self._end_deleted(base)
        for id in trimmed.keys() & self.streams.keys():
            self._begin_again(base, trimmed[id])

    def _begin_again(self, base: Database, stream: Stream) -> None:
        """What this process had not seen was removed as too old."""
        for tail in stream.tails:
            tail.sink.interrupted()
            tail.sink.reset()
            tail.sink.truncated()
        offset = base.trimmed(stream.id) + 1
        while rows := [row for row in base.of_stream(stream.id, offset) if row[0] <= self.known]:
            batch = [(row[0], message) for row in rows if (message := self.read(row, stream.name))]
            for tail in stream.tails:
                tail.sink.deliver(batch)
            offset = rows[-1][0] + 1
        for tail in stream.tails:
            tail.sink.resumed()

    def begin(self, base: Database, tail: FileTail, name: str, start: Start | int) -> None:
        """Find the stream, and the offset to begin at."""
        found = base.find(name)
        if found is None:
            raise missing(name)
        tail.stream = Stream(found[0], name, found[1], self)
        if isinstance(start, int):
            tail.position = start
        elif start is Start.NEXT:
            tail.position = base.end() + 1
        elif start is Start.LAST:
            row = base.newest(found[0])
            tail.position = row[0] if row else 0

    def load(self, base: Database, tail: FileTail) -> tuple[list[Delivery], bool]:
        """The next messages of a tail that is loading; and whether these were all: they are delivered, and it is attached."""
        assert tail.stream is not None
        stream = tail.stream
        if stream.log is not self:
            raise missing(stream.name)
        rows = base.of_stream(stream.id, tail.position)
        complete = len(rows) < BATCH
        if complete:
            self.catch_up(base)
            rows = [row for row in base.of_stream(stream.id, tail.position) if row[0] <= self.known]
            complete = len(rows) < BATCH
        if stream.max_age is not None and (gone := base.trimmed(stream.id)) >= tail.position:
            if tail.begun:  # what was removed while it was loading is missing
                tail.sink.reset()
            if tail.begun or tail.position == 0:
                tail.sink.truncated()
            tail.position = gone + 1
            return [], False
        tail.begun = True
        if rows:
            self._check_order(rows, tail.position)
            tail.position = rows[-1][0] + 1
        batch = [(row[0], message) for row in rows if (message := self.read(row, stream.name))]
        if complete:
            if not base.exists(stream.id):
                raise missing(stream.name)
            if batch:
                tail.sink.deliver(batch)
            if not tail.closed:
                stream = tail.stream = self.streams.setdefault(stream.id, stream)
                stream.tails = (*stream.tails, tail)
        return batch, complete

    def piece(self, base: Database, name: str, start: int, size: int) -> Piece:
        """A part of a stream for one who reads by himself."""
        found = base.find(name)
        if found is None:
            raise missing(name)
        batch: list[Delivery] = []
        begin, truncated = start, start == 0 and found[1] is not None and base.trimmed(found[0]) >= 0
        while True:
            rows = 0
            for row in base.each_of_stream(found[0], begin):
                self._check_order((row,), begin)
                rows, begin = rows + 1, row[0] + 1
                message = self.read(row, name)
                if message is not None:
                    batch.append((row[0], message))
                    size -= len(message.body) + MESSAGE
                if size <= 0 and len(batch) > 1:
                    return Piece(batch, False, truncated)
            if rows < BATCH:
                return Piece(batch, True, truncated)

    def detach(self, tail: FileTail) -> None:
        stream = tail.stream
        if stream is not None and tail in stream.tails:
            stream.tails = tuple(other for other in stream.tails if other is not tail)
            if not stream.tails and self.streams.get(stream.id) is stream:
                del self.streams[stream.id]

    def clear(self) -> None:
        for stream in self.streams.values():
            stream.tails = ()
        self.streams = {}

    def end_all(self) -> None:
        """The streams are gone, with all that holds them."""
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            tails, stream.tails = stream.tails, ()
            for tail in tails:
                tail.sink.ended(missing(stream.name))

    def read(self, row: Row, stream: str) -> Message | None:
        """The message of a row; None for a damaged one."""
        message = message_of(row)
        if message is None:
            self.damaged += 1
            self._log.once(logging.ERROR, f"damaged {stream}", "damaged", stream=stream, offset=row[0], path=self._path)
        return message

    def _end_deleted(self, base: Database) -> None:
        for stream in list(self.streams.values()):
            if not base.exists(stream.id):
                del self.streams[stream.id]
                tails, stream.tails = stream.tails, ()
                for tail in tails:
                    tail.sink.ended(missing(stream.name))

    def _check_order(self, rows: Sequence[Row], least: int) -> None:
        """Offsets that do not rise come of a damaged page; going on could go on for ever."""
        if rows[0][0] < least or rows[-1][0] - rows[0][0] < len(rows) - 1:
            raise StreamDamaged(f"the database in {self._path} is damaged (offset {rows[0][0]}): restore it from a backup")


def missing(stream: str) -> StreamMissing:
    return StreamMissing(f"there is no stream {stream}")
