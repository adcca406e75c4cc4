"""The log of a lock was rewritten under its holder: the table is rebuilt, and only then is it judged who holds it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import SOON, TTL, Waiter, apart, fall_silent, queue_of, until
from mqkv.streams.memory import MemoryEngine
from mqkv.waiting import Deadline, run


@pytest.fixture
def store(prefix: str, layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(f"memory://{uuid.uuid4().hex}", prefix=prefix, layout=layout) as store:
        yield store


def truncate(store: mqkv.Store, **lost: int) -> None:
    engine, table = store._keyspace.engine, run(store._keyspace.lock_table(Deadline(5)))
    assert isinstance(engine, MemoryEngine) and table is not None
    engine.faults.truncate(table.stream, **lost)


def test_a_reset_leaves_a_valid_lease_alone(store: mqkv.Store) -> None:
    """While the table is rebuilt, the lock passes through other hands once more."""
    for _ in range(3):
        with store.lock("jobs"):
            pass
    lock = store.lock("jobs")
    lock.acquire()
    token = lock.token
    assert not apart(store.lock("jobs", timeout=0).acquire), "a record that may go"
    truncate(store, tail=1)
    assert lock.owned() and lock.token == token
    waiter = Waiter(store.lock("jobs"))
    until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
    truncate(store, tail=0)
    assert not waiter.inside.wait(0.05) and lock.owned()
    lock.release()
    assert waiter.inside.wait(SOON), waiter.error
    waiter.end()


def test_a_waiter_whose_place_is_gone_asks_again(store: mqkv.Store) -> None:
    with store.lock("jobs"):
        waiter = Waiter(store.lock("jobs"))
        until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
        truncate(store, tail=1)
        until(lambda: queue_of(store, "jobs") == 1, "a place in the queue again")
        assert not waiter.inside.is_set()
    assert waiter.inside.wait(SOON), waiter.error
    waiter.end()


def test_a_lock_that_is_gone_is_lost(store: mqkv.Store) -> None:
    lock = store.lock("jobs")
    lock.acquire()
    truncate(store, tail=1)
    assert not lock.owned()
    with pytest.raises(mqkv.LockLost):
        lock.release()
    lock.acquire()
    assert lock.owned()


def test_a_reset_does_not_lengthen_a_lease(store: mqkv.Store) -> None:
    lock = store.lock("jobs", ttl=TTL)
    lock.acquire()
    fall_silent(store, lock)
    truncate(store, tail=0)
    assert lock.owned()
    until(lambda: not lock.owned(), "the end of the lease", TTL + 1)


def test_a_log_without_its_beginning_gives_no_lock_to_anybody(store: mqkv.Store) -> None:
    """Retention took what said who holds it. Nobody may have it, until the keyspace is purged."""
    lock = store.lock("jobs")
    lock.acquire()
    assert not apart(store.lock("jobs", timeout=0).acquire)
    truncate(store, head=2)
    assert not lock.owned()
    for ask in (store.lock("jobs").acquire, store.lock("another").acquire, store.lock("jobs").locked):
        with pytest.raises(mqkv.LogTruncated, match="locks"):
            ask()
    store.purge()
    assert lock.acquire() and lock.owned()
