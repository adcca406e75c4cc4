"""One stream, told to whoever wants its changes: from a place in its past on, live, and on when it was deleted and made anew.

Rules:

1. The past is read from the log in pieces, and folded by a table of its own; the next piece is read when there is room for it.
2. The present is told by the table that all share. What it tells while the last of the past is read is held back until then; so
   nothing is missed, doubled, or told out of order.
3. What tells runs under the lock of the table: it takes no lock of a keyspace, and waits for nothing.
"""

from __future__ import annotations

import threading
from typing import Protocol

from mqkv.errors import Closed, Error, StreamMissing
from mqkv.inbox import LIMIT, RESET, Inbox, size_of
from mqkv.layout.base import answered
from mqkv.streams.base import Delivery, Engine, Piece, Promise
from mqkv.table import Event, Subscriber, Table
from mqkv.waiting import Deadline, wait

#: Bytes of the log that are read at once.
PIECE = 4 * 2**20

#: Seconds between two looks for what the log has and a read of it does not show yet.
PAUSE = 0.02


class Source(Protocol):
    """A keyspace, as far as following one of its streams goes."""

    engine: Engine
    remakes: bool  #: whether a stream that was deleted is made anew for those who follow it

    async def live(self, key: str, deadline: Deadline, *, create: bool) -> Table:
        """The table of the key's stream, loaded, and determined; ``StreamMissing`` where there is none to ``create``."""

    def hold(self, key: str, table: Table, subscriber: Subscriber, *, current: bool) -> int | None:
        """Have the table tell, and be kept open; the offset that it had folded last. None if it is not the key's table any more,
        or is being rebuilt."""

    def let_go(self, key: str, table: Table, subscriber: Subscriber) -> None:
        """The table need not be kept open for the subscriber any more."""

    def stream_of(self, key: str) -> str:
        """The name of the key's stream."""

    def table_of(self, key: str) -> Table:
        """A table of its own for the key's stream, with nothing in it, and without a tail."""

    def lost(self, following: Following) -> None:
        """A stream was deleted: have the following try again soon. Takes no lock of the keyspace."""


class Following:
    """What one stream tells to one reader. Thread-safe."""

    def __init__(
        self,
        source: Source,
        key: str,
        start: int | str,
        tell: Subscriber,
        *,
        create: bool,
        inbox: Inbox | None = None,
        alone: bool = True,
    ) -> None:
        self.source = source
        self.key = key
        self.inbox = inbox  #: whose reader it is for
        self._alone = alone  #: whether that is told by nothing else
        self._start = start
        self._tell = tell
        self._create = create  #: whether to make a stream that is not there
        self._failed: Error | None = None
        self._past: Past | None = None
        self._table: Table | None = None
        self._live = False
        self._after = -1  #: what the table tells up to this offset was told already
        self._gate = threading.Lock()
        self._held: list[Event] | None = None
        self._held_size = 0
        self._busy = threading.Lock()
        self._asked_again = False

    @property
    def live(self) -> bool:
        """Whether the present is told."""
        return self._live

    async def step(self, deadline: Deadline) -> bool:
        """Go on by one piece of the past, or into the present. Whether there is no more to do for now: the present tells by
        itself, or somebody else is at it. ``StreamMissing`` where there is no stream."""
        while True:
            self._asked_again = True  # before the look: whoever is at it looks when it has finished
            if not self._busy.acquire(blocking=False):
                return True
            try:
                self._asked_again = False
                done = self._live or await self._step(deadline)
            except StreamMissing:
                begun = self._past is not None
                self._past, self._start = None, 0  # of the one that is made some day, all is news
                self._busy.release()
                if begun:
                    self._create = self._create and self.source.remakes
                    self._tell(RESET)
                if not (begun or self._asked_again):
                    raise
            except BaseException:
                self._busy.release()
                raise
            else:
                self._busy.release()
                if not (done and self._asked_again and not self._live):
                    return done

    def close(self) -> None:
        """Let go of the table. For when nobody listens any more."""
        past, table, self._table = self._past, self._table, None
        if past is not None and self.inbox is not None and self.inbox.closed:
            past.stop()
        if table is not None:
            self.source.let_go(self.key, table, self._offer)

    def give_up(self, error: Error) -> None:
        """It can't go on: tell so, and end the watch if it has nothing else."""
        self._tell(RESET)
        if self._alone and self.inbox is not None:
            self.inbox.close()

    async def _step(self, deadline: Deadline) -> bool:
        if self._failed is not None:
            raise self._failed
        start = self._start
        if isinstance(start, str):
            await self._attach(deadline, current=start == "last")
        else:
            if self._past is None:
                # The stream must be there, or be made, before it can be read; and the table has what was written before the call.
                await self.source.live(self.key, deadline, create=self._create)
                self._past = Past(self.source, self.key, start, self._tell_paced)
            past = self._past
            if not await past.read(deadline):
                return False
            until = await self._attach(deadline)
            try:
                past.end_at(until)
                logs = past.logs
                while True:  # once at least: it may be the table of another log by now
                    complete = await past.read(deadline)
                    if past.logs != logs:  # what is held back is perhaps of the one before
                        past.end_at(None)
                        self.close()
                        return False
                    if past.position >= until:
                        break
                    if complete:
                        await wait(Promise[None](), min(PAUSE, deadline.left))
                        if not deadline.left:
                            raise deadline.late(f"stream {past.stream} could not be read up to revision {until} in time")
            except BaseException:
                past.end_at(None)  # all that was read so far was told
                self.close()
                raise
        with self._gate:
            self._after = -1 if self._past is None else self._past.told
            self._start, self._past, self._live = 0, None, True
            held, self._held = self._held or [], None
            for event in held:
                self._pass(event, self._tell_paced)
        if self.inbox is not None and self.inbox.closed:
            self.close()
        return True

    async def _attach(self, deadline: Deadline, *, current: bool = False) -> int:
        """Have the present told to us, and hold it back."""
        while True:
            table = await self.source.live(self.key, deadline, create=self._create)
            with self._gate:
                self._held, self._held_size = [], 0
            position = self.source.hold(self.key, table, self._offer, current=current)
            if position is not None:
                self._table = table
                return position

    def _offer(self, event: Event) -> None:
        with self._gate:
            if self._held is None:
                self._pass(event, self._tell)
                return
            self._held_size += size_of(event)
            if self._held_size > LIMIT and self._held:
                self._held, self._held_size = [RESET], 0
            self._held.append(event)

    def _tell_paced(self, event: Event) -> None:
        if self.inbox is None:
            self._tell(event)
        else:
            self.inbox.offer(event, paced=True)

    def _pass(self, event: Event, tell: Subscriber) -> None:
        if event.kind in ("reset", "ended"):
            self._after = -1
            tell(RESET)
        elif event.offset > self._after:
            tell(event)
        if event.kind != "ended":
            return
        self._live = False
        failed = None if self._table is None else self._table.failed
        if not isinstance(failed, StreamMissing):
            self._failed = failed
        self._create = self._create and self.source.remakes
        self.source.lost(self)


