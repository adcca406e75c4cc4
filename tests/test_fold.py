"""The fold: against a model, and the same in every replica."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

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
        now = true_ms + draw(st.sampled_from(skews))
        op = draw(st.sampled_from(["set", "set", "set", "delete", "clear", "sync", "settings", "unheard-of"]))
        record = Record(op, draw(st.sampled_from(KEYS)) if op in ("set", "delete") else "", written_ms=now, id=f"id{number}")
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

    entries: list[tuple[str, bytes, int | None, int, int]] = field(default_factory=list)  # key, body, expiry, gone at, revision
    log_time: int = 0
    bound: int | None = None
    settled: bool = False
    seen: set[str] = field(default_factory=set)

    def apply(self, offset: int, record: Record) -> bool | None:
        if record.op not in OPERATIONS or record.id in self.seen:
            return None
        assert record.id is not None and record.written_ms is not None
        self.seen.add(record.id)
        self.log_time = max(self.log_time, record.written_ms)
        self.entries = [entry for entry in self.entries if not (entry[2] is not None and entry[3] <= self.log_time)]
        found = any(e[0] == record.key and (e[2] is None or record.written_ms < e[2]) for e in self.entries)
        if record.op in ("set", "delete"):
            self.entries = [entry for entry in self.entries if entry[0] != record.key]
        if record.op == "clear":
            self.entries = []
        if record.op == "set":
            expires = record.expires_ms
            gone = 0 if expires is None else expires + max(60_000, (expires - record.written_ms) // 10)
            if expires is None or gone > self.log_time:
                self.entries.append((record.key, record.body, expires, gone, offset))
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
        assert state.log_time == model.log_time


@given(logs(), st.data())
def test_replicas_are_equal(log: list[tuple[int, Record]], data: st.DataObject) -> None:
    """Repeats that follow at once, as after a lost answer, change nothing."""
    plain, repeated = State(), State()
    for offset, record in log:
        fold(plain, offset, record)
        fold(repeated, offset, record)
        if record.op in OPERATIONS and data.draw(st.booleans()):
            assert fold(repeated, offset, record._replace(retry=True)) is None
    assert (
        dict(plain.cells) == dict(repeated.cells) and plain.log_time == repeated.log_time and plain.settings == repeated.settings
    )


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


def test_what_is_expired_is_dropped_once_log_time_is_past_it_by_the_margin() -> None:
    state = State()
    fold(state, 0, Record("set", "short", b"v", expires_ms=2_000, written_ms=1_000, id="a"))
    fold(state, 1, Record("set", "long", b"v", expires_ms=1_001_000, written_ms=1_000, id="b"))
    fold(state, 2, Record("sync", "", written_ms=61_999, id="c"))
    assert set(state.cells) == {"short", "long"}
    fold(state, 3, Record("sync", "", written_ms=62_000, id="d"))
    assert set(state.cells) == {"long"} and state.removed == ["short"]
    fold(state, 4, Record("sync", "", written_ms=1_100_999, id="e"))
    assert set(state.cells) == {"long"}
    fold(state, 5, Record("sync", "", written_ms=1_101_000, id="f"))
    assert not state.cells


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


def test_what_is_gone_already_when_it_is_written_evicts_nothing() -> None:
    state = State()
    fold(state, 0, Record("settings", "", args={"max_entries": 1}, id="s", written_ms=1_000_000))
    fold(state, 1, Record("set", "k", id="a", written_ms=1_000_000))
    fold(state, 2, Record("set", "late", id="b", written_ms=1_000, expires_ms=2_000))
    assert list(state.cells) == ["k"]


def test_expiries_of_values_that_were_written_over_do_not_pile_up() -> None:
    state = State()
    for offset in range(5_000):
        fold(state, offset, Record("set", f"k{offset % 3}", expires_ms=90_000_000 + offset, written_ms=offset, id=f"{offset}"))
    assert len(state._expiries) < 2_000
    fold(state, 5_000, Record("sync", "", written_ms=100_000_000, id="later"))
    assert not state.cells and sorted(state.removed) == ["k0", "k1", "k2"]
