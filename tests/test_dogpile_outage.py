"""dogpile while the broker is away: values are created all the same, once a process, and nobody waits for long."""

from __future__ import annotations

import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.region import CacheRegion

from mqkv.dogpile import StreamInvalidation
from mqkv.dogpile.kept import Kept
from mqkv.errors import ConnectionFailed
from mqkv.outage import SHORTEST_PAUSE
from mqkv.testing.tools import run_threads

Make = Callable[..., CacheRegion]


@pytest.fixture
def make(prefix: str) -> Iterator[Make]:
    regions: list[CacheRegion] = []

    def configured(url: str = f"memory://{prefix}", expiration: float | None = None, **arguments: Any) -> CacheRegion:
        regions.append(make_region().configure("mqkv", expiration, {"url": url, "prefix": prefix, **arguments}))
        return regions[-1]

    yield configured
    for region in regions:
        region.backend.close()


@pytest.fixture(params=["closed", "silent"])
def nowhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place where nobody listens, and one where nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen()
        yield f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F?connect_timeout=1"


def faults(region: CacheRegion) -> Any:
    return region.backend.store._keyspace.engine.faults


def outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "at=outage" in record.getMessage()]


@pytest.mark.parametrize("distributed_lock", [False, True])
def test_values_are_created_without_a_broker(
    make: Make, nowhere: str, distributed_lock: bool, caplog: pytest.LogCaptureFixture
) -> None:
    region = make(nowhere, 60, distributed_lock=distributed_lock)
    created: list[str] = []

    def create(key: str) -> str:
        created.append(key)
        return f"value of {key}"

    begun = time.monotonic()
    assert region.get_or_create("k", create, creator_args=(("k",), {})) == "value of k"
    assert time.monotonic() - begun < 3.5, "2 to 3 seconds in all"
    begun = time.monotonic()
    for number in range(20):
        assert region.get_or_create("k", create, creator_args=(("k",), {})) == "value of k"
        assert region.get_or_create(f"k{number}", create, creator_args=((f"k{number}",), {})) == f"value of k{number}"
    assert region.get_or_create_multi(["k1", "new"], lambda *keys: [create(key) for key in keys]) == [
        "value of k1",
        "value of new",
    ]
    assert region.get("k") == "value of k" and region.get_multi(["k", "?"]) == ["value of k", NO_VALUE]
    region.set("k", "another")
    assert region.get("k") == "another"
    assert len(created) == 22 and time.monotonic() - begun < 3.5, "one caller at a time finds out, the others go on"
    assert len(outages(caplog)) == 1 and "guest:guest" not in caplog.text


def test_what_is_to_be_deleted_raises(make: Make, nowhere: str) -> None:
    region = make(nowhere)
    region.set("k", 1)
    begun = time.monotonic()
    for work in (lambda: region.delete("k"), lambda: region.delete_multi(["k"])):
        with pytest.raises(OSError, match=r"nothing was written|connect"):
            work()
    assert time.monotonic() - begun < 3.5 and region.get("k") is NO_VALUE


def test_errors_come_out_where_they_are_wanted(make: Make, nowhere: str) -> None:
    region = make(nowhere, ignore_exceptions=False, distributed_lock=True, read_timeout=0.3, write_timeout=0.3)
    for work in (
        lambda: region.get("k"),
        lambda: region.get_multi(["k"]),
        lambda: region.set("k", 1),
        lambda: region.set_multi({"k": 1}),
        lambda: region.delete("k"),
        lambda: region.get_or_create("k", lambda: 1),
        lambda: region.backend.get_mutex("k").acquire(),
    ):
        with pytest.raises(OSError):
            work()


# The broker goes, and comes back


@pytest.mark.parametrize("distributed_lock", [False, True])
@pytest.mark.parametrize("appends", ["fail", "wait"])
def test_an_expired_value_is_created_once_and_served_meanwhile(
    make: Make, distributed_lock: bool, appends: str, caplog: pytest.LogCaptureFixture
) -> None:
    region = make(expiration=0.2, distributed_lock=distributed_lock, write_timeout=0.3)
    region.set("k", "old")
    region.set("fresh", "f")
    faults(region).disconnect(appends=appends)
    assert region.get("k", ignore_expiration=True) == "old", "memory still has it"
    time.sleep(0.25)
    gate, inside, created = threading.Event(), threading.Event(), []

    def create() -> str:
        created.append(1)
        inside.set()
        assert gate.wait(10)
        return "new"

    results: list[object] = []
    creator = threading.Thread(
        target=lambda: results.append(region.get_or_create("k", create, expiration_time=60 if results else 0.2))
    )
    creator.start()
    assert inside.wait(10)
    assert region.get_or_create("k", create) == "old", "the expired value is there for the others"
    gate.set()
    creator.join(10)
    assert results == ["new"] and len(created) == 1
    assert region.get_or_create("k", lambda: "newest", expiration_time=60) == "new", "this process keeps it"
    faults(region).reconnect()
    caplog.clear()
    time.sleep(SHORTEST_PAUSE + 0.5)
    region.set("k", "stored")
    region.backend.store.sync()
    assert region.get("k") == "stored" and region.backend.get_serialized("k").endswith(b"stored\x94.")
    assert not region.backend._outage.on and region.backend._kept.get("k") is None