class Past:
    """What stood in a stream, read in pieces."""

    def __init__(self, source: Source, key: str, start: int, tell: Subscriber) -> None:
        self.stream = source.stream_of(key)
        self.told = -1  #: up to here all was told
        self.logs = 0  #: how many logs it has begun to read
        self._until: int | None = None
        self._asked: Promise[Piece] | None = None
        self._stopped = False
        self._source = source
        self._key = key
        self._start = start
        self._tell = tell
        self._begin()

    def _begin(self) -> None:
        self.logs += 1
        self._table = self._source.table_of(self._key)
        self._table.subscribe(self._told)
        self._tip: Delivery | None = None

    @property
    def position(self) -> int:
        return self._table.position

    def end_at(self, until: int | None) -> None:
        """What comes after this offset is told by somebody else."""
        self._until = until

    def stop(self) -> None:
        """Nobody listens any more: whoever waits for a piece need not."""
        self._stopped, asked = True, self._asked
        if asked is not None:
            asked.reject(Closed("this watch was closed"))

    async def read(self, deadline: Deadline) -> bool:
        """Tell the next piece. Whether there was no more when it was asked for."""
        asked = self._asked = self._source.engine.begin_read(self.stream, max(self.position, 0), PIECE, deadline.left)
        if self._stopped:
            asked.reject(Closed("this watch was closed"))
        try:
            read = await answered(asked, deadline, self.stream)
        except BaseException as error:
            asked.reject(error)  # it is wanted no more
            raise
        deadline.renew()
        piece = read.messages
        if self._tip is not None:
            if not piece and await self._behind(self._tip[0], deadline):
                return False
            if not piece or piece[0] != self._tip:  # the log is another one, or its beginning went past us
                self._tell(RESET)
                self._start, self.told = 0, -1
                self._begin()
                return False
            piece = piece[1:]
        elif read.truncated:
            self._table.truncated()
        if piece:
            self._table.deliver(piece)
            self._tip = piece[-1]
        if self._table.failed is not None:
            raise self._table.failed
        self.told = max(self.told, self.position if self._until is None else min(self.position, self._until))
        return read.complete

    async def _behind(self, tip: int, deadline: Deadline) -> bool:
        """Whether nothing stands where something stood because a replica is behind: then the table is out of touch, or has it."""
        if self._source.engine.exact:
            return False
        table = await self._source.live(self._key, deadline, create=False)
        if table.out_of_touch_since is None and table.position < tip:
            return False
        await wait(Promise[None](), PAUSE)
        return True

    def _told(self, event: Event) -> None:
        if event.offset >= self._start and (self._until is None or event.offset <= self._until):
            self._tell(event)
