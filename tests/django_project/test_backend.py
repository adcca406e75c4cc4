"""The methods of Django's BaseCache, and what mqkv promises beyond them. (Django's own tests of them: tests/django_suite.)"""

from __future__ import annotations

import datetime
import decimal
import math
import pickle
import threading
import time
import warnings
from typing import Any

import pytest
from django.core.cache import CacheKeyWarning, InvalidCacheKey, caches
from django.utils.safestring import SafeString, mark_safe

import mqkv
import mqkv.django
from mqkv.django import stores

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    0.0,
    -0.5,
    1e300,
    math.inf,
    "",
    "text",
    "üñí\x00\n",
    "\ud800",
    b"",
    b"\x00\xff",
    (1, 2),
    {1, 2},
    {"a": [1, {"b": None}]},
    datetime.datetime(2030, 1, 2, tzinfo=datetime.timezone.utc),
    decimal.Decimal("1.10"),
    mark_safe("<b>"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_what_goes_in_comes_out(memory_entry: Any, settings: Any, value: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    cache = caches["default"]
    cache.set("k", value)
    assert cache.get("k") == value and type(cache.get("k")) is type(value)
    assert cache.get_many(["k"]) == {"k": value}
    assert cache.add("k", 1) is False and cache.has_key("k") and "k" in cache


def test_nan_and_what_is_safe(cache: Any) -> None:
    cache.set_many({"nan": math.nan, "safe": mark_safe("<b>")})
    assert math.isnan(cache.get("nan")) and isinstance(cache.get("safe"), SafeString)


def test_a_value_that_is_changed_after_a_get_is_not_changed_in_the_cache(cache: Any) -> None:
    value = {"list": [1]}
    cache.set("k", value)
    value["list"].append(2)
    got = cache.get("k")
    got["list"].append(3)
    assert cache.get("k") == {"list": [1]} and cache.get_many(["k"]) == {"k": {"list": [1]}}


def test_a_cached_none_is_a_hit(cache: Any) -> None:
    cache.set("k", None)
    assert cache.get("k", "default") is None and cache.has_key("k") and cache.get_or_set("k", 1) is None
    assert cache.get_many(["k", "other"]) == {"k": None} and cache.add("k", 1) is False


def test_timeouts(cache: Any) -> None:
    cache.set("none", 1, None)
    cache.set("long", 1, 10**12)
    cache.set("zero", 1, 0)
    cache.set("kept", 1)
    cache.set("kept", 2, -1)
    cache.set("short", 1, 1)
    assert cache.get_many(["short", "none", "long", "zero", "kept"]) == {"short": 1, "none": 1, "long": 1}
    assert cache.add("zero", 1, 0) is True and cache.get("zero") is None
    assert cache.add("none", 1, 0) is False and cache.get("none") == 1
    assert cache.set_many({"none": 2, "new": 1}, 0) == [] and cache.get_many(["none", "new"]) == {}
    time.sleep(1.05)
    assert cache.get("short") is None and cache.add("short", 2) is True
    assert cache.touch("long", None) is True and cache.touch("nothing") is False
    assert cache.touch("long", -1) is True and cache.touch("long", -1) is False


def test_the_default_timeout(entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": entry(), "never": entry(TIMEOUT=None), "now": entry(TIMEOUT=0), "short": entry(TIMEOUT="7")}
    for alias, ttl in (("default", 300), ("never", None), ("now", 0), ("short", 7)):
        caches[alias].set("k", 1)
        assert caches[alias].ttl("k") == ttl


def test_incr(cache: Any) -> None:
    cache.set("n", 5, 100)
    assert cache.incr("n") == 6 and cache.decr("n", 10) == -4 and cache.incr("n", 1.5) == -2.5
    assert 90 < cache.ttl("n") <= 100, "a counter keeps its ttl"
    for key in ("nothing", "n2"):
        with pytest.raises(ValueError, match=key):
            cache.incr(key)
        with pytest.raises(ValueError, match=key):
            cache.decr(key)
    cache.set("text", "a")
    with pytest.raises(TypeError):
        cache.incr("text")
    cache.set("flag", True)
    with pytest.raises(TypeError):
        cache.incr("flag")
    assert cache.get("text") == "a"


def test_incr_by_many_threads_is_exact(cache: Any, entry: Any) -> None:
    cache.set("n", 0)

    def work() -> None:
        for _ in range(20):
            caches["default"].incr("n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 80


def test_many(cache: Any) -> None:
    assert cache.set_many({}) == [] and cache.get_many([]) == {} and cache.delete_many([]) is None
    assert cache.set_many({"a": 1, "b": [2], 3: "three"}) == []
    assert cache.get_many(key for key in ("a", "b", 3, "zz")) == {"a": 1, "b": [2], 3: "three"}
    cache.delete_many(key for key in ("a", 3, "zz"))
    assert cache.get_many(["a", "b", 3]) == {"b": [2]}


def test_set_many_is_one_record(cache: Any) -> None:
    with mqkv.django.get_store().watch("*") as changes:
        cache.set_many({f"k{n}": n for n in range(100)})
        seen = [changes.get(5) for _ in range(100)]
    assert len({change.revision for change in seen if change}) == 1


def test_set_many_tells_which_keys_were_too_large(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    cache = caches["default"]
    big = b"x" * (6 * 2**20)
    data = {"small": 1, "big 1": big, "big 2": big, "big 3": big, "huge": b"x" * (17 * 2**20), "other": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheKeyWarning)
        assert cache.set_many(data) == ["huge"]
        assert set(cache.get_many(data)) == set(data) - {"huge"}


def test_get_or_set(cache: Any) -> None:
    assert cache.get_or_set("k", lambda: [1]) == [1] and cache.get_or_set("k", 2) == [1]
    assert cache.get_or_set("none", None) is None and cache.has_key("none")


def test_versions(cache: Any) -> None:
    cache.set("k", "one")
    cache.set("k", "two", version=2)
    assert cache.get("k") == "one" and cache.get("k", version=2) == "two"
    assert cache.incr_version("k", 2) == 3 and cache.get("k") is None and cache.get("k", version=3) == "one"
    assert cache.decr_version("k", version=3) == 2 and cache.get("k", version=2) == "one"
    with pytest.raises(ValueError):
        cache.incr_version("nothing")


def test_clear_is_limited_to_the_prefix(entry: Any, settings: Any) -> None:
    options = {"name": "one-for-all"}
    settings.CACHES = {name: entry(KEY_PREFIX=name, OPTIONS=options) for name in ("default", "other")}
    settings.CACHES["none"] = entry(OPTIONS=options)
    for alias in settings.CACHES:
        caches[alias].set_many({"a": alias, "b": alias}, version=7)
        caches[alias].set("a", alias)
    caches["other"].clear()
    assert [caches[alias].get("a") for alias in settings.CACHES] == ["default", None, "none"]
    assert caches["other"].get_many(["a", "b"], version=7) == {}
    caches["none"].clear()
    assert caches["default"].get_many(["a", "b"], version=7) == {"a": "default", "b": "default"}
    assert caches["none"].get("a") is None


def test_aliases_are_keyspaces_of_their_own(entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": entry(), "twin": entry(), "named": entry(OPTIONS={"NAME": "django.django_project.default"})}
    caches["twin"].set("k", "twin")
    caches["default"].set("k", "default")
    assert [caches[alias].get("k") for alias in settings.CACHES] == ["default", "twin", "default"]
    assert repr(caches["twin"]).startswith("<StreamCache on <mqkv.Store ")


def test_keys_that_others_would_refuse(cache: Any) -> None:
    for key in ("with space", "x" * 300, "tab\tin it"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if "\t" in key:
                with pytest.raises(InvalidCacheKey):
                    cache.set(key, 1)
                with pytest.raises(InvalidCacheKey):
                    cache.get(key)
            else:
                cache.set(key, 1)
                assert cache.get(key) == 1
        assert {warning.category for warning in caught} == {CacheKeyWarning}
    cache.set("üñí", 1)
    assert cache.get("üñí") == 1


def test_errors_of_pickling_come_out_and_nothing_is_written(cache: Any) -> None:
    def fails() -> None: ...

    for work in (cache.set, cache.add):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            work("k", fails)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        cache.get_or_set("k", lambda: fails)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        cache.set_many({"a": 1, "k": fails})
    assert cache.get_many(["a", "k"]) == {}


@pytest.mark.parametrize("layout", ["per-key"])
def test_the_other_layout(entry: Any, settings: Any, layout: str) -> None:
    settings.CACHES = {"default": entry(OPTIONS={"layout": layout}, KEY_PREFIX="p")}
    cache = caches["default"]
    cache.set("a", [1])
    assert cache.set_many({"b": 2, "c": 3}) == [] and cache.add("a", 2) is False and cache.incr("b") == 3
    assert cache.get_many(["a", "b", "zz"]) == {"a": [1], "b": 3} and sorted(cache.keys()) == ["a", "b", "c"]
    assert cache.touch("a", 10) and cache.ttl("a") == 10
    assert cache.delete("a") is True and cache.delete("a") is False
    cache.clear()
    assert cache.keys() == []


def test_max_entries(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"MAX_ENTRIES": 3})}
    cache = caches["default"]
    for n in range(5):
        cache.set(f"k{n}", n)
    assert cache.get_many([f"k{n}" for n in range(5)]) == {"k2": 2, "k3": 3, "k4": 4}


def test_a_change_of_another_process_is_seen(cache: Any, entry: Any, prefix: str) -> None:
    cache.set("k", "old")
    # Another process has a connection and a table of its own, and the same secret; a second store comes close.
    config = caches["default"]._shared.config
    other = stores.Shared(config)
    try:
        other.store.set(cache.make_key("k"), "new")
        other.store.sync()
        assert cache.get("k") == "new" and stores.shared(config) is not other
    finally:
        other.close()