@pytest.mark.parametrize("distributed_lock", [False, True])
def test_many_who_miss_a_value_at_once_create_it_once(make: Make, distributed_lock: bool) -> None:
    region = make(distributed_lock=distributed_lock, write_timeout=0.3)
    region.set("else", 1)
    faults(region).disconnect(appends="fail")
    created: list[int] = []

    def create() -> str:
        created.append(1)
        time.sleep(0.05)
        return "v"

    run_threads([lambda: created.extend([] if region.get_or_create("k", create) == "v" else [100])] * 10)
    assert created == [1], "who waits for the first finds what it made"


def test_memory_that_is_too_old_is_not_asked(make: Make) -> None:
    region = make(max_staleness=0.1, write_timeout=0.3)
    region.set("k", "old")
    faults(region).disconnect(appends="fail")
    time.sleep(0.2)
    assert region.get("k") is NO_VALUE and region.get_or_create("k", lambda: "new") == "new" and region.get("k") == "new"


@pytest.fixture
def only_reads(make: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[CacheRegion, CacheRegion, Callable[[], None]]:
    """A region that may read and not write, another of its values that may do both, and what lifts the ban."""
    region, other = make(write_timeout=0.3), make()
    banned = {"set": region.backend.store.set, "compare_and_set": region.backend.store.compare_and_set}

    def refused(*arguments: object, **options: object) -> None:
        raise ConnectionFailed("no permission to write: nothing was written")

    for verb in banned:
        monkeypatch.setattr(region.backend.store, verb, refused)

    def lift() -> None:
        for verb, real in banned.items():
            monkeypatch.setattr(region.backend.store, verb, real)

    return region, other, lift


def wait_out_the_pause(region: CacheRegion) -> None:
    region.backend._outage._now = lambda: time.monotonic() + 3600


def test_what_was_created_is_read_where_only_writes_fail(only_reads: Any) -> None:
    region, other, _ = only_reads
    other.set("expired", "old")
    region.set("k", "mine")
    assert region.get("k") == "mine" and region.get_multi(["k", "?"]) == ["mine", NO_VALUE]
    created: list[str] = []
    time.sleep(1.05)
    for pause in range(2):
        for _ in range(3):
            for key in ("page", "expired"):
                assert region.get_or_create(key, lambda: created.append("new") or "new", expiration_time=1) == "new"
        if not pause:
            wait_out_the_pause(region)
    assert created == ["new", "new"] and region.backend._outage.on
    assert region.backend.store.stats()["staleness"] == 0 and other.get("k") is NO_VALUE


def test_what_others_wrote_counts_where_only_writes_fail(only_reads: Any) -> None:
    region, other, _ = only_reads
    other.set_multi({"written": "old", "deleted": "old", "left": "old"})
    region.set_multi({})
    for key in ("written", "deleted", "left"):
        region.set(key, "mine")
    other.set("written", "theirs")
    other.delete("deleted")
    region.backend.store.sync()
    assert [region.get(key) for key in ("written", "deleted", "left")] == ["theirs", NO_VALUE, "mine"]
    other.delete("written")
    region.backend.store.sync()
    assert region.get("written") is NO_VALUE, "and what was kept before does not come back"


@pytest.mark.parametrize("old", [True, False])
def test_what_was_kept_is_stored_when_writes_can_be_done_again(
    only_reads: Any, old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    region, other, lift = only_reads
    if old:
        other.set("k", "old")
    region.set("k", "mine")
    lift()
    assert region.get("k") == "mine" and other.get("k") == ("old" if old else NO_VALUE), "the broker is left alone for a while"
    wait_out_the_pause(region)
    assert region.get("k") == "mine" and other.get("k") == "mine"
    assert not region.backend._outage.on and region.backend._kept.get("k") is None and len(outages(caplog)) == 2


def test_what_was_kept_over_an_outage_is_not_stored_over_what_others_wrote(make: Make) -> None:
    region = make(write_timeout=0.3)
    region.set("k", "old")
    faults(region).disconnect(appends="fail")
    region.set("k", "mine")
    assert region.get("k") == "mine"
    faults(region).reconnect()
    make().set("k", "theirs")
    wait_out_the_pause(region)
    assert region.get("k") == "theirs"


def test_what_is_kept_takes_no_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqkv.dogpile.kept.ROOM", 2**20)
    tracemalloc.start()
    try:
        before, kept = tracemalloc.get_traced_memory()[0], Kept()
        for number in range(20_000):
            kept.put(f"a key of some length {number}", b"%d" % number, 60, NO_VALUE)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < 1.3 * 2**20 and kept.get("a key of some length 19999") and not kept.get("a key of some length 0")
    kept.put("a key of some length 19999", b"x" * 2**20, None, NO_VALUE)
    assert kept.get("a key of some length 19999") is None, "too large, and the older one is not the newest"


@pytest.mark.parametrize("expiration", [None, 60])
def test_an_invalidation_in_the_stream_costs_no_page(make: Make, nowhere: str, expiration: float | None) -> None:
    region = make(nowhere, expiration)
    region.region_invalidator = StreamInvalidation(region)
    begun, created = time.monotonic(), []
    for _ in range(5):
        assert region.get_or_create("k", lambda: created.append(1) or "v") == "v" and region.get("k") == "v"
    assert created == [1] and time.monotonic() - begun < 3.5
    with pytest.raises(OSError):
        region.invalidate()
    strict = make(nowhere, ignore_exceptions=False, read_timeout=0.3)
    with pytest.raises(OSError):
        StreamInvalidation(strict).was_hard_invalidated()


def test_what_is_known_of_an_invalidation_holds_while_the_broker_is_away(make: Make) -> None:
    region = make(expiration=60, max_staleness=0.1, write_timeout=0.3)
    region.region_invalidator = StreamInvalidation(region)
    region.set("k", "old")
    region.invalidate()
    assert region.get("k") is NO_VALUE
    begun = time.time()
    faults(region).disconnect(appends="fail")
    time.sleep(0.2)
    for _ in range(3):
        assert region.get_or_create("k", lambda: "new") == "new"
        assert region.region_invalidator.is_hard_invalidated(begun - 3600)
        assert not region.region_invalidator.is_invalidated(begun)


def test_a_value_is_kept_no_longer_than_it_would_live(make: Make, nowhere: str) -> None:
    region = make(nowhere, mqkv_expiration_time=0.3)
    region.set("k", "v")
    assert region.get("k") == "v"
    time.sleep(0.35)
    assert region.get("k") is NO_VALUE


def test_a_lock_that_is_held_when_the_broker_goes_holds_nobody_up(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    region = make(distributed_lock=True, write_timeout=1, lock_timeout=5)

    def create() -> str:
        faults(region).disconnect()
        return "v"

    begun = time.monotonic()
    assert region.get_or_create("k", create) == "v"
    assert time.monotonic() - begun < 3
    begun = time.monotonic()
    assert region.get_or_create("another", lambda: "w") == "w"
    assert time.monotonic() - begun < 0.5
    faults(region).reconnect()


# What does not fit


@pytest.mark.parametrize("ignore_exceptions", [True, False])
def test_a_value_that_is_too_large_is_returned_and_the_old_one_goes(
    make: Make, url: str, ignore_exceptions: bool, caplog: pytest.LogCaptureFixture
) -> None:
    region = make(url, ignore_exceptions=ignore_exceptions, read_timeout=10, write_timeout=10)
    large = b"x" * 2**24
    region.set("k", "old")
    with caplog.at_level(logging.WARNING, "mqkv.dogpile"):
        assert region.get_or_create("k", lambda: large, expiration_time=0) == large
    assert region.get("k") is NO_VALUE, "the old value is not the newest"
    assert sum("at=too-large" in record.getMessage() for record in caplog.records) == 1
    region.set_multi({"a": 1, "k": large, "b": 2})
    assert region.get_multi(["a", "k", "b"]) == [1, NO_VALUE, 2]
    assert region.get_or_create_multi(["k", "c"], lambda *keys: [large for _ in keys]) == [large, large]
    region.backend.store.purge()
