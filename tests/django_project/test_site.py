"""Sessions, cached pages and fragments, middleware and messages: what a project uses a cache for, through its pages."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, Client

import mqkv.django

SESSIONS = ["django.contrib.sessions.backends.cache", "django.contrib.sessions.backends.cached_db"]


@pytest.fixture(params=SESSIONS, ids=["cache", "cached_db"])
def session_engine(request: pytest.FixtureRequest, settings: Any) -> str:
    settings.SESSION_ENGINE = request.param
    return str(request.param)


@pytest.mark.django_db
def test_a_session_lives_in_the_cache(cache: Any, session_engine: str) -> None:
    client = Client()
    assert [client.get("/visits/").content for _ in range(3)] == [b"1", b"2", b"3"]
    key = client.cookies["sessionid"].value
    assert any(key in name for name in mqkv.django.get_store().keys("*"))
    assert Client().get("/visits/").content == b"1"
    cache.clear()
    # Without a database, to lose the cache is to lose the session.
    assert client.get("/visits/").content == (b"1" if session_engine.endswith(".cache") else b"4")


@pytest.mark.django_db
def test_logging_in_and_out(cache: Any, session_engine: str) -> None:
    User.objects.create_user("ada")
    client = Client()
    client.get("/visits/")
    before = client.cookies["sessionid"].value
    assert client.get("/login/").content == b"in"
    assert client.cookies["sessionid"].value != before
    assert client.get("/visits/").content == b"2"
    client.get("/logout/")
    assert client.get("/visits/").content == b"1"


@pytest.mark.django_db
async def _session_in_an_event_loop() -> list[bytes]:
    client = AsyncClient()
    return [(await client.get("/visits/")).content for _ in range(3)]


@pytest.mark.django_db
def test_a_session_in_an_event_loop(cache: Any) -> None:
    from asgiref.sync import async_to_sync

    assert async_to_sync(_session_in_an_event_loop)() == [b"1", b"2", b"3"]


@pytest.mark.parametrize("storage", ["session.SessionStorage", "fallback.FallbackStorage", "cookie.CookieStorage"])
def test_messages(cache: Any, settings: Any, storage: str) -> None:
    settings.MESSAGE_STORAGE = f"django.contrib.messages.storage.{storage}"
    client = Client()
    client.get("/say/?text=first")
    client.get("/say/?text=second")
    assert client.get("/said/").content == b"first, second"
    assert client.get("/said/").content == b""


@pytest.mark.parametrize("path", ["/page/", "/page/async/"])
def test_cache_page(cache: Any, path: str) -> None:
    first = Client().get(path)
    assert Client().get(path).content == first.content
    assert "max-age=60" in first.headers["Cache-Control"]
    assert Client().get(f"{path}?other").content != first.content
    cache.clear()
    assert Client().get(path).content != first.content


def test_template_fragments(cache: Any) -> None:
    from django.core.cache.utils import make_template_fragment_key

    first = Client().get("/fragment/?name=Ada").content
    assert b"Hello Ada" in first and Client().get("/fragment/?name=Ada").content == first
    assert b"Hello Eve" in Client().get("/fragment/?name=Eve").content
    assert cache.delete(make_template_fragment_key("greeting", ["Ada"]))
    assert Client().get("/fragment/?name=Ada").content != first


def test_the_per_site_middleware(cache: Any, settings: Any) -> None:
    settings.MIDDLEWARE = [
        "django.middleware.cache.UpdateCacheMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    settings.CACHE_MIDDLEWARE_KEY_PREFIX = "site"
    first = Client().get("/plain/").content
    assert Client().get("/plain/").content == first
    assert Client().post("/plain/").content != first
    assert any("site" in key for key in cache.keys("*"))


def test_a_request_ends_and_the_store_stays_open(cache: Any) -> None:
    Client().get("/visits/")
    store = mqkv.django.get_store()
    Client().get("/visits/")
    assert mqkv.django.get_store() is store and store.stats()
