"""Tails: what keeps a sink fed from its stream, across lost connections. All on the I/O thread, but for ``append`` and ``close``.

Rules:

1. A tail is attached by one coroutine at a time; ``epoch`` grows with each, and who finds another epoch than its own gives up.
2. After a loss it consumes again *at* the message it delivered last and compares it: equal, it goes on behind it; else the log is
   another one: ``sink.reset()``, and from the beginning. Where nothing stands there any more, so it is too; but in a cluster the
   replica may be behind (``seen``): then the tail consumes from that replica's end and waits, until the message comes, or one
   that is not what stood at its place.
3. A tail has caught up when a barrier behind its first delivery was answered with room left in its prefetch (RabbitMQ), or when
   it has delivered the message that was the newest after it attached (LavinMQ), and never before what this engine appended.
4. An append is settled after all tails of its stream that had caught up were given it.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from mqkv.errors import Closed, ConnectionFailed, Error, OutcomeUnknown, StreamDamaged, StreamMissing
from mqkv.streams.amqp.appends import Append
from mqkv.streams.amqp.failures import Dropped, Unavailable, damaged, ours
from mqkv.streams.amqp.feeds import Feed, Stream
from mqkv.streams.amqp.lookout import Lookout
from mqkv.streams.amqp.publisher import Publisher
from mqkv.streams.amqp.questions import STRIKES
from mqkv.streams.amqp.reads import last_offset, newest, probe
from mqkv.streams.amqp.seen import LAG, Recent
from mqkv.streams.amqp.session import Channel, Session
from mqkv.streams.amqp.tasks import Future, spawn
from mqkv.streams.base import Delivery, Message, Promise, Sink, Start, Tail

if TYPE_CHECKING:
    from mqkv.logfmt import Log
    from mqkv.streams.amqp.link import Link

#: Silence for so many seconds after consuming, with a barrier behind it, means: nothing was ever written (RabbitMQ).
EMPTY_AFTER = 0.5
LONGEST_PAUSE = 1.0
#: A tail whose channel alone was lost is out of touch when it has not caught up again within so many seconds.
REATTACH = 0.25
#: Barriers without a message before them, after which the broker is asked what the newest is.
DOUBT = 20


class AmqpTail(Tail):
    """A subscription. Thread-safe."""

    def __init__(self, stream: Stream, start: Start | int, sink: Sink, publisher: Publisher, link: Link, log: Log) -> None:
        self.ready = Promise()
        self.attached = Promise()
        self.stream = stream
        self.waiting: dict[str, Append] = {}
        self.epoch = 0
        self.position = -1  #: the offset of the newest message delivered
        self.live = False  #: caught up
        self.sendable = False
        self.held = 0  #: how many want appends to wait although they could be sent
        self.taken = 0  #: the number of the last append that the broker has confirmed
        self.delivered = 0  #: the same, of the last that has come back
        self.closed = False
        self.left = False  #: closed, and nothing is under way
        self.error: Error | None = None
        self.feed: Feed | None = None
        self._start = start
        # By its number, the beginning is found on an empty stream too; "first" is not, on LavinMQ.
        self._from: str | int = 0 if isinstance(start, Start) else start
        self._placed = start not in (Start.NEXT, Start.LAST)
        self.tip: Message | None = None  #: the message at ``position``
        self._verify = False
        self._behind_since: float | None = None  # when its position was found to lie past the end
        self._recent = Recent()  # in a cluster
        self._cancelled = False  # by the broker, and not caught up since
        self._out_of_touch = False
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._tag = ""
        self._strikes = 0
        self._over: Future[None] = Future()  # resolved when it is left
        self._lookout = Lookout(self, link)
        self._sink = sink
        self._publisher = publisher
        self._link = link
        self._log = log
        if isinstance(start, int):
            self.position = start - 1

    def __repr__(self) -> str:
        state = "closed" if self.closed else "live" if self.live else "attaching"
        return f"<AmqpTail {self.stream.name} at {self.position} {state}>"

    def append(self, message: Message, timeout: float) -> Promise[int]:
        self._link.check()
        return self._publisher.submit(self, message, timeout)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if not self._link.closed:
                self._link.call(self._close)

    def give_up(self) -> None:
        """Nobody will attach it any more: its engine was closed."""
        for promise in (self.attached, self.ready):
            promise.reject(Closed("this engine was closed meanwhile"))

    # On the I/O thread from here on.

    @property
    def early(self) -> bool:
        """Whether records come before they are confirmed."""
        return self._session is not None and self._session.dialect.delivers_early

    def await_again(self, append: Append) -> None:
        """Its record was here, and is not any more: send it again, before what was appended later."""
        if append.message.id is not None and not append.settled and self.error is None:
            self.waiting = {append.message.id: append, **self.waiting}

    @property
    def consuming(self) -> bool:
        """Whether the broker has a consumer of this tail now."""
        return self.feed is not None and self._channel is not None

    def drop(self, append: Append) -> None:
        """Wait no more for an append."""
        ident = append.message.id
        if ident is not None and self.waiting.get(ident) is append:
            del self.waiting[ident]
        if self.closed and not self.waiting:
            self._leave()

    def _close(self) -> None:
        self.live = False
        for promise in (self.attached, self.ready):  # somebody may wait for them, who did not close
            promise.reject(Closed("this tail was closed"))
        if not self.waiting:
            self._leave()
            self.stream.check()
        # else the last of the appends under way does it: they are settled by their delivery.

    def _leave(self) -> None:
        self.left = True
        self.epoch += 1
        self._over.resolve(None)
        self.stream.seen.note(self.stream.name, self.position)
        self._detach()
        self.stream.remove(self)

    def _detach(self) -> None:
        feed, self.feed = self.feed, None
        if feed is not None:
            feed.more.resolve(None)  # who waits for it finds that it is of no use any more
        if self._channel is not None:
            self._channel.cancel(self._tag)
            self._channel = None

    def attach(self, session: Session) -> None:
        """Begin, or resume, on a connection."""
        self.epoch += 1
        self._detach()
        self._session = session
        if self._strikes >= STRIKES:
            self.end(damaged(self.stream.name))
        else:
            spawn(self._attach(session, self.epoch))

    def again(self) -> None:
        """Attach anew on the same connection."""
        self.interrupt()
        if self._session is not None and self._session.drop is None and self.error is None:
            self.attach(self._session)

    def on_cancel(self) -> None:
        """The broker ended the consumer: the stream was deleted, or has moved."""
        self._cancelled = True
        if self._session is not None:
            self._session.streams.discard(self.stream.name)
        self.epoch += 1
        self.feed, self._channel = None, None
        spawn(self._after_cancel(self.epoch))

    async def _after_cancel(self, epoch: int) -> None:
        session = self._session
        try:
            if session is not None:
                await probe(session, self.stream.name)
        except StreamMissing as error:
            if self.epoch == epoch:
                self.end(error)
            return
        except (Error, Dropped, Unavailable) as problem:
            self._log(logging.DEBUG, "cancelled", stream=self.stream.name, reason=str(problem))
        if self.epoch == epoch:
            self.again()

    def on_drop(self, reason: Dropped) -> None:
        """The channel is gone, alone or with its connection."""
        self._channel = None
        if reason.code in (541, 506) and not self.live:
            self._strikes += 1
        session = self._session
        if session is None or session.drop is not None or not self.live or self.error is not None:
            self.again()
            return
        self._pause()  # on a connection that is well, the sink need not know of what takes no longer than a delivery may
        lost = time.monotonic()
        self._link.later(REATTACH, lambda: self.interrupt(lost) if not self.live and self._session is session else None)
        self.attach(session)

    def interrupt(self, since: float | None = None) -> None:
        """The connection is gone, now or ``since`` then. Idempotent."""
        self._pause()
        if self.attached.done() and not self._out_of_touch and self.error is None:
            self._out_of_touch = True
            self._tell(self._sink.interrupted if since is None else lambda: self._sink.interrupted(since))

    def _pause(self) -> None:
        self.feed = None
        self.live = self.sendable = False
        self.stream.check()

    def doubt(self, since: float) -> None:
        """The broker is silent, on a connection that is there: what is known may be stale."""
        if self.live:
            self.live = False
            self._out_of_touch = True
            self._tell(lambda: self._sink.interrupted(since))
            self.stream.check()

    def believe(self) -> None:
        """The broker speaks again: see that nothing is missing."""
        if self._out_of_touch and not self.live and self.feed is not None and not self._verify:
            spawn(self._rejoin(self.epoch))

    async def _rejoin(self, epoch: int) -> None:
        session, channel, feed = self._session, self._channel, self.feed
        if session is None or channel is None or feed is None:
            return
        try:
            await self._draw_level(session, channel, feed)
        except (Error, Dropped, Unavailable) as problem:
            self._log(logging.DEBUG, "rejoin", stream=self.stream.name, reason=str(problem))
            if self.epoch == epoch:
                self.reconsume()
            return
        if self.epoch == epoch:
            self._go_live()

    async def _attach(self, session: Session, epoch: int) -> None:
        pause = 0.05
        if self._strikes > 1:  # a suspect: let the others come up first, one by one, so that not they are blamed
            await self._link.sleep(random.uniform(0.1, 0.5) * self._strikes)
        while self.epoch == epoch and session.drop is None and self.error is None:
            try:
                await self._try(session, epoch)
                return
            except Unavailable as problem:
                self._log(logging.DEBUG, "wait", stream=self.stream.name, reason=str(problem))
            except Dropped as drop:
                self._log(logging.DEBUG, "dropped", stream=self.stream.name, reason=str(drop))
            except Error as error:
                if self.epoch == epoch:
                    self.end(error)
                return
            await self._link.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _try(self, session: Session, epoch: int) -> None:
        await probe(session, self.stream.name, self._over)
        if not self._placed:
            await self._place(session)
        channel = await session.for_tail()
        if self.epoch != epoch:
            return
        feed = self.feed = Feed(self)
        resuming = self.tip is not None
        self._verify = resuming
        tag = await channel.consume(self.stream.name, self.position if resuming else self._from, feed)
        if self.epoch != epoch:
            channel.cancel(tag)
            return
        self._channel, self._tag = channel, tag
        if not self.attached.done():
            self.sendable = True
            self.attached.resolve(None)
            self._publisher.flush(self)
        await self._draw_level(session, channel, feed)
        if self.epoch == epoch:
            self._lookout.keep(session)
            self._go_live()

    async def _draw_level(self, session: Session, channel: Channel, feed: Feed) -> None:
        """Until all that was confirmed before has been delivered."""
        await (self._catch_up(session, channel, feed) if session.dialect.barrier else self._reach(session, feed))

    async def _place(self, session: Session) -> None:
        """Turn ``NEXT`` into a place that can be found again after a loss: behind the message that is the newest now. ``LAST`` is
        what the broker calls so, or the newest by count."""
        if self._start is Start.NEXT:
            found = await newest(session, self.stream.name, self._link.later, EMPTY_AFTER)
            if found is not None:
                self.position, self.tip = found
        elif session.dialect.counts:
            self._from = await last_offset(session, self.stream.name, self._link.later, EMPTY_AFTER) or 0
        else:
            self._from = "last"
        self._placed = True

    async def _catch_up(self, session: Session, channel: Channel, feed: Feed) -> None:
        if not feed.received and not self.live:
            await feed.wait(self._link, EMPTY_AFTER)
        silent = 0
        while self.feed is feed and not self.live:
            barrier = await channel.barrier(feed)
            if not barrier.complete():
                silent = 0
                continue
            if feed.received and self.position >= self.stream.top:
                return
            if self._is_behind(session):
                await feed.wait(self._link, EMPTY_AFTER)
                continue
            if not feed.received:
                break
            silent += 1
            if silent % DOUBT == 0:  # what we know of the top may be of a stream that was deleted and made anew
                found = await newest(session, self.stream.name, self._link.later, EMPTY_AFTER)
                if found is None or found[0] <= self.position:
                    self.stream.top = self.position
                    return
            await self._link.sleep(0.001)
        else:
            return
        if self._verify and self.feed is feed:
            await self._judge(session, channel, feed)

    def _is_behind(self, session: Session) -> bool:
        """Whether a replica is, in a load: no more of the stream is given out here than before."""
        seen, name = self.stream.seen, self.stream.name
        return seen.lags(session) and not self._verify and self.stream.top > self.position and seen.behind(name, self.position)

    async def _reach(self, session: Session, feed: Feed) -> None:
        """LavinMQ: until the newest message of now has been delivered."""
        last = await last_offset(session, self.stream.name, self._link.later, EMPTY_AFTER)
        if self._verify and (last is None or last < self.position):
            self._restart()
            return
        while last is not None and self.feed is feed and not self.live and self.position < max(last, self.stream.top):
            before = feed.received
            await feed.wait(self._link, 1.0)
            if feed.received == before:
                raise Unavailable("deliveries have stopped")

    async def _judge(self, session: Session, channel: Channel, feed: Feed) -> None:
        """Nothing came from where we had stopped: is the log shorter than what was read, or the replica behind?"""
        epoch = self.epoch
        found = await newest(session, self.stream.name, self._link.later, EMPTY_AFTER)
        if self.epoch != epoch:
            return
        if found is None or found[0] < self.position:
            if self.stream.seen.lags(session):
                await self._wait_for_replica(session, channel, 0 if found is None else found[0])
            else:
                self._restart()
        elif self._verify:
            raise Unavailable("silent although there are messages")

    async def _wait_for_replica(self, session: Session, channel: Channel, end: int) -> None:
        """Consume from a replica's end until it has come to our position, and goes on there or shows another log."""
        if self._behind_since is None:
            self._behind_since = time.monotonic()
            self._log(logging.WARNING, "behind", stream=self.stream.name, position=self.position, end=end)
        channel.cancel(self._tag)
        epoch = self.epoch
        feed = self.feed = Feed(self)
        tag = await channel.consume(session.dialect.queue(self.stream.name), end, feed)
        if self.epoch != epoch:
            channel.cancel(tag)
            return
        self._tag = tag
        self.sendable = True  # the leader takes what is appended; where it comes back tells more
        self._publisher.flush(self)
        while self.feed is feed and self._verify:
            left = self._behind_since + LAG - time.monotonic()
            if left <= 0:
                self._restart()
                return
            await feed.wait(self._link, left)
            if channel.drop is not None:
                raise channel.drop
        if self.feed is feed:
            await self._catch_up(session, channel, feed)

    def overtake(self) -> None:
        """Hold appends until all that the broker has taken by now was delivered."""
        if self.live and self._session is not None:
            self.held += 1
            spawn(self._overtake(self._session))

    async def _overtake(self, session: Session) -> None:
        feed, channel = self.feed, self._channel
        try:
            if not session.dialect.barrier:
                found = await newest(session, self.stream.name, self._link.later, EMPTY_AFTER)
                while found is not None and feed is not None and self.feed is feed and self.position < found[0]:
                    before = feed.received
                    await feed.wait(self._link, 1.0)
                    if feed.received == before:
                        self.reconsume()
            elif feed is not None and channel is not None:
                while self.feed is feed and not (await channel.barrier(feed)).complete():
                    pass
        except (Error, Dropped, Unavailable) as problem:  # then it is attached anew, and catches up so
            self._log(logging.DEBUG, "dropped", stream=self.stream.name, reason=str(problem))
        self._publisher.unhold(self)

    def _go_live(self) -> None:
        if self.live or self.error is not None:
            return
        self.live = self.sendable = True
        if self.tip is None and self._from == "last":  # it is empty: after an outage, the last is not the first that came
            self._from = 0
        self._strikes = 0
        self._cancelled = False
        if self._out_of_touch:
            self._out_of_touch = False
            self._tell(self._sink.resumed)
        self.ready.resolve(None)
        self.stream.vouch()
        self._publisher.flush(self)

    def receive(self, batch: list[Delivery]) -> None:
        if not batch or self.error is not None:
            return
        if self._verify or batch[0][0] <= self.position:
            batch = self._checked(batch)
            if not batch:
                return
        begins, session = self.position < 0 and self._from == 0, self._session
        self.position, self.tip = batch[-1]
        if begins and session is not None and batch[0][0] > session.dialect.first_offset:
            self._tell(self._sink.truncated)
        if self.stream.seen.cluster:
            self._recent.add(batch)
        if not self.closed:
            try:
                self._sink.deliver(batch)
            except Exception as error:  # noqa: BLE001 -- whatever it is, only this tail ends
                self._broken(error)
                return
        if self.waiting:
            self._settle(batch)
        if len(self.stream.tails) > 1:
            self.stream.check()

    def _settle(self, batch: list[Delivery]) -> None:
        waiting = self.waiting
        for offset, message in batch:
            append = waiting.pop(message.id, None) if message.id is not None else None
            if append is not None:
                self.delivered = max(self.delivered, append.first.number)
            if append is not None and append.epoch != self.epoch and message.body != append.message.body:
                # LavinMQ has no checksums: what it was writing when it was killed, it takes for whole.
                torn = OutcomeUnknown(f"an append to {self.stream.name} stands in the log, but not as it was sent")
                self._publisher.reject(append, torn)
            elif append is not None:
                if not self.live and not self.ready.done() and append.epoch == self.epoch and self.position >= self.stream.top:
                    self._go_live()  # what was appended after the tail was opened proves all that was before
                self.stream.settle(append, offset, self)
        if self.closed and not waiting:
            self._leave()

    def _checked(self, batch: list[Delivery]) -> list[Delivery]:
        """What is new of a batch; after a loss, compare the message that was delivered last."""
        if not self._verify:
            return [each for each in batch if each[0] > self.position]
        if self._recent.differs(batch, self.position, self.waiting):
            self._restart()
            return []
        batch = [each for each in batch if each[0] >= self.position]
        if not batch:
            return batch
        if batch[0] == (self.position, self.tip):
            self._verify = False
            self._behind_since = None
            return batch[1:]
        self._restart()
        return []

    def _restart(self) -> None:
        """The log is not the one that was read."""
        if self._cancelled:
            self.end(StreamMissing(f"stream {self.stream.name} was deleted (and made anew)"))
            return
        self._log(logging.WARNING, "reset", stream=self.stream.name, position=self.position)
        self._verify = False
        self.tip = None
        self._behind_since = None
        self._recent.clear()
        self.stream.seen.forget(self.stream.name)
        self.position = self.stream.top = -1
        self.taken = self.delivered = 0  # of the log that is gone
        self.stream.disavow()
        self._from = 0
        self._placed = self._start is not Start.LAST
        self._tell(self._sink.reset)
        self.live, self._out_of_touch = False, True  # it is told when all is delivered again, whatever led here
        if self._session is not None and self.error is None:
            self.attach(self._session)

    def _tell(self, word: object) -> None:
        if self.closed:
            return
        try:
            word()  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001 -- whatever it is, only this tail ends
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        logging.getLogger("mqkv").error("a sink failed on stream %s", self.stream.name, exc_info=error)
        self.end(StreamDamaged(f"the tail of stream {self.stream.name} ended: its reader failed ({type(error).__name__})"), error)

    def end(self, error: Error, told: Exception | None = None) -> None:
        """Nothing more will come."""
        if self.error is not None:
            return
        self.error = error
        self._leave()
        self.live = self.sendable = False
        waiting, self.waiting = self.waiting, {}
        was_attached = self.attached.done()
        self.attached.reject(error)
        self.ready.reject(error)
        for append in waiting.values():
            self._publisher.reject(append, error)
        self.stream.check()
        if was_attached and not self.closed:
            try:
                self._sink.ended(told or error)
            except Exception as problem:
                logging.getLogger("mqkv").error("a sink failed on stream %s", self.stream.name, exc_info=problem)
        self.closed = True

    def no_connection(self, error: BaseException) -> None:
        """The connection could not be made while this tail was being opened."""
        if not self.attached.done():
            self.end(error if isinstance(error, Error) else ConnectionFailed(str(ours(error, self._link.url))))

    def confirmed(self, append: Append) -> None:
        """The broker has an append; its delivery should be here, or come at once."""
        if append.size >= 0 and self.live and self._session is not None:
            self._lookout.expect(self._session, append)

    def reconsume(self) -> None:
        """Consume again at the last message, on the same connection, without a word to the sink."""
        if self._session is not None and self._session.drop is None and self.error is None:
            self.attach(self._session)
