"""A log that has lost its beginning is never taken for the whole."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from mqkv.streams.base import RETRY_HEADER, Message
from mqkv.streams.file.database import RUN
from mqkv.testing.fixtures import Clock
from mqkv.testing.tools import opened, put
from retention import Retention


@pytest.fixture
def retention(url: str, monkeypatch: pytest.MonkeyPatch) -> Retention:
    return Retention(url, monkeypatch)


@pytest.fixture
def make(url: str, prefix: str) -> Iterator[Any]:
    stores: list[mqkv.Store] = []

    def make(**options: Any) -> mqkv.Store:
        """A store with tables of its own."""
        stores.append(mqkv.Store(url, prefix=prefix, read_timeout=5, clock=Clock(), **options))
        return stores[-1]

    yield make
    stores[0].purge()
    for store in stores:
        store.close()


def test_a_shared_log_without_its_beginning_is_refused(make: Any, retention: Retention, prefix: str) -> None:
    first = make(layout="shared")
    stream = f"{prefix}.default"
    retention.declare(first, stream)
    first.set("k", 1)
    assert first.incr("n", initial=0) == 1
    retention.act(first, stream)
    assert first.get("k") == 1 and first.incr("n") == 2, "who knows everything goes on"
    second = make(layout="shared")
    for call in (
        lambda: second.get("k"),
        lambda: second.get("absent"),
        lambda: second.add("k", 2),
        lambda: second.incr("n", initial=0),
        lambda: second.set("k", 2),
        lambda: second.set_many({"k": 2}),
        lambda: second.keys(),
        lambda: second.history("k"),
        lambda: second.watch("k").close(),
    ):
        for _ in range(2):
            with pytest.raises(mqkv.LogTruncated, match=r"retention .* purge"):
                call()
    assert first.get("k", fresh=True) == 1 and first.get("n", fresh=True) == 2
    second.purge()
    assert second.get("k") is None and second.add("k", 3) and make(layout="shared").get("k") == 3


def test_no_second_owner_where_the_beginning_of_the_locks_is_gone(make: Any, retention: Retention, layout: str) -> None:
    first, second = make(layout=layout), make(layout=layout)
    (stream,) = (locks.stream for locks in [first._open_keyspace()._locks] if locks is not None)
    retention.declare(first, stream)
    with first.lock("l", ttl=60):
        retention.act(first, stream)
        with pytest.raises(mqkv.LogTruncated, match="locks"):
            second.lock("l").acquire(timeout=0)
    with first.lock("l"):
        pass


def test_a_key_whose_value_rests_on_what_is_gone_is_refused(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    assert first.incr("k") == 2
    first.preload("k")
    retention.act(first, stream)
    assert first.get("k") == 2 and first.incr("k") == 3, "who knows everything goes on"
    second = make()
    for call in (
        lambda: second.get("k"),
        lambda: second.get_many(["k"]),
        lambda: second.add("k", 5),
        lambda: second.incr("k", initial=0),
        lambda: second.touch("k", 5),
        lambda: second.compare_and_set("k", 5, None),
        lambda: second.pop("k", None),
        lambda: second.delete("k"),
        lambda: second.items(),
        lambda: second.preload("k"),
    ):
        with pytest.raises(mqkv.LogTruncated, match=r"retention .* set key 'k'"):
            call()
    assert first.get("k", fresh=True) == 3 and second.history("k") == []
    second.set("k", 10)
    assert second.incr("k") == 11 and first.get("k", fresh=True) == 11
    third = make()
    assert third.get("k") == 11 and third.incr("k") == 12 and third.history("k") == [10, 11, 12]


def test_a_key_that_was_set_anew_is_read_as_before(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    retention.act(first, stream)
    first.set("k", 2)
    assert make().get("k") == 2
    assert make().incr("k") == 3
    assert make().get("k") == 3 and make().history("k") == [2, 3]


def test_a_past_without_its_beginning(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    retention.act(first, stream)
    first.set("k", 2)
    assert first.incr("k") == 3
    with make().watch("k", start="first") as watch:
        assert [change and change.value for change in (watch.get(10), watch.get(10))] == [2, 3] and watch.get(0.1) is None


# What a key's value rests on outlives its stream's max-age


class Aged:
    """A stream of one key in the memory engine, from which goes what is older than its max-age, but for its newest messages: as
    segments go, with the boundary wherever it hurts."""

    def __init__(self, store: mqkv.Store, stream: str, max_age: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        self._log = store._open_keyspace().engine._streams[stream]  # type: ignore[attr-defined]
        self._faults = store._open_keyspace().engine.faults  # type: ignore[attr-defined]
        self._max_age = max_age
        self._born: dict[int, float] = {}
        monkeypatch.setattr("mqkv.table.time.monotonic", lambda: self.now)
        monkeypatch.setattr("mqkv.layout.anchors.time.monotonic", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def act(self, at_most: int) -> None:
        """Drop what is too old, and not the newest; but no more than ``at_most`` messages."""
        for offset in self._log.offsets:
            self._born.setdefault(offset, self.now)
        old = [offset for offset in self._log.offsets[:-1] if self.now - self._born[offset] > self._max_age]
        self._faults.retain(self._log.name, len(self._log.offsets) - min(len(old), at_most))

    @property
    def first(self) -> int:
        return self._log.offsets[0]


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_a_key_that_is_touched_and_counted_is_read_by_who_comes_late(
    make: Any, prefix: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several processes, some of which come and go; messages grow too old by ones, twos and hundreds."""
    rng = random.Random(seed)
    first = make()
    first.set("k", 0, ttl=10)
    aged = Aged(first, f"{prefix}.k", 10, monkeypatch)
    stores, expected, begun = [first, make()], 0, 0
    for _ in range(1_500):
        aged.passes(rng.choice([0.01, 0.3, 2.0, 30.0]) if rng.random() < 0.3 else 0.01)
        store = rng.choice(stores)
        what = rng.randrange(12)
        if what < 7:
            expected += 1
            assert store.incr("k") == expected
        elif what < 9:
            assert store.touch("k", 10)
        elif what == 9:
            assert not store.add("k", "never", ttl=10)
        elif what == 10:
            stores[1] = make()
        elif rng.random() < 0.1:
            expected = 0
            store.set("k", 0, ttl=10)
        if what < 10:  # it acts when something is written
            aged.act(rng.choice([1, 1, 2, 3, 100]))
        if rng.random() < 0.1:
            late = make()
            assert late.get("k") == expected and late.history("k", limit=1) == [expected]
            begun += aged.first > 0
            late.close()
    assert begun > 50 and first.get("k", fresh=True) == expected


