"""What this engine has given out of each stream: no read may go behind it, though the replica that answers may lag.

It does no I/O. A node of a cluster answers from its own replica. One that is behind is not a log that was rewritten; but where
nothing tells the two apart for ``LAG`` seconds, the log counts as rewritten. Where there is one node, none of this is needed.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from mqkv.streams.base import Delivery, Message

if TYPE_CHECKING:
    from mqkv.streams.amqp.session import Session

#: A replica that is behind for so many seconds is taken for a log that was rewritten.
LAG = 60.0
#: Messages that a tail remembers.
RECENT = 256
#: Streams of which is known what was read, beyond those that have a tail.
STREAMS = 65_536


class Seen:
    """The newest offsets that were given out. For the I/O thread."""

    def __init__(self, cluster: bool) -> None:
        self.cluster = cluster
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._behind: dict[str, float] = {}

    def lags(self, session: Session | None) -> bool:
        """Whether the other side may be behind what it gave out before."""
        return self.cluster and (session is None or session.dialect.replicas_lag)

    def newest(self, stream: str) -> int:
        """The newest offset that was given out, or -1."""
        return self._newest.get(stream, -1)

    def note(self, stream: str, offset: int) -> None:
        """This was given out."""
        if self.cluster and offset >= self._newest.get(stream, 0):
            self._newest[stream] = offset
            self._newest.move_to_end(stream)
            self._behind.pop(stream, None)
            if len(self._newest) > STREAMS:
                self.forget(next(iter(self._newest)))

    def forget(self, stream: str) -> None:
        """The log is another one."""
        self._newest.pop(stream, None)
        self._behind.pop(stream, None)

    def behind(self, stream: str, offset: int) -> bool:
        """Whether an answer must wait, since its replica knows no more than this offset."""
        if offset >= self._newest.get(stream, -1):
            self._behind.pop(stream, None)
            return False
        now = time.monotonic()
        if now - self._behind.setdefault(stream, now) < LAG:
            return True
        self.forget(stream)
        return False


class Recent:
    """The newest messages that a tail was given: what stood where. It tells a replica that is behind from another log."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, object]] = deque(maxlen=RECENT)

    def add(self, batch: Sequence[Delivery]) -> None:
        self._marks.extend((offset, _mark(message)) for offset, message in batch[-RECENT:])

    def clear(self) -> None:
        self._marks.clear()

    def differs(self, batch: Sequence[Delivery], position: int, awaited: Container[str | None]) -> bool:
        """Whether a message of these, before ``position``, is not what stood there. One that is still awaited can't have stood
        there: it would have been delivered."""
        if batch[0][0] >= position:
            return False
        stood = dict(self._marks)
        return any(
            offset < position and (stood.get(offset, _mark(message)) != _mark(message) or message.id in awaited)
            for offset, message in batch
        )


def _mark(message: Message) -> object:
    """What tells a message from another one at the same place."""
    return message.id if message.id is not None else hash(message.body)
