"""What may stand in CACHES, system checks of it, and URLs that mean such an entry."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import tempfile
from datetime import timedelta
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
from mqkv.django.options import OPTIONS

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
    ("heartbeat", {"OPTIONS": {"heartbeat": 30}}, "E002"),
    ("PASSWORD", {"OPTIONS": {"PASSWORD": "sesame"}}, "E002"),
    ("TIMEOUT", {"TIMEOUT": timedelta(seconds=60)}, "E003"),
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


def messages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for message in run_checks(tags=[Tags.caches]):
        found.setdefault(message.id, []).append(f"{message.msg} {message.hint}")
    return found


def test_all_that_is_wrong_is_told_at_once(settings: Any) -> None:
    options = {"layout": "wide", "signed": "maybe", "serializer": "xml", "compressor": "zip", "raed_timeout": 1, "prefix": "\n"}
    entry = {"LOCATION": "redis://localhost", "TIMEOUT": "later", "KEY_PREFIX": 5, "OPTIONS": options}
    settings.CACHES = {"default": built(entry), "other": built({"OPTIONS": {"name": ""}})}
    with pytest.raises(InvalidCacheOption) as caught:
        caches["default"]
    named = [problem.setting for problem in caught.value.problems]
    wrong = [f"OPTIONS[{name!r}]" for name in ("layout", "signed", "raed_timeout", "serializer", "compressor")]
    assert named == ["TIMEOUT", "KEY_PREFIX", *wrong, "LOCATION", "OPTIONS"]
    assert "Is read_timeout meant?" in str(caught.value) and len(str(caught.value).splitlines()) == len(named)
    found = messages()
    assert len(found["mqkv.E001"]) == 1 and len(found["mqkv.E002"]) == 7 and len(found["mqkv.E003"]) == 2


def test_what_is_another_caches_is_a_warning_that_says_to_remove_it(settings: Any) -> None:
    foreign = {
        "CLIENT_CLASS": "django_redis.client.DefaultClient",
        "CONNECTION_POOL_KWARGS": {"max_connections": 100},
        "PICKLE_VERSION": -1,
        "PARSER_CLASS": "redis.connection._HiredisParser",
        "db": 1,
        "pool_class": "redis.BlockingConnectionPool",
        "ssl_ca_certs": "/etc/ca.pem",
    }
    settings.CACHES = {"default": built({"OPTIONS": foreign})}
    caches["default"].set("k", 1)
    assert caches["default"].get("k") == 1
    found = messages()
    assert list(found) == ["mqkv.W005"] and len(found["mqkv.W005"]) == len(foreign)
    for name, text in zip(foreign, found["mqkv.W005"], strict=True):
        assert name in text and "Remove it" in text
    assert "?cafile=" in found["mqkv.W005"][-1]


def test_names_of_other_caches_for_what_is_here_too(settings: Any) -> None:
    settings.CACHES = {"default": built({"OPTIONS": {"COMPRESSOR": "zlib", "COMPRESS_MIN_LENGTH": 10}})}
    assert caches["default"]._shared.config.compress_over == 10 and messages() == {}
    settings.CACHES = {"default": built({"OPTIONS": {"COMPRESS_MIN_LENGTH": 10, "compress_over": 5}})}
    assert "twice" in messages()["mqkv.E002"][0]
    settings.CACHES = {"default": built({"OPTIONS": {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"}})}
    assert "Give 'zlib'" in messages()["mqkv.E002"][0]


def test_what_stands_in_the_url_is_sent_there(settings: Any) -> None:
    options = {"heartbeat": 30, "cafile": "/etc/ca.pem", "PASSWORD": "sesame"}
    settings.CACHES = {"default": built({"OPTIONS": options})}
    told = messages()["mqkv.E002"]
    settings.CACHES = {"default": built({"OPTIONS": {"TIMEOUT": 60}})}
    assert "beside OPTIONS: 'TIMEOUT'" in messages()["mqkv.E002"][0]
    assert "?heartbeat=" in told[0] and "?cafile=" in told[1] and "amqp://user:password@host" in told[2]
    assert all("LOCATION" in text for text in told) and "sesame" not in str(told)


def in_a_project(folder: Path, arguments: list[str], **entry: Any) -> subprocess.CompletedProcess[str]:
    """A project of its own, in which nothing but CACHES names mqkv."""
    (folder / "shop_settings.py").write_text(f"""
SECRET_KEY = "x" * 50
INSTALLED_APPS = ["django.contrib.contenttypes"]
ROOT_URLCONF = "shop_settings"
urlpatterns = []
CACHES = {{"default": {entry!r}}}
""")
    paths = [str(folder), str(Path(mqkv.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DJANGO_SETTINGS_MODULE": "shop_settings"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("tags", [[], ["--tag", "caches"]])
def test_a_broken_cache_is_found_where_the_app_is_not_installed(tmp_path: Path, tags: list[str]) -> None:
    options = {"layout": "wide", "unknown": 1, "CLIENT_CLASS": "x"}
    check = ["-m", "django", "check", *tags]
    done = in_a_project(tmp_path, check, BACKEND="mqkv.django.StreamCache", LOCATION="memory://", OPTIONS=options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("mqkv.E002") == 2 and done.stderr.count("mqkv.W005") == 1 and "3 issues" in done.stderr
    done = in_a_project(tmp_path, check, BACKEND="mqkv.django.StreamCache", LOCATION="memory://", OPTIONS={"signed": False})
    assert done.returncode == 0 and done.stderr.count("mqkv.W001") == 1


def test_deploy_checks_run_where_the_app_is_not_installed(tmp_path: Path) -> None:
    entry = {"BACKEND": "mqkv.django.StreamCache", "LOCATION": "amqp://guest:guest@broker.example/%2F"}
    done = in_a_project(tmp_path, ["-m", "django", "check", "--deploy", "--tag", "caches"], **entry)
    assert done.stderr.count("mqkv.W003") == 1 and done.stderr.count("mqkv.W004") == 1
    done = in_a_project(tmp_path, ["-m", "django", "check", "--tag", "urls"], **entry, OPTIONS={"unknown": 1})
    assert done.returncode == 0, "these checks were not asked for"


def test_a_hint_names_a_page_that_a_user_can_open(tmp_path: Path, settings: Any) -> None:
    settings.CACHES = {"default": built({"OPTIONS": {"unknown": 1}})}
    (told,) = messages()["mqkv.E002"]
    command = told[told.index("python -m ") :].split()[1:]
    shown = in_a_project(tmp_path, command)
    page = shown.stdout.lower()
    assert shown.returncode == 0 and [name for name in OPTIONS if f"    {name} " not in page] == []


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
