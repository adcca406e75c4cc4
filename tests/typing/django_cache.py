"""What a user of the Django backend writes, which must type-check with ``mypy --strict``. Never run."""

from __future__ import annotations

from typing import Any

import mqkv
import mqkv.django


class Counting(mqkv.django.StreamCache):
    gets = 0

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        self.gets += 1
        return super().get(key, default, version)


def use_a_cache(cache: mqkv.django.StreamCache) -> None:
    entry: dict[str, Any] = mqkv.django.cache_url("memory://?timeout=60")
    done: bool = cache.set("k", {"a": 1}, 60) and cache.add("k", 1) and cache.touch("k", None) and cache.delete("k")
    failed: list[Any] = cache.set_many({"a": 1}, timeout=None)
    found: dict[Any, Any] = cache.get_many(key for key in ("a", "b"))
    left: int | None = cache.ttl("k")
    names: list[str] = cache.keys("user:*")
    count: int = cache.delete_pattern("user:*")
    with cache.lock("jobs", timeout=10, blocking_timeout=1) as lock:
        token: int = lock.token
        print(token)
    store: mqkv.Store = mqkv.django.get_store("default")
    health: mqkv.django.Health = mqkv.django.health()
    if not health:
        raise RuntimeError(health.error)
    print(entry, done, failed, found, left, names, count, store)


async def use_it_in_a_loop(cache: mqkv.django.StreamCache) -> None:
    done: bool = await cache.aset("k", 1) and await cache.aadd("k", 1)
    failed: list[Any] = await cache.aset_many({"a": 1})
    found: dict[Any, Any] = await cache.aget_many(["a"])
    async with cache.alock("jobs"):
        print(done, failed, found, await cache.aget("k"))
