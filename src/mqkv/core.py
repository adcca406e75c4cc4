"""What a store does, once for threads and for event loops: checks, records, outcomes, errors.

The verbs are coroutines (see ``mqkv.waiting``) with an underscore in front; ``store.py`` and ``aio.py`` give them their public
names, and say what they mean. Nothing here knows streams or messages.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from mqkv import check, number, registry
from mqkv.batch import Batch, of_deletes, of_sets, pack
from mqkv.codecs import BoundCodec, Codec, KeyedCodec
from mqkv.errors import (
    Closed,
    InvalidOption,
    InvalidValue,
    KeyNotFound,
    NotANumber,
    OutcomeUnknown,
    StreamMissing,
    UnreadableValue,
    ValueTooLarge,
    WriteTimeout,
)
from mqkv.fold import Cell, Outcome
from mqkv.ids import new_id
from mqkv.layout import Keyspace, Options
from mqkv.layout.base import NOTHING, loaded
from mqkv.logfmt import Log
from mqkv.record import Record
from mqkv.streams.base import HeaderValue
from mqkv.table import Event
from mqkv.url import parse as parse_url
from mqkv.waiting import run, wait
from mqkv.watch import Watch, is_pattern, matcher

#: The largest encoded value, and the largest batch. Brokers take more, at a price for everybody who tails the stream.
MAX_VALUE = 16 * 2**20

ABSENT: Any = object()


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
    blocks = True  # the first call after a fork may open what it needs


NOWHERE: Any = _Nowhere()


class Core:
    """The common part of :class:`mqkv.Store` and :class:`mqkv.AsyncStore`."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        layout: Literal["per-key", "shared"],
        name: str,
        read_timeout: float,
        write_timeout: float,
        confirm: bool,
        pack: bool,
        logger: logging.Logger | None,
        codec: Codec | KeyedCodec,
        max_entries: int | None,
        max_staleness: float | None,
        clock: Callable[[], float],
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
        self._confirm, self._pack = bool(confirm), bool(pack)
        self._codec = BoundCodec(codec)
        self._clock = clock
        self._log = Log(logger)
        self._shared = layout == "shared"
        options = Options(self._codec, clock, max_entries, max_staleness)
        self._place = registry.Place(self._url, prefix, layout, name, options, logger)
        self._preloaded: dict[str, None] = {}
        self._unreadable = 0
        self._state: Literal["open", "forked", "closed"] = "open"
        self._keyspace: Keyspace = self._place.acquire()
        registry.enlist(self)

    def __repr__(self) -> str:
        layout = "shared" if self._shared else "per-key"
        return f"<mqkv.{type(self).__name__} {self._url} prefix={self._prefix!r} layout={layout} {self._state}>"

    # Reading

    async def _read(self, key: str, default: Any, fresh: bool) -> Any:
        keyspace = self._open_keyspace()
        cell = await keyspace.read(self._key(key), self._read_timeout, fresh=fresh)
        return self._value(key, cell, default)

    async def _get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        wanted = [self._key(key) for key in keys]
        ready, cells = await self._open_keyspace().read_many(wanted, self._read_timeout)
        now = self._clock()
        found = {key: value for key, (value, expires) in ready.items() if expires is None or now < expires}
        for key, cell in cells.items():
            value = self._value(key, cell, ABSENT)
            if value is not ABSENT:
                found[key] = value
        return found if len(found) < 2 or not cells else {key: found[key] for key in wanted if key in found}

    def _peek(self, key: str, default: Any) -> Any:
        return self._value(key, self._open_keyspace().peek(self._key(key)), default)

    async def _get_entry(self, key: str) -> Entry | None:
        cell = await self._open_keyspace().read(self._key(key), self._read_timeout)
        value = self._value(key, cell, ABSENT)
        if cell is None or value is ABSENT:
            return None
        written = None if cell.written_ms is None else cell.written_ms / 1000
        expires = None if cell.expires_ms is None else cell.expires_ms / 1000
        return Entry(key, value, cell.revision, written, expires)

    async def _ttl(self, key: str) -> float | None:
        cell = await self._open_keyspace().read(self._key(key), self._read_timeout)
        if cell is None or cell.expires_ms is None or self._expired(cell):
            return None
        return cell.expires_ms / 1000 - self._clock()

    async def _history(self, key: str, limit: int) -> list[Any]:
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
            await loaded(table, self._read_timeout)
        except StreamMissing:
            return []
        finally:
            table.tail.close()
        values = (self._value(key, cell, ABSENT, expired=True) for cell in cells)
        return [value for value in values if value is not ABSENT]

    async def _live_cells(self, pattern: str | None) -> Iterator[tuple[str, Cell]]:
        wanted = None if pattern is None else re.compile(fnmatch.translate(pattern)).match
        cells = await self._open_keyspace().snapshot(self._read_timeout)
        return ((key, cell) for key, cell in cells.items() if not self._expired(cell) and (wanted is None or wanted(key)))

    async def _keys(self, pattern: str | None) -> list[str]:
        return [key for key, _ in await self._live_cells(pattern)]

    async def _items(self, pattern: str | None) -> list[tuple[str, Any]]:
        items = [(key, self._value(key, cell, ABSENT)) for key, cell in await self._live_cells(pattern)]
        return [item for item in items if item[1] is not ABSENT]

    # Writing

    async def _set(self, key: str, value: object, ttl: float | None) -> int:
        record, max_age = self._valued("set", key, value, ttl)
        revision, _ = await self._open_keyspace().write(record, self._write_timeout, confirm=self._confirm, max_age=max_age)
        if self._log.debugging:
            self._log.debug("set", key=key, ttl=ttl, revision=revision)
        return revision

    async def _add(self, key: str, value: object, ttl: float | None) -> bool:
        record, max_age = self._valued("add", key, value, ttl)
        return (await self._decide(record, max_age=max_age)).done

    async def _compare_and_set(self, key: str, value: object, revision: int | None, ttl: float | None) -> bool:
        _check_revision(revision)
        args: dict[str, HeaderValue] = {} if revision is None else {"revision": revision}
        record, max_age = self._valued("compare_and_set", key, value, ttl)
        outcome = await self._decide(record._replace(args=args), max_age=max_age, create=revision is None)
        return outcome.done

    async def _incr(self, key: str, delta: float, initial: float | None, ttl: float | None) -> int | float:
        args: dict[str, HeaderValue] = {"delta": _number("delta", delta)}
        if initial is not None:
            args["initial"] = _number("initial", initial)
        elif ttl is not None:
            raise InvalidOption("a ttl is for the value that initial makes: give both, or touch the key")
        now, expires_ms = self._times(ttl)
        record = Record("incr", self._key(key), expires_ms=expires_ms, written_ms=now, id=new_id(), args=args)
        outcome = await self._decide(record, max_age=_max_age(ttl), create=initial is not None)
        if outcome.cell is None:
            if outcome.why:
                raise NotANumber(f"the value of key {key!r} {outcome.why}: nothing was changed")
            raise KeyNotFound(f"key {key!r} has no value to add to: pass initial= to begin with one")
        total = number.read(outcome.cell)
        assert total is not None
        return total

    async def _touch(self, key: str, ttl: float | None) -> bool:
        now, expires_ms = self._times(ttl)
        record = Record("touch", self._key(key), expires_ms=expires_ms, written_ms=now, id=new_id())
        return (await self._decide(record, create=False)).done

    async def _pop(self, key: str, default: Any) -> Any:
        outcome = await self._decide(Record("pop", self._key(key), written_ms=self._now(), id=new_id()), create=False)
        value = ABSENT if outcome.cell is None else self._value(key, outcome.cell, ABSENT, expired=True)
        if value is not ABSENT:
            return value
        if default is ABSENT:
            raise KeyNotFound(f"key {key!r} has no value")
        return default

    async def _delete(self, key: str, revision: int | None) -> bool:
        key = self._key(key)
        if revision is not None:
            _check_revision(revision)
            record = Record("delete_if", key, written_ms=self._now(), id=new_id(), args={"revision": revision})
            return (await self._decide(record, create=False)).done
        keyspace = self._open_keyspace()
        known = keyspace.peek(key) is not None
        record = Record("delete", key, written_ms=self._now(), id=new_id())
        try:
            _, outcome = await keyspace.write(record, self._write_timeout, confirm=self._confirm, create=False)
        except StreamMissing:
            return False
        if self._log.debugging:
            self._log.debug("delete", key=key)
        return known if outcome is None else outcome.found

    async def _get_or_set(self, key: str, default: object, ttl: float | None) -> Any:
        value = await self._read(key, ABSENT, False)
        if value is not ABSENT:
            return value
        value = default() if callable(default) else default
        if await self._add(key, value, ttl):
            return value
        return await self._read(key, value, False)

    async def _set_many(self, mapping: Mapping[str, object], ttl: float | None) -> None:
        max_age = _max_age(ttl)
        now, expires_ms = self._times(ttl)
        encoded = [(self._key(key), *self._encode(key, value)) for key, value in mapping.items()]
        if not encoded:
            return
        keyspace = self._open_keyspace()
        if self._shared and self._pack:
            record = self._packed("set_many", of_sets(encoded))._replace(expires_ms=expires_ms, written_ms=now)
            await keyspace.write(record, self._write_timeout, confirm=self._confirm)
        else:
            records = [Record("set", key, body, kind, None, expires_ms, now, new_id()) for key, body, kind in encoded]
            await keyspace.write_all(records, self._write_timeout, confirm=self._confirm, max_age=max_age)
        if self._log.debugging:
            self._log.debug("set_many", keys=len(encoded), ttl=ttl)

    async def _delete_many(self, keys: Iterable[str]) -> int:
        wanted = list(dict.fromkeys(self._key(key) for key in keys))
        if not wanted:
            return 0
        keyspace = self._open_keyspace()
        known = sum(keyspace.peek(key) is not None for key in wanted)
        if self._shared and self._pack:
            record = self._packed("delete_many", of_deletes(wanted))
            try:
                _, outcome = await keyspace.write(record, self._write_timeout, confirm=self._confirm, create=False)
            except StreamMissing:
                return 0
            return known if outcome is None else outcome.hits
        now = self._now()
        records = [Record("delete", key, written_ms=now, id=new_id()) for key in wanted]
        outcomes = await keyspace.write_all(records, self._write_timeout, confirm=self._confirm, create=False)
        return sum(outcome is not None and outcome.found for outcome in outcomes) if self._confirm else known

    async def _clear(self, prefix: str) -> None:
        args: dict[str, HeaderValue] = {"prefix": check.key_text(prefix, "prefix")} if prefix != "" else {}
        record = Record("clear", "", written_ms=self._now(), id=new_id(), args=args)
        await self._open_keyspace().clear(record, self._write_timeout)
        self._log.debug("clear")

    async def _sync(self) -> None:
        await self._open_keyspace().sync(self._read_timeout)

    async def _purge(self) -> None:
        await self._open_keyspace().purge(self._write_timeout)
        self._log(logging.INFO, "purge", prefix=self._prefix)

    async def _flush(self, timeout: float | None) -> None:
        timeout = self._write_timeout if timeout is None else timeout
        if not await wait(self._open_keyspace().unconfirmed.settled(), timeout):
            raise WriteTimeout(f"unconfirmed writes were still under way after {timeout:g} s")

    # Following

    async def _preload(self, keys: Iterable[str], max_messages: int) -> None:
        check.positive("max_messages", max_messages, whole=True)
        checked = [self._key(key) for key in keys]
        self._preloaded.update(dict.fromkeys(checked))
        await self._open_keyspace().preload(checked, self._read_timeout)
        self._log.debug("preload", keys=len(checked))

    async def _follow(self, watch: Watch, start: Literal["next", "last", "first"] | int) -> Keyspace:
        """Have ``watch`` told from now on, until it is closed."""
        position: int | str = 0 if start == "first" else start
        if isinstance(position, bool) or not (position in ("next", "last") or (isinstance(position, int) and position >= 0)):
            raise InvalidOption(f"start is 'next', 'last', 'first' or a revision, not {start!r}")
        keyspace = self._open_keyspace()
        pattern = watch.pattern
        try:
            await keyspace.follow(watch, position, self._read_timeout)
        except BaseException:
            watch.close()
            raise
        registry.enlist(watch)
        self._log.debug("watch", pattern=pattern, status="started")
        watch.on_close(lambda: self._log.debug("watch", pattern=pattern, status="stopped"))
        return keyspace

    def _new_watch(self, key: str) -> Watch:
        if not is_pattern(check.key_text(key)):
            self._key(key)
        return Watch(key, matcher(key), self._codec, self._log)

    # Life

    def stats(self) -> dict[str, object]:
        """Counters: tables, unreadable records and values, unconfirmed and failed writes, watches, seconds out of touch with the
        broker."""
        return {**self._open_keyspace().stats(), "unreadable_values": self._unreadable}

    async def _close(self) -> None:
        if self._state == "open":
            keyspace, self._keyspace, self._state = self._keyspace, NOWHERE, "closed"
            try:
                await wait(keyspace.unconfirmed.settled(), self._write_timeout)
            finally:
                self._place.release()
            self._log(logging.INFO, "close", url=self._url)
        self._state = "closed"

    def after_fork(self) -> None:
        """Called by the registry in a forked child: the next call opens a connection of the child's own."""
        if self._state == "open":
            self._keyspace, self._state = NOWHERE, "forked"

    def _open_keyspace(self) -> Keyspace:
        if self._state == "open":
            return self._keyspace
        if self._state == "closed":
            raise Closed(f"this store was closed: {self!r}")
        keyspace = self._place.acquire()
        self._keyspace, self._state = keyspace, "open"
        if self._preloaded:
            run(keyspace.preload(list(self._preloaded), self._read_timeout))
        return keyspace

    # Helpers

    async def _decide(self, record: Record, *, max_age: int | None = None, create: bool = True) -> Outcome:
        """Append a conditional operation, and learn how it was decided at its place in the log."""
        try:
            _, outcome = await self._open_keyspace().write(
                record, self._write_timeout, confirm=True, max_age=max_age, create=create
            )
        except StreamMissing:
            if create:
                raise
            return Outcome("none", done=False)
        if outcome is None:
            raise OutcomeUnknown(f"the log was rewritten while {record.op} of key {record.key!r} was under way: read, and decide")
        if self._log.debugging:
            self._log.debug(record.op, key=record.key, done=outcome.done)
        return outcome

    def _valued(self, op: str, key: str, value: object, ttl: float | None) -> tuple[Record, int | None]:
        """A record that carries a value, and the ``max_age`` of a stream that is made for it."""
        key = self._key(key)
        now, expires_ms = self._times(ttl)
        body, content_type = self._encode(key, value)
        return Record(op, key, body, content_type, None, expires_ms, now, new_id()), _max_age(ttl)

    def _packed(self, op: str, batch: Batch) -> Record:
        body = pack(batch) if sum(map(len, batch.bodies)) <= MAX_VALUE else None
        if body is None or len(body) > MAX_VALUE:
            raise ValueTooLarge(
                f"a batch of {len(batch.keys)} keys takes more than {MAX_VALUE} bytes: a batch is one record, so split it"
            )
        return Record(op, "", body, written_ms=self._now(), id=new_id(), batch=batch)

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _times(self, ttl: float | None) -> tuple[int, int | None]:
        """Now, and the expiry, in milliseconds."""
        ttl_ms = check.ttl_ms(ttl)
        now = self._now()
        return now, None if ttl_ms is None else now + ttl_ms

    def _key(self, key: object) -> str:
        if self._shared:
            return check.shared_key(key)
        text = check.key_text(key)
        check.queue_name(self._prefix, text)
        return text

    def _encode(self, key: str, value: object) -> tuple[bytes, str | None]:
        body, content_type = self._codec.encode(key, value)
        if not isinstance(body, bytes):
            raise InvalidValue(f"the codec gave {type(body).__name__} for key {key!r}, not bytes")
        if len(body) > MAX_VALUE:
            raise ValueTooLarge(f"the value of key {key!r} takes {len(body)} bytes, and {MAX_VALUE} are allowed")
        return body, content_type

    def _value(self, key: str, cell: Cell | None, default: Any, *, expired: bool = False) -> Any:
        """The value of a cell; ``default`` for none, or for one that has expired."""
        if cell is None or (not expired and self._expired(cell)):
            return default
        try:
            if cell.content_encoding is not None:
                raise UnreadableValue(
                    f"the value of key {key!r} is compressed with {cell.content_encoding!r}: open the store with its codec"
                )
            return self._codec.decode(key, cell.body, cell.content_type)
        except UnreadableValue:
            if not self._codec.lenient:
                raise
            self._unreadable += 1
            self._log.once(logging.WARNING, "unreadable", "unreadable", key=key, revision=cell.revision)
            return default

    def _expired(self, cell: Cell) -> bool:
        return cell.expires_ms is not None and self._clock() * 1000 >= cell.expires_ms


def _max_age(ttl: float | None) -> int | None:
    return None if ttl is None else math.ceil(ttl)


def _check_revision(revision: object) -> None:
    if revision is not None and (type(revision) is not int or not 0 <= revision < 2**63):
        raise InvalidOption(f"a revision is what set or entry gave, not {revision!r}")


def _number(what: str, value: object) -> HeaderValue:
    if type(value) not in (int, float):
        raise InvalidValue(f"{what} must be an int or a float, not {type(value).__name__}")
    assert isinstance(value, (int, float))
    if number.render(value) is None:
        raise InvalidValue(f"{what} must be finite and fit 64 bits")
    return number.to_header(value)
