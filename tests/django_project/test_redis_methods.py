"""What users of django-redis expect beyond Django's methods."""

from __future__ import annotations

import datetime
import threading
import time
from typing import Any

import pytest
from django.core.cache import caches

import mqkv
from mqkv.django import InvalidCacheOption


def test_ttl(cache: Any) -> None:
    cache.set("k", [1], 10)
    cache.set("forever", 1, None)
    assert cache.ttl("k") == 10 and 9_000 < cache.pttl("k") <= 10_000
    assert cache.ttl("forever") is None and cache.pttl("forever") is None
    assert cache.ttl("nothing") == 0 and cache.pttl("nothing") == 0
    assert cache.persist("k") is True and cache.ttl("k") is None and cache.persist("nothing") is False
    assert cache.expire("k", 20) is True and cache.ttl("k") == 20 and cache.expire("nothing", 20) is False
    assert cache.pexpire("k", 20_500) is True and cache.ttl("k") == 21
    now = datetime.datetime.now(datetime.timezone.utc)
    assert cache.expire_at("k", now + datetime.timedelta(hours=1)) is True and 3590 < cache.ttl("k") <= 3600
    assert cache.expire_at("k", time.time() + 60) is True and 50 < cache.ttl("k") <= 60
    assert cache.pexpire_at("k", (time.time() + 90) * 1000) is True and 80 < cache.ttl("k") <= 90
    assert cache.expire_at("k", now - datetime.timedelta(hours=1)) is True and cache.get("k") is None
    cache.set("k", 1, version=5)
    assert cache.ttl("k", version=5) == 300 and cache.ttl("k") == 0


def test_keys(entry: Any, settings: Any) -> None:
    options = {"name": "shared"}
    settings.CACHES = {
        "default": entry(KEY_PREFIX="a*[b]", OPTIONS=options),
        "other": entry(KEY_PREFIX="a*[b]c", OPTIONS=options),
    }
    cache = caches["default"]
    cache.set_many({"user:1": 1, "user:2": 2, "page:1": 3, "USER:3": 4})
    cache.set("user:9", 1, version=2)
    caches["other"].set("user:7", 1)
    assert sorted(cache.keys("user:*")) == ["user:1", "user:2"]
    assert sorted(cache.keys()) == ["USER:3", "page:1", "user:1", "user:2"] and cache.keys("*", version=2) == ["user:9"]
    assert sorted(cache.iter_keys("*:1", itersize=1)) == ["page:1", "user:1"]
    assert cache.delete_pattern("user:*", itersize=1) == 2 and cache.delete_pattern("user:*") == 0
    assert cache.delete_pattern("user:*", version=2) == 1
    assert cache.delete_pattern("user:*", prefix="a*[b]c") == 1 and caches["other"].keys() == []
    assert sorted(cache.keys()) == ["USER:3", "page:1"]


def upside_down(key: str, prefix: str, version: int) -> str:
    return f"{key}|{prefix}|{version}"


def upright(name: str) -> str:
    return name.split("|")[0]


def test_keys_of_a_key_function(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {
        "default": memory_entry(KEY_FUNCTION=upside_down),
        "reversible": memory_entry(KEY_FUNCTION=upside_down, REVERSE_KEY_FUNCTION=f"{__name__}.upright"),
    }
    for alias in settings.CACHES:
        caches[alias].set("k", 1)
    assert caches["reversible"].keys("k*") == ["k"] and caches["default"].delete_pattern("k*") == 1
    caches["default"].set("k", 1)
    with pytest.raises(InvalidCacheOption, match="REVERSE_KEY_FUNCTION"):
        caches["default"].keys("k*")
    caches["default"].clear()
    assert caches["default"].get("k") is None


def test_set_if_absent_or_there(cache: Any) -> None:
    assert cache.set("k", 1, nx=True) is True and cache.set("k", 2, nx=True) is False and cache.get("k") == 1
    assert cache.set("k", [2], 50, xx=True) is True and cache.get("k") == [2] and cache.ttl("k") == 50
    assert cache.set("nothing", 1, xx=True) is False and cache.get("nothing") is None
    assert cache.set("k", 3, nx=True, xx=True) is False
    assert cache.set("k", 3, 0, xx=True) is True and cache.get("k") is None


def test_lock(cache: Any) -> None:
    lock = cache.lock("jobs", timeout=5, blocking_timeout=0.2)
    assert isinstance(lock, mqkv.Lock)
    with lock:
        answers: list[object] = []

        def other() -> None:
            answers.append(cache.lock("jobs", blocking=False).acquire())
            try:
                with caches["default"].lock("jobs", blocking_timeout=0.1):
                    answers.append("had it")
            except mqkv.LockTimeout:
                answers.append("timeout")
            with cache.lock("jobs", version=2):
                answers.append("another one")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert answers == [False, "timeout", "another one"]
    assert not lock.locked()


class Upper:
    """A serializer of one's own; takes bytes, as those that are written for django-redis do."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def dumps(self, value: Any) -> bytes:
        return repr(value).encode()

    def loads(self, data: bytes) -> Any:
        import ast

        return ast.literal_eval(data.decode())


class Halves:
    """A compressor that is written for django-redis: no bound, and one argument."""

    def compress(self, value: bytes) -> bytes:
        import zlib

        return zlib.compress(value)

    def decompress(self, value: bytes) -> bytes:
        import zlib

        return zlib.decompress(value)


@pytest.mark.parametrize("by", ["path", "instance", "class"])
def test_a_serializer_and_a_compressor_of_ones_own(entry: Any, settings: Any, by: str) -> None:
    serializer = {"path": f"{__name__}.Upper", "instance": Upper({}), "class": Upper}[by]
    compressor = {"path": f"{__name__}.Halves", "instance": Halves(), "class": Halves}[by]
    options = {"SERIALIZER": serializer, "COMPRESSOR": compressor, "COMPRESS_OVER": 100}
    settings.CACHES = {"default": entry(OPTIONS=options)}
    cache = caches["default"]
    value = {"a": ["x" * 1000], "b": (1, None)}
    cache.set_many({"k": value, "n": 1, "s": "y" * 1000})
    assert cache.get_many(["k", "n", "s"]) == {"k": value, "n": 1, "s": "y" * 1000} and cache.incr("n") == 2
    assert cache.get("k") == value and cache.get("k") is not cache.get("k")
    settings.CACHES = {"default": entry(OPTIONS={**options, "signed": False})}
    with pytest.raises(InvalidCacheOption, match="compressor"):
        caches["default"]
