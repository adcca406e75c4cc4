"""Region invalidation that holds in every process: its times are a value in the stream."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, NamedTuple

from dogpile.cache.region import CacheRegion, RegionInvalidationStrategy

from mqkv.dogpile.backend import INVALIDATED, StreamBackend
from mqkv.dogpile.options import LOGGER
from mqkv.errors import InvalidOption
from mqkv.store import Store

_log = logging.getLogger(LOGGER)


class _Times(NamedTuple):
    """When the region was invalidated, in Unix seconds by the clocks of those who did; 0 for never."""

    hard: float = 0.0
    soft: float = 0.0


class StreamInvalidation(RegionInvalidationStrategy):  # type: ignore[misc, unused-ignore]
    """A region's invalidation, for all processes: ``region.configure(..., region_invalidator=StreamInvalidation(region))``.

    ``place`` is the region itself (its backend is looked up when it is first needed), a :class:`StreamBackend`, or a
    :class:`mqkv.Store` (shared layout) where the region's own backend is another one: then a cache in each process's memory is
    invalidated everywhere at once. ``name`` tells regions of one keyspace apart; the region's own name by default.

    Asking costs a dict lookup. ``invalidate`` costs a confirmed publish, and holds in this process when it returns, in others as
    soon as the stream tells them (``store.sync()`` there waits for it). It never goes back: the later time wins, whoever was
    quicker to write it, and values older than a hard invalidation stay gone after a soft one. As with dogpile's own, the time is
    compared with the time of creation that each value's creator read on its own clock: keep clocks together. It outlives the
    processes. While the broker is away, ``invalidate`` raises, and asking goes on with the times that this process knows; where
    ``place`` is a store, or the backend's ``ignore_exceptions`` False, it raises what :class:`mqkv.Store` raises. Thread-safe.
    """

    def __init__(self, place: CacheRegion | StreamBackend | Store, name: str | None = None) -> None:
        if not isinstance(place, (CacheRegion, StreamBackend, Store)):
            raise InvalidOption(
                f"a StreamInvalidation is made of a region, a StreamBackend or a Store, not {type(place).__name__}"
            )
        if name is None:
            name = getattr(place, "name", None) or ""
        if not isinstance(name, str) or not (name.isprintable() and len(name) <= 100):
            raise InvalidOption("the name of a StreamInvalidation is printable text of at most 100 characters")
        self._place = place
        self._key = INVALIDATED + name
        self._read: tuple[Any, _Times] = (None, _Times())

    def invalidate(self, hard: bool = True) -> None:
        store = self._store()
        while True:
            entry = store.entry(self._key)
            times = self._parse(None if entry is None else entry.value)
            now = max(time.time(), *times)
            changed = times._replace(hard=now) if hard else times._replace(soft=now)
            body = f"{changed.hard!r} {changed.soft!r}".encode()
            if store.compare_and_set(self._key, body, None if entry is None else entry.revision):
                return
            if entry is None and store.entry(self._key) is None:  # what is there can't be read: of another secret, say
                store.set(self._key, body)
                return

    def is_invalidated(self, timestamp: float) -> bool:
        return timestamp < max(self._times())

    def is_hard_invalidated(self, timestamp: float) -> bool:
        return timestamp < self._times().hard

    def is_soft_invalidated(self, timestamp: float) -> bool:
        times = self._times()
        return times.hard <= timestamp < times.soft

    def was_hard_invalidated(self) -> bool:
        times = self._times()
        return times.hard > 0 and times.hard >= times.soft

    def was_soft_invalidated(self) -> bool:
        times = self._times()
        return times.soft > times.hard

    def _times(self) -> _Times:
        place, read = self._found(), self._read
        body = place.get(self._key) if isinstance(place, Store) else place.times(self._key, read[0])
        if body is not read[0]:
            read = self._read = (body, self._parse(body))
        return read[1]

    def _parse(self, body: object) -> _Times:
        if body is None:
            return _Times()
        try:
            assert isinstance(body, bytes)
            hard, soft = body.split()
            return _Times(float(hard), float(soft))
        except (AssertionError, ValueError):
            _log.warning("at=invalidation key=%s status=unreadable", json.dumps(self._key))
            return _Times()

    def _store(self) -> Store:
        place = self._found()
        return place if isinstance(place, Store) else place.store

    def _found(self) -> Store | StreamBackend:
        place: Any = self._place
        if isinstance(place, CacheRegion):
            place = place.backend
            while hasattr(place, "proxied"):
                place = place.proxied
        if isinstance(place, (Store, StreamBackend)):
            return place
        raise InvalidOption(
            f"the region's backend is {type(place).__name__}, no StreamBackend: give StreamInvalidation a mqkv.Store"
        )
