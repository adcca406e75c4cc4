"""The watches of a keyspace: who reads, who is called, and the threads that bring to them what takes time.

Rules:

1. A watch is kept until it is closed, or its store is, or nobody holds it any more. One that has a callback is held by it.
2. What is begun in a caller's thread goes on in one of its own when its reader is slow, and only then.
3. What must begin again (its stream was deleted) does so in one thread for the whole keyspace, which ends when there is no more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mqkv.errors import Closed, ConnectionFailed, Error, OutcomeUnknown, ReadTimeout, StreamMissing, WriteTimeout
from mqkv.inbox import Inbox
from mqkv.logfmt import Log
from mqkv.waiting import Deadline, run
from mqkv.watch import Change, Dispatcher, Watch

#: Seconds that a step may take when nobody waits for it.
PATIENCE = 10.0

#: Seconds between two tries while the broker is out of reach, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

#: Seconds after which a thread that waits for a reader looks whether there still is one.
LOOK = 1.0

#: What passes.
TRANSIENT = (Closed, ConnectionFailed, ReadTimeout, WriteTimeout, OutcomeUnknown)


class Steps(Protocol):
    """Something that is done step by step."""

    async def step(self, deadline: Deadline) -> bool:
        """Do some more; whether that was all."""

    def give_up(self, error: Error) -> None:
        """It can't be done, now or ever."""


class Watching:
    """Thread-safe."""

    def __init__(self, name: str, log: Log) -> None:
        self._name = name
        self._log = log
        self._dispatcher = Dispatcher(name, log)
        self._inboxes: set[Inbox] = set()
        self._left: deque[Inbox] = deque()
        self._lock = threading.Lock()
        self._jobs: deque[tuple[Steps, Inbox | None]] = deque()
        self._worker: threading.Thread | None = None
        self._closed = threading.Event()

    def __len__(self) -> int:
        self.let_go_of_left()
        return len(self._inboxes)

    def add(self, watch: Watch, callback: Callable[[Change], object] | None, owner: object) -> None:
        """Keep a watch, and start its callback."""
        self.let_go_of_left()
        inbox = watch.inbox
        inbox.owner = weakref.ref(owner)
        self._inboxes.add(inbox)
        inbox.on_close(lambda: self._inboxes.discard(inbox))
        if self._closed.is_set():
            watch.close()
        elif callback is None:
            weakref.finalize(watch, _leave, inbox, self._left).atexit = False
        else:
            watch.call(callback, self._dispatcher)  # the inbox holds the watch from now on

    def let_go_of_left(self) -> None:
        """Close the inboxes of watches that nobody held any more."""
        while self._left:
            self._left.popleft().close()

    def close_of(self, owner: object) -> None:
        """End the watches of a store that is being closed."""
        for inbox in list(self._inboxes):
            if inbox.owner is not None and inbox.owner() is owner:
                inbox.close()

    def close(self) -> None:
        """End all watches, and the threads."""
        self._closed.set()
        for inbox in list(self._inboxes):
            inbox.close()
        self._dispatcher.close()
        with self._lock:  # it may just be starting
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(LOOK)  # what it waits for may take longer, and ends by itself

    # Bringing

    async def pursue(self, steps: Steps, inbox: Inbox, deadline: Deadline) -> None:
        """Do all steps, here as long as there is room, and then in a thread."""
        with contextlib.suppress(StreamMissing):  # deleted under us: there is word when there is one again
            while not await steps.step(deadline):
                if inbox.full:
                    self._alone(steps, inbox)
                    return

    def soon(self, steps: Steps, inbox: Inbox | None = None) -> None:
        """Do all steps in the thread for that. Does not wait, and takes no lock but its own."""
        with self._lock:
            if self._closed.is_set():
                return
            self._jobs.append((steps, inbox))
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name=f"mqkv-follow-{self._name}", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs or self._closed.is_set():
                    self._worker = None
                    return
                steps, inbox = self._jobs.popleft()
            self._do(steps, inbox, self._alone)

    def _alone(self, steps: Steps, inbox: Inbox) -> None:
        work = threading.Thread(target=self._do, args=(steps, inbox, None), name=f"mqkv-past-{self._name}", daemon=True)
        work.start()

    def _do(self, steps: Steps, inbox: Inbox | None, hand_over: Callable[[Steps, Inbox], None] | None) -> None:
        """All steps, as room comes and whatever passes. Where there is no room, ``hand_over`` or wait."""
        pause = FIRST_PAUSE
        while not self._closed.is_set() and not (inbox is not None and (inbox.closed or inbox.left)):
            if inbox is not None and inbox.full:
                if hand_over is not None:
                    hand_over(steps, inbox)
                    return
                inbox.room().wait(LOOK)
                continue
            try:
                if run(steps.step(Deadline(PATIENCE))):
                    return
                pause = FIRST_PAUSE
            except StreamMissing:
                return  # there is word when there is one
            except TRANSIENT as error:
                self._log(logging.DEBUG, "follow", name=self._name, status="again", reason=type(error).__name__)
                self._closed.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except Error as error:
                self._log(logging.ERROR, "follow", name=self._name, status="ended", error=type(error).__name__)
                steps.give_up(error)
                return


def _leave(inbox: Inbox, left: deque[Inbox]) -> None:
    """A watch was collected: its finaliser may run anywhere, so it takes no lock."""
    inbox.leave()
    left.append(inbox)
