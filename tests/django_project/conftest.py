"""The small project for tests of mqkv.django.

``entry``   an entry for CACHES on the test's ``url``: ``entry(OPTIONS={...}, TIMEOUT=5)``
``cache``   ``django.core.cache.cache`` with such an entry as the default, on memory, file and amqp
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_project.settings")
django.setup()

import mqkv.django  # noqa: E402 -- not before there are settings
from mqkv.django import stores  # noqa: E402

Entry = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _stores_are_closed() -> Iterator[None]:
    yield
    for each in list(stores._shared.values()):
        # What a test leaves on a broker, or in memory, is seen by the next one.
        if each.config.prefix.startswith("t-"):
            each.store.purge()
    mqkv.django.close_stores()


@pytest.fixture
def entry(url: str, prefix: str) -> Entry:
    def make(**params: Any) -> dict[str, Any]:
        options = {"prefix": prefix, "read_timeout": 5, **params.pop("OPTIONS", {})}
        return {"BACKEND": "mqkv.django.StreamCache", "LOCATION": url, "OPTIONS": options, **params}

    return make


@pytest.fixture
def cache(entry: Entry, settings: Any) -> Any:
    from django.core.cache import cache

    settings.CACHES = {"default": entry()}
    return cache


@pytest.fixture
def memory_entry(prefix: str) -> Entry:
    """The same on memory only, for what does not depend on the engine."""

    def make(**params: Any) -> dict[str, Any]:
        options = {"prefix": prefix, **params.pop("OPTIONS", {})}
        return {"BACKEND": "mqkv.django.StreamCache", "LOCATION": f"memory://{prefix}", "OPTIONS": options, **params}

    return make
