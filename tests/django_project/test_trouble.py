"""The broker is down: errors that say so, or, with IGNORE_EXCEPTIONS, misses, dropped writes, and pages that render."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.cache import CacheKeyWarning, InvalidCacheKey, caches
from django.test import Client

import mqkv
import mqkv.django


@pytest.fixture
def nowhere() -> str:
    """A place where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F?connect_timeout=1"


def down(settings: Any, location: str, **options: Any) -> Any:
    options = {"name": "down", "read_timeout": 0.5, "write_timeout": 0.5, **options}
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache", "LOCATION": location, "OPTIONS": options}}
    return caches["default"]


def test_errors_come_out(settings: Any, nowhere: str) -> None:
    cache = down(settings, nowhere)
    for work in (
        lambda: cache.get("k"),
        lambda: cache.set("k", 1),
        lambda: cache.add("k", 1),
        lambda: cache.get_many(["k"]),
        lambda: cache.incr("k"),
        lambda: asyncio.run(cache.aget("k")),
        lambda: asyncio.run(cache.aset("k", 1)),
    ):
        with pytest.raises(mqkv.Error) as caught:
            work()
        assert isinstance(caught.value, OSError) and "guest:guest" not in str(caught.value)
    health = mqkv.django.health()
    assert not health and health.error and "guest:guest" not in str(health)


def test_errors_are_ignored(settings: Any, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = down(settings, nowhere, IGNORE_EXCEPTIONS=True)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "mqkv.django"):
        assert cache.get("k") is None and cache.get("k", 5) == 5 and cache.get_many(["k"]) == {}
        assert not cache.set("k", 1) and not cache.add("k", 1) and not cache.touch("k") and not cache.delete("k")
        assert cache.incr("k") is None and cache.set_many({"k": 1, "l": 2}) == ["k", "l"] and cache.get_or_set("k", 7) == 7
        assert cache.delete_many(["k"]) is None and cache.clear() is None and not cache.has_key("k")
        assert cache.ttl("k") == 0 and cache.keys() == [] and cache.delete_pattern("*") == 0
        assert not cache.add("k", 1, 0) and cache.set_many({"k": 1}, 0) == ["k"] and not cache.set("k", 1, xx=True)
    connecting, told = [record.getMessage() for record in caplog.records if record.name == "mqkv.django"]
    assert (
        "at=connect-failed" in connecting
        and "at=outage status=began error=ConnectionFailed" in told
        and "guest:guest" not in caplog.text
    )
    assert time.monotonic() - begun < 10, "a page makes many calls; it waits for one of them"
    # What the caller does wrong is not ignored.
    mqkv.django.close_stores()
    del caches["default"]
    cache = caches["default"]
    with pytest.raises(InvalidCacheKey), pytest.warns(CacheKeyWarning):
        cache.set("new\nline", 1)


