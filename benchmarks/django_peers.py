"""Django's cache API on a broker, beside its own RedisCache and PyMemcacheCache, with servers of this run where there are any."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from common import VALUE, Bench, median, ns, rate
from django.core.cache import caches
from django_cache import MANY, configured, taken

import mqkv.django

BACKENDS = "django.core.cache.backends"
SERVERS = {
    "redis": (
        f"{BACKENDS}.redis.RedisCache",
        "redis://127.0.0.1:{port}",
        ["redis-server", "--save", "", "--appendonly", "no", "--port"],
    ),
    "memcached": (
        f"{BACKENDS}.memcached.PyMemcacheCache",
        "127.0.0.1:{port}",
        ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p"],
    ),
}


def run(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(served(name)) for name in SERVERS}
        ours, _ = configured(bench, bench.url("amqp"), {name: peer for name, peer in peers.items() if peer is not None})
        try:
            for name in [name for name, peer in peers.items() if peer is not None]:
                _compare(bench, name, ours, caches[name])
        finally:
            mqkv.django.get_store().purge()
            mqkv.django.close_stores()


def _compare(bench: Bench, name: str, ours: Any, peer: Any) -> None:
    data = dict.fromkeys(MANY, VALUE)
    for cache in (ours, peer):
        cache.set("k", VALUE, 3600)
        cache.set_many(data, 3600)
        assert cache.get("k") == VALUE and len(cache.get_many(MANY)) == len(MANY)
    gets = pairs(lambda cache: [cache.get("k") for _ in range(500)], ours, peer, bench.count(40), 500)
    goal = {"redis": 20, "memcached": 4}[name]
    row(bench, f"Django, amqp: cache.get, beside {name}", gets, goal, ns)
    sets = pairs(lambda cache: [cache.set("k", VALUE, 3600) for _ in range(50)], ours, peer, bench.count(20), 50)
    row(bench, f"Django, amqp: cache.set, beside {name}", sets, 0.25 if name == "redis" else None, lambda s: f"{s * 1e3:.2f} ms")
    many = pairs(lambda cache: cache.set_many(data, 3600), ours, peer, bench.count(20), len(data))
    row(
        bench,
        f"Django, amqp: set_many of 2,000 keys, beside {name}",
        many,
        1.0 if name == "redis" else None,
        lambda s: rate(1 / s),
    )
    many = pairs(lambda cache: cache.get_many(MANY), ours, peer, bench.count(20), len(data))
    row(bench, f"Django, amqp: get_many of 2,000 keys, beside {name}", many, None, lambda s: rate(1 / s))


def pairs(call: Any, ours: Any, peer: Any, rounds: int, each: int) -> list[tuple[float, float]]:
    """Seconds for one of ``each`` that a call does, in turns."""
    return [(taken(lambda: call(ours)) / each, taken(lambda: call(peer)) / each) for _ in range(max(rounds, 3))]


def row(bench: Bench, name: str, times: list[tuple[float, float]], goal: float | None, show: Any) -> None:
    ratio = median([theirs / mine for mine, theirs in times])
    mine, theirs = median([mine for mine, _ in times]), median([theirs for _, theirs in times])
    told = "" if goal is None else f"over {goal:g} times as fast"
    bench.row(
        name, show(mine), f"{show(theirs)} ({name.rpartition(' ')[2]})", ratio, told, None if goal is None else ratio > goal
    )


@contextlib.contextmanager
def served(name: str) -> Iterator[dict[str, str] | None]:
    """Django's settings of a peer with a private server; None where the server or its client is not installed."""
    backend, location, command = SERVERS[name]
    try:
        __import__({"redis": "redis", "memcached": "pymemcache"}[name])
    except ImportError:
        command = [""]
    if shutil.which(command[0]) is None:
        print(f"skipped: no {name}, or no client of it for Python", file=sys.stderr)
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, f"{name} has not started"
                time.sleep(0.02)
        yield {"BACKEND": backend, "LOCATION": location.format(port=port)}
    finally:
        process.terminate()
        process.wait(10)
