"""What a store writes; see ``core``."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mqkv import check, number
from mqkv.batch import MOST_TYPES, Batch, of_deletes, of_sets, pack
from mqkv.core import ABSENT, MAX_VALUE
from mqkv.errors import (
    Closed,
    Error,
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
from mqkv.reads import Reads
from mqkv.record import Record
from mqkv.streams.base import HeaderValue
from mqkv.view import Rebuilding
from mqkv.waiting import Deadline, wait


class Verbs(Reads):
    """All verbs: those of :class:`mqkv.reads.Reads`, and those that write."""

    async def _set(self, key: str, value: object, ttl: float | None) -> int:
        record, max_age = self._valued("set", key, value, ttl)
        revision, _ = await self._open_keyspace().write(record, self._writing(), confirm=self._confirm, max_age=max_age)
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
        key, deadline = self._key(key), self._writing()
        cell = await self._look(key, deadline)
        value = ABSENT
        if cell is not None and not self._expired(cell):
            value = self._taken(key, cell)
            if value is ABSENT:  # it can't be read, and so counts as absent: not ours to take
                return _or_default(key, default)
        record = Record("pop", key, written_ms=self._now(), id=new_id())
        taken = (await self._decide(record, deadline, create=False)).cell
        if taken is None:
            return _or_default(key, default)
        if cell is not None and taken.revision == cell.revision and value is not ABSENT:
            return value
        try:
            value = self._taken(key, taken)
        except Exception:
            await self._put_back(key, taken)
            raise
        if value is ABSENT:
            await self._put_back(key, taken)
        return _or_default(key, default) if value is ABSENT else value

    async def _look(self, key: str, deadline: Deadline) -> Cell | None:
        """What a key has as far as is known before a write to it, which needs the same table; the log may know more."""
        keyspace = self._open_keyspace()
        try:
            table = await keyspace.live(key, deadline, create=False)
            if keyspace.signal[0] != keyspace.seen:
                keyspace.catch_up()
            return table.read(key)
        except (StreamMissing, Rebuilding):
            return None
        except Closed:
            if keyspace.closed:
                raise
            return None  # deleted under us

    def _taken(self, key: str, cell: Cell) -> Any:
        """The value that a ``pop`` takes."""
        try:
            return self._value(key, cell, ABSENT, expired=True)
        except UnreadableValue as error:
            raise UnreadableValue(f"the value of key {key!r} can't be read, and stays: {error}") from error

    async def _put_back(self, key: str, cell: Cell) -> None:
        """Undo a ``pop`` that took what can't be read: it was written between the look and the ``pop``. Where another has set
        the key since, theirs counts."""
        if self._expired(cell):
            return
        body, content_type, content_encoding, _, expires_ms, *_ = cell
        record = Record("add", key, body, content_type, content_encoding, expires_ms, self._now(), new_id())
        try:
            await self._decide(record, create=False)
        except Error as error:
            raise OutcomeUnknown(
                f"pop of key {key!r} took a value that can't be read, and it could not be put back for sure: read, and decide"
            ) from error

    async def _popitem(self) -> tuple[str, Any]:
        keyspace, tried = self._open_keyspace(), set[tuple[str, int]]()
        while (newest := await keyspace.newest(self._clock() * 1000, tried, self._reading())) is not None:
            key, cell = newest
            tried.add((key, cell.revision))
            with contextlib.suppress(KeyNotFound):  # somebody was quicker: another key, then
                return key, await self._pop(key, ABSENT)
        raise KeyNotFound("no key has a value")

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
            _, outcome = await keyspace.write(record, self._writing(), confirm=self._confirm, create=False)
        except StreamMissing:
            return False
        if self._log.debugging:
            self._log.debug("delete", key=key)
        if outcome is not None:
            return outcome.found
        if self._confirm:
            raise OutcomeUnknown(f"the log was rewritten while delete of key {key!r} was under way: read, and decide")
        return known

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
        encode = self._encode
        encoded = [(key, *encode(key, value)) for key, value in zip(self._checked(mapping), mapping.values(), strict=True)]
        if not encoded:
            return
        if not self._codec.ours and len({kind for _, _, kind in encoded}) > MOST_TYPES:
            raise InvalidValue(f"the codec gave more than {MOST_TYPES} content types for one batch: split it")
        keyspace = self._open_keyspace()
        if self._shared and self._pack:
            record = self._packed("set_many", of_sets(encoded))._replace(expires_ms=expires_ms, written_ms=now)
            await keyspace.write(record, self._writing(), confirm=self._confirm)
        else:
            records = [Record("set", key, body, kind, None, expires_ms, now, new_id()) for key, body, kind in encoded]
            await keyspace.write_all(records, self._writing(), confirm=self._confirm, max_age=max_age)
        if self._log.debugging:
            self._log.debug("set_many", keys=len(encoded), ttl=ttl)

    async def _delete_many(self, keys: Iterable[str]) -> int:
        wanted = list(dict.fromkeys(self._checked(keys)))
        if not wanted:
            return 0
        keyspace = self._open_keyspace()
        known = sum(keyspace.peek(key) is not None for key in wanted)
        if self._shared and self._pack:
            record = self._packed("delete_many", of_deletes(wanted))
            try:
                _, outcome = await keyspace.write(record, self._writing(), confirm=self._confirm, create=False)
            except StreamMissing:
                return 0
            if outcome is not None:
                return len(outcome.hits)
            if self._confirm:
                raise OutcomeUnknown(
                    f"the log was rewritten while delete_many of {len(wanted)} keys was under way: read, and decide"
                )
            return known
        now = self._now()
        records = [Record("delete", key, written_ms=now, id=new_id()) for key in wanted]
        outcomes = await keyspace.write_all(records, self._writing(), confirm=self._confirm, create=False)
        return sum(outcome is not None and outcome.found for outcome in outcomes) if self._confirm else known

    async def _clear(self, prefix: str) -> None:
        args: dict[str, HeaderValue] = {"prefix": check.key_text(prefix, "prefix")} if prefix != "" else {}
        record = Record("clear", "", written_ms=self._now(), id=new_id(), args=args)
        await self._open_keyspace().clear(record, self._writing())
        self._log.debug("clear")

    async def _sync(self) -> None:
        await self._open_keyspace().sync(self._reading())

    async def _purge(self) -> None:
        await self._open_keyspace().purge(self._writing())
        self._log(logging.INFO, "purge", prefix=self._prefix)

    async def _flush(self, timeout: float | None) -> None:
        timeout = self._write_timeout if timeout is None else timeout
        if not await wait(self._open_keyspace().unconfirmed.settled(), timeout):
            raise WriteTimeout(f"unconfirmed writes were still under way after {timeout:g} s")

    # Records

    async def _decide(
        self, record: Record, deadline: Deadline | None = None, *, max_age: int | None = None, create: bool = True
    ) -> Outcome:
        """Append a conditional operation, and learn how it was decided at its place in the log."""
        deadline = deadline or self._writing()
        try:
            _, outcome = await self._open_keyspace().write(record, deadline, confirm=True, max_age=max_age, create=create)
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


def _or_default(key: str, default: Any) -> Any:
    if default is ABSENT:
        raise KeyNotFound(f"key {key!r} has no value")
    return default


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
