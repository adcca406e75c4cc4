"""``region.invalidate()`` in one process holds in all of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.exception import DogpileCacheException, RegionNotConfigured
from dogpile.cache.proxy import ProxyBackend
from dogpile.cache.region import CacheRegion

import mqkv
from mqkv.dogpile import StreamInvalidation, invalidation
from places import ON_BROKERS

Make = Callable[..., CacheRegion]


@pytest.fixture
def make(url: str, prefix: str) -> Iterator[Make]:
    """Regions with an invalidation in the stream, as different processes have them: ``apart`` of connection and table."""
    regions: list[CacheRegion] = []

    def made(name: str | None = None, *, apart: bool = False, wrap: Any = (), **arguments: Any) -> CacheRegion:
        place = url
        if apart and not url.startswith("memory"):
            place += "?heartbeat=31" if url.startswith("amqp") else "?sync=full"
        region = make_region(name)
        options = {"url": place, "prefix": prefix, **arguments}
        region.configure("mqkv", 60, options, wrap=wrap, region_invalidator=StreamInvalidation(region))
        regions.append(region)
        return region

    yield made
    for number, region in enumerate(regions):
        if number == 0:
            region.actual_backend.store.purge()
        region.actual_backend.close()


def sync(*regions: CacheRegion) -> None:
    for region in regions:
        region.actual_backend.store.sync()


@pytest.mark.parametrize("options", [{}, {"secret": "a secret"}, {"max_entries": 10}], ids=repr)
def test_a_hard_invalidation_holds_everywhere(make: Make, options: dict[str, Any]) -> None:
    here, there = make(**options), make(apart=True, **options)
    here.set("k", 1)
    sync(there)
    assert there.get("k") == 1 and not there.region_invalidator.was_hard_invalidated()
    here.invalidate()
    sync(there)
    for region in (here, there):
        assert region.get("k") is NO_VALUE
        assert region.get_multi(["k"]) == [NO_VALUE]
        assert region.get("k", ignore_expiration=True) == 1
        assert region.region_invalidator.was_hard_invalidated() and not region.region_invalidator.was_soft_invalidated()
    assert there.get_or_create("k", lambda: 2) == 2
    sync(here)
    assert here.get("k") == 2
    late = make(apart=True, **options)
    assert late.get("k") == 2


def test_a_soft_invalidation_holds_everywhere(make: Make) -> None:
    here, there = (make(apart=apart, distributed_lock=True) for apart in (False, True))
    here.set("k", 1)
    here.invalidate(hard=False)
    sync(there)
    for region in (here, there):
        assert region.get("k") is NO_VALUE
        assert region.region_invalidator.was_soft_invalidated() and not region.region_invalidator.was_hard_invalidated()
    assert here.get_or_create("k", lambda: there.get_or_create("k", lambda: 3)) == 1  # the old value, while the new is created
    assert here.get("k") == 1


def test_a_soft_invalidation_needs_an_expiration_time(make: Make) -> None:
    region = make()
    region.set("k", 1)
    region.invalidate(hard=False)
    with pytest.raises(DogpileCacheException, match="expiration time"):
        region.get_or_create("k", lambda: 2, expiration_time=-1)


def test_a_value_created_before_a_hard_invalidation_is_not_brought_back_by_a_soft_one(make: Make) -> None:
    region = make()
    told = region.region_invalidator
    region.invalidate(hard=True)
    between = time.time()
    time.sleep(0.002)
    region.invalidate(hard=False)
    assert told.is_hard_invalidated(between - 10) and not told.is_soft_invalidated(between - 10)
    assert told.is_soft_invalidated(between) and not told.is_hard_invalidated(between)
    assert told.is_invalidated(between) and not told.is_invalidated(time.time() + 1)
    assert told.was_soft_invalidated() and not told.was_hard_invalidated()
    region.invalidate()
    assert told.is_hard_invalidated(between) and told.was_hard_invalidated() and not told.was_soft_invalidated()


def test_it_never_goes_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make(), make(apart=True)
    here.set("k", 1)
    here.invalidate()
    monkeypatch.setattr(invalidation, "time", SimpleNamespace(time=lambda: time.time() - 3600))
    sync(there)
    there.invalidate()
    sync(here)
    assert here.get("k") is NO_VALUE and there.get("k") is NO_VALUE


@pytest.mark.parametrize("before", [{}, {"secret": "another secret"}])
def test_times_of_another_secret_are_overwritten(make: Make, before: dict[str, Any]) -> None:
    make(**before).invalidate()
    region = make(secret="the new secret")
    region.set("k", 1)
    region.invalidate()
    assert region.get("k") is NO_VALUE and region.region_invalidator.was_hard_invalidated()
    assert region.backend.store.stats()["failed_writes"] == 0


def test_regions_of_one_keyspace_are_told_apart_by_name(make: Make) -> None:
    one, other, one_again = make("one"), make("other"), make("one", apart=True)
    one.set("k", 1)
    one.invalidate()
    sync(one_again)
    assert one.get("k") is NO_VALUE and one_again.get("k") is NO_VALUE
    assert other.get("k") == 1
    by_hand = StreamInvalidation(other.backend, "one")
    assert by_hand.was_hard_invalidated()


def test_what_it_covers_is_evicted_before_it_is(make: Make) -> None:
    region = make(max_entries=3)
    region.set("k", 1)
    region.invalidate()
    for number in range(5):
        region.set(f"other{number}", number)
        assert region.get("k") is NO_VALUE and region.get(f"other{number}") == number
    assert not region.region_invalidator.was_hard_invalidated()


def test_without_waiting_for_confirms(make: Make) -> None:
    region, there = make(confirm=False), make(apart=True)
    region.set("k", 1)
    region.invalidate()
    assert region.get("k") is NO_VALUE
    region.set("k", 2)
    assert region.get("k") == 2
    region.backend.store.flush()
    sync(there)
    assert there.get("k") == 2 and there.region_invalidator.was_hard_invalidated()


def test_through_proxies(make: Make) -> None:
    region = make(wrap=[ProxyBackend, ProxyBackend])
    region.set("k", 1)
    region.invalidate()
    assert region.get("k") is NO_VALUE


def test_a_cache_in_memory_that_is_invalidated_by_the_stream(url: str, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, layout="shared", name="invalidations") as store:
        regions = [make_region("r") for _ in range(2)]
        for region in regions:
            region.configure("dogpile.cache.memory", region_invalidator=StreamInvalidation(store, "r"))
            region.set("k", 1)
        regions[0].invalidate()
        assert [region.get("k") for region in regions] == [NO_VALUE, NO_VALUE]
        store.purge()


def test_times_that_nobody_can_read_count_as_none(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    with mqkv.Store(f"memory://{prefix}", layout="shared") as store:
        told = StreamInvalidation(store)
        for body in (b"x", "text", b"1 2 3", 5, b"a b"):
            store.set("invalidated:", body)
            assert not told.is_invalidated(0)
        assert "unreadable" in caplog.text
        told.invalidate()
        assert told.is_hard_invalidated(time.time() - 1)


def test_made_of_the_wrong_thing() -> None:
    with pytest.raises(mqkv.InvalidOption):
        StreamInvalidation("amqp://localhost")  # type: ignore[arg-type]
    region = make_region()
    for name in ("a\nb", "x" * 101, 5):
        with pytest.raises(mqkv.InvalidOption):
            StreamInvalidation(region, name)  # type: ignore[arg-type]
    told = StreamInvalidation(region)
    with pytest.raises(RegionNotConfigured):
        told.invalidate()
    region.configure("dogpile.cache.memory")
    with pytest.raises(mqkv.InvalidOption, match="MemoryBackend"):
        told.invalidate()


PROCESS = """
import sys
from dogpile.cache import make_region
from mqkv.dogpile import StreamInvalidation
region = make_region()
region.configure("mqkv", 60, {"url": sys.argv[1], "prefix": sys.argv[2]}, region_invalidator=StreamInvalidation(region))
assert region.get("k") == 1, region.get("k")
region.invalidate()
region.backend.close()
"""


@pytest.mark.parametrize("url", ["file", *ON_BROKERS], indirect=True)
def test_in_another_process(make: Make, url: str, prefix: str) -> None:
    region = make()
    region.set("k", 1)
    assert region.get("k") == 1
    subprocess.run([sys.executable, "-c", PROCESS, url, prefix], check=True, timeout=60)
    deadline = time.monotonic() + 5
    while region.get("k") is not NO_VALUE:
        assert time.monotonic() < deadline
        time.sleep(0.001)
