"""What a store does, once for threads and for event loops: checks, records, outcomes, errors.

The verbs are coroutines (see ``mqkv.waiting``) with an underscore in front; ``store.py`` and ``aio.py`` give them their public
names, and say what they mean. Nothing here knows streams or messages.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from mqkv import check, registry
from mqkv.codecs import DEFAULT, BoundCodec, Codec, KeyedCodec, is_well_formed
from mqkv.errors import (
    Closed,
    InvalidValue,
    UnreadableValue,
    ValueTooLarge,
    WriteTimeout,
)
from mqkv.fold import LONGEST_MAKER, Cell
from mqkv.layout import Keyspace, Options
from mqkv.layout.base import ASK as ASK
from mqkv.layout.base import NOTHING
from mqkv.layout.leases import PARTING
from mqkv.logfmt import Log
from mqkv.record import time_ms
from mqkv.url import parse as parse_url
from mqkv.waiting import Deadline, run, wait

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
    at_hand = staticmethod(lambda key: ASK)
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
        prefix: str = "mqkv",
        layout: Literal["per-key", "shared"] = "per-key",
        name: str = "default",
        read_timeout: float = 0.5,
        write_timeout: float = 10.0,
        confirm: bool = True,
        pack: bool = True,
        logger: logging.Logger | None = None,
        codec: Codec | KeyedCodec = DEFAULT,
        max_entries: float | None = None,
        max_staleness: float | None = None,
        clock: Callable[[], float] = time.time,
        _maker: str = "store",
    ) -> None:
        self._url = parse_url(url)
        check.positive("read_timeout", read_timeout)
        check.positive("write_timeout", write_timeout)
        if max_entries is not None and max_entries != math.inf:
            check.positive("max_entries", max_entries, whole=True)
        if max_staleness is not None and max_staleness != 0:
            check.positive("max_staleness", max_staleness)
        self._prefix = check.name_text(prefix, "prefix")
        name = check.name_text(name, "name")
        self._read_timeout, self._write_timeout = read_timeout, write_timeout
        self._confirm, self._pack = bool(confirm), bool(pack)
        self._codec = BoundCodec(codec)
        self._clock = clock
        self._log = Log(logger)
        self._shared = layout == "shared"
        options = Options(self._codec, clock, max_entries, max_staleness, _maker[:LONGEST_MAKER])
        self._place = registry.Place(self._url, self._prefix, layout, name, options, logger)
        self._preloaded: dict[str, None] = {}
        self._unreadable = 0
        self._state: Literal["open", "forked", "closed"] = "open"
        self._keyspace: Keyspace = self._place.acquire()
        self._set_up()
        registry.enlist(self)

    def _set_up(self) -> None:
        """What one kind of store has besides."""

    def __repr__(self) -> str:
        layout = "shared" if self._shared else "per-key"
        return f"<mqkv.{type(self).__name__} {self._url} prefix={self._prefix!r} layout={layout} {self._state}>"

    # Life

    def stats(self) -> dict[str, object]:
        """Counters: tables, unreadable records and values, unconfirmed and failed writes, watches, seconds out of touch with the
        broker."""
        return {**self._open_keyspace().stats(), "unreadable_values": self._unreadable}

    async def _close(self) -> None:
        if self._state == "open":
            keyspace, self._keyspace, self._state = self._keyspace, NOWHERE, "closed"
            try:
                keyspace.watching.close_of(self)
                parting = Deadline(PARTING)
                for promise in keyspace.leases.leave(self):
                    await wait(promise, parting.left)
                await wait(keyspace.unconfirmed.settled(), self._writing().left)
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
            run(keyspace.preload(list(self._preloaded), self._reading()))
        return keyspace

    # Helpers

    def _reading(self) -> Deadline:
        """The deadline of a read that begins now."""
        return Deadline(self._read_timeout)

    def _writing(self) -> Deadline:
        """The deadline of a write that begins now."""
        return Deadline(self._write_timeout, WriteTimeout)

    def _now(self) -> int:
        return time_ms(self._clock())

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

    def _checked(self, keys: Iterable[object]) -> list[str]:
        return check.shared_keys(keys) if self._shared else [self._key(key) for key in keys]

    def _encode(self, key: str, value: object) -> tuple[bytes, str | None]:
        body, content_type = self._codec.encode(key, value)
        if type(body) is not bytes:
            if not isinstance(body, bytes):
                raise InvalidValue(f"the codec gave {type(body).__name__} for key {key!r}, not bytes")
            body = bytes(memoryview(body))  # not every engine takes a subclass
        if not self._codec.ours and not (check.is_content_type(content_type) and is_well_formed(body, content_type)):
            raise InvalidValue(
                f"the codec gave, for key {key!r}, a body that is not what its content type ({str(content_type)[:80]!a}) says, "
                "so that nobody could read it: None is for UTF-8 text; have the codec name a type of its own"
            )
        if type(content_type) is not str and content_type is not None:
            content_type = check.plain(content_type)
        if len(body) > MAX_VALUE:
            raise ValueTooLarge(f"the value of key {key!r} takes {len(body)} bytes, and {MAX_VALUE} are allowed")
        return body, content_type

    def _value(self, key: str, cell: Cell | None, default: Any, *, expired: bool = False) -> Any:
        """The value of a cell; ``default`` for none, or for one that has expired."""
        if cell is None:
            return default
        expires_ms = cell.expires_ms
        if expires_ms is not None and not expired and self._clock() * 1000 >= expires_ms:
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

    def _absent(self, key: str, default: Any) -> Any:
        """The answer for a key without a value, if it is one that could have one."""
        self._key(key)
        return default

    def _expired(self, cell: Cell) -> bool:
        return cell.expires_ms is not None and self._clock() * 1000 >= cell.expires_ms
