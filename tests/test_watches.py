"""Watches: what waits for a reader, what becomes of it when nobody reads, when the stream goes, when the log is long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import weakref
from typing import Any

import pytest

import mqkv
from lock_tools import until
from mqkv import inbox
from mqkv.fold import Cell
from mqkv.layout import following
from mqkv.logfmt import Log
from mqkv.streams.base import MESSAGE
from mqkv.table import Event


def take(watch: mqkv.Watch, count: int, timeout: float = 10) -> list[mqkv.Change]:
    """So many changes, and no more of them wait."""
    found = []
    while len(found) < count:
        change = watch.get(timeout)
        assert change is not None, f"{len(found)} of {count}: {found[-3:]}"
        found.append(change)
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for some fifty changes."""
    monkeypatch.setattr(inbox, "LIMIT", 50 * inbox.OVERHEAD)
    monkeypatch.setattr(following, "PIECE", 10 * MESSAGE)


# What waits


def test_a_large_batch_does_not_overflow(prefix: str) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared") as store, store.watch("*") as watch:
        for _ in range(2):
            store.set_many({f"k{number}": number for number in range(150_000)})
            for number in range(150_000):
                change = watch.get(0)
                assert change is not None and (change.key, change.value) == (f"k{number}", number)
        assert watch.get(0) is None


def test_a_batch_is_taken_apart_as_it_is_read(url: str, prefix: str, small: None) -> None:
    keys = [f"k{number}" for number in range(200)]
    with mqkv.Store(url, prefix=prefix, layout="shared", read_timeout=5) as store:
        with store.watch("k*") as all_keys, store.watch("k77") as one, store.watch("*7") as some:
            store.set_many(dict.fromkeys(keys, 1))
            assert [(change.key, change.kind) for change in take(all_keys, 200)] == [(key, "set") for key in keys]
            assert [change.key for change in take(some, 20)] == [key for key in keys if key.endswith("7")]
            assert some.get(0) is None
            store.delete_many(keys)
            assert [(change.key, change.kind) for change in take(all_keys, 200)] == [(key, "delete") for key in keys]
            store.set_many(dict.fromkeys(keys, 2))
            store.set_many(dict.fromkeys(keys, 3))  # the one before was not read
            assert [change.kind for change in take(all_keys, 1)] == ["reset"] and all_keys.get(0.1) is None
            assert [(change.kind, change.value) for change in take(one, 4)] == [
                ("set", 1),
                ("delete", None),
                ("set", 2),
                ("set", 3),
            ]
        with store.watch("*", start="last") as watch:
            assert {change.key: change.value for change in take(watch, 200)} == dict.fromkeys(keys, 3)
        store.purge()


def test_a_slow_reader_is_told(url: str, layout: Any, prefix: str, small: None) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store, store.watch("k") as watch:
        for number in range(500):
            store.set("k", number)
        changes = [watch.get(10)]
        while (change := watch.get(0.2)) is not None:
            changes.append(change)
        kinds = [change.kind for change in changes if change]
        assert kinds[0] == "reset" and set(kinds[1:]) == {"set"} and len(kinds) <= 60
        assert changes[-1] is not None and changes[-1].value == 499, "after a reset it goes on"
        store.purge()


def test_large_values_count(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "LIMIT", 10 * 2**20)
    with mqkv.Store(f"memory://{prefix}") as store, store.watch("k") as watch:
        for _ in range(30):
            store.set("k", b"x" * 2**20)
        assert watch.inbox._size <= 10 * 2**20 and watch.get(0) is not None


# Who reads


