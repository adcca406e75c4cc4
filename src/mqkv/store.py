"""The public store: names, defaults, errors, waiting. It knows keyspaces and codecs, and neither streams nor messages."""

from __future__ import annotations

import fnmatch
import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, overload

from mqkv import check, registry
from mqkv.codecs import DEFAULT, Codec
from mqkv.errors import (
    Closed,
    InvalidKey,
    InvalidOption,
    InvalidValue,
    StreamMissing,
    UnreadableValue,
    ValueTooLarge,
    WriteTimeout,
)
from mqkv.fold import Cell
from mqkv.ids import new_id
from mqkv.layout import Keyspace, Options
from mqkv.layout.base import NOTHING, loaded
from mqkv.logfmt import Log
from mqkv.record import Record
from mqkv.table import Event
from mqkv.url import parse as parse_url
from mqkv.watch import Change, Watch, is_pattern, matcher

#: The largest encoded value. Brokers take more, at a price for everybody who tails the stream.
MAX_VALUE = 16 * 2**20

T = TypeVar("T")


class Entry(NamedTuple):
    """What is known of a key now."""

    key: str
    value: Any
    revision: int  #: the offset of the record that last changed the key; -1 while an unconfirmed write is under way
    written_at: float | None  #: Unix seconds, by the writer's clock; None where the writer did not say
    expires_at: float | None  #: Unix seconds; None for never


class _Nowhere:
    """What a store holds while it has no keyspace: after close, and in a forked child before its first call."""

    cells = NOTHING
    signal = (0,)
    seen = 0


_NOWHERE: Any = _Nowhere()


