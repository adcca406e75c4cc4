"""The store for event loops: the names of :class:`mqkv.Store`, awaited. What it does is in ``core``.

No call has a thread of its own: it is suspended until the engine's I/O thread has the answer. An engine that reads and writes in
its caller's thread (files) is called from a few threads of the store's, which are free again while a call waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

from mqkv import check
from mqkv.core import ABSENT, ASK, Entry
from mqkv.errors import Error
from mqkv.lock import _OWN, LockCore
from mqkv.streams.base import Promise
from mqkv.waiting import Wait, Waiting
from mqkv.watch import Change, Watch
from mqkv.writes import Verbs

T = TypeVar("T")

#: Threads for engines that wait in their caller's thread.
THREADS = 4

#: Calls of one store, in one loop, that wait for an engine at once. More would make the engine hold up the loop.
UNDER_WAY = 1_024


class AsyncStore(Verbs):
    """A key-value store on streams, for asyncio. Takes the options of :class:`mqkv.Store`, and shares its connections and tables.

    ``async with mqkv.AsyncStore(url) as store: await store.set("k", "v")``. Each method means and raises what its namesake of
    :class:`mqkv.Store` does. Use it from any event loop; a call that is cancelled leaves nothing behind, but a write that was
    under way may still happen.
    """

    def _set_up(self) -> None:
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._pool: ThreadPoolExecutor | None = None

    async def _run(self, coroutine: Waiting[T]) -> T:
        async with self._room():
            return await self._drive(coroutine)

    async def _drive(self, coroutine: Waiting[T]) -> T:
        return await drive(coroutine, self._threads() if self._keyspace.blocks else None)

    def _room(self) -> asyncio.Semaphore:
        """The running loop's own: a semaphore knows one loop, and no threads."""
        loop = asyncio.get_running_loop()
        room = self._rooms.get(loop)
        if room is None:
            room = self._rooms[loop] = asyncio.Semaphore(UNDER_WAY)
        return room

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mqkv-aio")
        return self._pool

    # Reading

    @overload
    async def get(self, key: str) -> Any | None: ...
    @overload
    async def get(self, key: str, default: T, *, fresh: bool = ...) -> Any | T: ...
    @overload
    async def get(self, key: str, default: None = None, *, fresh: bool = ...) -> Any | None: ...
    async def get(self, key: str, default: Any = None, *, fresh: bool = False) -> Any:
        """The value of a key, or ``default``. From memory it costs a dict lookup more than the ``await``."""
        keyspace = self._keyspace
        if keyspace.signal[0] == keyspace.seen and not fresh:
            shown = keyspace.cells.get(check.key_text(key)) if type(key) is not str else keyspace.cells.get(key)
            if shown is not None:
                expires = shown[1]
                if expires is None or self._clock() < expires:
                    return shown[0]
            else:
                cell = keyspace.at_hand(key)
                if cell is not ASK:
                    return self._value(key, cell, default) if cell is not None else self._absent(key, default)
        return await self._run(self._read(key, default, fresh))

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        return await self._run(self._get_many(keys))

    def peek(self, key: str, default: Any = None) -> Any:
        """The value as far as memory knows it; not awaited."""
        return self._peek(key, default)

    async def entry(self, key: str) -> Entry | None:
        return await self._run(self._get_entry(key))

    async def exists(self, key: str) -> bool:
        return await self.get(key, ABSENT) is not ABSENT

    async def ttl(self, key: str) -> float | None:
        return await self._run(self._ttl(key))

    async def history(self, key: str, limit: int = 10) -> list[Any]:
        return await self._run(self._history(key, limit))

    async def keys(self, pattern: str | None = None) -> list[str]:
        return await self._run(self._keys(pattern))

    async def items(self, pattern: str | None = None) -> list[tuple[str, Any]]:
        return await self._run(self._items(pattern))

    async def size(self) -> int:
        """How many keys have a value: what ``len`` says of a :class:`mqkv.Store`."""
        return await self._run(self._count())

    async def empty(self) -> bool:
        return await self._run(self._empty())

    # Writing

    async def set(self, key: str, value: object, *, ttl: float | None = None) -> int:
        return await self._run(self._set(key, value, ttl))

    async def add(self, key: str, value: object, *, ttl: float | None = None) -> bool:
        return await self._run(self._add(key, value, ttl))

    async def compare_and_set(self, key: str, value: object, revision: int | None, *, ttl: float | None = None) -> bool:
        return await self._run(self._compare_and_set(key, value, revision, ttl))

    @overload
    async def incr(self, key: str, delta: int = 1, *, initial: int | None = None, ttl: float | None = None) -> int: ...
    @overload
    async def incr(self, key: str, delta: float, *, initial: float | None = None, ttl: float | None = None) -> float: ...
    async def incr(self, key: str, delta: float = 1, *, initial: float | None = None, ttl: float | None = None) -> int | float:
        return await self._run(self._incr(key, delta, initial, ttl))

    async def touch(self, key: str, ttl: float | None) -> bool:
        return await self._run(self._touch(key, ttl))

    async def pop(self, key: str, default: Any = ABSENT) -> Any:
        return await self._run(self._pop(key, default))

    async def popitem(self) -> tuple[str, Any]:
        return await self._run(self._popitem())

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        return await self._run(self._delete(key, revision))

    async def get_or_set(self, key: str, default: object, *, ttl: float | None = None) -> Any:
        return await self._run(self._get_or_set(key, default, ttl))

    async def set_many(self, mapping: Mapping[str, object], *, ttl: float | None = None) -> None:
        await self._run(self._set_many(mapping, ttl))

    async def delete_many(self, keys: Iterable[str]) -> int:
        return await self._run(self._delete_many(keys))

    async def clear(self, *, prefix: str = "") -> None:
        await self._run(self._clear(prefix))

    async def purge(self) -> None:
        await self._run(self._purge())

    async def flush(self, timeout: float | None = None) -> None:
        await self._run(self._flush(timeout))

    async def sync(self) -> None:
        await self._run(self._sync())

    def lock(self, name: str, *, ttl: float = 30.0, timeout: float | None = None) -> AsyncLock:
        """A lock, as :meth:`mqkv.Store.lock` makes it: ``async with store.lock("jobs"): ...``."""
        return AsyncLock(self, name, ttl, timeout)

    # Following

    async def preload(self, *keys: str, max_messages: int = 10_000) -> None:
        await self._run(self._preload(keys, max_messages))

    async def watch(self, key: str, *, start: Literal["next", "last", "first"] | int = "next") -> AsyncWatch:
        """Each change of a key, or of the keys that match a glob: ``async for change in await store.watch("events")``."""
        watch = self._new_watch(key)
        keyspace = await self._run(self._follow(watch, start))
        keyspace.add_watch(watch, None, self)
        return AsyncWatch(watch, asyncio.get_running_loop())

    # Life

    async def close(self) -> None:
        """As :meth:`mqkv.Store.close`: the last store of a URL closes the connection, which is done in a thread."""
        if self._state == "open":
            await asyncio.shield(drive(self._close(), self._threads()))
        self._state = "closed"
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def after_fork(self) -> None:
        super().after_fork()
        self._pool = None

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class AsyncLock(LockCore):
    """A lock for tasks, threads and processes; see :class:`mqkv.Lock`. Made by :meth:`AsyncStore.lock`."""

    _core: AsyncStore

    async def acquire(self, timeout: float | None = _OWN) -> bool:
        return await self._wait(self._acquire(timeout, asyncio.current_task()))

    async def _wait(self, coroutine: Waiting[T]) -> T:
        before = self._lease
        try:
            return await self._core._drive(coroutine)
        except asyncio.CancelledError:
            lease = self._lease
            if lease is not None and lease is not before and lease.holder is asyncio.current_task():
                # Granted in a thread while the cancellation came: nobody knows of it who would release it.
                with contextlib.suppress(Error):
                    await self.release()
            raise

    async def release(self) -> None:
        await asyncio.shield(self._core._run(self._release()))

    async def locked(self) -> bool:
        return await self._core._run(self._locked())

    async def __aenter__(self) -> AsyncLock:
        await self._wait(self._enter(asyncio.current_task()))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.shield(self._core._run(self._exit(error)))


