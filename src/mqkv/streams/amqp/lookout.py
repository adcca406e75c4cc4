"""Where a broker may let a delivery wait, look whether one is overdue, and consume again. The dialect says where, and how long.

All on the I/O thread. No marker is written to wake the broker up: in a stream of the gem it would be a value. Rules:

1. An own record that was confirmed is looked after until all tails of its stream have it. A tail that was given something in the
   meantime is not asked to consume again: deliveries keep their order.
2. A tail at rest asks from time to time how many messages there are; all tails of an engine together no more than ``LOOKS`` times
   a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mqkv.errors import Error
from mqkv.streams.amqp.failures import Dropped, Unavailable
from mqkv.streams.amqp.reads import last_offset, probe
from mqkv.streams.amqp.session import Session
from mqkv.streams.amqp.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqkv.streams.amqp.appends import Append
    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.tails import AmqpTail


#: Seconds that the deliveries of a look may take, and that a look waits for at most before the next.
PATIENCE = 1.0
#: How often in a second all tails of an engine together may ask for a count.
LOOKS = 20


class Lookout:
    """Looks after one tail."""

    def __init__(self, tail: AmqpTail, link: Link) -> None:
        self._tail = tail
        self._link = link
        self._confirmed: Append | None = None  # the newest: when it has come, so have all before it
        self._since = 0.0  # when the first that has not come was confirmed, or looked after last
        self._positions: dict[AmqpTail, int] = {}  # at that time
        self._patience = 0.0
        self._forget: Callable[[], None] | None = None
        self._seen: tuple[int, int] | None = None  # message count and position that were found to agree

    def expect(self, session: Session, append: Append) -> None:
        """An append is confirmed; its record should be here, or come at once."""
        patience = session.dialect.own_record_patience
        if patience is not None:
            overdue, self._confirmed = self._confirmed, append
            if overdue is not None and not overdue.settled:
                return
            self._note()
            if self._forget is not None and self._patience > patience:
                self._forget()
                self._forget = None
            if self._forget is None:
                self._patience = patience
                self._arm()

    def _note(self) -> None:
        self._since = time.monotonic()
        self._positions = {tail: tail.position for tail in self._tail.stream.tails if tail.live}

    def _arm(self) -> None:
        self._forget = self._link.later(self._since + self._patience - time.monotonic(), self._look)

    def _look(self) -> None:
        self._forget = None
        append, stream = self._confirmed, self._tail.stream
        if append is None or append.settled:  # by its deadline at the latest
            self._confirmed = None
            return
        if time.monotonic() >= self._since + self._patience:  # else it was confirmed after an earlier one for which we came
            offset = stream.offset_of(append)  # known once its own tail has it; then another tail of the stream has not
            for tail in list(stream.tails):
                at_rest = tail.live and tail.consuming and self._positions.get(tail) == tail.position
                if at_rest and (offset is None or tail.position < offset):
                    tail.reconsume()
            self._patience = min(self._patience * 2, PATIENCE)
            self._note()
        self._arm()

    def keep(self, session: Session) -> None:
        """From time to time, see whether the stream has more messages than the tail was given."""
        interval = session.dialect.idle_look
        epoch, position = self._tail.epoch, self._tail.position
        if interval is not None and not self._tail.closed:
            interval = max(interval, self._tail.stream.neighbours / LOOKS)
            self._link.later(interval, lambda: spawn(self._look_around(session, epoch, position)))

    async def _look_around(self, session: Session, epoch: int, position: int) -> None:
        tail = self._tail
        if tail.epoch != epoch or tail.closed or session.drop is not None:
            return
        if tail.position == position:
            try:
                count = await probe(session, tail.stream.name)
                overdue = self._seen != (count, position) and await self._overdue(session, position)
            except (Error, Dropped, Unavailable):  # if the connection or the stream is gone, others see to that
                self.keep(session)
                return
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
