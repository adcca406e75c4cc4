"""The operations that are decided by log order, whatever the engine and layout: a class of tests to inherit from.

Everything is asked of two stores, which on most engines have connections of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import mqkv
from mqkv.testing.agreement import AgreementContract
from mqkv.testing.fixtures import BAD_KEYS, BAD_TTLS, Clock, MakeStore

BAD_NUMBERS: list[Any] = [None, "1", True, b"1", [1], float("nan"), float("inf"), 2**63, -(2**63) - 1]


def at_once(*calls: Any) -> list[Any]:
    """What the calls return or raise, each in a thread of its own."""
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def call(at: int) -> None:
        barrier.wait(30)
        try:
            results[at] = calls[at]()
        except Exception as error:  # noqa: BLE001 -- it is the result
            results[at] = error

    threads = [threading.Thread(target=call, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


class Shouting:
    """A codec that reads only what it wrote. ``meanwhile`` happens once, when the next value is read."""

    meanwhile: Callable[[], object] | None = None

    def __init__(self, *, lenient: bool = False) -> None:
        self.unreadable_is_absent = lenient

    def encode(self, value: object) -> tuple[bytes, str | None]:
        return str(value).upper().encode(), "text/x-shouting"

    def decode(self, body: bytes, content_type: str | None) -> object:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        if content_type != "text/x-shouting":
            raise mqkv.UnreadableValue("not shouted")
        return body.decode().lower()


class OperationsContract(AgreementContract):
    """Conditional operations, batches, barriers."""

    # Add and compare-and-set

    def test_add(self, store: mqkv.Store, other: mqkv.Store) -> None:
        assert store.add("k", 1) is True
        assert store.add("k", 2) is False and other.add("k", 3) is False
        assert other.get("k", fresh=True) == 1
        other.delete("k")
        assert store.add("k", None) is True and store.add("k", 4) is False and store.get("k", "default") is None

    def test_of_all_who_add_at_once_one_is_told_true(self, make: MakeStore, other_url: str) -> None:
        stores = [make(), make(other_url)]
        results = at_once(*(lambda i=i: stores[i % 2].add("k", i) for i in range(8)))
        assert sorted(results) == [False] * 7 + [True]
        assert {store.get("k", fresh=True) for store in stores} == {results.index(True)}

    def test_add_where_a_value_has_expired(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        assert store.add("k", 1, ttl=10) and store.ttl("k") == pytest.approx(10)
        clock.now += 9.9
        assert not store.add("k", 2)
        clock.now += 0.2
        assert store.add("k", 3) and store.get("k") == 3 and store.ttl("k") is None

    def test_compare_and_set(self, store: mqkv.Store, other: mqkv.Store) -> None:
        revision = store.set("k", "one")
        assert not other.compare_and_set("k", "never", revision + 1)
        assert other.compare_and_set("k", "two", revision)
        assert not store.compare_and_set("k", "never", revision)
        entry = store.entry("k")
        assert entry is not None
        assert entry.value == "two" and entry.revision > revision
        assert store.compare_and_set("k", "three", entry.revision, ttl=60) and store.ttl("k") is not None
        assert not store.compare_and_set("absent", 1, 0) and not store.exists("absent")

    def test_compare_and_set_against_absence(self, store: mqkv.Store) -> None:
        assert store.compare_and_set("k", 1, None) and not store.compare_and_set("k", 2, None)
        store.delete("k")
        assert store.compare_and_set("k", 3, None) and store.get("k") == 3

    @pytest.mark.parametrize("revision", [-1, True, 1.0, "1", 2**63], ids=repr)
    def test_bad_revisions(self, store: mqkv.Store, revision: Any) -> None:
        store.set("k", 1)
        calls: list[Any] = [lambda: store.compare_and_set("k", 2, revision), lambda: store.delete("k", revision=revision)]
        for call in calls:
            with pytest.raises(mqkv.InvalidOption):
                call()
        assert store.get("k") == 1

    def test_conditional_delete(self, store: mqkv.Store, other: mqkv.Store) -> None:
        revision = store.set("k", 1)
        assert not other.delete("k", revision=revision + 1) and other.get("k", fresh=True) == 1
        assert other.delete("k", revision=revision) and not store.delete("k", revision=revision)
        assert store.get("k", fresh=True) is None and not store.delete("absent", revision=0)

    # Counters

    def test_incr(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set("k", 1)
        assert store.incr("k") == 2 and other.incr("k", 40) == 42 and store.incr("k", -2) == 40
        assert store.incr("k", 0.5) == 40.5 and other.get("k", fresh=True) == 40.5
        total = other.incr("k", 1)
        assert total == 41.5 and type(total) is float

    def test_incr_from_nothing(self, store: mqkv.Store, other: mqkv.Store) -> None:
        with pytest.raises(mqkv.KeyNotFound):
            store.incr("k")
        assert not store.exists("k") and store.keys() == []
        assert store.incr("k", initial=10) == 11 and other.incr("k", 1, initial=10) == 12
        assert store.incr("f", 0.25, initial=1) == 1.25

    def test_incr_keeps_the_ttl(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        store.set("k", 1, ttl=100)
        clock.now += 50
        assert store.incr("k") == 2 and store.ttl("k") == pytest.approx(50)
        assert store.incr("k", initial=0, ttl=1000) == 3 and store.ttl("k") == pytest.approx(50)
        clock.now += 51
        assert store.incr("k", initial=0, ttl=10) == 1 and store.ttl("k") == pytest.approx(10)
        with pytest.raises(mqkv.InvalidOption):
            store.incr("k", ttl=10)

    @pytest.mark.parametrize("value", ["1", b"1", True, None, [1], {"a": 1}], ids=repr)
    def test_incr_of_what_is_no_number(self, store: mqkv.Store, value: Any) -> None:
        store.set("k", value)
        with pytest.raises(mqkv.NotANumber) as caught:
            store.incr("k")
        assert "'k'" in str(caught.value)
        assert store.get("k") == value

    def test_incr_past_64_bits(self, store: mqkv.Store) -> None:
        store.set("k", 2**63 - 1)
        store.set("f", 1.7e308)
        for key, delta in (("k", 1), ("f", 1.7e308)):
            with pytest.raises(mqkv.NotANumber):
                store.incr(key, delta)
        assert store.get("k") == 2**63 - 1 and store.get("f") == 1.7e308
        assert store.incr("k", -1) == 2**63 - 2

    @pytest.mark.parametrize("number", BAD_NUMBERS, ids=repr)
    def test_bad_numbers(self, store: mqkv.Store, number: Any) -> None:
        with pytest.raises(mqkv.InvalidValue):
            store.incr("k", number, initial=0)
        if number is not None:
            with pytest.raises(mqkv.InvalidValue):
                store.incr("k", 1, initial=number)
        assert not store.exists("k")

    def test_counting_at_once(self, make: MakeStore, other_url: str) -> None:
        stores = [make(), make(other_url)]

        def count(store: mqkv.Store) -> list[int]:
            return [store.incr("k", initial=0) for _ in range(50)]

        results = at_once(*(lambda i=i: count(stores[i % 2]) for i in range(4)))
        assert sorted(number for result in results for number in result) == list(range(1, 201))
        assert all(result == sorted(result) for result in results)

    # Touch, pop, get_or_set

    def test_touch(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        assert store.touch("k", 10) is False and store.keys() == []
        revision = store.set("k", "v", ttl=10)
        assert store.touch("k", 100) and store.ttl("k") == pytest.approx(100)
        clock.now += 50
        entry = store.entry("k")
        assert entry is not None and entry.value == "v" and entry.revision > revision
        assert store.touch("k", None) and store.ttl("k") is None
        clock.now += 1e6
        assert store.get("k") == "v"
        assert store.touch("k", 1)
        clock.now += 1
        assert not store.touch("k", 10) and not store.exists("k")

    def test_pop(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set("k", {"a": 1})
        assert other.pop("k") == {"a": 1} and store.pop("k", None) is None and store.pop("k", "default") == "default"
        with pytest.raises(mqkv.KeyNotFound):
            store.pop("k")
        assert store.get("k", fresh=True) is None

    def test_of_all_who_pop_at_once_one_gets_it(self, make: MakeStore, other_url: str) -> None:
        stores = [make(), make(other_url)]
        stores[0].set("k", "prize")
        results = at_once(*(lambda i=i: stores[i % 2].pop("k", "none") for i in range(6)))
        assert sorted(results) == ["none"] * 5 + ["prize"]

    def test_what_a_store_can_not_read_it_does_not_take(self, make: MakeStore, other_url: str) -> None:
        store, other = make(), make(other_url, codec=Shouting())
        other.set("k", "theirs", ttl=60)
        for take in (lambda: store.pop("k"), lambda: store.pop("k", None), store.popitem):
            with pytest.raises(mqkv.UnreadableValue, match="'k'"):
                take()
        assert len(other.history("k")) == 1, "nothing was written"
        assert other.get("k", fresh=True) == "theirs"
        assert other.popitem() == ("k", "theirs")

    def test_what_counts_as_absent_is_not_taken(self, make: MakeStore, other_url: str) -> None:
        other, store = make(other_url), make(codec=Shouting(lenient=True))
        store.set("a", "ours")
        other.set("k", "theirs")
        assert store.pop("k", "default") == "default"
        assert store.popitem() == ("a", "ours")
        with pytest.raises(mqkv.KeyNotFound):
            store.popitem()
        assert other.get("k", fresh=True) == "theirs"

    @pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
    def test_what_comes_to_be_unreadable_during_a_pop_is_put_back(self, make: MakeStore, other_url: str, lenient: bool) -> None:
        other, codec = make(other_url), Shouting(lenient=lenient)
        store = make(codec=codec)
        store.set("k", "ours")
        assert store.get("k", fresh=True) == "ours"
        codec.meanwhile = lambda: other.set("k", {"theirs": 1}, ttl=60)
        if lenient:
            assert store.pop("k", "default") == "default"
        else:
            with pytest.raises(mqkv.UnreadableValue, match="'k'"):
                store.pop("k")
        assert other.get("k", fresh=True) == {"theirs": 1}
        left = other.ttl("k")
        assert left is not None and 50 < left <= 60

    def test_get_or_set(self, store: mqkv.Store, other: mqkv.Store) -> None:
        assert store.get_or_set("k", lambda: 1, ttl=60) == 1 and store.ttl("k") is not None
        assert other.get_or_set("k", lambda: 2) == 1 and store.get_or_set("k", 3) == 1
        assert store.get_or_set("n", None) is None and store.get_or_set("n", 5) is None

    # Many keys

    def test_set_many_and_delete_many(self, store: mqkv.Store, other: mqkv.Store) -> None:
        values = {f"k{i}": value for i, value in enumerate(["text", b"bytes", 1, None, {"a": [1]}, 1.5, True])}
        store.set_many(values)
        store.set_many({})
        other.sync()
        assert other.get_many([*values, "absent"]) == values and store.get_many(iter(values)) == values
        assert {key: other.get(key, fresh=True) for key in values} == values
        assert other.delete_many([*list(values)[:3], "absent", "k0"]) == 3 and other.delete_many([]) == 0
        store.sync()
        assert sorted(store.keys()) == ["k3", "k4", "k5", "k6"]

    def test_set_many_with_a_ttl(self, make: MakeStore, clock: Clock) -> None:
        store = make(clock=clock)
        store.set_many({"a": 1, "b": 2}, ttl=10)
        assert store.ttl("a") == pytest.approx(10)
        clock.now += 10
        assert store.get_many(["a", "b"]) == {} and store.keys() == []

    def test_one_bad_key_or_value_and_nothing_is_set(self, store: mqkv.Store) -> None:
        for bad in ({"a": 1, "": 2}, {"a": 1, "b": object()}):
            with pytest.raises((mqkv.InvalidKey, mqkv.InvalidValue)):
                store.set_many(bad)
        with pytest.raises(mqkv.InvalidTTL):
            store.set_many({"a": 1}, ttl=-1)
        assert store.keys() == []

    @pytest.mark.parametrize("layout", ["shared"], indirect=True)
    def test_readers_see_a_batch_as_a_whole(self, make: MakeStore, other_url: str) -> None:
        store, other = make(), make(other_url)
        keys = [f"k{i}" for i in range(50)]
        store.set_many(dict.fromkeys(keys, 0))
        other.sync()
        done = threading.Event()

        def write() -> None:
            for number in range(1, 60):
                store.set_many({key: number if i % 2 else [number] for i, key in enumerate(keys)})
            done.set()

        def read() -> int:
            seen = 0
            while not done.is_set():
                values = {value[0] if isinstance(value, list) else value for value in other.get_many(keys).values()}
                assert len(values) == 1, values
                first, last = other.get(keys[1], 0), other.get(keys[-1], 0)
                assert last >= first
                seen += 1
            return seen

        results = at_once(write, read)
        assert results[1] > 0

    @pytest.mark.parametrize("layout", ["shared"], indirect=True)
    def test_a_batch_that_is_too_large(self, store: mqkv.Store) -> None:
        with pytest.raises(mqkv.ValueTooLarge):
            store.set_many({f"k{i}": "x" * 2**20 for i in range(17)})
        assert store.keys() == []

    def test_plain_records_for_the_gem(self, make: MakeStore, other: mqkv.Store) -> None:
        store = make(pack=False)
        store.set_many({"a": 1, "b": 2}, ttl=60)
        assert store.delete_many(["a", "absent"]) == 1
        other.sync()
        assert other.items() == [("b", 2)] and other.ttl("b") is not None

    def test_batches_that_nobody_waits_for(self, make: MakeStore, other: mqkv.Store) -> None:
        store = make(confirm=False)
        store.set_many({"a": 1, "b": 2})
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}
        store.flush()
        store.delete_many(["a"])
        assert store.peek("a") is None
        store.flush()
        other.sync()
        assert sorted(other.keys()) == ["b"]

    def test_clear_of_a_prefix(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set_many({"a:1": 1, "a:2": 2, "ab": 3, "b:1": 4})
        store.clear(prefix="a:")
        other.sync()
        assert sorted(other.keys()) == ["ab", "b:1"] and other.get("a:1", fresh=True) is None
        for bad in (None, 1, "a\n"):
            with pytest.raises(mqkv.InvalidKey):
                store.clear(prefix=bad)  # type: ignore[arg-type]

    def test_watches_see_operations(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.set("n", 1)
        with other.watch("*") as watch:
            store.incr("n")
            store.add("a", "x")
            store.add("a", "y")
            store.touch("a", 100)
            store.pop("a")
            store.set_many({"b": 1})
            seen = [watch.get(10) for _ in range(5)]
            assert [(c.key, c.kind, c.value) for c in seen if c] == [
                *(("n", "set", 2), ("a", "set", "x"), ("a", "set", "x"), ("a", "delete", None), ("b", "set", 1)),
            ]
            assert watch.get(0.05) is None

    def test_history_has_operations(self, store: mqkv.Store) -> None:
        store.set("n", 1)
        store.incr("n")
        store.compare_and_set("n", 10, 0)
        store.incr("n", 5)
        assert store.history("n") == [1, 2, 7]

    def test_stores_that_are_opened_alike_share_tables(self, make: MakeStore) -> None:
        one, two = make(), make()
        one.preload("k")
        one.set("k", 1)
        assert two.peek("k") == 1

    def test_an_uncached_read_sees_what_another_has_counted(self, store: mqkv.Store, other: mqkv.Store) -> None:
        for number in range(1, 20):
            who, reader = (store, other) if number % 2 else (other, store)
            assert who.incr("k", initial=0) == number
            assert reader.get("k", fresh=True) == number

    # Barriers, errors, lives

    def test_sync(self, store: mqkv.Store, other: mqkv.Store) -> None:
        store.sync()
        assert store.keys() == []
        other.set("k", 1)
        other.preload("k")
        for number in range(2, 20):
            store.set("k", number)
            other.sync()
            assert other.peek("k") == number
            store.incr("k", 1000)
            assert other.get("k", fresh=True) == number + 1000

    def test_operations_survive_a_new_start(self, make: MakeStore, other_url: str) -> None:
        make(other_url)  # an engine in memory lives as long as a store of it
        with make() as first:
            first.set("k", 1)
            first.incr("k")
            first.add("a", "x")
            first.set_many({"m": [1], "n": 2})
        again = make(other_url)
        assert again.get("k") == 2 and again.get("a") == "x" and again.get_many(["m", "n"]) == {"m": [1], "n": 2}
        assert again.incr("k") == 3 and not again.add("a", "y")

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key)[:20])
    def test_bad_keys_of_operations(self, store: mqkv.Store, key: Any) -> None:
        for call in (
            *(lambda: store.add(key, 1), lambda: store.compare_and_set(key, 1, None), lambda: store.incr(key, initial=0)),
            *(lambda: store.touch(key, 1), lambda: store.pop(key, None), lambda: store.delete(key, revision=1)),
            *(lambda: store.get_or_set(key, 1), lambda: store.get_many([key]), lambda: store.delete_many([key])),
            lambda: store.lock(key).acquire(0),
        ):
            with pytest.raises(mqkv.InvalidKey):
                call()
        assert store.keys() == []

    @pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
    def test_bad_ttls_of_operations(self, store: mqkv.Store, ttl: Any) -> None:
        store.set("k", 1)
        for call in (
            *(lambda: store.add("a", 1, ttl=ttl), lambda: store.compare_and_set("a", 1, None, ttl=ttl)),
            *(
                lambda: store.incr("a", initial=1, ttl=ttl),
                lambda: store.touch("k", ttl),
                lambda: store.get_or_set("a", 1, ttl=ttl),
            ),
        ):
            with pytest.raises(mqkv.InvalidTTL):
                call()
        assert store.keys() == ["k"] and store.ttl("k") is None

    def test_operations_after_close(self, make: MakeStore) -> None:
        store = make()
        store.close()
        for call in (
            *(lambda: store.add("k", 1), lambda: store.incr("k", initial=0), lambda: store.pop("k", None), store.sync),
            *(lambda: store.set_many({"k": 1}), lambda: store.delete_many(["k"]), lambda: store.lock("l").acquire(0)),
        ):
            with pytest.raises(mqkv.Closed):
                call()
