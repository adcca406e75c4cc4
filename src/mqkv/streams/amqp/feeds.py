"""What stands between a tail and its neighbours: the other tails of its stream, and the consumer that feeds it.

All on the I/O thread. It keeps rule 3 of ``streams/base.py``: an append is settled after all tails of its stream in this engine
that had caught up were given it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqkv.streams.amqp.failures import Dropped
from mqkv.streams.amqp.seen import Seen
from mqkv.streams.amqp.tasks import Future
from mqkv.streams.base import Delivery

if TYPE_CHECKING:
    from mqkv.streams.amqp.appends import Append
    from mqkv.streams.amqp.link import Link
    from mqkv.streams.amqp.publisher import Publisher
    from mqkv.streams.amqp.tails import AmqpTail


class Stream:
    """What the tails of one stream in this engine share."""

    def __init__(self, name: str, publisher: Publisher, registry: dict[str, Stream], seen: Seen) -> None:
        self.name = name
        self.seen = seen
        self.tails: list[AmqpTail] = []
        self.top = seen.newest(name)  #: the newest offset that this engine has given out or settled
        self._publisher = publisher
        self._registry = registry
        self._held: dict[Append, int] = {}  # appends that their own tails have, and where they stand

    @property
    def neighbours(self) -> int:
        """How many streams this engine follows."""
        return len(self._registry)

    def remove(self, tail: AmqpTail) -> None:
        if tail in self.tails:
            self.tails.remove(tail)
        if not self.tails and self._registry.get(self.name) is self:
            del self._registry[self.name]

    def settle(self, append: Append, offset: int, by: AmqpTail) -> None:
        """Its own tail has it. It may have to wait for other tails, and where records come early, for its confirm."""
        append.doubtful = by.early and not append.confirmed and append.confirmable
        if append.doubtful or (len(self.tails) > 1 and self._late(offset)):
            self._held[append] = offset
        else:
            self._settled(append, offset)

    def _settled(self, append: Append, offset: int) -> None:
        self.top = max(self.top, offset)
        self._publisher.settle(append, offset)

    def _late(self, offset: int) -> bool:
        return any(tail.live and tail.position < offset for tail in self.tails)

    def check(self) -> None:
        """Settle what had to wait for another tail."""
        for append, offset in list(self._held.items()):
            if not append.doubtful and not self._late(offset):
                del self._held[append]
                self._settled(append, offset)

    def confirmed(self, append: Append) -> None:
        """Settle what had to wait for its confirm."""
        append.doubtful = False
        offset = self._held.get(append)
        if offset is not None and not self._late(offset):
            del self._held[append]
            self._settled(append, offset)

    def vouch(self) -> None:
        """All that stood in the log stands there: of what was sent on a channel that is gone, no confirm will come."""
        for append in self._held:
            append.doubtful = append.doubtful and append.confirmable
        self.check()

    def disavow(self) -> None:
        """The log is another one: what was not confirmed is to be sent again."""
        for append in [each for each in reversed(self._held) if each.doubtful]:
            del self._held[append]
            append.doubtful = False
            append.tail.await_again(append)

    def offset_of(self, append: Append) -> int | None:
        """Where an append stands that only waits for another tail, or its confirm."""
        return self._held.get(append)

    def release(self, append: Append) -> bool:
        """At its deadline, settle an append that only waited for another tail."""
        offset = self._held.pop(append, None)
        if offset is None or append.doubtful:
            return False
        self._publisher.settle(append, offset)
        return True


class Feed:
    """One consumer of a tail; a tail has another one each time that it is attached."""

    def __init__(self, tail: AmqpTail) -> None:
        self.tail = tail
        self.received = 0
        self.more: Future[None] = Future()

    async def wait(self, link: Link, patience: float) -> None:
        """Until more has come, or so many seconds have passed."""
        more = self.more = Future()
        forget = link.later(patience, lambda: more.resolve(None))
        await more
        forget()

    def receive(self, batch: list[Delivery]) -> None:
        if self.tail.feed is self:
            self.tail.receive(batch)
            if not self.more.done:
                self.more.resolve(None)

    def cancelled(self) -> None:
        if self.tail.feed is self:
            self.tail.on_cancel()

    def dropped(self, reason: Dropped) -> None:
        self.more.resolve(None)
        if self.tail.feed is self:
            self.tail.on_drop(reason)
