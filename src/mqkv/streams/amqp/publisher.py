"""Appends under way: sent, republished, settled. The engine's only way to write.

An append is settled by its own record coming back through its tail: that tells the offset, and is stronger than a confirm. So one
confirming channel a connection is enough, where one a stream would be the way around RabbitMQ 3.10's confirms under a wrong
number (measured): a confirm here never settles anything. It only tells of nacks (publish again) and, on LavinMQ, of a record
that should have come back by now.

Rules:

1. An id is in ``tail.waiting`` from the moment the I/O thread takes it until it is settled, in the order of the appends.
2. What may have been sent is sent again only after its tail has caught up on a new connection, under ``RETRY_HEADER``.
3. One timer, for the earliest deadline. Past it: ``ConnectionFailed`` if never sent, else ``OutcomeUnknown``.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mqkv.errors import Closed, ConnectionFailed, OutcomeUnknown, StreamMissing, ValueTooLarge
from mqkv.streams.amqp.codec import encode_content, encode_frames, encode_publish
from mqkv.streams.amqp.failures import Dropped
from mqkv.streams.amqp.session import Channel, Session
from mqkv.streams.base import RETRY_HEADER, Message, Promise

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.tails import AmqpTail

MAX_APPENDS = 8_192
MAX_BYTES = 64 * 2**20
#: Frames are at most so long before the connection has told its own limit (RabbitMQ's default).
FRAME = 131_072
#: An append that was under way so often when its channel broke is given up.
STRIKES = 3


class Append:
    """One append under way."""

    __slots__ = ("deadline", "epoch", "message", "promise", "properties", "sent", "size", "strikes", "tail", "twin")

    def __init__(self, tail: AmqpTail, message: Message, properties: bytes, deadline: float) -> None:
        self.tail = tail
        self.message = message
        self.properties = properties
        self.deadline = deadline
        self.promise: Promise[int] = Promise()
        self.size = len(message.body) + len(properties)
        self.sent = False
        self.epoch = -1  # of the tail, when it was sent
        self.strikes = 0
        self.twin: Append | None = None  # an earlier append with the same id


class Publisher:
    """Sends appends and keeps their deadlines. ``submit`` and ``room`` are for any thread, all else for the I/O thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._room: Promise[None] | None = None
        self._count = self._bytes = 0
        self._queue: deque[Append] = deque()
        self._queued = False
        # From here on for the I/O thread.
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._number = 0
        self._unconfirmed: dict[int, Append] = {}
        self._sequence = 0
        self._deadlines: list[tuple[float, int, Append]] = []
        self._counter = 0
        self._armed = float("inf")
        self._forget_timer: Callable[[], None] | None = None

    def submit(self, tail: AmqpTail, message: Message, timeout: float) -> Promise[int]:
        """Take an append. Whoever wants many asks for ``room`` first."""
        if message.id is None:
            raise ValueError("a message to append must have an id")
        properties = encode_content(message)
        if len(properties) > FRAME - 64:
            raise ValueTooLarge(f"the headers of a record take {len(properties)} bytes; a frame holds {FRAME}")
        append = Append(tail, message, properties, time.monotonic() + timeout)
        with self._lock:
            self._count += 1
            self._bytes += append.size
        self._queue.append(append)
        if not self._queued:
            self._queued = True
            self._link.call(self._take)
        return append.promise

    def room(self) -> Promise[None] | None:
        """None, while there is room for one append more; else what is settled when half of what is under way has ended."""
        if self._count < MAX_APPENDS and self._bytes < MAX_BYTES:
            return None
        with self._lock:
            if self._count < MAX_APPENDS and self._bytes < MAX_BYTES:
                return None
            if self._room is None:
                self._room = Promise()
            return self._room

    # On the I/O thread from here on.

    @property
    def open(self) -> bool:
        return self._channel is not None and self._session is not None and not self._session.blocked

    async def up(self, session: Session) -> None:
        """Open the confirming channel of a new connection."""
        channel = await session.channel()
        channel.raw.add_on_return_callback(self._on_return)
        await channel.request("confirm_delivery", self._on_confirm_frame)
        session.connection.on_confirm = self._on_confirm
        self._session, self._channel, self._number = session, channel, channel.number
        self._sequence = 0
        self._unconfirmed = {}
        channel.raw.add_on_close_callback(lambda raw, reason: self._on_close(session, channel))

    def down(self) -> None:
        self._session = self._channel = None
        self._unconfirmed = {}

    def _take(self) -> None:
        self._queued = False
        queue = self._queue
        pieces: list[bytes] = []
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
            self._watch(append)
            if tail.sendable and self.open:
                self._encode(append, pieces)
        self._send(pieces)

    def flush(self, tail: AmqpTail) -> None:
        """Send what waits for this tail: what was never sent, and once more what may have been."""
        if not (tail.sendable and self.open):
            return
        pieces: list[bytes] = []
        for append in list(tail.waiting.values()):
            if append.epoch != tail.epoch or not append.sent:
                self._encode(append, pieces)
        self._send(pieces)

    def _encode(self, append: Append, pieces: list[bytes]) -> None:
        assert self._session is not None
        properties = append.properties
        if append.sent:
            message = append.message
            properties = encode_content(message._replace(headers={**message.headers, RETRY_HEADER: True}))
        append.sent = True
        append.epoch = append.tail.epoch
        self._sequence += 1
        self._unconfirmed[self._sequence] = append
        pieces.append(encode_publish(self._number, self._session.dialect.queue(append.tail.stream.name)))
        pieces.append(encode_frames(self._number, properties, append.message.body, self._session.frame_max))

    def _send(self, pieces: list[bytes]) -> None:
        if pieces and self._session is not None:
            self._session.send(b"".join(pieces))

    def settle(self, append: Append, offset: int) -> None:
        twin = append.twin
        if twin is not None:
            append.twin = None
            self.settle(twin, offset)
        self._release(append)
        append.promise.resolve(offset)

    def reject(self, append: Append, error: BaseException) -> None:
        twin = append.twin
        if twin is not None:
            append.twin = None
            self.reject(twin, error)
        self._release(append)
        append.promise.reject(error)

    def _release(self, append: Append) -> None:
        if append.size >= 0:
            with self._lock:
                self._count -= 1
                self._bytes -= append.size
                append.size = -1
                room = self._room
                if room is None or self._count > MAX_APPENDS // 2 or self._bytes > MAX_BYTES // 2:
                    return
                self._room = None
            room.resolve(None)

    def _on_confirm(self, number: int, tag: int, multiple: bool) -> None:
        if number != self._number:
            return
        if not multiple:
            confirmed = self._unconfirmed.pop(tag, None)
            if confirmed is not None:
                confirmed.tail.confirmed(confirmed)
            return
        while self._unconfirmed:
            first = next(iter(self._unconfirmed))
            if first > tag:
                break
            append = self._unconfirmed.pop(first)
            append.tail.confirmed(append)

    def _on_confirm_frame(self, frame: Any) -> None:
        """A nack, or (without the quick reader) an ack."""
        method = frame.method
        if method.NAME == "Basic.Ack":
            self._on_confirm(int(frame.channel_number), int(method.delivery_tag), bool(method.multiple))
            return
        pieces: list[bytes] = []
        numbers = [n for n in self._unconfirmed if n == method.delivery_tag or (method.multiple and n <= method.delivery_tag)]
        for append in [self._unconfirmed.pop(n) for n in numbers]:
            if append.size >= 0:
                self._encode(append, pieces)
        self._send(pieces)

    def _on_return(self, raw: Any, method: Any, properties: Any, body: bytes) -> None:
        """The broker knows no queue of this name: nothing was written."""
        if self._session is None:
            return
        for append in list(self._unconfirmed.values()):
            name = append.tail.stream.name
            if append.message.id == properties.message_id and self._session.dialect.queue(name) == method.routing_key:
                append.tail.drop(append)
                self.reject(append, StreamMissing(f"there is no stream {name}"))

    def _on_close(self, session: Session, channel: Channel) -> None:
        """The channel broke under an append (refused, or too large); the connection may be well."""
        if self._channel is not channel:
            return
        self._channel = None
        if session.drop is not None or session.connection.is_closing or session.connection.is_closed:
            return
        reason = channel.drop or Dropped("closed")
        suspects, self._unconfirmed = self._unconfirmed, {}
        for append in suspects.values():
            append.strikes += 1
            if append.strikes >= STRIKES and append.size >= 0:
                append.tail.drop(append)
                self.reject(append, ConnectionFailed(f"the broker refused an append to {append.tail.stream.name}: {reason}"))
        self._link.reopen(session)

    # Deadlines

    def _watch(self, append: Append) -> None:
        deadlines = self._deadlines
        self._counter += 1
        if len(deadlines) > 4 * MAX_APPENDS:
            self._deadlines = deadlines = [each for each in deadlines if each[2].size >= 0]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (append.deadline, self._counter, append))
        if append.deadline < self._armed:
            self._arm(append.deadline)

    def _arm(self, deadline: float) -> None:
        if self._forget_timer is not None:
            self._forget_timer()
        self._armed = deadline
        self._forget_timer = self._link.later(deadline - time.monotonic(), self._on_deadline)

    def _on_deadline(self) -> None:
        self._armed = float("inf")
        self._forget_timer = None
        now = time.monotonic()
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][2].size < 0):
            append = heapq.heappop(deadlines)[2]
            if append.size >= 0:
                self._expire(append)
        if deadlines:
            self._arm(deadlines[0][0])

    def _expire(self, append: Append) -> None:
        tail = append.tail
        tail.drop(append)
        if tail.stream.release(append):
            return
        name = tail.stream.name
        if append.sent:
            error: Exception = OutcomeUnknown(f"no answer in time to an append to {name}: it may stand in the log, or not")
        elif self._session is not None and self._session.blocked:
            error = ConnectionFailed(f"the broker takes no messages now (memory or disk alarm); nothing was written to {name}")
        else:
            error = ConnectionFailed(f"no connection to {self._link.url} in time; nothing was written to {name}")
        self.reject(append, error)

    def close(self) -> None:
        """Settle what is left: nobody will."""
        left = [each[2] for each in self._deadlines] + list(self._queue)
        self._queue.clear()
        self._deadlines = []
        for append in left:
            if append.size >= 0:
                if append.sent:
                    self.reject(append, OutcomeUnknown("the engine was closed with an append under way"))
                else:
                    self.reject(append, Closed("the engine was closed; nothing was written"))
