"""The fold of one key's stream: a table that begins anywhere in it is right, or says that it can't tell."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mqkv.codecs import BYTES, DEFAULT, JSON, TEXT, BoundCodec
from mqkv.fold import State, fold
from mqkv.logfmt import Log
from mqkv.record import Record, parse, to_message
from mqkv.streams.base import Delivery, HeaderValue, Message
from mqkv.table import Table

KEY = "k"
SKEWS = [0, -7 * 60_000, 90 * 60_000, None]  # one writer tells no time, as the gem does
MOST = 12  #: replicas that are kept
PLAIN = ("set", "delete")

writers, ttls = st.sampled_from(range(len(SKEWS))), st.none() | st.integers(0, 200_000) | st.integers(0, 20_000_000)
bodies = st.sampled_from([(b"text", TEXT), (b"\xff", BYTES), (b"7", None), (b"5", JSON), (b"1.5", JSON), (b"[1]", JSON)])


def new_table(*, whole: bool) -> Table:
    table = Table("stream", BoundCodec(DEFAULT), Log(None), whole=whole, key=KEY)
    table.serve(True)
    return table


class Late(State):
    """A state that began at a plain set or delete."""

    fooled = False  #: whether a record came that may be the second copy of one before it


class SingleStream(RuleBasedStateMachine):
    published = Bundle("published")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.offset, self.count = 10_000_000, -1, 0
        self.whole, self.state = new_table(whole=True), State(single=True)
        self.tables: list[Table] = []
        self.late: list[Late] = []

    def record(
        self,
        op: str,
        body: tuple[bytes, str | None] = (b"", None),
        ttl: int | None = None,
        writer: int = 0,
        args: dict[str, HeaderValue] | None = None,
    ) -> Record:
        self.count += 1
        skew = SKEWS[writer]
        written = None if skew is None else self.now + skew
        expires = None if ttl is None else self.now + (skew or 0) + ttl
        return Record(op, KEY, *body, expires_ms=expires, written_ms=written, id=f"{writer:016x}{self.count:x}", args=args or {})

    def append(self, message: Message, record: Record | None) -> None:
        self.offset += 1 + self.count % 3 // 2
        delivery: Delivery = self.offset, message
        if len(self.tables) < MOST or record is None or record.op in PLAIN:
            self.tables = [*self.tables[-MOST:], new_table(whole=False)]
        for table in (self.whole, *self.tables):
            table.deliver([delivery])
        if record is None:
            return
        record = parse(message, KEY)
        if record.op in PLAIN and not record.retry:
            self.late = [*self.late[-MOST:], Late(single=True)]
        fold(self.state, self.offset, record)
        for late in self.late:
            late.fooled = late.fooled or (record.retry and not late.knows(record.id))
            fold(late, self.offset, record)

    def publish(self, record: Record) -> Record:
        self.append(to_message(record, shared=False), record)
        return record

    @rule(ms=st.integers(0, 30_000) | st.integers(0, 4_000_000))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule(several=st.lists(writers, min_size=2, max_size=3, unique=True), minutes=st.integers(1, 12))
    def some_touch_every_minute(self, several: list[int], minutes: int) -> None:
        for _ in range(minutes):
            self.now += 61_000
            for writer in several:
                self.publish(self.record("touch", ttl=90_000, writer=writer))

    @rule(target=published, op=st.sampled_from(["set", "set", "add"]), body=bodies, ttl=ttls, writer=writers)
    def set_or_add(self, op: str, body: tuple[bytes, str | None], ttl: int | None, writer: int) -> Record:
        return self.publish(self.record(op, body, ttl, writer))

    @rule(target=published, op=st.sampled_from(["delete", "pop"]), writer=writers)
    def delete_or_pop(self, op: str, writer: int) -> Record:
        return self.publish(self.record(op, writer=writer))

    @rule(target=published, op=st.sampled_from(["compare_and_set", "delete_if"]), body=bodies, ttl=ttls, writer=writers)
    def on_a_revision(self, op: str, body: tuple[bytes, str | None], ttl: int | None, writer: int) -> Record:
        cell = self.state.cells.get(KEY)
        args: dict[str, HeaderValue] = {} if cell is None else {"revision": cell.revision}
        return self.publish(self.record(op, body, ttl, writer, args))

    @rule(target=published, initial=st.booleans(), ttl=ttls, writer=writers)
    def incr(self, initial: bool, ttl: int | None, writer: int) -> Record:
        args: dict[str, HeaderValue] = {"delta": 1, "initial": 0} if initial else {"delta": "0.5"}
        return self.publish(self.record("incr", ttl=ttl, writer=writer, args=args))

    @rule(target=published, ttl=ttls, writer=writers)
    def touch(self, ttl: int | None, writer: int) -> Record:
        return self.publish(self.record("touch", ttl=ttl, writer=writer))

    @rule(record=published)
    def a_second_copy(self, record: Record) -> None:
        cells = dict(self.state.cells)
        self.publish(record._replace(retry=True))
        assert dict(self.state.cells) == cells

    @rule(target=published, body=bodies, ttl=ttls, writer=writers)
    def a_first_copy_that_was_lost(self, body: tuple[bytes, str | None], ttl: int | None, writer: int) -> Record:
        return self.publish(self.record("set", body, ttl, writer)._replace(retry=True))

    @rule(headers=st.sampled_from([{"__mqkv_op__": "unheard-of"}, {"__mqkv_deleted__": "yes"}, {"__mqkv_op__": 5}]))
    def a_stranger(self, headers: dict[str, HeaderValue]) -> None:
        self.append(Message(b"", headers), None)

    @invariant()
    def a_table_that_is_determined_is_right(self) -> None:
        assert dict(self.whole.state.cells) == dict(self.state.cells)
        for table in self.tables:
            if table.determined:
                assert table.read(KEY) == self.whole.read(KEY)
                assert table.state.clock.ticks == self.whole.state.clock.ticks
                assert table.shown == self.whole.shown
            else:
                assert not table.shown, "what can't be told must not be shown"

    @invariant()
    def a_state_that_began_at_a_plain_record_agrees(self) -> None:
        for late in self.late:
            if not late.fooled:
                assert dict(late.cells) == dict(self.state.cells) and late.clock.ticks == self.state.clock.ticks


TestSingleStream = SingleStream.TestCase
TestSingleStream.settings = settings(stateful_step_count=40)


def test_what_makes_a_table_undetermined() -> None:
    first, second = Record("set", KEY, b"1", TEXT, id="a"), Record("set", KEY, b"2", TEXT, id="b")
    copy, touch = first._replace(retry=True), Record("touch", KEY, id="c")
    for log, determined in (
        ([second], True),
        ([Record("delete", KEY, id="d")], True),
        ([second, touch], True),
        ([first, second, copy], True),
        ([touch], False),
        ([touch, second], False),
        ([copy], False),
        ([second, copy], False),
        ([second, copy, second._replace(id="e")], False),
    ):
        table = new_table(whole=False)
        table.deliver([(offset, to_message(record, shared=False)) for offset, record in enumerate(log)])
        assert table.determined == determined, log
        assert bool(table.shown) == (determined and log[0].op == "set"), log
