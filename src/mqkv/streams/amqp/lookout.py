"""LavinMQ forgets deliveries: look whether one is overdue, and consume again. Does nothing where the dialect asks for nothing.

All on the I/O thread. Measured: with several tails on a stream, 1 to 2 in 100 confirmed messages were not delivered to a tail
until the next one was published. No marker is written to wake it up: in a stream of the gem it would be a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqkv.errors import Error
from mqkv.streams.amqp.failures import Dropped, Unavailable
from mqkv.streams.amqp.reads import last_offset, probe
from mqkv.streams.amqp.session import Session
from mqkv.streams.amqp.tasks import spawn

if TYPE_CHECKING:
    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.publisher import Append
    from mqkv.streams.amqp.tails import AmqpTail


#: Seconds that the deliveries of a look may take.
PATIENCE = 1.0


class Lookout:
    """Looks after one tail."""

    def __init__(self, tail: AmqpTail, link: Link) -> None:
        self._tail = tail
        self._link = link
        self._expecting = False
        self._seen: tuple[int, int] | None = None  # message count and position that were found to agree

    def expect(self, session: Session, append: Append) -> None:
        """An append is confirmed; its record should be here, or come at once."""
        patience = session.dialect.own_record_patience
        if patience is not None and not self._expecting:
            self._expecting = True
            self._link.later(patience, lambda: self._look(append))

    def _look(self, append: Append) -> None:
        self._expecting = False
        ident = append.message.id
        if ident is not None and self._tail.waiting.get(ident) is append and self._tail.live:
            self._tail.reconsume()

    def keep(self, session: Session) -> None:
        """From time to time, see whether the stream has more messages than the tail was given."""
        interval = session.dialect.idle_look
        epoch, position = self._tail.epoch, self._tail.position
        if interval is not None and not self._tail.closed:
            self._link.later(interval, lambda: spawn(self._look_around(session, epoch, position)))

    async def _look_around(self, session: Session, epoch: int, position: int) -> None:
        tail = self._tail
        if tail.epoch != epoch or tail.closed or session.drop is not None:
            return
        if tail.position == position:
            try:
                count = await probe(session, tail.stream.name)
                overdue = self._seen != (count, position) and await self._overdue(session, position)
            except (Error, Dropped, Unavailable):
                return  # the connection or the stream is gone, and others see to that
            if tail.epoch != epoch:
                return
            if overdue and tail.position == position:
                tail.reconsume()
                return
            self._seen = (count, position)
        self.keep(session)

    async def _overdue(self, session: Session, position: int) -> bool:
        last = await last_offset(session, self._tail.stream.name, self._link.later, PATIENCE)
        return last is not None and last > position
