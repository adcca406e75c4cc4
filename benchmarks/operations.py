"""Operations that the order of the log decides, beside the confirmed set, raw publishes, and a redis where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing.connection import Connection
from typing import Any

from cached_get import KEYS, sweep
from common import LAYOUTS, VALUE, Bench, Raw, alternate, median, ms, ns, percentile, rate, store
from threads import THREADS, together
from visible import Other, consumer

import mqkv

MANY = 20_000
QUEUEING = 0.02  # seconds after which the other process waits for the lock for sure


def run(bench: Bench) -> None:
    async_reads(bench)
    if not bench.has("amqp"):
        return
    for layout in LAYOUTS:
        decided(bench, layout)
        counter(bench, layout)
        hand_over(bench, layout)
    set_many(bench)


def decided(bench: Bench, layout: str) -> None:
    """Single calls, beside confirmed sets of the same store."""
    with store(bench.amqp, prefix=bench.prefix(), layout=layout) as ours:
        ours.set("counter", 0)
        ours.set("taken", VALUE)
        numbers, lock = itertools.count(), ours.lock("lock")
        # A new key of the per-key layout is a new stream, which has its price in another line of the table.
        new = layout == "shared"

        def lock_and_unlock() -> None:
            lock.acquire()
            lock.release()

        calls: tuple[tuple[str, Callable[[], object], float], ...] = (
            ("incr", lambda: ours.incr("counter"), 1.3),
            (f"add of a key that {'is new' if new else 'has a value'}", add(ours, numbers if new else None), 1.3),
            ("lock and unlock, nobody waits", lock_and_unlock, 2.5),
        )
        for what, call, goal in calls:
            a, b = alternate(call, lambda: ours.set("key", VALUE), bench.count(100), 20)
            mine, theirs = median(a), median(b)
            ratio = mine / theirs
            bench.row(f"{what}, {layout}", ms(mine), f"{ms(theirs)} (confirmed set)", ratio, f"ratio < {goal}", ratio < goal)


def add(ours: mqkv.Store, numbers: Iterator[int] | None) -> Callable[[], object]:
    if numbers is None:
        return lambda: ours.add("taken", VALUE)
    return lambda: ours.add(f"new{next(numbers)}", VALUE)


def counter(bench: Bench, layout: str) -> None:
    """Many threads, one key."""
    times = bench.count(200)
    prefix = bench.prefix()
    with store(bench.amqp, prefix=prefix, layout=layout) as ours, Raw(bench.amqp, f"{prefix}-raw") as raw:
        ours.set("counter", 0)
        rates, raw_rates = [], []
        for _ in range(8):
            rates.append(THREADS * times / together(lambda _: ours.incr("counter"), times))
            begin = time.perf_counter()
            for _ in range(times):
                raw.publish()
            raw_rates.append(times / (time.perf_counter() - begin))
        assert ours.get("counter", fresh=True) == 8 * THREADS * times
    mine, theirs = median(rates[1:]), median(raw_rates[1:])
    what = f"one counter, incremented by {THREADS} threads, {layout}"
    bench.row(what, rate(mine), f"{rate(theirs)} (raw, one thread)", mine / theirs, "> 3,000/s", mine > 3000)


def waiter(url: str, prefix: str, layout: Any, pipe: Connection) -> None:
    """Waits for the lock when told so, and sends when it has it."""
    with mqkv.Store(url, prefix=prefix, layout=layout, read_timeout=30) as there:
        lock = there.lock("lock")
        lock.locked()
        pipe.send("ready")
        while pipe.recv() != "end":
            lock.acquire()
            had = time.monotonic()
            lock.release()
            pipe.send(had)


def hand_over(bench: Bench, layout: str) -> None:
    """From the call of release in one process until acquire has returned in another."""
    prefix, rounds = bench.prefix(), bench.count(200)
    with store(bench.amqp, prefix=prefix, layout=layout) as here, Raw(bench.amqp, f"{prefix}-raw") as raw:
        lock = here.lock("lock")
        lock.acquire()
        with Other(waiter, bench.amqp, prefix, layout) as ours, Other(consumer, bench.amqp, raw.stream) as peer:
            taken = []
            for _ in range(rounds + 1):
                ours.pipe.send("wait")
                time.sleep(QUEUEING)
                called = time.monotonic()
                lock.release()
                ours.see()
                taken.append(ours.times[-1] - called)
                lock.acquire()
                raw.publish(repr(time.monotonic()).encode())
                peer.see()
        lock.release()
    half, most = percentile(taken[1:], 50), percentile(taken[1:], 99)
    theirs = percentile(peer.times[1:], 50)
    bench.row(
        f"lock handed over to a waiter in another process, {layout}",
        f"p50 {ms(half)}, p99 {ms(most)}",
        f"p50 {ms(theirs)} (raw publish and consume)",
        half / theirs,
        "p50 < 3 ms",
        half < 3e-3,
    )


async def async_sweep(place: mqkv.AsyncStore, times: int) -> float:
    """Seconds a get."""
    keys = KEYS * times
    begin = time.perf_counter()
    for key in keys:
        await place.get(key)
    return (time.perf_counter() - begin) / len(keys)


def async_reads(bench: Bench) -> None:
    """Cached reads of both stores, on one table."""

    async def measure(prefix: str, ours: mqkv.Store) -> tuple[list[float], list[float]]:
        async with mqkv.AsyncStore(bench.url("memory"), prefix=prefix, layout="shared", read_timeout=30) as there:
            assert await there.get(KEYS[0]) == ours.get(KEYS[0]) == f"{VALUE}{KEYS[0]}"
            a, b = [], []
            for _ in range(bench.count(300)):
                a.append(await async_sweep(there, 50))
                b.append(sweep(ours, 50))
            return a, b

    prefix = bench.prefix()
    with store(bench.url("memory"), prefix=prefix, layout="shared") as ours:
        for key in KEYS:
            ours.set(key, f"{VALUE}{key}")
        work: Coroutine[Any, Any, tuple[list[float], list[float]]] = measure(prefix, ours)
        a, b = asyncio.run(work)
    mine, theirs = median(a), median(b)
    more = median([one - other for one, other in zip(a, b, strict=True)])
    name = "cached get of AsyncStore, memory, shared"
    bench.row(name, ns(mine), f"{ns(theirs)} (Store)", mine / theirs, "under 300 ns more", more < 300e-9)


def set_many(bench: Bench) -> None:
    """One call with many values, beside a publish of as many bytes at once, and beside redis."""
    count = bench.count(MANY)
    items = {f"key{number}": VALUE for number in range(count)}
    body = "".join(items.values()).encode()
    prefix = bench.prefix()
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(store(bench.amqp, prefix=prefix, layout="shared"))
        raw = stack.enter_context(Raw(bench.amqp, f"{prefix}-raw"))
        a, b = alternate(lambda: ours.set_many(items), lambda: raw.publish(body), bench.count(20), 1)
        mine, theirs = count / median(a), count / median(b)
        name, goal = f"set_many of {count:,} values, shared", "> 100,000 values/s"
        bench.row(name, rate(mine), f"{rate(theirs)} (raw publish of the bytes)", mine / theirs, goal, mine > 100_000)
        client = stack.enter_context(redis_server(bench))
        if client is None:
            return

        def pipeline() -> None:
            commands = client.pipeline(transaction=False)
            for key, value in items.items():
                commands.set(key, value)
            commands.execute()

        a, b = alternate(lambda: ours.set_many(items), pipeline, bench.count(20), 1)
        mine, theirs = count / median(a), count / median(b)
        bench.row(name, rate(mine), f"{rate(theirs)} (redis, a pipeline of SET)", mine / theirs, "", None)


@contextlib.contextmanager
def redis_server(bench: Bench) -> Iterator[Any]:
    """A client of a private redis that keeps a log, as the broker does; None where there is no redis."""
    try:
        import redis
    except ImportError:
        redis = None
    program = shutil.which("redis-server")
    if redis is None or program is None:
        print("skipped: no redis-server, or no redis of Python", file=sys.stderr)
        yield None
        return
    path = f"{bench.folder}/redis.sock"
    options = ("--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "yes", "--dir", str(bench.folder))
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            client = redis.Redis(unix_socket_path=path)
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    assert time.monotonic() < deadline, "redis has not started"
                    time.sleep(0.05)
            yield client
            client.close()
        finally:
            server.terminate()
