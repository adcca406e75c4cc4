"""What may stand in CACHES, system checks of it, and URLs that mean such an entry."""

from __future__ import annotations

import pickle
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.checks import Tags, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError

import mqkv
import mqkv.django
from mqkv.django import InvalidCacheOption, StreamCache, cache_url
from mqkv.django.config import read_location

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("LOCATION", {"LOCATION": "redis://localhost"}, "E001"),
    ("LOCATION", {"LOCATION": "localhost:5672"}, "E001"),
    ("LOCATION", {"LOCATION": "amqp://user@host/%2F"}, "E001"),
    ("LOCATION", {"LOCATION": "amqp://user:sesame@host:port/%2F"}, "E001"),
    ("LOCATION", {"LOCATION": 5}, "E001"),
    ("LOCATION", {"LOCATION": ["memory://a", "memory://b"]}, "E001"),
    ("LOCATION", {"LOCATION": ["amqp://a:sesame@one/%2F", "amqp://b:sesame@two/%2F"]}, "E001"),
    ("OPTIONS", {"OPTIONS": ["name"]}, "E002"),
    ("unknown", {"OPTIONS": {"unknown": 1}}, "E002"),
    ("CLIENT_CLASS", {"OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"}}, "E002"),
    ("layout", {"OPTIONS": {"layout": "wide"}}, "E002"),
    ("NAME", {"OPTIONS": {"NAME": ""}}, "E002"),
    ("twice", {"OPTIONS": {"NAME": "a", "name": "b"}}, "E002"),
    ("name", {"OPTIONS": {"name": "new\nline"}}, "E002"),
    ("read_timeout", {"OPTIONS": {"read_timeout": 0}}, "E002"),
    ("read_timeout", {"OPTIONS": {"read_timeout": "soon"}}, "E002"),
    ("write_timeout", {"OPTIONS": {"write_timeout": None}}, "E002"),
    ("confirm", {"OPTIONS": {"confirm": "perhaps"}}, "E002"),
    ("MAX_ENTRIES", {"OPTIONS": {"MAX_ENTRIES": 0}}, "E002"),
    ("MAX_ENTRIES", {"OPTIONS": {"MAX_ENTRIES": "many"}}, "E002"),
    ("CULL_FREQUENCY", {"OPTIONS": {"CULL_FREQUENCY": -1}}, "E002"),
    ("max_staleness", {"OPTIONS": {"max_staleness": -1}}, "E002"),
    ("serializer", {"OPTIONS": {"serializer": "xml"}}, "E002"),
    ("serializer", {"OPTIONS": {"serializer": "no.such.Serializer"}}, "E002"),
    ("serializer", {"OPTIONS": {"serializer": object()}}, "E002"),
    ("compressor", {"OPTIONS": {"compressor": "zip"}}, "E002"),
    ("compress_over", {"OPTIONS": {"compress_over": -1}}, "E002"),
    ("max_decompressed", {"OPTIONS": {"max_decompressed": 0}}, "E002"),
    ("signed", {"OPTIONS": {"signed": "maybe"}}, "E002"),
    ("IGNORE_EXCEPTIONS", {"OPTIONS": {"IGNORE_EXCEPTIONS": 2}}, "E002"),
    ("TIMEOUT", {"TIMEOUT": "later"}, "E003"),
    ("TIMEOUT", {"TIMEOUT": [1]}, "E003"),
    ("VERSION", {"VERSION": "two"}, "E003"),
    ("KEY_PREFIX", {"KEY_PREFIX": 5}, "E003"),
    ("KEY_FUNCTION", {"KEY_FUNCTION": "no.such.function"}, "E003"),
    ("REVERSE_KEY_FUNCTION", {"REVERSE_KEY_FUNCTION": "no.such.function"}, "E003"),
]


def built(changes: dict[str, Any]) -> dict[str, Any]:
    return {"BACKEND": "mqkv.django.StreamCache", "LOCATION": "memory://config", **changes}


@pytest.mark.parametrize(("named", "changes", "number"), WRONG, ids=[f"{each[0]}-{n}" for n, each in enumerate(WRONG)])
def test_what_is_wrong_is_an_error_when_it_is_built_and_in_a_check(
    settings: Any, named: str, changes: dict[str, Any], number: str
) -> None:
    settings.CACHES = {"default": built(changes)}
    with pytest.raises(InvalidCacheOption, match=named) as caught:
        caches["default"]
    error = caught.value
    assert (
        isinstance(error, (mqkv.Error,))
        and isinstance(error, InvalidCacheBackendError)
        and isinstance(error, ImproperlyConfigured)
    )
    assert error.hint and "sesame" not in str(error)
    (found,) = [message for message in run_checks(tags=[Tags.caches]) if message.id.startswith("mqkv")]
    assert found.id == f"mqkv.{number}" and found.hint and "CACHES['default']" in found.msg and "sesame" not in str(found)
    with pytest.raises(SystemCheckError, match=number):
        call_command("check")
    # What the check built is in Django's hands now: using it says the same.
    with pytest.raises(InvalidCacheOption):
        caches["default"].get("k")


