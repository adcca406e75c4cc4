"""Locks, as one process sees them: who has it, who waits, who is told what. Processes are in ``test_lock_processes.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import SOON, TTL, Waiter, apart, enter, fall_silent, queue_of, until


@pytest.fixture
def make(url: str, prefix: str, layout: Any) -> Iterator[Callable[..., mqkv.Store]]:
    """Makes stores; ``make(other=True)`` one with a connection and tables of its own, where the engine has such."""
    other = {"file": "?sync=full", "amqp": "?heartbeat=31"}.get(url.partition(":")[0], "")
    opened: list[mqkv.Store] = []

    def make(**options: Any) -> mqkv.Store:
        where = url + (other if options.pop("other", False) else "")
        opened.append(mqkv.Store(where, prefix=prefix, layout=layout, **{"read_timeout": 5.0, **options}))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5.0) as store:
        store.purge()


@pytest.fixture
def store(make: Callable[..., mqkv.Store]) -> mqkv.Store:
    return make()


@pytest.fixture
def other(make: Callable[..., mqkv.Store]) -> mqkv.Store:
    return make(other=True)


# Having it


def test_one_at_a_time(store: mqkv.Store, other: mqkv.Store) -> None:
    first, second = store.lock("jobs"), other.lock("jobs", timeout=0)
    assert not first.locked() and not first.owned()
    assert first.acquire() and first.owned() and first.locked() and not second.owned()
    until(second.locked, "the news")
    assert "held" in repr(first) and "not held" in repr(second)
    assert not apart(second.acquire) and not apart(second.acquire, 0) and not second.owned()
    assert store.lock("another").acquire(0), "another name is another lock"
    first.release()
    assert not first.owned() and not first.locked(), "one's own release is known at once"
    assert second.acquire(0) and second.owned() and not apart(first.acquire, 0)
    second.release()
    until(lambda: not second.locked() and not first.locked(), "the news of the release")


def test_a_timeout_is_kept(store: mqkv.Store, other: mqkv.Store) -> None:
    with store.lock("jobs"):
        began = time.monotonic()
        assert not apart(other.lock("jobs").acquire, 0.3)
        assert 0.3 <= time.monotonic() - began < 1.3
        began = time.monotonic()
        with pytest.raises(mqkv.LockTimeout, match="jobs") as caught:
            apart(enter, other.lock("jobs", timeout=0.2))
        assert isinstance(caught.value, TimeoutError) and 0.2 <= time.monotonic() - began < 1.2
        with pytest.raises(mqkv.LockTimeout):
            apart(enter, other.lock("jobs", timeout=0))
        until(lambda: queue_of(store, "jobs") == 0, "who gave up has a place in the queue: leaving it")
    assert other.lock("jobs").acquire(0), "a place in the queue was granted to somebody who had given up"


def test_waiters_have_it_in_the_order_in_which_they_asked(store: mqkv.Store, other: mqkv.Store) -> None:
    holder = store.lock("jobs")
    holder.acquire()
    token, waiters = holder.token, []
    for number in range(6):
        waiters.append(Waiter((store, other)[number % 2].lock("jobs")))
        until(lambda number=number: queue_of(store, "jobs") == number + 1, "a place in the queue")  # type: ignore[misc]
    began = time.monotonic()
    holder.release()
    for at, waiter in enumerate(waiters):
        assert waiter.inside.wait(SOON), (at, waiter.error)
        assert [each.inside.is_set() for each in waiters].count(True) == at + 1
        assert waiter.token > token
        token = waiter.token
        waiter.end()
        assert waiter.error is None
    assert time.monotonic() - began < 5, "woken by timers, not by releases"
    until(lambda: not store.lock("jobs").locked(), "the news of the last release")


def test_reentrance_is_an_error_and_not_a_deadlock(store: mqkv.Store) -> None:
    with store.lock("jobs") as lock:
        for again in (lock, store.lock("jobs")):
            with pytest.raises(mqkv.LockHeld, match="jobs"):
                again.acquire()
            with pytest.raises(mqkv.LockHeld), again:
                pytest.fail("twice inside")
        assert lock.owned() and store.lock("jobs").locked()
    assert lock.acquire(0), "used again after its release"
    lock.release()


def test_only_who_has_it_can_release_it(store: mqkv.Store, other: mqkv.Store) -> None:
    lock = store.lock("jobs")
    with pytest.raises(mqkv.LockLost):
        lock.release()
    lock.acquire()
    for stranger in (store.lock("jobs"), other.lock("jobs")):
        with pytest.raises(mqkv.LockLost):
            stranger.release()
    assert lock.owned() and not apart(other.lock("jobs").acquire, 0)
    apart(lock.release)  # the same object, in another thread
    assert not lock.owned() and other.lock("jobs").acquire(0)
    with pytest.raises(mqkv.LockLost):
        lock.release()


def test_tokens_rise(store: mqkv.Store, other: mqkv.Store) -> None:
    tokens, one, two = [], store.lock("jobs"), other.lock("jobs")
    for lock in (one, two, one, one, two):
        with pytest.raises(mqkv.LockLost, match="jobs"):
            _ = lock.token
        with lock:
            tokens.append(lock.token)
            store.set("k", len(tokens))
            assert lock.token == tokens[-1]
    assert all(type(token) is int for token in tokens) and tokens == sorted(set(tokens))


def test_an_exception_releases(store: mqkv.Store, other: mqkv.Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("jobs"):
        raise ZeroDivisionError
    lock = other.lock("jobs", ttl=TTL)
    with pytest.raises(ZeroDivisionError), lock:  # and not LockLost: the first problem is told
        fail_after_losing(other, lock)


def fail_after_losing(store: mqkv.Store, lock: mqkv.Lock) -> None:
    fall_silent(store, lock)
    until(lambda: not lock.owned(), "the end of the lease")
    raise ZeroDivisionError


# Keeping and losing it


def test_a_lease_is_renewed_while_it_is_held(store: mqkv.Store, other: mqkv.Store) -> None:
    with store.lock("jobs", ttl=TTL) as lock:
        token = lock.token
        assert not apart(other.lock("jobs").acquire, 3 * TTL), "the lease of a living holder was broken"
        assert lock.owned() and lock.token == token
    assert other.lock("jobs").acquire(0)


def test_a_silent_holder_is_given_up(store: mqkv.Store, other: mqkv.Store) -> None:
    lock, next_one = store.lock("jobs", ttl=TTL), other.lock("jobs")
    lock.acquire()
    token = lock.token
    waiter = Waiter(next_one)
    until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
    fall_silent(store, lock)
    began = time.monotonic()
    assert waiter.inside.wait(TTL + 1), waiter.error
    assert waiter.token > token
    assert not lock.owned(), f"two owners, {time.monotonic() - began:.2f} s after the last renewal at the latest"
    with pytest.raises(mqkv.LockLost):
        _ = lock.token
    with pytest.raises(mqkv.LockLost, match="jobs"):
        lock.release()
    assert next_one.owned(), "the late release took the lock from its new owner"
    waiter.end()
    assert waiter.error is None


def test_a_lease_that_ran_out_is_known_to_be_lost(store: mqkv.Store) -> None:
    """With nobody who waits, too: the holder counts for itself."""
    lock = store.lock("jobs", ttl=TTL)
    lock.acquire()
    fall_silent(store, lock)
    until(lambda: not lock.owned(), "the end of the lease", TTL + 1)
    assert store.lock("jobs", ttl=TTL).acquire(TTL + 1)
    with pytest.raises(mqkv.LockLost):
        lock.release()


def test_clear_leaves_locks_alone(store: mqkv.Store, other: mqkv.Store) -> None:
    store.set("k", 1)
    with store.lock("jobs") as lock:
        store.clear()
        other.clear(prefix="jo")
        assert lock.owned() and not apart(other.lock("jobs").acquire, 0)
    assert other.get("k", fresh=True) is None
    until(lambda: not other.lock("jobs").locked(), "the news of the release")


def test_purge_takes_the_lock_away(store: mqkv.Store, other: mqkv.Store) -> None:
    lock = store.lock("jobs")
    lock.acquire()
    store.purge()
    assert not lock.owned()
    with pytest.raises(mqkv.LockLost):
        lock.release()
    assert other.lock("jobs").acquire(5), "the lock is there again, and free"


def test_a_purge_by_another_process_takes_it_away_too(store: mqkv.Store, other: mqkv.Store) -> None:
    """Known with the news of it, or with the first renewal that finds no stream, and not only when the ttl has passed."""
    lock = store.lock("jobs", ttl=3 * TTL)
    lock.acquire()
    other.purge()
    until(lambda: not lock.owned(), "the news", 2 * TTL)
    assert other.lock("jobs").acquire(SOON)


def test_a_waiter_outlives_a_purge(store: mqkv.Store) -> None:
    lock = store.lock("jobs")
    lock.acquire()
    waiter = Waiter(store.lock("jobs"))
    until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
    store.purge()
    waiter.leave.set()
    waiter.join(SOON)
    assert waiter.had and waiter.error is None, waiter.error


# Ends


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another store of its tables"])
def test_closing_the_store_ends_the_wait(make: Callable[..., mqkv.Store], other: mqkv.Store, alone: bool) -> None:
    store = make()
    if not alone:
        make()
    lock = other.lock("jobs")
    lock.acquire()
    waiter = Waiter(store.lock("jobs"), timeout=None)
    until(lambda: queue_of(other, "jobs") == 1, "a place in the queue")
    began = time.monotonic()
    store.close()
    waiter.join(SOON)
    assert not waiter.is_alive() and time.monotonic() - began < 1.5
    assert isinstance(waiter.error, mqkv.Closed), (waiter.error, waiter.had)
    until(lambda: queue_of(other, "jobs") == 0, "leaving the queue")
    assert lock.owned(), "held through another store"
    lock.release()
    assert other.lock("jobs").acquire(0)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another store of its tables"])
def test_closing_the_store_releases(make: Callable[..., mqkv.Store], other: mqkv.Store, alone: bool) -> None:
    store = make()
    if not alone:
        make()
    lock = store.lock("jobs")
    lock.acquire()
    store.close()
    assert not lock.owned()
    with pytest.raises(mqkv.LockLost):
        lock.release()
    with pytest.raises(mqkv.Closed):
        lock.acquire(0)
    assert other.lock("jobs").acquire(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_does_not_own_the_lock(store: mqkv.Store, url: str) -> None:
    lock = store.lock("jobs", ttl=TTL)
    lock.acquire()

    def child() -> None:
        assert not lock.owned()
        with pytest.raises(mqkv.LockLost):
            _ = lock.token
        with pytest.raises(mqkv.LockLost):
            lock.release()
        if not url.startswith("memory"):
            assert lock.locked() and not lock.acquire(2 * TTL), "the parent renews"
            with store.lock("child's", timeout=0) as mine:
                assert mine.owned()
        store.close()

    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see the child's traceback"
    assert lock.owned()
    lock.release()
