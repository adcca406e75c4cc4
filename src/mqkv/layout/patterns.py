"""Watches of the per-key layout: the directory tells of each stream that is made, so that who waits for one can follow it.

A stream that only the Ruby gem makes is not told of there.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from mqkv.errors import Error, StreamMissing
from mqkv.fold import Cell
from mqkv.inbox import RESET, Inbox
from mqkv.layout.following import Following, Source
from mqkv.layout.watching import Steps, Watching
from mqkv.table import Event
from mqkv.waiting import Deadline, Turn


class Directory(Source, Protocol):
    """The keyspace that lists the keys."""

    async def snapshot(self, deadline: Deadline) -> dict[str, Cell]:
        """All keys."""


class Arrivals:
    """Who follows keys, whose streams may be made, perhaps anew, at any time. Thread-safe."""

    def __init__(self, keys: Source, directory: Directory, watching: Watching) -> None:
        self.keys = keys
        self.directory = directory
        self.watching = watching
        self._lock = threading.Lock()
        self._of_one: dict[str, tuple[Following, ...]] = {}  # tuples are replaced, not changed: they are read without the lock
        self._of_many: tuple[Pattern, ...] = ()
        self._turn = Turn()
        self._announced = Following(directory, "", "next", self._tell, create=True)

    async def listen(self, deadline: Deadline) -> None:
        """Hear of all streams that are made from now on."""
        if self._announced.live:
            return
        if not await self._turn.take(deadline.left):
            raise deadline.late(f"somebody else has been loading the directory of keys for {deadline}")
        try:
            await self._announced.step(deadline)
        finally:
            self._turn.give()

    def follow(self, inbox: Inbox, start: int | str) -> Steps:
        """What brings to ``inbox`` the changes of a key, or of the keys that match a pattern."""
        if inbox.key is None:
            return self._follow_many(Pattern(self, inbox, start))
        return self._follow_one(Following(self.keys, inbox.key, start, inbox.offer, create=True, inbox=inbox))

    def _follow_one(self, following: Following) -> Following:
        key, inbox = following.key, following.inbox
        assert inbox is not None

        def leave() -> None:
            with self._lock:
                left = tuple(other for other in self._of_one[key] if other is not following)
                if left:
                    self._of_one[key] = left
                else:
                    del self._of_one[key]
            following.close()

        with self._lock:
            self._of_one[key] = (*self._of_one.get(key, ()), following)
        inbox.on_close(leave)
        return following

    def _follow_many(self, pattern: Pattern) -> Pattern:
        def leave() -> None:
            with self._lock:
                self._of_many = tuple(other for other in self._of_many if other is not pattern)
            pattern.close()

        with self._lock:
            self._of_many = (*self._of_many, pattern)
        pattern.inbox.on_close(leave)
        return pattern

    def _tell(self, event: Event) -> None:
        """The directory has told something. (After a ``reset`` it tells all anew.)"""
        for key in event.many or (event.key,):
            for following in self._of_one.get(key, ()):
                self.watching.soon(following, following.inbox)
            for pattern in self._of_many:
                if pattern.inbox.wants(key):
                    pattern.announced(key)


class Pattern:
    """All keys that match one watch's pattern. Thread-safe."""

    def __init__(self, arrivals: Arrivals, inbox: Inbox, start: int | str) -> None:
        self.inbox = inbox
        self._arrivals = arrivals
        self._start = start
        self._lock = threading.Lock()
        self._keys: dict[str, Following] = {}
        self._to_do: deque[Following] | None = None

    async def step(self, deadline: Deadline) -> bool:
        if self._to_do is None:
            keys = await self._arrivals.directory.snapshot(deadline)
            self._to_do = deque(self._of(key, self._start) for key in keys if self.inbox.wants(key))
        if self._to_do:
            try:
                done = await self._to_do[0].step(deadline)
            except StreamMissing:
                done = True  # the directory tells when it is made anew
            if done:
                self._to_do.popleft()
                deadline.renew()
        return not self._to_do

    def give_up(self, error: Error) -> None:
        self.inbox.offer(RESET)
        self.inbox.close()

    def announced(self, key: str) -> None:
        """A stream was made: all that it holds is new."""
        if key:
            self._arrivals.watching.soon(self._of(key, self._start if isinstance(self._start, int) else 0), self.inbox)

    def close(self) -> None:
        with self._lock:
            keys = list(self._keys.values())
        for following in keys:
            following.close()

    def _of(self, key: str, start: int | str) -> Following:
        with self._lock:
            following = self._keys.get(key)
            if following is None:
                following = self._keys[key] = Following(
                    self._arrivals.keys, key, start, self.inbox.offer, create=False, inbox=self.inbox, alone=False
                )
            return following
