"""Reads through Django's cache API, beside Django's cache in the memory of one process; and a set_many."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import django
from common import VALUE, Bench, median, ns, rate
from django.conf import settings
from django.core.cache import caches

import mqkv.django

MANY = [f"many:{number}" for number in range(2_000)]
VALUES = {"str": VALUE, "dict": {"name": VALUE, "visits": 3}}


def configured(bench: Bench, url: str, peers: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Our cache on ``url``, and Django's own in memory; and the settings of more."""
    peers = peers or {}
    if not settings.configured:
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        settings.configure(SECRET_KEY="of the benchmarks", CACHES={})
        django.setup()
    settings.CACHES = {
        "default": {
            "BACKEND": "mqkv.django.StreamCache",
            "LOCATION": url,
            "OPTIONS": {"prefix": bench.prefix(), "read_timeout": 30},
        },
        "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 100_000}},
        **peers,
    }
    caches._settings = caches.settings = caches.configure_settings(None)
    for alias in ("default", "locmem", *peers):
        if hasattr(caches._connections, alias):
            del caches[alias]
    return caches["default"], caches["locmem"]


def sweep(cache: Any, key: str, times: int) -> float:
    """Seconds a get."""
    begin = time.perf_counter()
    for _ in range(times):
        cache.get(key)
    return (time.perf_counter() - begin) / times


# The same once more: the interpreter adapts the bytecode of each to what it has seen there.
def peer_sweep(cache: Any, key: str, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        cache.get(key)
    return (time.perf_counter() - begin) / times


def taken(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


async def async_sweep(cache: Any, key: str, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        await cache.aget(key)
    return (time.perf_counter() - begin) / times


def run(bench: Bench) -> None:
    ours, peer = configured(bench, bench.url("amqp"))
    try:
        for kind, value in VALUES.items():
            _one(bench, ours, peer, kind, value)
            _many(bench, ours, peer, kind, value)
        _set_many(bench, ours, peer)
    finally:
        mqkv.django.get_store().purge()
        mqkv.django.close_stores()


def _one(bench: Bench, ours: Any, peer: Any, kind: str, value: Any) -> None:
    for cache in (ours, peer):
        cache.set(kind, value, 3600)
        assert cache.get(kind) == value
    a, b, c = [], [], []
    for _ in range(bench.count(100)):
        a.append(sweep(ours, kind, 2_000))
        b.append(peer_sweep(peer, kind, 2_000))
        c.append(asyncio.run(async_sweep(ours, kind, 500)))
    _compare(bench, f"Django, amqp: cache.get of a {kind}", a, b, ns)
    _compare(bench, f"Django, amqp: cache.aget of a {kind}", c, b, ns)


def _many(bench: Bench, ours: Any, peer: Any, kind: str, value: Any) -> None:
    for cache in (ours, peer):
        cache.set_many(dict.fromkeys(MANY, value), 3600)
        assert cache.get_many(MANY) == dict.fromkeys(MANY, value)
    a, b = [], []
    for _ in range(bench.count(100)):
        a.append(taken(lambda: ours.get_many(MANY)) / len(MANY))
        b.append(taken(lambda: peer.get_many(MANY)) / len(MANY))
    _compare(bench, f"Django, amqp: get_many of 2,000 keys, each a {kind}", a, b, lambda seconds: rate(1 / seconds))


def _set_many(bench: Bench, ours: Any, peer: Any) -> None:
    data = dict.fromkeys(MANY, VALUE)
    a = [taken(lambda: ours.set_many(data, 3600)) for _ in range(bench.count(30))]
    b = [taken(lambda: peer.set_many(data, 3600)) for _ in range(bench.count(30))]
    mine, theirs = median(a), median(b)
    name = "Django, amqp: set_many of 2,000 keys, one record"
    bench.row(name, f"{mine * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms (locmem)", mine / theirs, "", None)


def _compare(bench: Bench, name: str, a: list[float], b: list[float], show: Callable[[float], str]) -> None:
    ratio = median([other / one for one, other in zip(a, b, strict=True)])  # what disturbs, disturbs both of a round
    bench.row(name, show(median(a)), f"{show(median(b))} (locmem)", ratio, "over 1.0 times as fast", ratio > 1)
