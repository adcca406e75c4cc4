"""Keeping the state of a key in a stream whose old records are dropped.

A stream that was made for a first set with a ttl has a ``max-age``. The state of a key rests on a record that a fold may begin
at: a plain set, or an anchor. Before a record is written whose outcome depends on that state, it must be young: younger than
half the max-age, by the clock of the process that writes, which knows when it wrote itself, and that what stands behind that is
younger. (When a record came here proves nothing: it may have come late.) Where it is not, or not known to be, an anchor is
written. Should retention drop all that stands before it, it is of use only if nothing can have come between it and what
it names; where that is not sure, a second one follows, which names the first.
"""

from __future__ import annotations

import time

from mqkv.anchor import anchor
from mqkv.ids import new_id
from mqkv.layout.base import Keyspace, before
from mqkv.record import time_ms
from mqkv.table import Table
from mqkv.waiting import Deadline

#: Operations whose outcome depends on nothing that stands before them.
PLAIN = ("set", "delete")

#: What the directory says of a key whose stream was there already, made by nobody knows whom.
FOUND = b"?"
#: The shortest max-age, in seconds: what a stream may have of which none is known.
SHORTEST = 1


async def anchored(keyspace: Keyspace, table: Table, max_age: int, deadline: Deadline) -> None:
    """Have the state of a table rest on a young record."""
    if not table.tail.ready.done():
        return  # it was made just now
    since = table.rests_since
    if since is not None and time.monotonic() - since < max_age / 2:
        return
    for _ in range(2):
        place = table.place()
        if place is None:
            return
        record = anchor(table.key or "", place, time_ms(keyspace.options.clock()), new_id())
        with before(deadline, f"an anchor in stream {table.stream}"):
            offset, _ = await keyspace.write_to(table, record, deadline, confirm=True, shared=False)
        if offset == place.after + 1:
            return


def age_by(listed: bytes | None) -> int | None:
    """The max-age to reckon with, by what the directory says of a key; None: it says nothing of it."""
    return SHORTEST if listed is None or listed == FOUND else max_age_in(listed)


def told_of(max_age: int | None) -> bytes:
    """What the directory says of a key: the max-age of its stream in seconds; nothing where it has none."""
    return b"" if max_age is None else str(max_age).encode()


def max_age_in(body: bytes) -> int | None:
    """The max-age that the directory tells."""
    return int(body) if body.isdigit() and len(body) < 16 else None
