"""One connection while it lasts: its channels, requests on them, and where deliveries go. All on the I/O thread.

It knows AMQP methods and pika's channels; it knows no tail, append or sink but as a ``Receiver``. Rules:

1. A request is a coroutine that returns the broker's answer, or raises ``Dropped`` when its channel or the connection goes.
2. Whatever may close a channel (a queue that is missing, of another kind, declared otherwise) is asked on a *lane*, a channel
   that one request has to itself. The channels of tails are shared by many: only what was just seen to exist is consumed there.
3. A session that was dropped stays so; everything on it was rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pika.channel import Channel as RawChannel
from pika.exceptions import AMQPError

from mqkv.streams.amqp.codec import encode_ack
from mqkv.streams.amqp.dialect import Dialect, choose
from mqkv.streams.amqp.failures import Dropped, dropped, queue_error
from mqkv.streams.amqp.frames import Connection, close_consumer_quietly
from mqkv.streams.amqp.tasks import Future
from mqkv.streams.base import Delivery, HeaderValue, Message

#: What a consumer may have under way. Acks go out four times as often, so that no consumer of a shared channel stalls.
PREFETCH = 2_000
#: And after so many seconds: a broker closes the channel of who takes too long (RabbitMQ's ``consumer_timeout``).
ACK_AFTER = 1.0
#: Consumers on one channel; channels for single requests. A connection has 2,047 channels at most.
CONSUMERS = 256
LANES = 24

#: Run a function after so many seconds; what is returned forgets it.
Later = Callable[[float, Callable[[], None]], Callable[[], None]]


class Receiver(Protocol):
    """Somebody who consumes."""

    received: int

    def receive(self, batch: list[Delivery]) -> None:
        """Messages, in order."""

    def cancelled(self) -> None:
        """The broker has ended the consumer (its stream was deleted, or has moved)."""

    def dropped(self, reason: Dropped) -> None:
        """The channel is gone."""


class Barrier(Future[None]):
    """Settled when everything that the broker could deliver to ``receiver`` before has been delivered, up to its prefetch."""

    __slots__ = ("before", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self.receiver = receiver
        self.before = 0

    def complete(self) -> bool:
        """Whether the prefetch did not hold anything back."""
        return self.receiver.received - self.before < PREFETCH


class Channel:
    """A channel, the requests that are open on it, and its consumers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.opened: Future[None] = Future()
        self.consumers: dict[str, Receiver] = {}
        self.drop: Dropped | None = None
        self._requests: set[Future[Any]] = set()
        self._unacked = 0
        self._tag = 0
        self._barriers: list[Barrier] = []
        self._barrier_under_way = False
        self.raw: RawChannel = session.connection.channel(on_open_callback=lambda raw: self.opened.resolve(None))
        self.raw.add_on_close_callback(lambda raw, reason: self._on_close(reason))
        self.raw.add_on_cancel_callback(self._on_cancel)
        self.number = int(self.raw.channel_number)

    async def request(self, name: str, *args: Any, **options: Any) -> Any:
        """Send a synchronous method by pika's name for it, and await the answer."""
        if self.drop is not None:
            raise self.drop
        answer: Future[Any] = Future()
        self._requests.add(answer)
        try:
            getattr(self.raw, name)(*args, callback=answer.resolve, **options)
            return await answer
        except AMQPError as error:  # closing already
            raise dropped(error) from error
        finally:
            self._requests.discard(answer)

    async def consume(self, stream: str, offset: str | int, receiver: Receiver) -> str:
        """Consume from an offset on; the consumer's tag. Deliveries may come before this returns."""
        tag = self.session.new_tag()
        self.consumers[tag] = receiver
        try:
            await self.request(
                "basic_consume",
                self.session.dialect.queue(stream),
                self.session.on_slow_delivery,
                consumer_tag=tag,
                arguments={"x-stream-offset": offset},
            )
        except Dropped as drop:
            self.consumers.pop(tag, None)
            raise queue_error(drop, stream) from drop
        return tag

    def cancel(self, tag: str) -> None:
        """Stop consuming. What still comes is let fall."""
        if self.consumers.pop(tag, None) is not None and self.drop is None and self.raw.is_open:
            close_consumer_quietly(self.raw, tag)

    def delivered(self, consumer: str, tag: int, batch: list[Delivery]) -> None:
        self._tag = tag
        self._unacked += len(batch)
        receiver = self.consumers.get(consumer)
        if receiver is not None:
            receiver.received += len(batch)
            receiver.receive(batch)
        if self._unacked >= PREFETCH // 4:
            self.ack()
        elif not self.session.acks_due:
            self.session.ack_soon()

    def ack(self) -> None:
        """Acknowledge all that was delivered so far."""
        if self._unacked and self.drop is None:
            self._unacked = 0
            self.session.send(encode_ack(self.number, self._tag))

    async def barrier(self, receiver: Receiver) -> Barrier:
        """Await an answer behind all deliveries to ``receiver`` that the broker can make now. Many may await one answer."""
        barrier = Barrier(receiver)
        if self.drop is not None:
            raise self.drop
        self._barriers.append(barrier)
        self._requests.add(barrier)
        if not self._barrier_under_way:
            self._send_barrier()
        try:
            await barrier
        finally:
            self._requests.discard(barrier)
        return barrier

    def _send_barrier(self) -> None:
        barriers, self._barriers = self._barriers, []
        self.ack()
        for barrier in barriers:
            barrier.before = barrier.receiver.received
        self._barrier_under_way = True

        def done(frame: object) -> None:
            self._barrier_under_way = False
            if self._barriers:
                self._send_barrier()
            for barrier in barriers:
                barrier.resolve(None)

        self.raw.basic_qos(prefetch_count=PREFETCH, callback=done)

    def _on_cancel(self, frame: Any) -> None:
        receiver = self.consumers.pop(frame.method.consumer_tag, None)
        if receiver is not None:
            receiver.cancelled()

    def _on_close(self, reason: BaseException) -> None:
        self.drop = dropped(reason)
        self.session.forget(self)
        self.opened.reject(self.drop)
        for answer in list(self._requests):
            answer.reject(self.drop)
        receivers, self.consumers = list(self.consumers.values()), {}
        for receiver in receivers:
            receiver.dropped(self.drop)


