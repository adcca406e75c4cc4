"""Locks: what may be asked of them, and locks of event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import mqkv
from lock_tools import SOON, Waiter, enter, queue_of, until


@pytest.fixture
def store(url: str, prefix: str, layout: Any) -> Iterator[mqkv.Store]:
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=5.0) as store:
        yield store
        store.purge()


# Arguments


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "30", None, 1e300])
def test_wrong_ttls(store: mqkv.Store, ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl") as caught:
        store.lock("jobs", ttl=ttl)
    assert isinstance(caught.value, mqkv.Error)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "1"])
def test_wrong_timeouts(store: mqkv.Store, timeout: Any) -> None:
    with pytest.raises(mqkv.InvalidOption, match="timeout"):
        store.lock("jobs", timeout=timeout)
    lock = store.lock("jobs")
    with pytest.raises(mqkv.InvalidOption, match="timeout"):
        lock.acquire(timeout)
    assert not lock.owned()


@pytest.mark.parametrize("name", ["", None, 1, b"jobs", "a\nb", "\ud800", "__mqkv_x", "x" * 40_000])
def test_wrong_names(store: mqkv.Store, name: Any) -> None:
    with pytest.raises(mqkv.InvalidKey):
        store.lock(name)


@pytest.mark.parametrize("options", [{"ttl": 1e9}, {"ttl": 1e-9}, {"timeout": 1e300}, {"timeout": 1e-9}])
def test_odd_numbers_work(store: mqkv.Store, options: dict[str, float]) -> None:
    lock, second = store.lock("jobs"), store.lock("jobs", **options)
    with lock:
        waiter = Waiter(second, timeout=options.get("timeout", SOON))
        until(lambda: queue_of(store, "jobs") == 1 or not waiter.is_alive(), "a place in the queue")
    waiter.leave.set()
    waiter.join(SOON)
    assert waiter.error is None or "ttl" in options, waiter.error  # a lease of a microsecond may be lost at once
    assert waiter.had or options.get("timeout") == 1e-9


# Event loops


def test_locks_of_event_loops(url: str, prefix: str, layout: Any, store: mqkv.Store) -> None:
    async def main() -> None:
        async with mqkv.AsyncStore(url, prefix=prefix, layout=layout, read_timeout=5.0) as there:
            inside, tokens = 0, []

            async def enter() -> None:
                nonlocal inside
                async with there.lock("jobs", timeout=30) as lock:
                    inside += 1
                    tokens.append(lock.token)
                    await there.set("k", len(tokens))
                    assert inside == 1 and lock.owned() and await lock.locked()
                    inside -= 1

            await asyncio.gather(*(enter() for _ in range(20)))
            assert len(tokens) == 20 and tokens == sorted(set(tokens))
            lock = there.lock("jobs")
            assert await lock.acquire()
            with pytest.raises(mqkv.LockHeld):
                await there.lock("jobs").acquire()
            with pytest.raises(mqkv.LockTimeout):
                await asyncio.create_task(there.lock("jobs", timeout=0.1).__aenter__())
            await lock.release()
            with pytest.raises(mqkv.LockLost):
                await lock.release()
            with pytest.raises(ZeroDivisionError):
                async with there.lock("jobs"):
                    raise ZeroDivisionError

    asyncio.run(main())
    assert store.lock("jobs").acquire(0)


def test_a_cancelled_task_has_neither_the_lock_nor_a_place(url: str, prefix: str, layout: Any, store: mqkv.Store) -> None:
    """Cancelled at once, after so many turns of the loop, and while it waits in the queue."""

    async def main() -> None:
        async with mqkv.AsyncStore(url, prefix=prefix, layout=layout, read_timeout=5.0) as there:
            await there.set("k", 1)
            for held in (True, False):
                for turns in (0, 1, 2, 3, 5, 10, 30, 100):
                    holder = store.lock("jobs")
                    if held:
                        await asyncio.to_thread(holder.acquire)
                    task = asyncio.create_task(there.lock("jobs").acquire())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    had = (await asyncio.gather(task, return_exceptions=True))[0]
                    assert isinstance(had, asyncio.CancelledError) or (had is True and not held), had
                    if held:
                        await asyncio.to_thread(holder.release)
                    if had is True:
                        return  # it was quicker than the cancellation, and so it will be from now on
                    assert await asyncio.to_thread(enter, store.lock("jobs", timeout=3)), (held, turns)

    asyncio.run(main())


def test_a_cancelled_waiter_leaves_the_queue(url: str, prefix: str, layout: Any, store: mqkv.Store) -> None:
    async def main() -> None:
        async with mqkv.AsyncStore(url, prefix=prefix, layout=layout, read_timeout=5.0) as there:
            task = asyncio.create_task(there.lock("jobs").acquire())
            await asyncio.to_thread(until, lambda: queue_of(store, "jobs") == 1, "a place in the queue")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: queue_of(store, "jobs") == 0, "leaving the queue")

    with store.lock("jobs"):
        asyncio.run(main())
    assert store.lock("jobs").acquire(0)


# A broker that dies


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_lock_outlives_a_restart_of_the_broker(own_broker: Any, prefix: str, layout: Any) -> None:
    """Who holds it holds it still, who waits waits still; a lease that runs out meanwhile is known to be lost."""
    options: dict[str, Any] = {"prefix": prefix, "layout": layout, "read_timeout": 10, "write_timeout": 30}
    with mqkv.Store(own_broker.url, **options) as store, mqkv.Store(f"{own_broker.url}?heartbeat=31", **options) as other:
        lock, short = store.lock("jobs", ttl=60), store.lock("short", ttl=1)
        lock.acquire()
        short.acquire()
        token = lock.token
        waiter = Waiter(other.lock("jobs"), timeout=90)
        until(lambda: queue_of(store, "jobs") == 1, "a place in the queue")
        own_broker.kill()
        until(lambda: not short.owned(), "the end of the lease that nobody could renew", 3)
        assert lock.owned()
        own_broker.start()
        store.set("k", 1)
        assert lock.owned() and lock.token == token and not waiter.inside.is_set()
        with pytest.raises(mqkv.LockLost):
            _ = short.token
        short.release()  # no error: the log has it that nobody else had the lock
        lock.release()
        assert waiter.inside.wait(30), waiter.error
        assert waiter.token > token
        waiter.end()
        assert waiter.error is None and store.lock("short").acquire(5)
        store.purge()