RIGHT: list[dict[str, Any]] = [
    {},
    {"LOCATION": "amqp://user:sesame@host:5672/%2F?heartbeat=30"},
    {"LOCATION": "amqp://guest:guest@localhost/%2F", "OPTIONS": {"SOCKET_TIMEOUT": 5, "SOCKET_CONNECT_TIMEOUT": 2}},
    {"LOCATION": ["memory://one"]},
    {"OPTIONS": {"NAME": "n", "Layout": "per-key", "CONFIRM": "false", "signed": "true"}},
    {"OPTIONS": {"SERIALIZER": "mqkv.django.serializers.JSONSerializer", "COMPRESSOR": "mqkv.django.compressors.ZlibCompressor"}},
    {"OPTIONS": {"serializer": pickle, "MAX_ENTRIES": "100", "CULL_FREQUENCY": 3}},
    {"OPTIONS": {"IGNORE_EXCEPTIONS": True, "LOG_IGNORED_EXCEPTIONS": False, "max_staleness": 0, "read_timeout": "1.5"}},
    {"TIMEOUT": None, "VERSION": "2", "KEY_PREFIX": "p", "KEY_FUNCTION": "django.core.cache.backends.base.default_key_func"},
    {"TIMEOUT": -1, "max_entries": 5, "timeout": 3},
    {"OPTIONS": None},
]


@pytest.mark.parametrize("changes", RIGHT, ids=range(len(RIGHT)))
def test_what_is_right_is_taken_and_connects_to_nothing(settings: Any, changes: dict[str, Any]) -> None:
    settings.CACHES = {"default": built(changes)}
    assert isinstance(caches["default"], StreamCache) and "sesame" not in repr(caches["default"])
    assert [message for message in run_checks(tags=[Tags.caches]) if message.id.startswith("mqkv")] == []


def test_an_unsigned_pickle_and_a_name_that_nobody_reads_are_warnings(settings: Any) -> None:
    settings.CACHES = {
        "default": built({"OPTIONS": {"signed": False}}),
        "json": built({"OPTIONS": {"signed": False, "serializer": "json"}}),
        "typo": built({"TIMEUOT": 5}),
        "other": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "TIMEUOT": 5},
    }
    found = [(message.id, message.msg.split(":")[0]) for message in run_checks(tags=[Tags.caches])]
    assert found == [("mqkv.W001", "CACHES['default']"), ("mqkv.W002", "CACHES['typo']")]


def test_deploy_checks(settings: Any) -> None:
    places = {
        "near": "amqp://guest:guest@localhost/%2F",
        "far": "amqp://guest:guest@broker.example/%2F",
        "clear": "amqp://shop:sesame@broker.example/%2F",
        "tls": "amqps://shop:sesame@broker.example/%2F",
        "file": "file:///tmp/kv",
    }
    settings.CACHES = {"default": built({}), **{alias: built({"LOCATION": place}) for alias, place in places.items()}}
    found = run_checks(tags=[Tags.caches], include_deployment_checks=True)
    ours = [(message.id, message.msg.split("'")[1]) for message in found if message.id.startswith("mqkv")]
    assert ours == [("mqkv.W003", "far"), ("mqkv.W004", "far"), ("mqkv.W004", "clear")]


def test_without_a_location_it_is_a_folder_of_this_project_and_user(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings.CACHES = {"default": {"BACKEND": "mqkv.django.StreamCache"}}
    caches["default"].set("k", 1)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("mqkv-django-") and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert read_location("") == read_location(None) == read_location([]) == folder.as_uri()
    settings.BASE_DIR = "/another"
    assert read_location("") != folder.as_uri()


def test_somebody_elses_folder_is_not_taken(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    read_location("")
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / "theirs")
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(InvalidCacheOption, match="not this user's own"):
        read_location("")


def test_locations_that_are_several() -> None:
    one, two = "amqp://u:p;w@one/%2F?heartbeat=30", "amqp://u:p;w@two:5673/%2F?heartbeat=30"
    merged = "amqp://u:p;w@one,two:5673/%2F?heartbeat=30"
    assert read_location([one, two]) == read_location(f"{one},{two}") == read_location(f"{one}; {two}") == merged
    assert read_location(one) == read_location((one,)) == one


def test_a_cache_url() -> None:
    assert cache_url("amqp://u:p%40w@host:5672/%2F") == {
        "BACKEND": "mqkv.django.StreamCache",
        "LOCATION": "amqp://u:p%40w@host:5672/%2F",
    }
    url = "amqps://u:p%40w@host/v%2Fh?heartbeat=30&timeout=60&key_prefix=shop&layout=per-key&ignore_exceptions=true&max_entries=9"
    assert cache_url(url) == {
        "BACKEND": "mqkv.django.StreamCache",
        "LOCATION": "amqps://u:p%40w@host/v%2Fh?heartbeat=30",
        "TIMEOUT": 60,
        "KEY_PREFIX": "shop",
        "OPTIONS": {"layout": "per-key", "ignore_exceptions": True, "max_entries": 9},
    }
    assert cache_url("memory://x?timeout=none&version=2")["TIMEOUT"] is None
    for wrong in ("memory://x?timeout=soon", "memory://x?layout=wide"):
        with pytest.raises(InvalidCacheOption):
            cache_url(wrong)


def test_a_cache_from_a_url(settings: Any) -> None:
    settings.CACHES = {"default": cache_url("memory://from-a-url?key_prefix=shop&name=n&timeout=none")}
    caches["default"].set("k", 1)
    assert mqkv.django.get_store().keys() == ["shop:1:k"] and caches["default"].ttl("k") is None


def test_backend_objects_share_one_store_which_close_leaves_open(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": memory_entry()}
    first = caches["default"]
    store = mqkv.django.get_store()
    caches.close_all()
    del caches["default"]
    assert caches["default"] is not first and mqkv.django.get_store() is store
    caches["default"].set("k", 1)
    assert first.get("k") == 1


def test_made_by_hand() -> None:
    cache = StreamCache("memory://by-hand", {})
    cache.set("k", 1)
    assert cache.get("k") == 1 and "layout=shared" in repr(cache)


def test_get_store_of_something_else(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    with pytest.raises(InvalidCacheOption, match="StreamCache"):
        mqkv.django.get_store()
