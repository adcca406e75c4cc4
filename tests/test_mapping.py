"""StreamDict is a MutableMapping like any other."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pickle
import unittest
from collections.abc import Iterator
from typing import Any

import cachetools
import pytest

import mqkv
from mqkv.testing.tools import run_threads


@pytest.fixture
def d(url: str, prefix: str, layout: str) -> Iterator[mqkv.StreamDict]:
    with mqkv.StreamDict(url, prefix=prefix, layout=layout, read_timeout=5) as mapping:
        yield mapping
        mapping.store.purge()


def test_item_access(d: mqkv.StreamDict) -> None:
    with pytest.raises(KeyError) as caught:
        d["k"]
    assert isinstance(caught.value, mqkv.KeyNotFound)
    with pytest.raises(KeyError):
        del d["k"]
    d["k"] = "v"
    assert d["k"] == "v" and "k" in d and "x" not in d and 1 not in d and d.get("x") is None and d.get("x", 1) == 1
    del d["k"]
    assert "k" not in d and list(d) == []
    with pytest.raises(mqkv.InvalidKey):
        d[1] = "v"  # type: ignore[index]


def test_as_a_whole(d: mqkv.StreamDict) -> None:
    d.update({"a": 1, "b": [2]}, c=None)
    d |= {"d": "4"}
    expected = {"a": 1, "b": [2], "c": None, "d": "4"}
    assert d == expected and dict(d) == expected and d != {"a": 1} and len(d) == 4 and sorted(d) == list("abcd")
    assert set(d.keys()) == set(expected) and sorted(d.items()) == sorted(expected.items()) and len(list(d.values())) == 4
    assert d | {"e": 5} == {**expected, "e": 5} and {"a": 0} | d == expected
    assert d.copy() == expected and ("a", 1) in d.items() and "a" in set(d.keys()) and None in d.values()
    assert bool(d) and "StreamDict" in repr(d) and (d == 1) is False
    with pytest.raises(TypeError):
        hash(d)
    d.clear()
    assert d == {} and not d and len(d) == 0


def test_views_are_of_now_and_each_iteration_of_one_moment(d: mqkv.StreamDict) -> None:
    d.update({"a": 1, "b": 1, "c": 1})
    items, values, keys = d.items(), d.values(), d.keys()
    assert sorted(items) == [("a", 1), ("b", 1), ("c", 1)] and list(values) == [1, 1, 1]
    d["a"] = 2
    assert ("a", 2) in items and ("a", 1) not in items and 2 in values
    del d["b"]
    assert ("b", 1) not in items and "b" not in keys and len(items) == len(values) == 2 and (1, 1) not in items
    begun, all_values = iter(items), iter(values)
    first = next(begun), next(all_values)
    del d["c"]
    d["d"] = 4
    assert sorted(items) == [("a", 2), ("d", 4)] and sorted(values) == [2, 4]
    assert sorted([first[0], *begun]) == [("a", 2), ("c", 1)] and sorted([first[1], *all_values]) == [1, 2]
    assert items == {("a", 2), ("d", 4)} and items & [("a", 2), ("a", 1)] == {("a", 2)}


class Lenient(mqkv.codecs.DefaultCodec):
    unreadable_is_absent = True


def test_setdefault_where_a_value_of_another_codec_counts_as_absent(d: mqkv.StreamDict, url: str, prefix: str) -> None:
    class Other:
        def encode(self, value: object) -> tuple[bytes, str]:
            return b"?", "application/x-other"

    layout = "shared" if d.store._shared else "per-key"
    with mqkv.StreamDict(url, prefix=prefix, layout=layout, codec=Other()) as other:
        other["k"] = 1
    with mqkv.StreamDict(url, prefix=prefix, layout=layout, codec=Lenient()) as lenient:
        assert "k" not in lenient and lenient.setdefault("k", 2) == 2 and lenient["k"] == 2


def test_what_another_dict_holds_is_taken_at_one_moment(d: mqkv.StreamDict, monkeypatch: pytest.MonkeyPatch) -> None:
    d.update({"a": 1, "b": 2})
    keys = d.store.keys

    def keys_of_a_moment_ago(pattern: str | None = None) -> list[str]:
        found = keys(pattern)
        d.store.delete("a")
        return found

    monkeypatch.setattr(d.store, "keys", keys_of_a_moment_ago)
    d.update(d)
    assert d.copy() == {"a": 1, "b": 2}


def test_pop_setdefault_popitem(d: mqkv.StreamDict) -> None:
    assert d.setdefault("k", 1) == 1 and d.setdefault("k", 2) == 1
    assert d.pop("k") == 1 and d.pop("k", None) is None
    with pytest.raises(KeyError):
        d.pop("k")
    d["x"] = 1
    assert d.popitem() == ("x", 1)
    with pytest.raises(KeyError):
        d.popitem()
    d["x"] = 1
    d.discard("x")
    d.discard("x")
    assert d == {}


def test_iteration_is_over_one_moment(d: mqkv.StreamDict) -> None:
    d.update({"a": 1, "b": 2})
    for key in d:
        d[f"{key}{key}"] = 0
    for key, value in d.items():
        del d[key]
        assert value is not None
    assert len(d) == 0


def test_it_closes_what_it_opened() -> None:
    with mqkv.Store("memory://") as store:
        with mqkv.StreamDict(store) as d:
            d["k"] = "v"
        assert store.get("k") == "v"
        with pytest.raises(TypeError):
            mqkv.StreamDict(store, prefix="p")
    own = mqkv.StreamDict("memory://")
    own.close()
    own.close()
    with pytest.raises(mqkv.Closed):
        own["k"]


def test_in_reverse(d: mqkv.StreamDict) -> None:
    d.update({"a": 1, "b": 2})
    d["c"] = 3
    assert list(d) == list("abc") and list(reversed(d)) == list("cba")
    assert list(reversed(d.keys())) == list("cba") and list(reversed(d.values())) == [3, 2, 1]  # type: ignore[call-overload]
    assert list(reversed(d.items())) == [("c", 3), ("b", 2), ("a", 1)]  # type: ignore[call-overload]
    assert [d.popitem() for _ in range(3)] == [("c", 3), ("b", 2), ("a", 1)]


def test_ttl(d: mqkv.StreamDict) -> None:
    assert d.set("k", "v", ttl=60) >= 0 and d["k"] == "v"
    ttl = d.store.ttl("k")
    assert ttl is not None and 50 < ttl <= 60
    d.set("k", "v")
    assert d.store.ttl("k") is None


def test_from_keys(url: str, prefix: str, layout: Any) -> None:
    class Mine(mqkv.StreamDict):
        pass

    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 5}
    with Mine.fromkeys(url, "ab", **options) as d:
        assert type(d) is Mine and d == {"a": None, "b": None}
        with mqkv.StreamDict.fromkeys(url, iter("bc"), 1, **options) as again:
            assert again == {"a": None, "b": 1, "c": 1}
        with pytest.raises(mqkv.InvalidKey):
            mqkv.StreamDict.fromkeys(url, [1], **options)  # type: ignore[list-item]
        d.store.purge()


def test_a_dict_in_another_process(url: str, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 5}
    with mqkv.StreamDict(url, **options) as d:
        d["k"] = [1]
        with pickle.loads(pickle.dumps(d)) as other, copy.copy(d) as third:
            assert other == third == {"k": [1]} and other.store is not d.store
            other["k2"] = 2
            assert d.store.get("k2", fresh=True) == 2
        with pytest.raises(TypeError, match="from a URL"):
            pickle.dumps(mqkv.StreamDict(d.store))
        d.store.purge()


# How many


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("confirm", [True, False])
def test_len_and_bool_are_exact(url: str, prefix: str, layout: Any, confirm: bool) -> None:
    clock = Clock()
    with mqkv.StreamDict(url, prefix=prefix, layout=layout, read_timeout=5, clock=clock, confirm=confirm) as d:

        def check(count: int) -> None:
            assert len(d) == len(list(d)) == count and bool(d) == (count > 0) == (not d.store.empty())

        check(0)
        d["a"] = d["b"] = 1
        d.set("soon", 1, ttl=10)
        d.set("late", 1, ttl=100)
        check(4)
        clock.now += 50
        check(3)
        d["soon"] = 2
        d.store.touch("late", None)
        d.set("a", 1, ttl=1)
        check(4)
        clock.now += 5
        check(3)
        assert d.popitem()[0] != "a", "what has expired is not there"
        check(2)
        d.discard("b")
        d.discard("never")
        d.store.incr("n", 1, initial=0, ttl=5)
        d.store.flush()
        check(2)
        clock.now += 10
        check(1)
        d.clear()
        check(0)
        d.store.purge()


def test_len_costs_no_look_at_each_key(prefix: str) -> None:
    with mqkv.StreamDict(f"memory://{prefix}") as d:
        for batch in range(10):
            d.update({f"{batch} {number}": None for number in range(20_000)})
        (table,) = d.store._keyspace.tables()

        class Counted(dict[str, Any]):
            looks = 0

            def __iter__(self) -> Iterator[str]:
                Counted.looks += 1
                return super().__iter__()

            def get(self, *arguments: Any) -> Any:
                Counted.looks += 1
                return super().get(*arguments)

        table.state.cells = Counted(table.state.cells)
        assert len(d) == 200_000 and Counted.looks == 0
        assert bool(d) and Counted.looks == 1
        d.set("x", 1, ttl=60)
        Counted.looks = 0
        assert len(d) == 200_001 and Counted.looks == 1


def test_each_who_pops_at_once_gets_another(url: str, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 10}
    with (
        mqkv.StreamDict(url, **options) as one,
        mqkv.StreamDict(url, **options, max_staleness=60) as other,
    ):  # tables of their own
        one.update({f"k{number}": number for number in range(40)})
        assert len(other) == 40
        got: list[tuple[str, Any]] = []

        def take(d: mqkv.StreamDict) -> None:
            with contextlib.suppress(KeyError):
                while True:
                    got.append(d.popitem())

        run_threads([lambda d=d: take(d) for d in (one, other) * 3])  # type: ignore[misc]
        assert sorted(got) == sorted((f"k{number}", number) for number in range(40))
        one.store.purge()


# Other people's code


def test_what_cachetools_can_not_store_it_is_told(url: str, prefix: str) -> None:
    with mqkv.StreamDict(url, prefix=prefix, read_timeout=5) as d:
        calls: list[object] = []

        @cachetools.cached(d, key=lambda value: repr(value)[:20])
        def plain(value: object) -> object:
            calls.append(value)
            return value

        assert plain("a") == plain("a") == "a" and calls == ["a"]
        with pytest.raises(mqkv.InvalidValue, match="tuple"):
            plain(("a", "tuple"))
        large = "x" * (2**24 + 1)
        assert plain(large) == large, "too large is what it takes a ValueError for, and is right"

        @cachetools.cached(d)
        def keyed_by_tuples(value: object) -> object:
            return value

        with pytest.raises(mqkv.InvalidKey, match="must be a str"):
            keyed_by_tuples("a")
        d.store.purge()


#: What CPython asks of mappings in general, and a StreamDict can't do. Keys of streams are text; a dict needs a place; what is
#: changed in place must be set again.
NOT_A_DICT = {
    "test_clear": "int keys",
    "test_copy": "int keys",
    "test_fromkeys": "needs a place",
    "test_items": "int keys",
    "test_setdefault": "changes a value in place",
    "test_update": "int keys",
    "test_values": "int keys",
}
#: ... and of those that keep their keys by their hash.
NOT_HASHED = NOT_A_DICT | {
    "test_eq": "int keys",
    "test_getitem": "keys of any class",
    "test_mutatingiteration": "int keys; iteration is over the keys of one moment, so a change does not end it",
    "test_pop": "keys of any class",
    "test_repr": "shows the place, and no values",
    "test_repr_deep": "int keys; no dict is a value of itself",
}


@pytest.mark.parametrize(
    ("base", "expected"),
    [("BasicTestMappingProtocol", {}), ("TestMappingProtocol", NOT_A_DICT), ("TestHashMappingProtocol", NOT_HASHED)],
)
def test_what_cpython_asks_of_mappings(base: str, expected: dict[str, str], prefix: str) -> None:
    suite: Any = getattr(importlib.import_module("test.mapping_tests"), base)
    made: list[mqkv.StreamDict] = []

    class Anew(mqkv.StreamDict):
        def __init__(self, *initial: Any, **more: Any) -> None:
            super().__init__(f"memory://{prefix}-{len(made)}")
            made.append(self)
            self.update(*initial, **more)

    class Asked(suite):  # type: ignore[misc]
        type2test = Anew

        def _reference(self) -> dict[str, Any]:  # CPython's has a tuple, which JSON does not
            return {"1": "2", "key1": "value1", "key2": [1, 2, 3]}

        def doCleanups(self) -> Any:
            for each in made:
                each.close()
            return super().doCleanups()

    asked = unittest.defaultTestLoader.loadTestsFromTestCase(Asked)
    names = {test._testMethodName for test in asked}  # type: ignore[union-attr]
    result = asked.run(unittest.TestResult())
    failed = {test._testMethodName for test, _ in (*result.failures, *result.errors)}  # type: ignore[attr-defined]
    assert failed == names & expected.keys(), "\n".join(text for _, text in (*result.failures, *result.errors))
    assert len(names) > 10 and not result.skipped
