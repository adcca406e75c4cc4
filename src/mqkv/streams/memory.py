"""An engine in this process's memory: for trying things out, for tests, and the fake with faults on demand.

It knows messages and offsets, no key and no clock. Rules:

1. The data lives in the engine object; stores share it through the registry, and it is gone with the last of them.
2. Everything happens under one lock, in the thread that asks for it: no thread, no sleep, no chance. What a test makes happen
   through ``engine.faults`` happens at once, and the same way each time.
3. Promises are settled after the lock is let go, since their callbacks may call anything.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable

from mqkv.errors import Closed, ConnectionFailed, Error, OutcomeUnknown, StreamMissing
from mqkv.streams.base import MESSAGE, RETRY_HEADER, Delivery, Engine, Message, Piece, Promise, Sink, Start, Tail
from mqkv.url import URL


class _Stream:
    """A log: offsets and messages, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.offsets: list[int] = []
        self.messages: list[Message] = []
        self.next = 0
        self.given = 0  #: the least offset that nobody was given yet
        self.known: int | None = None  #: the least offset that the replica lacks, where one lags
        self.trimmed = False  #: whether it lost its beginning
        self.deleted = False
        self.tails: list[MemoryTail] = []

    def add(self, message: Message) -> int:
        offset = self.next
        self.offsets.append(offset)
        self.messages.append(message)
        self.next = offset + 1
        return offset

    @property
    def end(self) -> int:
        """The least offset that can't be read now: what was given out once is not taken back."""
        return self.next if self.known is None else max(self.known, self.given)

    def since(self, offset: int) -> list[Delivery]:
        begin, end = bisect_left(self.offsets, offset), bisect_left(self.offsets, self.end)
        return list(zip(self.offsets[begin:end], self.messages[begin:end], strict=True))

    def piece(self, offset: int, size: int) -> Piece:
        begin = end = bisect_left(self.offsets, offset)
        while end < len(self.offsets) and (size > 0 or end - begin < 2):
            size -= len(self.messages[end].body) + MESSAGE
            end += 1
        batch = list(zip(self.offsets[begin:end], self.messages[begin:end], strict=True))
        return Piece(batch, end == len(self.offsets), self.trimmed and offset == 0)


class _Pending:
    """An append whose promise is open: it waits for the connection, or for its delivery."""

    def __init__(self, tail: MemoryTail, message: Message) -> None:
        self.tail = tail
        self.message = message
        self.promise: Promise[int] = Promise()
        self.offset = -1


class MemoryTail(Tail):
    """A sink's place in a stream. Thread-safe."""

    def __init__(self, engine: MemoryEngine, stream: _Stream | None, sink: Sink) -> None:
        self._engine = engine
        self.stream = stream
        self.sink = sink
        self.position = 0  #: the least offset that has not been delivered
        self.lost = False  #: what was delivered is not what the log holds
        self.ready = self.attached = Promise()

    def append(self, message: Message, timeout: float) -> Promise[int]:
        return self._engine._append(self, message)

    def close(self) -> None:
        with self._engine._lock:
            if self.stream is not None and self in self.stream.tails:
                self.stream.tails.remove(self)

    def advance(self) -> None:
        assert self.stream is not None
        if self.position < self.stream.end:
            if self.position == 0 and self.stream.trimmed:
                self.sink.truncated()
            batch = self.stream.since(self.position)
            self.position = self.stream.end
            self.stream.given = max(self.stream.given, self.position)
            if batch:
                self.sink.deliver(batch)

    def resume(self) -> None:
        """Bring the sink up to the log, after a time without a connection or a loss."""
        if self.lost:
            self.lost = False
            self.position = 0
            self.sink.reset()
        self.advance()
        self.sink.resumed()


