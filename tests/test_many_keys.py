"""More keys with a stream each than tails may be open: every operation has its own while it is under way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import mqkv
from mqkv.layout import followed


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(followed, "MAX_TAILS", 4)
    monkeypatch.setattr(followed, "WINDOW", 4, raising=False)
    return 4


def idle(store: mqkv.Store) -> int:
    keyspace: Any = store._keyspace
    return len(keyspace._tables)


def test_many_at_once(url: str, prefix: str, few: int) -> None:
    keys = [f"k{number:02}" for number in range(few * 5)]
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        store.set_many({key: number for number, key in enumerate(keys)})
        assert idle(store) <= few
        assert len(store) == len(keys) and sorted(store.items()) == [(key, number) for number, key in enumerate(keys)]
        store.set_many({key: [number] for number, key in enumerate(keys)}, ttl=60)
        assert store.get_many(keys) == {key: [number] for number, key in enumerate(keys)}
        store.preload(*keys[:10])
        assert store.delete_many([*keys[3:], "none"]) == len(keys) - 3
        assert sorted(store.keys()) == keys[:3] and store.get(keys[0]) == [0]
        store.clear()
        assert store.keys() == [] and idle(store) <= few + 10
        store.purge()


def test_threads_take_no_tail_from_each_other(url: str, prefix: str, few: int) -> None:
    problems: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for round in range(4):
                for number in range(6):
                    store.set(f"{thread}.{number}", round)
                assert store.incr(f"count.{thread}", initial=0) == round + 1
            assert store.delete_many([f"{thread}.{number}" for number in range(6)]) == 6
        except BaseException as error:
            problems.append(error)

    with mqkv.Store(url, prefix=prefix, read_timeout=10) as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        assert sorted(store.keys()) == [f"count.{number}" for number in range(4)]
        store.purge()


def test_unconfirmed_writes_stay_seen(url: str, prefix: str, few: int) -> None:
    keys = [f"k{number}" for number in range(few * 5)]
    with mqkv.Store(url, prefix=prefix, read_timeout=5, confirm=False) as store:
        for key in keys:
            store.set(key, key)
        assert [store.get(key) for key in keys] == keys
        store.flush()
        assert [store.get(key) for key in keys] == keys
        store.purge()


def test_what_is_preloaded_no_more_is_watched_on(url: str, prefix: str) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5, max_entries=1) as store:
        store.set("k", 0)
        with store.watch("k") as changes:
            store.preload("k")
            store.preload("other", "another")
            store.set("k", 1)
            change = changes.get(10)
            assert change is not None and change.value == 1
        store.purge()


def test_a_watched_key_is_not_let_go_of(url: str, prefix: str, few: int) -> None:
    with mqkv.Store(url, prefix=prefix, read_timeout=5) as store:
        watches = [store.watch(f"k{number}") for number in range(few * 2)]
        for number in range(few * 4):
            store.set(f"k{number}", number)
        for number, watch in enumerate(watches):
            change = watch.get(10)
            assert change is not None and change.value == number
            watch.close()
        store.set("last", 1)
        assert idle(store) <= few
        store.purge()


def test_five_thousand(prefix: str) -> None:
    keys = [f"k{number}" for number in range(5_000)]
    with mqkv.Store(f"memory://{prefix}", prefix=prefix) as store:
        store.set_many(dict.fromkeys(keys, 1))
        assert len(store) == 5_000
        assert store.delete_many(keys) == 5_000 and len(store) == 0
