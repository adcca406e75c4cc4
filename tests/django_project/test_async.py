"""The async methods: the same answers, without a thread where memory has them, and without a thread a call where it has not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, async_to_sync
from django.core.cache import caches

import mqkv.django
from mqkv.django import StreamCache
from places import ON_BROKERS


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def main() -> Any:
        return await coroutine

    return async_to_sync(main)()


def test_every_method(cache: Any) -> None:
    async def work() -> None:
        assert await cache.aset("a", {"x": [1]}) and await cache.aget("a") == {"x": [1]}
        assert await cache.aget("zz") is None and await cache.aget("zz", 5) == 5
        assert await cache.aadd("a", 1) is False and await cache.aadd("b", None, timeout=None) is True
        assert await cache.aget("b", "default") is None and await cache.ahas_key("b") and not await cache.ahas_key("zz")
        assert await cache.aadd("zz", 1, 0) is True and await cache.aget("zz") is None
        assert await cache.atouch("a", 50) is True and await cache.attl("a") == 50 and await cache.attl("b") is None
        assert await cache.atouch("zz") is False
        assert await cache.aget_or_set("c", lambda: 7) == 7 and await cache.aget_or_set("c", 8) == 7
        assert await cache.aincr("c", 3) == 10 and await cache.adecr("c") == 9
        with pytest.raises(ValueError, match="zz"):
            await cache.aincr("zz")
        assert await cache.aset_many({"d": 1, "e": [2]}) == []
        assert await cache.aget_many(key for key in ("d", "e", "zz")) == {"d": 1, "e": [2]}
        assert sorted(await cache.akeys("[de]")) == ["d", "e"]
        assert await cache.aset_many({"d": 1, "e": 2}, 0) == [] and await cache.aget_many(["d", "e"]) == {}
        assert await cache.aincr_version("c") == 2 and await cache.adecr_version("c", version=2) == 1
        with pytest.raises(ValueError):
            await cache.aincr_version("zz")
        assert await cache.aset("a", 2, nx=True) is False and await cache.aset("a", 2, xx=True) is True
        assert await cache.aset("zz", 2, xx=True) is False and await cache.aset("n", 2, nx=True) is True
        assert await cache.adelete("a") is True and await cache.adelete("a") is False
        assert await cache.aset("a", 2, 0) is True and await cache.aget("a") is None
        await cache.adelete_many(key for key in ("b", "zz"))
        assert await cache.ahas_key("b") is False
        async with cache.alock("jobs"):
            assert await asyncio.create_task(cache.alock("jobs", blocking=False).acquire()) is False
        await cache.aset_many({"p1": 1, "p2": 2})
        assert await cache.adelete_pattern("p*") == 2
        await cache.aclear()
        assert await cache.aget("c") is None
        await cache.aclose()

    run(work())
    assert cache.get("c") is None


@pytest.mark.parametrize("url", ["memory", *ON_BROKERS], indirect=True)
def test_reads_from_memory_do_not_hop_through_a_thread(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.set_many({"text": "text", "mutable": [1]})

    async def work() -> None:
        monkeypatch.setattr(SyncToAsync, "__call__", None)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "run_in_executor", None)
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            loop.call_soon(tick)

        loop.call_soon(tick)
        for _ in range(10):
            assert await cache.aget("text") == "text" and await cache.aget("mutable") == [1] and await cache.aget("zz") is None
            assert await cache.aget_many(["text", "mutable"]) == {"text": "text", "mutable": [1]} and await cache.ahas_key("text")
        assert ticks == 0, "what memory answers does not even wait for the loop"

    asyncio.run(work())


@pytest.mark.parametrize("url", ON_BROKERS, indirect=True)
def test_writes_wait_for_the_confirm_without_a_thread_each(cache: Any) -> None:
    cache.set("k", 1)

    async def work() -> int:
        before = threading.active_count()
        writes = [asyncio.ensure_future(cache.aset(f"k{n}", n)) for n in range(200)]
        await asyncio.sleep(0)
        most = threading.active_count()
        await asyncio.gather(*writes)
        return most - before

    begun = time.monotonic()
    assert asyncio.run(work()) <= 1
    assert cache.get_many([f"k{n}" for n in range(200)]) == {f"k{n}": n for n in range(200)}
    assert time.monotonic() - begun < 10


def test_one_loop_after_the_other(cache: Any) -> None:
    for n in range(3):
        run(cache.aset("k", n))
        assert run(cache.aget("k")) == n


class Counting(StreamCache):
    """As django-prometheus and others count: the sync method is overridden."""

    gets = 0
    sets = 0

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        self.gets += 1
        return super().get(key, default, version)

    def set(self, *args: Any, **kwargs: Any) -> bool:
        self.sets += 1
        return super().set(*args, **kwargs)

    async def aset(self, *args: Any, **kwargs: Any) -> bool:
        self.sets += 100
        return await super().aset(*args, **kwargs)


def test_a_subclass_that_overrides_the_sync_method_is_asked(memory_entry: Any, settings: Any) -> None:
    settings.CACHES = {"default": {**memory_entry(), "BACKEND": f"{__name__}.Counting"}}
    cache = caches["default"]
    assert isinstance(cache, Counting)

    async def work() -> None:
        await cache.aset("k", 1)
        assert await cache.aget("k") == 1 and await cache.ahas_key("k")

    run(work())
    assert (cache.gets, cache.sets) == (2, 100)
    assert mqkv.django.get_store().get(cache.make_key("k")) == 1
