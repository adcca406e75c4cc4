"""Preload of 1,000 keys of the per-key layout in a fresh process, beside 1,000 consumes of pika, one after the other."""

from __future__ import annotations

import gc
import threading
import time

import pika
import pika.channel
from common import VALUE, Bench, fresh, median, store

import mqkv


def ours(url: str, prefix: str, keys: list[str]) -> tuple[float, int, int]:
    """Seconds from nothing to all keys in memory, and how many threads and channels there are then."""
    with mqkv.Store(url, prefix=prefix, read_timeout=30) as fresh_store:
        begin = time.perf_counter()
        fresh_store.preload(*keys)
        taken = time.perf_counter() - begin
        assert all(fresh_store.peek(key) == VALUE for key in keys)
        channels = sum(isinstance(thing, pika.channel.Channel) and thing.is_open for thing in gc.get_objects())
        return taken, threading.active_count(), channels


def peer(url: str, prefix: str, keys: list[str]) -> float:
    begin = time.perf_counter()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    found: dict[str, bytes] = {}
    for key in keys:
        channel.basic_consume(
            f"{prefix}.{key}",
            lambda _channel, _method, _properties, body, key=key: found.update({key: body}),
            arguments={"x-stream-offset": "last"},
        )
    while len(found) < len(keys):
        connection.process_data_events(time_limit=1)
    taken = time.perf_counter() - begin
    connection.close()
    return taken


def run(bench: Bench) -> None:
    if not bench.has("amqp"):
        return
    prefix, keys = bench.prefix(), [f"key{number}" for number in range(bench.count(1000))]
    with store(bench.other, prefix=prefix, confirm=False, read_timeout=60, write_timeout=60) as writer:
        for key in keys:
            writer.set(key, VALUE)
        writer.flush()
        taken, raw = [], []
        threads = channels = 0
        for _ in range(3):
            seconds, threads, channels = fresh(ours, bench.amqp, prefix, keys)
            taken.append(seconds)
            raw.append(fresh(peer, bench.amqp, prefix, keys))
    mine, theirs = median(taken), median(raw)
    bench.row(
        f"preload of {len(keys):,} keys, per-key",
        f"{mine:.2f} s, {channels} channels, {threads} threads",
        f"{theirs:.2f} s (raw consumes)",
        mine / theirs,
        "< 2.5 s, no channel or thread a key",
        mine < 2.5 and threads < 10 and channels < 40,
    )