class AsyncWatch:
    """Changes, in the order of the log: an async iterator, and an async context manager. It ends when it is closed."""

    def __init__(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = watch
        arrived = self._arrived = asyncio.Event()
        watch.notify(lambda: _from_thread(loop, arrived.set))  # without self: a watch that is dropped can be collected

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        while True:
            self._arrived.clear()
            change = self._watch.get(0)
            if change is not None:
                return change
            if self._watch.closed:
                raise StopAsyncIteration
            await self._arrived.wait()

    async def get(self, timeout: float) -> Change | None:
        """The next change; None if none came within ``timeout`` seconds."""
        try:
            return await asyncio.wait_for(self.__anext__(), timeout)
        except (asyncio.TimeoutError, StopAsyncIteration):
            return None

    def close(self) -> None:
        """End the watch. Idempotent."""
        self._watch.close()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Ended(Exception):
    """A coroutine's ``StopIteration``, which no future can carry."""

    def __init__(self, value: Any) -> None:
        self.value = value


async def drive(coroutine: Waiting[T], pool: ThreadPoolExecutor | None = None) -> T:
    """Run a coroutine of ``mqkv.waiting`` to its end on the running loop; its steps in a thread, where a ``pool`` is given."""
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    while True:
        try:
            if pool is None:
                waiting, cancelled = _advance(step, argument), None
            else:
                waiting, cancelled = await _advance_in(pool, step, argument)
        except _Ended as end:
            result: T = end.value
            return result
        try:
            if cancelled is not None:
                raise cancelled
            step, argument = coroutine.send, await _settled(waiting)
        except BaseException as error:  # noqa: BLE001 -- a cancellation belongs where the coroutine waits
            step, argument = coroutine.throw, error


def _advance(step: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return step(argument)
    except StopIteration as stop:
        raise _Ended(stop.value) from None


async def _advance_in(
    pool: ThreadPoolExecutor, step: Callable[[Any], Any], argument: Any
) -> tuple[Any, asyncio.CancelledError | None]:
    """The same in a thread. A cancellation waits for the step's end, since nothing can be thrown into what runs."""
    under_way = asyncio.get_running_loop().run_in_executor(pool, _advance, step, argument)
    try:
        return await asyncio.shield(under_way), None
    except asyncio.CancelledError as cancelled:
        try:
            return await under_way, cancelled
        except Exception:  # noqa: BLE001 -- the call has ended, and nobody wants to know how
            raise cancelled from None


async def _settled(waiting: Wait) -> bool:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()

    def resolve(settled: bool) -> None:
        if not future.done():
            future.set_result(settled)

    def on_promise(promise: Promise[Any]) -> None:
        _from_thread(loop, resolve, True)

    waiting.promise.then(on_promise)
    timer = loop.call_later(waiting.timeout, resolve, False)
    try:
        return await future
    finally:
        timer.cancel()
        waiting.promise.forget(on_promise)


def _from_thread(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:  # the loop was closed: nobody waits
        return
