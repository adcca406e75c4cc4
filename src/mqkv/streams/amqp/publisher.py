"""Appends under way: sent, republished, settled. The engine's only way to write.

An append is settled by its own record coming back through its tail: that tells the offset, and is stronger than a confirm. So one
confirming channel a connection is enough, where one a stream would be the way around RabbitMQ 3.10's confirms under a wrong
number (measured): a confirm here never settles anything. It only tells of nacks (publish again) and, on LavinMQ, of a record
that should have come back by now.

Rules:

1. An id is in ``tail.waiting`` from the moment the I/O thread takes it until it is settled, in the order of the appends.
2. What may have been sent is sent again only after its tail has caught up, under ``RETRY_HEADER``.
3. One timer, for the earliest deadline. Past it: ``ConnectionFailed`` if never sent, else ``OutcomeUnknown``.
4. A broker refuses a message by closing the channel, with all that is under way on it. Whoever did it is found, and refused; all
   others are sent again: a new channel's first message, and those that were under way when one broke, are sent with a request
   behind them, so that the broker's answer tells that they were taken.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mqkv.errors import Closed, ConnectionFailed, OutcomeUnknown, StreamMissing, ValueTooLarge
from mqkv.streams.amqp.appends import Append, UnderWay
from mqkv.streams.amqp.codec import encode_content, encode_frames, encode_publish
from mqkv.streams.amqp.failures import ACCESS_REFUSED, CONNECTION_FORCED, Dropped, refusal, size_limit, too_large
from mqkv.streams.amqp.session import PREFETCH, Channel, Session
from mqkv.streams.amqp.tasks import spawn
from mqkv.streams.base import RETRY_HEADER, Message, Promise

if TYPE_CHECKING:
    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.tails import AmqpTail

#: Frames are at most so long before the connection has told its own limit (RabbitMQ's default).
FRAME = 131_072
#: An append that was alone under way so often when the broker closed its connection is given up.
STRIKES = 3
#: Before an append that the broker could not take (a nack) is sent again.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class Publisher:
    """Sends appends and keeps their deadlines. ``submit`` and ``room`` are for any thread, all else for the I/O thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._under_way = UnderWay(link, self._expire)
        self._queue: deque[Append] = deque()
        self._queued = False
        self._limit: int | None = None  # of a message's body, as far as this broker has told
        # From here on for the I/O thread.
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._number = 0
        self._unconfirmed: dict[int, Append] = {}
        self._sequence = 0
        self._said = "it was lost"  # why the broker closed a channel last (LavinMQ may have confirmed what it refused)
        self._trusted = False  # this channel has taken a message
        self._backlog: deque[Append] = deque()  # to be sent, behind those on trial
        self._trial: list[Append] = []
        self._trying = False
        self._group = 1
        self._nacked: dict[AmqpTail, float] = {}  # held until nothing of it is under way, then for so many seconds

    def submit(self, tail: AmqpTail, message: Message, timeout: float) -> Promise[int]:
        """Take an append. Whoever wants many asks for ``room`` first."""
        if message.id is None:
            raise ValueError("a message to append must have an id")
        properties = encode_content(message)
        if len(properties) > FRAME - 64:
            raise ValueTooLarge(f"the headers of a record take {len(properties)} bytes; a frame holds {FRAME}")
        limit = self._limit
        if limit is not None and len(message.body) > limit:
            raise too_large(tail.stream.name, len(message.body), limit)
        append = Append(tail, message, properties, time.monotonic() + timeout)
        self._under_way.admit(append)
        if not self._queue and self._link.here(self._at_once, append):
            return append.promise
        self._queue.append(append)
        if not self._queued:
            try:
                self._queued = True
                self._link.call(self._take)
            except BaseException:  # a signal's, say, before the I/O thread was told
                self._link.call(self._take)
                raise
        if self._link.closed:
            self._take_back(append)
        return append.promise

    def _take_back(self, append: Append) -> None:
        """The engine was closed meanwhile: unless the I/O thread has taken it, and settles it, nobody will."""
        try:
            self._queue.remove(append)
        except ValueError:
            return
        self.reject(append, Closed("the engine was closed; nothing was written"))

    def _at_once(self, append: Append) -> bool:
        """In the caller's thread, in place of the I/O thread: send an append that nothing stands before. Settles nothing."""
        tail, session = append.tail, self._session
        if (
            session is None
            or not self.open
            or not self._trusted
            or self._queue
            or self._backlog
            or self._trying
            or not tail.sendable
            or tail.held
            or tail.closed
            or tail.error is not None
            or append.message.id in tail.waiting
            or len(append.properties) > session.frame_max - 24
            or not session.connection.clear()
        ):
            return False
        tail.waiting[append.message.id or ""] = append
        self._under_way.watch(append)
        self._transmit([append])
        if not session.connection.clear():
            self._link.wake()
        return True

    def room(self) -> Promise[None] | None:
        """None, while there is room for one append more; else what is settled when half of what is under way has ended."""
        return self._under_way.room()

    # On the I/O thread from here on.

    @property
    def open(self) -> bool:
        return self._channel is not None and self._session is not None and not self._session.blocked

    async def up(self, session: Session) -> None:
        """Open the confirming channel of a connection."""
        channel = await session.channel()
        channel.raw.add_on_return_callback(self._on_return)
        await channel.request("confirm_delivery", self._on_confirm_frame)
        session.connection.on_confirm = self._on_confirm
        if session is not self._session:
            self._limit = None
        self._clear()
        self._session, self._channel, self._number = session, channel, channel.number
        channel.raw.add_on_close_callback(lambda raw, reason: self._on_close(session, channel))

    def down(self) -> None:
        """The connection is gone."""
        drop = self._session.drop if self._session is not None else None
        under_way = self._trial or [each for each in self._unconfirmed.values() if not (each.settled or each.doubtful)]
        self._clear()
        self._session = self._channel = None
        if drop is None or drop.code in (0, CONNECTION_FORCED):
            return
        for append in under_way:  # the broker blames us: it may have been one of these
            append.suspect = True
            append.strikes += len(under_way) == 1
            if append.strikes >= STRIKES:
                self._refuse(append, drop)

    def _clear(self) -> None:
        self._unconfirmed = {}
        self._sequence = 0
        self._trusted = False
        self._backlog.clear()
        self._trial = []
        self._after_nack()

    def _take(self) -> None:
        self._queued = False
        queue = self._queue
        ready: list[Append] = []
        while queue:
            append = queue.popleft()
            tail = append.tail
            if tail.error is not None or tail.left:
                self.reject(append, tail.error or Closed("this tail was closed; nothing was written"))
                continue
            ident = append.message.id
            assert ident is not None
            append.twin = tail.waiting.get(ident)
            tail.waiting[ident] = append
            self._under_way.watch(append)
            if tail.sendable and not tail.held:
                ready.append(append)
        self._offer(ready)

    def flush(self, tail: AmqpTail) -> None:
        """Send what waits for this tail: what was never sent, and once more what may have been."""
        if tail.sendable and not tail.held:
            self._refuse_overtaken(tail)
        self._offer([append for append in tail.waiting.values() if self._due(append)])

    def _due(self, append: Append) -> bool:
        tail = append.tail
        if append.settled or not tail.sendable or tail.held:
            return False
        if append.nacked and not tail.live:
            return False  # what was delivered by then tells whether it would be written out of its order
        return append.channel is not self._channel or append.epoch != tail.epoch

    def _offer(self, appends: list[Append]) -> None:
        """Send these, in this order; behind those on trial, if there are any."""
        if not appends or not self.open:
            return
        if self._trusted and not self._backlog and not self._trying and not any(append.suspect for append in appends):
            self._transmit(appends)
            return
        self._backlog.extend(appends)
        if not self._trying:
            spawn(self._try())

    async def _try(self) -> None:
        """Send the backlog: what is on trial in groups, with a request behind each. When the channel breaks, the group did it;
        with the answer, all of it was taken, for a broker works off a channel in order."""
        channel = self._channel
        assert channel is not None
        self._trying = True
        try:
            while self._channel is channel and self.open and self._backlog:
                group = self._next_group()
                if not group:
                    break
                if self._trusted and not any(append.suspect for append in group):
                    self._transmit(group)
                    continue
                self._trial = group
                self._transmit(group)
                await channel.request("basic_qos", prefetch_count=PREFETCH)
                for append in group:
                    append.suspect = False
                self._trial = []
                self._group *= 2
                self._trusted = True
        except Dropped:
            pass  # on_close, or down, sees to it
        finally:
            self._trying = False
            if not self.open:
                self._backlog.clear()  # it waits with its tails

    def _next_group(self) -> list[Append]:
        """The next of the backlog that may be under way together."""
        backlog, group = self._backlog, list[Append]()
        while backlog:
            append = backlog[0]
            if not self._due(append):
                backlog.popleft()
                continue
            if group and append.suspect != group[0].suspect:
                break
            if (append.suspect and len(group) >= self._group) or (group and not self._trusted and not append.suspect):
                break
            group.append(backlog.popleft())
        return group

    def _transmit(self, appends: list[Append]) -> None:
        session = self._session
        assert session is not None
        pieces: list[bytes] = []
        for append in appends:
            tail, message, properties = append.tail, append.message, append.properties
            if append.copies:
                properties = encode_content(message._replace(headers={**message.headers, RETRY_HEADER: True}))
            if len(properties) > session.frame_max - 24:  # the broker would close the connection
                tail.drop(append)
                self.reject(
                    append, ValueTooLarge(f"the headers of a record take {len(properties)} bytes: more than a frame holds")
                )
                continue
            append.copies += 1
            append.channel = self._channel
            append.epoch = tail.epoch
            self._sequence += 1
            self._unconfirmed[self._sequence] = append
            pieces.append(encode_publish(self._number, session.dialect.queue(tail.stream.name)))
            pieces.append(encode_frames(self._number, properties, message.body, session.frame_max))
        if pieces:
            session.send(b"".join(pieces))

    def settle(self, append: Append, offset: int) -> None:
        twin = append.twin
        if twin is not None:
            append.twin = None
            self.settle(twin, offset)
        self._under_way.release(append)
        append.promise.resolve(offset)

    def reject(self, append: Append, error: BaseException) -> None:
        twin = append.twin
        if twin is not None:
            append.twin = None
            self.reject(twin, error)
        self._under_way.release(append)
        append.promise.reject(error)

    def _on_confirm(self, number: int, tag: int, multiple: bool) -> None:
        if number != self._number:
            return
        if not multiple:
            append = self._unconfirmed.pop(tag, None)
            if append is not None:
                self._confirmed(append)
        else:
            while self._unconfirmed:
                first = next(iter(self._unconfirmed))
                if first > tag:
                    break
                self._confirmed(self._unconfirmed.pop(first))
        if self._nacked:
            self._after_nack()

    def _confirmed(self, append: Append) -> None:
        tail = append.tail
        append.confirmed = True
        if append.doubtful:
            tail.stream.confirmed(append)
        tail.taken = max(tail.taken, append.number)
        tail.confirmed(append)

    def _on_confirm_frame(self, frame: Any) -> None:
        """A nack, or (without the quick reader) an ack."""
        method = frame.method
        if method.NAME == "Basic.Ack":
            self._on_confirm(int(frame.channel_number), int(method.delivery_tag), bool(method.multiple))
            return
        tag = int(method.delivery_tag)
        numbers = [n for n in self._unconfirmed if n == tag or (method.multiple and n <= tag)]
        for append in [self._unconfirmed.pop(n) for n in numbers]:
            append.channel = None  # to be sent again
            if not (append.settled or append.doubtful) and append.tail not in self._nacked:
                append.tail.held += 1
                self._nacked[append.tail] = min(FIRST_PAUSE * 2 ** (append.copies - 1), LONGEST_PAUSE)
        self._after_nack()

    def _after_nack(self) -> None:
        """Send again what the broker could not take, once nothing of its tail is under way: before that, it would overtake."""
        if not self._nacked:
            return
        busy = {append.tail for append in self._unconfirmed.values()}
        for tail in [each for each in self._nacked if each not in busy]:
            self._refuse_overtaken(tail)
            pause = self._nacked.pop(tail)
            self._link.later(pause, lambda tail=tail: self.unhold(tail))  # type: ignore[misc]

    def _refuse_overtaken(self, tail: AmqpTail) -> None:
        """What the broker did not take, although it took a later one: it said so, or that has come back, where this would have
        come before it."""
        for append in [each for each in tail.waiting.values() if each.copies]:
            overtaken = append.number < tail.delivered and self._due(append)
            if overtaken or (append.nacked and append.number < tail.taken):
                why = "basic.nack" if append.nacked else self._said
                reason = Dropped(f"{why}: it took later ones of this stream, so this one is not sent again")
                self._refuse(append, reason, doubt=not append.nacked)

    def unhold(self, tail: AmqpTail) -> None:
        tail.held -= 1
        self.flush(tail)

    def _on_return(self, raw: Any, method: Any, properties: Any, body: bytes) -> None:
        """The broker knows no queue of this name: nothing was written."""
        if self._session is None:
            return
        for append in list(self._unconfirmed.values()):
            name = append.tail.stream.name
            if append.message.id == properties.message_id and self._session.dialect.queue(name) == method.routing_key:
                append.tail.drop(append)
                self.reject(append, StreamMissing(f"there is no stream {name}"))

    # Refusals

    def _on_close(self, session: Session, channel: Channel) -> None:
        """The broker refused a message; the connection may be well."""
        if self._channel is not channel or session.drop is not None:
            return
        if session.connection.is_closing or session.connection.is_closed:
            return  # then ``down`` comes
        reason = channel.drop or Dropped("closed")
        self._said = str(reason)
        limit = size_limit(reason)
        under_way, trial = list(self._unconfirmed.values()), self._trial
        self._clear()
        self._channel = None
        if limit is not None:
            self._limit = limit
            for append in self._under_way.all():
                if len(append.message.body) > limit:
                    self._refuse(append, reason)
        else:
            self._suspect(trial or [each for each in under_way if not (each.delivered or each.doubtful)], reason)
        for append in under_way:
            if append.doubtful:
                append.tail.stream.confirmed(append)  # it is in the log, as we have read, and will not be confirmed any more
        for tail in {append.tail for append in under_way if not append.settled}:
            tail.overtake()
        self._link.reopen(session, self.up(session))

    def _suspect(self, suspects: list[Append], reason: Dropped) -> None:
        """One of these broke the channel. If there is but one, it is refused; else they are on trial."""
        self._group = 1
        if len(suspects) > 1:
            for append in suspects:
                append.suspect = True
            return
        for append in suspects:
            self._refuse(append, reason)
        if reason.code == ACCESS_REFUSED:  # so it is for all: every stream is written through one exchange
            for append in self._under_way.all():
                if append.suspect or (not append.copies and append.tail.sendable):
                    self._refuse(append, reason)

    def _refuse(self, append: Append, reason: Dropped, *, doubt: bool = False) -> None:
        if not append.settled:
            append.tail.drop(append)
            doubt = doubt or append.copies > 1 or append.suspect
            self.reject(append, refusal(reason, append.tail.stream.name, len(append.message.body), doubt))

    # Deadlines, and the end

    def _expire(self, append: Append) -> None:
        tail = append.tail
        tail.drop(append)
        if tail.stream.release(append):
            return
        name = tail.stream.name
        if append.copies:
            error: Exception = OutcomeUnknown(f"no answer in time to an append to {name}: it may stand in the log, or not")
        elif self._session is not None and self._session.blocked:
            error = ConnectionFailed(f"the broker takes no messages now (memory or disk alarm); nothing was written to {name}")
        else:
            error = ConnectionFailed(f"no connection to {self._link.url} in time; nothing was written to {name}")
        self.reject(append, error)

    def close(self) -> None:
        """Settle what is left: nobody will."""
        left = self._under_way.all() + list(self._queue)
        self._queue.clear()
        for append in left:
            if not append.settled:
                if append.copies:
                    self.reject(append, OutcomeUnknown("the engine was closed with an append under way"))
                else:
                    self.reject(append, Closed("the engine was closed; nothing was written"))
