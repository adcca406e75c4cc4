"""What users of django-redis expect beyond Django's methods."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import threading
import time
from typing import Any

import pytest
from django.core.cache import caches
from django.core.checks import Tags, run_checks

import mqkv
from mqkv.django import InvalidCacheOption


def test_ttl(cache: Any) -> None:
    cache.set("k", [1], 10)
    cache.set("forever", 1, None)
    assert cache.ttl("k") == 10 and 9_000 < cache.pttl("k") <= 10_000
    assert cache.ttl("forever") is None and cache.pttl("forever") is None
    assert cache.ttl("nothing") == 0 and cache.pttl("nothing") == 0
    assert cache.persist("k") is True and cache.ttl("k") is None and cache.persist("nothing") is False
    assert cache.persist("k") is False, "it would not have expired"
    assert cache.expire("k", datetime.timedelta(minutes=1)) is True and cache.ttl("k") == 60
    assert cache.pexpire("k", datetime.timedelta(minutes=2)) is True and cache.ttl("k") == 120
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
    with lock as held:
        assert held is lock and lock.owned() and lock.locked() and lock.token > 0 and lock.name == ":1:jobs"
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


def in_a_thread(work: Any) -> Any:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(work())
        except mqkv.Error as error:
            answers.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answers[0]


def test_a_lock_by_the_names_of_redis_py(cache: Any) -> None:
    lock = cache.lock("jobs", timeout=5, sleep=0.01, thread_local=True)
    assert lock.acquire(blocking=True, blocking_timeout=1, sleep=0.01) is True
    assert lock.extend(10) is True and lock.extend(10, replace_ttl=True) is True and lock.reacquire() is True
    assert lock.acquire(blocking=False) is False and cache.lock("jobs", blocking_timeout=0.1).acquire() is False
    with pytest.raises(mqkv.LockHeld):  # it would wait for itself
        lock.acquire()
    # One object in many threads: each has a lock of its own.
    assert in_a_thread(lambda: lock.acquire(blocking=False)) is False and in_a_thread(lock.owned) is False
    assert in_a_thread(lambda: lock.acquire(blocking_timeout=0.05)) is False
    for work in (lock.release, lambda: lock.extend(5), lock.reacquire, lambda: lock.token):
        assert in_a_thread(work) is mqkv.LockLost
    lock.release()
    with pytest.raises(mqkv.LockLost):
        lock.extend(5)
    with pytest.raises(mqkv.LockLost):
        lock.release()
    assert in_a_thread(lambda: lock.acquire(blocking=False) and lock.release()) is None


def test_a_lock_that_one_thread_takes_and_another_releases(cache: Any) -> None:
    lock = cache.lock("jobs", thread_local=False)
    assert lock.acquire(blocking=False) and in_a_thread(lock.owned) is True and in_a_thread(lock.release) is None
    assert not lock.owned() and not lock.locked()


def test_arguments_where_django_redis_has_them(cache: Any) -> None:
    cache.set_many({"foo1": 1, "foo2": 2, "bar": 3})
    assert sorted(cache.iter_keys("foo*", 1000)) == ["foo1", "foo2"]
    assert cache.delete_many(["bar", "nothing"]) == 1 and asyncio.run(cache.adelete_many(["bar"])) == 0
    assert cache.incr("new", 5, ignore_key_check=True) == 5 and cache.incr("new", ignore_key_check=True) == 6
    assert cache.ttl("new") is None and asyncio.run(cache.aincr("newer", 2, ignore_key_check=True)) == 2
    with pytest.raises(ValueError):
        cache.incr("newest")
    cache.set("moved", "v", 50)
    assert cache.incr_version("moved") == 2 and cache.ttl("moved", version=2) == 50 and cache.ttl("moved") == 0
    assert asyncio.run(cache.aincr_version("moved", version=2)) == 3 and cache.ttl("moved", version=3) == 50
    assert cache.decr_version("moved", version=3) == 2 and cache.get("moved", version=2) == "v"
    # What would be taken for something else is refused.
    for call in (lambda: cache.delete_pattern("foo*", None, None, 1000), lambda: cache.iter_keys("foo*", 1, None)):
        with pytest.raises(TypeError):
            call()
    assert sorted(cache.keys("foo*")) == ["foo1", "foo2"]


def test_patterns_as_redis_reads_them(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    cache = caches["default"]
    names = ["hallo", "hello", "h^llo", "h*llo", "h[llo", "h]llo", "h\\llo", "hllo"]
    cache.set_many(dict.fromkeys(names, 1))
    for pattern, found in (
        ("h[ae]llo", ["hallo", "hello"]),
        ("h[^e]llo", [name for name in names if name not in ("hello", "hllo")]),
        ("h[!e]llo", ["hello"]),
        ("h[a-b]llo", ["hallo"]),
        ("h\\*llo", ["h*llo"]),
        ("h[*]llo", ["h*llo"]),
        ("h\\[llo", ["h[llo"]),
        ("h[\\]a]llo", ["hallo", "h]llo"]),
        ("h\\\\llo", ["h\\llo"]),
        ("h[a^]llo", ["hallo", "h^llo"]),
        ("h?llo", names[:-1]),
        ("h*llo", names),
    ):
        assert sorted(cache.keys(pattern)) == sorted(found), pattern


#: What redis-server 7.0.15 finds among these keys.
CLASSES = (
    (r"[\!a]x", "!a"),
    (r"[!a]x", "!a"),
    (r"[a\-c]x", "-ac"),
    (r"[\a-c]x", "-ac"),
    (r"[^\-a]x", "!]^[&\\bcz"),
    ("[z-a]x", "abcz"),
    ("[!-&]x", "!&"),
    ("[Z-\\]x", "[\\"),
    (r"[\]a]x", "]a"),
    ("[]a]x", ""),
    ("[]x", ""),
    ("[^]x", "!]^[-&\\abcz"),
    (r"[^\^]x", "!][-&\\abcz"),
    (r"[\^a]x", "^a"),
    ("[&&a]x", "&a"),
    ("[a", ""),
    ("\\", ""),
)


@pytest.mark.parametrize(("pattern", "found"), CLASSES, ids=repr)
def test_classes_as_redis_reads_them(memory_entry: Any, settings: Any, pattern: str, found: str) -> None:
    settings.CACHES = {"default": memory_entry()}
    cache, names = caches["default"], [f"{char}x" for char in "!]^[-&\\abcz"]
    cache.set_many(dict.fromkeys(names, 1))
    assert sorted(cache.keys(pattern)) == sorted(f"{char}x" for char in found)
    assert cache.delete_pattern(pattern) == len(found)
    assert sorted(cache.keys()) == sorted(set(names) - {f"{char}x" for char in found}), "the others are spared"


def test_settings_of_django_redis_that_nobody_reads(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    settings.DJANGO_REDIS_IGNORE_EXCEPTIONS = True
    (message,) = run_checks(tags=[Tags.caches])
    assert message.id == "mqkv.W007" and "OPTIONS['IGNORE_EXCEPTIONS']" in message.hint


@pytest.mark.parametrize("timeout", ["60", datetime.timedelta(seconds=60), decimal.Decimal(60), [60]], ids=repr)
def test_a_timeout_that_is_no_number_of_seconds(memory_entry: Any, settings: Any, timeout: Any) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"IGNORE_EXCEPTIONS": True})}
    cache = caches["default"]
    for call in (
        lambda: cache.set("k", 1, timeout),
        lambda: cache.add("k", 1, timeout),
        lambda: cache.touch("k", timeout),
        lambda: cache.set_many({"k": 1}, timeout),
        lambda: cache.get_or_set("k", 1, timeout),
        lambda: asyncio.run(cache.aset("k", 1, timeout)),
    ):
        with pytest.raises(TypeError, match=f"a timeout is a number of seconds.* not a {type(timeout).__name__}: pass") as caught:
            call()
        assert isinstance(caught.value, mqkv.InvalidTTL)


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
