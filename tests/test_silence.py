"""A broker that is silent (SIGSTOP: connections stay open, nothing answers): each call ends in its own time, with an error of its
kind, and what nobody waits for any more is forgotten."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv

pytestmark = pytest.mark.slow


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


@pytest.fixture
def store(own_broker: Any, prefix: str, layout: str) -> Iterator[mqkv.Store]:
    """With one key, and a connection that is up."""
    with mqkv.Store(own_broker.url, prefix=prefix, layout=layout, read_timeout=0.2, write_timeout=1) as store:
        for attempt in range(20):
            with contextlib.suppress(mqkv.Error):
                store.set("here", attempt)
                break
        yield store
        own_broker.cont()
        for _ in range(20):
            with contextlib.suppress(mqkv.Error):
                store.purge()
                break


@contextlib.contextmanager
def silent(broker: Any) -> Iterator[None]:
    broker.stop()
    try:
        yield
    finally:
        broker.cont()


def test_writes_end_in_their_time_with_a_writes_error(own_broker: Any, store: mqkv.Store) -> None:
    calls = {
        "set": lambda: store.set("new", 1),
        "set again": lambda: store.set("here", 1),
        "add": lambda: store.add("another", 1),
        "incr": lambda: store.incr("number", initial=0),
        "delete": lambda: store.delete("elsewhere"),
        "set_many": lambda: store.set_many({"one": 1, "two": 2}),
    }
    with silent(own_broker):
        for name, call in calls.items():
            clock = Clock()
            with pytest.raises((mqkv.WriteTimeout, mqkv.OutcomeUnknown)):
                call()
            assert 0.9 < clock.seconds < 1.6, name


@pytest.mark.parametrize("layout", ["per-key"])
def test_an_uncached_read_ends_in_its_time(own_broker: Any, store: mqkv.Store, layout: str) -> None:
    with silent(own_broker):
        clock = Clock()
        with pytest.raises(mqkv.ReadTimeout):
            store.get("here", fresh=True)
        with pytest.raises(mqkv.ReadTimeout):
            store.get("never")
        with pytest.raises(mqkv.ReadTimeout):
            store.get_many(["never", "ever"])
        assert 0.55 < clock.seconds < 1.2


@pytest.mark.parametrize("layout", ["shared"])
def test_a_fresh_read_of_a_shared_keyspace_ends_in_its_time(own_broker: Any, store: mqkv.Store, layout: str) -> None:
    with silent(own_broker):
        clock = Clock()
        with pytest.raises(mqkv.ReadTimeout):
            store.get("here", fresh=True)
        with pytest.raises(mqkv.ReadTimeout):
            store.sync()
        assert 0.35 < clock.seconds < 1.0


@pytest.mark.parametrize("layout", ["shared"])
def test_a_load_from_a_silent_broker_ends(own_broker: Any, store: mqkv.Store, prefix: str, layout: str) -> None:
    # The connection is there: the store shares the engine, and has another table.
    with mqkv.Store(own_broker.url, prefix=prefix, layout=layout, name="other", read_timeout=0.2) as other, silent(own_broker):
        clock = Clock()
        with pytest.raises(mqkv.ReadTimeout):
            other.get("k")
        assert 1.9 < clock.seconds < 2.6


@pytest.mark.parametrize("layout", ["per-key"])
def test_questions_that_have_timed_out_are_not_asked_any_more(own_broker: Any, store: mqkv.Store, layout: str) -> None:
    keys = [f"k{number}" for number in range(500)]
    with silent(own_broker):
        for _ in range(3):
            with pytest.raises(mqkv.ReadTimeout):
                store.get_many(keys)
    clock = Clock()
    while True:
        with contextlib.suppress(mqkv.ReadTimeout):
            assert store.get("here", fresh=True) == 0
            break
    assert clock.seconds < 1, "the first read waited for what nobody waits for"


@pytest.fixture
def strict(own_broker: Any, prefix: str, layout: str, store: mqkv.Store) -> Iterator[mqkv.Store]:
    """A store that serves what is a second old at most, and has it in memory."""
    with mqkv.Store(own_broker.url, prefix=prefix, layout=layout, read_timeout=5, max_staleness=1) as strict:
        strict.preload("here")
        yield strict


def test_silence_is_noticed_within_the_staleness_that_was_asked_for(own_broker: Any, strict: mqkv.Store) -> None:
    for _ in range(2):
        value = strict.get("here")
        with silent(own_broker):
            clock = Clock()
            with contextlib.suppress(mqkv.Stale):
                while True:
                    assert strict.get("here") == value
                    assert clock.seconds < 5
                    time.sleep(0.01)
            assert 0.4 < clock.seconds < 1.1
            staleness = strict.stats()["staleness"]
            assert isinstance(staleness, float) and staleness >= 1
        clock = Clock()
        while strict.stats()["staleness"]:
            assert clock.seconds < 5
            time.sleep(0.01)
        assert strict.get("here") == value
        strict.set("here", "after")


def test_a_broker_that_has_nothing_to_say_is_not_stale(own_broker: Any, strict: mqkv.Store) -> None:
    clock = Clock()
    while clock.seconds < 3:
        assert strict.get("here") == 0
        assert strict.stats()["staleness"] == 0.0
        time.sleep(0.01)


@pytest.mark.rabbitmq_only  # LavinMQ has no such alarm
def test_a_broker_that_takes_no_messages_is_not_silent(own_broker: Any, prefix: str, layout: Any) -> None:
    """With an alarm it does not even read what a publisher sends, and delivers all the same."""
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 5}
    with mqkv.Store(own_broker.url, write_timeout=1, max_staleness=1, **options) as strict:
        strict.set("here", 0)
        strict.preload("here")
        own_broker.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            with contextlib.suppress(mqkv.ConnectionFailed, mqkv.OutcomeUnknown):
                while True:
                    strict.set("here", 1)
            clock = Clock()
            while clock.seconds < 3:
                assert strict.get("here") is not None
                time.sleep(0.01)
            if layout == "per-key":
                with pytest.raises(mqkv.ReadTimeout, match="alarm"):
                    strict.get("elsewhere")
        finally:
            own_broker.ctl("set_vm_memory_high_watermark", "0.6")
        clock = Clock()
        while True:
            with contextlib.suppress(mqkv.ConnectionFailed, mqkv.OutcomeUnknown):
                strict.set("here", 2)
                break
            assert clock.seconds < 20
        assert strict.get("here") == 2
        strict.purge()


@pytest.mark.rabbitmq_only  # on LavinMQ, idle tails look whether a delivery was forgotten
def test_nobody_is_asked_where_nobody_wants_to_know(own_broker: Any, store: mqkv.Store) -> None:
    store.preload("here")
    engine: Any = store._keyspace.engine
    time.sleep(0.2)
    before = engine._link.session.connection.bytes_received
    time.sleep(2)
    assert engine._link.session.connection.bytes_received == before
