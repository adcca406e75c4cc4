"""What users of django-redis expect beyond Django's own methods, by the same names."""

from __future__ import annotations

import glob
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, default_key_func

import mqkv
from mqkv.django.batches import chunks
from mqkv.django.errors import InvalidCacheOption
from mqkv.django.lock import CacheLock
from mqkv.django.patterns import of_redis


def seconds_left(entry: mqkv.Entry | None) -> float | None:
    """Until an entry expires; 0 for none, None for never."""
    if entry is None:
        return 0
    return None if entry.expires_at is None else max(0.0, entry.expires_at - time.time())


class RedisMethods:
    """Mixed into :class:`mqkv.django.StreamCache`."""

    key_prefix: str
    version: int
    key_func: Callable[..., str]
    make_and_validate_key: Callable[..., str]
    make_key: Callable[..., str]
    touch: Callable[..., bool]
    _reverse_key: Callable[[str], str] | None
    _do: Callable[..., Any]
    _look: Callable[..., Any]

    if TYPE_CHECKING:

        @property
        def _store(self) -> mqkv.Store: ...

    # Times to live

    def ttl(self, key: Any, version: int | None = None) -> int | None:
        """Seconds to live, rounded up; 0 for a key that is absent, None for one that never expires."""
        left = self._left(key, version)
        return None if left is None else math.ceil(left)

    def pttl(self, key: Any, version: int | None = None) -> int | None:
        """The same in milliseconds."""
        left = self._left(key, version)
        return None if left is None else math.ceil(left * 1000)

    def _left(self, key: Any, version: int | None) -> float | None:
        return seconds_left(self._look(None, self._store.entry, self.make_and_validate_key(key, version=version)))

    def persist(self, key: Any, version: int | None = None) -> bool:
        """Let a value live for good. Whether it would have expired."""
        return self._left(key, version) not in (None, 0) and self.touch(key, None, version)

    def expire(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Let a value live for ``timeout`` seconds (or a ``timedelta``) from now on. Whether there was one."""
        return self.touch(key, timeout.total_seconds() if isinstance(timeout, timedelta) else timeout, version)

    def pexpire(self, key: Any, timeout: timedelta | float, version: int | None = None) -> bool:
        """The same; a number is milliseconds."""
        return self.expire(key, timeout if isinstance(timeout, timedelta) else timeout / 1000, version)

    def expire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """Let a value live until a moment: a ``datetime``, or Unix seconds. Whether there was one."""
        moment = when.timestamp() if isinstance(when, datetime) else when
        return self.touch(key, moment - time.time(), version)

    def pexpire_at(self, key: Any, when: datetime | float, version: int | None = None) -> bool:
        """The same; a number is Unix milliseconds."""
        return self.expire_at(key, when if isinstance(when, datetime) else when / 1000, version)

    # Keys

    def keys(self, search: str = "*", version: int | None = None) -> list[str]:
        """The keys that match a glob as Redis reads it (``*``, ``?``, ``[...]``, ``[^...]``, and a backslash before what is meant
        as it is), as they were passed to ``set``. Looks at every key of the keyspace, in memory."""
        names = self._look([], self._store.keys, self._pattern(search, version))
        return [self._given(name, version) for name in names]

    def iter_keys(self, search: str = "*", itersize: int | None = None, *, version: int | None = None) -> Iterator[str]:
        """The same, one by one; of one moment. ``itersize`` is taken for those who come from django-redis."""
        return iter(self.keys(search, version))

    def delete_pattern(
        self, pattern: str, version: int | None = None, prefix: str | None = None, *, itersize: int | None = None
    ) -> int:
        """Delete the keys that match a glob; how many there were. ``prefix`` takes the place of KEY_PREFIX."""
        names = self._look([], self._store.keys, self._pattern(pattern, version, prefix))
        return sum(self._do(0, self._store.delete_many, chunk) for chunk in chunks(names, itersize))

    def _pattern(self, pattern: str, version: int | None, prefix: str | None = None) -> str:
        """The glob that full keys must match."""
        prefix = self.key_prefix if prefix is None else prefix
        return self.key_func(of_redis(pattern), glob.escape(prefix), self.version if version is None else version)

    def _given(self, name: str, version: int | None) -> str:
        if self._reverse_key is not None:
            return self._reverse_key(name)
        if self.key_func is not default_key_func:
            hint = "Set REVERSE_KEY_FUNCTION to what turns a full key back."
            raise InvalidCacheOption("KEY_FUNCTION", "there is no way back from its keys to those that were passed", hint)
        return name[len(self.make_key("", version)) :]

    # Locks

    def lock(
        self,
        key: Any,
        version: int | None = None,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        *,
        thread_local: bool = True,
    ) -> CacheLock:
        """A lock that one owner holds at a time, of all processes: ``with cache.lock("jobs"): ...``; see :class:`CacheLock`.

        ``timeout`` is for how many seconds a holder may be silent (None: 30); while its process lives, it renews by itself.
        ``blocking_timeout`` bounds the wait. ``sleep`` is taken, and not needed: who waits is told. ``thread_local=False``: one
        thread may acquire, and another release.
        """
        name = self.make_and_validate_key(key, version=version)
        ttl = 30.0 if timeout is None else timeout
        return CacheLock(lambda: self._store.lock(name, ttl=ttl), blocking, blocking_timeout, thread_local)