class Store:
    """A key-value store on streams. Thread-safe, and safe to use after a fork.

    ``url`` is ``amqp://user:password@host:port/vhost``, ``amqps://...``, ``file:///folder`` or ``memory://``. Nothing is
    connected to before the first call.

    ``layout="per-key"`` keeps a stream a key (a few thousand long-lived keys, whose history matters); ``layout="shared"`` keeps
    all keys of ``name`` in one stream (any number of keys). ``read_timeout`` bounds, in seconds, how long a read may wait: past
    it the read raises, it never guesses. ``write_timeout`` does the same for writes. With ``confirm=False`` writes return
    without waiting, and :meth:`flush` waits for all. ``max_entries`` bounds a shared keyspace (the oldest writes are evicted)
    when it is made, and in the per-key layout how many keys stay preloaded. ``max_staleness`` is for how many seconds without
    the broker reads are still answered from memory; None: for ever. ``clock`` is the wall clock, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "mqkv",
        layout: Literal["per-key", "shared"] = "per-key",
        name: str = "default",
        read_timeout: float = 0.5,
        write_timeout: float = 10.0,
        confirm: bool = True,
        logger: logging.Logger | None = None,
        codec: Codec = DEFAULT,
        max_entries: int | None = None,
        max_staleness: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = parse_url(url)
        check.positive("read_timeout", read_timeout)
        check.positive("write_timeout", write_timeout)
        if max_entries is not None:
            check.positive("max_entries", max_entries, whole=True)
        if max_staleness is not None and max_staleness != 0:
            check.positive("max_staleness", max_staleness)
        self._prefix = check.key_text(prefix, "prefix")
        check.key_text(name, "name")
        self._read_timeout, self._write_timeout = read_timeout, write_timeout
        self._confirm = bool(confirm)
        self._codec = codec
        self._clock = clock
        self._log = Log(logger)
        self._shared = layout == "shared"
        options = Options(codec, clock, max_entries, max_staleness)
        self._place = registry.Place(self._url, prefix, layout, name, options, logger)
        self._preloaded: dict[str, None] = {}
        self._state: Literal["open", "forked", "closed"] = "open"
        self._keyspace: Keyspace = self._place.acquire()
        registry.enlist(self)
        if self._log.debugging:
            self.get = self._get_and_log  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<mqkv.Store {self._url} prefix={self._prefix!r} layout={'shared' if self._shared else 'per-key'} {self._state}>"

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
        return self._read(key, default, fresh)

    def _read(self, key: str, default: Any, fresh: bool) -> Any:
        keyspace = self._open_keyspace()
        cell = keyspace.read(self._key(key), self._read_timeout, fresh=fresh)
        return default if cell is None or self._expired(cell) else self._value(key, cell)

    def _get_and_log(self, key: str, default: Any = None, *, fresh: bool = False) -> Any:
        source = "cache" if key in self._keyspace.cells and not fresh else "stream"
        value = Store.get(self, key, default, fresh=fresh)
        self._log.debug("get", key=key, source=source)
        return value

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of ``keys`` that have one."""
        found = ((key, self.get(key, _ABSENT)) for key in keys)
        return {key: value for key, value in found if value is not _ABSENT}

    def peek(self, key: str, default: Any = None) -> Any:
        """The value as far as this process's memory knows it. Never touches the broker; ``default`` for what it does not know."""
        cell = self._open_keyspace().peek(self._key(key))
        return default if cell is None or self._expired(cell) else self._value(key, cell)

    def entry(self, key: str) -> Entry | None:
        """The value with its revision and times; None where the key has no value."""
        cell = self._open_keyspace().read(self._key(key), self._read_timeout)
        return None if cell is None or self._expired(cell) else self._entry(key, cell)

    def exists(self, key: str) -> bool:
        """Whether the key has a value (None is a value)."""
        return self.get(key, _ABSENT) is not _ABSENT

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self.exists(key)
        except InvalidKey:
            return False

    def ttl(self, key: str) -> float | None:
        """Seconds until the key expires; None where it never does, or has no value."""
        cell = self._open_keyspace().read(self._key(key), self._read_timeout)
        if cell is None or cell.expires_ms is None or self._expired(cell):
            return None
        return cell.expires_ms / 1000 - self._clock()

    def history(self, key: str, limit: int = 10) -> list[Any]:
        """The newest values of a key, at most ``limit``, oldest first. A delete clears what came before it.

        Reads the key's stream from its beginning; in the shared layout that is the stream of all keys.
        """
        check.positive("limit", limit, whole=True)
        keyspace = self._open_keyspace()
        cells: deque[Cell] = deque(maxlen=limit)
        key = self._key(key)

        def collect(event: Event) -> None:
            kind, changed, cell, *_ = event
            if kind == "set" and changed == key and cell is not None:
                cells.append(cell)
            elif kind in ("clear", "reset") or (kind == "delete" and changed == key):
                cells.clear()

        table = keyspace.replay(key, collect)
        try:
            loaded(table, self._read_timeout)
        except StreamMissing:
            return []
        finally:
            table.tail.close()
        return [self._value(key, cell) for cell in cells]

    def keys(self, pattern: str | None = None) -> list[str]:
        """The keys that have a value, or those that match a glob (``*``, ``?``, ``[...]``)."""
        return [key for key, _ in self._live_cells(pattern)]

    def items(self, pattern: str | None = None) -> list[tuple[str, Any]]:
        """Keys and values at one moment."""
        return [(key, self._value(key, cell)) for key, cell in self._live_cells(pattern)]

    def __len__(self) -> int:
        return sum(1 for _ in self._live_cells(None))

    def __bool__(self) -> bool:
        return True

    # Writing

    def set(self, key: str, value: object, *, ttl: float | None = None) -> int:
        """Give a key a value, for ``ttl`` seconds or for good. Returns the revision (-1 with ``confirm=False``: it is not known
        yet).

        Costs about one confirmed publish. Raises :class:`mqkv.InvalidKey`, :class:`mqkv.InvalidTTL`, :class:`mqkv.InvalidValue`,
        :class:`mqkv.ValueTooLarge` before anything is sent; :class:`mqkv.ConnectionFailed` where nothing was written and
        :class:`mqkv.OutcomeUnknown` where that is not known.
        """
        key = self._key(key)
        ttl_ms = check.ttl_ms(ttl)
        body, content_type = self._encode(key, value)
        now = int(self._clock() * 1000)
        record = Record("set", key, body, content_type, None, None if ttl_ms is None else now + ttl_ms, now, new_id())
        max_age = None if ttl is None else math.ceil(ttl)
        revision, _ = self._open_keyspace().write(record, self._write_timeout, confirm=self._confirm, max_age=max_age)
        if self._log.debugging:
            self._log.debug("set", key=key, ttl=ttl, revision=revision)
        return revision

    def delete(self, key: str) -> bool:
        """Remove a key's value. Whether it was there (with ``confirm=False``: as far as memory knows)."""
        key = self._key(key)
        keyspace = self._open_keyspace()
        record = Record("delete", key, written_ms=int(self._clock() * 1000), id=new_id())
        known = keyspace.peek(key) is not None
        try:
            _, outcome = keyspace.write(record, self._write_timeout, confirm=self._confirm, create=False)
        except StreamMissing:
            return False
        if self._log.debugging:
            self._log.debug("delete", key=key)
        return known if outcome is None else outcome.found

    def clear(self) -> None:
        """Remove every key of this keyspace. One record in the shared layout, a tombstone a key in the other."""
        record = Record("clear", "", written_ms=int(self._clock() * 1000), id=new_id())
        self._open_keyspace().clear(record, self._write_timeout)
        self._log.debug("clear")

    def purge(self) -> None:
        """Delete the keyspace's streams with all their history. Watches on them end, here and in other processes."""
        self._open_keyspace().purge(self._write_timeout)
        self._log(logging.INFO, "purge", prefix=self._prefix)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every write of ``confirm=False`` is settled, for up to ``timeout`` seconds (``write_timeout``).

        Those that failed were logged and are counted in ``stats()["failed_writes"]``.
        """
        timeout = self._write_timeout if timeout is None else timeout
        if not self._open_keyspace().unconfirmed.wait(timeout):
            raise WriteTimeout(f"unconfirmed writes were still under way after {timeout:g} s")

    # Following

    def preload(self, *keys: str, max_messages: int = 10_000) -> None:
        """Bring keys into memory and keep them fresh there: reads of them cost a dict lookup from then on.

        In the per-key layout all keys are asked for at once; a key without a value is followed as soon as a read finds one. In
        the shared layout the whole keyspace is loaded, whatever the keys. Only the latest value of a key is read;
        ``max_messages`` is accepted for those who come from the Ruby gem, whose ``preload`` reads the history to find its end.
        """
        check.positive("max_messages", max_messages, whole=True)
        checked = [self._key(key) for key in keys]
        self._preloaded.update(dict.fromkeys(checked))
        self._open_keyspace().preload(checked, self._read_timeout)
        self._log.debug("preload", keys=len(checked))

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
        a number with the first change of that revision or later. A stream that does not exist is made.
        """
        if not is_pattern(check.key_text(key)):
            self._key(key)
        position: int | str = 0 if start == "first" else start
        if isinstance(position, bool) or not (position in ("next", "last") or (isinstance(position, int) and position >= 0)):
            raise InvalidOption(f"start is 'next', 'last', 'first' or a revision, not {start!r}")
        keyspace = self._open_keyspace()
        watch = Watch(key, matcher(key), self._codec, self._log)
        keyspace.follow(watch, position, self._read_timeout)
        registry.enlist(watch)
        keyspace.add_watch(watch, callback)
        self._log.debug("watch", pattern=key, status="started")
        watch.on_close(lambda: self._log.debug("watch", pattern=key, status="stopped"))
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch; the same as ``watch.close()``."""
        watch.close()

    # Life

    def stats(self) -> dict[str, object]:
        """Counters: tables, unreadable records, unconfirmed and failed writes, watches, seconds out of touch with the broker."""
        return dict(self._open_keyspace().stats())

    def close(self) -> None:
        """Wait for unconfirmed writes, then let go of the keyspace; the last store of a URL closes the connection. Idempotent."""
        if self._state == "open":
            self._keyspace.unconfirmed.wait(self._write_timeout)
            self._keyspace = _NOWHERE
            self._state = "closed"
            self._place.release()
            self._log(logging.INFO, "close", url=self._url)
        self._state = "closed"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def after_fork(self) -> None:
        """Called by the registry in a forked child: the next call opens a connection of the child's own."""
        if self._state == "open":
            self._keyspace, self._state = _NOWHERE, "forked"

    def _open_keyspace(self) -> Keyspace:
        if self._state == "open":
            return self._keyspace
        if self._state == "closed":
            raise Closed(f"this store was closed: {self!r}")
        keyspace = self._place.acquire()
        self._keyspace, self._state = keyspace, "open"
        if self._preloaded:
            keyspace.preload(list(self._preloaded), self._read_timeout)
        return keyspace

    # Helpers

    def _key(self, key: object) -> str:
        if self._shared:
            return check.shared_key(key)
        text = check.key_text(key)
        check.queue_name(self._prefix, text)
        return text

    def _encode(self, key: str, value: object) -> tuple[bytes, str | None]:
        body, content_type = self._codec.encode(value)
        if not isinstance(body, bytes):
            raise InvalidValue(f"the codec gave {type(body).__name__} for key {key!r}, not bytes")
        if len(body) > MAX_VALUE:
            raise ValueTooLarge(f"the value of key {key!r} takes {len(body)} bytes, and {MAX_VALUE} are allowed")
        return body, content_type

    def _value(self, key: str, cell: Cell) -> Any:
        if cell.content_encoding is not None:
            raise UnreadableValue(
                f"the value of key {key!r} is compressed with {cell.content_encoding!r}: open the store with its codec"
            )
        return self._codec.decode(cell.body, cell.content_type)

    def _entry(self, key: str, cell: Cell) -> Entry:
        written = None if cell.written_ms is None else cell.written_ms / 1000
        expires = None if cell.expires_ms is None else cell.expires_ms / 1000
        return Entry(key, self._value(key, cell), cell.revision, written, expires)

    def _expired(self, cell: Cell) -> bool:
        return cell.expires_ms is not None and self._clock() * 1000 >= cell.expires_ms

    def _live_cells(self, pattern: str | None) -> Iterator[tuple[str, Cell]]:
        wanted = None if pattern is None else re.compile(fnmatch.translate(pattern)).match
        for key, cell in self._open_keyspace().snapshot(self._read_timeout).items():
            if not self._expired(cell) and (wanted is None or wanted(key)):
                yield key, cell


_ABSENT: Any = object()
