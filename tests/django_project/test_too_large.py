"""A value that is too large: its key has none from then on, and the page renders. As with Django's memcached backend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client

import mqkv.django

LARGE = b"x" * (16 * 2**20)


def syncly(cache: Any, verb: str, *arguments: Any, **options: Any) -> Any:
    return getattr(cache, verb)(*arguments, **options)


def asyncly(cache: Any, verb: str, *arguments: Any, **options: Any) -> Any:
    return asyncio.run(getattr(cache, f"a{verb}")(*arguments, **options))


@pytest.mark.parametrize("ask", [syncly, asyncly])
def test_the_key_does_not_keep_its_old_value(cache: Any, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    cache.set_many({"k": "old", "add": "old", "xx": "old"})
    assert ask(cache, "set", "k", LARGE) is False and cache.get("k", "gone") == "gone"
    assert "at=too-large" in caplog.text and "key=:1:k" in caplog.text and len(caplog.text) < 1000
    assert ask(cache, "set", "xx", LARGE, xx=True) is False and cache.get("xx", "gone") == "gone"
    assert ask(cache, "set", "k", LARGE, 0) is True, "gone at once, whatever its size"


@pytest.mark.parametrize("ask", [syncly, asyncly])
def test_what_is_only_added_replaces_nothing(cache: Any, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    cache.set("k", "old")
    assert ask(cache, "add", "k", LARGE) is False and ask(cache, "set", "k", LARGE, nx=True) is False
    assert cache.get("k") == "old", "it was not to be replaced, large or not"
    assert ask(cache, "add", "new", LARGE) is False and cache.get("new") is None
    assert ask(cache, "get_or_set", "other", LARGE) == LARGE and cache.get("other") is None
    assert caplog.text.count("at=too-large") == 5, "get_or_set tries twice, since what stands in its way may be unreadable"


@pytest.mark.parametrize("ask", [syncly, asyncly])
def test_of_many_it_is_among_those_that_failed(cache: Any, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    cache.set_many({"k": "old", "small": "old"})
    assert ask(cache, "set_many", {"small": "new", "k": LARGE, "n": 1}) == ["k"]
    assert cache.get_many(["small", "k", "n"]) == {"small": "new", "n": 1}
    assert "key=:1:k" in caplog.text


def test_what_may_not_grow_so_large_is_too_large(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"compressor": "zlib", "max_decompressed": 10_000})}
    cache = caches["default"]
    cache.set("k", "old")
    assert cache.set("k", "x" * 10_001) is False and cache.get("k") is None
    assert cache.set_many({"k": "x" * 10_001, "l": 1}) == ["k"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_page_that_is_too_large_renders(
    memory_entry: Any, settings: Any, ignored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CACHES = {"default": memory_entry(OPTIONS={"IGNORE_EXCEPTIONS": ignored})}
    with caplog.at_level(logging.WARNING, "mqkv.django"):
        for _ in range(2):
            response = Client().get("/large/")
            assert response.status_code == 200 and len(response.content) == len(LARGE)
    assert caplog.text.count("at=too-large") == 2


@pytest.mark.slow
def test_what_the_broker_finds_too_large(new_broker: Any, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    broker = new_broker(config="max_message_size = 100000\n")
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache", "LOCATION": broker.url}}
    cache = caches["default"]
    large = b"x" * 200_000
    cache.set_many({"k": "old", "add": "old"})
    assert cache.set("k", large) is False and cache.get("k") is None
    assert cache.add("k", large) is False and cache.add("add", large) is False and cache.get("add") == "old"
    assert cache.set_many({"small": 1, "add": large, "k": 2}) == ["add"]
    assert cache.get_many(["small", "add", "k"]) == {"small": 1, "k": 2}
    assert asyncio.run(cache.aset("k", large)) is False and cache.get("k") is None
    assert Client().get("/large/").status_code == 200
    assert caplog.text.count("at=too-large") == 6
    mqkv.django.close_stores()
