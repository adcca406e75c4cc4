"""A replica that lags, on demand (the memory engine's fault): nothing goes back, nothing is taken for a log that was rewritten,
and a fresh read that can't be had raises. The same on a real cluster: ``test_cluster``."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from mqkv.streams.memory import Faults


@pytest.fixture
def store(layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(f"memory://{uuid.uuid4().hex}", layout=layout, read_timeout=0.2, write_timeout=0.3) as store:
        store.set("k", 1)
        yield store


@pytest.fixture
def faults(store: mqkv.Store) -> Faults:
    engine: Any = store._keyspace.engine
    found: Faults = engine.faults
    return found


def test_reads_do_not_go_back(store: mqkv.Store, faults: Faults) -> None:
    store.preload("k")
    with store.watch("k") as changes:
        store.set("k", 2)
        assert [change.value for change in (changes.get(1),) if change] == [2]
        faults.lag(behind=1)
        assert store.get("k") == store.peek("k") == 2
        assert float(str(store.stats()["staleness"])) > 0
        faults.level()
        assert store.stats()["staleness"] == 0
        assert store.set("k", 3) >= 0
        change = changes.get(1)
        assert change is not None and (change.kind, change.value) == ("set", 3), "nobody was told of a reset"
        assert changes.get(0) is None


def test_an_uncached_read_is_not_older_than_what_was_read_or_written(layout: Any) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    with mqkv.Store(url, layout=layout, read_timeout=0.2) as store, mqkv.Store(url, layout=layout, name="other") as other:
        engine: Any = other._keyspace.engine
        store.set("read", 1)
        store.set("read", 2)
        assert store.get("read") == 2
        store.set("written", 1)
        store.set("written", 2)
        engine.faults.lag(behind=1)
        assert store.get("read") == store.get("written") == 2


def test_a_fresh_read_raises_while_the_replica_lags(store: mqkv.Store, faults: Faults, layout: Any) -> None:
    store.preload("k")
    faults.lag()
    expected = mqkv.ReadTimeout if layout == "shared" else mqkv.Stale
    began = time.monotonic()
    with pytest.raises(expected):
        store.get("k", fresh=True)
    with pytest.raises(expected):
        store.sync()
    assert time.monotonic() - began < 1.5
    assert store.get("k") == 1
    faults.level()
    if layout == "shared":
        assert store.get("k", fresh=True) == 1
        store.sync()
    else:
        with pytest.raises(mqkv.Stale, match="cluster"):
            store.get("k", fresh=True)


def test_a_write_is_settled_when_the_replica_has_it(layout: Any) -> None:
    with mqkv.Store(f"memory://{uuid.uuid4().hex}", layout=layout, write_timeout=0.3) as store:
        store.set("k", 1)
        engine: Any = store._keyspace.engine
        engine.faults.lag()
        with pytest.raises(mqkv.OutcomeUnknown):
            store.set("k", 2)
        timer = threading.Timer(0.1, engine.faults.level)
        timer.start()
        store.set("k", 3)
        timer.join()
        assert store.get("k") == 3 and store.history("k") == [1, 2, 3]
