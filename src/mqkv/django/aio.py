"""The async methods. Reads that memory answers do not leave the event loop; writes await the confirm, without a thread each."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT

import mqkv
from mqkv.django.batches import batches, chunks, log_too_large
from mqkv.django.redis import seconds_left
from mqkv.django.stores import Shared

T = TypeVar("T")
Method = Callable[..., Coroutine[Any, Any, T]]

_ABSENT: Any = object()

_READS = {"get", "get_many", "exists", "entry", "keys"}


def mirror(method: Method[T]) -> Method[T]:
    """An async method that goes its own way as long as nobody replaced its sync sibling: a subclass that counts calls of ``get``,
    or debug-toolbar, which wraps the methods of the object, mean ``aget`` as well (as Django's own does)."""
    name = method.__name__[1:]

    @functools.wraps(method)
    async def asked(self: AsyncMethods, *args: Any, **kwargs: Any) -> T:
        if name in self._replaced or name in self.__dict__:
            return await sync_to_async(getattr(self, name), thread_sensitive=True)(*args, **kwargs)  # type: ignore[no-any-return]
        return await method(self, *args, **kwargs)

    return asked


class AsyncMethods:
    """Mixed into :class:`mqkv.django.StreamCache`, before ``BaseCache``."""

    #: The sync methods that have an async sibling here.
    MIRRORED: ClassVar[tuple[str, ...]] = (
        *("get", "get_many", "has_key", "get_or_set", "set", "add", "touch", "delete", "incr", "decr", "set_many", "delete_many"),
        *("incr_version", "decr_version", "clear", "ttl", "keys", "delete_pattern"),
    )

    version: int
    make_and_validate_key: Callable[..., str]
    get_backend_timeout: Callable[..., float | None]
    _replaced: ClassVar[frozenset[str]]
    _ignore: bool
    _fail: Callable[[mqkv.Error], NoReturn]
    _recall: Callable[[str, Any], Any]
    _recall_many: Callable[[Iterable[str]], dict[str, Any]]
    _own_prefix: Callable[[], str]
    _pattern: Callable[..., str]
    _given: Callable[..., str]

    if TYPE_CHECKING:

        @property
        def _shared(self) -> Shared: ...

    async def _ado(self, dropped: Any, verb: str, *arguments: Any, **options: Any) -> Any:
        """Call the store; ``dropped`` where that fails and failures are ignored."""
        call = getattr(self._shared.async_store, verb)
        if not self._ignore:
            try:
                return await call(*arguments, **options)
            except mqkv.Error as error:
                self._fail(error)
        outage, writing = self._shared.outage, verb not in _READS
        away = outage.on
        if away and outage.resting(writing=writing):
            return dropped
        begun = time.monotonic()
        try:
            result = await call(*arguments, **options)
        except BaseException as error:
            if outage.told(error, begun, writing=writing):
                return dropped
            if isinstance(error, mqkv.Error):
                self._fail(error)
            raise
        if away:
            outage.worked(writing=writing)
        return result

    @mirror
    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        key = self.make_and_validate_key(key, version=version)
        if self._ignore:
            value = await self._ado(_ABSENT, "get", key, default)
            return value if value is not _ABSENT else self._recall(key, default)
        try:
            return await self._shared.async_store.get(key, default)
        except mqkv.Error as error:
            self._fail(error)

    @mirror
    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        asked = {self.make_and_validate_key(key, version=version): key for key in keys}
        found = await self._ado(None, "get_many", asked)
        return {asked[key]: value for key, value in (self._recall_many(asked) if found is None else found).items()}

    @mirror
    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self.aget(key, _ABSENT, version=version) is not _ABSENT

    @mirror
    async def aget_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        value = await self.aget(key, _ABSENT, version=version)
        if value is not _ABSENT:
            return value
        if callable(default):
            default = default()
        if not await self.aadd(key, default, timeout=timeout, version=version):
            value = await self.aget(key, _ABSENT, version=version)
            if value is not _ABSENT:
                return value
            await self.aset(key, default, timeout=timeout, version=version)
        return await self.aget(key, default, version=version)

    @mirror
    async def aset(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool:
        if nx:
            return not xx and await self.aadd(key, value, timeout, version)
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if xx:
            return await self._aset_present(name, value, ttl)
        if ttl == 0:
            return await self._ado(None, "delete", name) is not None
        try:
            return await self._ado(None, "set", name, value, ttl=ttl) is not None
        except mqkv.ValueTooLarge as error:
            return await self._adrop_too_large(name, error)

    async def _aset_present(self, key: str, value: Any, ttl: float | None) -> bool:
        while (entry := await self._ado(None, "entry", key)) is not None:
            if ttl == 0:
                return await self._ado(False, "delete", key)  # type: ignore[no-any-return]
            try:
                done = await self._ado(None, "compare_and_set", key, value, entry.revision, ttl=ttl)
                if done is not False:  # None: dropped
                    return bool(done)
            except mqkv.ValueTooLarge as error:
                return await self._adrop_too_large(key, error)
        return False

    async def _adrop_too_large(self, key: str, error: mqkv.ValueTooLarge) -> bool:
        log_too_large(key, error)
        await self._ado(None, "delete", key)
        return False

    @mirror
    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return not await self._ado(True, "exists", name)
        try:
            return await self._ado(False, "add", name, value, ttl=ttl)  # type: ignore[no-any-return]
        except mqkv.ValueTooLarge as error:
            log_too_large(name, error)
            return False

    @mirror
    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return await self._ado(False, "delete", name)  # type: ignore[no-any-return]
        return await self._ado(False, "touch", name, ttl)  # type: ignore[no-any-return]

    @mirror
    async def adelete(self, key: Any, version: int | None = None) -> bool:
        name = self.make_and_validate_key(key, version=version)
        return await self._ado(False, "delete", name)  # type: ignore[no-any-return]

    @mirror
    async def aincr(self, key: Any, delta: float = 1, version: int | None = None, *, ignore_key_check: bool = False) -> Any:
        name = self.make_and_validate_key(key, version=version)
        try:
            return await self._ado(None, "incr", name, delta, initial=0 if ignore_key_check else None)
        except mqkv.KeyNotFound:
            raise ValueError(f"Key {key!r} not found") from None

    @mirror
    async def adecr(self, key: Any, delta: float = 1, version: int | None = None) -> Any:
        return await self.aincr(key, -delta, version=version)

    @mirror
    async def aset_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        names = {self.make_and_validate_key(key, version=version): key for key in data}
        ttl = self.get_backend_timeout(timeout)
        if ttl == 0:
            return list(data) if await self._ado(None, "delete_many", names) is None else []
        failed: list[Any] = []
        for batch in batches({name: data[key] for name, key in names.items()}):
            try:
                if await self._ado(_ABSENT, "set_many", batch, ttl=ttl) is not _ABSENT:
                    continue
            except mqkv.ValueTooLarge as error:
                batch.too_large(error)
                if len(batch) > 1:
                    continue
                await self._adrop_too_large(next(iter(batch)), error)
            failed.extend(names[name] for name in batch)
        return failed

    @mirror
    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> Any:
        names = [self.make_and_validate_key(key, version=version) for key in keys]
        return await self._ado(None, "delete_many", names) if names else None

    @mirror
    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        version = self.version if version is None else version
        entry = await self._ado(_ABSENT, "entry", self.make_and_validate_key(key, version=version))
        if entry is None:
            raise ValueError(f"Key {key!r} not found")
        if entry is _ABSENT or not await self.aset(key, entry.value, seconds_left(entry), version + delta):
            return None
        await self.adelete(key, version)
        return version + delta

    @mirror
    async def adecr_version(self, key: Any, delta: int = 1, version: int | None = None) -> Any:
        return await self.aincr_version(key, -delta, version)

    @mirror
    async def aclear(self) -> None:
        await self._ado(None, "clear", prefix=self._own_prefix())

    async def aclose(self, **kwargs: Any) -> None:
        """Nothing: a request has ended, not the process."""

    # Beyond Django's

    @mirror
    async def attl(self, key: Any, version: int | None = None) -> int | None:
        entry = await self._ado(None, "entry", self.make_and_validate_key(key, version=version))
        left = seconds_left(entry)
        return None if left is None else math.ceil(left)

    @mirror
    async def akeys(self, search: str = "*", version: int | None = None) -> list[str]:
        names = await self._ado([], "keys", self._pattern(search, version))
        return [self._given(name, version) for name in names]

    @mirror
    async def adelete_pattern(
        self, pattern: str, version: int | None = None, prefix: str | None = None, *, itersize: int | None = None
    ) -> int:
        names = await self._ado([], "keys", self._pattern(pattern, version, prefix))
        count = 0
        for chunk in chunks(names, itersize):
            count += await self._ado(0, "delete_many", chunk)
        return count

    def alock(
        self,
        key: Any,
        version: int | None = None,
        timeout: float | None = None,
        blocking: bool = True,
        blocking_timeout: float | None = None,
    ) -> mqkv.AsyncLock:
        """A lock for tasks: ``async with cache.alock("jobs"): ...``; the arguments of ``lock``."""
        name = self.make_and_validate_key(key, version=version)
        wait = blocking_timeout if blocking else 0
        return self._shared.async_store.lock(name, ttl=30.0 if timeout is None else timeout, timeout=wait)
