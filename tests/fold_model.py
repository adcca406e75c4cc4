"""The fold once more, sequential and slow: everything is looked at each time, nothing is shared with ``mqkv.fold``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from mqkv.record import Record

Number = int | float


@dataclass
class Entry:
    body: bytes
    content_type: str | None
    revision: int
    expires: int | None
    written: int | None
    ends: int | None = None  #: the tick by which it is gone for everybody
    order: int = 0  #: when it was written, among all writes
    born: int = 0  #: when its key came to be


@dataclass
class SlowClock:
    """The log clock, from all that was told since its last tick."""

    ticks: int = 0
    told: list[tuple[str, int]] = field(default_factory=list)

    def hear(self, record: Record) -> None:
        if record.id is None or record.written_ms is None:
            return
        self.told.append((record.id[:16], record.written_ms))
        begun: dict[str, int] = {}
        grown: list[str] = []
        for writer, time in self.told:
            if writer not in begun or time < begun[writer] - 60_000:
                begun[writer] = time
            elif time - begun[writer] >= 60_000:
                grown.append(writer)
        if len(set(grown)) > 1 or len(grown) > 100:
            self.ticks, self.told = self.ticks + 1, self.told[-1:]


class Answer(NamedTuple):
    """What a caller may learn of an operation."""

    found: bool
    done: bool = True
    body: bytes | None = None
    hits: int = 0
    refused: bool = False


@dataclass
class Held:
    """Owners with their ttl; the first holds the lock."""

    owners: list[tuple[str, int]]
    token: int
    renewed: int


@dataclass
class Model:
    entries: dict[str, Entry] = field(default_factory=dict)
    locks: dict[str, Held] = field(default_factory=dict)
    granted: list[tuple[str, str, int]] = field(default_factory=list)  #: lock, owner, token, in the order of the grants
    clock: SlowClock = field(default_factory=SlowClock)
    limit: int | None = None
    settled: bool = False
    seen: set[str] = field(default_factory=set)
    writes: int = 0

    def apply(self, offset: int, record: Record) -> Answer | None:
        if record.id is not None:
            if record.id in self.seen:
                return None
            self.seen.add(record.id)
        self.clock.hear(record)
        self._drop()
        answer: Answer | None = getattr(self, "_" + record.op)(offset, record)
        self._evict()
        return answer

    def _drop(self) -> None:
        self.entries = {key: entry for key, entry in self.entries.items() if entry.ends is None or entry.ends > self.clock.ticks}

    def _evict(self) -> None:
        while self.limit is not None and len(self.entries) > self.limit:
            del self.entries[min(self.entries, key=lambda key: self.entries[key].order)]

    def _alive(self, key: str, record: Record) -> Entry | None:
        entry = self.entries.get(key)
        if entry is None or entry.expires is None or record.written_ms is None:
            return entry
        return None if record.written_ms >= entry.expires else entry

    def _write(self, key: str, entry: Entry, before: Entry | None = None) -> None:
        self.writes += 1
        entry.order = self.writes
        entry.born = self.entries[key].born if key in self.entries else self.writes
        if before is not None:  # another value, and the same length of life
            entry.ends = before.ends
        elif entry.expires is not None and entry.written is not None:
            ttl = max(entry.expires - entry.written, 0)
            entry.ends = self.clock.ticks + 1 + math.ceil((ttl + max(60_000, ttl // 10)) / 60_000)
        self.entries[key] = entry
        self._evict()

    def _set(self, offset: int, record: Record) -> Answer:
        found = self._alive(record.key, record) is not None
        self._write(record.key, Entry(record.body, record.content_type, offset, record.expires_ms, record.written_ms))
        return Answer(found)

    def _delete(self, offset: int, record: Record) -> Answer:
        found = self._alive(record.key, record) is not None
        self.entries.pop(record.key, None)
        return Answer(found, done=found)

    def _add(self, offset: int, record: Record) -> Answer:
        return Answer(True, done=False) if self._alive(record.key, record) else self._set(offset, record)

    def _compare_and_set(self, offset: int, record: Record) -> Answer:
        entry = self._alive(record.key, record)
        if (entry.revision if entry else None) != record.args.get("revision"):
            return Answer(entry is not None, done=False)
        return self._set(offset, record)

    def _delete_if(self, offset: int, record: Record) -> Answer | None:
        if "revision" not in record.args:
            return None
        entry = self._alive(record.key, record)
        if entry is None or entry.revision != record.args["revision"]:
            return Answer(entry is not None, done=False)
        return self._delete(offset, record)

    def _incr(self, offset: int, record: Record) -> Answer | None:
        delta, initial = _of_header(record.args.get("delta")), record.args.get("initial")
        if delta is None:
            return None
        entry, expires = self._alive(record.key, record), record.expires_ms
        if entry is not None:
            before, expires = _number(entry), entry.expires
            if before is None:
                return Answer(True, done=False, refused=True)
        elif initial is None:
            return Answer(False, done=False)
        else:
            before = _of_header(initial)
            assert before is not None
        total = before + delta
        if not -(2**63) <= total < 2**63 if isinstance(total, int) else not math.isfinite(total):
            return Answer(entry is not None, done=False, refused=True)
        body = json.dumps(total).encode()
        self._write(record.key, Entry(body, "application/json", offset, expires, record.written_ms), entry)
        return Answer(entry is not None, body=body)

    def _touch(self, offset: int, record: Record) -> Answer:
        entry = self._alive(record.key, record)
        if entry is None:
            return Answer(False, done=False)
        self._write(record.key, Entry(entry.body, entry.content_type, offset, record.expires_ms, record.written_ms))
        return Answer(True)

    def _pop(self, offset: int, record: Record) -> Answer:
        entry = self._alive(record.key, record)
        self.entries.pop(record.key, None)
        return Answer(False, done=False) if entry is None else Answer(True, body=entry.body)

    def _set_many(self, offset: int, record: Record) -> Answer:
        assert record.batch is not None
        for key, body, content_type in record.batch.items():
            self._write(key, Entry(body, content_type, offset, record.expires_ms, record.written_ms))
        return Answer(False)

    def _delete_many(self, offset: int, record: Record) -> Answer:
        assert record.batch is not None
        hits = sum(self._alive(key, record) is not None for key in record.batch.keys)
        for key in record.batch.keys:
            self.entries.pop(key, None)
        return Answer(False, hits=hits)

    def _clear(self, offset: int, record: Record) -> Answer:
        prefix = str(record.args.get("prefix", ""))
        self.entries = {key: entry for key, entry in self.entries.items() if not key.startswith(prefix)}
        return Answer(False)

    def _sync(self, offset: int, record: Record) -> Answer:
        return Answer(False)

    def _settings(self, offset: int, record: Record) -> Answer:
        if self.settled and record.args.get("change") is not True:
            return Answer(False, done=False)
        self.settled, limit = True, record.args.get("max_entries")
        if limit is not None:
            self.limit = int(limit) or None
        # Keys of one batch are of one age. Which of them a new limit hits first is not promised, but is the same everywhere: the
        # key that came to be first.
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.revision, entry.born)):
            self.writes += 1
            entry.order = self.writes
            if self.limit is not None:
                entry.born = self.writes
        return Answer(False)

    def _lock(self, offset: int, record: Record) -> Answer | None:
        ttl = record.args.get("ttl_ms")
        if not isinstance(ttl, int) or record.id is None:
            return None
        if record.key not in self.locks:
            self._grant(offset, record.key, [(record.id, ttl)])
            return Answer(False)
        if record.args.get("wait"):
            self.locks[record.key].owners.append((record.id, ttl))
        return Answer(False, done=False)

    def _unlock(self, offset: int, record: Record) -> Answer:
        held, owner = self.locks.get(record.key), record.args["owner"]
        place = [name for name, _ in held.owners].index(owner) if held and owner in dict(held.owners) else None
        if held is None or place is None:
            self.seen.add(str(owner))
            return Answer(False, done=False)
        if place == 0:
            self._grant(offset, record.key, held.owners[1:])
        else:
            del held.owners[place]
        return Answer(False)

    def _renew(self, offset: int, record: Record) -> Answer:
        assert record.batch is not None
        alive = False
        for name, owner, _ in record.batch.items():
            held = self.locks.get(name)
            if held is not None and held.owners[0][0] == owner.decode():
                held.renewed = offset
                alive = True
        return Answer(False, done=alive)

    def _break(self, offset: int, record: Record) -> Answer:
        held = self.locks.get(record.key)
        if held is None or held.owners[0][0] != record.args["owner"] or held.renewed != record.args["renewed"]:
            return Answer(False, done=False)
        self._grant(offset, record.key, held.owners[1:])
        return Answer(False)

    def _grant(self, offset: int, name: str, owners: list[tuple[str, int]]) -> None:
        if not owners:
            del self.locks[name]
            return
        self.locks[name] = Held(owners, offset, offset)
        self.granted.append((name, owners[0][0], offset))


def _number(entry: Entry) -> Number | None:
    text = entry.body.decode("utf-8", "replace")
    if entry.content_type is None:
        digits = text[1:] if text.startswith("-") else text
        return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 19 else None
    value = json.loads(text) if entry.content_type == "application/json" else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _of_header(value: object) -> Number | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return value if isinstance(value, int) else float(value)
    except ValueError:
        return None