class Faults:
    """What can go wrong, on demand. Each takes effect before the call returns. Thread-safe.

    ``disconnect()`` ... ``reconnect()``, ``delay()`` ... ``release()``, ``lag()`` ... ``level()``, ``fill()`` ... ``drain()``
    and ``expire()`` frame a time of trouble;
    ``refuse``, ``lose_answer`` and ``double`` are for the next appends; ``truncate``, ``retain`` and ``delete``
    change the log.
    """

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.connected = True
        self.delayed = False
        self.replicated = False  #: there is more than one replica, as ``lag`` has shown
        self.room: Promise[None] | None = None
        self._waits = True
        self._script: list[str] = []
        self._pending: list[_Pending] = []

    @property
    def any(self) -> bool:
        return bool(self._script) or self.delayed or not self.connected

    def disconnect(self, *, appends: str = "wait") -> None:
        """Drop the connection: sinks are ``interrupted()``. Appends ``wait``, or ``fail`` (ConnectionFailed)."""
        if appends not in ("wait", "fail"):
            raise ValueError("appends= is 'wait' or 'fail'")
        with self._engine._lock:
            self._waits = appends == "wait"
            if self.connected:
                self.connected = False
                for tail in self._engine._tails():
                    tail.sink.interrupted()

    def reconnect(self) -> None:
        """The connection is back: appends that waited land, in order; sinks catch up and are ``resumed()``."""
        with self._engine._lock:
            if self.connected:
                return
            self.connected = True
            for tail in self._engine._tails():
                if not tail.attached.done() and not self.delayed:
                    tail.advance()
                elif not self.delayed:
                    tail.resume()
            settle = [self._land(pending) for pending in self._pending if pending.offset < 0]
            if not self.delayed:
                settle += self._deliver()
        _run(settle)

    def refuse(self, appends: int = 1) -> None:
        """The next appends fail with ConnectionFailed, and nothing is written."""
        self._plan("refuse", appends)

    def lose_answer(self, appends: int = 1) -> None:
        """The next appends land, and fail with OutcomeUnknown."""
        self._plan("lose", appends)

    def double(self, appends: int = 1) -> None:
        """The next appends land twice, as after a retry: the second copy has the same id, and carries ``RETRY_HEADER``."""
        self._plan("double", appends)

    def delay(self) -> None:
        """Deliver nothing until ``release()``. Appends land, and their promises stay open."""
        with self._engine._lock:
            self.delayed = True

    def release(self) -> None:
        """Deliver what ``delay()`` held back, and settle."""
        with self._engine._lock:
            self.delayed = False
            settle = self._deliver() if self.connected else []
        _run(settle)

    def lag(self, behind: int = 0) -> None:
        """Have the connection lead to a replica that stands still from now on, and lacks the newest ``behind`` messages of each
        stream, until ``level()``. Tails that were given more are ``interrupted()`` and wait; appends land with the leader, and
        come back when the replica has them."""
        engine = self._engine
        with engine._lock:
            self.delayed = self.replicated = True
            engine.exact = False
            for log in engine._streams.values():
                log.known = log.offsets[-behind] if 0 < behind <= len(log.offsets) else 0 if behind else log.next
                for tail in log.tails:
                    if tail.position > log.known:
                        tail.sink.interrupted()

    def level(self) -> None:
        """The replica has all that the leader has."""
        with self._engine._lock:
            held = [tail for log in self._engine._streams.values() for tail in log.tails if tail.position > (log.known or 0)]
            for log in self._engine._streams.values():
                log.known = None
        self.release()
        with self._engine._lock:
            for tail in held:
                tail.sink.resumed()

    def fill(self) -> None:
        """Have no room for appends until ``drain()``. (An append that does not ask lands all the same.)"""
        self.room = Promise()

    def drain(self) -> None:
        """Have room again."""
        room, self.room = self.room, None
        if room is not None:
            room.resolve(None)

    def expire(self) -> None:
        """The deadline of all appends under way passes: ConnectionFailed for those not yet written (they never will be),
        OutcomeUnknown for the others."""
        with self._engine._lock:
            pending, self._pending = self._pending, []
        for each in pending:
            each.promise.reject(_refused() if each.offset < 0 else _unknown())

    def truncate(self, stream: str, *, head: int = 0, tail: int = 0) -> None:
        """Lose the first ``head`` and the last ``tail`` messages. Offsets lost at the tail are given again, as a broker does
        that lost what it had not synced. Sinks are ``interrupted()``, ``reset()``, fed anew and ``resumed()``."""
        with self._engine._lock:
            log = self._engine._find(stream)
            end = len(log.offsets) - tail
            log.trimmed = log.trimmed or head > 0
            if tail > 0 and log.offsets:
                log.next = log.offsets[max(end, 0)]
            log.offsets[:] = log.offsets[head : max(end, head)]
            log.messages[:] = log.messages[head : max(end, head)]
            for each in log.tails:
                each.lost = True
                if self.connected:
                    each.sink.interrupted()
                    if not self.delayed:
                        each.resume()

    def retain(self, stream: str, newest: int) -> None:
        """Drop all but the ``newest`` messages, as retention does: no sink that has them is told. (One that is to begin at the
        first message is told that it is ``truncated()``.)"""
        with self._engine._lock:
            log = self._engine._find(stream)
            head = max(len(log.offsets) - newest, 0)
            del log.offsets[:head], log.messages[:head]
            log.trimmed = log.trimmed or head > 0

    def delete(self, stream: str) -> None:
        """Delete a stream under its tails: they end with StreamMissing."""
        self._engine.delete(stream, 0)

    # The rest is the engine's own; all but _plan is called under its lock.

    def _plan(self, what: str, appends: int) -> None:
        with self._engine._lock:
            self._script += [what] * appends

    def _append(self, tail: MemoryTail, message: Message) -> tuple[Promise[int], Callable[[], None]]:
        what = self._script.pop(0) if self._script else "plain"
        pending = _Pending(tail, message)
        if what == "refuse" or not (self.connected or self._waits):
            return pending.promise, lambda: pending.promise.reject(_refused())
        if what == "lose":
            pending.promise.reject(_unknown())
        if not self.connected:
            self._pending.append(pending)
            return pending.promise, _nothing
        settle = self._land(pending)
        if what == "double":
            headers = {**message.headers, RETRY_HEADER: True}
            assert tail.stream is not None
            self._engine._add(tail.stream, message._replace(headers=headers))
        if self.delayed:
            self._pending.append(pending)
        return pending.promise, settle

    def _land(self, pending: _Pending) -> Callable[[], None]:
        stream = pending.tail.stream
        if stream is None or stream.deleted:
            self._pending = [each for each in self._pending if each is not pending]
            return lambda: pending.promise.reject(_missing("of this tail" if stream is None else stream.name))
        pending.offset = self._engine._add(stream, pending.message)
        return _nothing if self.delayed else lambda: pending.promise.resolve(pending.offset)

    def _deliver(self) -> list[Callable[[], None]]:
        """Bring all sinks up to date; what is then to be settled."""
        settle: list[Callable[[], None]] = []
        for tail in self._engine._tails():
            if tail.lost:
                tail.resume()
            tail.advance()
            settle.append(lambda tail=tail: tail.ready.resolve(None))  # type: ignore[misc]
        for each in self._pending:
            if each.offset >= 0:
                settle.append(lambda each=each: each.promise.resolve(each.offset))  # type: ignore[misc]
        self._pending = [each for each in self._pending if each.offset < 0]
        return settle


