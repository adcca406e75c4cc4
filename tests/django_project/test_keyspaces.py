"""Which keyspace a cache is in, who else may be there, and by which bound it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.checks import Tags, run_checks

import mqkv
import mqkv.django


@pytest.fixture
def kept(url: str, prefix: str) -> Iterator[None]:
    """What is in memory outlives a restart."""
    with mqkv.Store(url, prefix=prefix):
        yield


def restarted(settings: Any, **caches_: Any) -> Any:
    """The default cache, as in a process that has just begun."""
    mqkv.django.close_stores()
    settings.CACHES = caches_
    return caches["default"]


@pytest.mark.parametrize("layout", ["shared", "per-key"])
def test_two_projects_and_a_dict_on_one_virtual_host_are_apart(
    url: str, entry: Any, settings: Any, prefix: str, layout: Any
) -> None:
    place, options = {"prefix": prefix, "read_timeout": 5}, {"layout": layout}
    with mqkv.StreamDict(url, **place) as d, mqkv.Store(url, layout=layout, **place) as store:
        d[":1:k"] = "of a dict"
        store.set(":1:k", "of a store")
        for package in ("shop", "blog"):
            settings.ROOT_URLCONF = f"{package}.urls"
            restarted(settings, default=entry(OPTIONS=options), sessions=entry(OPTIONS=options))
            caches["default"].set("k", package)
            caches["sessions"].set("k", f"session of {package}")
        caches["default"].clear()
        d.clear()
        assert caches["default"].get("k") is None and caches["sessions"].get("k") == "session of blog"
        settings.ROOT_URLCONF = "shop.urls"
        assert restarted(settings, default=entry(OPTIONS=options)).get("k") == "shop" and store.get(":1:k") == "of a store"
        for package in ("shop", "blog"):
            settings.ROOT_URLCONF = f"{package}.urls"
            restarted(settings, default=entry(OPTIONS=options), sessions=entry(OPTIONS=options))
            for alias in settings.CACHES:
                mqkv.django.get_store(alias).purge()
        d.store.purge()
        store.purge()


@pytest.mark.parametrize(
    ("urls", "module", "name"),
    [
        ("shop.urls", "shop.settings.production", "shop"),
        ("shop.urls_of_the_admin", "deployed.settings", "shop"),
        ("__main__", "script", "script"),
        (None, "shop.settings", "shop"),
        (math, "", "math"),
    ],
)
def test_all_processes_of_a_project_agree(
    memory_entry: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, urls: Any, module: str, name: str
) -> None:
    settings.ROOT_URLCONF = urls
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", module)
    settings.CACHES = {"default": memory_entry(), "pages": memory_entry()}
    assert [caches[alias]._shared.config.name for alias in settings.CACHES] == [f"django.{name}.default", f"django.{name}.pages"]


@pytest.mark.usefixtures("kept")
def test_who_opens_the_keyspace_of_another_project_is_told(entry: Any, settings: Any) -> None:
    named = entry(OPTIONS={"name": "ours"})
    settings.ROOT_URLCONF = "shop.urls"
    restarted(settings, default=named).set("k", 1)
    settings.ROOT_URLCONF = "shop.other_urls"
    restarted(settings, default=named).set("k", 1)
    settings.ROOT_URLCONF = "blog.urls"
    cache = restarted(settings, default=named)
    with pytest.warns(mqkv.ForeignKeyspaceWarning, match="'django:shop'.*'django:blog'"):
        cache.get("k")


def numbers(ids: list[str]) -> list[str]:
    return [message.id for message in run_checks(tags=[Tags.caches]) if message.id in ids]


def test_two_aliases_in_one_keyspace(settings: Any, memory_entry: Any) -> None:
    named = {"OPTIONS": {"name": "one"}}
    for first, second, told in (
        (named, named, 1),
        (named, {**named, "TIMEOUT": 5}, 1),
        ({**named, "KEY_PREFIX": "a"}, {**named, "KEY_PREFIX": "b"}, 0),
        ({**named, "KEY_PREFIX": "a"}, {**named, "KEY_PREFIX": "a:b"}, 1),
        ({**named, "KEY_PREFIX": "a"}, {**named, "KEY_FUNCTION": "django.core.cache.backends.base.default_key_func"}, 1),
        (named, {"OPTIONS": {"name": "two"}}, 0),
        ({}, {}, 0),
    ):
        settings.CACHES = {"default": memory_entry(**first), "other": memory_entry(**second)}
        assert numbers(["mqkv.W006"]) == ["mqkv.W006"] * told, (first, second)


@pytest.mark.parametrize("package", ["config", ""])
def test_projects_whose_packages_are_of_one_name(
    memory_entry: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    settings.ROOT_URLCONF = f"{package}.urls" if package else "__main__"

    def name(secret: str, *fallbacks: str) -> str:
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = secret, list(fallbacks)
        settings.CACHES = {"default": memory_entry()}
        return str(caches["default"]._shared.config.name)

    assert name("one") == name("one") == name("two", "one") == name("three", "two", "one") != name("two")
    assert name("one").startswith(f"django.{package or 'project'}-") and "one" not in name("one")
    assert caches["default"]._shared.config.maker == f"django:{package or 'project'}", "that is for good"


def count(cache: Any) -> int:
    cache.set_many({f"k{n}": n for n in range(30)})
    return len(cache.keys())


@pytest.mark.usefixtures("kept")
def test_the_bound_can_be_changed_after_the_first_process(entry: Any, settings: Any) -> None:
    assert count(restarted(settings, default=entry())) == 30, "whoever opens it first need not know of a bound"
    assert count(restarted(settings, default=entry(OPTIONS={"MAX_ENTRIES": 20}))) == 20
    assert count(restarted(settings, default=entry(OPTIONS={"MAX_ENTRIES": 10}))) == 10
    assert count(restarted(settings, default=entry())) == 10, "who names none follows"
    assert count(restarted(settings, default=entry(OPTIONS={"MAX_ENTRIES": 25}))) == 25
    assert count(restarted(settings, default=entry(OPTIONS={"MAX_ENTRIES": math.inf}))) == 30
