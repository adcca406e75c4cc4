"""The fold: against a model, and the same in every replica."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from fold_model import SlowClock
from mqkv.fold import OPERATIONS, Settings, State, fold
from mqkv.record import Record

KEYS = ["a", "b", "c", "d"]


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[int, Record]]:
    """A log: writers whose clocks are off by minutes, offsets with gaps, repeats."""
    log: list[tuple[int, Record]] = []
    offset, true_ms = 0, 1_000_000
    skews = draw(st.lists(st.integers(-300_000, 300_000), min_size=1, max_size=3))
    for number in range(draw(st.integers(0, 40))):
        offset += draw(st.integers(1, 3))
        true_ms += draw(st.integers(0, 60_000))
        writer = draw(st.integers(0, len(skews) - 1))
        now = true_ms + skews[writer]
        op = draw(st.sampled_from(["set", "set", "set", "delete", "clear", "sync", "settings", "unheard-of"]))
        id = f"{writer:016x}{number:x}"
        record = Record(op, draw(st.sampled_from(KEYS)) if op in ("set", "delete") else "", written_ms=now, id=id)
        if op == "set":
            ttl = draw(st.none() | st.integers(1, 200_000))
            record = record._replace(body=str(number).encode(), expires_ms=None if ttl is None else now + ttl)
        if op == "settings":
            bound = draw(st.sampled_from([None, 0, 2, 3]))
            args: dict[str, int | bool] = {"change": draw(st.booleans())} | ({} if bound is None else {"max_entries": bound})
            record = record._replace(args=args)
        if log and draw(st.integers(0, 9)) == 0:
            record = log[draw(st.integers(0, len(log) - 1))][1]._replace(retry=True)
        log.append((offset, record))
    return log


@dataclass
class Model:
    """The same semantics, written naively: a list in the order of writes, everything looked at each time."""

    entries: list[tuple[str, bytes, int | None, int, int]] = field(default_factory=list)  # key, body, expiry, ends, revision
    clock: SlowClock = field(default_factory=SlowClock)
    bound: int | None = None
    settled: bool = False
    seen: set[str] = field(default_factory=set)

    def apply(self, offset: int, record: Record) -> bool | None:
        if record.op not in OPERATIONS or record.id in self.seen:
            return None
        assert record.id is not None and record.written_ms is not None
        self.seen.add(record.id)
        self.clock.hear(record)
        self.entries = [entry for entry in self.entries if entry[2] is None or entry[3] > self.clock.ticks]
        found = any(e[0] == record.key and (e[2] is None or record.written_ms < e[2]) for e in self.entries)
        if record.op in ("set", "delete"):
            self.entries = [entry for entry in self.entries if entry[0] != record.key]
        if record.op == "clear":
            self.entries = []
        if record.op == "set":
            expires = record.expires_ms
            ttl = 0 if expires is None else expires - record.written_ms
            ends = self.clock.ticks + 1 + math.ceil((ttl + max(60_000, ttl // 10)) / 60_000)
            self.entries.append((record.key, record.body, expires, ends, offset))
        if record.op == "settings" and (not self.settled or record.args.get("change") is True):
            self.settled, self.bound = True, record.args.get("max_entries", self.bound or 0) or None  # type: ignore[assignment]
        if self.bound is not None:
            self.entries = self.entries[-self.bound :]
        return found


@given(logs())
def test_the_fold_is_the_model(log: list[tuple[int, Record]]) -> None:
    state, model = State(), Model()
    for offset, record in log:
        outcome, found = fold(state, offset, record), model.apply(offset, record)
        assert (outcome is None) == (found is None)
        if outcome is not None and record.op in ("set", "delete"):
            assert outcome.found == found
        expected = {key: (body, revision) for key, body, _, _, revision in model.entries}
        assert {key: (cell.body, cell.revision) for key, cell in state.cells.items()} == expected
        assert state.clock.ticks == model.clock.ticks


@given(logs(), st.data())
def test_replicas_are_equal(log: list[tuple[int, Record]], data: st.DataObject) -> None:
    """Repeats that follow at once, as after a lost answer, change nothing."""
    plain, repeated = State(), State()
    for offset, record in log:
        fold(plain, offset, record)
        fold(repeated, offset, record)
        if record.op in OPERATIONS and data.draw(st.booleans()):
            assert fold(repeated, offset, record._replace(retry=True)) is None
    assert dict(plain.cells) == dict(repeated.cells) and plain.settings == repeated.settings
    assert plain.clock.ticks == repeated.clock.ticks


def test_ids_are_remembered_for_a_number_of_records() -> None:
    state = State()
    state.bound(Settings(id_window=3))
    write = Record("set", "k", b"1", id="one")
    assert fold(state, 0, write) is not None
    for offset in range(1, 3):
        assert fold(state, offset, Record("sync", "", id=f"s{offset}")) is not None
    assert fold(state, 3, write) is None
    assert fold(state, 4, Record("sync", "", id="s4")) is not None
    assert fold(state, 5, write) is not None, "a copy that comes after the window is a new record, in every process alike"


def test_an_operation_judges_expiry_by_its_own_time() -> None:
    state = State()
    fold(state, 0, Record("set", "k", b"v", expires_ms=2_000, written_ms=1_000, id="a"))
    early, late = Record("delete", "k", written_ms=1_999, id="b"), Record("delete", "k", written_ms=2_000, id="c")
    assert state.live("k", early) is not None and state.live("k", late) is None
    outcome = fold(state, 1, late)
    assert outcome is not None and not outcome.found


def minutes_pass(state: State, offset: int, minutes: int, *, begin_ms: int = 0, writers: tuple[str, ...] = ("A", "B")) -> int:
    """Writers that each write once in a minute."""
    for minute in range(minutes + 1):
        for writer in writers:
            offset += 1
            moment = begin_ms + minute * 60_000
            fold(state, offset, Record("delete", "nothing", written_ms=moment, id=f"{writer * 16}{offset:x}"))
    return offset


def test_what_is_expired_is_dropped_once_its_time_has_passed_for_those_who_write() -> None:
    state = State()
    fold(state, 0, Record("set", "short", b"v", expires_ms=2_000, written_ms=1_000, id="a"))
    fold(state, 1, Record("set", "long", b"v", expires_ms=1_001_000, written_ms=1_000, id="b"))
    offset = minutes_pass(state, 2, 2)
    assert set(state.cells) == {"short", "long"}
    offset = minutes_pass(state, offset, 3, begin_ms=180_000)
    assert set(state.cells) == {"long"} and state.removed == ["short"]
    offset = minutes_pass(state, offset, 13, begin_ms=420_000)
    assert set(state.cells) == {"long"}
    minutes_pass(state, offset, 20, begin_ms=1_260_000)
    assert not state.cells


def test_one_writer_moves_the_log_clock_alone_if_nobody_else_writes_and_slowly() -> None:
    state = State()
    fold(state, 0, Record("set", "k", b"v", expires_ms=2_000, written_ms=1_000, id="a"))
    offset = 0
    for minute in range(400):
        offset += 1
        fold(state, offset, Record("delete", "nothing", written_ms=minute * 60_000, id=f"{'A' * 16}{offset:x}"))
        if "k" not in state.cells:
            break
    assert 300 < offset < 310


def test_eviction_is_in_the_order_of_writes() -> None:
    state = State()
    fold(state, 0, Record("settings", "", args={"max_entries": 2}, id="s"))
    for offset, key in enumerate(["a", "b", "a", "c"], 1):
        fold(state, offset, Record("set", key, id=f"i{offset}"))
    assert list(state.cells) == ["a", "c"] and state.removed == ["b"]
    fold(state, 9, Record("settings", "", args={"max_entries": 9}, id="late"))
    assert state.settings.max_entries == 2, "only the first settings count, unless a change is meant"
    fold(state, 10, Record("settings", "", args={"max_entries": 1, "change": True}, id="change"))
    assert list(state.cells) == ["c"]


def test_a_number_too_long_for_a_float_stops_no_fold() -> None:
    state = State()
    fold(state, 0, Record("set", "k", b"1" + b"0" * 400, "application/json", id="a"))
    outcome = fold(state, 1, Record("incr", "k", args={"delta": "1.5"}, id="b"))
    assert outcome is not None and not outcome.done and outcome.why == "is not a number"
    assert fold(state, 2, Record("incr", "k", args={"delta": 10**400}, id="c")) is None


def test_what_expired_before_it_was_written_by_other_clocks_stays_until_the_log_clock_says_so() -> None:
    state = State()
    fold(state, 0, Record("set", "k", id="a", written_ms=10**12))
    fold(state, 1, Record("set", "late", id="b", written_ms=1_000, expires_ms=2_000))
    assert list(state.cells) == ["k", "late"]


def test_a_counter_keeps_the_length_of_its_life_whatever_the_clock_of_who_counts() -> None:
    state = State()
    fold(state, 0, Record("set", "n", b"1", "application/json", expires_ms=1_000_000, written_ms=100_000, id="a"))
    ends_at = state.cells["n"].ends_at
    for offset, skew in enumerate((-90_000_000, 899_999), 1):
        fold(state, offset, Record("incr", "n", args={"delta": 1}, written_ms=max(100_000 + skew, 0), id=f"i{offset}"))
    assert state.cells["n"].body == b"3" and state.cells["n"].ends_at == ends_at


def test_expiries_of_values_that_were_written_over_do_not_pile_up() -> None:
    state = State()
    for offset in range(5_000):
        fold(state, offset, Record("set", f"k{offset % 3}", expires_ms=90_000_000 + offset, written_ms=offset, id=f"{offset}"))
    assert len(state._expiries) < 2_000
    minutes_pass(state, 5_000, 2_700)
    assert not state.cells and sorted(state.removed) == ["k0", "k1", "k2"]