class MemoryEngine(Engine):
    """Streams in memory. Thread-safe. ``faults`` makes go wrong what can."""

    def __init__(self, url: URL, *, logger: logging.Logger | None = None) -> None:
        self.url = url
        self.faults = Faults(self)
        self._lock = threading.RLock()
        self._streams: dict[str, _Stream] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryEngine {self.url}{' closed' if self._closed else ''}>"

    @property
    def lags(self) -> bool:
        return self.faults.replicated

    def declare(self, stream: str, max_age: int | None, timeout: float) -> None:
        with self._lock:
            self._check()
            if stream not in self._streams:
                self._reach()
                self._streams[stream] = _Stream(stream)

    def open(self, stream: str, start: Start | int, sink: Sink) -> Tail:
        with self._lock:
            self._check()
            log = self._streams.get(stream)
            tail = MemoryTail(self, log, sink)
            if log is None:
                tail.ready.reject(_missing(stream))
                return tail
            if start is Start.LAST:
                tail.position = log.offsets[-1] if log.offsets else log.next
            elif start is Start.NEXT:
                tail.position = log.next
            elif isinstance(start, int):
                tail.position = start
            log.tails.append(tail)
            if not self.faults.connected or (self.faults.delayed and (log.known is None or log.known < log.given)):
                return tail
            tail.advance()
        tail.ready.resolve(None)
        return tail

    def last(self, stream: str, timeout: float) -> Delivery | None:
        with self._lock:
            self._check()
            self._reach()
            log = self._find(stream)
            readable = bisect_left(log.offsets, log.end)
            if not readable:
                return None
            log.given = max(log.given, log.offsets[readable - 1] + 1)
            return log.offsets[readable - 1], log.messages[readable - 1]

    def begin_read(self, stream: str, start: int, size: int, timeout: float) -> Promise[Piece]:
        try:
            with self._lock:
                self._check()
                self._reach()
                return Promise.of(self._find(stream).piece(start, size))
        except Error as error:
            promise: Promise[Piece] = Promise()
            promise.reject(error)
            return promise

    def delete(self, stream: str, timeout: float) -> None:
        with self._lock:
            self._check()
            self._reach()
            log = self._streams.pop(stream, None)
            if log is None:
                return
            log.deleted = True
            tails, log.tails = log.tails, []
            for tail in tails:
                tail.sink.ended(_missing(stream))
        for tail in tails:
            tail.ready.reject(_missing(stream))

    def room(self) -> Promise[None] | None:
        return self.faults.room

    def catch_up(self) -> None:
        if self._closed:
            self._check()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._streams.clear()
        self.faults.expire()

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._streams = {}
        self._closed = True

    # Under the lock

    def _append(self, tail: MemoryTail, message: Message) -> Promise[int]:
        stream = tail.stream
        with self._lock:
            self._check()
            if stream is None or stream.deleted:
                promise: Promise[int] = Promise()
                promise.reject(_missing("of this tail" if stream is None else stream.name))
                return promise
            if not self.faults.any:
                return Promise.of(self._add(stream, message))
            promise, settle = self.faults._append(tail, message)
        settle()
        return promise

    def _add(self, stream: _Stream, message: Message) -> int:
        offset = stream.add(message)
        if not self.faults.delayed:
            for tail in stream.tails:
                tail.advance()
        return offset

    def _tails(self) -> list[MemoryTail]:
        return [tail for stream in self._streams.values() for tail in stream.tails]

    def _find(self, stream: str) -> _Stream:
        log = self._streams.get(stream)
        if log is None:
            raise _missing(stream)
        return log

    def _check(self) -> None:
        if self._closed:
            raise Closed("this engine was closed")

    def _reach(self) -> None:
        if not self.faults.connected:
            raise _refused()


def _missing(stream: str) -> StreamMissing:
    return StreamMissing(f"there is no stream {stream}")


def _refused() -> ConnectionFailed:
    return ConnectionFailed("the connection is down (on demand); nothing was written")


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown("the answer to a write was lost (on demand): it may be in the log or not")


def _nothing() -> None:
    pass


def _run(settle: list[Callable[[], None]]) -> None:
    for each in settle:
        each()