def test_anchors_are_no_news(make: Any, prefix: str) -> None:
    first = make()
    first.set("k", 1, ttl=100)
    assert first.incr("k") == 2  # it rests on the set
    with first.watch("k") as watch:
        assert make().incr("k") == 3  # who comes new can't know how old that is: anchors
        change = watch.get(5)
        assert change is not None and (change.value, change.kind) == (3, "set")
        entry = first.entry("k")
        assert entry is not None and entry.revision == change.revision
        assert first.compare_and_set("k", 4, change.revision) and first.history("k") == [1, 2, 3, 4]
        change = watch.get(5)
        assert change is not None and change.value == 4
    ops: list[str] = []
    tail, sink = opened(first._open_keyspace().engine, f"{prefix}.k")
    for message in sink.messages:
        ops.append(str(message.headers.get("__mqkv_op__", "set")))
    tail.close()
    assert ops == ["set", "incr", *["state"] * ops.count("state"), "incr", "compare_and_set"] and 1 <= ops.count("state") <= 2
    assert first.keys() == ["k"]


@pytest.mark.parametrize("url", ["file"], indirect=True)
@pytest.mark.parametrize("count", [False, True], ids=["touched", "counted"])
def test_a_file_that_drops_what_is_too_old_keeps_what_a_key_rests_on(
    make: Any, prefix: str, monkeypatch: pytest.MonkeyPatch, count: bool
) -> None:
    """Two hundred a second for fifteen seconds, and a ttl of one."""
    first, now = make(), [time.time(), time.monotonic()]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[1])
    first.set("k", 0, ttl=1)
    for number in range(3_000):
        now[0], now[1] = now[0] + 0.005, now[1] + 0.005
        if count:
            assert first.incr("k") == number + 1
        else:
            assert first.touch("k", 1)
    engine = first._open_keyspace().engine
    assert engine._with(lambda base: base.trimmed(base.find(f"{prefix}.k")[0]), 5) > 1_000  # type: ignore[attr-defined]
    late = make()
    assert late.get("k") == (3_000 if count else 0) and not late.add("k", "never", ttl=1)
    assert make().incr("k") == (3_001 if count else 1)


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_what_came_late_is_not_taken_for_young(make: Any, url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks into a file again after a while hears of a set that is older than the max-age."""
    idle, now = make(), [time.time(), time.monotonic()]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[1])
    idle.set("k", 0, ttl=4)
    assert idle.touch("k", 1_000)
    with mqkv.Store(f"{url}/.", prefix=prefix) as busy:  # with an engine of its own, as another process has
        engine, stream, last = busy._open_keyspace().engine, f"{prefix}.k", 0
        assert engine is not idle._open_keyspace().engine
        while len(pieces := engine.begin_read(stream, 0, 2**30, 5).result().messages) < 2 * RUN:  # what goes, goes in runs
            last = busy.set("k", len(pieces))
    now[0], now[1] = now[0] + 5, now[1] + 5
    assert idle.get("k") == 2 * RUN - 1
    for _ in range(700):
        assert idle.touch("k", 1_000)
    engine = idle._open_keyspace().engine
    assert engine._with(lambda base: base.trimmed(base.find(stream)[0]), 5) == last  # type: ignore[attr-defined]
    late = make()
    assert late.get("k") == 2 * RUN - 1 and not late.add("k", "never")


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_key_whose_maker_died_before_it_could_tell(make: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is there, with a max-age, and the directory does not know of it."""
    first, stream, now = make(), f"{prefix}.k", [time.time(), time.monotonic()]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[1])
    engine = first._open_keyspace().engine
    engine.declare(stream, 2, 5)
    for number in range(1_500):
        now[0], now[1] = now[0] + 0.005, now[1] + 0.005
        assert first.incr("k", initial=0) == number + 1
    assert engine._with(lambda base: base.trimmed(base.find(stream)[0]), 5) > 500  # type: ignore[attr-defined]
    assert make().get("k") == 1_500 and make().incr("k") == 1_501


