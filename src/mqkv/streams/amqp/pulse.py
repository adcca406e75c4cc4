"""Noticing that the broker is silent, where somebody asked for it: heartbeats take a minute.

All on the I/O thread, but for ``keep``. Rules:

1. Where nobody asked, nothing is sent and no timer runs.
2. Whatever comes is a sign of life. A broker that had nothing to say for half of the time that was asked for is asked, with a
   request that does nothing.
3. Silence counts from the look before the last sign of life, so never from later than it began.
4. A broker with a memory or disk alarm reads nothing of what a publisher sends, so it answers nothing; it has said so, and
   delivers all the same. Meanwhile only heartbeats tell.
5. Who looks too late was held up itself, and knows nothing: it looks again before it judges.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from mqkv.errors import Error
from mqkv.streams.amqp.failures import Dropped
from mqkv.streams.amqp.session import PREFETCH, Channel, Session
from mqkv.streams.amqp.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqkv.streams.amqp.link import Link

#: Looks in the time that silence may last.
LOOKS = 4


class Listener(Protocol):
    """Who is told."""

    def silent(self, since: float) -> None:
        """Nothing was heard since then (``time.monotonic``)."""

    def heard(self) -> None:
        """It speaks again, on the same connection."""


class Pulse:
    """Looks after one connection at a time."""

    def __init__(self, link: Link, listener: Listener) -> None:
        self._link = link
        self._listener = listener
        self._within = float("inf")
        # From here on for the I/O thread.
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._received = 0
        self._looked = self._heard = 0.0
        self._asking = self._silent = False
        self._forget_look: Callable[[], None] = lambda: None

    def keep(self, within: float) -> None:
        """Notice from now on when nothing was heard for so many seconds; the least that anybody asked for holds."""
        if within >= self._within:
            return
        self._within = within
        session = self._link.session
        if session is not None:
            self._link.call(lambda: self.begin(session))

    def begin(self, session: Session) -> None:
        """A connection is there, or its silence may last less long than before."""
        if self._within == float("inf"):
            return
        if self._session is session:
            self._forget_look()
            self._again(session)
            return
        self._session, self._channel = session, None
        self._asking = self._silent = False
        self._received = session.connection.bytes_received
        self._looked = self._heard = time.monotonic()
        self._again(session)

    def _again(self, session: Session) -> None:
        self._forget_look = self._link.later(self._within / LOOKS, lambda: self._look(session))

    def _look(self, session: Session) -> None:
        if self._session is not session or session.drop is not None:
            return
        now, received = time.monotonic(), session.connection.bytes_received
        on_time = now - self._looked < 2 * self._within / LOOKS
        if received != self._received or session.blocked:
            self._received, self._heard = received, self._looked
            if self._silent:
                self._silent = False
                self._listener.heard()
        elif now - self._heard >= self._within * 0.999 and on_time and not self._silent:
            self._silent = True
            self._listener.silent(self._heard)
        if now - self._heard >= self._within / 2 * 0.999 and not self._asking:
            spawn(self._ask(session))
        self._looked = now
        self._again(session)

    async def _ask(self, session: Session) -> None:
        self._asking = True
        try:
            if self._channel is None:
                self._channel = await session.channel()
            await self._channel.request("basic_qos", prefetch_count=PREFETCH)
        except (Dropped, Error):
            if self._session is session:
                self._channel = None  # closed; with its connection, or another will be opened
        finally:
            if self._session is session:
                self._asking = False
