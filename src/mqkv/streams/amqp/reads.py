"""Questions about one stream, each on a lane of its own: is it there, what is its newest message; and declare and delete.

All on the I/O thread. The newest message is exact: no answer is a guess from a quiet period, but for the one case that RabbitMQ
leaves open (a stream that was declared and never written is silent). Rules:

1. Each function works on one session and raises ``Dropped`` when that goes; who asks tries again on the next one.
2. A lane is given back as soon as the answer is known; what the broker still sends for it is let fall.
"""

from __future__ import annotations

from mqkv.errors import StreamMissing
from mqkv.streams.amqp.dialect import newest as newest_offset
from mqkv.streams.amqp.failures import Dropped, not_a_stream, queue_error
from mqkv.streams.amqp.session import Channel, Later, Session
from mqkv.streams.amqp.tasks import Future
from mqkv.streams.base import Delivery

#: Resolved when nobody waits for the answer any more.
Over = Future[None] | None


class _Reader:
    """A consumer of one read: keeps the first message at or after an offset, and the newest that it was given."""

    def __init__(self, wanted: int = 0) -> None:
        self.received = 0
        self.first: Delivery | None = None
        self.newest: Delivery | None = None
        self._wanted = wanted
        self._came: Future[None] = Future()

    def receive(self, batch: list[Delivery]) -> None:
        if not batch:
            return
        self.newest = batch[-1]
        if self.first is None:
            self.first = next((each for each in batch if each[0] >= self._wanted), None)
        if self.first is not None:
            self._came.resolve(None)

    def cancelled(self) -> None:
        self._came.reject(Dropped("the consumer was cancelled", 404))

    def dropped(self, reason: Dropped) -> None:
        self._came.reject(reason)

    async def heard(self, later: Later, patience: float) -> bool:
        """Whether what is wanted came within so many seconds."""
        forget = later(patience, lambda: self._came.resolve(None))
        try:
            await self._came
        finally:
            forget()
        return self.first is not None


async def probe(session: Session, stream: str, over: Over = None) -> int:
    """See that a queue of this name exists, and how many messages it says it has. Raises ``StreamMissing``, ``Unavailable``."""
    lane = await session.lane(over)
    try:
        answer = await lane.request("queue_declare", session.dialect.queue(stream), passive=True)
    except Dropped as drop:
        session.streams.discard(stream)
        raise queue_error(drop, stream) from drop
    finally:
        session.give(lane)
    if session.dialect.mixes_kinds and stream not in session.streams:
        await _check_kind(session, stream, over)
    return int(answer.method.message_count)


async def _check_kind(session: Session, stream: str, over: Over) -> None:
    """LavinMQ: a consumer whose priority is no number is refused on every queue, and in other words on a stream."""
    lane = await session.lane(over)
    try:
        await lane.request(
            "basic_consume", session.dialect.queue(stream), session.on_slow_delivery, arguments={"x-priority": "which kind?"}
        )
    except Dropped as drop:
        if drop.code != 406:
            raise queue_error(drop, stream) from drop
        if "stream" not in str(drop):
            raise not_a_stream(stream) from drop
        session.streams.add(stream)
    finally:
        session.give(lane)


async def newest(session: Session, stream: str, later: Later, patience: float, over: Over = None) -> Delivery | None:
    """The newest message that was confirmed before; None for an empty stream.

    ``patience``: so many seconds of silence, with a barrier behind them, tell that a stream was never written (RabbitMQ).
    """
    if session.dialect.counts:
        return await _by_count(session, stream, later, patience, over)
    lane = await session.lane(over)
    try:
        return await _by_barrier(lane, stream, later, patience)
    finally:
        session.give(lane)


async def _by_barrier(lane: Channel, stream: str, later: Later, patience: float) -> Delivery | None:
    """RabbitMQ: consume the last chunk. The barrier alone proves nothing before the first delivery."""
    reader = _Reader()
    tag = await lane.consume(stream, "last", reader)
    try:
        await reader.heard(later, patience)
        while not (await lane.barrier(reader)).complete():
            pass
    except Dropped as drop:
        raise queue_error(drop, stream) from drop
    finally:
        lane.ack()
        lane.cancel(tag)
    return reader.newest


async def last_offset(session: Session, stream: str, later: Later, patience: float) -> int | None:
    """The offset of the newest message, where the dialect counts; None for an empty stream."""
    count = await probe(session, stream)
    if count == 0:
        return None
    lane = await session.lane()
    try:
        first, _ = await _read(lane, stream, 0, later, patience)
    finally:
        session.give(lane)
    return newest_offset(first, count)


async def _by_count(session: Session, stream: str, later: Later, patience: float, over: Over) -> Delivery | None:
    """LavinMQ: the count is exact and offsets are dense, so count and first offset name the newest. In this order: if retention
    takes the beginning away in between, the offset is one that never comes, and whoever asks does so again; it is never too low.
    """
    count = await probe(session, stream, over)
    if count == 0:
        return None
    lane = await session.lane(over)
    try:
        first = await _read(lane, stream, 0, later, patience)
        wanted = newest_offset(first[0], count)
        assert wanted is not None
        return first if wanted == first[0] else await _read(lane, stream, wanted, later, patience)
    finally:
        session.give(lane)


async def _read(lane: Channel, stream: str, wanted: int, later: Later, patience: float) -> Delivery:
    """The first message at or after an offset."""
    reader = _Reader(wanted)
    try:
        tag = await lane.consume(stream, wanted, reader)
        try:
            if not await reader.heard(later, patience):
                raise Dropped("a delivery did not come")
        finally:
            lane.ack()
            lane.cancel(tag)
    except Dropped as drop:
        raise queue_error(drop, stream) from drop
    assert reader.first is not None
    return reader.first


async def declare(session: Session, stream: str, max_age: int | None, replicas: int | None, over: Over = None) -> None:
    """Make the stream, unless it exists, however it was declared."""
    arguments: dict[str, str | int] = {"x-queue-type": "stream"}
    if max_age is not None:
        arguments["x-max-age"] = f"{max_age}s"
    if replicas is not None:
        arguments["x-initial-cluster-size"] = replicas
    lane = await session.lane(over)
    try:
        await lane.request("queue_declare", session.dialect.queue(stream), durable=True, arguments=arguments)
        if session.dialect.mixes_kinds:
            session.streams.add(stream)
        return
    except Dropped as drop:
        error = queue_error(drop, stream)
        if drop.code != 406 or not isinstance(error, Dropped):
            raise error from drop
        # A stream with other arguments: left as it is.
    finally:
        session.give(lane)
    if session.dialect.mixes_kinds:
        await _check_kind(session, stream, over)


async def delete(session: Session, stream: str, over: Over = None) -> None:
    """Delete the queue, if it is there."""
    lane = await session.lane(over)
    try:
        await lane.request("queue_delete", session.dialect.queue(stream))
    except Dropped as drop:
        error = queue_error(drop, stream)
        if not isinstance(error, StreamMissing):
            raise error from drop
    finally:
        session.give(lane)
