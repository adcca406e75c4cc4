"""What a store reads and follows; see ``core``."""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from mqkv import check, registry
from mqkv.core import ABSENT, Core, Entry
from mqkv.errors import InvalidOption, StreamMissing
from mqkv.fold import Cell
from mqkv.inbox import one_of
from mqkv.layout import Keyspace
from mqkv.layout.base import loaded
from mqkv.table import Event
from mqkv.watch import Watch, is_pattern, matcher


class Reads(Core):
    """The verbs that change nothing."""

    async def _read(self, key: str, default: Any, fresh: bool) -> Any:
        keyspace = self._open_keyspace()
        cell = await keyspace.read(self._key(key), self._reading(), fresh=fresh)
        return self._value(key, cell, default)

    async def _get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        wanted = self._checked(keys)
        ready, cells = await self._open_keyspace().read_many(wanted, self._reading())
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
        cell = await self._open_keyspace().read(self._key(key), self._reading())
        value = self._value(key, cell, ABSENT)
        if cell is None or value is ABSENT:
            return None
        written = None if cell.written_ms is None else cell.written_ms / 1000
        expires = None if cell.expires_ms is None else cell.expires_ms / 1000
        return Entry(key, value, cell.revision, written, expires)

    async def _ttl(self, key: str) -> float | None:
        cell = await self._open_keyspace().read(self._key(key), self._reading())
        if cell is None or cell.expires_ms is None or self._expired(cell):
            return None
        return cell.expires_ms / 1000 - self._clock()

    async def _history(self, key: str, limit: int) -> list[Any]:
        check.positive("limit", limit, whole=True)
        keyspace = self._open_keyspace()
        cells: deque[Cell] = deque(maxlen=limit)
        key = self._key(key)

        def collect(event: Event) -> None:
            if event.kind == "batch" and key in event.many:
                event = one_of(event, key, event.many[key])
            kind, changed, cell, *_ = event
            if kind == "set" and changed == key and cell is not None:
                cells.append(cell)
            elif kind in ("clear", "reset") or (kind == "delete" and changed == key):
                cells.clear()

        table = keyspace.replay(key, collect)
        try:
            await loaded(table, self._reading())
        except StreamMissing:
            return []
        finally:
            table.tail.close()
        values = (self._value(key, cell, ABSENT, expired=True) for cell in cells)
        return [value for value in values if value is not ABSENT]

    async def _live_cells(self, pattern: str | None) -> Iterator[tuple[str, Cell]]:
        wanted = None if pattern is None else re.compile(fnmatch.translate(pattern)).match
        cells = await self._open_keyspace().snapshot(self._reading())
        return ((key, cell) for key, cell in cells.items() if not self._expired(cell) and (wanted is None or wanted(key)))

    async def _keys(self, pattern: str | None) -> list[str]:
        return [key for key, _ in await self._live_cells(pattern)]

    async def _count(self) -> int:
        return await self._open_keyspace().count(self._clock() * 1000, self._reading())

    async def _empty(self) -> bool:
        return await self._open_keyspace().newest(self._clock() * 1000, (), self._reading()) is None

    async def _items(self, pattern: str | None) -> list[tuple[str, Any]]:
        items = [(key, self._value(key, cell, ABSENT)) for key, cell in await self._live_cells(pattern)]
        return [item for item in items if item[1] is not ABSENT]

    # Following

    async def _preload(self, keys: Iterable[str], max_messages: int) -> None:
        check.positive("max_messages", max_messages, whole=True)
        checked = self._checked(keys)
        self._preloaded.update(dict.fromkeys(checked))
        await self._open_keyspace().preload(checked, self._reading())
        self._log.debug("preload", keys=len(checked))

    async def _follow(self, watch: Watch, start: Literal["next", "last", "first"] | int) -> Keyspace:
        """Have ``watch`` told from now on, until it is closed."""
        position: int | str = 0 if start == "first" else start
        if isinstance(position, bool) or not (position in ("next", "last") or (isinstance(position, int) and position >= 0)):
            raise InvalidOption(f"start is 'next', 'last', 'first' or a revision, not {start!r}")
        keyspace = self._open_keyspace()
        pattern = watch.pattern
        try:
            await keyspace.follow(watch.inbox, position, self._reading())
        except BaseException:
            watch.close()
            raise
        registry.enlist(watch)
        log = self._log
        log.debug("watch", pattern=pattern, status="started")
        watch.inbox.on_close(lambda: log.debug("watch", pattern=pattern, status="stopped"))
        return keyspace

    def _new_watch(self, key: str) -> Watch:
        key = check.key_text(key)
        if not is_pattern(key):
            self._key(key)
        return Watch(key, matcher(key), self._codec, self._log)
