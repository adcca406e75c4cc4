"""What is written while locks are held and nothing happens: one record renews all leases of a process that are due about then."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import SOON, TTL, apart, until
from mqkv.streams.memory import MemoryEngine
from mqkv.waiting import Deadline, run


@pytest.fixture
def store(url: str, prefix: str, layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        yield store
        store.purge()


def end_of(store: mqkv.Store) -> int:
    table = run(store._keyspace.lock_table(Deadline(5)))
    assert table is not None
    return table.position


def test_one_record_renews_all(store: mqkv.Store, url: str, prefix: str, layout: Any) -> None:
    locks = [store.lock(f"jobs{number}", ttl=TTL) for number in range(20)]
    long = store.lock("long", ttl=3600)
    for lock in [*locks, long]:
        assert lock.acquire()
    time.sleep(TTL / 2)  # all were renewed once
    before, began = end_of(store), time.monotonic()
    time.sleep(2 * TTL)
    written, ttls = end_of(store) - before, (time.monotonic() - began) / TTL
    assert all(lock.owned() for lock in [*locks, long])
    assert 2 * ttls - 2 <= written <= 5 * ttls + 2, f"{written} records in {ttls:.1f} ttl"
    assert not apart(store.lock("jobs7", timeout=0).acquire), "renewed in the log, too"
    locks[7].release()
    assert apart(store.lock("jobs7", timeout=SOON).acquire) and locks[8].owned()


def test_of_some_leases_that_are_renewed_one_is_lost(store: mqkv.Store) -> None:
    one, other = store.lock("one", ttl=TTL), store.lock("other", ttl=TTL)
    one.acquire(), other.acquire()
    lease, table = one._lease, run(store._keyspace.lock_table(Deadline(5)))
    assert lease is not None and table is not None
    with table._lock:  # as if its news had not come
        table._hearing.unlisten("one", lease.on_change)
    store._keyspace.leases.let_go(table, lease.record("unlock"))
    until(lambda: not one.owned(), "the news, by the renewal")
    time.sleep(TTL)
    assert other.owned() and not apart(store.lock("other", timeout=0).acquire)


def test_a_silent_broker_is_not_told_again_and_again(prefix: str, layout: Any) -> None:
    with mqkv.Store(f"memory://{uuid.uuid4().hex}", prefix=prefix, layout=layout) as store:
        engine = store._keyspace.engine
        assert isinstance(engine, MemoryEngine)
        lock = store.lock("jobs", ttl=2 * TTL)
        lock.acquire()
        before = end_of(store)
        engine.faults.disconnect()
        threading.Event().wait(1.5 * TTL)
        engine.faults.reconnect()
        assert lock.owned() and end_of(store) - before <= 3
        time.sleep(TTL)
        assert lock.owned()
