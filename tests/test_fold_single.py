"""The fold of one key's stream: a table that begins anywhere in it is right, or says that it can't tell."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mqkv.anchor import Anchor, anchor
from mqkv.codecs import BYTES, DEFAULT, JSON, TEXT, BoundCodec
from mqkv.fold import Cell, State, fold
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
        self.beheaded: list[Table] = []  #: that began where a log begins whose older records are gone
        self.places: list[Anchor] = []
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
        self.beheaded = [*self.beheaded[-MOST // 2 :], new_table(whole=True)]
        self.beheaded[-1].truncated()
        for table in (self.whole, *self.tables, *self.beheaded):
            table.deliver([delivery])
        place = self.whole.place()
        assert place is not None
        self.places.append(place)
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

    @rule(lags=st.lists(st.integers(1, 4), min_size=1, max_size=2), writer=writers)
    def anchors(self, lags: list[int], writer: int) -> None:
        """By a writer that has read all but the last few records, or all."""
        for lag in lags:
            if self.places:
                self.count += 1
                place = self.places[-min(lag, len(self.places))]
                self.publish(anchor(KEY, place, self.now, f"{writer:016x}{self.count:x}"))

    @rule(headers=st.sampled_from([{"__mqkv_op__": "unheard-of"}, {"__mqkv_deleted__": "yes"}, {"__mqkv_op__": 5}]))
    def a_stranger(self, headers: dict[str, HeaderValue]) -> None:
        self.append(Message(b"", headers), None)

    @invariant()
    def a_table_that_is_determined_is_right(self) -> None:
        assert dict(self.whole.state.cells) == dict(self.state.cells)
        for table in self.tables:
            if table.determined:
                assert table.read(KEY) == self.whole.read(KEY)
                assert table.shown == self.whole.shown
            else:
                assert not table.shown, "what can't be told must not be shown"

    @invariant()
    def a_table_of_a_beheaded_log_is_right_or_knows_nothing(self) -> None:
        for table in self.beheaded:
            assert table.position == self.whole.position
            if table.determined:
                assert table.read(KEY) == self.whole.read(KEY) and table.shown == self.whole.shown
            else:
                assert not table.shown and table.place() is None

    @invariant()
    def a_state_that_began_at_a_plain_record_agrees(self) -> None:
        for late in self.late:
            if not late.fooled:
                assert dict(late.cells) == dict(self.state.cells)


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


def test_where_a_beheaded_table_begins_to_know() -> None:
    first, incr = Record("set", KEY, b"1", JSON, id="a"), Record("incr", KEY, args={"delta": 1}, id="b")
    log = [first, incr, incr._replace(id="c")]  # at 0, 1, 2: the value is 3
    two = Cell(b"2", JSON, None, 1, None, None)
    told = anchor(KEY, Anchor(1, two), 5, "d")  # at 3, by one who had not seen the record at 2
    again = anchor(KEY, Anchor(3, two._replace(body=b"3", revision=2)), 5, "e")
    log += [told, again, incr._replace(id="f")]
    for begin, knows_at, value in ((0, 0, b"4"), (1, 3, b"4"), (2, 4, b"4"), (3, 4, b"4"), (4, 4, b"4"), (5, None, None)):
        table, whole = new_table(whole=True), new_table(whole=True)
        if begin:
            table.truncated()
        known = None
        for offset, record in enumerate(log):
            whole.deliver([(offset, to_message(record, shared=False))])
            if offset >= begin:
                table.deliver([(offset, to_message(record, shared=False))])
                if known is None and table.determined:
                    known = offset
                assert not table.determined or table.read(KEY) == whole.read(KEY)
        cell = table.read(KEY)
        assert (known, cell.body if table.determined and cell else None) == (knows_at, value), begin


def test_anchors_are_no_news_and_malformed_ones_nothing() -> None:
    table, events = new_table(whole=True), []
    table.subscribe(events.append)
    table.deliver([(0, to_message(Record("set", KEY, b"1", JSON, id="a"), shared=False))])
    place = table.place()
    assert place is not None
    table.deliver([(1, to_message(anchor(KEY, place, 5, "b"), shared=False))])
    malformed: list[dict[str, HeaderValue]] = [{}, {"after": "1"}, {"after": -1}]
    malformed += [{"after": 1, "revision": 2}, {"after": 1, "revision": "0"}]
    for number, args in enumerate(malformed):
        record = Record("state", KEY, b"9", JSON, args=args, id=f"m{number}")
        table.deliver([(number + 2, to_message(record, shared=False))])
    assert [event[0] for event in events] == ["set"] and table.unreadable == 5
    cell = table.read(KEY)
    assert cell is not None and (cell.body, cell.revision) == (b"1", 0)
