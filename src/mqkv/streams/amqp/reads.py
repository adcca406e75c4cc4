"""Questions about one stream, each on a lane of its own: is it there, what is its newest message; and declare and delete.

All on the I/O thread. The newest message is exact: no answer is a guess from a quiet period, but for the one case that RabbitMQ
leaves open (a stream that was declared and never written is silent). Rules:

1. Each function works on one session and raises ``Dropped`` when that goes; who asks tries again on the next one.
2. A lane is given back as soon as the answer is known; what the broker still sends for it is let fall.
"""

from __future__ import annotations

from collections.abc import Callable

from mqkv.errors import StreamMissing
from mqkv.streams.amqp.dialect import newest as newest_offset
from mqkv.streams.amqp.failures import Dropped, queue_error
from mqkv.streams.amqp.session import Channel, Session
from mqkv.streams.amqp.tasks import Future
from mqkv.streams.base import Delivery

Later = Callable[[float, Callable[[], None]], Callable[[], None]]

#: Resolved when nobody waits for the answer any more.
Over = Future[None] | None


class _Reader:
    """A consumer of one read: keeps the newest message that it was given."""

    def __init__(self) -> None:
        self.received = 0
        self.newest: Delivery | None = None
        self.wanted = 0
        self.first: Future[None] = Future()

    def receive(self, batch: list[Delivery]) -> None:
        if batch:
            self.newest = batch[-1]
            if self.newest[0] >= self.wanted:
                self.first.resolve(None)

    def cancelled(self) -> None:
        self.first.reject(Dropped("the consumer was cancelled", 404))

    def dropped(self, reason: Dropped) -> None:
        self.first.reject(reason)

    async def heard(self, later: Later, patience: float) -> bool:
        """Whether what is wanted came within so many seconds."""
        forget = later(patience, lambda: self.first.resolve(None))
        try:
            await self.first
        finally:
            forget()
        return self.newest is not None and self.newest[0] >= self.wanted


async def probe(session: Session, stream: str, over: Over = None) -> int:
    """See that a queue of this name exists, and how many messages it says it has. Raises ``StreamMissing``, ``Unavailable``."""
    lane = await session.lane(over)
    try:
        answer = await lane.request("queue_declare", stream, passive=True)
    except Dropped as drop:
        raise queue_error(drop, stream) from drop
    finally:
        session.give(lane)
    return int(answer.method.message_count)


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


async def _by_count(session: Session, stream: str, later: Later, patience: float, over: Over) -> Delivery | None:
    """LavinMQ: the count is exact and offsets are dense, so first offset and count name the newest."""
    count = await probe(session, stream, over)
    if count == 0:
        return None
    lane = await session.lane(over)
    try:
        first = await _read(lane, stream, "first", 0, later, patience)
        end = newest_offset(first[0], count)
        assert end is not None
        return first if end == first[0] else await _read(lane, stream, end, end, later, patience)
    except Dropped as drop:
        raise queue_error(drop, stream) from drop
    finally:
        session.give(lane)


async def _read(lane: Channel, stream: str, offset: str | int, wanted: int, later: Later, patience: float) -> Delivery:
    reader = _Reader()
    reader.wanted = wanted
    tag = await lane.consume(stream, offset, reader)
    try:
        if not await reader.heard(later, patience):
            raise Dropped("a delivery did not come")
    finally:
        lane.ack()
        lane.cancel(tag)
    assert reader.newest is not None
    return reader.newest


async def declare(session: Session, stream: str, max_age: int | None, replicas: int | None, over: Over = None) -> None:
    """Make the stream, unless it exists, however it was declared."""
    arguments: dict[str, str | int] = {"x-queue-type": "stream"}
    if max_age is not None:
        arguments["x-max-age"] = f"{max_age}s"
    if replicas is not None:
        arguments["x-initial-cluster-size"] = replicas
    lane = await session.lane(over)
    try:
        await lane.request("queue_declare", stream, durable=True, arguments=arguments)
    except Dropped as drop:
        error = queue_error(drop, stream)
        if drop.code != 406 or not isinstance(error, Dropped):
            raise error from drop
        # A stream with other arguments: left as it is.
    finally:
        session.give(lane)


async def delete(session: Session, stream: str, over: Over = None) -> None:
    """Delete the queue, if it is there."""
    lane = await session.lane(over)
    try:
        await lane.request("queue_delete", stream)
    except Dropped as drop:
        error = queue_error(drop, stream)
        if not isinstance(error, StreamMissing):
            raise error from drop
    finally:
        session.give(lane)
