"""The fold of a shared stream, by a state machine: writers whose clocks disagree, in any interleaving.

Every operation's outcome is that of a sequential model at its place in the log; replicas that begin with a copy of another one's
state, that are fed late, or that see records again, agree at equal offsets; what a table shows is what its state says.
"""

from __future__ import annotations

import copy
import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from fold_model import Answer, Model
from mqkv.batch import of_deletes, of_sets, pack
from mqkv.codecs import BYTES, DEFAULT, IMMUTABLE, JSON, TEXT, BoundCodec
from mqkv.fold import Outcome, State, fold
from mqkv.logfmt import Log
from mqkv.record import Record, parse, to_message
from mqkv.streams.base import Delivery, HeaderValue
from mqkv.table import Table

KEYS = ["a", "ab", "b", "ü"]
LOCKS = ["a", "m"]
SKEWS = [0, 0, -7 * 60_000, 90 * 60_000, None]  # one writer tells no time, as the gem does

keys, writers = st.sampled_from(KEYS), st.sampled_from(range(len(SKEWS)))
ttls = st.sampled_from([None, None, 0, 1_000, 60_000, 1_000_000]) | st.integers(0, 20_000_000)
bodies = st.sampled_from(
    [
        (b"text", TEXT),
        (b"\xff", BYTES),
        (b"7", None),
        (b"gem", None),
        (b"null", JSON),
        (b"true", JSON),
        (b"[1]", JSON),
        (b"{}", JSON),
    ]
    + [(str(n).encode(), JSON) for n in (0, 5, -3, 1.5, 1e308, 2**63 - 1, -(2**63))]
)
numbers = st.sampled_from([0, 1, -1, 2**62, -(2**63), "0.5", "-1e308", "1e308"])


def answer_of(outcome: Outcome | None, record: Record) -> Answer | None:
    if outcome is None:
        return None
    body = outcome.cell.body if outcome.cell is not None and record.op in ("incr", "pop") else None
    if record.op == "incr" and body is not None:
        body = json.dumps(json.loads(body)).encode()
    return Answer(outcome.found, outcome.done, body, len(outcome.hits), bool(outcome.why))


def same(one: State, other: State) -> bool:
    return (
        dict(one.cells) == dict(other.cells)
        and (one.locks, one.clock.ticks, one.settings, one.settled)
        == (other.locks, other.clock.ticks, other.settings, other.settled)
        and all(list(lock.queue) == list(other.locks[name].queue) for name, lock in one.locks.items())
    )


def new_table() -> Table:
    return Table("stream", BoundCodec(DEFAULT), Log(None))


