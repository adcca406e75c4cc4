"""Watching a pattern in the per-key layout: the keys that there are, and the directory for those to come."""

from __future__ import annotations

from typing import Protocol

from mqkv.codecs import DEFAULT, BoundCodec
from mqkv.errors import Error
from mqkv.layout.shared import SharedKeyspace
from mqkv.table import Event, Subscriber
from mqkv.waiting import Deadline, run
from mqkv.watch import Change, Watch


class Follower(Protocol):
    """Who can have a watch told the changes of one key."""

    async def subscribe(
        self, watch: Watch, key: str, start: int | str, deadline: Deadline, tell: Subscriber | None = None
    ) -> None: ...


async def follow_pattern(
    followed_by: Follower, directory: SharedKeyspace, watch: Watch, start: int | str, deadline: Deadline
) -> None:
    """Watch the keys that there are, and the directory for those to come."""
    followed: set[str] = set()
    timeout = deadline.timeout  # of each key that comes later

    def tell(key: str) -> Subscriber:
        def offer(event: Event) -> None:
            if event[0] == "ended":  # of one key; the others go on
                followed.discard(key)
                event = ("reset", *event[1:])
            watch.offer(event)

        return offer

    def announced(change: Change) -> None:
        if change.kind == "set" and change.key not in followed and not watch.closed:
            followed.add(change.key)
            try:
                # A new key: its first record may stand in the stream by now.
                begin = start if isinstance(start, int) else 0
                run(followed_by.subscribe(watch, change.key, begin, Deadline(timeout), tell(change.key)))
            except Error:
                followed.discard(change.key)
                watch.offer(("reset", "", None, -1, None))

    arrivals = Watch(watch.pattern, watch.wants, BoundCodec(DEFAULT), directory.log)
    await directory.follow(arrivals, "next", deadline)
    for key in await directory.snapshot(deadline):
        if watch.wants(key):
            followed.add(key)
            await followed_by.subscribe(watch, key, start, deadline, tell(key))
    directory.add_watch(arrivals, announced)
    watch.on_close(arrivals.close)
