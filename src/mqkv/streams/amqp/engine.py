"""The AMQP engine as other threads see it: it hands their calls to the I/O thread and waits, within their time.

It knows the link, tails, reads and the publisher, and puts them together. Rules:

1. Callers' threads touch nothing of the I/O thread but by ``Link.call``.
2. A call tries again on the next connection until its deadline, and then says what it was waiting for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mqkv.errors import Closed, OutcomeUnknown, ReadTimeout, StreamMissing, WriteTimeout
from mqkv.logfmt import Log
from mqkv.streams.amqp import reads
from mqkv.streams.amqp.failures import Behind
from mqkv.streams.amqp.feeds import Stream
from mqkv.streams.amqp.link import Link, connect_timeout
from mqkv.streams.amqp.publisher import Publisher
from mqkv.streams.amqp.pulse import Pulse
from mqkv.streams.amqp.questions import Question
from mqkv.streams.amqp.seen import Seen
from mqkv.streams.amqp.session import Session
from mqkv.streams.amqp.tails import AmqpTail
from mqkv.streams.amqp.tasks import spawn
from mqkv.streams.base import Delivery, Engine, Promise, Sink, Start, Tail
from mqkv.url import URL

T = TypeVar("T")

#: What a call may take past its deadline: the last answer on its way.
GRACE = 0.6
#: Seconds of a read's time that are kept for the broker's answer when the stream was silent.
ANSWER = 0.1


class AmqpEngine(Engine):
    """Streams on a broker. Thread-safe. One connection and one I/O thread, from the first use on."""

    exact = False

    def __init__(self, url: URL, *, logger: logging.Logger | None = None) -> None:
        self.url = url
        self._log = Log(logger)
        self._link = Link(url, self, self._log)
        self._publisher = Publisher(self._link)
        self._pulse = Pulse(self._link, self)
        self._streams: dict[str, Stream] = {}  # for the I/O thread
        self._replicas = replicas = int(float(url.option("replicas") or 0)) or None
        self._seen = Seen(cluster=replicas != 1 and (len(url.nodes) > 1 or replicas is not None))

    @property
    def lags(self) -> bool:
        return self._seen.lags(self._link.session)

    def __repr__(self) -> str:
        state = "closed" if self._link.closed else "connected" if self._link.session is not None else "not connected"
        return f"<AmqpEngine {self.url} {state}>"

    def declare(self, stream: str, max_age: int | None, timeout: float) -> None:
        self._waited(self.begin_declare(stream, max_age, timeout), stream, timeout)

    def delete(self, stream: str, timeout: float) -> None:
        self._waited(self.begin_delete(stream, timeout), stream, timeout)

    def last(self, stream: str, timeout: float) -> Delivery | None:
        return self._waited(self.begin_last(stream, timeout), stream, timeout)

    def begin_declare(self, stream: str, max_age: int | None, timeout: float) -> Promise[None]:
        late = WriteTimeout(f"the broker did not answer within {timeout:.3g} s when stream {stream} was declared")
        question: Question[None] = Question(self._link, stream, timeout, late)

        async def declare(session: Session) -> None:
            await reads.declare(session, stream, max_age, self._replicas, question.over)
            self._log(logging.INFO, "declare", stream=stream, max_age=max_age)

        return self._ask(question, declare)

    def begin_delete(self, stream: str, timeout: float) -> Promise[None]:
        late = OutcomeUnknown(
            f"the broker did not answer within {timeout:.3g} s when stream {stream} was deleted: it may be gone"
        )
        question: Question[None] = Question(self._link, stream, timeout, late)

        async def delete(session: Session) -> None:
            await reads.delete(session, stream, question.over)
            if stream in self._streams:
                self._streams[stream].top = -1
            self._seen.forget(stream)
            self._log(logging.INFO, "delete", stream=stream)

        return self._ask(question, delete)

    def begin_last(self, stream: str, timeout: float) -> Promise[Delivery | None]:
        late = ReadTimeout(f"the broker did not answer within {timeout:.3g} s about stream {stream}")
        question: Question[Delivery | None] = Question(self._link, stream, timeout, late)

        async def read(session: Session) -> Delivery | None:
            # The last part is for the answer that proves that the silence was the stream's and not the broker's.
            patience = question.left - min(ANSWER, timeout / 4)
            try:
                found = await reads.newest(session, stream, self._link.later, max(patience, 0), question.over)
            except StreamMissing:
                self._seen.forget(stream)
                raise
            return self._not_behind(session, stream, found) if self._seen.cluster else found

        return self._ask(question, read)

    def _not_behind(self, session: Session, stream: str, found: Delivery | None) -> Delivery | None:
        """What was read, or what a tail was given already, if that is newer."""
        if not self._seen.lags(session):
            return found
        for tail in self._streams[stream].tails if stream in self._streams else ():
            if tail.tip is not None and tail.position > (-1 if found is None else found[0]):
                found = tail.position, tail.tip
        offset = -1 if found is None else found[0]
        if self._seen.behind(stream, offset):
            newest = self._seen.newest(stream)
            raise Behind(
                f"the replica of stream {stream} that answers knows revision {offset}, and {newest} was read here before"
            )
        if found is not None:
            self._seen.note(stream, offset)
        return found

    def _ask(self, question: Question[T], ask: Callable[[Session], Awaitable[T]]) -> Promise[T]:
        self._link.check()

        def begin(question: Question[T]) -> bool:
            if self._link.session is None or not self._link.session.at_hand:
                return False
            question.begin(ask)
            return True

        # Signals' exceptions strike in the main thread, and a task that runs there would take one for its own, and keep it.
        mine = threading.current_thread() is not threading.main_thread()
        if not (mine and self._link.here(begin, question)):
            self._link.call(lambda: question.begin(ask))
        if self._link.closed:
            question.promise.reject(Closed("this engine was closed meanwhile"))
        return question.promise

    def open(self, stream: str, start: Start | int, sink: Sink) -> Tail:
        self._link.check()
        registered = Stream(stream, self._publisher, self._streams, self._seen)
        tail = AmqpTail(registered, start, sink, self._publisher, self._link, self._log)
        self._link.call(lambda: self._open(tail))
        if self._link.closed:
            tail.give_up()
        return tail

    def room(self) -> Promise[None] | None:
        return self._publisher.room()

    def keep_in_touch(self, within: float) -> None:
        self._pulse.keep(within)

    def catch_up(self) -> None:
        if self._link.closed:
            self._link.check()

    def close(self) -> None:
        self._link.close()

    def after_fork(self) -> None:
        self._link.abandon()

    # Callers' threads

    def _waited(self, promise: Promise[T], stream: str, timeout: float) -> T:
        if not promise.wait(timeout + GRACE):
            # No connection at all is told by the I/O thread, so there was one, and it is silent.
            raise ReadTimeout(f"the broker did not answer within {timeout:.3g} s about stream {stream}")
        return promise.result()

    # The I/O thread

    def _open(self, tail: AmqpTail) -> None:
        if tail.closed:
            return
        stream = self._streams.setdefault(tail.stream.name, tail.stream)
        tail.stream = stream
        stream.tails.append(tail)
        session = self._link.session
        if session is not None:
            tail.attach(session)
        else:
            spawn(self._open_late(tail))

    async def _open_late(self, tail: AmqpTail) -> None:
        """There is no connection yet; when there is one, ``resume`` attaches the tail."""
        try:
            await self._link.up(time.monotonic() + connect_timeout(self.url))
        except Exception as error:  # noqa: BLE001 -- it is the tail's result
            tail.no_connection(error)

    def wanted(self) -> bool:
        return bool(self._streams)

    async def up(self, session: Session) -> None:
        session.connection.add_on_connection_blocked_callback(lambda *_: self._block(session, True))
        session.connection.add_on_connection_unblocked_callback(lambda *_: self._block(session, False))
        await self._publisher.up(session)

    def _block(self, session: Session, blocked: bool) -> None:
        session.blocked = blocked
        self._log(logging.WARNING if blocked else logging.INFO, "blocked" if blocked else "unblocked", url=self.url)
        if not blocked:
            self.flush()

    def flush(self) -> None:
        for tail in self._tails():
            self._publisher.flush(tail)

    def silent(self, since: float) -> None:
        self._log(logging.WARNING, "silent", url=self.url)
        for tail in self._tails():
            tail.doubt(since)

    def heard(self) -> None:
        self._log(logging.INFO, "heard", url=self.url)
        for tail in self._tails():
            tail.believe()

    def resume(self, session: Session) -> None:
        self._pulse.begin(session)
        for tail in self._tails():
            tail.attach(session)

    def down(self) -> None:
        self._publisher.down()
        for tail in self._tails():
            tail.interrupt()

    def _tails(self) -> list[AmqpTail]:
        return [tail for stream in self._streams.values() for tail in stream.tails]

    def farewell(self) -> None:
        self._publisher.close()
        for tail in self._tails():
            tail.closed = True
            tail.give_up()
