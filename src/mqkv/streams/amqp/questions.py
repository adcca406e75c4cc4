"""Questions to the broker that callers wait for: asked on one connection after the other until they are answered, or are late.

Rules:

1. A question is answered or rejected by its deadline, whatever the broker does.
2. What nobody waits for any more is not asked: ``over`` tells whoever waits for a turn in its name.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mqkv.errors import Closed, Error
from mqkv.streams.amqp.failures import Dropped, Unavailable, damaged, ours
from mqkv.streams.amqp.link import Link
from mqkv.streams.amqp.session import Session
from mqkv.streams.amqp.tasks import Future, spawn
from mqkv.streams.base import Promise

T = TypeVar("T")

#: A stream that breaks the connection so often in a row when it is read is damaged.
STRIKES = 4
LONGEST_PAUSE = 0.5


class Question(Generic[T]):
    """One question about one stream. Made in any thread; all else is for the I/O thread."""

    def __init__(self, link: Link, stream: str, timeout: float, late: Error) -> None:
        self.promise: Promise[T] = Promise()
        self.over: Future[None] = Future()  #: resolved when nobody waits for the answer any more
        self._link = link
        self._stream = stream
        self._deadline = time.monotonic() + timeout
        self._late = late

    @property
    def left(self) -> float:
        """Seconds."""
        return self._deadline - time.monotonic()

    def begin(self, ask: Callable[[Session], Awaitable[T]]) -> None:
        forget = self._link.later(self.left, self._give_up)
        self.promise.then(lambda promise: forget())
        spawn(self._answer(ask))

    def _give_up(self) -> None:
        session = self._link.session
        if session is None:
            late: Error = self._link.late()
        elif session.blocked:
            late = type(self._late)(f"{self._late}: it has a memory or disk alarm, and reads nothing from those who write")
        else:
            late = self._late
        self.promise.reject(late)
        self.over.resolve(None)

    async def _answer(self, ask: Callable[[Session], Awaitable[T]]) -> None:
        pause, strikes = 0.02, 0
        while not self.promise.done():
            try:
                self.promise.resolve(await ask(await self._link.up(self._deadline)))
                return
            except (Dropped, Unavailable) as error:
                problem: Exception = error
                strikes += isinstance(error, Dropped) and error.code == 541
                if self._link.closed:
                    self.promise.reject(Closed("this engine was closed meanwhile"))
                    return
            except Error as error:
                self.promise.reject(error)
                return
            if strikes >= STRIKES:
                self.promise.reject(damaged(self._stream))
                return
            if pause >= self.left:
                self.promise.reject(ours(problem, self._link.url))
                return
            await self._link.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
