"""Packages that wrap caches: django-debug-toolbar's panel, and subclasses in the manner of django-prometheus."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.http import HttpResponse
from django.test import RequestFactory

import mqkv.django


class PrometheusCache(mqkv.django.StreamCache):
    """As each backend of django_prometheus.cache.backends is written. (The package itself holds Django back.)"""

    counts: ClassVar[Counter[str]] = Counter()

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        self.counts["get"] += 1
        cached = super().get(key, default=None, version=version)
        if cached is not None:
            self.counts["hit"] += 1
            return cached
        self.counts["miss"] += 1
        return default


def test_a_subclass_in_the_manner_of_django_prometheus(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": {**memory_entry(), "BACKEND": f"{__name__}.PrometheusCache"}}
    cache = caches["default"]
    cache.set("k", [1])
    assert cache.get("k") == [1] and cache.get("zz", 5) == 5
    assert async_to_sync(cache.aget)("k") == [1], "counted too"
    assert PrometheusCache.counts == {"get": 3, "hit": 2, "miss": 1}


def test_the_cache_panel_of_debug_toolbar(memory_entry: Any, settings: Any) -> None:
    settings.STATIC_URL = "static/"
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.staticfiles", "debug_toolbar"]
    from debug_toolbar.panels.cache import CachePanel
    from debug_toolbar.toolbar import DebugToolbar

    settings.CACHES = {"default": memory_entry()}
    caches["default"].set("before", 1)

    def page(request: Any) -> HttpResponse:
        cache = caches["default"]
        cache.set("k", [1])
        assert cache.get("k") == [1] and cache.get("zz") is None and cache.get_many(["k", "zz"]) == {"k": [1]}
        async_to_sync(cache.aget)("k")
        return HttpResponse("page")

    request = RequestFactory().get("/")
    toolbar = DebugToolbar(request, page)
    panel = toolbar.get_panel_by_id(CachePanel.panel_id)
    panel.enable_instrumentation()
    try:
        response = panel.process_request(request)
    finally:
        panel.disable_instrumentation()
    panel.generate_stats(request, response)
    stats = panel.get_stats()
    assert [call["name"] for call in stats["calls"]][:4] == ["set", "get", "get", "get_many"]
    assert stats["hits"] >= 2 and stats["misses"] >= 1
