"""What every store does, whatever the engine and layout: a class of tests to inherit from.

::

    class TestMyEngine(StoreContract):
        @pytest.fixture
        def url(self, tmp_path):
            return f"file://{tmp_path}/kv"
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import mqkv
from mqkv.testing.fixtures import BAD_KEYS, BAD_TTLS, BAD_VALUES, KEYS, VALUES, Clock, MakeStore, StoreFixtures


class Text(str):
    """As Django's SafeString, SQLAlchemy's quoted_name and the like: a ``str`` with a mind of its own."""

    def __str__(self) -> str:
        return f"<{super().__str__()}>"


class Octets(bytes):
    def __bytes__(self) -> bytes:
        return b"another"


class StoreContract(StoreFixtures):
    """Reading, writing, following."""

    # Values and keys

    def test_absent(self, store: mqkv.Store) -> None:
        assert store.get("k") is None
        assert store.get("k", "default") == "default"
        assert not store.exists("k") and "k" not in store
        assert store.entry("k") is None and store.ttl("k") is None
        assert store.history("k") == [] and store.peek("k") is None
        assert store.keys() == [] and len(store) == 0 and store.items() == []

    def test_what_goes_in_comes_out(self, store: mqkv.Store, other: mqkv.Store) -> None:
        for number, value in enumerate(VALUES):
            key = f"v{number % 3}"
            store.set(key, value)
            for got in (store.get(key), other.get(key, fresh=True)):
                assert type(got) is type(value) and repr(got) == repr(value)

    def test_cached_values_come_out_too(self, store: mqkv.Store) -> None:
        store.preload("k")
        for value in VALUES:
            store.set("k", value)
            got = store.get("k")
            assert type(got) is type(value) and repr(got) == repr(value)

    def test_a_value_that_was_got_is_the_callers_own(self, store: mqkv.Store) -> None:
        store.set("k", {"list": [1]})
        store.preload("k")
        value: Any = store.get("k")
        value["list"].append(2)
        assert store.get("k") == {"list": [1]}

    def test_a_subclass_of_str_or_bytes_is_taken_as_what_it_holds(self, store: mqkv.Store, other: mqkv.Store) -> None:
        with store.lock(Text("l"), timeout=10):
            assert store.watch(Text("k")).pattern == "k"
        store.set(Text("k"), Octets(b"v"))
        store.set_many({Text("a"): Octets(b"w"), Text("b"): Text("text"), "c": 1})
        assert store.add(Text("d"), Text("d")) and store.incr(Text("n"), initial=1) == 2
        assert store.compare_and_set(Text("k"), Octets(b"x"), store.set(Text("k"), Text("s")))
        for reader in (store, other):
            reader.sync()
            found = {key: reader.get(Text(key), fresh=True) for key in "kabcdn"}
            assert found == {"k": b"x", "a": b"w", "b": "text", "c": 1, "d": "d", "n": 2}
            assert {type(value) for value in found.values()} == {bytes, str, int}
            assert reader.get_many([Text(key) for key in "ab"]) == {"a": b"w", "b": "text"}
            assert {type(key) for key in reader.keys()} == {str}  # noqa: SIM118 -- a store is no dict
        assert store.delete_many([Text("a"), "b"]) == 2 and store.pop(Text("d")) == "d" and store.delete(Text("n"))
        store.clear(prefix=Text("c"))
        assert store.keys() == ["k"]

    def test_none_is_a_value(self, store: mqkv.Store) -> None:
        store.set("k", None)
        assert store.exists("k") and "k" in store and store.get("k", "default") is None and store.keys() == ["k"]

    def test_keys_do_not_collide(self, store: mqkv.Store) -> None:
        for number, key in enumerate(KEYS):
            store.set(key, number)
        assert [store.get(key) for key in KEYS] == list(range(len(KEYS)))
        assert sorted(store.keys()) == sorted(KEYS) and len(store) == len(KEYS)

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key)[:20])
    def test_bad_keys(self, store: mqkv.Store, key: Any) -> None:
        calls: list[Callable[[], object]] = [
            *(lambda: store.get(key), lambda: store.set(key, "v"), lambda: store.delete(key), lambda: store.exists(key)),
            *(lambda: store.entry(key), lambda: store.ttl(key), lambda: store.history(key), lambda: store.peek(key)),
            *(lambda: store.preload(key),),
        ]
        for call in calls:
            with pytest.raises(mqkv.InvalidKey):
                call()
        assert issubclass(mqkv.InvalidKey, ValueError) and store.keys() == []

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_bad_ttls(self, store: mqkv.Store, ttl: Any) -> None:
        with pytest.raises(mqkv.InvalidTTL):
            store.set("k", "v", ttl=ttl)
        assert not store.exists("k")

    def test_bad_values(self, store: mqkv.Store) -> None:
        loop: list[Any] = []
        loop.append(loop)
        store.set("k", "before")
        for value in [*BAD_VALUES, loop]:
            with pytest.raises(mqkv.InvalidValue):
                store.set("k", value)
        with pytest.raises(mqkv.ValueTooLarge):
            store.set("k", b"x" * (16 * 2**20 + 1))
        assert store.get("k") == "before"

    def test_a_large_value(self, store: mqkv.Store) -> None:
        store.set("k", b"x" * 5_000_000)
        assert store.get("k") == b"x" * 5_000_000

    # Revisions, deletes, history

    def test_revisions_rise(self, store: mqkv.Store) -> None:
        revisions = [store.set("k", number) for number in range(5)]
        assert revisions == sorted(set(revisions))
        entry = store.entry("k")
        assert entry is not None and entry.revision == revisions[-1] and entry.value == 4 and entry.expires_at is None

    def test_entry_tells_times(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        store.set("k", "v", ttl=100)
        entry = store.entry("k")
        assert entry is not None and entry.written_at == clock.now and entry.expires_at == clock.now + 100

    def test_delete(self, store: mqkv.Store, other: mqkv.Store) -> None:
        assert store.delete("k") is False
        store.set("k", "v")
        assert store.delete("k") is True
        assert store.get("k") is None and other.get("k", fresh=True) is None and store.keys() == []
        assert store.delete("k") is False
        store.set("k", "again")
        assert store.get("k") == "again" and store.keys() == ["k"]

    def test_history(self, store: mqkv.Store, other: mqkv.Store) -> None:
        for number in range(12):
            store.set("k", number)
            store.set("else", -number)
        assert store.history("k", limit=2) == [10, 11]
        assert store.history("k") == list(range(2, 12)) and other.history("k", limit=100) == list(range(12))
        store.delete("k")
        assert store.history("k") == []
        store.set("k", "new")
        assert store.history("k") == ["new"] and store.history("else", limit=1) == [-11]
        for limit in (0, -1, 1.5, True, "1"):
            with pytest.raises(mqkv.InvalidOption):
                store.history("k", limit=limit)  # type: ignore[arg-type]

    # Expiry

    def test_ttl_runs_out(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        store.set("k", "v", ttl=10)
        store.set("keep", "v")
        assert store.ttl("k") == pytest.approx(10) and store.ttl("keep") is None
        clock.now += 9.9
        assert store.get("k") == "v" and store.ttl("k") == pytest.approx(0.1)
        clock.now += 0.1
        assert store.get("k") is None and not store.exists("k") and store.ttl("k") is None and store.entry("k") is None
        assert store.keys() == ["keep"] and len(store) == 1 and store.items() == [("keep", "v")]
        assert store.delete("k") is False

    def test_ttl_runs_out_in_a_cached_read(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        store.preload("k")
        store.set("k", "v", ttl=0.5)
        store.preload("k")
        assert store.get("k") == "v" and store.peek("k") == "v"
        clock.now += 0.5
        assert store.get("k") is None and store.peek("k") is None

    def test_ttl_of_the_last_set_counts(self, make: MakeStore, other_url: str, clock: Clock) -> None:
        store, other = make(clock=clock), make(other_url, clock=clock)
        store.set("k", 1, ttl=5.5)
        other.set("k", 2, ttl=60)
        assert store.ttl("k") == pytest.approx(60, abs=0.01) or store.get("k", fresh=True) == 2
        other.set("k", 3)
        clock.now += 3600
        assert store.get("k", fresh=True) == 3 and other.get("k") == 3 and other.ttl("k") is None
        store.set("k", 4, ttl=1)
        clock.now += 1
        assert store.get("k") is None and other.get("k", fresh=True) is None

    # Many keys

    def test_keys_items_clear(self, store: mqkv.Store, other: mqkv.Store) -> None:
        pairs = {f"user:{number}": number for number in range(8)} | {"else": "x"}
        for key, value in pairs.items():
            store.set(key, value)
        assert dict(store.items()) == pairs and dict(other.items()) == pairs and len(other) == 9
        assert sorted(store.keys("user:*")) == sorted(pairs)[1:] and store.keys("e?se") == ["else"]
        assert store.get_many(["user:1", "nope", "else"]) == {"user:1": 1, "else": "x"}
        store.clear()
        assert store.keys() == [] and len(store) == 0 and store.get("else") is None and other.get("else", fresh=True) is None
        store.set("else", "y")
        assert store.items() == [("else", "y")]

    def test_purge(self, store: mqkv.Store) -> None:
        store.set("k", "v")
        store.preload("k")
        store.purge()
        assert store.get("k") is None and store.keys() == [] and store.history("k") == []
        store.set("k", "new")
        assert store.get("k") == "new" and store.history("k") == ["new"] and store.keys() == ["k"]

    # Two connections

    def test_a_confirmed_write_is_read_by_others(self, make: MakeStore, other_url: str) -> None:
        writer, reader = make(), make(other_url)
        for number in range(50):
            writer.set("k", number)
            assert reader.get("k", fresh=True) == number

    def test_writers_take_turns(self, store: mqkv.Store, other: mqkv.Store) -> None:
        for number in range(10):
            (store, other)[number % 2].set("k", number)
        assert store.history("k", limit=100) == list(range(10))
        assert store.get("k", fresh=True) == other.get("k", fresh=True) == 9

    def test_threads(self, store: mqkv.Store) -> None:
        def work(thread: int) -> None:
            for number in range(20):
                store.set(f"t{thread}", number)
                assert store.get(f"t{thread}") == number
                store.set("together", [thread, number])

        run_all([lambda thread=thread: work(thread) for thread in range(8)])  # type: ignore[misc]
        assert {key: store.get(key) for key in store.keys("t?")} == {f"t{thread}": 19 for thread in range(8)}
        assert len(store.history("together", limit=1000)) == 160

    # Following

    def test_preload(self, store: mqkv.Store, other: mqkv.Store) -> None:
        for number in range(5):
            other.set(f"k{number}", number)
        store.preload(*(f"k{number}" for number in range(5)), "absent")
        assert [store.peek(f"k{number}") for number in range(5)] == list(range(5))
        assert [store.get(f"k{number}") for number in range(5)] == list(range(5)) and store.get("absent") is None
        store.set("k0", "own")
        assert store.get("k0") == store.peek("k0") == "own"
        store.set("absent", "here")
        assert store.get("absent") == store.peek("absent") == "here"
        with pytest.raises(mqkv.InvalidOption):
            store.preload("k0", max_messages=0)

    def test_a_preloaded_key_follows_others(self, store: mqkv.Store, other: mqkv.Store) -> None:
        other.set("k", 0)
        store.preload("k")
        with store.watch("k") as changes:
            other.set("k", 1)
            change = changes.get(10)
            assert change is not None and change.value == 1 and store.get("k") == 1
            other.delete("k")
            change = changes.get(10)
            assert change is not None and change.kind == "delete" and store.get("k") is None

    def test_watch_iterates(self, store: mqkv.Store, other: mqkv.Store) -> None:
        with store.watch("k") as changes:
            revisions = [other.set("k", "a")]
            other.set("else", "no")
            revisions.append(other.set("k", "b"))
            other.delete("k")
            seen = [next(changes), next(changes), next(changes)]
        assert [(change.key, change.value, change.kind) for change in seen] == [
            ("k", "a", "set"),
            ("k", "b", "set"),
            ("k", None, "delete"),
        ]
        assert [change.revision for change in seen[:2]] == revisions and seen[0].written_at is not None
        assert changes.closed and list(changes) == []

    def test_watch_calls_back(self, store: mqkv.Store, other: mqkv.Store) -> None:
        seen: list[mqkv.Change] = []
        done = threading.Event()

        def callback(change: mqkv.Change) -> None:
            seen.append(change)
            if change.value == "last":
                done.set()
            if change.value == 0:
                raise RuntimeError("a callback may fail")

        watch = store.watch("k", callback)
        for value in (0, 1, "last"):
            other.set("k", value)
        assert done.wait(10)
        store.unwatch(watch)
        other.set("k", "unseen")
        assert store.get("k", fresh=True) == "unseen"
        assert [change.value for change in seen] == [0, 1, "last"]

    def test_watch_starts_where_it_is_told(self, store: mqkv.Store) -> None:
        revisions = [store.set("k", number) for number in range(4)]
        cases: list[tuple[Any, list[int]]] = [("first", [0, 1, 2, 3]), (revisions[2], [2, 3]), ("last", [3]), ("next", [])]
        watches = [store.watch("k", start=start) for start, _ in cases]
        store.set("k", 4)
        for watch, (_, expected) in zip(watches, cases, strict=True):
            with watch:
                seen = [watch.get(10) for _ in range(len(expected) + 1)]
            assert [change and change.value for change in seen] == [*expected, 4]
        for start in ("never", -1, 1.5, True, None):
            with pytest.raises(mqkv.InvalidOption):
                store.watch("k", start=start)  # type: ignore[arg-type]

    def test_watch_a_pattern(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set("user:1", "old")
        with store.watch("user:*") as changes:
            other.set("user:1", "a")
            other.set("else", "no")
            other.set("user:2", "b")
            seen = {(change.key, change.value) for change in (changes.get(10), changes.get(10)) if change}
            assert seen == {("user:1", "a"), ("user:2", "b")}

    # Without waiting

    def test_unconfirmed_writes(self, make: MakeStore, other_url: str) -> None:
        store, other = make(confirm=False), make(other_url)
        for number in range(200):
            assert store.set("k", number) == -1
            assert store.get("k") == number
        store.set("gone", 1)
        store.delete("gone")
        assert store.get("gone") is None
        store.flush()
        assert store.stats()["unconfirmed"] == 0 and store.stats()["failed_writes"] == 0
        assert other.get("k", fresh=True) == 199 and store.get("k") == 199 and other.get("gone", fresh=True) is None

    # Life

    def test_stores_of_one_url_share(self, make: MakeStore) -> None:
        first, second = make(), make()
        first.set("k", "v")
        second.preload("k")
        first.close()
        assert second.get("k") == "v"
        second.set("k", "w")
        assert second.get("k") == "w"

    def test_close(self, make: MakeStore) -> None:
        store = make()
        store.set("k", "v")
        store.close()
        store.close()
        for call in (lambda: store.get("k"), lambda: store.set("k", 1), store.keys, store.stats, lambda: store.watch("k")):
            with pytest.raises(mqkv.Closed):
                call()
        with make() as again:
            assert "open" in repr(again)
        assert "closed" in repr(again)

    def test_a_watch_outlives_a_purge(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set("k", "v")
        with store.watch("k") as mine, other.watch("k") as theirs:
            store.purge()
            store.set("k", "new")
            for watch in (mine, theirs):
                told = [watch.get(10)]
                while told[-1] is not None and told[-1].kind == "reset":
                    told.append(watch.get(10))
                assert len(told) > 1 and told[-1] is not None and told[-1].value == "new"

    def test_what_is_no_key_is_not_in_a_store(self, store: mqkv.Store) -> None:
        assert "" not in store and "a\nb" not in store and 1 not in store

    def test_close_ends_watches(self, make: MakeStore) -> None:
        store = make()
        watch = store.watch("k")
        store.close()
        assert list(watch) == []


def run_all(jobs: list[Callable[[], object]], timeout: float = 60) -> None:
    """Run jobs in threads of their own, and raise what the first of them raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 -- raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread did not end in time"
