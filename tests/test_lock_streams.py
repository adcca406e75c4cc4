"""Where locks stand: in a stream of their own, which only those who lock declare, load and write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import TTL, until
from mqkv.check import RESERVED


@pytest.fixture
def store(url: str, prefix: str, layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        yield store
        store.purge()


@pytest.fixture
def streams(prefix: str, layout: str) -> tuple[str, str]:
    """Those that every process loads, and that of the locks."""
    if layout == "shared":
        return f"{prefix}.default", f"{prefix}.default{RESERVED}locks__"
    return f"{prefix}.{RESERVED}keys__", f"{prefix}.{RESERVED}locks__"


def end_of(store: mqkv.Store, stream: str) -> int:
    newest = store._keyspace.engine.last(stream, 5)
    assert newest is not None
    return newest[0]


def test_locks_are_written_where_only_those_who_lock_read(store: mqkv.Store, streams: tuple[str, str]) -> None:
    store.set("k", 1)
    everybodys, locks = streams
    before = end_of(store, everybodys)
    with store.lock("jobs", ttl=TTL) as lock:
        begun = end_of(store, locks)
        time.sleep(TTL)
        until(lambda: end_of(store, locks) >= begun + 2, "renewals")
        assert lock.owned() and not store.lock("another", timeout=0).locked()
    assert end_of(store, everybodys) == before


def test_who_does_not_lock_does_not_load_them(store: mqkv.Store, url: str, prefix: str, layout: Any) -> None:
    store.set("k", 1)
    with store.lock("jobs"), mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5, max_staleness=60) as other:
        assert other.get("k") == 1 and list(other.keys()) == ["k"]
        tables = other.stats()["tables"]
        assert isinstance(tables, int)
        assert other.lock("jobs").locked() and other.stats()["tables"] == tables + 1
        assert list(other.keys()) == ["k"] and len(other) == 1


def test_asking_whether_it_is_held_declares_nothing(store: mqkv.Store, streams: tuple[str, str]) -> None:
    store.set("k", 1)
    assert not store.lock("jobs").locked()
    store.sync()
    with pytest.raises(mqkv.StreamMissing):
        store._keyspace.engine.last(streams[1], 5)


def test_a_purge_deletes_it_and_a_clear_does_not(store: mqkv.Store, streams: tuple[str, str]) -> None:
    store.set("k", 1)
    lock = store.lock("jobs")
    lock.acquire()
    store.clear()
    assert lock.owned() and end_of(store, streams[1]) >= 0
    store.purge()
    assert not lock.owned()
    with pytest.raises(mqkv.StreamMissing):
        store._keyspace.engine.last(streams[1], 5)


def test_a_sync_tells_of_locks_too(store: mqkv.Store, url: str, prefix: str, layout: Any) -> None:
    with mqkv.Store(elsewhere(url), prefix=prefix, layout=layout, read_timeout=5) as other:
        lock, theirs = store.lock("jobs"), other.lock("jobs")
        for _ in range(20):
            lock.acquire()
            other.sync()
            assert theirs.locked()
            lock.release()
            other.sync()
            assert not theirs.locked()


def elsewhere(url: str) -> str:
    return url + {"file": "?sync=full", "amqp": "?heartbeat=31"}.get(url.partition(":")[0], "")


@pytest.mark.parametrize("name", [f"cache{RESERVED}locks__", f"{RESERVED}locks__"])
def test_what_is_reserved_is_no_name(name: str) -> None:
    with pytest.raises(mqkv.InvalidKey, match=RESERVED):
        mqkv.Store("memory://", layout="shared", name=name)
    with pytest.raises(mqkv.InvalidKey, match=RESERVED):
        mqkv.Store("memory://", prefix=name)