class SharedStream(RuleBasedStateMachine):
    published, revisions, owners, heard = Bundle("published"), Bundle("revisions"), Bundle("owners"), Bundle("heard")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.offset, self.count, self.skews = 10_000_000, -1, 0, list(SKEWS)
        self.model, self.state, self.table, self.late = Model(), State(), new_table(), new_table()
        self.copies: list[State] = []
        self.undelivered: list[Delivery] = []

    def publish(
        self,
        op: str,
        key: str = "",
        body: tuple[bytes, str | None] = (b"", None),
        ttl: int | None = None,
        writer: int = 0,
        args: dict[str, HeaderValue] | None = None,
    ) -> tuple[int, Record]:
        self.count += 1
        skew = self.skews[writer]
        written = None if skew is None else max(self.now + skew, 0)
        expires = None if ttl is None else max(self.now + (skew or 0), 0) + ttl
        return self.append(
            Record(op, key, *body, expires_ms=expires, written_ms=written, id=self.new_id(writer), args=args or {})
        )

    def new_id(self, writer: int) -> str:
        return f"{writer:016x}{self.count:x}"

    def append(self, record: Record) -> tuple[int, Record]:
        self.offset += 1 + self.count % 3 // 2  # with gaps
        delivery = self.offset, to_message(record, shared=True)
        record = parse(delivery[1])
        before = {name: held.token for name, held in self.model.locks.items()}
        expected = self.model.apply(self.offset, record)
        outcome = fold(self.state, self.offset, record)
        assert answer_of(outcome, record) == expected, record
        for replica in self.copies:
            assert fold(replica, self.offset, record) == outcome
        if record.id is not None:
            self.table.expect(record.id, delivery[1], record)
        self.table.deliver([delivery])
        assert record.id is None or self.table.take(record.id) == outcome
        self.undelivered.append(delivery)
        for name, held in self.model.locks.items():
            assert held.token >= before.get(name, -1)
        return self.offset, record

    # Writers

    @initialize(limit=st.none() | st.integers(0, 4))
    def make(self, limit: int | None) -> None:
        self.publish("settings", args={} if limit is None else {"max_entries": limit})

    @rule(ms=st.sampled_from([1_000, 59_000, 60_000, 100_000, 1_000_000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule(target=revisions, op=st.sampled_from(["set", "set", "add"]), key=keys, body=bodies, ttl=ttls, writer=writers)
    def set_or_add(self, op: str, key: str, body: tuple[bytes, str | None], ttl: int | None, writer: int) -> int:
        return self.publish(op, key, body, ttl, writer)[0]

    @rule(target=published, op=st.sampled_from(["set", "add", "pop", "delete"]), key=keys, body=bodies, ttl=ttls, writer=writers)
    def write_that_is_kept(self, op: str, key: str, body: tuple[bytes, str | None], ttl: int | None, writer: int) -> Record:
        return self.publish(op, key, body if op in ("set", "add") else (b"", None), ttl, writer)[1]

    @rule(op=st.sampled_from(["delete", "pop"]), key=keys, writer=writers)
    def delete_or_pop(self, op: str, key: str, writer: int) -> None:
        self.publish(op, key, writer=writer)

    @rule(key=keys, revision=st.none() | revisions, current=st.booleans(), body=bodies, ttl=ttls, writer=writers)
    def compare_and_set(
        self, key: str, revision: int | None, current: bool, body: tuple[bytes, str | None], ttl: int | None, writer: int
    ) -> None:
        if current and key in self.model.entries:
            revision = self.model.entries[key].revision
        self.publish("compare_and_set", key, body, ttl, writer, {} if revision is None else {"revision": revision})

    @rule(key=keys, revision=st.none() | revisions, current=st.booleans(), writer=writers)
    def delete_if(self, key: str, revision: int | None, current: bool, writer: int) -> None:
        if current and key in self.model.entries:
            revision = self.model.entries[key].revision
        self.publish("delete_if", key, writer=writer, args={} if revision is None else {"revision": revision})

    @rule(target=published, key=keys, delta=numbers | st.just("NaN?"), initial=st.none() | numbers, ttl=ttls, writer=writers)
    def incr(self, key: str, delta: int | str, initial: int | str | None, ttl: int | None, writer: int) -> Record:
        args = {"delta": delta} if initial is None else {"delta": delta, "initial": initial}
        return self.publish("incr", key, ttl=ttl, writer=writer, args=args)[1]

    @rule(key=keys, ttl=ttls, writer=writers)
    def touch(self, key: str, ttl: int | None, writer: int) -> None:
        self.publish("touch", key, ttl=ttl, writer=writer)

    @rule(target=published, items=st.lists(st.tuples(keys, bodies), unique_by=lambda item: item[0]), ttl=ttls, writer=writers)
    def set_many(self, items: list[tuple[str, tuple[bytes, str | None]]], ttl: int | None, writer: int) -> Record:
        body = pack(of_sets((key, *body) for key, body in items or [("a", (b"1", JSON))]))
        return self.publish("set_many", body=(body, None), ttl=ttl, writer=writer)[1]

    @rule(several=st.lists(keys, unique=True), writer=writers)
    def delete_many(self, several: list[str], writer: int) -> None:
        self.publish("delete_many", body=(pack(of_deletes(several)), None), writer=writer)

    @rule(prefix=st.sampled_from(["", "a", "b", "zz"]), writer=writers)
    def clear(self, prefix: str, writer: int) -> None:
        self.publish("clear", writer=writer, args={"prefix": prefix} if prefix else {})

    @rule(limit=st.none() | st.integers(0, 4), change=st.booleans())
    def change_settings(self, limit: int | None, change: bool) -> None:
        self.publish("settings", args={"change": change} | ({} if limit is None else {"max_entries": limit}))

    @rule(op=st.sampled_from(["add", "touch", "pop", "delete"]), key=keys, ms=st.integers(-1, 0), writer=writers)
    def at_the_very_moment(self, op: str, key: str, ms: int, writer: int) -> None:
        """The millisecond at which a value expires, and the one before."""
        entry = self.model.entries.get(key)
        if entry is not None and entry.expires is not None:
            self.count += 1
            self.append(Record(op, key, written_ms=entry.expires + ms, id=self.new_id(writer)))

    @rule(writer=writers, ms=st.sampled_from([-(10**9), -400_000, 70_000, 10**11]))
    def a_clock_is_set(self, writer: int, ms: int) -> None:
        skew = self.skews[writer]
        self.skews[writer] = None if skew is None else skew + ms

    @rule(several=st.lists(writers, min_size=2, max_size=3, unique=True), minutes=st.integers(1, 12))
    def some_write_every_minute(self, several: list[int], minutes: int) -> None:
        for _ in range(minutes):
            self.now += 61_000
            for writer in several:
                self.publish("delete_many", body=(pack(of_deletes(["z"])), None), writer=writer)

    @rule(writer=writers)
    def sync(self, writer: int) -> None:
        self.publish("sync", writer=writer)

    @rule(record=published, writer=writers)
    def a_second_copy(self, record: Record, writer: int) -> None:
        answer = self.model.apply(self.offset + 9, record)
        assert answer is None
        self.append(record._replace(retry=True))

    @rule(target=published, key=keys, body=bodies, ttl=ttls)
    def a_first_copy_that_was_lost(self, key: str, body: tuple[bytes, str | None], ttl: int | None) -> Record:
        self.count += 1
        expires = None if ttl is None else self.now + ttl
        record = Record("set", key, *body, expires_ms=expires, written_ms=self.now, id=self.new_id(0), retry=True)
        return self.append(record)[1]

    # Locks

    @rule(target=owners, name=st.sampled_from(LOCKS), wait=st.booleans(), ttl=st.integers(1, 90_000), writer=writers)
    def lock(self, name: str, wait: bool, ttl: int, writer: int) -> tuple[str, str]:
        args: dict[str, HeaderValue] = {"ttl_ms": ttl, "wait": True} if wait else {"ttl_ms": ttl}
        owner = self.publish("lock", name, writer=writer, args=args)[1].id
        assert owner is not None
        return name, owner

    @rule(one=owners, another=owners)
    def renew(self, one: tuple[str, str], another: tuple[str, str]) -> None:
        batch = of_sets((name, owner.encode(), None) for name, owner in dict([one, another]).items())
        self.publish("renew", body=(pack(batch), None))

    @rule(name=st.sampled_from(LOCKS), waiters=st.integers(2, 3))
    def several_ask_and_the_holder_leaves(self, name: str, waiters: int) -> None:
        for _ in range(waiters):
            self.lock(name, wait=True, ttl=1_000, writer=0)
        self.unlock((name, self.model.locks[name].owners[0][0]))

    @rule(place=owners)
    def unlock(self, place: tuple[str, str]) -> None:
        self.publish("unlock", place[0], args={"owner": place[1]})

    @rule(target=heard, name=st.sampled_from(LOCKS))
    def hear(self, name: str) -> tuple[str, str, int]:
        held = self.model.locks.get(name)
        return (name, "nobody", 0) if held is None else (name, held.owners[0][0], held.renewed)

    @rule(what=consumes(heard))
    def break_what_was_heard(self, what: tuple[str, str, int]) -> None:
        name, owner, renewed = what
        self.publish("break", name, args={"owner": owner, "renewed": renewed})

    # Replicas

    @precondition(lambda self: len(self.copies) < 3)
    @rule()
    def a_replica_begins_with_a_copy(self) -> None:
        self.copies.append(copy.deepcopy(self.state))

    @precondition(lambda self: self.copies)
    @rule(record=published, again=st.booleans())
    def one_replica_drops_and_hears_twice(self, record: Record, again: bool) -> None:
        replica = self.copies[0]
        replica.drop_ended()
        if again:
            assert fold(replica, self.offset, record._replace(retry=True)) is None

    @rule()
    def catch_up(self) -> None:
        self.late.deliver(self.undelivered)
        self.undelivered = []
        assert same(self.late.state, self.state) and self.late.shown == self.table.shown
        assert self.late.position == self.table.position

    # What holds all the time

    @invariant()
    def cells_are_the_models(self) -> None:
        cells = {key: (cell.revision, cell.expires_ms, cell.content_type) for key, cell in self.state.cells.items()}
        assert cells == {key: (e.revision, e.expires, e.content_type) for key, e in self.model.entries.items()}
        for key, entry in self.model.entries.items():
            body = self.state.cells[key].body
            assert body == entry.body or (entry.content_type == JSON and json.loads(body) == json.loads(entry.body))
        assert self.state.clock.ticks == self.model.clock.ticks and self.state.settings.max_entries == self.model.limit

    @invariant()
    def locks_are_the_models(self) -> None:
        locks = {
            name: ([(lock.holder.owner, lock.holder.ttl_ms), *lock.queue.items()], lock.holder.token, lock.holder.renewed)
            for name, lock in self.state.locks.items()
        }
        assert locks == {name: (held.owners, held.token, held.renewed) for name, held in self.model.locks.items()}
        granted = self.model.granted
        assert len({owner for _, owner, _ in granted}) == len(granted), "an owner was granted a lock twice"
        assert [token for *_, token in granted] == sorted({token for *_, token in granted}), "tokens rise"

    @invariant()
    def replicas_agree(self) -> None:
        assert same(self.state, self.table.state)
        for replica in self.copies:
            assert same(self.state, replica)

    @invariant()
    def what_is_shown_is_what_is_known(self) -> None:
        shown = {}
        for key, cell in self.state.cells.items():
            value = DEFAULT.decode(cell.body, cell.content_type)
            if type(value) in IMMUTABLE:
                shown[key] = (value, None if cell.expires_ms is None else cell.expires_ms / 1000)
        assert self.table.shown == shown
        ready, cells = self.table.read_many(KEYS)
        assert ready == shown and cells == {key: cell for key, cell in self.state.cells.items() if key not in shown}
        assert self.table.snapshot() == dict(self.state.cells)


TestSharedStream = SharedStream.TestCase
TestSharedStream.settings = settings(stateful_step_count=40)
