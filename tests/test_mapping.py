"""StreamDict is a MutableMapping like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mqkv


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