class Session:
    """An open connection."""

    def __init__(self, connection: Connection, later: Later) -> None:
        self.connection = connection
        self.acks_due = False
        self._later = later
        self.dialect: Dialect = choose(connection.server_properties)
        self.frame_max = int(connection.params.frame_max)
        self.drop: Dropped | None = None
        self.blocked = False
        self.streams: set[str] = set()  #: queues that were found to be streams, where the dialect mixes kinds
        self._channels: dict[int, Channel] = {}
        self._for_tails: list[Channel] = []
        self._idle: list[Channel] = []
        self._lanes = 0
        self._waiting: dict[Future[None], None] = {}
        self._tags = 0
        connection.on_deliveries = self.on_deliveries
        connection.widen()
        if self.dialect.acknowledge_at_once:
            connection.acknowledge_at_once()

    def new_tag(self) -> str:
        self._tags += 1
        return f"m{self._tags}"

    def ack_soon(self) -> None:
        """Acknowledge on all channels what has come by then: one timer for them all, and none where nothing comes."""
        self.acks_due = True
        self._later(ACK_AFTER, self._ack_all)

    def _ack_all(self) -> None:
        self.acks_due = False
        if self.drop is None:
            for channel in self._channels.values():
                channel.ack()

    def send(self, data: bytes) -> None:
        """Send frames that are encoded already."""
        self.connection._output_marshaled_frames((data,))

    def _open_channel(self) -> Channel:
        try:
            channel = Channel(self)
        except AMQPError as error:  # the connection is closing, or has no channel left
            raise dropped(error) from error
        self._channels[channel.number] = channel
        return channel

    async def channel(self, prefetch: int = PREFETCH) -> Channel:
        """A new channel. ``prefetch``: what each of its consumers may have under way."""
        if self.drop is not None:
            raise self.drop
        channel = self._open_channel()
        await channel.opened
        await channel.request("basic_qos", prefetch_count=prefetch)
        return channel

    async def for_tail(self) -> Channel:
        """A channel with room for one more consumer."""
        for channel in self._for_tails:
            if len(channel.consumers) < CONSUMERS:
                await channel.opened
                return channel
        if self.drop is not None:
            raise self.drop
        channel = self._open_channel()
        self._for_tails.append(channel)
        # The first of many that come at once sends the qos; pika sends requests of a channel in order.
        channel.opened.then(lambda: channel.raw.basic_qos(prefetch_count=PREFETCH) if channel.drop is None else None)
        await channel.opened
        return channel

    async def lane(self, over: Future[None] | None = None) -> Channel:
        """A channel to have to oneself; ``give`` it back. Waits for one where all are in use, until nobody wants it any more
        (``over``)."""
        while True:
            while self._idle:
                channel = self._idle.pop()
                if channel.drop is None:
                    return channel
            if self.drop is not None:
                raise self.drop
            if self._lanes < LANES:
                self._lanes += 1
                try:
                    # Where a count tells which message is the newest, a read wants one message a consumer, and no more.
                    return await self.channel(1 if self.dialect.counts else PREFETCH)
                except BaseException:
                    self._lanes -= 1
                    raise
            turn: Future[None] = Future()
            self._waiting[turn] = None
            if over is not None:
                over.then(lambda turn=turn: turn.reject(Dropped("nobody waits for this any more")))  # type: ignore[misc]
            try:
                await turn
            finally:
                self._waiting.pop(turn, None)

    @property
    def at_hand(self) -> bool:
        """Whether a question could be sent at once: a lane is free, and nothing is wrong with it."""
        return self.drop is None and bool(self._idle) and self._idle[-1].raw.is_open and self.connection.clear()

    def give(self, lane: Channel) -> None:
        if lane.drop is None:
            self._idle.append(lane)
        else:
            self._lanes -= 1
        if self._waiting:
            next(iter(self._waiting)).resolve(None)

    def forget(self, channel: Channel) -> None:
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
        if channel in self._for_tails:
            self._for_tails.remove(channel)

    def on_deliveries(self, number: int, consumer: str, tag: int, batch: list[Delivery]) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            channel.delivered(consumer, tag, batch)

    def on_slow_delivery(self, raw: RawChannel, method: Any, properties: Any, body: bytes) -> None:
        """A delivery that came through pika: its frames did not stand together, or the quick way is not there."""
        headers: dict[str, HeaderValue] = {}
        for name, value in (properties.headers or {}).items():
            if isinstance(name, str) and isinstance(value, (str, int, bool, float)):
                headers[name] = (
                    int(value) if type(value) is not int and isinstance(value, int) and not isinstance(value, bool) else value
                )
        offset = headers.pop("x-stream-offset", None)
        batch: list[Delivery] = []
        if isinstance(offset, int):
            ident, kind, encoding = (
                text if isinstance(text, str) else None
                for text in (properties.message_id, properties.content_type, properties.content_encoding)
            )
            batch.append((int(offset), Message(body, headers, ident, kind, encoding)))
        self.on_deliveries(int(raw.channel_number), method.consumer_tag, int(method.delivery_tag), batch)

    def lost(self, reason: BaseException | None) -> None:
        """The connection is gone."""
        self.drop = dropped(reason)
        for turn in list(self._waiting):
            turn.reject(self.drop)
        for channel in list(self._channels.values()):
            channel._on_close(reason or self.drop)