@pytest.mark.parametrize("pattern", ["k", "k*"])
def test_a_watch_that_is_dropped_is_let_go_of(url: str, layout: Any, prefix: str, pattern: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        store.set("k", 0)
        dropped, kept = store.watch(pattern), store.watch(pattern)
        called: list[object] = []
        told = threading.Event()
        store.watch(pattern, lambda change: (called.append(change.value), told.set()))
        assert store.stats()["watches"] == 3
        gone, box = weakref.ref(dropped), dropped.inbox
        store.set("k", 1)
        del dropped
        gc.collect()
        assert gone() is None and not len(box)
        assert store.stats()["watches"] == 2 and box.closed
        store.set("k", 2)
        assert [change.value for change in take(kept, 2)] == [1, 2]
        told.clear()
        gc.collect()
        store.set("k", 3)
        assert told.wait(10) and called[0] == 1, "a watch with a callback stays"
        kept.close()
        store.purge()


def test_a_dropped_watch_leaves_no_tail(url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mqkv.layout import followed

    monkeypatch.setattr(followed, "MAX_TAILS", 2)
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        for number in range(8):
            store.watch(f"k{number}")
        gc.collect()
        store.set("other", 1)
        keyspace: Any = store._keyspace
        assert len(keyspace._tables) <= 3
        store.purge()


def test_a_store_that_is_closed_ends_its_own_watches(url: str, layout: Any, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        other = mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5)
        ends, goes_on = other.watch("k"), store.watch("k")
        other.close()
        assert ends.closed and list(ends) == [] and not goes_on.closed
        store.set("k", 1)
        assert take(goes_on, 1)[0].value == 1 and store.stats()["watches"] == 1
        store.purge()


def test_a_store_is_closed_in_a_callback(url: str, layout: Any, prefix: str) -> None:
    store = mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5)
    closed = threading.Event()
    other = store.watch("k*")

    def close(change: mqkv.Change) -> None:
        store.close()
        closed.set()

    store.watch("k", close)
    store.set("k", 1)
    assert closed.wait(20) and other.closed
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        store.purge()


# The stream goes, and comes


def after_reset(watch: mqkv.Watch, value: object) -> None:
    """It tells ``reset``, once or more, and then this value."""
    kinds = []
    while True:
        change = watch.get(15)
        assert change is not None, kinds
        kinds.append(change.kind)
        if change.value == value:
            break
    assert kinds[0] == "reset" and set(kinds[:-1]) == {"reset"}, kinds


@pytest.mark.parametrize("start", ["next", "last", "first"])
def test_a_watch_goes_on_after_a_purge(url: str, layout: Any, prefix: str, start: Any) -> None:
    options: Any = {"prefix": prefix, "layout": layout, "read_timeout": 10}
    with mqkv.Store(url, **options) as store, mqkv.Store(apart(url), **options) as other:
        store.set("k", "old")
        watches = [each.watch(pattern, start=start) for each in (store, other) for pattern in ("k", "k*")]
        if start != "next":
            assert [take(watch, 1)[0].value for watch in watches] == ["old"] * 4
        for round in range(2):
            store.purge()
            other.set("k", round)
            for watch in watches:
                after_reset(watch, round)
            store.set("k", f"more {round}")
            assert [take(watch, 1)[0].value for watch in watches] == [f"more {round}"] * 4
        assert store.stats()["watches"] == (4 if url.startswith("memory") else 2)
        for watch in watches:
            watch.close()
        assert store.stats()["watches"] == other.stats()["watches"] == 0
        store.purge()


def test_a_stream_that_is_deleted_and_made_anew(url: str, layout: Any, prefix: str) -> None:
    """By hand, as an operator would."""
    options: Any = {"prefix": prefix, "layout": layout, "read_timeout": 10}
    with mqkv.Store(url, **options) as store, mqkv.Store(apart(url), **options) as other:
        store.set("k", "old")
        watches = [each.watch(pattern) for each in (store, other) for pattern in ("k", "k*")]
        for round in range(2):
            keyspace: Any = other._keyspace
            keyspace.engine.delete(f"{prefix}.k" if layout == "per-key" else f"{prefix}.default", 10)
            store.set("k", round)
            for watch in watches:
                after_reset(watch, round)
        for watch in watches:
            watch.close()
        store.purge()


def apart(url: str) -> str:
    """The same place through a connection of its own, where there can be one."""
    if url.startswith("memory"):
        return url
    return f"{url}?sync=full" if url.startswith("file") else f"{url}?heartbeat=31"


def test_one_reset_is_enough(url: str, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store, store.watch("*") as watch:
        for number in range(20):
            store.set(f"k{number}", 0)
        take(watch, 20)
        store.purge()
        store.set("end", 1)
        assert [change.kind for change in take(watch, 2)] == ["reset", "set"]
        watch.close()
        store.purge()


# The past


@pytest.mark.parametrize("pattern", ["k", "*"])
def test_a_long_past_waits_for_its_reader(url: str, layout: Any, prefix: str, small: None, pattern: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5, confirm=False) as store:
        for number in range(400):
            store.set("k", number)
        store.flush()
        with store.watch(pattern, start="first") as watch, store.watch(pattern, start=1) as late:
            assert watch.inbox._size <= inbox.LIMIT
            assert [change.value for change in take(watch, 400)] == list(range(400))
            store.set("k", "now")
            store.flush()
            assert take(watch, 1)[0].value == "now"
            changes = take(late, 300)
            assert [change.value for change in changes] == list(range(changes[0].value, changes[0].value + 300))  # type: ignore[operator]
        store.purge()


def test_the_past_and_the_present_meet(url: str, layout: Any, prefix: str) -> None:
    """Whatever is written while watches begin is told once, and in order, to iterators and callbacks."""
    done = threading.Event()
    count = 0

    def write() -> None:
        nonlocal count
        while not done.is_set():
            store.set("k", count)
            count += 1

    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        for _ in range(200):
            store.set("k", count)
            count += 1
        writer = threading.Thread(target=write)
        writer.start()
        called: list[list[object]] = [[] for _ in range(3)]
        watches = [store.watch(pattern, start="first") for pattern in ("k", "*", "k")]
        for seen in called:
            store.watch("k", lambda change, seen=seen: seen.append(change.value), start="first")  # type: ignore[misc]
        done.set()
        writer.join()
        for watch in watches:
            assert [change.value for change in take(watch, count)] == list(range(count))
        until(lambda: all(len(seen) >= count for seen in called), "callbacks", 20)
        assert called == [list(range(count))] * 3
        store.purge()


def test_a_past_that_is_rewritten(prefix: str, small: None) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared") as store:
        for number in range(400):
            store.set("k", number)
        with store.watch("k", start="first") as watch:
            assert [change.value for change in take(watch, 150)] == list(range(150))
            keyspace: Any = store._keyspace
            keyspace.engine.faults.truncate("mqkv.default", tail=300)
            store.set("k", "end")
            values = []
            while values[-1:] != ["end"]:
                values.append(take(watch, 1)[0].value)
            reset = values.index(None)
            assert values[:reset] == list(range(150, 150 + reset)), "what had been read of the old log"
            assert values[reset + 1 :] == [*range(100), "end"]


@pytest.mark.parametrize("pattern", ["k", "*"])
def test_a_past_whose_stream_is_deleted(url: str, layout: Any, prefix: str, small: None, pattern: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        for number in range(300):
            store.set("k", number)
        with store.watch(pattern, start="first") as watch:
            assert [change.value for change in take(watch, 20)] == list(range(20))
            store.purge()
            for number in range(300, 303):
                store.set("k", number)
            values = []
            while values[-1:] != [302]:
                values.append(take(watch, 1, 20)[0].value)
            reset = values.index(None)
            assert values[:reset] == list(range(20, 20 + reset)), "what had been read of the old log"
            assert values[reset:] in ([None, 300, 301, 302], [None, None, 300, 301, 302])
        store.purge()


def test_a_watch_from_a_revision_hears_a_log_that_was_rewritten(url: str, layout: Any, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        for number in range(20):
            revision = store.set("k", number)
        with store.watch("k", start=revision) as watch:
            assert take(watch, 1)[0].value == 19
            store.purge()
            store.set("k", "new")
            after_reset(watch, "new")
        store.purge()


def test_no_watch_begins_in_a_table_that_is_being_rebuilt(prefix: str) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared", read_timeout=0.2) as store:
        for number in range(4):
            store.set(f"k{number}", number)
        engine: Any = store._keyspace.engine
        engine.faults.delay()
        keyspace: Any = store._keyspace
        keyspace._table.reset()  # what an engine says before it delivers anew
        with pytest.raises(mqkv.ReadTimeout):
            store.watch("*", start="last")
        assert store.stats()["watches"] == 0
        engine.faults.truncate("mqkv.default", tail=1)
        engine.faults.release()
        with store.watch("*", start="last") as watch:
            assert [change.key for change in take(watch, 3)] == ["k0", "k1", "k2"]


def test_a_watch_that_is_closed_while_a_key_is_announced_leaves_nothing(url: str, prefix: str, monkeypatch: Any) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        watch = store.watch("*")
        keyspace: Any = store._keyspace
        held = threading.Event()

        def hold(*arguments: Any, **options: Any) -> Any:
            watch.close()
            held.set()
            return original(*arguments, **options)

        original = keyspace.hold
        monkeypatch.setattr(keyspace, "hold", hold)
        store.set("k", 1)
        assert held.wait(10)
        until(lambda: not keyspace._tables["k"].watched and "k" in keyspace._idle, "the tail is idle", 10)
        store.purge()


def test_a_table_that_ends_twice_is_told_of_once(prefix: str, layout: Any) -> None:
    """A purge says so, and so does the engine: perhaps when the watch has gone on already."""
    with mqkv.Store(f"memory://{prefix}", layout=layout) as store:
        store.set("k", 0)
        with store.watch("k") as watch:
            keyspace: Any = store._keyspace
            table = keyspace._table if layout == "shared" else keyspace._tables["k"]
            store.purge()
            store.set("k", 1)
            after_reset(watch, 1)
            table.ended(mqkv.StreamMissing("again"))
            store.set("k", 2)
            assert take(watch, 1)[0].value == 2


def test_a_stream_that_is_deleted_where_past_and_present_meet(url: str, layout: Any, prefix: str) -> None:
    """The present is told already, and held back; the last of the past is to be read, and gone."""
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        for number in range(20):
            store.set("k", number)
        keyspace: Any = store._keyspace
        hold, held = keyspace.hold, []

        def purge(*arguments: Any, **options: Any) -> Any:
            if not held:
                store.set("k", "unread")  # or there were no more of the past to read
            position = hold(*arguments, **options)
            if not held:
                held.append(position)
                store.purge()
            return position

        keyspace.hold = purge
        try:
            with store.watch("k", start="first") as watch:
                assert [change.value for change in take(watch, 20)] == list(range(20))
                store.set("k", "new")
                while (change := watch.get(15)) is not None and change.value != "new":
                    assert change.kind == "reset" or change.value == "unread"
                assert change is not None and held
        finally:
            del keyspace.hold
        store.purge()


def test_a_stream_that_is_made_anew_where_past_and_present_meet(url: str, layout: Any, prefix: str) -> None:
    """All of the past is read; the table that tells the present is the new stream's."""
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=10) as store:
        for number in range(20):
            store.set("k", number)
        keyspace: Any = store._keyspace
        live, asked = keyspace.live, []

        async def late(*arguments: Any, **options: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 2:  # the first is to see that there is a stream
                store.purge()
                store.set("k", "new")
            return await live(*arguments, **options)

        keyspace.live = late
        try:
            with store.watch("k", start="first") as watch:
                assert [change.value for change in take(watch, 20)] == list(range(20))
                after_reset(watch, "new")
                assert watch.get(0.1) is None and len(asked) >= 2
        finally:
            del keyspace.live
        store.purge()


@pytest.mark.parametrize("engine", ["memory", "file"])
def test_watches_among_purges(engine: str, tmp_path: Any, prefix: str, layout: Any, seed: int, monkeypatch: Any) -> None:
    """Between two resets values rise, and all who watch hear of the last one."""
    monkeypatch.setattr(following, "PIECE", 10 * MESSAGE)
    chance = random.Random(seed)
    seen: dict[mqkv.Watch, Any] = {}
    problems: list[object] = []
    threads: list[threading.Thread] = []

    def read(watch: mqkv.Watch) -> None:
        last: dict[str, Any] = {}
        for change in watch:
            if change.kind == "reset":
                last.clear()
            elif change.kind == "set":
                if change.key in last and change.value <= last[change.key]:  # type: ignore[operator]
                    problems.append((change, last[change.key]))
                last[change.key] = change.value
                seen[watch] = max(seen.get(watch, 0), change.value)  # keys of their own streams come in any order

    url = f"memory://{prefix}" if engine == "memory" else f"file://{tmp_path}/kv"
    options: Any = {"prefix": prefix, "layout": layout, "read_timeout": 10}
    with mqkv.Store(url, **options) as store, mqkv.Store(apart(url), **options) as other:
        stores, open_ones, count = (store, other), [], 0
        for _ in range(120):
            for _ in range(chance.randrange(1, 20)):
                count += 1
                with contextlib.suppress(mqkv.OutcomeUnknown):
                    chance.choice(stores).set(chance.choice(("k", "k2")), count)
            if chance.random() < 0.2:
                chance.choice(stores).purge()
            if len(open_ones) < 6 and chance.random() < 0.4:
                start: Any = chance.choice(("first", "next", "last", 1))
                watch = chance.choice(stores).watch(chance.choice(("k", "k*")), start=start)
                open_ones.append(watch)
                threads.append(threading.Thread(target=read, args=(watch,)))
                threads[-1].start()
            elif len(open_ones) > 3:
                open_ones.pop(0).close()
        store.set("k", count + 1)
        try:
            until(lambda: all(seen.get(watch) == count + 1 for watch in open_ones), f"all hear of the last, seed {seed}", 20)
        finally:
            for watch in open_ones:
                watch.close()
            for thread in threads:
                thread.join()
        assert not problems and store.stats()["watches"] == other.stats()["watches"] == 0
        store.purge()


def test_an_async_watch(url: str, layout: Any, prefix: str, small: None) -> None:
    """Its past waits for it; it goes on after a purge; it is collected when nobody holds it."""

    async def main() -> None:
        async with mqkv.AsyncStore(url, prefix=prefix, layout=layout, read_timeout=10) as store:
            for number in range(300):
                await store.set("k", number)
            watch, other = await store.watch("k", start="first"), await store.watch("*", start="first")
            assert [(await watch.get(10)).value for _ in range(300)] == list(range(300))  # type: ignore[union-attr]
            await store.purge()
            await store.set("k", "new")
            kinds = []
            async for change in watch:
                kinds.append(change.kind)
                if change.value == "new":
                    break
            assert kinds[0] == "reset" and kinds[-1] == "set"
            assert store.stats()["watches"] == 2
            gone = weakref.ref(other)
            del other
            gc.collect()
            assert gone() is None and store.stats()["watches"] == 1
            watch.close()
            await store.purge()

    asyncio.run(main())


@pytest.mark.parametrize(("batch", "release"), [(False, 1), (False, 2), (True, 1), (True, 2), (True, 3)])
def test_what_waits_is_counted_as_it_overflows(batch: bool, release: int) -> None:
    """Right where its reader has let go of the lock for the first time, or the second, ..."""
    cell = Cell(b"x" * (inbox.LIMIT // 2), None, None, 1, None, 1)
    event = Event("batch", many={"k": cell}) if batch else Event("set", "k", cell)
    releases = [0]

    class Passing(threading.Condition):
        def __exit__(self, *problem: Any) -> None:
            super().__exit__(*problem)
            releases[0] += 1
            if releases[0] == release:
                for _ in range(3):
                    waiting.offer(event)

    waiting = inbox.Inbox("*", lambda key: True, Log(None))
    waiting.offer(event)
    waiting._changed = Passing()
    while waiting.take() is not None or len(waiting):
        pass
    assert releases[0] >= release and waiting._size == 0


def test_a_delete_of_many_tells_those_that_were_there(url: str, layout: Any, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store, store.watch("*") as watch:
        store.set("b", 1)
        assert store.delete_many(["a", "b", "c"]) == 1
        assert store.delete_many(["a", "b"]) == 0
        store.set("end", 1)
        assert [(change.kind, change.key) for change in take(watch, 3)] == [("set", "b"), ("delete", "b"), ("set", "end")]
        store.purge()


def test_a_batch_that_is_larger_than_the_bound_tells_no_deletes(prefix: str) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared", max_entries=2) as store, store.watch("*") as watch:
        store.set_many({"a": 1, "b": 2, "c": 3})
        changes = [watch.get(5), watch.get(5)]
        assert [(each.kind, each.key) for each in changes if each is not None] == [("set", "b"), ("set", "c")]
        assert watch.get(0) is None
