"""The ids of the last records: whether a record was seen before. Pure.

Both kinds remember the same, the last so many records; they differ in what they cost. A record without an id counts, too, so that
the window is a number of records, the same in every process.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b


class FastIds:
    """The ids as they are: 0.1 us and 120 bytes each. For the one table of a shared keyspace."""

    __slots__ = ("_ids", "_order", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._ids: set[str] = set()
        self._order: deque[str | None] = deque()

    def is_repeat(self, id: str | None) -> bool:
        """Whether a record with this id was seen; remembers it."""
        if id is not None:
            if id in self._ids:
                return True
            self._ids.add(id)
        self._order.append(id)
        if len(self._order) > self._window:
            self._forget()
        return False

    def __contains__(self, id: str | None) -> bool:
        return id in self._ids

    def resize(self, window: int) -> None:
        self._window = window
        while len(self._order) > window:
            self._forget()

    def _forget(self) -> None:
        old = self._order.popleft()
        if old is not None:
            self._ids.discard(old)


_DIGEST = 8
_NONE = 0xFF  #: the place of a record without an id
_PLACES = 128


class SmallIds:
    """Digests of 64 bits: 1 us and 10 bytes each. For the tables of single keys, of which there may be thousands.

    Two ids that share a digest would make one a repeat of the other: once in 2**64 / window records.
    """

    __slots__ = ("_order", "_places", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        #: Digests by their first bits, the oldest first: a search looks at few of them.
        self._places: dict[int, bytearray] = {}
        #: The place of each record's digest, the oldest first.
        self._order = bytearray()

    def is_repeat(self, id: str | None) -> bool:
        """Whether a record with this id was seen; remembers it."""
        place = _NONE
        if id is not None:
            digest = _digest(id)
            place = digest[0] % _PLACES
            known = self._places.get(place)
            if known is None:
                self._places[place] = bytearray(digest)
            elif _holds(known, digest):
                return True
            else:
                known += digest
        self._order.append(place)
        if len(self._order) > self._window:
            self._forget()
        return False

    def __contains__(self, id: str | None) -> bool:
        if id is None:
            return False
        digest = _digest(id)
        return _holds(self._places.get(digest[0] % _PLACES, b""), digest)

    def resize(self, window: int) -> None:
        self._window = window
        while len(self._order) > window:
            self._forget()

    def _forget(self) -> None:
        place = self._order[0]
        del self._order[0]  # quick: a bytearray moves its start
        if place != _NONE:
            del self._places[place][:_DIGEST]


def _digest(id: str) -> bytes:
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _holds(known: bytes | bytearray, digest: bytes) -> bool:
    at = known.find(digest)
    while at >= 0 and at % _DIGEST:
        at = known.find(digest, at + 1)
    return at >= 0