def test_errors_are_ignored_in_an_event_loop(settings: Any, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = down(settings, nowhere, IGNORE_EXCEPTIONS=True, LOG_IGNORED_EXCEPTIONS=False)

    async def work() -> None:
        assert await cache.aget("k", 5) == 5 and not await cache.aset("k", 1) and await cache.aget_many(["k"]) == {}
        assert await cache.aset_many({"k": 1}) == ["k"] and await cache.aincr("k") is None
        assert await cache.aget_or_set("k", 7) == 7

    with caplog.at_level(logging.DEBUG, "mqkv.django"):
        asyncio.run(work())
    assert "at=outage" not in caplog.text, "nobody wants to know"


def test_pages_render(settings: Any, nowhere: str) -> None:
    down(settings, nowhere, IGNORE_EXCEPTIONS=True)
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    begun = time.monotonic()
    assert Client().get("/page/").status_code == 200
    assert b"Hello Ada" in Client().get("/fragment/?name=Ada").content
    assert time.monotonic() - begun < 10


@pytest.mark.django_db
def test_sessions_of_cached_db_work_without_the_cache(settings: Any, nowhere: str) -> None:
    down(settings, nowhere, IGNORE_EXCEPTIONS=True)
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    client = Client()
    assert [client.get("/visits/").content for _ in range(3)] == [b"1", b"2", b"3"]


@contextmanager
def pages(cache: Any, told: list[str]) -> Iterator[None]:
    """Some threads that read and write without a pause; and what is logged meanwhile, that people are to look at."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            assert cache.get("text") == "t"
            cache.set("k", 1)
            time.sleep(0.001)

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler = Told(logging.INFO)
    logger = logging.getLogger("mqkv.django")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        logger.removeHandler(handler)
        logger.setLevel(level)


def check_one_outage(settings: Any, url: str, begin: Callable[[], object], end: Callable[[], object]) -> None:
    cache = down(settings, url, IGNORE_EXCEPTIONS=True, read_timeout=2, write_timeout=1)
    cache.set("text", "t")
    told: list[str] = []
    with pages(cache, told):
        begin()
        wait_for(lambda: any("at=outage" in line for line in told))
        time.sleep(5)
        assert sum("at=outage" in line for line in told) == 1
        end()
        wait_for(lambda: any("status=over" in line for line in told))
        time.sleep(2)
    assert [line.split()[1] for line in told if "at=outage" in line] == ["status=began", "status=over"]
    assert len(told) < 20, told


@pytest.mark.slow
def test_an_outage_is_one_line_and_its_end_another(settings: Any, own_broker: Any) -> None:
    check_one_outage(settings, own_broker.url, own_broker.kill, own_broker.start)


@pytest.mark.slow
@pytest.mark.rabbitmq_only("an alarm of memory is RabbitMQ's")
def test_a_broker_that_takes_no_writes_is_one_outage(settings: Any, own_broker: Any) -> None:
    def limit(share: str) -> Callable[[], object]:
        return lambda: own_broker.ctl("set_vm_memory_high_watermark", share)

    check_one_outage(settings, own_broker.url, limit("0.000001"), limit("0.6"))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back(settings: Any, own_broker: Any) -> None:
    cache = down(settings, own_broker.url, IGNORE_EXCEPTIONS=True, read_timeout=5, write_timeout=5)
    cache.set_many({"k": [1], "text": "t"})
    assert cache.get_many(["k", "text"]) == {"k": [1], "text": "t"} and mqkv.django.health()
    own_broker.kill()
    assert cache.get("text") == "t" and cache.get("k") == [1], "memory still has it"
    begun = time.monotonic()
    assert not cache.set("k", [2])
    assert not cache.set("k", [3]) and cache.get("k") == [1]
    assert time.monotonic() - begun < 9
    health = mqkv.django.health()
    assert not health and health.staleness > 0
    own_broker.start()
    deadline = time.monotonic() + 60
    while not cache.set("k", [4]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert cache.get("k") == [4] and mqkv.django.health().ok


@pytest.mark.parametrize("limit", [None, 0, 60])
def test_memory_answers_while_the_broker_is_left_alone(memory_entry: Any, settings: Any, limit: float | None) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"IGNORE_EXCEPTIONS": True, "max_staleness": limit})}
    cache = caches["default"]
    cache.set("k", 1)
    cache._shared.outage.failed(mqkv.WriteTimeout("it takes no writes"), time.monotonic(), writing=True)
    assert cache.get("k") == 1 and cache.get_many(["k"]) == {"k": 1} and asyncio.run(cache.aget("k")) == 1
    assert cache.set("k", 2) is False and cache.get("k") == 1
    assert cache.incr_version("k") is None and asyncio.run(cache.aincr_version("k")) is None and cache.get("k") == 1


def test_a_cache_opens_anew_after_its_stores_were_closed(settings: Any, tmp_path: Any) -> None:
    options = {"IGNORE_EXCEPTIONS": True}
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache", "LOCATION": f"file://{tmp_path}/kv", "OPTIONS": options}}
    cache = caches["default"]
    for number in range(3):
        assert cache.set("k", number) and cache.get("k") == number and asyncio.run(cache.aget("k")) == number
        assert mqkv.django.health() and not cache._outage.on
        mqkv.django.close_stores()
    assert asyncio.run(cache.aget("k")) == 2 and cache._shared.store is mqkv.django.get_store()


def test_a_broker_that_answers_nothing(settings: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F?connect_timeout=1"
        cache = down(settings, url, IGNORE_EXCEPTIONS=True)
        begun = time.monotonic()
        for _ in range(20):
            assert cache.get("k", 1) == 1 and not cache.set("k", 2) and cache.get_many(["k"]) == {}
        assert time.monotonic() - begun < 5
        mqkv.django.close_stores()


@pytest.fixture
def silent() -> Iterator[str]:
    """A place that takes connections, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F"
        mqkv.django.close_stores()


@pytest.mark.parametrize("work", ["get", "set", "aset"])
def test_by_default_a_call_waits_for_two_or_three_seconds_in_all(settings: Any, silent: str, work: str) -> None:
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache", "LOCATION": silent}}
    cache = caches["default"]
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: cache.get("k"),
        "set": lambda: cache.set("k", 1),
        "aset": lambda: asyncio.run(cache.aset("k", 1)),
    }
    begun = time.monotonic()
    with pytest.raises(OSError):
        calls[work]()
    assert time.monotonic() - begun < 3


@pytest.mark.slow
def test_by_default_a_broker_that_falls_silent_costs_no_more(settings: Any, own_broker: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache", "LOCATION": own_broker.url}}
    cache = caches["default"]
    cache.set("k", 1)
    own_broker.stop()
    try:
        for work in (lambda: cache.set("k", 2), lambda: cache.incr("k"), lambda: asyncio.run(cache.aset("k", 1))):
            begun = time.monotonic()
            with pytest.raises(OSError):
                work()
            assert time.monotonic() - begun < 3
    finally:
        own_broker.cont()


def test_where_only_writes_fail_none_of_them_holds_up_the_loop(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"IGNORE_EXCEPTIONS": True})}
    cache = caches["default"]
    cache.set("k", 1)
    outage = cache._shared.outage
    outage.failed(mqkv.WriteTimeout("an alarm, say"), time.monotonic(), writing=True)
    outage._reads = None

    async def work() -> object:
        return await asyncio.wait_for(cache.aset("k", 2, xx=True), 5)

    assert asyncio.run(work()) is False and cache.get("k") == 1


def test_health(cache: Any) -> None:
    cache.set("k", 1)
    health = mqkv.django.health()
    assert health and health.ok and health.seconds < 5 and health.staleness == 0 and health.error == ""
