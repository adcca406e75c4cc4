"""AsyncStore: the names of Store, awaited; no thread a call; cancellation leaves nothing behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import mqkv
from mqkv.waiting import Deadline, run

Make = Callable[..., mqkv.AsyncStore]


@pytest.fixture
def make(url: str, layout: Any, prefix: str) -> Make:
    return lambda **options: mqkv.AsyncStore(url, prefix=prefix, layout=layout, **{"read_timeout": 5.0, **options})


def go(make: Make, test: Callable[[mqkv.AsyncStore], Awaitable[None]], **options: Any) -> None:
    """Run a test on a store of its own, and purge it."""

    async def main() -> None:
        async with make(**options) as store:
            try:
                await asyncio.wait_for(test(store), 60)
            finally:
                await store.purge()

    asyncio.run(main())


def test_the_names_are_those_of_the_store() -> None:
    """What is missing is said by other words: ``size`` for ``len``, ``close`` of a watch, logging of reads."""
    names = {name for name in dir(mqkv.Store) if not name.startswith("_")} - {"unwatch"}
    assert names <= set(dir(mqkv.AsyncStore))
    for name in sorted(names - {"after_fork", "stats", "close", "watch"}):
        ours, theirs = getattr(mqkv.AsyncStore, name), getattr(mqkv.Store, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name


def test_every_verb(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        assert await store.get("k") is None and await store.get("k", "default") == "default"
        revision = await store.set("k", {"a": 1}, ttl=60)
        assert await store.get("k") == {"a": 1} and await store.get("k", fresh=True) == {"a": 1}
        entry = await store.entry("k")
        assert entry is not None and entry.revision == revision
        assert await store.exists("k") and not await store.exists("none") and 59 < (await store.ttl("k") or 0) <= 60
        assert await store.compare_and_set("k", 1, revision) and not await store.compare_and_set("k", 1, revision)
        assert await store.add("a", 1) and not await store.add("a", 2) and await store.incr("a") == 2
        assert await store.touch("a", 60) and await store.pop("a") == 2 and await store.pop("a", None) is None
        assert await store.get_or_set("g", lambda: 5) == 5
        await store.set_many({"x": 1, "y": [2]})
        await store.sync()
        assert await store.get_many(["x", "y", "z"]) == {"x": 1, "y": [2]} and await store.delete_many(["x", "z"]) == 1
        assert sorted(await store.keys()) == ["g", "k", "y"] and await store.size() == 3
        assert ("y", [2]) in await store.items() and await store.history("g") == [5]
        await store.preload("g")
        assert store.peek("g") == 5 and await store.delete("g") and store.peek("g") is None
        await store.clear(prefix="y")
        assert await store.keys() == ["k"]
        await store.flush()
        assert store.stats()["failed_writes"] == 0
        with pytest.raises(mqkv.KeyNotFound):
            await store.pop("none")
        for bad in (None, 1, "", "a\n"):
            with pytest.raises(mqkv.InvalidKey):
                await store.get(bad)  # type: ignore[call-overload]

    go(make, test)


def test_many_at_once_take_no_thread_each(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        await store.incr("n", initial=0)
        before = threading.active_count()
        peak = 0

        async def count() -> int:
            nonlocal peak
            total = await store.incr("n")
            peak = max(peak, threading.active_count())
            return total

        totals = await asyncio.gather(*(count() for _ in range(300)))
        assert sorted(totals) == list(range(2, 302)) and await store.get("n", fresh=True) == 301
        assert peak <= before + 4

    go(make, test)


def test_watches_are_async_iterators(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        async with await store.watch("w*") as changes:
            writer = asyncio.create_task(_set_all(store))
            seen = []
            async for change in changes:
                seen.append((change.key, change.value))
                if len(seen) == 5:
                    break
            await writer
            assert seen == [(f"w{i}", i) for i in range(5)] and await changes.get(0.01) is None
        assert [change async for change in changes] == []
        watch = await store.watch("w0", start="last")
        first = await watch.get(10)
        assert first is not None and first.value == 0
        reader = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await reader

    async def _set_all(store: mqkv.AsyncStore) -> None:
        for i in range(5):
            await store.set(f"w{i}", i)
            await store.set(f"other{i}", i)

    go(make, test)


def test_cancellation_leaves_nothing_behind(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        for number in range(30):
            call = asyncio.create_task(store.set("k", number))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled() or call.result() >= 0
        revision = await store.set("k", "last")
        assert revision >= 0 and await store.get("k", fresh=True) == "last"
        for table in store._keyspace.tables():
            assert not table._awaited and not table._own

    go(make, test)


def test_a_lock_among_tasks(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        inside: list[int] = []
        tokens: list[int] = []

        async def work(number: int) -> None:
            async with store.lock("l", timeout=30) as lock:
                inside.append(number)
                assert len(inside) == 1
                tokens.append(lock.token)
                await asyncio.sleep(0)
                inside.remove(number)

        lock = store.lock("l")
        assert await lock.acquire() and await lock.locked() and lock.owned()
        with pytest.raises(mqkv.LockHeld):
            await store.lock("l").acquire()
        tasks = [asyncio.create_task(work(number)) for number in range(10)]
        await asyncio.sleep(0.05)
        for task in tasks[:3]:
            task.cancel()
        await lock.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results[:3]] == [asyncio.CancelledError] * 3 and results[3:] == [None] * 7
        assert tokens == sorted(tokens)
        assert not await store.lock("l").locked()
        table = await store._drive(store._keyspace.lock_table(Deadline(5)))
        assert table is not None and table.lock_state("l") is None

    go(make, test)


def test_stores_of_both_kinds_share_a_table(make: Make, url: str, layout: Any, prefix: str) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        other = mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5.0)
        await asyncio.to_thread(other.set, "k", 1)
        assert await store.get("k") == 1 and other._keyspace is store._keyspace
        await asyncio.to_thread(other.close)

    go(make, test)


def test_use_after_close(make: Make) -> None:
    async def main() -> None:
        store = make()
        await store.close()
        await store.close()
        with pytest.raises(mqkv.Closed):
            await store.get("k")
        with pytest.raises(mqkv.Closed):
            await store.set("k", 1)

    asyncio.run(main())


def test_unconfirmed_writes(make: Make) -> None:
    async def test(store: mqkv.AsyncStore) -> None:
        for number in range(50):
            assert await store.set("k", number) == -1 and await store.get("k") == number
        await store.flush()
        assert store.stats()["unconfirmed"] == 0

    go(make, test, confirm=False)


def test_a_signal_reaches_the_coroutine_that_waits() -> None:
    """What is raised where a thread waits is raised in the coroutine, which cleans up."""
    from mqkv.streams.base import Promise
    from mqkv.waiting import wait

    class Interrupting(Promise[None]):
        def wait(self, timeout: float) -> bool:
            raise KeyboardInterrupt

    cleaned: list[bool] = []

    async def waits() -> None:
        try:
            await wait(Interrupting(), 1)
        finally:
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        run(waits())
    assert cleaned == [True]
