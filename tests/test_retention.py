"""A log that has lost its beginning is never taken for the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from mqkv.testing.fixtures import Clock
from retention import Retention


@pytest.fixture
def retention(url: str, monkeypatch: pytest.MonkeyPatch) -> Retention:
    return Retention(url, monkeypatch)


@pytest.fixture
def make(url: str, prefix: str) -> Iterator[Any]:
    stores: list[mqkv.Store] = []

    def make(**options: Any) -> mqkv.Store:
        """A store with tables of its own."""
        stores.append(mqkv.Store(url, prefix=prefix, read_timeout=5, clock=Clock(), **options))
        return stores[-1]

    yield make
    stores[0].purge()
    for store in stores:
        store.close()


def test_a_shared_log_without_its_beginning_is_refused(make: Any, retention: Retention, prefix: str) -> None:
    first = make(layout="shared")
    stream = f"{prefix}.default"
    retention.declare(first, stream)
    first.set("k", 1)
    assert first.incr("n", initial=0) == 1
    retention.act(first, stream)
    assert first.get("k") == 1 and first.incr("n") == 2, "who knows everything goes on"
    second = make(layout="shared")
    for call in (
        lambda: second.get("k"),
        lambda: second.get("absent"),
        lambda: second.add("k", 2),
        lambda: second.incr("n", initial=0),
        lambda: second.set("k", 2),
        lambda: second.set_many({"k": 2}),
        lambda: second.keys(),
        lambda: second.history("k"),
        lambda: second.watch("k").close(),
    ):
        for _ in range(2):
            with pytest.raises(mqkv.LogTruncated, match=r"retention .* purge"):
                call()
    assert first.get("k", fresh=True) == 1 and first.get("n", fresh=True) == 2
    second.purge()
    assert second.get("k") is None and second.add("k", 3) and make(layout="shared").get("k") == 3


def test_no_second_owner_where_the_beginning_of_the_locks_is_gone(make: Any, retention: Retention, layout: str) -> None:
    first, second = make(layout=layout), make(layout=layout)
    (stream,) = (locks.stream for locks in [first._open_keyspace()._locks] if locks is not None)
    retention.declare(first, stream)
    with first.lock("l", ttl=60):
        retention.act(first, stream)
        with pytest.raises(mqkv.LogTruncated, match="locks"):
            second.lock("l").acquire(timeout=0)
    with first.lock("l"):
        pass


def test_a_key_whose_value_rests_on_what_is_gone_is_refused(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    assert first.incr("k") == 2
    first.preload("k")
    retention.act(first, stream)
    assert first.get("k") == 2 and first.incr("k") == 3, "who knows everything goes on"
    second = make()
    for call in (
        lambda: second.get("k"),
        lambda: second.get_many(["k"]),
        lambda: second.add("k", 5),
        lambda: second.incr("k", initial=0),
        lambda: second.touch("k", 5),
        lambda: second.compare_and_set("k", 5, None),
        lambda: second.pop("k", None),
        lambda: second.delete("k"),
        lambda: second.items(),
        lambda: second.preload("k"),
    ):
        with pytest.raises(mqkv.LogTruncated, match=r"retention .* set key 'k'"):
            call()
    assert first.get("k", fresh=True) == 3 and second.history("k") == []
    second.set("k", 10)
    assert second.incr("k") == 11 and first.get("k", fresh=True) == 11
    third = make()
    assert third.get("k") == 11 and third.incr("k") == 12 and third.history("k") == [10, 11, 12]


def test_a_key_that_was_set_anew_is_read_as_before(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    retention.act(first, stream)
    first.set("k", 2)
    assert make().get("k") == 2
    assert make().incr("k") == 3
    assert make().get("k") == 3 and make().history("k") == [2, 3]


def test_a_past_without_its_beginning(make: Any, retention: Retention, prefix: str) -> None:
    first, stream = make(), f"{prefix}.k"
    retention.declare(first, stream)
    first.set("k", 1)
    retention.act(first, stream)
    first.set("k", 2)
    assert first.incr("k") == 3
    with make().watch("k", start="first") as watch:
        assert [change and change.value for change in (watch.get(10), watch.get(10))] == [2, 3] and watch.get(0.1) is None
