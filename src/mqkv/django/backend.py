"""The cache backend: each method makes the key, converts the timeout, and asks the store."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NoReturn

from django.core.cache import caches
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache, InvalidCacheKey, default_key_func

import mqkv
from mqkv.django import run
from mqkv.django.aio import AsyncMethods
from mqkv.django.batches import batches, log_too_large
from mqkv.django.config import examine_params, find_aliases, import_option, read_location, store_config
from mqkv.django.errors import InvalidCacheOption, InvalidTimeout
from mqkv.django.options import examine_options
from mqkv.django.redis import RedisMethods, seconds_left
from mqkv.django.stores import Shared, shared, try_out
from mqkv.outage import Outage

logger = logging.getLogger("mqkv.django")

#: What Django warns of: the same characters and length as its memcache_key_warnings, in one quick look.
_PORTABLE = re.compile(r"[^\x00-\x20\x7f]{0,250}").fullmatch

#: The longest ttl of a store: a hundred years.
_LONGEST = 100 * 366 * 86_400

_ABSENT: Any = object()


class StreamCache(AsyncMethods, RedisMethods, BaseCache):  # type: ignore[misc]
    """Django's cache on an mqkv store: every process has all of it in memory, and sees each change at once.

    Reads cost a dict lookup (a pickle that holds something mutable is unpickled each time); writes cost about one confirmed
    publish. Errors: ``InvalidCacheKey`` for a key that no store takes, :class:`mqkv.InvalidCacheOption` when it is built wrongly;
    those of :class:`mqkv.Store`, unless ``IGNORE_EXCEPTIONS``. One object serves one thread or event loop at a time; all objects
    of one configuration share a store, which ``close()`` leaves open.
    """

    _replaced: ClassVar[frozenset[str]] = frozenset()
    _broken: InvalidCacheOption | None = None
    _ignore = False

    def __init__(self, location: Any, params: Mapping[str, Any]) -> None:
        try:
            self._configure(location, params)
        except InvalidCacheOption as error:
            if not run.will_tell():
                raise
            # Django's own checks build every cache; an error would end them, before ours tell what is wrong.
            super().__init__({})
            self._broken = error

    def _configure(self, location: Any, params: Mapping[str, Any]) -> None:
        reading = examine_options(params)
        problems = examine_params(params)
        problems += reading.problems
        options = reading.options
        self._url, self._options = "memory://", options
        self._ignore = options.get("ignore_exceptions", False)
        self._reverse_key = params.get("REVERSE_KEY_FUNCTION", options.get("reverse_key_function"))
        if self._reverse_key is not None and not callable(self._reverse_key):
            with problems.gathered():
                self._reverse_key = import_option("REVERSE_KEY_FUNCTION", self._reverse_key)
        with problems.gathered():
            self._url = read_location(location)
        if problems:
            with problems.gathered():  # what else is there to say
                try_out(store_config(self._url, options, "default", None))
            problems.tell()
        super().__init__({**params, "OPTIONS": {}})
        self._top_max_entries = int(params["max_entries"]) if "max_entries" in params else None
        self._aliases = find_aliases(type(self), location, params)
        if len(self._aliases) > 1 and "name" not in options:
            # Twins: which one this is shows when Django has put it into its place. What is wrong shows now.
            self._open(self._aliases[0])
        else:
            _ = self._shared

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._replaced = frozenset(
            name
            for name in AsyncMethods.MIRRORED
            if getattr(cls, name) is not getattr(StreamCache, name)
            and getattr(cls, f"a{name}") is getattr(StreamCache, f"a{name}")
        )

    @functools.cached_property
    def _shared(self) -> Shared:
        if self._broken is not None:
            raise self._broken
        twins = [alias for alias in self._aliases if getattr(caches._connections, alias, None) is self]
        return self._open((twins or self._aliases or ["default"])[0]).used_by(self)

    def let_go(self) -> None:
        """The store was closed: the next use opens anew."""
        for name in ("_store", "_outage", "_shared"):
            self.__dict__.pop(name, None)

    def _open(self, alias: str) -> Shared:
        return shared(store_config(self._url, self._options, alias, self._top_max_entries))

    @functools.cached_property
    def _store(self) -> mqkv.Store:
        return self._shared.store

    @functools.cached_property
    def _outage(self) -> Outage:
        return self._shared.outage

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._store!r}>"

    # Keys and timeouts

    def validate_key(self, key: str) -> None:
        if _PORTABLE(key) is None:
            super().validate_key(key)

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        """Seconds to live; None for ever; 0 for what is to be gone at once."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        if not isinstance(timeout, (int, float)):
            raise InvalidTimeout.of(timeout)
        return 0 if timeout <= 0 else min(timeout, _LONGEST)

    # When something goes wrong

    def _fail(self, error: mqkv.Error) -> NoReturn:
        if isinstance(error, mqkv.InvalidKey):
            raise InvalidCacheKey(str(error)) from error
        raise error

    def _do(self, dropped: Any, verb: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Have the store write; ``dropped`` where that fails and failures are ignored."""
        return self._call(dropped, verb, *arguments, writing=True, **options)

    def _look(self, dropped: Any, verb: Callable[..., Any], *arguments: Any) -> Any:
        """Have the store read."""
        return self._call(dropped, verb, *arguments, writing=False)

    def _call(self, dropped: Any, verb: Callable[..., Any], *arguments: Any, writing: bool, **options: Any) -> Any:
        try:
            if not self._ignore:
                return verb(*arguments, **options)
            return self._outage.call(dropped, verb, *arguments, writing=writing, **options)
        except mqkv.Error as error:
            self._fail(error)

    def _recall(self, key: str, default: Any) -> Any:
        """What memory knows, whatever the broker would say; nothing, where it is too old."""
        limit = self._options.get("max_staleness")
        if limit is not None and self._shared.staleness() > limit:
            return default
        return self._store.peek(key, default)

    def _recall_many(self, keys: Iterable[str]) -> dict[str, Any]:
        found = ((key, self._recall(key, _ABSENT)) for key in keys)
        return {key: value for key, value in found if value is not _ABSENT}

    # Reading

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        key = self.make_and_validate_key(key, version=version)
        try:
            if not self._ignore:
                return self._store.get(key, default)
            value = self._outage.call(_ABSENT, self._store.get, key, default, writing=False)
        except mqkv.Error as error:
            self._fail(error)
        return value if value is not _ABSENT else self._recall(key, default)

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        asked = {self.make_and_validate_key(key, version=version): key for key in keys}
        found = self._look(None, self._store.get_many, asked)
        return {asked[key]: value for key, value in (self._recall_many(asked) if found is None else found).items()}

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.get(key, _ABSENT, version=version) is not _ABSENT

    def get_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        value = self.get(key, _ABSENT, version=version)
        if value is not _ABSENT:
            return value
        if callable(default):
            default = default()
        if not self.add(key, default, timeout=timeout, version=version):
            # Another was quicker: then it is theirs that counts. Or what is there can't be read, by anybody.
            value = self.get(key, _ABSENT, version=version)
            if value is not _ABSENT:
                return value
            self.set(key, default, timeout=timeout, version=version)
        return self.get(key, default, version=version)

    # Writing

    def set(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool:
        """Whether it was set: always, but for ``nx`` (only if absent), ``xx`` (only if there), ignored exceptions, and a value
        that is too large, whose key has none from then on."""
        if nx:
            return not xx and self.add(key, value, timeout, version)
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if xx:
            return self._do(False, self._set_present, name, value, ttl)  # type: ignore[no-any-return]
        if ttl == 0:
            return self._do(None, self._store.delete, name) is not None
        try:
            return self._do(None, self._store.set, name, value, ttl=ttl) is not None
        except mqkv.ValueTooLarge as error:
            return self._drop_too_large(name, error)

    def _set_present(self, key: str, value: Any, ttl: float | None) -> bool:
        while (entry := self._store.entry(key)) is not None:
            if ttl == 0:
                return self._store.delete(key)
            try:
                if self._store.compare_and_set(key, value, entry.revision, ttl=ttl):
                    return True
            except mqkv.ValueTooLarge as error:
                return self._drop_too_large(key, error)
        return False

    def _drop_too_large(self, key: str, error: mqkv.ValueTooLarge) -> bool:
        """What can't be set must not leave the old value in its place."""
        log_too_large(key, error)
        self._do(None, self._store.delete, key)
        return False

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return not self._look(True, self._store.exists, name)
        try:
            return self._do(False, self._store.add, name, value, ttl=ttl)  # type: ignore[no-any-return]
        except mqkv.ValueTooLarge as error:
            log_too_large(name, error)
            return False

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return self._do(False, self._store.delete, name)  # type: ignore[no-any-return]
        return self._do(False, self._store.touch, name, ttl)  # type: ignore[no-any-return]

    def delete(self, key: Any, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        return self._do(False, self._store.delete, name)  # type: ignore[no-any-return]

    def incr(self, key: Any, delta: float = 1, version: int | None = None, *, ignore_key_check: bool = False) -> Any:
        """The sum, exact among all processes. The value keeps its ttl; where there is none: ``ValueError``, or with
        ``ignore_key_check`` the delta, for good."""
        name = self.make_and_validate_key(key, version=version)
        try:
            return self._do(None, self._store.incr, name, delta, initial=0 if ignore_key_check else None)
        except mqkv.KeyNotFound:
            raise ValueError(f"Key {key!r} not found") from None

    def set_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        """The keys that failed: those whose value is too large, or all where the broker failed and that is ignored. One record,
        in one step, up to 16 MiB."""
        names = {self.make_and_validate_key(key, version=version): key for key in data}
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return list(data) if self._do(None, self._store.delete_many, names) is None else []
        failed: list[Any] = []
        for batch in batches({name: data[key] for name, key in names.items()}):
            try:
                if self._do(_ABSENT, self._store.set_many, batch, ttl=ttl) is not _ABSENT:
                    continue
            except mqkv.ValueTooLarge as error:
                batch.too_large(error)
                if len(batch) > 1:
                    continue
                self._drop_too_large(next(iter(batch)), error)
            failed.extend(names[name] for name in batch)
        return failed

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> Any:
        """How many there were; None for no keys at all, as Django has it."""
        names = [self.make_and_validate_key(key, version=version) for key in keys]
        return self._do(None, self._store.delete_many, names) if names else None

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        """Move a value to another version, with its ttl; the version, or None where the broker failed and that is ignored. Where
        there is no value: ``ValueError``."""
        version = self.version if version is None else version
        entry = self._look(_ABSENT, self._store.entry, self.make_and_validate_key(key, version=version))
        if entry is None:
            raise ValueError(f"Key {key!r} not found")
        if entry is _ABSENT or not self.set(key, entry.value, seconds_left(entry), version + delta):
            return None
        self.delete(key, version)
        return version + delta

    def clear(self) -> None:
        """Remove the keys of this cache's KEY_PREFIX, by one record; with a KEY_FUNCTION, whose keys may look like anything, all
        keys of the keyspace."""
        self._do(None, self._store.clear, prefix=self._own_prefix())

    def _own_prefix(self) -> str:
        return f"{self.key_prefix}:" if self.key_func is default_key_func else ""

    def close(self, **kwargs: Any) -> None:
        """Nothing: a request has ended, not the process. See :func:`mqkv.django.close_stores`."""
