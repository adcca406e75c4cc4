"""The public store: names, defaults and what they mean, for threads. What it does is in ``core``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from mqkv import check
from mqkv.core import ABSENT, ASK, Entry
from mqkv.errors import InvalidKey
from mqkv.lock import Lock
from mqkv.waiting import run
from mqkv.watch import Change, Watch
from mqkv.writes import Verbs

__all__ = ["Entry", "Store"]

T = TypeVar("T")


class Store(Verbs):
    """A key-value store on streams. Thread-safe, and safe to use after a fork.

    ``url`` is ``amqp://user:password@host:port/vhost``, ``amqps://...``, ``file:///folder`` or ``memory://``; the nodes of a
    cluster stand in one: ``amqp://user:password@one,two:5673/vhost``. Nothing is connected to before the first call.

    ``layout="per-key"`` keeps a stream a key (a few thousand long-lived keys, whose history matters); ``layout="shared"`` keeps
    all keys of ``name`` in one stream (any number of keys). ``read_timeout`` bounds, in seconds, how long a read may wait: past
    it the read raises, it never guesses. ``write_timeout`` does the same for writes. With ``confirm=False`` writes return
    without waiting, and :meth:`flush` waits for all. ``max_entries`` bounds a shared keyspace, for all who open it (the oldest
    writes are evicted; ``math.inf`` takes a bound away), and in the per-key layout how many keys stay preloaded.
    ``max_staleness`` is for how many seconds without the broker reads are still answered from memory; None: for ever.
    ``pack=False`` keeps ``set_many`` and ``delete_many`` of a shared keyspace to plain records, which the Ruby gem reads too,
    and which are not one step. ``clock`` is the wall clock, for tests.
    """

    def _set_up(self) -> None:
        if self._log.debugging:
            self.get = self._get_and_log  # type: ignore[method-assign]

    # Reading

    @overload
    def get(self, key: str) -> Any | None: ...
    @overload
    def get(self, key: str, default: T, *, fresh: bool = ...) -> Any | T: ...
    @overload
    def get(self, key: str, default: None = None, *, fresh: bool = ...) -> Any | None: ...
    def get(self, key: str, default: Any = None, *, fresh: bool = False) -> Any:
        """The value of a key, or ``default`` where it has none.

        A key that is followed (preloaded; any key of the shared layout) is answered from memory, at the cost of a dict lookup;
        any other with one exact read of its stream (about 2 ms). ``fresh=True`` sees every write that completed anywhere before
        the call. Raises :class:`mqkv.ReadTimeout`, :class:`mqkv.ConnectionFailed`.
        """
        keyspace = self._keyspace
        if keyspace.signal[0] != keyspace.seen:
            keyspace.catch_up()
        try:
            shown = keyspace.cells.get(key)
        except TypeError:
            check.key_text(key)
            raise
        if shown is not None and not fresh:
            expires = shown[1]
            if expires is None or self._clock() < expires:
                return shown[0]
        elif not fresh:
            cell = keyspace.at_hand(key)
            if cell is not ASK:
                return self._value(key, cell, default) if cell is not None else self._absent(key, default)
        return run(self._read(key, default, fresh))

    def _get_and_log(self, key: str, default: Any = None, *, fresh: bool = False) -> Any:
        source = "cache" if key in self._keyspace.cells and not fresh else "stream"
        value = Store.get(self, key, default, fresh=fresh)
        self._log.debug("get", key=key, source=source)
        return value

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of ``keys`` that have one. In the shared layout all of one moment, from memory; in the other, keys
        that are not followed are all asked for at once."""
        return run(self._get_many(keys))

    def peek(self, key: str, default: Any = None) -> Any:
        """The value as far as this process's memory knows it. Never touches the broker; ``default`` for what it does not know."""
        return self._peek(key, default)

    def entry(self, key: str) -> Entry | None:
        """The value with its revision and times; None where the key has no value."""
        return run(self._get_entry(key))

    def exists(self, key: str) -> bool:
        """Whether the key has a value (None is a value)."""
        return self.get(key, ABSENT) is not ABSENT

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self.exists(key)
        except InvalidKey:
            return False

    def ttl(self, key: str) -> float | None:
        """Seconds until the key expires; None where it never does, or has no value."""
        return run(self._ttl(key))

    def history(self, key: str, limit: int = 10) -> list[Any]:
        """The newest values of a key, at most ``limit``, oldest first. A delete clears what came before it.

        Reads the key's stream from its beginning; in the shared layout that is the stream of all keys.
        """
        return run(self._history(key, limit))

    def keys(self, pattern: str | None = None) -> list[str]:
        """The keys that have a value, or those that match a glob (``*``, ``?``, ``[...]``)."""
        return run(self._keys(pattern))

    def items(self, pattern: str | None = None) -> list[tuple[str, Any]]:
        """Keys and values at one moment."""
        return run(self._items(pattern))

    def __len__(self) -> int:
        """How many keys have a value. From memory in the shared layout, at the cost of a look at those keys that expire; in the
        per-key layout each key is looked at."""
        return run(self._count())

    def empty(self) -> bool:
        """Whether no key has a value. Stops at the first that has one."""
        return run(self._empty())

    def __bool__(self) -> bool:
        return True

    # Writing. Each write costs about one confirmed publish. Raises of all: ``ConnectionFailed`` or ``WriteTimeout`` where nothing
    # was written, ``OutcomeUnknown`` where that is not known; ``InvalidKey`` and the like before anything is sent.

    def set(self, key: str, value: object, *, ttl: float | None = None) -> int:
        """Give a key a value, for ``ttl`` seconds or for good. Returns the revision (-1 with ``confirm=False``: it is not known
        yet).

        Costs about one confirmed publish. Raises :class:`mqkv.InvalidKey`, :class:`mqkv.InvalidTTL`, :class:`mqkv.InvalidValue`,
        :class:`mqkv.ValueTooLarge` before anything is sent; :class:`mqkv.ConnectionFailed` where nothing was written and
        :class:`mqkv.OutcomeUnknown` where that is not known.
        """
        return run(self._set(key, value, ttl))

    def add(self, key: str, value: object, *, ttl: float | None = None) -> bool:
        """Give a key a value only if it has none. Whether it was done: of all who try at once, one is told True.

        Costs about one confirmed publish, also where it is refused. Raises what ``set`` raises.
        """
        return run(self._add(key, value, ttl))

    def compare_and_set(self, key: str, value: object, revision: int | None, *, ttl: float | None = None) -> bool:
        """Give a key a value only if it still has the revision that ``set`` or ``entry`` told; None: only if it has no value.

        Whether it was done. Costs about one confirmed publish. Raises what ``set`` raises.
        """
        return run(self._compare_and_set(key, value, revision, ttl))

    @overload
    def incr(self, key: str, delta: int = 1, *, initial: int | None = None, ttl: float | None = None) -> int: ...
    @overload
    def incr(self, key: str, delta: float, *, initial: float | None = None, ttl: float | None = None) -> float: ...
    def incr(self, key: str, delta: float = 1, *, initial: float | None = None, ttl: float | None = None) -> int | float:
        """Add ``delta`` to a number, exactly, whoever else does; returns the sum. The value keeps its ttl.

        A key without a value counts as ``initial``, and what is made of it lives for ``ttl`` seconds; without ``initial`` it is a
        :class:`mqkv.KeyNotFound`. A value that is no number, or a sum past 64 bits, is a :class:`mqkv.NotANumber`. Numbers that
        the Ruby gem wrote as text count.

        Costs about one confirmed publish. Raises what ``set`` raises.
        """
        return run(self._incr(key, delta, initial, ttl))

    def touch(self, key: str, ttl: float | None) -> bool:
        """Let a value live for ``ttl`` seconds from now on; None: for good. Whether there was one. Its revision changes."""
        return run(self._touch(key, ttl))

    @overload
    def pop(self, key: str) -> Any: ...
    @overload
    def pop(self, key: str, default: T) -> Any | T: ...
    def pop(self, key: str, default: Any = ABSENT) -> Any:
        """Take a value away: of all who try at once, one gets it. Without a ``default``, a key that has no value is a
        :class:`mqkv.KeyNotFound`. A value that the codec can't read stays: :class:`mqkv.UnreadableValue`."""
        return run(self._pop(key, default))

    def popitem(self) -> tuple[str, Any]:
        """Take the last key away with its value (that which ``keys`` tells last): of all who try at once, each gets another.
        Raises :class:`mqkv.KeyNotFound` where no key has a value. Costs what ``pop`` costs, once more for each key that another
        took first."""
        return run(self._popitem())

    def delete(self, key: str, *, revision: int | None = None) -> bool:
        """Remove a key's value; with a ``revision``, only if it still has that. Whether it was done (with ``confirm=False``
        and no revision: as far as memory knows)."""
        return run(self._delete(key, revision))

    def get_or_set(self, key: str, default: object, *, ttl: float | None = None) -> Any:
        """The value; where there is none, ``default`` (called, if it can be), which becomes the value unless another was quicker:
        then the other's. A read, and an ``add`` where there was nothing."""
        return run(self._get_or_set(key, default, ttl))

    def set_many(self, mapping: Mapping[str, object], *, ttl: float | None = None) -> None:
        """Set many keys. In the shared layout in one step (readers see all or nothing), as one record of at most 16 MiB
        (:class:`mqkv.ValueTooLarge` past it, before anything is sent). In the per-key layout, and with ``pack=False``, one record
        a key, all under way at once; where it raises, some may have been written."""
        run(self._set_many(mapping, ttl))

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove many keys; how many had a value. One step where ``set_many`` is."""
        return run(self._delete_many(keys))

    def clear(self, *, prefix: str = "") -> None:
        """Remove every key of this keyspace, or those that begin with ``prefix``. One record in the shared layout, a tombstone a
        key in the other. Locks stay."""
        run(self._clear(prefix))

    def purge(self) -> None:
        """Delete the keyspace's streams with all their history and locks. Watches on them, here and in other processes, are told
        a ``reset``, and go on with what is made anew (a shared keyspace that is watched is, at once)."""
        run(self._purge())

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every write of ``confirm=False`` is settled, for up to ``timeout`` seconds (``write_timeout``).

        Those that failed were logged and are counted in ``stats()["failed_writes"]``.
        """
        run(self._flush(timeout))

    def sync(self) -> None:
        """Wait until memory has every write that completed anywhere before the call.

        On a broker it costs one confirmed publish (shared), or one read for each key that is followed (per-key); embedded, next
        to nothing.
        """
        run(self._sync())

    def lock(self, name: str, *, ttl: float = 30.0, timeout: float | None = None) -> Lock:
        """A lock that one owner holds at a time, of all processes that open this keyspace; ``with store.lock("jobs"): ...``.

        See :class:`mqkv.Lock`. ``ttl`` is for how many seconds a holder may be silent (it renews by itself while its process
        lives); ``timeout`` is for how long ``with`` waits: None, as long as it takes. The first acquire in a keyspace makes the
        stream that its locks stand in.
        """
        return Lock(self, name, ttl, timeout)

    # Following

    def preload(self, *keys: str, max_messages: int = 10_000) -> None:
        """Bring keys into memory and keep them fresh there: reads of them cost a dict lookup from then on.

        In the per-key layout all keys are asked for at once; a key without a value is followed as soon as a read finds one. In
        the shared layout the whole keyspace is loaded, whatever the keys. Only the latest value of a key is read;
        ``max_messages`` is accepted for those who come from the Ruby gem, whose ``preload`` reads the history to find its end.
        """
        run(self._preload(keys, max_messages))

    def watch(
        self,
        key: str,
        callback: Callable[[Change], object] | None = None,
        *,
        start: Literal["next", "last", "first"] | int = "next",
    ) -> Watch:
        """Each change of a key, or of the keys that match a glob.

        With a ``callback``, it is called in a background thread (one for all watches of the keyspace: a slow callback delays the
        others); without, iterate over the watch. ``start="last"`` begins with what is there, ``"first"`` with the whole history,
        a number with the first change of that revision or later: such a past is read from the log as the reader takes it. A
        stream that does not exist is made. A watch without a callback ends when nobody holds it any more.
        """
        watch = self._new_watch(key)
        run(self._follow(watch, start)).add_watch(watch, callback, self)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch; the same as ``watch.close()``."""
        watch.close()

    # Life

    def close(self) -> None:
        """Wait for unconfirmed writes, then let go of the keyspace; the last store of a URL closes the connection. Idempotent."""
        run(self._close())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
