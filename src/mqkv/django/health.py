"""Whether a cache is well."""

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

from django.core.cache import DEFAULT_CACHE_ALIAS, caches

import mqkv
from mqkv.django.backend import StreamCache
from mqkv.django.errors import InvalidCacheOption


class Health(NamedTuple):
    """What a health check found. True where all is well."""

    ok: bool
    seconds: float  #: how long the broker took to answer
    staleness: float  #: for how many seconds this process has been out of touch with the broker
    error: str  #: what is wrong; never holds a password

    def __bool__(self) -> bool:
        return self.ok


def get_store(alias: str = DEFAULT_CACHE_ALIAS) -> mqkv.Store:
    """The store beneath a cache: watches, history, entries. Its keys are the full ones (``caches[alias].make_key(key)``). It is
    the process's: don't close it."""
    cache = caches[alias]
    if not isinstance(cache, StreamCache):
        raise InvalidCacheOption(f"CACHES[{alias!r}]", "it is not a StreamCache", "Set its BACKEND to mqkv.django.StreamCache.")
    return cache._store


def health(alias: str = DEFAULT_CACHE_ALIAS) -> Health:
    """Ask the broker, with one round trip, whether it still takes what is written, and delivers it here. Raises nothing that the
    world does."""
    store = get_store(alias)
    begun = time.monotonic()
    error = ""
    try:
        store.sync()
    except mqkv.Error as problem:
        error = f"{type(problem).__name__}: {problem}"
    staleness = 0.0
    with contextlib.suppress(mqkv.Error):  # closed meanwhile
        staleness = float(str(store.stats().get("staleness", 0.0)))
    return Health(not error, time.monotonic() - begun, staleness, error)
