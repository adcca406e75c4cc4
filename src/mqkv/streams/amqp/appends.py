"""Appends that are under way: how many, and until when. It sends and settles nothing.

Rules:

1. What is settled is let go of at once, and not kept until its deadline.
2. One timer, for the earliest deadline.
3. ``admit`` and ``room`` are for any thread; all else is for the I/O thread.
"""

from __future__ import annotations

import heapq
import threading
import time
from typing import TYPE_CHECKING

from mqkv.streams.base import Message, Promise

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.session import Channel
    from mqkv.streams.amqp.tails import AmqpTail

MAX_APPENDS = 8_192
MAX_BYTES = 64 * 2**20


class Append:
    """One append under way."""

    __slots__ = (
        "channel",
        "confirmed",
        "copies",
        "deadline",
        "doubtful",
        "epoch",
        "message",
        "number",
        "promise",
        "properties",
        "size",
        "strikes",
        "suspect",
        "tail",
        "twin",
    )

    def __init__(self, tail: AmqpTail, message: Message, properties: bytes, deadline: float) -> None:
        self.tail = tail
        self.message = message
        self.properties = properties
        self.deadline = deadline
        self.promise: Promise[int] = Promise()
        self.size = len(message.body) + len(properties)
        self.number = 0
        self.copies = 0  # how often it was sent
        self.channel: Channel | None = None  # on which it was sent
        self.epoch = -1  # of the tail, when it was sent
        self.suspect = False  # it was under way when a channel broke, and may be why
        self.strikes = 0
        self.confirmed = False
        self.doubtful = False  # its record has come back, and its confirm has not (where records come early)
        self.twin: Append | None = None  # an earlier append with the same id

    @property
    def settled(self) -> bool:
        return self.size < 0

    @property
    def confirmable(self) -> bool:
        """Whether its confirm can still come."""
        return self.channel is not None and self.channel.drop is None

    @property
    def first(self) -> Append:
        """The earliest with this id: what comes back may be its."""
        append = self
        while append.twin is not None:
            append = append.twin
        return append

    @property
    def nacked(self) -> bool:
        """Whether the broker said that it could not take what was sent last."""
        return self.channel is None and self.copies > 0

    @property
    def delivered(self) -> bool:
        return self.settled and self.promise.done() and self.promise.error() is None


class UnderWay:
    """All appends of one engine that are not settled; ``expire`` is told of each whose deadline has passed."""

    def __init__(self, link: Link, expire: Callable[[Append], None]) -> None:
        self._link = link
        self._expire = expire
        self._lock = threading.RLock()  # a signal's handler may come in between
        self._room: Promise[None] | None = None
        self._count = self._bytes = 0
        # From here on for the I/O thread.
        self._watched: dict[int, Append] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._counter = 0
        self._armed = float("inf")
        self._forget_timer: Callable[[], None] | None = None

    def admit(self, append: Append) -> None:
        """It counts from now on, until it is released."""
        with self._lock:
            self._count += 1
            self._bytes += append.size

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

    def all(self) -> list[Append]:
        """Those that the I/O thread has taken, in that order."""
        return list(self._watched.values())

    def release(self, append: Append) -> None:
        if append.size >= 0:
            self._watched.pop(append.number, None)
            with self._lock:
                self._count -= 1
                self._bytes -= append.size
                append.size = -1
                room = self._room
                if room is None or self._count > MAX_APPENDS // 2 or self._bytes > MAX_BYTES // 2:
                    return
                self._room = None
            room.resolve(None)

    def watch(self, append: Append) -> None:
        self._counter += 1
        append.number = self._counter
        self._watched[append.number] = append
        deadlines = self._deadlines
        if len(deadlines) > 2 * len(self._watched) + 64:
            self._deadlines = deadlines = [(each.deadline, number) for number, each in self._watched.items()]
            heapq.heapify(deadlines)
        else:
            heapq.heappush(deadlines, (append.deadline, append.number))
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
        while deadlines and (deadlines[0][0] <= now or deadlines[0][1] not in self._watched):
            append = self._watched.get(heapq.heappop(deadlines)[1])
            if append is not None:
                self._expire(append)
        if deadlines:
            self._arm(deadlines[0][0])
