"""Records of locks whose outcome nobody knows: they leave no lock behind that waits for its ttl."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import SOON, Waiter, apart, queue_of, until
from mqkv.fold import State, fold
from mqkv.record import Record
from mqkv.streams.memory import Faults, MemoryEngine
from mqkv.waiting import Deadline, run


@pytest.fixture
def store(prefix: str, layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(f"memory://{uuid.uuid4().hex}", prefix=prefix, layout=layout, write_timeout=0.2) as store:
        assert not store.lock("jobs").locked()
        with store.lock("jobs"):  # there is a stream
            pass
        yield store


def faults_of(store: mqkv.Store) -> Faults:
    engine = store._keyspace.engine
    assert isinstance(engine, MemoryEngine)
    return engine.faults


def is_free_soon(store: mqkv.Store) -> bool:
    """Sooner than the ttl, by far, which is 30 seconds."""
    return apart(store.lock("jobs", timeout=SOON / 2).acquire)


def test_who_does_not_know_whether_it_asked_does_not_have_it(store: mqkv.Store) -> None:
    faults = faults_of(store)
    faults.lose_answer()
    faults.refuse()  # it can't be let go of at once either
    with pytest.raises(mqkv.OutcomeUnknown):
        store.lock("jobs").acquire()
    assert store.lock("jobs").locked(), "the record has landed"
    assert is_free_soon(store)


def test_a_place_in_the_queue_whose_owner_is_gone(store: mqkv.Store) -> None:
    faults = faults_of(store)
    with store.lock("jobs"):
        faults.lose_answer()
        faults.refuse()
        with pytest.raises(mqkv.OutcomeUnknown):
            apart(store.lock("jobs").acquire)
        assert queue_of(store, "jobs") == 1
        until(lambda: queue_of(store, "jobs") == 0, "leaving the queue")
    assert is_free_soon(store)


def test_what_was_not_written_is_not_let_go_of(store: mqkv.Store) -> None:
    table, faults = run(store._keyspace.lock_table(Deadline(5))), faults_of(store)
    assert table is not None
    end = table.position
    for _ in range(3):
        faults.refuse()
        with pytest.raises(mqkv.ConnectionFailed):
            store.lock("jobs").acquire()
    assert table.position == end
    assert is_free_soon(store)


@pytest.mark.parametrize("trouble", ["refused", "unknown", "no connection"])
def test_a_release_that_fails_is_made_good(store: mqkv.Store, trouble: str) -> None:
    faults, lock = faults_of(store), store.lock("jobs")
    lock.acquire()
    waiter = Waiter(store.lock("jobs"), timeout=SOON)
    until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
    if trouble == "refused":
        faults.refuse(2)
    elif trouble == "unknown":
        faults.lose_answer()
    else:
        faults.disconnect(appends="fail")
    with pytest.raises(mqkv.Error):
        lock.release()
    assert not lock.owned()
    faults.reconnect()
    assert waiter.inside.wait(SOON / 2), "it waits for the ttl"
    waiter.end()
    assert waiter.error is None


def test_a_late_record_of_an_owner_that_was_let_go_of_does_nothing() -> None:
    """A stalled broker may take from an old connection what was sent before, after what came on a new one."""
    state = State()
    asked = Record("lock", "jobs", id="mine", args={"ttl_ms": 1_000, "wait": True})
    gone = fold(state, 1, Record("unlock", "jobs", id="u", args={"owner": "mine"}))
    assert gone is not None and not gone.done
    assert fold(state, 2, asked) is None and not state.locks
    later = fold(state, 3, asked._replace(id="another"))
    assert later is not None and later.done


@pytest.mark.slow
def test_a_broker_that_is_silent_leaves_no_lock_behind(own_broker: Any, prefix: str, layout: Any) -> None:
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 10}
    with mqkv.Store(own_broker.url, write_timeout=1, **options) as store, mqkv.Store(own_broker.url, **options) as other:
        lock, held = store.lock("jobs"), store.lock("held")
        with lock:
            held.acquire()
        own_broker.stop()
        try:
            with pytest.raises((mqkv.OutcomeUnknown, mqkv.WriteTimeout)):
                lock.acquire()
            with pytest.raises((mqkv.OutcomeUnknown, mqkv.WriteTimeout)):
                held.release()
        finally:
            own_broker.cont()
        for name in ("jobs", "held"):
            with other.lock(name, timeout=15):
                pass
        other.purge()


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [True, False], ids=["with a table", "at first use"])
def test_a_timeout_bounds_the_wait_for_a_silent_broker(own_broker: Any, prefix: str, layout: Any, loaded: bool) -> None:
    with mqkv.Store(own_broker.url, prefix=prefix, layout=layout, read_timeout=10) as store:
        store.set("k", 1)
        if loaded:
            store.lock("jobs").locked()
            with store.lock("jobs"):
                pass
        own_broker.stop()
        try:
            began = time.monotonic()
            with pytest.raises((mqkv.OutcomeUnknown, mqkv.WriteTimeout)):
                store.lock("jobs").acquire(0.3)
            assert time.monotonic() - began < 0.3 + 1.3
        finally:
            own_broker.cont()
        assert store.lock("jobs").acquire(15)
        store.purge()