@pytest.mark.slow
@pytest.mark.rabbitmq_only("its segments can be made small")
def test_a_broker_that_drops_what_is_too_old_keeps_what_a_key_rests_on(own_broker: Any, prefix: str) -> None:
    own_broker.ctl("set_policy", "small", "^t-", '{"stream-max-segment-size-bytes": 10000}', "--apply-to", "queues")
    with mqkv.Store(own_broker.url, prefix=prefix, read_timeout=5) as first:
        first.set("touched", "here", ttl=1)
        first.set("counted", 0, ttl=1)
        begin, number = time.monotonic(), 0
        while number < 600 or time.monotonic() - begin < 4:
            number += 1
            assert first.touch("touched", 1) and first.touch("counted", 1) and first.incr("counted") == number
            if number % 150 == 0:
                with mqkv.Store(f"{own_broker.url}?heartbeat=30", prefix=prefix, read_timeout=5) as late:
                    assert late.get("touched") == "here" and late.get("counted") >= number
                    assert not late.add("touched", "never", ttl=1)
        tail, sink = opened(first._open_keyspace().engine, f"{prefix}.counted")
        tail.close()
        assert sink.beheaded, "nothing was dropped"
        first.purge()


def test_a_directory_without_its_beginning(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.__mqkv_keys__"
    retention.declare(first, stream)
    first.set("k", 1)
    retention.act(first, stream)
    first.set("j", 2)
    second = make()
    assert second.get("k") == 1 and second.touch("k", None), "a key's own stream has all that it needs"
    for call in (lambda: second.set("new", 1), lambda: second.keys(), lambda: second.items()):
        with pytest.raises(mqkv.LogTruncated, match="keys__"):
            call()
    assert sorted(first.keys()) == ["j", "k"], "who knows everything goes on"
    second.purge()
    assert second.keys() == [] and second.get("j") is None and second.get("k") is None
    assert second.set("new", 1) >= 0 and make().keys() == ["new"]


@pytest.mark.slow
def test_a_stream_that_was_empty_when_its_broker_died_has_its_beginning(own_broker: Any, prefix: str) -> None:
    """Whatever a broker writes of its own when it starts again, it must not look like a log that lost its beginning."""
    with mqkv.Store(own_broker.url, prefix=prefix, read_timeout=10, write_timeout=30) as store:
        engine = store._open_keyspace().engine
        for number in range(2):
            for stream in (f"{prefix}.empty", f"{prefix}.one{number}"):
                engine.declare(stream, None, 10)
            put(opened(engine, f"{prefix}.one{number}")[0])
            own_broker.kill()
            own_broker.start()
        put(opened(engine, f"{prefix}.empty")[0])
        for stream in (f"{prefix}.empty", *(f"{prefix}.one{number}" for number in range(2))):
            sink = opened(engine, stream)[1]
            assert len(sink.deliveries) == 1 and not sink.beheaded, stream
        for stream in (f"{prefix}.empty", *(f"{prefix}.one{number}" for number in range(2))):
            engine.delete(stream, 10)


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_an_anchor_of_unknown_outcome_means_that_nothing_was_done(make: Any) -> None:
    first = make()
    first.set("k", 1, ttl=100)
    second = make()
    assert second.get("k") == 1
    first._open_keyspace().engine.faults.lose_answer()  # type: ignore[attr-defined]
    with pytest.raises(mqkv.WriteTimeout, match="nothing else was done"):
        second.incr("k")
    assert first.get("k", fresh=True) == 1 and second.incr("k") == 2


@pytest.mark.parametrize("url", ["memory"], indirect=True)
@pytest.mark.parametrize("middle", [False, True], ids=["whole", "middle"])
@pytest.mark.parametrize("op", ["set", "set_many", "touch", "incr"])
def test_what_was_sent_again_is_read_by_who_comes_late(
    make: Any, prefix: str, op: str, middle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy, behind which everything is gone: who wrote it knows what it did, and says so."""
    first, stream = make(), f"{prefix}.k"
    first.set("k", 1, ttl=10)
    if middle:
        first = make()  # its table begins at the newest record
        assert first.touch("k", 10)
    engine: Any = first._open_keyspace().engine
    add, again = engine._add, [True]

    def add_again(log: Any, message: Message) -> int:
        if log.name == stream and again and again.pop():
            message = message._replace(headers={**message.headers, RETRY_HEADER: True})
        return int(add(log, message))

    monkeypatch.setattr(engine, "_add", add_again)
    if op == "set":
        first.set("k", 2)
    elif op == "set_many":
        first.set_many({"k": 2})
    elif op == "incr":
        assert first.incr("k") == 2
    else:
        assert first.touch("k", 10)
    assert not again
    log = engine._streams[stream]
    engine.faults.retain(stream, [RETRY_HEADER in each.headers for each in log.messages][::-1].index(True) + 1)
    late = make()
    assert late.get("k") == (1 if op == "touch" else 2) and late.touch("k", 10) and late.items()
