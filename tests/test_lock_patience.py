"""A holder that died, and others who ask in tries that are each shorter than its ttl: they have its lock when the ttl has passed.
A holder that lives keeps it, however they ask."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import mqkv
from lock_tools import TTL, apart, fall_silent
from lock_worker import Place, try_once
from places import ON_BROKERS

Tries = Callable[[mqkv.Store], Callable[[], bool]]


def in_short_waits(store: mqkv.Store) -> Callable[[], bool]:
    lock = store.lock("jobs")
    return lambda: lock.acquire(TTL / 4)


def without_waiting(store: mqkv.Store) -> Callable[[], bool]:
    lock = store.lock("jobs", timeout=0)

    def ask() -> bool:
        time.sleep(TTL / 10)
        return lock.acquire()

    return ask


@pytest.mark.parametrize("tries", [in_short_waits, without_waiting])
def test_tries_that_are_shorter_than_the_ttl(url: str, prefix: str, layout: Any, tries: Tries) -> None:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        lock = store.lock("jobs", ttl=TTL)
        lock.acquire()
        ask = tries(store)
        began = time.monotonic()
        while time.monotonic() < began + 1.5 * TTL:
            assert not apart(ask), "the lease of a living holder was broken"
        fall_silent(store, lock)
        began = time.monotonic()
        while not apart(ask):
            assert time.monotonic() < began + 3 * TTL, "a dead holder's lock is never freed"
        assert not lock.owned()
        store.purge()


def test_a_store_for_each_try(url: str, prefix: str, layout: Any) -> None:
    """As in a task queue, where each task opens what it needs. On the broker and on files each loads the log anew."""
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5) as store:
        lock = store.lock("jobs", ttl=TTL)
        lock.acquire()
        fall_silent(store, lock)
        began = time.monotonic()
        had = False
        while not had:
            assert time.monotonic() < began + 5 * TTL, "a dead holder's lock is never freed"
            with mqkv.Store(elsewhere(url), prefix=prefix, layout=layout, read_timeout=5) as other:
                had = other.lock("jobs", timeout=TTL / 6).acquire()
        store.purge()


def elsewhere(url: str) -> str:
    """The same place, through a connection of its own if the engine has such a thing."""
    return url + {"file": "?sync=full", "amqp": "?heartbeat=31"}.get(url.partition(":")[0], "")


@pytest.fixture(scope="module", autouse=True)
def _helper_of_multiprocessing() -> None:
    resource_tracker.ensure_running()  # it stays, and is no test's leak


@pytest.fixture(params=["file", *ON_BROKERS])
def url_of_others(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/kv" if request.param == "file" else str(request.getfixturevalue(request.param).url)


@pytest.mark.slow
def test_processes_that_each_live_shorter_than_the_ttl(url_of_others: str, prefix: str, layout: Any) -> None:
    place = Place(url_of_others, prefix, layout, ttl=1.2)
    with place.open() as store:
        lock = store.lock("jobs", ttl=place.ttl)
        lock.acquire()
        fall_silent(store, lock)
        had = []
        while True not in had and len(had) < 7:
            had.append(try_in_a_process(place))
        assert had[-1] is True and len(had) > 3, had
        assert not lock.owned()
        store.purge()


@pytest.mark.slow
def test_processes_do_not_break_the_lease_of_a_living_holder(tmp_path: Path, prefix: str) -> None:
    place = Place(f"file://{tmp_path}/kv", prefix, "shared", ttl=1.5)
    with place.open() as store, store.lock("jobs", ttl=place.ttl) as lock:
        assert [try_in_a_process(place) for _ in range(6)] == [False] * 6
        assert lock.owned()


def try_in_a_process(place: Place) -> Any:
    """One that asks once, for less than the ttl, and ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=try_once, args=(place, place.ttl / 4, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(30), "no answer"
    had = ours.recv()
    process.join()
    process.close()
    ours.close()
    return had
